"""GPT-2 checkpoints: from the official files to plain arrays, with NumPy and the standard library.

Two layouts hold the same tensors: OpenAI's (a TensorFlow bundle) and Hugging Face's
(safetensors). In both, weights lie on disk as the rows of the array in memory, so reading them
is memory-mapping them: `load` finds where each tensor lies, checks it, and copies nothing.
Part of gpt2_np.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import re
import shutil
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime as parsedate
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

if __package__:
    from . import backend, bpe, gpt2_np
else:
    import backend
    import bpe
    import gpt2_np

DTYPES = ("float32", "float64", "float16")
SHAKESPEARE = Path(__file__).resolve().parent / "models" / "shakespeare"


class CheckpointError(gpt2_np.Error):
    """A file is damaged, hostile, or of a model that this is not; the message names it."""


class DownloadError(gpt2_np.Error):
    """The files cannot be had: no network, no space, nothing there; the message says which."""


def load(
    name_or_path: str | os.PathLike[str], device: str = "auto", dtype: str = "float32"
) -> gpt2_np.Model:
    """The model of that name, path or URL, ready to run.

    `name_or_path` is a size ("124M", "355M", "774M", "1558M"), "shakespeare", the path of a folder
    in OpenAI's or Hugging Face's layout, of a .safetensors file, or the http(s) URL of such a
    folder. What is not on this machine is downloaded into `cache_folder()` on first use.

    `device` is "auto" (GPT2_NP_DEVICE, else a GPU where one works), "cpu" or "cuda". On the CPU,
    float32 weights stay in the file, memory-mapped; all arrays are read-only. To the GPU they go
    one tensor after another. float16 is for the GPU. Raises CheckpointError or DownloadError, and
    Error where the device cannot be had or has too little memory.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {shown(dtype)}, expected {' or '.join(DTYPES)}")
    if device == "auto":
        device = os.environ.get("GPT2_NP_DEVICE") or "auto"
    try:
        xp = backend.pick(device)
        backend.check_dtype(dtype, xp)
        checkpoint = open_checkpoint(locate(name_or_path))
        backend.check_room(bytes_of(checkpoint.config, dtype), xp)
    except backend.DeviceError as error:
        raise gpt2_np.Error(str(error)) from error
    map_once = Maps()

    def array(path, tensor):
        return backend.to_device(as_array(tensor, map_once[tensor.file], dtype), xp)

    params = nest(checkpoint.tensors, array)
    return gpt2_np.Model(checkpoint.config, params, open_tokenizer(checkpoint))


def bytes_of(config: gpt2_np.Config, dtype: str) -> int:
    """The size of all weights in that type."""
    return gpt2_np.describe(config, np.dtype(dtype).itemsize)["bytes"]


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder or file that a name, path or URL means, downloaded where it has to be."""
    if name_or_path == "shakespeare":
        if not os.path.exists(__file__):
            raise CheckpointError(
                f"{SHAKESPEARE} cannot be read: this copy runs from inside an archive, and weights "
                "are memory-mapped from files; unpack it, or give the path of a model's folder"
            )
        if not os.path.exists(SHAKESPEARE):
            raise CheckpointError(
                f"{SHAKESPEARE} is not there: copy the folder models/ beside checkpoint.py"
            )
        return SHAKESPEARE
    if isinstance(name_or_path, str) and (name_or_path in gpt2_np.SIZES or is_url(name_or_path)):
        for source in sources_of(name_or_path):
            if is_verified(source.folder):
                return source.folder
        return download(name_or_path)
    if isinstance(name_or_path, (str, os.PathLike)) and is_there(name_or_path):
        return Path(name_or_path)
    raise CheckpointError(
        f"{shown(name_or_path)} is neither a known model ({', '.join(gpt2_np.SIZES)}, shakespeare) "
        "nor a path that exists; give one of these, or the http(s) URL of a checkpoint's folder"
    )


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a folder or file.

    Raises CheckpointError where the system will not say, and for a pipe or a device: opening one
    can wait for ever.
    """
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return False
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path} is no folder and no regular file, expected one of these")
    return True


def as_array(tensor: Tensor, buffer: Any, dtype: str) -> np.ndarray:
    """One tensor as a read-only array; a view of `buffer` where its bytes will do as they are."""
    stored = np.dtype(STORED_AS[tensor.dtype])
    raw = np.frombuffer(buffer, stored, tensor.size // stored.itemsize, tensor.start)
    if tensor.dtype == "BF16":  # the upper half of a float32
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    # The official safetensors files begin their data at an odd byte: unaligned arrays would be
    # copied again at every matrix product, so they are copied once here.
    array = np.require(raw, dtype, "A").reshape(tensor.shape)
    array.flags.writeable = False
    return array


class Maps(dict):
    """Memory-mapped files by path, each mapped when it is first asked for."""

    def __missing__(self, file: Path) -> mmap.mmap:
        try:
            with open(file, "rb") as opened:
                self[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise CheckpointError(f"{file} cannot be mapped: {reason(error)}") from error
        return self[file]


# --- layouts and names -----------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `size` bytes from `start` in `file`, row after row, little-endian."""

    file: Path
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    start: int
    size: int
    crc: int | None = None  # CRC-32C of the bytes, where the layout has one


class Layout(NamedTuple):
    """What the files of a checkpoint are called, and its tensors."""

    config: str
    merges: str
    vocab: str
    name_of: Callable[[tuple], str]


class Checkpoint(NamedTuple):
    """An opened checkpoint: `tensors` is nested as `Model.params` is, with Tensor leaves."""

    folder: Path
    layout: Layout
    config: gpt2_np.Config
    tensors: dict[str, Any]


def tensorflow_name(path: tuple) -> str:
    """("blocks", 3, "attn", "c_attn", "w") is model/h3/attn/c_attn/w."""
    return "model/" + "/".join(map(str, path)).replace("blocks/", "h")


def hugging_face_name(path: tuple) -> str:
    """("blocks", 3, "ln_1", "g") is h.3.ln_1.weight. Weights are [in, out] in both layouts."""
    leaves = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    return ".".join(map(str, (*path[:-1], leaves[path[-1]]))).replace("blocks.", "h.")


HPARAMS, CONFIG = "hparams.json", "config.json"
TENSORFLOW = Layout(HPARAMS, "vocab.bpe", "encoder.json", tensorflow_name)
HUGGING_FACE = Layout(CONFIG, "merges.txt", "vocab.json", hugging_face_name)
TOKENIZER_JSON = "tokenizer.json"  # both in one: transformers 5 writes no other
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
SAFETENSORS, SHARDS = "model.safetensors", "model.safetensors.index.json"

# Weights come in these types; the others occur in masks, which are checked and left alone.
STORED_AS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
ITEM_BYTES = {name: np.dtype(code).itemsize for name, code in STORED_AS.items()} | {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "U32": 4,
    "I32": 4, "U64": 8, "I64": 8, "C64": 8,
}  # fmt: skip
# Above what any GPT-2 needs, and below what would hurt: a header of the largest has 0.1 MB.
MAX_SMALL_FILE = 4 * 2**20
MAX_LAYERS, MAX_FIGURE, MAX_AXES = 10_000, 2**24, 8


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, or of a .safetensors file with its config.json beside it."""
    folder = path if path.is_dir() else path.parent
    if folder is not path and path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no checkpoint: expected a folder, or a .safetensors file with config.json "
            "beside it (pickled weights are never read; convert them to safetensors)"
        )
    if folder is path and is_there(folder / TENSORFLOW.config):
        config, file = read_hparams(folder / TENSORFLOW.config), folder / INDEX
        tensors = place(config, read_bundle(file), TENSORFLOW, file)
        return Checkpoint(folder, TENSORFLOW, config, tensors)
    if is_there(folder / HUGGING_FACE.config):
        config = read_config(folder / HUGGING_FACE.config)
        file = path if folder is not path else folder / SAFETENSORS
        if not is_there(file) and is_there(folder / SHARDS):
            file = folder / SHARDS
        found = read_shards(file) if file.name == SHARDS else read_safetensors(file)
        tensors = place(config, plain_names(found, file), HUGGING_FACE, file)
        return Checkpoint(folder, HUGGING_FACE, config, tensors)
    raise CheckpointError(
        f"{folder} holds neither {TENSORFLOW.config} (OpenAI's layout) nor {HUGGING_FACE.config} "
        "(Hugging Face's), one of which gives a checkpoint's sizes"
    )


def open_tokenizer(checkpoint: Checkpoint) -> bpe.Tokenizer | None:
    """The tokenizer beside the weights, or None where there is none: token ids will do."""
    merges = checkpoint.folder / checkpoint.layout.merges
    vocab = checkpoint.folder / checkpoint.layout.vocab
    together = checkpoint.folder / TOKENIZER_JSON
    try:
        if is_there(merges):
            tokenizer = bpe.Tokenizer.from_files(merges, vocab if is_there(vocab) else None)
        elif checkpoint.layout is HUGGING_FACE and is_there(together):
            merges = together
            tokenizer = bpe.Tokenizer.from_json(together)
        else:
            return None
    except (bpe.TokenizerError, OSError) as error:
        raise CheckpointError(f"{merges} gives no tokenizer: {error}") from error
    if tokenizer.n_vocab > checkpoint.config.n_vocab:
        raise CheckpointError(
            f"{merges} gives {tokenizer.n_vocab} tokens, expected at most the "
            f"{checkpoint.config.n_vocab} of {checkpoint.layout.config}"
        )
    return tokenizer


def nest(tree: Any, visit: Callable[[tuple, Any], Any], path: tuple = ()) -> Any:
    """The same nesting with visit(path, leaf) for each leaf; ("ln_f", "g") is a path."""
    if isinstance(tree, dict):
        return {key: nest(value, visit, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [nest(value, visit, (*path, i)) for i, value in enumerate(tree)]
    return visit(path, tree)


def place(
    config: gpt2_np.Config, found: Mapping[str, Tensor], layout: Layout, file: Path
) -> dict[str, Any]:
    """The tensor of each parameter of `config`, none missing, wrong or left over."""
    left = dict(found)

    def take(path, shape):
        name = layout.name_of(path)
        # TensorFlow has the weights as convolutions one token wide.
        stored = (1, *shape) if path[-1] == "w" and layout is TENSORFLOW else shape
        if name not in left:
            raise CheckpointError(f"{file} has no tensor {name!r}; expected one of shape {stored}")
        tensor = left.pop(name)
        if tensor.shape != stored or tensor.dtype not in STORED_AS:
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} is {tensor.dtype} of shape {shown(tensor.shape)}, "
                f"expected {', '.join(STORED_AS)} of shape {stored}"
            )
        return replace(tensor, shape=shape)

    tensors = nest(gpt2_np.parameter_shapes(config), take)
    head = left.pop("lm_head.weight", None)
    if head and not same_bytes(head, tensors["wte"]):
        raise CheckpointError(
            f"{head.file}: tensor 'lm_head.weight' differs from 'wte.weight', expected no "
            "difference: GPT-2 turns vectors into tokens with the matrix that embeds them"
        )
    for name in left:
        raise CheckpointError(f"{file}: tensor {shown(name)} is no part of a GPT-2 with {config}")
    return tensors


def plain_names(found: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Without the prefix that newer files have and the causal masks that older files have."""
    plain = {}
    for full_name, tensor in found.items():
        name = full_name.removeprefix("transformer.")
        if name in plain:
            raise CheckpointError(f"{file}: tensor {shown(name)} is there with and without prefix")
        if not re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", name):
            plain[name] = tensor
    return plain


def same_bytes(a: Tensor, b: Tensor) -> bool:
    maps, step = Maps(), 2**20
    x, y = (np.frombuffer(maps[t.file], np.uint8, t.size, t.start) for t in (a, b))
    return (a.dtype, a.size) == (b.dtype, b.size) and all(
        np.array_equal(x[i : i + step], y[i : i + step]) for i in range(0, a.size, step)
    )


def read_hparams(file: Path) -> gpt2_np.Config:
    """The sizes in OpenAI's hparams.json."""
    return checked_config(file, read_json(file), {})


# What the forward pass computes: with any other value, the weights mean another function.
EXPECTED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def read_config(file: Path) -> gpt2_np.Config:
    """The sizes in Hugging Face's config.json, which must describe a GPT-2 and no relative."""
    found = read_json(file)
    config = checked_config(file, found, {"n_vocab": "vocab_size", "n_ctx": "n_positions"})
    sizes = {"n_ctx": (config.n_ctx,), "n_inner": (None, 4 * config.n_embd)}
    for key, expected in (EXPECTED | sizes).items():
        if key in found and found[key] not in expected:
            wanted = " or ".join(map(repr, expected))
            raise CheckpointError(f"{file}: {key} is {shown(found[key])}, expected {wanted}")
    return config


def checked_config(
    file: Path, found: Mapping[str, Any], keys: Mapping[str, str]
) -> gpt2_np.Config:
    figures = {}
    for name in gpt2_np.Config.__annotations__:
        figures[name] = value = found.get(key := keys.get(name, name))
        limit = MAX_LAYERS if name == "n_layer" else MAX_FIGURE
        if type(value) is not int or not 1 <= value <= limit:
            raise CheckpointError(
                f"{file}: {key} is {shown(value)}, expected a whole number from 1 to {limit}"
            )
    config = gpt2_np.Config(**figures)
    if config.n_embd % config.n_head:
        raise CheckpointError(
            f"{file}: n_embd is {config.n_embd}, expected a multiple of n_head, {config.n_head}"
        )
    return config


def read_json(file: Path) -> dict[str, Any]:
    with problems_of(file, "a sound JSON object"):
        return parse_json(read_small(file))


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object, without what JSON leaves open: repeated keys, NaN, bottomless nesting."""

    def unique(pairs):
        found = {}
        for key, value in pairs:
            if key in found:
                raise Malformed(f"the key {shown(key)} is there twice")
            found[key] = value
        return found

    def refuse(constant):
        raise Malformed(f"{constant} is no number in JSON")

    try:
        value = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error
    if not isinstance(value, dict):
        raise Malformed(f"it is a {type(value).__name__}")
    return value


def open_to_read(file: Path) -> Any:
    is_there(file)  # or not: then `open` says so best
    return open(file, "rb")


def read_small(file: Path) -> bytes:
    with open_to_read(file) as opened:
        content = opened.read(MAX_SMALL_FILE + 1)
    if len(content) > MAX_SMALL_FILE:
        raise Malformed(f"it has over {MAX_SMALL_FILE} bytes")
    return content


class Malformed(ValueError):
    """What a parser found wrong; its caller knows in which file."""


@contextlib.contextmanager
def problems_of(file: Path, kind: str) -> Iterator[None]:
    """Turn what goes wrong inside into a CheckpointError that names the file."""
    try:
        yield
    except Malformed as error:
        raise CheckpointError(f"{file} is not {kind}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from error


def shown(value: Any) -> str:
    """A value from outside, made short and printable anywhere."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def check_size(tensor: Tensor) -> None:
    if len(tensor.shape) > MAX_AXES:
        raise Malformed(f"it has {len(tensor.shape)} axes, expected at most {MAX_AXES}")
    expected = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    if tensor.size != expected:
        raise Malformed(
            f"it has {tensor.size} bytes, expected {expected} for {tensor.dtype} of shape "
            f"{shown(tensor.shape)}"
        )


def check_contiguous(tensors: Mapping[str, Tensor], end: int) -> int:
    """Where the last of the tensors ends, each beginning where the one before ends."""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != end:
            raise Malformed(
                f"tensor {shown(name)} begins at byte {tensor.start}, expected {end}, where the "
                "one before it ends"
            )
        end += tensor.size
    return end


# --- the TensorFlow bundle -------------------------------------------------------------------

# The index is a LevelDB table (leveldb/doc/table_format.md) from names to protocol buffers
# (tensorflow/core/protobuf/tensor_bundle.proto); the data file is the tensors one after another.
MAGIC = bytes.fromhex("57fb808b247547db")
BUNDLE_DTYPES = {1: "F32", 2: "F64", 14: "BF16", 19: "F16"}
VARINT, BYTES, FIXED32 = 0, 2, 5  # wire types of protocol buffers
MAX_KEY = 256  # bytes; shared beginnings would let a small file hold very many long keys


def read_bundle(index: Path) -> dict[str, Tensor]:
    """The tensors of a bundle by name; the data file beside the index has just their length."""
    tensors = read_index(index)
    data = index.with_name(DATA)
    with problems_of(data, "the data of its index"):
        found, expected = data.stat().st_size, data_size(tensors)
        if found != expected:
            raise Malformed(f"it has {found} bytes, expected {expected}")
    return tensors


def data_size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.size for tensor in tensors.values())


def read_index(file: Path) -> dict[str, Tensor]:
    """The tensors that the index of a bundle describes, by name."""
    with problems_of(file, "a whole TensorFlow bundle index"):
        entries = table_entries(read_small(file))
        check_header(*next(entries, (None, b"")))
        data = file.with_name(DATA)
        tensors = {name: bundle_tensor(name, entry, data) for name, entry in entries}
        check_contiguous(tensors, 0)
    return tensors


def table_entries(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The (key, value) pairs of a LevelDB table, in the order of their keys."""
    if len(content) < 48 or content[-8:] != MAGIC:
        raise Malformed(f"it has {len(content)} bytes and not the end of such a table")
    footer = content[-48:-8]
    _, _, at = handle(footer, 0)  # of the metaindex block, which is empty
    index_start, index_size, _ = handle(footer, at)
    end, before = 0, None
    for _, value in block_entries(block(content, index_start, index_size)):
        start, size, _ = handle(value, 0)
        if start < end:
            raise Malformed(f"a block begins at {start}, inside the one before it")
        end = start + size
        for key, entry in block_entries(block(content, start, size)):
            if before is not None and key <= before:
                raise Malformed(f"the key {shown(key)} comes after {shown(before)}")
            before = key
            yield key.decode(errors="backslashreplace"), entry


def block(content: bytes, start: int, size: int) -> bytes:
    """One block; five bytes follow it, its compression and a CRC over both."""
    end = start + size
    if end + 5 > len(content) - 48:
        raise Malformed(f"a block of {size} bytes at {start} leaves the file")
    if content[end]:
        raise Malformed(f"the block at {start} has compression {content[end]}, expected 0, none")
    found, expected = crc32c(content[start : end + 1]), unmask(fixed32(content, end + 1))
    if found != expected:
        raise Malformed(f"the block at {start} has CRC-32C {found:08x}, expected {expected:08x}")
    return content[start:end]


def block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of a block, each key given by what differs from the one before it.

    The block ends with its restarts, where keys are given in full, and the number of these.
    """
    count = fixed32(block, len(block) - 4)
    end = len(block) - 4 - 4 * count
    if end < 0:
        raise Malformed(f"a block of {len(block)} bytes has {count} restarts")
    restarts = struct.unpack_from(f"<{count}I", block, end)
    in_full = {0}
    at, key = 0, b""
    while at < end:
        entry = at
        shared, at = varint(block, at)
        rest, at = varint(block, at)
        size, at = varint(block, at)
        if at + rest + size > end or shared > len(key) or shared + rest > MAX_KEY:
            raise Malformed(f"the entry at {entry} of a block does not fit")
        if shared == 0:
            in_full.add(entry)
        key = key[:shared] + block[at : at + rest]
        at += rest + size
        yield key, block[at - size : at]
    rising = restarts[:1] == (0,) and list(restarts) == sorted(set(restarts))
    if not rising or not in_full.issuperset(restarts):
        raise Malformed("the restarts of a block are not where keys are in full")


def check_header(key: str | None, header: bytes) -> None:
    """BundleHeaderProto, under the empty key: one shard, little-endian, of a version known here."""
    if key != "":
        raise Malformed("it does not begin with a header")
    fields = message(header)
    checks = {
        "number of shards": (field(fields, 1, 0), 1),
        "byte order": (field(fields, 2, 0), 0),
        "oldest version that reads it": (field(message(field(fields, 3, b"")), 2, 0), 0),
    }
    for what, (found, expected) in checks.items():
        if found != expected:
            raise Malformed(f"its {what} is {found}, expected {expected}")


def bundle_tensor(name: str, entry: bytes, data: Path) -> Tensor:
    """BundleEntryProto: type, shape, place and checksum of a tensor."""
    try:
        fields = message(entry)
        if 7 in fields or field(fields, 3, 0) != 0:
            raise Malformed("it is in slices or in another shard, expected whole and in the first")
        dtype = BUNDLE_DTYPES.get(number := field(fields, 1, 0))
        if dtype is None:
            raise Malformed(f"its data type is {number}, expected one of {BUNDLE_DTYPES}")
        dims = message(field(fields, 2, b"")).get(2, [])
        shape = tuple(field(message(dim), 1, 0) for dim in dims)
        crc = unmask(field(fields, 6, 0))
        tensor = Tensor(data, dtype, shape, field(fields, 4, 0), field(fields, 5, 0), crc)
        check_size(tensor)
    except Malformed as error:
        raise Malformed(f"tensor {shown(name)}: {error}") from error
    return tensor


def message(content: Any) -> dict[int, list[Any]]:
    """The values of a protocol buffer message, int or bytes, by the number of their field."""
    if not isinstance(content, bytes):
        raise Malformed(f"found the number {content}, expected a message")
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(content):
        tag, at = varint(content, at)
        if tag & 7 == VARINT:
            value, at = varint(content, at)
        elif tag & 7 == FIXED32:
            value, at = fixed32(content, at), at + 4
        elif tag & 7 == BYTES:
            size, at = varint(content, at)
            value, at = content[at : at + size], at + size
        else:
            raise Malformed(f"field {tag >> 3} has wire type {tag & 7}, expected 0, 2 or 5")
        if at > len(content):
            raise Malformed(f"field {tag >> 3} leaves its message")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def field(fields: Mapping[int, list[Any]], number: int, absent: Any) -> Any:
    """A field that is there at most once: of several the last counts, and none means zero."""
    value = fields.get(number, [absent])[-1]
    if type(value) is not type(absent):
        raise Malformed(f"field {number} is {shown(value)}, expected {type(absent).__name__}")
    return value


def handle(content: bytes, at: int) -> tuple[int, int, int]:
    """Start and size of a block, and where this handle of it ends."""
    start, at = varint(content, at)
    size, at = varint(content, at)
    return start, size, at


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, seven in a byte, the lowest first; and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise Malformed("a number is cut off")
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128 and value < 2**64:
            return value, at
    raise Malformed("a number has over 64 bits")


def fixed32(content: bytes, at: int) -> int:
    if not 0 <= at <= len(content) - 4:
        raise Malformed("a number is cut off")
    return int.from_bytes(content[at : at + 4], "little")


def unmask(masked: int) -> int:
    """The CRC that was stored rotated and shifted, as LevelDB does with CRCs beside their data."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


# x^209 + x^144 + x^54 + x^39 + x^14 + 1 is a multiple of CRC-32C's polynomial. Over GF(2) its
# square is the same sum in x^2, so it stays a multiple with x^8, x^16, x^32 ... in place of x.
# Hence, in a message cut into units of 1, 2, 4 ... bytes, the first unit can be XORed into the
# 65th, 155th, 170th, 195th and 209th unit after it and dropped: the CRC stays the same.
FOLD = (65, 155, 170, 195, 209)
UNIT, CHUNK = 512, 2**19  # bytes; 1 to 3.5 GB/s measured, where a loop over bytes reaches 0.006


def crc32c(data: Any) -> int:
    """The CRC-32C (Castagnoli; RFC 3720) of a buffer of bytes."""
    data = np.frombuffer(data, np.uint8)
    first = len(data) % CHUNK
    # A CRC begins with all ones, which is what these four bytes make of a register of zeros. And
    # that register does not see zeros at the front: here they fill up a word of eight bytes.
    front = bytes(-(first + 4) % 8) + b"\x54\x64\x1f\x64"
    message = np.concatenate([np.frombuffer(front, np.uint8), data[:first]])
    for start in range(first, len(data), CHUNK):
        message = np.concatenate([fold(message, UNIT), data[start : start + CHUNK]])
    for unit in (UNIT, 64, 8, 1):
        message = fold(message, unit)
    register = 0
    for byte in message.tolist():
        register = register >> 8 ^ CRC_TABLE[(register ^ byte) & 255]
    return register ^ 0xFFFFFFFF


def fold(message: np.ndarray, unit: int) -> np.ndarray:
    """The last 209 units of a message, changed so that their CRC is that of the whole."""
    words = message.view(np.uint64) if unit % 8 == 0 else message
    unit //= words.itemsize
    end = max(len(words) - FOLD[-1] * unit, 0)
    for start in range(0, end, FOLD[0] * unit):
        stop = min(start + FOLD[0] * unit, end)
        for distance in FOLD:
            words[start + distance * unit : stop + distance * unit] ^= words[start:stop]
    return words[end:].view(np.uint8)


def crc_of_byte(register: int) -> int:
    for _ in range(8):
        register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


CRC_TABLE = [crc_of_byte(byte) for byte in range(256)]


# --- safetensors -----------------------------------------------------------------------------


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Eight bytes give the length of a JSON header, which gives each tensor's type, shape and place
    in the bytes that follow; these are used without holes or overlaps, to the end of the file.
    """
    with problems_of(file, "a whole safetensors file"), open_to_read(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_SMALL_FILE):
            raise Malformed(
                f"its header has {length} bytes, expected at most {MAX_SMALL_FILE} and, in a file "
                f"of {size} bytes, {max(size - 8, 0)}"
            )
        header = opened.read(length)
        if header[:1] != b"{":
            raise Malformed(f"its header begins with {shown(header[:1])}, expected b'{{'")
        entries = parse_json(header)
        metadata = entries.pop("__metadata__", {})
        texts = isinstance(metadata, dict) and all(type(v) is str for v in metadata.values())
        if not texts:
            raise Malformed(f"__metadata__ is {shown(metadata)}, expected texts by name")
        start = 8 + length
        tensors = {name: header_tensor(name, entries[name], file, start) for name in entries}
        end = check_contiguous(tensors, start)
        if end != size:
            raise Malformed(f"it has {size} bytes, expected {end}")
    return tensors


def header_tensor(name: str, entry: Any, file: Path, start: int) -> Tensor:
    def whole(numbers):
        return type(numbers) is list and all(type(n) is int and 0 <= n < 2**63 for n in numbers)

    try:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise Malformed(f"found {shown(entry)}, expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(dtype) is not str or dtype not in ITEM_BYTES:
            raise Malformed(f"its dtype is {shown(dtype)}, expected one of {', '.join(ITEM_BYTES)}")
        if not whole(shape):
            raise Malformed(f"its shape is {shown(shape)}, expected whole numbers")
        if not whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise Malformed(f"its data_offsets are {shown(offsets)}, expected [begin, end]")
        tensor = Tensor(file, dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])
        check_size(tensor)
    except Malformed as error:
        raise Malformed(f"tensor {shown(name)}: {error}") from error
    return tensor


def read_shards(file: Path) -> dict[str, Tensor]:
    """The tensors of several safetensors files, which model.safetensors.index.json lists."""
    weight_map = read_weight_map(file)
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in read_safetensors(file.with_name(shard)).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{tensor.file} holds tensor {shown(name)}, which {file.name} expects in "
                    f"{shown(weight_map.get(name))}"
                )
            tensors[name] = tensor
    for name in weight_map.keys() - tensors.keys():
        raise CheckpointError(
            f"{file.with_name(weight_map[name])} has no tensor {shown(name)}, which {file.name} "
            "expects there"
        )
    return tensors


def read_weight_map(file: Path) -> dict[str, str]:
    """Names of tensors to names of safetensors files, which are in the same folder."""
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file}: weight_map is {shown(weight_map)}, expected names to files")
    for name, shard in weight_map.items():
        if type(shard) is not str or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard, re.ASCII):
            raise CheckpointError(
                f"{file}: tensor {shown(name)} is in {shown(shard)}, expected the plain name of a "
                ".safetensors file in the same folder"
            )
    return weight_map


# --- download --------------------------------------------------------------------------------

TIMEOUT = (10, 30)  # seconds to connect, and to wait for the next bytes
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 1.0, 60.0  # in a row without a new byte; seconds
PIECE = 2**16  # bytes
VERIFIED, LOCK = "verified.json", ".lock"


class Unavailable(DownloadError):
    """A source cannot serve the model now; another may."""


class NotServed(Unavailable):
    """The server answers, and has no such file."""


class Interrupted(Exception):
    """A transfer broke in a way that need not happen again."""

    def __init__(self, what: str, attempts: int = ATTEMPTS, wait: float = 0.0):
        super().__init__(what)
        self.attempts, self.wait = attempts, wait


@dataclass(frozen=True)
class Source:
    """A folder on a server, the folder that its files are kept in, and what must be in it."""

    url: str
    folder: Path
    progress: bool
    pinned: Mapping[str, tuple[int | None, str | None]]  # bytes and SHA-256 by file
    config: gpt2_np.Config | None

    def note(self, message: str) -> None:
        if self.progress:
            print(message, file=sys.stderr)


def download(name_or_url: str, progress: bool = True) -> Path:
    """Fetch the files of a size, or at a URL, and verify every byte; their folder in the cache.

    What is there already is verified again and kept; what broke off goes on where it stopped.
    Files are compared with the SHA-256 that is published, if any, and the tensors of a bundle with
    their CRC-32C. `progress` shows bars and notes on stderr. Raises DownloadError where the files
    cannot be had, CheckpointError where they are not what they should be.
    """
    if name_or_url == "shakespeare":
        return SHAKESPEARE
    failures: list[Unavailable] = []
    sources = sources_of(name_or_url, progress)
    for source in sorted(sources, key=lambda source: not is_verified(source.folder)):
        try:
            with locked(source):
                if not (offline() or is_verified(source.folder)):
                    source.note(f"downloading {source.url} into {source.folder}")
                fetch_checkpoint(source)
            return source.folder
        except Unavailable as error:
            failures.append(error)
            if len(failures) < len(sources):
                source.note(f"{error}; trying the next source")
        except OSError as error:
            raise DownloadError(
                f"{error.filename or source.folder} cannot be used: {reason(error)}; make it "
                "usable, or set GPT2_NP_CACHE to another folder"
            ) from error
    raise DownloadError(
        f"{name_or_url} cannot be downloaded: {'; '.join(map(str, failures))}"
        + ("" if isinstance(failures[-1], NotServed) else f"; {WITHOUT_NETWORK}")
    )


WITHOUT_NETWORK = (
    "without a network, run the embedded model (--model shakespeare) or give the path of a "
    "checkpoint's folder"
)


def cache_folder() -> Path:
    """Where downloads are kept: GPT2_NP_CACHE, else the platform's folder for such files."""
    if named := os.environ.get("GPT2_NP_CACHE"):
        return Path(os.path.expanduser(named))
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "gpt2_np"
    if os.path.isabs(xdg := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(xdg) / "gpt2_np"
    caches = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(os.path.expanduser(caches)) / "gpt2_np"


def offline() -> bool:
    """Whether the environment forbids the network."""
    values = (os.environ.get(name, "") for name in ("GPT2_NP_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.lower() in ("1", "true", "yes", "on") for value in values)


def is_url(name: str) -> bool:
    return re.match("https?://", name, re.IGNORECASE) is not None


def sources_of(name: str, progress: bool = True) -> list[Source]:
    """Where a size, or the checkpoint at a URL, can be had, in the order to try."""
    cache = cache_folder()
    if name not in gpt2_np.SIZES:
        url = name.rstrip("/")
        if not is_url(url) or re.search("[?#@]", url):
            raise DownloadError(
                f"{shown(name)} cannot be downloaded, expected {', '.join(gpt2_np.SIZES)} or the "
                "http(s) URL of a folder, without user name, ? and #"
            )
        words = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("//")[2])[-60:].strip("-.")
        key = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:12]
        return [Source(url, cache / "url" / f"{words}-{key}", progress, {}, None)]
    openai = (os.environ.get("GPT2_NP_URL") or OPENAI_URL).rstrip("/")
    hub = (os.environ.get("HF_ENDPOINT") or HUB_URL).rstrip("/")
    repository, revision, files = HUB[name]
    hub = f"{hub}/openai-community/{repository}/resolve/{revision}"
    bundle = OPENAI[name] | {"vocab.bpe": MERGES, "encoder.json": VOCAB}
    files = files | {"merges.txt": MERGES, "vocab.json": VOCAB}
    config, folder = gpt2_np.SIZES[name], cache / name
    return [
        Source(f"{openai}/{name}", folder / "openai", progress, bundle, config),
        Source(hub, folder / "huggingface", progress, files, config),
    ]


def is_verified(folder: Path) -> bool:
    """Whether the files in a folder are the ones that were verified, by length and time."""
    files = verified_files(folder)
    with contextlib.suppress(OSError, ValueError):
        return bool(files) and all(stamp(folder / name) == files[name] for name in files)
    return False


def verified_files(folder: Path) -> dict[str, Any]:
    """The stamps of the files in a folder when they were last verified, by name."""
    try:
        return read_json(folder / VERIFIED)
    except CheckpointError:
        return {}


def stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def locked(source: Source) -> Iterator[None]:
    """One process at a time fills a folder. The lock goes with the process, however it ends.

    Where nothing came, the folders made for it are removed.
    """
    made = [source.folder, *(above for above in source.folder.parents if not above.exists())]
    with hold_lock(source):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file
                if os.listdir(source.folder) == [LOCK]:
                    (source.folder / LOCK).unlink()
                    for folder in made:
                        folder.rmdir()


def hold_lock(source: Source) -> Any:
    """The opened file whose lock this process now holds."""
    path, waiting = source.folder / LOCK, False
    while True:
        source.folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 (closed by the caller)
        while not try_lock(file.fileno()):
            if not waiting:
                source.note(f"waiting for another process that fills {source.folder}")
            waiting = True
            time.sleep(0.2)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()  # who held it has removed it since, with the folder


def try_lock(file: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def fetch_checkpoint(source: Source) -> None:
    """Fetch the small files, which say what the large ones must be; then those; verify all."""
    folder, layout = source.folder, fetch_layout(source)
    known = verified_files(folder)
    for name in (layout.merges, layout.vocab, TOKENIZER_JSON):
        if known and name not in known:
            continue  # the server had none
        if name == TOKENIZER_JSON and (layout is TENSORFLOW or (folder / layout.merges).exists()):
            continue
        try:
            fetch(source, name)
        except NotServed:
            if source.pinned and name in source.pinned:
                raise
    if layout is TENSORFLOW:
        fetch(source, INDEX)
        with removing(folder, layout.config, INDEX):
            tensors = read_index(folder / INDEX)
            place(read_hparams(folder / layout.config), tensors, layout, folder / INDEX)
        weights = [DATA]
        fetch(source, DATA, data_size(tensors))
    else:
        weights = fetch_safetensors(source)
    with removing(folder, layout.config, *weights):
        checkpoint = open_checkpoint(folder)
    with removing(folder, *weights):
        check_crcs(checkpoint)
    with removing(folder, layout.merges, layout.vocab, TOKENIZER_JSON):
        open_tokenizer(checkpoint)
    passing = (VERIFIED, LOCK, ".part", ".tag")
    files = [file for file in folder.iterdir() if not file.name.endswith(passing)]
    (folder / VERIFIED).write_text(json.dumps({file.name: stamp(file) for file in sorted(files)}))


def fetch_layout(source: Source) -> Layout:
    """Fetch whichever file of sizes there is."""
    problems = []
    readers = {TENSORFLOW: read_hparams, HUGGING_FACE: read_config}
    for layout in sorted(readers, key=lambda layout: not (source.folder / layout.config).exists()):
        file = source.folder / layout.config
        if source.pinned and layout.config not in source.pinned:
            continue
        try:
            fetch(source, layout.config)
            with removing(source.folder, layout.config):
                config = readers[layout](file)
                if source.config not in (None, config):
                    raise CheckpointError(f"{file} has {config}, expected {source.config}")
            return layout
        except (NotServed, CheckpointError) as error:
            if source.pinned:
                raise
            problems.append(str(error))
    raise NotServed("; ".join(problems))


def fetch_safetensors(source: Source) -> list[str]:
    """Fetch the one file of weights or the several; their names."""
    if not (source.folder / SHARDS).exists():
        try:
            fetch(source, SAFETENSORS)
            return [SAFETENSORS]
        except NotServed:
            if source.pinned:
                raise
    fetch(source, SHARDS)
    with removing(source.folder, SHARDS):
        shards = sorted(set(read_weight_map(source.folder / SHARDS).values()))
    for shard in shards:
        fetch(source, shard)
    return [SHARDS, *shards]


def check_crcs(checkpoint: Checkpoint) -> None:
    """Compare the bytes of each tensor with its checksum, in a layout that has these."""
    maps = Maps()

    def check(path, tensor):
        if tensor.crc is None:
            return
        found = crc32c(memoryview(maps[tensor.file])[tensor.start : tensor.start + tensor.size])
        if found != tensor.crc:
            raise CheckpointError(
                f"{tensor.file}: tensor {checkpoint.layout.name_of(path)!r} has CRC-32C "
                f"{found:08x}, expected {tensor.crc:08x}"
            )

    nest(checkpoint.tensors, check)


@contextlib.contextmanager
def removing(folder: Path, *names: str) -> Iterator[None]:
    """Remove files that turn out to be wrong, so that the next run can download them anew."""
    try:
        yield
    except CheckpointError as error:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        removed = f"{' and '.join(names)} removed from the cache, run again to download anew"
        raise CheckpointError(f"{error}; {removed}") from error


def fetch(source: Source, name: str, size: int | None = None) -> None:
    """See to it that a file is in the source's folder, whole and with its pinned hash."""
    url, target = f"{source.url}/{name}", source.folder / name
    pinned_size, sha256 = source.pinned.get(name, (None, None))
    size = size if pinned_size is None else pinned_size
    if target.exists():
        if size in (None, bytes_in(target)) and sha256 in (None, hash_of(target).hexdigest()):
            return
        source.note(f"{target} is damaged: downloading it anew")
        target.unlink()
    if offline():
        raise DownloadError(
            f"{target} is not there and GPT2_NP_OFFLINE or HF_HUB_OFFLINE forbids the network: "
            f"unset them, or, {WITHOUT_NETWORK}"
        )
    part, failures = target.with_name(name + ".part"), 0
    while True:
        before = bytes_in(part)
        try:
            found = transfer(source, url, part, size, sha256)
            break
        except Interrupted as error:
            failures = failures + 1 if bytes_in(part) <= before else 1
            if failures >= error.attempts:
                raise Unavailable(str(error)) from error
            wait = min(max(error.wait, FIRST_WAIT * 2 ** (failures - 1)), LONGEST_WAIT)
            source.note(f"{error}; trying again in {wait:g} s")
            time.sleep(wait)
    if sha256 not in (None, found):
        part.unlink()
        raise CheckpointError(
            f"{url} has SHA-256 {found}, expected {sha256}, so it is not the official file and is "
            "not kept; try again, or another mirror"
        )
    os.replace(part, target)
    tag_file(part).unlink(missing_ok=True)


def transfer(source: Source, url: str, part: Path, size: int | None, sha256: str | None) -> str:
    """Ask once for the bytes that `part` has not got, and append them; the SHA-256 of all."""
    import requests
    from tqdm import tqdm

    have, tag = bytes_in(part), tag_file(part).read_text() if tag_file(part).exists() else ""
    if have and have == size:
        return hash_of(part).hexdigest()
    headers = {"Accept-Encoding": "identity"}
    if have and (tag or sha256):  # else nothing would tell that the file has changed meanwhile
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": tag} if tag else {})
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except (requests.ConnectionError, requests.Timeout) as error:
        host = urlsplit(url).netloc
        raise Interrupted(f"{host} cannot be reached ({cause(error)})", attempts=2) from error
    except (requests.RequestException, ValueError) as error:
        raise Unavailable(f"{url} cannot be fetched: {error}") from error
    with response:
        have, total = checked_answer(response, url, part, size)
        digest = hash_of(part) if have and sha256 else hashlib.sha256()
        silent = not source.progress or (total or 0) < 2**20
        bar = tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True,
                   disable=silent)  # fmt: skip
        try:
            with bar, open(part, "ab" if have else "wb") as file:
                for piece in response.iter_content(PIECE):
                    have += len(piece)
                    if have > (MAX_SMALL_FILE if total is None else total):
                        raise NotServed(f"{url} goes on after {have - len(piece)} bytes")
                    digest.update(piece)
                    bar.update(file.write(piece))
                file.flush()
                os.fsync(file.fileno())
        except requests.RequestException as error:
            raise Interrupted(f"{url} broke off after {have:,} bytes") from error
    if have < (total or 0):
        raise Interrupted(f"{url} broke off after {have:,} of {total:,} bytes")
    return digest.hexdigest()


def checked_answer(
    response: Any, url: str, part: Path, size: int | None
) -> tuple[int, int | None]:
    """(first byte that follows, bytes of the whole file), where the answer is the file indeed."""
    status, headers = response.status_code, response.headers
    if status in (408, 429) or status >= 500:
        raise Interrupted(f"{url} answered {status} {response.reason}", wait=asked_wait(headers))
    span = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", headers.get("Content-Range", ""))
    start = int(span[1]) if span and status == 206 else 0
    if status == 416 or (status == 206 and start != bytes_in(part)):
        part.unlink(missing_ok=True)
        raise Interrupted(f"{url} does not continue the {part.name} that is here")
    if status not in (200, 206):
        raise NotServed(f"{url} answered {status} {response.reason}")
    length = span[2] if start else headers.get("Content-Length", "")
    total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else size
    kind = headers.get("Content-Type", "")
    if (re.search("html|xml", kind) and total != size) or "Content-Encoding" in headers:
        raise NotServed(f"{url} answered with a page or a packed file ({shown(kind)})")
    if size is not None and total != size:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"{url} has {total} bytes, expected {size}")
    if not part.stem.endswith((".safetensors", DATA)) and (total or 0) > MAX_SMALL_FILE:
        raise NotServed(f"{url} has {total} bytes, expected at most {MAX_SMALL_FILE}")
    room = shutil.disk_usage(part.parent).free
    if (total or 0) - start > room:
        raise DownloadError(
            f"{url} needs {total - start:,} bytes in {part.parent}, where {room:,} are free; make "
            "room, or set GPT2_NP_CACHE to another folder"
        )
    if start == 0:  # from now on, what is in `part` is of this version of the file
        part.unlink(missing_ok=True)
        tag = headers.get("ETag", "")
        strong = tag if not tag.startswith("W/") else ""
        tag_file(part).write_text(strong or headers.get("Last-Modified", ""))
    return start, total


def asked_wait(headers: Mapping[str, str]) -> float:
    """The seconds that Retry-After gives, itself or by a date; else 0."""
    value = headers.get("Retry-After", "")
    with contextlib.suppress(ValueError, TypeError):
        return float(value) if value.isdecimal() else parsedate(value).timestamp() - time.time()
    return 0.0


def cause(error: Exception) -> str:
    """What the system said, out of what requests and urllib3 made of it."""
    inner = str(getattr(error.args[0], "reason", error)) if error.args else type(error).__name__
    number = re.search(r"\[Errno [^)]*", inner)
    return number[0] if number else inner.rpartition(": ")[2]


def bytes_in(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def hash_of(file: Path) -> Any:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256")


def tag_file(part: Path) -> Path:
    """Beside a part: the ETag or date by which the server tells whether its file is the same."""
    return part.with_name(part.name + ".tag")


# --- the official files ----------------------------------------------------------------------

# Each with its bytes and SHA-256. None stands where no figure has been published; then the bytes
# must agree with the rest of the checkpoint, and tensors of a bundle with their CRC-32C.
OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
HUB_URL = "https://huggingface.co"
MERGES = (456318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
VOCAB = (1042301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783")

OPENAI: dict[str, dict[str, tuple[int | None, str | None]]] = {
    "124M": {
        HPARAMS: (90, "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318"),
        INDEX: (5215, "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687"),
        DATA: (497759232, "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118"),
    },
    "355M": {HPARAMS: (91, None), INDEX: (10399, None), DATA: (1419292672, None)},
    "774M": {HPARAMS: (None, None), INDEX: (None, None), DATA: (3096120320, None)},
    "1558M": {HPARAMS: (None, None), INDEX: (None, None), DATA: (6230444800, None)},
}

HUB: dict[str, tuple[str, str, dict[str, tuple[int | None, str | None]]]] = {
    "124M": ("gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e", {
        CONFIG: (665, "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4"),
        SAFETENSORS: (
            548105171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"),
    }),
    "355M": ("gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da", {
        CONFIG: (718, "ef1a44d889ad1a0acc7731c78134f1b87d2d222f110e97dd10fd4117331caf22"),
        SAFETENSORS: (
            1519984962, "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd"),
    }),
    "774M": ("gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519", {
        CONFIG: (None, "7fccdcfd6622055342a734c663ee0b61ff4fd697f42467595df0bf4448c8c170"),
        SAFETENSORS: (None, "5f47f3e12f91cd33b662ce7e433b6150ad5512b5884a2cee961b50e9c3bbebce"),
    }),
    "1558M": ("gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2", {
        CONFIG: (None, "be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a"),
        SAFETENSORS: (None, "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a"),
    }),
}  # fmt: skip

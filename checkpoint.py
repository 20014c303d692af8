"""GPT-2 checkpoints: from the official files to plain arrays, with NumPy and the standard library.

Two layouts hold the same tensors: OpenAI's (a TensorFlow bundle) and Hugging Face's
(safetensors). In both, weights lie on disk as the rows of the array in memory, so reading them
is memory-mapping them: `load` finds where each tensor lies, checks it, and copies nothing.
"""
from __future__ import annotations

import json
import math
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

if __package__:
    from . import backend, bpe, gpt2_np
else:
    import backend
    import bpe
    import gpt2_np

DTYPES = ("float32", "float64")
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
    float32 weights stay in the file, memory-mapped; all arrays are read-only. Raises
    CheckpointError, DownloadError or backend.DeviceError.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {shown(dtype)}; it can be {' or '.join(DTYPES)}")
    if device == "auto":
        device = os.environ.get("GPT2_NP_DEVICE") or "auto"
    xp = backend.pick(device)
    checkpoint = open_checkpoint(locate(name_or_path))
    tokenizer = open_tokenizer(checkpoint)
    maps: dict[Path, mmap.mmap] = {}

    def array(path, tensor):
        if tensor.file not in maps:
            maps[tensor.file] = map_file(tensor.file)
        return backend.to_device(as_array(tensor, maps[tensor.file], dtype), xp)

    return gpt2_np.Model(checkpoint.config, nest(checkpoint.tensors, array), tokenizer)


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder or file that a name, path or URL means, downloaded where it has to be."""
    if isinstance(name_or_path, str):
        if name_or_path == "shakespeare":
            return SHAKESPEARE
    if os.path.exists(name_or_path):
        return Path(name_or_path)
    sizes = ", ".join(gpt2_np.SIZES)
    raise CheckpointError(
        f"{shown(name_or_path)} is no model known here ({sizes}, shakespeare) and no path that "
        "exists; give one of these, the path of a checkpoint's folder, or its http(s) URL"
    )


def as_array(tensor: Tensor, buffer: Any, dtype: str) -> np.ndarray:
    """One tensor as a read-only array; a view of `buffer` where its bytes will do as they are."""
    stored = STORED_AS[tensor.dtype]
    raw = np.frombuffer(buffer, stored, math.prod(tensor.shape), tensor.start)
    if tensor.dtype == "BF16":  # the upper half of a float32
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    # The official safetensors files begin their data at an odd byte: unaligned arrays would be
    # copied again at every matrix product, so they are copied once here.
    array = np.require(raw, dtype, "A").reshape(tensor.shape)
    array.flags.writeable = False
    return array


def map_file(file: Path) -> mmap.mmap:
    try:
        with open(file, "rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"{file} cannot be memory-mapped: {reason(error)}") from error


# --- layouts and names -----------------------------------------------------------------------

# safetensors' names of the element types. Weights come in four of them; the others are known so
# that a file with masks in it can be checked.
STORED_AS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "C64": 8, "I32": 4,
              "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
WEIGHTS, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
SAFETENSORS, SHARDS = "model.safetensors", "model.safetensors.index.json"
MAX_SMALL_FILE = 4 * 2**20  # bytes of JSON or of an index; the largest real one has 0.1 million
MAX_FIGURE, MAX_LAYERS, MAX_RANK = 2**24, 10_000, 8  # of what a file may claim


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `size` bytes from `start` in `file`, row after row, little-endian."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int
    crc: int | None = None  # CRC-32C of the bytes, where the layout has one


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: `tensors` is nested as `Model.params` is, with Tensor leaves."""

    config: gpt2_np.Config
    tensors: dict[str, Any]
    merges: Path
    vocab: Path


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, or of one .safetensors file with its config.json beside it."""
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a checkpoint: give a folder, or a .safetensors file with its "
            "config.json beside it (pickled files are never read)"
        )
    if path.is_dir() and (folder / "hparams.json").exists():
        config = read_hparams(folder / "hparams.json")
        tensors = place(config, read_bundle(folder), tensorflow_name, folder / INDEX)
        return Checkpoint(config, tensors, folder / "vocab.bpe", folder / "encoder.json")
    if (folder / "config.json").exists():
        config = read_config(folder / "config.json")
        file = folder / SAFETENSORS if path.is_dir() else path
        if not file.exists() and (folder / SHARDS).exists():
            file = folder / SHARDS
            found = read_shards(file)
        else:
            found = read_safetensors(file)
        tensors = place(config, plain_names(found, file), hugging_face_name, file)
        return Checkpoint(config, tensors, folder / "merges.txt", folder / "vocab.json")
    raise CheckpointError(
        f"{folder} holds neither hparams.json (OpenAI's layout) nor config.json (Hugging Face's)"
    )


def nest(tree: Any, visit: Callable[[tuple, Any], Any], path: tuple = ()) -> Any:
    """The same nesting with visit(path, leaf) at each leaf; a path is ("blocks", 3, "ln_1", "g")."""
    if isinstance(tree, dict):
        return {key: nest(value, visit, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [nest(value, visit, (*path, i)) for i, value in enumerate(tree)]
    return visit(path, tree)


def tensorflow_name(path: tuple) -> str:
    """("blocks", 3, "attn", "c_attn", "w") is model/h3/attn/c_attn/w."""
    return "model/" + "/".join(map(str, path)).replace("blocks/", "h")


def hugging_face_name(path: tuple) -> str:
    """("blocks", 3, "ln_1", "g") is h.3.ln_1.weight. Weights are [in, out] in both layouts."""
    leaves = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    return ".".join(map(str, (*path[:-1], leaves[path[-1]]))).replace("blocks.", "h.")


def place(
    config: gpt2_np.Config,
    found: Mapping[str, Tensor],
    name_of: Callable[[tuple], str],
    file: Path,
) -> dict[str, Any]:
    """Each parameter of `config` with the place of its tensor: none missing, none left over."""
    left = dict(found)

    def take(path, shape):
        name = name_of(path)
        # TensorFlow's convolutions of width 1 have a leading axis of 1.
        stored = (1, *shape) if path[-1] == "w" and name_of is tensorflow_name else shape
        if name not in left:
            raise CheckpointError(f"{file} has no tensor {name!r}; expected one of shape {stored}")
        tensor = left.pop(name)
        if tensor.shape != stored:
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} has shape {shown(tensor.shape)}, expected {stored}"
            )
        if tensor.dtype not in STORED_AS:
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} holds {tensor.dtype}, expected one of "
                f"{', '.join(STORED_AS)}"
            )
        return replace(tensor, shape=shape)

    tensors = nest(gpt2_np.parameter_shapes(config), take)
    head = left.pop("lm_head.weight", None) if name_of is hugging_face_name else None
    if head and not same_bytes(head, tensors["wte"]):
        raise CheckpointError(
            f"{head.file}: tensor 'lm_head.weight' differs from 'wte.weight'; expected them equal, "
            "as GPT-2 unembeds with its embedding"
        )
    for name in left:
        raise CheckpointError(f"{file}: tensor {shown(name)} is no part of a GPT-2 of {config}")
    return tensors


def plain_names(found: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Tensors by name without the prefix of newer files and without the causal masks of older."""
    plain = {}
    for full, tensor in found.items():
        name = full.removeprefix("transformer.")
        if re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", name, re.ASCII):
            continue
        if name in plain:
            raise CheckpointError(
                f"{file}: tensor {shown(name)} is there twice, with a prefix and without"
            )
        plain[name] = tensor
    return plain


def same_bytes(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.size) != (b.dtype, b.size):
        return False
    x, y = (np.frombuffer(map_file(t.file), np.uint8, t.size, t.start) for t in (a, b))
    return all(np.array_equal(x[i : i + 2**20], y[i : i + 2**20]) for i in range(0, a.size, 2**20))


def read_hparams(file: Path) -> gpt2_np.Config:
    """The sizes in OpenAI's hparams.json."""
    found = read_json(file)
    return checked_config(file, {name: name for name in gpt2_np.Config.__annotations__}, found)


# What the forward pass computes: every other value means another function of the weights.
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
    """The sizes in Hugging Face's config.json, once it is sure that it describes a GPT-2."""
    found = read_json(file)
    for key, expected in EXPECTED.items():
        if key in found and found[key] not in expected:
            wanted = " or ".join(map(repr, expected))
            raise CheckpointError(f"{file}: {key} is {shown(found[key])}, expected {wanted}")
    keys = {"n_vocab": "vocab_size", "n_ctx": "n_positions", "n_embd": "n_embd",
            "n_head": "n_head", "n_layer": "n_layer"}
    config = checked_config(file, keys, found)
    for key, expected in (("n_ctx", config.n_ctx), ("n_inner", 4 * config.n_embd)):
        if found.get(key) not in (None, expected):
            raise CheckpointError(f"{file}: {key} is {shown(found[key])}, expected {expected}")
    return config


def checked_config(file: Path, keys: dict[str, str], found: dict[str, Any]) -> gpt2_np.Config:
    figures = {}
    for name, key in keys.items():
        figures[name] = value = found.get(key)
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


def open_tokenizer(checkpoint: Checkpoint) -> bpe.Tokenizer | None:
    """The tokenizer beside the weights; None where there is none, as token ids will do."""
    merges, vocab = checkpoint.merges, checkpoint.vocab
    if not merges.exists():
        return None
    try:
        tokenizer = bpe.Tokenizer.from_files(merges, vocab if vocab.exists() else None)
    except (bpe.TokenizerError, OSError) as error:
        raise CheckpointError(f"{merges.parent} has no usable tokenizer: {error}") from error
    if tokenizer.n_vocab > checkpoint.config.n_vocab:
        raise CheckpointError(
            f"{merges} gives {tokenizer.n_vocab} tokens, expected at most the model's "
            f"{checkpoint.config.n_vocab}"
        )
    return tokenizer


def read_small(file: Path) -> bytes:
    """The whole of a file that is known to be small."""
    try:
        with open(file, "rb") as opened:
            content = opened.read(MAX_SMALL_FILE + 1)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from error
    if len(content) > MAX_SMALL_FILE:
        raise CheckpointError(f"{file} is over {MAX_SMALL_FILE} bytes, too large for what it is")
    return content


def read_json(file: Path) -> dict[str, Any]:
    try:
        return parse_json(read_small(file))
    except Malformed as error:
        raise CheckpointError(f"{file} is not valid: {error}") from error


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object, without what JSON leaves open: repeated keys, NaN, bottomless nesting."""

    def unique(pairs):
        if len(pairs) > len(found := dict(pairs)):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise Malformed(f"the key {shown(twice)} is there twice")
        return found

    def refuse(constant):
        raise Malformed(f"{constant} is not JSON")

    try:
        value = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error
    if not isinstance(value, dict):
        raise Malformed(f"expected a JSON object, found a {type(value).__name__}")
    return value


class Malformed(ValueError):
    """What a parser found, for its caller to say in which file."""


def shown(value: Any) -> str:
    """A value from a file, made safe and short for a message."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


# --- the TensorFlow bundle -------------------------------------------------------------------

# The index is a LevelDB table of names and protocol buffers:
# github.com/google/leveldb/blob/main/doc/table_format.md, tensorflow/core/protobuf/tensor_bundle.proto.
MAGIC = bytes.fromhex("57fb808b247547db")
BUNDLE_DTYPES = {1: "F32", 2: "F64", 14: "BF16", 19: "F16"}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # the wire types of protocol buffers
MAX_KEY = 256  # bytes of a tensor's name


def read_bundle(folder: Path) -> dict[str, Tensor]:
    """The tensors of a bundle of one shard by name; the data file is as long as they need."""
    tensors = read_index(folder / INDEX)
    expected, found = data_size(tensors), file_size(folder / WEIGHTS)
    if found != expected:
        raise CheckpointError(f"{folder / WEIGHTS} has {found} bytes, expected {expected}")
    return tensors


def data_size(tensors: Mapping[str, Tensor]) -> int:
    return max((tensor.start + tensor.size for tensor in tensors.values()), default=0)


def read_index(file: Path) -> dict[str, Tensor]:
    """The tensors that an index file describes, by name. Raises CheckpointError."""
    content = read_small(file)
    tensors: dict[str, Tensor] = {}
    try:
        entries = table_entries(content)
        check_header(*next(entries, (None, b"")))
        for name, entry in entries:
            tensors[name] = bundle_tensor(name, entry, file.with_name(WEIGHTS))
    except Malformed as error:
        raise CheckpointError(f"{file} is not a whole TensorFlow bundle index: {error}") from error
    check_disjoint(tensors, file)
    return tensors


def table_entries(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The (key, value) pairs of a LevelDB table, in order."""
    if len(content) < 48 or content[-8:] != MAGIC:
        raise Malformed(f"it has {len(content)} bytes and does not end as such a table does")
    footer = content[-48:-8]
    _, at = handle(footer, 0)  # of the metaindex, which is empty
    (start, size), _ = handle(footer, at)
    previous_end, previous_key = 0, None
    for _, value in block_entries(block(content, start, size)):
        (start, size), _ = handle(value, 0)
        if start < previous_end:
            raise Malformed(f"a block begins at {start}, inside the one before")
        previous_end = start + size
        for key, entry in block_entries(block(content, start, size)):
            if previous_key is not None and key <= previous_key:
                raise Malformed(f"the key {shown(key)} follows {shown(previous_key)}")
            previous_key = key
            yield text(key), entry


def block(content: bytes, start: int, size: int) -> bytes:
    """One block, its checksum compared. Five bytes follow it: the compression and the CRC."""
    end = start + size
    if end + 5 > len(content) - 48:
        raise Malformed(f"a block of {size} bytes at {start} leaves the file")
    if content[end] != 0:
        raise Malformed(f"the block at {start} is compressed (type {content[end]}), expected none")
    found, expected = crc32c(content[start : end + 1]), unmask(fixed32(content, end + 1))
    if found != expected:
        raise Malformed(f"the block at {start} has CRC-32C {found:08x}, expected {expected:08x}")
    return content[start:end]


def block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of a block, whose keys leave out what they share with the one before.

    The block ends with the offsets of the entries that share nothing, and their number.
    """
    count = fixed32(block, len(block) - 4)
    end = len(block) - 4 - 4 * count
    if end < 0:
        raise Malformed(f"a block of {len(block)} bytes cannot have {count} restarts")
    restarts = struct.unpack_from(f"<{count}I", block, end)
    whole, at, key = [], 0, b""
    while at < end:
        entry = at
        shared, at = varint(block, at)
        rest, at = varint(block, at)
        size, at = varint(block, at)
        if at + rest + size > end or shared > len(key) or shared + rest > MAX_KEY:
            raise Malformed(f"the entry at {entry} of a block does not fit into it")
        if shared == 0:
            whole.append(entry)
        key = key[:shared] + block[at : at + rest]
        at += rest
        yield key, block[at : at + size]
        at += size
    sound = restarts[:1] == (0,) and list(restarts) == sorted(set(restarts))
    if not sound or not set(restarts) <= {0, *whole}:  # an empty block has one restart, too
        raise Malformed("the restarts of a block are not where entries begin")


def check_header(key: str | None, header: bytes) -> None:
    """BundleHeaderProto, under the empty key: one shard, little-endian, of a version known here."""
    if key != "":
        raise Malformed("it does not begin with a header")
    fields = message(header)
    shards, big_endian = last(fields, 1, VARINT, 0), last(fields, 2, VARINT, 0)
    oldest_reader = last(message(last(fields, 3, BYTES, b"")), 2, VARINT, 0)
    if shards != 1:
        raise Malformed(f"it has {shards} shards, expected 1")
    if big_endian:
        raise Malformed("its data are big-endian, expected little-endian")
    if oldest_reader > 1:
        raise Malformed(f"it asks for a reader of version {oldest_reader}, this one has version 1")


def bundle_tensor(name: str, entry: bytes, file: Path) -> Tensor:
    """BundleEntryProto: type, shape, place and checksum of a tensor."""
    try:
        fields = message(entry)
        if 7 in fields:
            raise Malformed("it is stored in slices, expected whole")
        if shard := last(fields, 3, VARINT, 0):
            raise Malformed(f"it is in shard {shard}, expected 0")
        number = last(fields, 1, VARINT, 0)
        if number not in BUNDLE_DTYPES:
            raise Malformed(f"it has data type {number}, expected one of {BUNDLE_DTYPES}")
        dims = message(last(fields, 2, BYTES, b""))
        if 3 in dims:
            raise Malformed("its shape is not known")
        shape = tuple(last(message(dim), 1, VARINT, 0) for dim in every(dims, 2, BYTES))
        tensor = Tensor(
            file, BUNDLE_DTYPES[number], shape, last(fields, 4, VARINT, 0),
            last(fields, 5, VARINT, 0), unmask(last(fields, 6, FIXED32, 0)),
        )  # fmt: skip
        check_size(tensor)
    except Malformed as error:
        raise Malformed(f"tensor {shown(name)}: {error}") from error
    return tensor


def check_size(tensor: Tensor) -> None:
    if len(tensor.shape) > MAX_RANK:
        raise Malformed(f"it has {len(tensor.shape)} axes, expected at most {MAX_RANK}")
    expected = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    if tensor.size != expected:
        raise Malformed(
            f"it has {tensor.size} bytes, expected {expected} for {tensor.dtype} "
            f"of shape {shown(tensor.shape)}"
        )


def check_disjoint(tensors: Mapping[str, Tensor], file: Path) -> None:
    end, before = 0, None
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start < end:
            raise CheckpointError(
                f"{file}: tensor {shown(name)} begins at byte {tensor.start}, inside tensor "
                f"{shown(before)}; expected {end} or later"
            )
        end, before = tensor.start + tensor.size, name


def message(content: bytes) -> dict[int, list[tuple[int, Any]]]:
    """The fields of a protocol buffer message: (wire type, value) in order, by number."""
    fields: dict[int, list[tuple[int, Any]]] = {}
    at = 0
    while at < len(content):
        tag, at = varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = varint(content, at)
        elif wire == BYTES:
            size, at = varint(content, at)
            value, at = content[at : at + size], at + size
        elif wire == FIXED32:
            value, at = fixed32(content, at), at + 4
        elif wire == FIXED64:
            value, at = content[at : at + 8], at + 8
        else:
            raise Malformed(f"wire type {wire} is not known")
        if at > len(content):
            raise Malformed(f"field {number} leaves its message")
        fields.setdefault(number, []).append((wire, value))
    return fields


def every(fields: dict[int, list[tuple[int, Any]]], number: int, wire: int) -> list[Any]:
    """All values of one field, of the wire type it must have."""
    found = fields.get(number, [])
    if any(its_wire != wire for its_wire, _ in found):
        raise Malformed(f"field {number} has not the wire type {wire}")
    return [value for _, value in found]


def last(fields: dict[int, list[tuple[int, Any]]], number: int, wire: int, absent: Any) -> Any:
    """The value of a field that is there once; the last one counts."""
    return (every(fields, number, wire) or [absent])[-1]


def handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    """(start, size) of a block, and where the handle ends."""
    start, at = varint(content, at)
    size, at = varint(content, at)
    return (start, size), at


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A whole number of up to 64 bits, seven to a byte, low ones first; and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise Malformed("a number leaves its block")
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            break
    else:
        raise Malformed("a number has over ten bytes")
    if value >= 2**64:
        raise Malformed("a number has over 64 bits")
    return value, at


def fixed32(content: bytes, at: int) -> int:
    if at < 0 or at + 4 > len(content):
        raise Malformed("a number of four bytes leaves its block")
    return int.from_bytes(content[at : at + 4], "little")


def text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"the key {shown(key)} is not UTF-8") from error


def unmask(masked: int) -> int:
    """The CRC behind a stored one: LevelDB rotates and adds, so that CRCs of CRCs stay useful."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


# x^209 + x^144 + x^54 + x^39 + x^14 + 1 is a multiple of CRC-32C's polynomial, and squaring over
# GF(2) keeps it one: with x^8, x^16, x^32 and so on in place of x. So in a message cut into units
# of a power of two bytes, each unit can be taken away and added (XOR) 65, 155, 170, 195 and 209
# units further on, and the CRC stays the same.
FOLD = (65, 155, 170, 195, 209)
UNIT, CHUNK = 512, 2**19  # bytes; the fastest here: 3.5 GB/s, a byte-wise loop in Python 10 MB/s


def crc32c(data: Any) -> int:
    """The CRC-32C (Castagnoli, RFC 3720) of a buffer of bytes."""
    data = np.frombuffer(data, np.uint8)
    first = len(data) % CHUNK
    # A CRC begins with all bits set, which is what these four bytes make of a register of zeros;
    # begun with zeros, it does not see zeros in front, here those that fill up the first word.
    filling = bytes(-(first + 4) % 8) + b"\x54\x64\x1f\x64"
    message = np.concatenate([np.frombuffer(filling, np.uint8), data[:first]])
    for start in range(first, len(data), CHUNK):
        message = np.concatenate([fold(message, UNIT), data[start : start + CHUNK]])
    for unit in (UNIT, 64, 8, 1):
        message = fold(message, unit)
    register = 0
    for byte in message.tolist():
        register = register >> 8 ^ CRC_TABLE[(register ^ byte) & 255]
    return register ^ 0xFFFFFFFF


def fold(message: np.ndarray, unit: int) -> np.ndarray:
    """The last 209 units, changed in place so that their CRC is that of the whole message."""
    words = message.view(np.uint64) if unit % 8 == 0 else message
    unit = unit // 8 if unit % 8 == 0 else unit
    end = max(len(words) - FOLD[-1] * unit, 0)
    for start in range(0, end, FOLD[0] * unit):
        stop = min(start + FOLD[0] * unit, end)
        for distance in FOLD:
            shift = distance * unit
            words[start + shift : stop + shift] ^= words[start:stop]
    return words[end:].view(np.uint8)


def crc_step(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRC_TABLE = [crc_step(byte) for byte in range(256)]


# --- safetensors -----------------------------------------------------------------------------


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; see github.com/huggingface/safetensors.

    Eight bytes give the length of a JSON header: name to dtype, shape and data_offsets. The
    tensors' bytes follow without holes or overlaps, to the end of the file.
    """
    size = file_size(file)
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > size - 8:
                raise Malformed(f"it has {size} bytes and a header of {length}")
            if length > MAX_SMALL_FILE:
                raise Malformed(f"its header has {length} bytes, expected at most {MAX_SMALL_FILE}")
            header = opened.read(length)
        if header[:1] != b"{":
            raise Malformed(f"its header begins with {shown(header[:1])}, expected '{{'")
        return header_tensors(parse_json(header), file, 8 + length, size)
    except Malformed as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from error


def header_tensors(
    header: dict[str, Any], file: Path, start: int, size: int
) -> dict[str, Tensor]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise Malformed("__metadata__ is not made of strings")
    tensors = {name: header_tensor(name, entry, file, start) for name, entry in header.items()}
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != end:
            raise Malformed(
                f"tensor {shown(name)} begins at byte {tensor.start}, expected {end}, where the "
                "one before ends"
            )
        end += tensor.size
    if end != size:
        raise Malformed(f"it has {size} bytes, expected {end}")
    return tensors


def header_tensor(name: str, entry: Any, file: Path, start: int) -> Tensor:
    def whole(values):
        return type(values) is list and all(type(x) is int and 0 <= x < 2**63 for x in values)

    try:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise Malformed(f"found {shown(entry)}, expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(dtype) is not str or dtype not in ITEM_BYTES:
            raise Malformed(f"its dtype is {shown(dtype)}, expected one of {', '.join(ITEM_BYTES)}")
        if not whole(shape):
            raise Malformed(f"its shape is {shown(shape)}, expected whole numbers")
        if not whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise Malformed(f"its data_offsets are {shown(offsets)}, expected [begin, end]")
        begin, end = offsets
        tensor = Tensor(file, dtype, tuple(shape), start + begin, end - begin)
        check_size(tensor)
    except Malformed as error:
        raise Malformed(f"tensor {shown(name)}: {error}") from error
    return tensor


def read_shards(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in several files, which model.safetensors.index.json lists."""
    weight_map = read_weight_map(file)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in read_safetensors(file.with_name(shard)).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{file.with_name(shard)} holds tensor {shown(name)}, which {file.name} "
                    f"expects in {shown(weight_map.get(name))}"
                )
            tensors[name] = tensor
    for name in weight_map:
        if name not in tensors:
            raise CheckpointError(
                f"{file.with_name(weight_map[name])} has no tensor {shown(name)}, expected it "
                f"there by {file.name}"
            )
    return tensors


def read_weight_map(file: Path) -> dict[str, str]:
    """Tensor names to file names, each a plain name of a .safetensors file in the same folder."""
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file} has no weight_map from tensors to files")
    for name, shard in weight_map.items():
        if type(shard) is not str or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard, re.ASCII):
            raise CheckpointError(
                f"{file}: tensor {shown(name)} is said to be in {shown(shard)}, expected the plain "
                "name of a .safetensors file in the same folder"
            )
    return weight_map


def file_size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from error

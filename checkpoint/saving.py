"""From a model to a folder in Hugging Face's layout, which other libraries load too.

A folder is written under another name beside its place and renamed when it is complete. So a
process that is killed leaves either the whole folder or none. The weights pass through memory a
block of rows at a time.
"""
from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..backend import to_host
from ..bpe import Tokenizer, TokenizerError, shown
from ..gpt2_np import SIZES, Config, Model, check_shapes, map_leaves, parameter_shapes
from .added_tokens import END_OF_TEXT, FLAGS, SETTINGS
from .files import CheckpointError, reason
from .layouts import CONFIG, HUGGING_FACE
from .safetensors import SAFETENSORS, SHARDS
from .tensors import WEIGHT_TYPES, rounded, widen_bfloat16

if TYPE_CHECKING:
    from pathlib import Path

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # safetensors' names
SAVED_DTYPES = tuple(STORED)
SHARD_BYTES = 5 * 10**9  # of tensors in a file; above that they go into several, as elsewhere
BLOCK = 2**15  # weights that are converted at a time: their temporary arrays fit into the cache
ALIGNMENT = 64  # bytes; `load` maps tensors that begin at a multiple of their item size
GENERATION = "generation_config.json"


def save(
    model: Model, folder: str | os.PathLike[str],
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> None:  # fmt: skip
    """Write a model as a new folder in Hugging Face's layout, which `load` reads again.

    The folder has the weights as safetensors, the sizes, and the tokenizer if the model has one.
    It appears whole, under its name, or not at all. Missing folders above it are made. `dtype` is
    "float32", "float16" or "bfloat16", to which weights are rounded, ties to even. Arrays may be of
    any floating type and on any device. Raises CheckpointError if the folder exists or cannot be
    written, and if a weight is too large for `dtype`.
    """
    if not isinstance(dtype, str) or dtype not in SAVED_DTYPES:
        raise CheckpointError(f"dtype is {shown(dtype)}, expected {' or '.join(SAVED_DTYPES)}")
    if not isinstance(model.tokenizer, Tokenizer | None):
        raise CheckpointError(
            f"the tokenizer is a {type(model.tokenizer).__name__}, expected a bpe.Tokenizer: leave "
            "it out with gpt2_np.Model(model.config, model.params)"
        )
    config = Config(**{name: int(size) for name, size in vars(model.config).items()})
    check_shapes(model.params, parameter_shapes(config))  # arrays may have been replaced
    shards = split_tensors(config, dtype)
    n_bytes = sum(shard_bytes(shard, dtype) for shard in shards)
    with whole_folder(check_new(folder), n_bytes) as part:
        if model.tokenizer is not None:
            write_tokenizer(model.tokenizer, part, config.n_ctx)
        write_weights(part, model.params, shards, dtype)
        ends = end_ids(model)
        write_json(part / GENERATION, ends)
        # The last one: no library loads a folder without it.
        write_json(part / CONFIG, settings(config, dtype) | ends)


# --- settings --------------------------------------------------------------------------


def end_ids(model: Model) -> dict[str, int | None]:
    """Return the ids that begin and end a text, both <|endoftext|> in a GPT-2 as published."""
    if model.tokenizer is None:  # the official number of tokens means the official ids
        n_vocab = SIZES["124M"].n_vocab
        begin = end = n_vocab - 1 if model.config.n_vocab == n_vocab else None
    else:
        end = model.tokenizer.end_of_text
        begin = next(iter(model.tokenizer.start_ids), end)
    return {"bos_token_id": begin, "eos_token_id": end}


def settings(config: Config, dtype: str) -> dict[str, Any]:
    """Return the other content of config.json, with the keys that the official ones have."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "torch_dtype": dtype,
        "vocab_size": config.n_vocab,
        "n_positions": config.n_ctx,
        "n_ctx": config.n_ctx,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "initializer_range": 0.02,
        "use_cache": True,
    }


# --- weights ---------------------------------------------------------------------------

Shard = dict[str, tuple[tuple, tuple[int, ...]]]  # path in `params` and shape, by name


def split_tensors(config: Config, dtype: str) -> list[Shard]:
    """Return the tensors of each file. A file is filled until the next tensor does not fit."""
    shards: list[Shard] = [{}]
    room = SHARD_BYTES

    def add(path, shape):
        nonlocal room
        n_bytes = tensor_bytes(shape, dtype)
        if n_bytes > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        room -= n_bytes
        shards[-1][f"transformer.{HUGGING_FACE.tensor_name(path)}"] = path, shape

    map_leaves(add, parameter_shapes(config))
    return [dict(sorted(shard.items())) for shard in shards]


def tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(WEIGHT_TYPES[STORED[dtype]]).itemsize


def shard_bytes(shard: Shard, dtype: str) -> int:
    return sum(tensor_bytes(shape, dtype) for _, shape in shard.values())


def write_weights(folder: Path, params: Mapping[str, Any], shards: list[Shard], dtype: str) -> None:
    """Write the files of weights and, if there are several, their index."""
    if len(shards) == 1:
        write_file(folder / SAFETENSORS, safetensors_file(params, shards[0], dtype))
        return
    weight_map, total = {}, dict.fromkeys(("total_parameters", "total_size"), 0)
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, safetensors_file(params, shard, dtype))
        weight_map |= dict.fromkeys(shard, name)
        total["total_parameters"] += sum(math.prod(shape) for _, shape in shard.values())
        total["total_size"] += shard_bytes(shard, dtype)
    write_json(folder / SHARDS, {"metadata": total, "weight_map": weight_map})


def safetensors_file(params: Mapping[str, Any], shard: Shard, dtype: str) -> Iterator[Any]:
    """Yield the bytes of a safetensors file: the header, then each tensor in blocks."""
    import json

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (_, shape) in shard.items():
        end = start + tensor_bytes(shape, dtype)
        header[name] = {"dtype": STORED[dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % ALIGNMENT)
    yield len(head).to_bytes(8, "little") + head
    for name, (path, _) in shard.items():
        array: Any = params
        for key in path:
            array = array[key]
        yield from encoded_blocks(name, array, dtype)


def encoded_blocks(name: str, array: Any, dtype: str) -> Iterator[np.ndarray]:
    """Yield the rows of a tensor in the stored type. Raises CheckpointError if they do not fit."""
    rows = max(1, BLOCK // math.prod(array.shape[1:]))
    for start in range(0, len(array), rows):
        values = to_host(array[start : start + rows])
        if values.dtype.kind != "f":
            raise CheckpointError(f"{name} has type {values.dtype}, expected a floating type")
        block = rounded(values, STORED[dtype])
        floats = widen_bfloat16(block) if dtype == "bfloat16" else block
        overflow = np.isinf(floats) & np.isfinite(values)
        if overflow.any():
            raise CheckpointError(
                f"{name} holds {values[overflow][0]:.6g}, which is too large for {dtype}: "
                + ("make it smaller" if dtype == "float32" else "save as float32")
            )
        yield block


# --- the tokenizer ---------------------------------------------------------------------


def write_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json into an existing folder.

    `AutoTokenizer` of transformers 4 and 5 gives the same ids from them, and so does
    `open_tokenizer`. Raises TokenizerError, before it writes, for a tokenizer that these files
    cannot hold.
    """
    import json

    end = END_OF_TEXT if tokenizer.end_of_text is not None else None
    by_id = {token.id: token for token in tokenizer.added_tokens}
    begin = end
    if tokenizer.start_ids:
        first = by_id.get(tokenizer.start_ids[0])
        # Transformers writes the name into a template, in which these characters have a meaning.
        if (first is None or not first.special or len(tokenizer.start_ids) > 1
                or any(letter in ":$" or letter.isspace() for letter in first.name)):
            raise TokenizerError(
                f"start_ids are {shown(list(tokenizer.start_ids))}, expected one special token, "
                f"without spaces, ':' and '$' in its name: {SETTINGS} has no place for others"
            )
        begin = first.name
    special = [name for name in tokenizer.special_tokens if name not in (begin, end)]
    ids = tokenizer.all_ids(HUGGING_FACE.vocab)
    while ids and (last := by_id.get(len(ids) - 1)) and last.name != end:
        ids.popitem()  # transformers gives tokens added last the next ids
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": model_max_length,
        "add_prefix_space": tokenizer.add_prefix_space,
        "add_bos_token": bool(tokenizer.start_ids),
        "bos_token": begin,
        "eos_token": end,
        "unk_token": end,
        "additional_special_tokens": special,
        "added_tokens_decoder": {
            str(id): {"content": token.name, "special": token.special}
            | {flag: getattr(token, flag) for flag in FLAGS}
            for id, token in sorted(by_id.items())
        },
    }
    contents = {
        HUGGING_FACE.merges: tokenizer.merges_text(),
        HUGGING_FACE.vocab: json.dumps(ids),
        SETTINGS: json.dumps(config, indent=2) + "\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content.encode())


# --- files -----------------------------------------------------------------------------


def check_new(folder: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a new folder. Raises CheckpointError if something is there."""
    from pathlib import Path

    if folder == "" or "://" in str(folder):
        raise CheckpointError(f"{shown(folder)} cannot become a folder: give a path of a new one")
    try:
        target = Path(folder).expanduser().absolute()
        os.lstat(target)
    except FileNotFoundError:
        return target
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # RuntimeError: no such home
        raise CheckpointError(
            f"{shown(folder)} cannot become a folder: {reason(error)}; give another path"
        ) from error
    raise CheckpointError(f"{target} exists: give the path of a new folder to save into")


@contextlib.contextmanager
def whole_folder(target: Path, n_bytes: int) -> Iterator[Path]:
    """Give a folder beside `target` to fill, and rename it at the end. A failure leaves nothing."""
    import shutil

    made = [above for above in target.parents if not above.exists()]
    part = target.with_name(f"{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        part.mkdir(parents=True)
        free = shutil.disk_usage(part).free
        if n_bytes > free:
            raise CheckpointError(
                f"{target} needs {n_bytes:,} bytes, and {free:,} are free: make room, or give a "
                "folder on another disk"
            )
        yield part
        for file in part.iterdir():  # also of files that `write_file` has not written
            with open(file, "r+b") as opened:
                os.fsync(opened.fileno())
        sync_folder(part)
        part = part.rename(target)
        sync_folder(target.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        for above in made:
            with contextlib.suppress(OSError):
                above.rmdir()
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{target} cannot be written: {reason(error)}; nothing was kept: make room, or "
                "give another folder"
            ) from error
        raise


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder durable, on systems that can."""
    import errno

    if os.name == "nt":  # folders cannot be opened
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        os.close(opened)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    import json

    write_file(file, [json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"])


def write_file(file: Path, pieces: Iterable[Any]) -> None:
    """Write a new file that is on the disk, and not only in its cache, when this returns."""
    with open(file, "xb") as opened:
        for piece in pieces:
            opened.write(piece)
        opened.flush()
        os.fsync(opened.fileno())

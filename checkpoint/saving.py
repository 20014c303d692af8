"""From a model to a folder in Hugging Face's layout, which other libraries load too.

A folder is written under another name beside its place and renamed when it is complete. So a
process that is killed leaves either the whole folder or none. The weights pass through memory a
block of rows at a time.
"""
from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import to_host
from ..bpe import Tokenizer, shown
from ..gpt2_np import SIZES, Config, Model, check_shapes, map_leaves, parameter_shapes
from .files import CheckpointError, reason
from .layouts import CONFIG, HUGGING_FACE
from .safetensors import SAFETENSORS, SHARDS
from .tensors import WEIGHT_TYPES, widen_bfloat16

if TYPE_CHECKING:
    from pathlib import Path

SAVED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # safetensors' names
SHARD_BYTES = 5 * 10**9  # of tensors in a file; above that they go into several, as elsewhere
BLOCK_BYTES = 2**22  # of weights that are converted at a time
ALIGNMENT = 64  # bytes; `load` maps tensors that begin at a multiple of their item size
GENERATION = "generation_config.json"


def save(model: Model, folder: str | os.PathLike[str], dtype: str = "float32") -> None:
    """Write a model as a new folder in Hugging Face's layout, which `load` reads again.

    The folder has the weights as safetensors, the sizes, and the tokenizer if the model has one.
    It appears whole, under its name, or not at all. Missing folders above it are made. `dtype` is
    "float32", "float16" or "bfloat16", to which weights are rounded, ties to even. Arrays may be of
    any floating type and on any device. Raises CheckpointError if the folder exists or cannot be
    written, and if a weight is too large for `dtype`.
    """
    if dtype not in SAVED_DTYPES:
        raise CheckpointError(f"dtype is {shown(dtype)}, expected {' or '.join(SAVED_DTYPES)}")
    if not isinstance(model.tokenizer, Tokenizer | None):
        raise CheckpointError(
            f"the tokenizer is a {type(model.tokenizer).__name__}, expected a bpe.Tokenizer: leave "
            "it out with gpt2_np.Model(model.config, model.params)"
        )
    check_shapes(model.params, parameter_shapes(model.config))  # arrays may have been replaced
    shards = split_tensors(model.config, dtype)
    n_bytes = sum(shard_bytes(shard, dtype) for shard in shards)
    with whole_folder(check_new(folder), n_bytes) as part:
        write_weights(part, model.params, shards, dtype)
        if model.tokenizer is not None:
            model.tokenizer.save(part, (HUGGING_FACE.merges, HUGGING_FACE.vocab))
        end = end_of_text(model)
        write_json(part / GENERATION, {"bos_token_id": end, "eos_token_id": end})
        # The last one: no library loads a folder without it.
        write_json(part / CONFIG, settings(model.config, end, dtype))


# --- settings --------------------------------------------------------------------------


def end_of_text(model: Model) -> int | None:
    """Return the id of <|endoftext|>. The official number of tokens means the official ids."""
    if model.tokenizer is not None:
        return model.tokenizer.end_of_text
    n_vocab = SIZES["124M"].n_vocab
    return n_vocab - 1 if model.config.n_vocab == n_vocab else None


def settings(config: Config, end: int | None, dtype: str) -> dict[str, Any]:
    """Return the content of config.json, with the keys that the official ones have."""
    sizes = {"n_positions": config.n_ctx, "vocab_size": config.n_vocab,
             **{name: getattr(config, name) for name in ("n_ctx", "n_embd", "n_head", "n_layer")}}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "torch_dtype": dtype,
        **{name: int(size) for name, size in sizes.items()},
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
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
    return math.prod(shape) * np.dtype(WEIGHT_TYPES[SAVED_DTYPES[dtype]]).itemsize


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
        header[name] = {"dtype": SAVED_DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % ALIGNMENT)
    yield len(head).to_bytes(8, "little") + head
    for name, (path, _) in shard.items():
        yield from encoded_blocks(name, functools.reduce(operator.getitem, path, params), dtype)


def encoded_blocks(name: str, array: Any, dtype: str) -> Iterator[np.ndarray]:
    """Yield the rows of a tensor in the stored type. Raises CheckpointError if they do not fit."""
    rows = max(1, BLOCK_BYTES // (8 * math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        values = to_host(array[start : start + rows])
        if values.dtype.kind != "f":
            raise CheckpointError(f"{name} has type {values.dtype}, expected a floating type")
        block, floats = encode(values, dtype)
        overflow = np.isinf(floats) & np.isfinite(values)
        if overflow.any():
            raise CheckpointError(
                f"{name} holds {values[overflow][0]:.6g}, which is too large for {dtype}: save as "
                f"{'float32' if dtype == 'float16' else 'float16'}"
            )
        yield block


def encode(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers in the stored type, rounded to the nearest, and again as floats."""
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            block = np.ascontiguousarray(values, WEIGHT_TYPES[SAVED_DTYPES[dtype]])
            return block, block
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Adding just under half of the last place that stays, and that place itself, makes ties even.
    rounded = bits + (0x7FFF + (bits >> 16 & 1))
    upper = np.where(np.isnan(values), 0x7FC00000, rounded) >> 16
    block = upper.astype(WEIGHT_TYPES["BF16"])
    return block, widen_bfloat16(block)


# --- files -----------------------------------------------------------------------------


def check_new(folder: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a new folder. Raises CheckpointError if something is there."""
    from pathlib import Path

    try:
        target = Path(folder).absolute()
        os.lstat(target)
    except FileNotFoundError:
        return target
    except (OSError, TypeError, ValueError) as error:
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
        sync_folder(part)
        part.rename(target)
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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, on systems that can."""
    with contextlib.suppress(OSError):  # Windows opens no folder
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    import json

    write_file(file, [json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"])


def write_file(file: Path, pieces: Iterable[Any]) -> None:
    with open(file, "xb") as opened:
        for piece in pieces:
            opened.write(piece)
        opened.flush()
        os.fsync(opened.fileno())

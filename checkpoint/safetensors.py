"""safetensors files: a JSON header that describes the bytes after it.

The header gives type, shape and position of each tensor. The tensors must fill the rest of the file
without holes or overlaps. A model may be split into several files, which an index lists.
"""
from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from ..bpe import shown
from .files import (
    MAX_SMALL_FILE,
    CheckpointError,
    Malformed,
    open_file,
    parse_json,
    read_json,
    reading,
    refuse_pointer,
)
from .tensors import ITEM_BYTES, Tensor, check_contiguous, check_size

if TYPE_CHECKING:
    from pathlib import Path

SAFETENSORS, SHARDS = "model.safetensors", "model.safetensors.index.json"


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name."""
    with reading(file, "a whole safetensors file"), open_file(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        first_bytes = opened.read(32)
        refuse_pointer(first_bytes)
        length = int.from_bytes(first_bytes[:8], "little")
        if not 2 <= length <= min(size - 8, MAX_SMALL_FILE):
            raise Malformed(
                f"its header has {length} bytes, expected at most {MAX_SMALL_FILE} and, in a file "
                f"of {size} bytes, {max(size - 8, 0)}"
            )
        opened.seek(8)
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


def read_shards(index: Path) -> dict[str, Tensor]:
    """Return the tensors of the safetensors files that an index lists."""
    weight_map = read_weight_map(index)
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in read_safetensors(index.with_name(shard)).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{tensor.file} holds tensor {shown(name)}, which {index.name} expects in "
                    f"{shown(weight_map.get(name))}"
                )
            tensors[name] = tensor
    for name in weight_map.keys() - tensors.keys():
        raise CheckpointError(
            f"{index.with_name(weight_map[name])} has no tensor {shown(name)}, which {index.name} "
            "expects there"
        )
    return tensors


def read_weight_map(index: Path) -> dict[str, str]:
    """Return names of tensors to names of safetensors files, all in the folder of the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map is {shown(weight_map)}, expected names to files"
        )
    for name, shard in weight_map.items():
        if type(shard) is not str or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard, re.ASCII):
            raise CheckpointError(
                f"{index}: tensor {shown(name)} is in {shown(shard)}, expected the plain name of a "
                ".safetensors file in the same folder"
            )
    return weight_map

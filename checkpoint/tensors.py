"""Tensors in files, and arrays that use their bytes without copying them."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..bpe import shown
from .files import CheckpointError, Malformed, reason

if TYPE_CHECKING:
    from mmap import mmap
    from pathlib import Path

# Weights have one of these types. Others occur in masks, which are checked and never used.
WEIGHT_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
ITEM_BYTES = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1,
    "F8_E4M3": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "C64": 8,
}  # fmt: skip
MAX_AXES = 8


class Tensor(NamedTuple):
    """A tensor in a file: `size` bytes from `start`, row after row, little-endian."""

    file: Path
    dtype: str  # safetensors' name of the type
    shape: tuple[int, ...]
    start: int
    size: int
    crc: int | None = None  # CRC-32C of the bytes, which only a TensorFlow bundle gives
    query_scale: float = 1.0  # factor of the first third of the last axis: see `query_scales`


def check_size(tensor: Tensor) -> None:
    if len(tensor.shape) > MAX_AXES:
        raise Malformed(f"it has {len(tensor.shape)} axes, expected at most {MAX_AXES}")
    expected = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    if tensor.size != expected:
        raise Malformed(
            f"it has {tensor.size} bytes, expected {expected} for {tensor.dtype} of shape "
            f"{shown(tensor.shape)}"
        )


def check_contiguous(tensors: Mapping[str, Tensor], start: int) -> int:
    """Check that the tensors follow each other from `start`, and return the end of the last."""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != start:
            raise Malformed(
                f"tensor {shown(name)} begins at byte {tensor.start}, expected {start}, the end "
                "of the one before it"
            )
        start += tensor.size
    return start


class MappedFiles(dict):
    """Memory-mapped files by path, each mapped on first use."""

    def __missing__(self, file: Path) -> mmap:
        import mmap

        try:
            with open(file, "rb") as opened:
                self[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise CheckpointError(f"{file} cannot be mapped: {reason(error)}") from error
        return self[file]


def as_array(tensor: Tensor, buffer: Any, dtype: str) -> np.ndarray:
    """Return a tensor as a read-only array: a view of `buffer` if its bytes can be used as is."""
    check_whole(tensor, len(buffer))
    stored = np.dtype(WEIGHT_TYPES[tensor.dtype])
    raw = np.frombuffer(buffer, stored, tensor.size // stored.itemsize, tensor.start)
    if tensor.dtype == "BF16":
        raw = widen_bfloat16(raw)
    # The official safetensors files begin their data at an odd byte. Every matrix product would
    # copy an unaligned array again, so one copy is made now.
    array = np.require(raw, dtype, "A").reshape(tensor.shape)
    if tensor.query_scale != 1:
        array = array.copy()
        array[..., : array.shape[-1] // 3] *= tensor.query_scale
    array.flags.writeable = False
    return array


def read_bytes(tensor: Tensor) -> bytearray:
    """Return the bytes of a tensor, read into memory of their own. Raises CheckpointError."""
    content = bytearray(tensor.size)
    try:
        with open(tensor.file, "rb") as opened:
            opened.seek(tensor.start)
            n_read = opened.readinto(content)
    except OSError as error:
        raise CheckpointError(f"{tensor.file} cannot be read: {reason(error)}") from error
    check_whole(tensor, tensor.start + n_read)
    return content


def check_whole(tensor: Tensor, end: int) -> None:
    """Raise CheckpointError if the file ends before the tensor does."""
    if end < tensor.start + tensor.size:
        raise CheckpointError(
            f"{tensor.file} ends at byte {end}, expected a tensor up to "
            f"{tensor.start + tensor.size}: it has been cut off since it was opened; run again "
            "when it is whole"
        )


def widen_bfloat16(upper: np.ndarray) -> np.ndarray:
    """Return the float32 of which these integers are the upper halves."""
    return (upper.astype(np.uint32) << 16).view(np.float32)


def same_values(a: Tensor, b: Tensor, dtype: str | None = None) -> bool:
    """Return True if two tensors hold the same numbers, or do once both are rounded to `dtype`."""
    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype:
        return same_bytes(a, b)
    if not {a.dtype, b.dtype} <= WEIGHT_TYPES.keys():
        return False
    return all(
        np.array_equal(rounded(x, dtype), rounded(y, dtype), equal_nan=True)
        for x, y in zip(blocks(a), blocks(b), strict=True)
    )


def same_bytes(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.size) != (b.dtype, b.size):
        return False
    files, step = MappedFiles(), 2**20
    for tensor in (a, b):
        check_whole(tensor, len(files[tensor.file]))
    x, y = (np.frombuffer(files[t.file], np.uint8, t.size, t.start) for t in (a, b))
    return all(np.array_equal(x[i : i + step], y[i : i + step]) for i in range(0, a.size, step))


def blocks(tensor: Tensor, length: int = 2**18) -> Iterator[np.ndarray]:
    """Yield the numbers of a tensor as float64, `length` at a time."""
    files, item = MappedFiles(), ITEM_BYTES[tensor.dtype]
    for start in range(0, tensor.size, length * item):
        size = min(length * item, tensor.size - start)
        part = Tensor(tensor.file, tensor.dtype, (size // item,), tensor.start + start, size)
        yield as_array(part, files[tensor.file], "float64")


def rounded(numbers: np.ndarray, dtype: str | None) -> np.ndarray:
    """Return the nearest numbers of a type of weights, of two the even one.

    Those of BF16 are the upper halves of float32. None returns the numbers as they are.
    """
    if dtype is None:
        return numbers
    with np.errstate(all="ignore"):  # too large a number becomes infinite
        if dtype != "BF16":
            return np.ascontiguousarray(numbers, WEIGHT_TYPES[dtype])
        floats = np.ascontiguousarray(numbers, np.float32)
    bits = floats.view(np.uint32)
    if numbers.dtype.itemsize > floats.itemsize:
        # Rounded to float32 first, numbers beside a tie would become ties. So these are cut off,
        # and their last place is made odd, which no tie has.
        bits = (bits - (np.abs(floats) > np.abs(numbers))) | (floats != numbers)
    # Adding just under half of the last place that stays, and that place itself, makes ties even.
    upper = (bits + ((bits >> 16 & 1) + 0x7FFF)) >> 16
    upper[np.isnan(numbers)] = 0x7FC0
    return upper.astype(WEIGHT_TYPES["BF16"])

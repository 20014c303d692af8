"""Which arrays: NumPy on the CPU, CuPy on an NVIDIA GPU. The same code runs on both.

`einsum` lowers a contraction of two arrays to one matrix product and remembers how.
"""
from __future__ import annotations

import functools
import importlib.util
import math
import sys
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

DEVICES = ("auto", "cpu", "cuda")


class DeviceError(ValueError):
    """The device that was asked for cannot be had; the message says why and what to do."""


# --- devices ---------------------------------------------------------------------------


def pick(device: str = "auto") -> ModuleType:
    """The array module of a device: NumPy for "cpu", CuPy for "cuda".

    "auto" is CuPy where CuPy is installed and finds a working GPU, else NumPy. Raises
    DeviceError where "cuda" is asked for and cannot be had.
    """
    if device not in DEVICES:
        raise DeviceError(f"unknown device {device!r}: choose one of {', '.join(DEVICES)}")
    if device == "cpu":
        return np
    try:
        return _cupy()
    except DeviceError:
        if device == "cuda":
            raise
        return np


def _cupy() -> ModuleType:
    """CuPy, once it has shown that it can run a kernel."""
    if importlib.util.find_spec("cupy") is None:
        raise DeviceError(
            "device 'cuda' needs CuPy, which is not installed: pip install cupy-cuda13x "
            "(or cupy-cuda12x for an older driver), or choose device 'cpu'"
        )
    try:
        import cupy

        # Importing CuPy succeeds on a machine without a GPU; the first allocation is what fails.
        cupy.zeros(1).sum().item()
    except Exception as error:  # a broken installation raises anything from OSError to RuntimeError
        raise DeviceError(f"device 'cuda' cannot be used: {_reason(error)}") from error
    return cupy


def _reason(error: Exception) -> str:
    """What CuPy's error means to the person who asked for a GPU, in one sentence."""
    text = " ".join(str(error).split())
    if "cudaErrorInsufficientDriver" in text:
        return (
            "no NVIDIA driver answers, or it is older than CuPy's CUDA version; nvidia-smi shows "
            f"the driver's version. Install a newer driver or an older CuPy, or choose "
            f"device 'cpu' (CuPy said: {text})"
        )
    if "cudaErrorNoDevice" in text:
        return f"the driver finds no GPU; choose device 'cpu' (CuPy said: {text})"
    return f"{text or type(error).__name__}; choose device 'cpu'"


def namespace(array: Any) -> ModuleType:
    """The module that an array belongs to: numpy, cupy, or whatever defines its class."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def to_device(array: np.ndarray, xp: ModuleType) -> Any:
    """A host array as an array of module `xp`; for NumPy the array itself, not a copy."""
    return array if xp is np else xp.asarray(array)


def to_host(array: Any) -> np.ndarray:
    """Any array as a NumPy array; a NumPy array is returned as it is."""
    return array if isinstance(array, np.ndarray) else array.get()


# --- einsum ----------------------------------------------------------------------------


class Plan(NamedTuple):
    """How a contraction becomes `left @ right`, in axes of the operands.

    `left` is ordered batch, rows, summed and `right` batch, summed, columns; each of the last
    three groups is merged into one axis. None stands for an order that is already right.
    """

    left: tuple[int, ...] | None
    right: tuple[int, ...] | None
    n_batch: int
    n_rows: int
    n_summed: int
    n_columns: int
    result: tuple[int, ...] | None


@functools.cache
def plan(specification: str) -> Plan | None:
    """The matrix product that a two-operand specification means, or None where it is not one.

    "bqd,dm->bqm" is rows bq, summed d, columns m; "bqhe,bkhe->bhqk" is a batch bh of products
    with rows q, summed e, columns k.
    """
    inputs, arrow, output = specification.replace(" ", "").partition("->")
    left, comma, right = inputs.partition(",")
    letters = left + right
    if not (arrow and comma and letters.isalpha()):
        return None
    repeated = any(len(set(part)) < len(part) for part in (left, right, output))
    summed = [x for x in right if x in left and x not in output]
    lone = [x for x in letters if letters.count(x) == 1 and x not in output]
    if repeated or lone or not set(output) <= set(letters):
        return None
    batch = [x for x in output if x in left and x in right]
    rows = [x for x in output if x not in right]
    columns = [x for x in output if x not in left]

    def order(source, wanted):
        axes = tuple(source.index(x) for x in wanted)
        return None if axes == tuple(range(len(source))) else axes

    return Plan(
        order(left, batch + rows + summed),
        order(right, batch + summed + columns),
        *map(len, (batch, rows, summed, columns)),
        order(batch + rows + columns, output),
    )


class Lowering(NamedTuple):
    """A plan for operands of known shapes: what to do to each before the product, and after.

    None stands for what need not be done.
    """

    left: tuple[int, ...] | None
    left_shape: tuple[int, ...] | None
    right: tuple[int, ...] | None
    right_shape: tuple[int, ...] | None
    shape: tuple[int, ...] | None
    result: tuple[int, ...] | None


@functools.lru_cache(maxsize=1 << 14)  # keys of every length up to n_ctx, and more
def lowering(specification: str, *shapes: tuple[int, ...]) -> Lowering | None:
    """How operands of these shapes are contracted, or None where that is no matrix product."""
    planned = plan(specification) if len(shapes) == 2 else None
    if planned is None:
        return None
    left, right = (
        [shape[axis] for axis in axes] if axes else list(shape)
        for shape, axes in zip(shapes, (planned.left, planned.right), strict=True)
    )
    n_batch, n_rows, n_summed, n_columns = planned[2:6]
    batch, rows, summed = left[:n_batch], left[n_batch : n_batch + n_rows], left[n_batch + n_rows :]
    if batch != right[:n_batch] or summed != right[n_batch : n_batch + n_summed]:
        raise ValueError(f"einsum {specification!r}: shapes {shapes[0]} and {shapes[1]} disagree")
    columns = right[n_batch + n_summed :]
    n = math.prod(summed)
    return Lowering(
        planned.left,
        None if n_rows == n_summed == 1 else (*batch, math.prod(rows), n),
        planned.right,
        None if n_summed == n_columns == 1 else (*batch, n, math.prod(columns)),
        None if n_rows == n_columns == 1 else (*batch, *rows, *columns),
        planned.result,
    )


def einsum(specification: str, *operands: Any) -> Any:
    """np.einsum of two arrays as one call of the matrix product, with the plan remembered.

    Axes are reordered and merged as views where the strides allow it, so that weights and the
    key/value cache are never copied. What is no matrix product (one or three operands, a
    diagonal) goes to the array module's own einsum.
    """
    how = lowering(specification, *[array.shape for array in operands])
    if how is None:
        return namespace(operands[0]).einsum(specification, *operands, optimize=True)
    left, right = operands
    if how.left:
        left = left.transpose(how.left)
    if how.left_shape is not None:
        left = left.reshape(how.left_shape)
    if how.right:
        right = right.transpose(how.right)
    if how.right_shape is not None:
        right = right.reshape(how.right_shape)
    product = left @ right
    if how.shape is not None:
        product = product.reshape(how.shape)
    return product.transpose(how.result) if how.result else product

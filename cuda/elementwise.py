"""Softmax, GELU and the causal mask on the GPU, each of them one kernel of elementwise.cu."""
from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from .kernels import compile_kernels, constants, reason

SOURCE = os.path.join(os.path.dirname(__file__), "elementwise.cu")


def softmax(x: Any, xp: ModuleType) -> Any:
    """Return the softmax over the last axis, or None if the kernel cannot read `x`."""
    if not fits(x, xp):
        return None
    result, n = xp.empty(x.shape, x.dtype), x.shape[-1]
    n_rows, rows_per_block = x.size // n, constants(SOURCE)["SOFTMAX_ROWS"]
    launch("softmax", -(-n_rows // rows_per_block), xp, x, result, n, n_rows)
    return result


def gelu(x: Any, xp: ModuleType) -> Any:
    """Return the GELU of every number, or None if the kernel cannot read `x`."""
    if not fits(x, xp):
        return None
    result = xp.empty(x.shape, x.dtype)
    launch("gelu", -(-x.size // constants(SOURCE)["BLOCK"]), xp, x, result, x.size)
    return result


def mask_future(scores: Any, positions: np.ndarray, xp: ModuleType) -> Any:
    """Write -inf over the scores [b, h, q, k] of keys after their query, and return `scores`.

    `positions` [b, q] are on the host. Returns None if the kernel cannot read `scores`, or if the
    rows are at different positions.
    """
    n_queries, n_keys = scores.shape[-2:]
    if positions.min() + 1 >= n_keys:  # every query sees every key
        return scores
    start = int(positions[0, 0])
    if (positions != start + np.arange(n_queries)).any() or not fits(scores, xp):
        return None
    n_blocks = -(-scores.size // constants(SOURCE)["BLOCK"])
    launch("mask_future", n_blocks, xp, scores, start, n_queries, n_keys, scores.size)
    return scores


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "gelu": gelu, "mask_future": mask_future, "softmax": softmax
}  # fmt: skip


def fits(x: Any, xp: ModuleType) -> bool:
    """Return True for an array that the kernels can read: contiguous float32 on a GPU."""
    return bool(
        compiled(xp) and x.dtype == np.float32 and x.flags.c_contiguous and 0 < x.size < 2**30
    )


def launch(name: str, n_blocks: int, xp: ModuleType, *arguments: Any) -> None:
    arguments = tuple(np.int32(a) if isinstance(a, int) else a for a in arguments)
    kernels = compiled(xp)
    assert kernels is not None, "checked by `fits`"
    kernels[name]((n_blocks,), (constants(SOURCE)["BLOCK"],), arguments)


@functools.cache
def compiled(xp: ModuleType) -> dict[str, Any] | None:
    """Return the kernels by name, or None after one line on stderr if they do not compile."""
    if not hasattr(xp, "RawModule"):
        return None
    try:
        return compile_kernels(SOURCE, (), xp)
    except Exception as error:  # NVRTC's or the driver's
        print(f"gpt2_np: softmax and GELU are slow on this GPU ({reason(error)})", file=sys.stderr)
        return None

"""Matrix products on a GPU by cuBLAS, which reads transposed and sliced arrays where they lie."""
from __future__ import annotations

import contextvars
import itertools
import math
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

# cuBLAS's names for types of numbers and of computation, as in its headers.
CUDA_TYPES = {np.dtype("float16"): 2, np.dtype("float32"): 0, np.dtype("float64"): 1}
COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 77, 70
CUBLAS_N, CUBLAS_T, GEMM_DEFAULT = 0, 1, -1
SCALARS = {np.dtype(t): np.array([1, 0], t) for t in ("float32", "float64")}  # alpha, beta

_tf32 = contextvars.ContextVar("tf32", default=False)


def allow_tf32(allowed: bool = True) -> None:
    """Let float32 products on the GPU round their factors to TF32's 10 bits, in this context.

    Tensor cores compute them faster and less exactly (about 1e-3). The default is full float32.
    """
    _tf32.set(allowed)


class MatrixLayout(NamedTuple):
    """A stack of matrices in memory, in cuBLAS's terms. Steps count numbers, not bytes."""

    operation: int  # CUBLAS_N if rows lie one after another, CUBLAS_T if columns do
    step: int  # from one row (or column) to the next
    stride: int  # from one matrix to the next


def layout(array: Any) -> MatrixLayout | None:
    """Return the layout of [..., row, column], or None if cuBLAS cannot read it where it lies."""
    strides = [n // array.dtype.itemsize for n in array.strides]
    n_rows, n_columns = array.shape[-2:]
    across, along = strides[-2:]
    if n_columns == 1:
        along = 1
    if n_rows == 1:
        across = n_columns if along == 1 else 1
    if along == 1 and across >= n_columns:
        operation, step = CUBLAS_N, across
    elif across == 1 and along >= n_rows:
        operation, step = CUBLAS_T, along
    else:
        return None
    stacked = [(n, s) for n, s in zip(array.shape, strides[:-2], strict=False) if n > 1]
    for (_, outer), (n, inner) in itertools.pairwise(stacked):
        if outer != n * inner:
            return None
    return MatrixLayout(operation, step, stacked[-1][1] if stacked else 0)


def readable(array: Any, xp: ModuleType) -> tuple[Any, MatrixLayout]:
    """Return the array, or a copy if cuBLAS cannot read it where it lies, and its layout."""
    found = layout(array)
    return (array, found) if found else readable(xp.ascontiguousarray(array), xp)


def device_product(left: Any, right: Any, xp: ModuleType) -> Any:
    """Return left @ right by cuBLAS, [..., m, k] and [..., k, n] with equal stacks.

    Transposed and sliced operands are read where they lie. CuPy's own matmul copies stacks that
    are not contiguous: the whole cache at every token. Products of float16, and of float16 with
    float32, are multiplied in float16, and summed and returned in float32.
    """
    both = np.result_type(left.dtype, right.dtype)
    if np.float16 in (left.dtype, right.dtype) and both != np.float64:
        both = np.dtype(np.float16)
    *stack, m, k = left.shape
    n = right.shape[-1]
    if both not in CUDA_TYPES or 0 in (m, n, k, *stack):
        return left @ right
    left, right = (array.astype(both, copy=False) for array in (left, right))
    (left, left_layout), (right, right_layout) = readable(left, xp), readable(right, xp)
    # cuBLAS's manual recommends rows of whole 16 bytes. Logits have an odd width: pad their rows.
    width = n if stack or n < 1024 else -(-n // 8) * 8
    summed_in = np.promote_types(both, np.float32)
    product = xp.empty((*stack, m, width), summed_in)
    compute = COMPUTE_32F_FAST_TF32 if _tf32.get() and both == np.float32 else COMPUTE_32F
    scalars = SCALARS[summed_in].ctypes.data
    number, result = CUDA_TYPES[both], CUDA_TYPES[summed_in]
    # cuBLAS counts columns first, so it sees the transposes. Let it compute product.T = right.T @
    # left.T, which lies in memory just as product does.
    xp.cuda.cublas.gemmStridedBatchedEx(
        xp.cuda.get_cublas_handle(), right_layout.operation, left_layout.operation, n, m, k,
        scalars, right.data.ptr, number, right_layout.step, right_layout.stride,
        left.data.ptr, number, left_layout.step, left_layout.stride,
        scalars + summed_in.itemsize, product.data.ptr, result, width, m * width,
        math.prod(stack), compute if summed_in == np.float32 else COMPUTE_64F, GEMM_DEFAULT,
    )  # fmt: skip
    return product[..., :n] if width > n else product

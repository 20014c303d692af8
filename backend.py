"""NumPy on the CPU, CuPy on an NVIDIA GPU: the same code runs on both.

`einsum` lowers a contraction of two arrays to one matrix product and remembers the plan. `tiled`
and `accelerated` make the reference's attention, mask, softmax and GELU fast without changing
their results. On a GPU, products and elementwise functions are those of cuda/.
"""
from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from .cuda import elementwise
from .cuda.products import allow_tf32, device_product

__all__ = ["DEVICES", "DeviceError", "DeviceName", "Error", "about", "accelerated", "allow_tf32",
           "check_dtype", "check_room", "einsum", "is_cuda_error", "memory_advice", "namespace",
           "pick", "tiled", "to_device", "to_host", "total_memory"]

DeviceName = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[str, ...] = get_args(DeviceName)

# Elementwise work goes through the second-level cache (1 to 2 MiB a core) in blocks of this many
# elements, and attention in tiles of about as many scores: 128 queries of one head see 1,024 keys.
BLOCK_ELEMENTS = 1 << 17
TILE_QUERIES = 128
DEVICE_BLOCK_ELEMENTS = 1 << 24  # a GPU wants few and large kernels: 64 MiB of float32 scores


class Error(ValueError):
    """The base class of this package's errors. The message says what to do."""


class DeviceError(Error):
    """The requested device is not available. The message says why and what to do."""


# --- devices ---------------------------------------------------------------------------


def pick(device: str = "auto") -> ModuleType:
    """Return the array module of a device: NumPy for "cpu", CuPy for "cuda".

    "auto" is CuPy if it is installed and finds a working GPU, else NumPy. Raises DeviceError if
    "cuda" is requested and is not available.
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
    """Return CuPy after it has compiled and run a kernel and found cuBLAS."""
    if importlib.util.find_spec("cupy") is None:
        raise DeviceError(
            "device 'cuda' needs CuPy, which is not installed: pip install \"cupy-cuda13x[ctk]\" "
            "(or cupy-cuda12x for an older driver), or choose device 'cpu'"
        )
    n_known = len(_cupy_conflicts)
    try:
        cupy = _import_cupy()
        with warnings.catch_warnings():  # of missing libraries: a failure says more
            warnings.simplefilter("ignore")
            # Importing CuPy succeeds on a machine without a GPU. Then the first allocation fails;
            # without NVRTC it is the first sum, without cuBLAS the first product.
            (cupy.zeros(1) + 1).sum().item()
            cupy.cuda.get_cublas_handle()
    except Exception as error:  # a broken installation raises anything from OSError to RuntimeError
        found = "; ".join(["device 'cuda' is not available", *_cupy_conflicts])
        raise DeviceError(f"{found}: {_reason(error)}") from error
    for conflict in _cupy_conflicts[n_known:]:
        warnings.warn(conflict, stacklevel=4)
    return cupy


_cupy_conflicts: list[str] = []  # kept, because CuPy warns of them at its first import only


def _import_cupy() -> ModuleType:
    """Import CuPy and keep its warning that several CuPy packages are installed, in one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import cupy
        finally:
            for warning in caught:
                text = " ".join(str(warning.message).split()).strip("- ")
                conflict = text.partition(" Follow these steps")[0]
                conflict += "; uninstall all of them, then install one"
                if "multiple CuPy packages" in text and conflict not in _cupy_conflicts:
                    _cupy_conflicts.append(conflict)
    return cupy


def _reason(error: Exception) -> str:
    """Return a sentence for the person who requested a GPU, on CuPy's error and its remedy."""
    text = " ".join(str(error).split())
    remedy = f"or choose device 'cpu' (CuPy said: {text[:200]})"
    if "cudaErrorInsufficientDriver" in text:
        return (
            "no NVIDIA driver answers, or it is older than CuPy's CUDA version; nvidia-smi shows "
            f"the driver's version. Install a newer driver or an older CuPy, {remedy}"
        )
    if "cudaErrorNoDevice" in text:
        return f"the driver finds no GPU; make one visible (CUDA_VISIBLE_DEVICES), {remedy}"
    if "no kernel image" in text or "NO_BINARY_FOR_GPU" in text:
        return f"this CuPy was not built for this GPU; install another CuPy, {remedy}"
    if isinstance(error, MemoryError):
        return f"the GPU has no memory left; end other programs that use it, {remedy}"
    # The loader names CUDA's libraries, CuPy's own messages their short names.
    if any(name in text.lower() for name in ("nvrtc", "cublas", "cudart", "cuda_path", "libcu")):
        return (
            "CUDA's libraries are missing or of another version than CuPy's; install them with "
            "pip install \"cupy-cuda13x[ctk]\" (cupy-cuda12x for an older driver; only one of the "
            f"two), {remedy}"
        )
    return f"{text or type(error).__name__}; choose device 'cpu'"


def about(xp: ModuleType) -> str:
    """Return one line on the device behind an array module, for --verbose."""
    if xp is np:
        try:
            _cupy()
        except DeviceError as error:
            return f"the CPU (NumPy {np.__version__}); {error}"
        return f"the CPU (NumPy {np.__version__})"
    properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)
    free, total = xp.cuda.runtime.memGetInfo()
    return (
        f"{properties['name'].decode()} (compute capability {properties['major']}."
        f"{properties['minor']}, {gib(free)} of {gib(total)} free, CuPy {xp.__version__})"
    )


def check_dtype(dtype: str, xp: ModuleType) -> None:
    """Raise DeviceError for a type of weights that the device does not compute in."""
    if dtype == "float16" and xp is np:
        raise DeviceError(
            "dtype 'float16' is for the GPU, and the device is the CPU, which has no fast float16 "
            "products: choose dtype 'float32', or device 'cuda' to learn why there is no GPU"
        )


def gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"


def check_room(n_bytes: int, xp: ModuleType) -> None:
    """Raise DeviceError if that many bytes of weights do not fit on the device."""
    if xp is np:
        return
    free, total = xp.cuda.runtime.memGetInfo()
    free += xp.get_default_memory_pool().free_bytes()
    if n_bytes > free:
        raise DeviceError(
            f"the weights need {gib(n_bytes)} on the GPU and {gib(free)} of {gib(total)} are free: "
            "choose dtype 'float16', a smaller model, or device 'cpu'"
        )


def memory_advice(error: MemoryError) -> str:
    """Return a sentence on the memory that was needed and free, and on ways to need less."""
    if type(error).__module__.partition(".")[0] != "cupy":
        return "there is not enough memory: choose a smaller model, or fewer or shorter texts"
    xp = sys.modules["cupy"]
    free, total = xp.cuda.runtime.memGetInfo()
    needed = re.search(r"allocating ([\d,]+) bytes", str(error))
    more = gib(int(needed[1].replace(",", ""))) + " more were needed" if needed else "it is full"
    return (
        f"the GPU's memory ran out: {more}, {gib(free)} of {gib(total)} are free; choose fewer "
        "samples, a shorter text, dtype 'float16', a smaller model, or device 'cpu'"
    )


def is_cuda_error(error: Exception) -> bool:
    """Return True for an error that CUDA or cuBLAS reported in the midst of work."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return False
    if isinstance(error, cupy.cuda.runtime.CUDARuntimeError | cupy.cuda.driver.CUDADriverError):
        return True
    try:
        return isinstance(error, cupy.cuda.cublas.CUBLASError)
    except ImportError:  # of cuBLAS, which CuPy loads here: without it no GPU has worked
        return False


def total_memory(xp: ModuleType) -> int:
    """Return the bytes of memory of the device behind an array module."""
    if xp is not np:
        return xp.cuda.runtime.memGetInfo()[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return 2**40


def namespace(array: Any) -> ModuleType:
    """Return the module that defines the array's class: numpy, cupy or another."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def to_device(array: np.ndarray, xp: ModuleType) -> Any:
    """Return a host array as an array of module `xp`: for NumPy the array itself, not a copy."""
    return array if xp is np else xp.asarray(array)


def to_host(array: Any) -> np.ndarray:
    """Return any library's array as a NumPy array: a NumPy array itself, not a copy."""
    if isinstance(array, np.ndarray):
        return array
    on_device = hasattr(array, "__cuda_array_interface__") and hasattr(array, "get")
    return array.get() if on_device else np.asarray(array)


# --- einsum ----------------------------------------------------------------------------


class Plan(NamedTuple):
    """A contraction as `left @ right`, in axes of the operands.

    `left` is ordered batch, rows, summed and `right` batch, summed, columns. Each of the last
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
def make_plan(specification: str) -> Plan | None:
    """Return the matrix product that a specification of two operands is, or None if it is not one.

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
        len(batch), len(rows), len(summed), len(columns),
        order(batch + rows + columns, output),
    )


class Lowering(NamedTuple):
    """A plan for operands of known shapes: axes and shapes of each, and of the product.

    None stands for a step that changes nothing.
    """

    left: tuple[int, ...] | None
    left_shape: tuple[int, ...] | None
    right: tuple[int, ...] | None
    right_shape: tuple[int, ...] | None
    shape: tuple[int, ...] | None
    result: tuple[int, ...] | None


@functools.lru_cache(maxsize=1 << 14)  # keys of every length up to n_ctx, and more
def lower(specification: str, *shapes: tuple[int, ...]) -> Lowering | None:
    """Return the plan for operands of these shapes, or None if it is no matrix product."""
    planned = make_plan(specification) if len(shapes) == 2 else None
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
    """Compute np.einsum of two arrays as one matrix product, with the plan remembered.

    Axes are reordered and merged as views if the strides allow it, so that weights and the
    key/value cache are never copied. A contraction that is no matrix product (one or three
    operands, a diagonal) goes to the array module's own einsum.
    """
    lowered = lower(specification, *[array.shape for array in operands])
    if lowered is None:
        return namespace(operands[0]).einsum(specification, *operands, optimize=True)
    left, right = operands
    if lowered.left:
        left = left.transpose(lowered.left)
    if lowered.left_shape is not None:
        left = left.reshape(lowered.left_shape)
    if lowered.right:
        right = right.transpose(lowered.right)
    if lowered.right_shape is not None:
        right = right.reshape(lowered.right_shape)
    if isinstance(left, np.ndarray):
        product = host_product(left, right)
    elif left.shape[-2] == right.shape[-1] == 1:
        # A sum of squares: a GPU is better at one sum than at thousands of 1 by 1 products.
        product = (left[..., 0, :] * right[..., 0]).sum(axis=-1)[..., None, None]
    else:
        product = device_product(left, right, namespace(left))
    if lowered.shape is not None:
        product = product.reshape(lowered.shape)
    return product.transpose(lowered.result) if lowered.result else product


# --- products on the host --------------------------------------------------------------

# Up to this many rows are multiplied one by one, by a block of the matrix at a time that stays in
# the caches of two cores: 4 MiB in float32. For smaller blocks the BLAS would use one core only.
FEW_ROWS = 6
FEW_ROWS_BY_COLUMNS = 12  # times a matrix that lies by columns, as the transposed embedding does
BLOCK_OF_MATRIX = 1 << 20

# OpenBLAS multiplies small matrices as they lie, on one core. But if the right one lies by columns
# and the result is larger than this, it copies them and wakes all cores.
SMALL_RESULT = 1200
SMALL_ROWS = 32


def host_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return left @ right, [..., m, k] and [..., k, n], in the form that a BLAS computes fastest.

    Drafts, short prompts and small batches are a few rows times a large matrix (every weight) or
    times many small ones (the keys of each head).
    """
    m, n = left.shape[-2], right.shape[-1]
    if not 1 < m <= SMALL_ROWS:
        return left @ right
    if left.ndim == 2 and right.size > BLOCK_OF_MATRIX:
        if m <= (FEW_ROWS_BY_COLUMNS if by_columns(right) else FEW_ROWS):
            return few_rows_product(left, right)
    elif left.ndim > 2 and m * n > SMALL_RESULT and by_columns(right):
        turned = right.swapaxes(-1, -2) @ np.ascontiguousarray(left.swapaxes(-1, -2))
        return np.ascontiguousarray(turned.swapaxes(-1, -2))
    return left @ right


def by_columns(array):
    return array.strides[-2] < array.strides[-1]


def few_rows_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return left @ right, [m, k] and [k, n], for a few rows and a large matrix.

    For several rows a BLAS first copies the whole matrix into an order of its own, which takes as
    long as to read it two or three times. For one row it does not. So here each block of the
    matrix is read from memory for the first row and from the cache for the others.
    """
    (m, k), n = left.shape, right.shape[1]
    rows = left[:, None]  # a stack of products with one row each
    if by_columns(right):
        product = np.empty((m, 1, n), np.result_type(left, right))
        step = max(1, BLOCK_OF_MATRIX // k)
        for start in range(0, n, step):
            here = slice(start, start + step)
            np.matmul(rows, right[:, here], out=product[..., here])
    else:
        product = np.zeros((m, 1, n), np.result_type(left, right))
        step = max(1, BLOCK_OF_MATRIX // n)
        for start in range(0, k, step):
            here = slice(start, start + step)
            product += rows[..., here] @ right[here]
    return product[:, 0]


# --- attention in tiles ----------------------------------------------------------------


class Tile(NamedTuple):
    """Scores that are computed together."""

    rows: slice
    heads: slice
    queries: slice
    keys: slice


def tiled(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Return attend(q, k, v, positions, tap) computed in tiles of scores that stay in the cache.

    q is [b, q, h, e], k and v are [b, k, h, e]. `positions` [b, q] are those of the queries in
    their texts. Keys that no query of a tile sees are left out. A row may pack several texts, one
    after another: a text begins wherever positions do not continue, and sees only itself. A tap
    that wants scores or patterns gets them whole.
    """

    @functools.wraps(attend)
    def call(q, k, v, positions, tap):
        if tap.wants("hook_attn_scores") or tap.wants("hook_pattern"):
            if not one_text_a_row(positions):
                raise Error("a tap cannot have the patterns of several texts packed into a row: "
                            "run one text at a time")
            return attend(q, k, v, positions, tap)
        if positions.shape[1] == 1:
            return attend(q, k, v, positions, tap)
        if positions.size >= TILE_QUERIES:
            keep_freed_memory()
        tiles = attention_tiles(positions, q.shape[2], namespace(q))
        if len(tiles) == 1:
            return attend(q, k, v, positions, tap)
        z = namespace(q).empty(q.shape, q.dtype)
        for rows, heads, queries, keys in tiles:
            z[rows, queries, heads] = attend(
                q[rows, queries, heads], k[rows, keys, heads], v[rows, keys, heads],
                positions[rows, queries], tap,
            )
        return z

    return call


def attention_tiles(positions: np.ndarray, n_head: int, xp: ModuleType) -> list[Tile]:
    """Split the attention of queries at `positions` [b, q] so that scores stay small.

    One head at a time is fastest for long texts, several rows at a time for short ones.
    """
    n_rows, n_queries = positions.shape
    n_keys, block = int(positions.max()) + 1, block_elements(xp)
    apart = one_text_a_row(positions)
    n_rows_at_once = block // (n_head * n_queries * n_keys)
    if apart and n_rows_at_once >= n_rows:
        return [Tile(slice(0, n_rows), slice(0, n_head), slice(0, n_queries), slice(0, n_keys))]
    if apart and n_rows_at_once > 1:
        rows = [slice(row, row + n_rows_at_once) for row in range(0, n_rows, n_rows_at_once)]
        return [Tile(part, slice(0, n_head), slice(0, n_queries),
                     slice(0, int(positions[part].max()) + 1)) for part in rows]
    n_together = TILE_QUERIES if xp is np else max(TILE_QUERIES, block // (n_head * n_keys))
    return [tile for row in range(n_rows)
            for tile in row_tiles(row, positions[row], n_head, n_together, block)]


def one_text_a_row(positions: np.ndarray) -> bool:
    return bool((positions[:, -1] - positions[:, 0] == positions.shape[1] - 1).all())


def row_tiles(row, positions, n_head, n_together, block) -> Iterator[Tile]:
    """Yield the tiles of one row, text by text: up to `n_together` queries of several heads."""
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)  # no position follows -2
    for start, end in itertools.pairwise([*starts.tolist(), len(positions)]):
        first_key = max(0, start - int(positions[start]))  # the cache may hold earlier keys
        for query in range(start, end, n_together):
            queries = slice(query, min(query + n_together, end))
            n_keys = int(positions[queries.stop - 1]) + 1
            step = max(1, block // ((queries.stop - query) * n_keys))
            for head in range(0, n_head, step):
                yield Tile(slice(row, row + 1), slice(head, head + step), queries,
                           slice(first_key, first_key + n_keys))


def keep_freed_memory():
    """Let the next layer work in the memory that the last one freed.

    glibc returns large arrays to the system when they are freed, and a page costs more to get than
    to fill. Freeing one array of almost 32 MiB, the largest that it learns from, raises its
    threshold (mallopt(3), M_MMAP_THRESHOLD). The array is never touched, so it costs nothing.
    """
    np.empty(2**25 - 2**16, np.uint8)


def block_elements(xp):
    return BLOCK_ELEMENTS if xp is np else DEVICE_BLOCK_ELEMENTS


# --- elementwise functions -------------------------------------------------------------


def accelerated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a version of one of the reference's functions that suits the array at hand.

    NumPy arrays go to the function of the same name in `ON_HOST`, arrays on a GPU to the kernel of
    that name in cuda/elementwise.cu. The reference's own function computes what the kernel cannot.
    """
    on_host, on_device = ON_HOST[function.__name__], elementwise.FUNCTIONS[function.__name__]

    @functools.wraps(function)
    def call(x, *rest):
        if isinstance(x, np.ndarray):
            return on_host(x, *rest)
        result = on_device(x, *rest, namespace(x))
        return function(x, *rest) if result is None else result

    return call


def mask_future(scores: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Write -inf over the scores [b, h, q, k] of keys after their query, and return `scores`.

    `scores` is changed in place: it is the product that `einsum` has just made, and nobody else
    holds it.
    """
    n_queries, n_keys = scores.shape[-2:]
    first = n_keys - n_queries
    if (positions == np.arange(first, n_keys)).all():  # the queries are the last positions
        is_future = future_triangle(1 << (n_queries - 1).bit_length())[:n_queries, : n_queries - 1]
    else:
        first = int(positions.min())
        is_future = np.arange(first + 1, n_keys) > positions[:, None, :, None]
    if first + 1 < n_keys:
        np.copyto(scores[..., first + 1 :], -np.inf, where=is_future)
    return scores


@functools.lru_cache(maxsize=4)
def future_triangle(n: int) -> np.ndarray:
    """Return [query, key] with True if key + 1 comes after the query. All layers share it."""
    return np.arange(n) >= np.arange(n)[:, None]


def softmax(x: np.ndarray) -> np.ndarray:
    """Compute the reference's softmax with one new array."""
    x = x - x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def gelu(x: np.ndarray) -> np.ndarray:
    """Compute the reference's GELU in blocks that stay in the cache."""
    result = np.empty(x.shape, x.dtype)
    flat, out = x.reshape(-1), result.reshape(-1)
    scale = math.sqrt(2 / math.pi)
    for start in range(0, flat.size, BLOCK_ELEMENTS):
        here = slice(start, start + BLOCK_ELEMENTS)
        block, inner = flat[here], out[here]
        np.multiply(block, block, out=inner)  # √(2/π) (x + 0.044715 x³) = (x² · 0.0357 + 0.798) x
        inner *= 0.044715 * scale
        inner += scale
        inner *= block
        np.tanh(inner, out=inner)
        inner += 1
        inner *= block
        inner *= 0.5
    return result


ON_HOST: dict[str, Callable[..., Any]] = {
    "gelu": gelu, "mask_future": mask_future, "softmax": softmax
}  # fmt: skip

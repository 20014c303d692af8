"""Which arrays: NumPy on the CPU, CuPy on an NVIDIA GPU. The same code runs on both.

`einsum` lowers a contraction of two arrays to one matrix product and remembers how; on a GPU that
product is cuBLAS's, without copies. `start_decoding` leads to the captured decode step.
Part of gpt2_np.
"""
from __future__ import annotations

import contextvars
import functools
import importlib.util
import itertools
import math
import re
import sys
import warnings
from collections.abc import Callable
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
    """CuPy, once it has shown that it can compile and run a kernel and find cuBLAS."""
    if importlib.util.find_spec("cupy") is None:
        raise DeviceError(
            "device 'cuda' needs CuPy, which is not installed: pip install \"cupy-cuda13x[ctk]\" "
            "(or cupy-cuda12x for an older driver), or choose device 'cpu'"
        )
    try:
        with warnings.catch_warnings():  # of CuPy's about its surroundings: a failure says more
            warnings.simplefilter("ignore")
            import cupy

            # Importing CuPy succeeds on a machine without a GPU; the first allocation is what
            # fails, the first sum where NVRTC is missing, the first product without cuBLAS.
            (cupy.zeros(1) + 1).sum().item()
            cupy.cuda.get_cublas_handle()
    except Exception as error:  # a broken installation raises anything from OSError to RuntimeError
        raise DeviceError(f"device 'cuda' cannot be used: {_reason(error)}") from error
    return cupy


def _reason(error: Exception) -> str:
    """What CuPy's error means to the person who asked for a GPU, in one sentence."""
    text = " ".join(str(error).split())
    said = f"or choose device 'cpu' (CuPy said: {text[:200]})"
    if "cudaErrorInsufficientDriver" in text:
        return (
            "no NVIDIA driver answers, or it is older than CuPy's CUDA version; nvidia-smi shows "
            f"the driver's version. Install a newer driver or an older CuPy, {said}"
        )
    if "cudaErrorNoDevice" in text:
        return f"the driver finds no GPU; make one visible (CUDA_VISIBLE_DEVICES), {said}"
    if "no kernel image" in text or "NO_BINARY_FOR_GPU" in text:
        return f"this CuPy was not built for this GPU; install another CuPy, {said}"
    if isinstance(error, MemoryError):
        return f"the GPU has no memory left; end what else runs on it, {said}"
    # The loader names CUDA's libraries, CuPy's own messages their short names.
    if any(name in text.lower() for name in ("nvrtc", "cublas", "cudart", "cuda_path", "libcu")):
        return (
            "CUDA's libraries are missing or of another version than CuPy's; install them with "
            "pip install \"cupy-cuda13x[ctk]\" (cupy-cuda12x for an older driver; only one of the "
            f"two), {said}"
        )
    return f"{text or type(error).__name__}; choose device 'cpu'"


def about(xp: ModuleType) -> str:
    """One line on the device behind an array module: what --verbose says was picked."""
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
    """Raise DeviceError for a type of weights that is not computed on that device."""
    if dtype == "float16" and xp is np:
        raise DeviceError(
            "dtype 'float16' is for the GPU, and the device is the CPU, which has no fast float16 "
            "products: choose dtype 'float32', or device 'cuda' to learn why there is no GPU"
        )


def gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"


def check_room(n_bytes: int, xp: ModuleType) -> None:
    """Raise DeviceError where that many bytes of weights cannot fit on the device."""
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
    """What was needed and what was free when memory ran out, and what to lower."""
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
    if isinstance(left, np.ndarray):
        product = host_product(left, right)
    elif left.shape[-2] == right.shape[-1] == 1:
        # A sum of squares: a GPU is better at one sum than at thousands of 1 by 1 products.
        product = (left[..., 0, :] * right[..., 0]).sum(axis=-1)[..., None, None]
    else:
        product = device_product(left, right)
    if how.shape is not None:
        product = product.reshape(how.shape)
    return product.transpose(how.result) if how.result else product


# --- products on the host --------------------------------------------------------------

# Up to this many rows are multiplied one by one, with so many numbers of a matrix at a time as
# stay in the caches of two cores: 4 MiB in float32. With less the BLAS would use one core only.
FEW_ROWS = 6
FEW_ROWS_BY_COLUMNS = 12  # beside a matrix that lies so, as the transposed embedding does
BLOCK_OF_MATRIX = 1 << 20

# OpenBLAS multiplies small matrices as they lie, on one core, but where the right one lies by
# columns and the result is larger than this it copies them and wakes all cores.
SMALL_RESULT = 1200
SMALL_ROWS = 32


def host_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right, [..., m, k] with [..., k, n], in the form that a BLAS is quickest at.

    Drafts, short prompts and small batches are a few rows beside a large matrix (every weight)
    or beside many small ones (the keys of each head).
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
    """left @ right, [m, k] with [k, n], for a few rows and a large matrix.

    For several rows a BLAS first copies the whole matrix into an order of its own, which takes as
    long as reading it two or three times; for one row it does not. So each block of the matrix is
    read from memory for the first row, and from the cache for the others: at GPT-2's sizes 2 rows
    take 1.2 to 1.7 times as long as one instead of 2.5 to 4, and 4 rows 1.5 to 2.5 instead of 2.5
    to 3.5 (OpenBLAS, 2 cores). From 8 rows on copying pays.
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


# --- products on the device ------------------------------------------------------------

# cuBLAS's names for types of numbers and of computation, as in its headers.
CUDA_TYPES = {np.dtype("float16"): 2, np.dtype("float32"): 0, np.dtype("float64"): 1}
COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 77, 70
CUBLAS_N, CUBLAS_T, GEMM_DEFAULT = 0, 1, -1
SCALARS = {np.dtype(t): np.array([1, 0], t) for t in ("float32", "float64")}  # alpha, beta

_tf32 = contextvars.ContextVar("tf32", default=False)


def allow_tf32(allowed: bool = True) -> None:
    """Let float32 products on the GPU round their factors to TF32's 10 bits, in this context.

    Faster on tensor cores and less exact (about 1e-3); never chosen unless asked for.
    """
    _tf32.set(allowed)


class Layout(NamedTuple):
    """A stack of matrices as cuBLAS is told of it, in numbers, not bytes."""

    operation: int  # CUBLAS_N where rows lie one after another, CUBLAS_T where columns do
    step: int  # from one row (or column) to the next
    stride: int  # from one matrix to the next


def layout(array: Any) -> Layout | None:
    """How cuBLAS can read [..., row, column] where it lies, or None where it cannot."""
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
    return Layout(operation, step, stacked[-1][1] if stacked else 0)


def device_product(left: Any, right: Any) -> Any:
    """left @ right by cuBLAS, [..., m, k] with [..., k, n], the stacks alike.

    CuPy's own matmul copies what is not contiguous above two dimensions (the whole cache at every
    token), computes float16 there in float32, and rounds float16 results. Here transposed and
    sliced operands are read where they are; float16 is multiplied as it is, also where one operand
    is float32, and summed and returned in float32.
    """
    xp = namespace(left)
    both = np.result_type(left.dtype, right.dtype)
    if np.float16 in (left.dtype, right.dtype) and both != np.float64:
        both = np.dtype(np.float16)
    *stack, m, k = left.shape
    n = right.shape[-1]
    if both not in CUDA_TYPES or 0 in (m, n, k, *stack):
        return left @ right
    left, right = (array.astype(both, copy=False) for array in (left, right))
    how_left, how_right = layout(left), layout(right)
    if how_left is None:
        left = xp.ascontiguousarray(left)
        how_left = layout(left)
    if how_right is None:
        right = xp.ascontiguousarray(right)
        how_right = layout(right)
    # cuBLAS's manual asks for rows of whole 16 bytes; logits have an odd width. Leave room behind.
    width = n if stack or n < 1024 else -(-n // 8) * 8
    summed_in = np.promote_types(both, np.float32)
    product = xp.empty((*stack, m, width), summed_in)
    compute = COMPUTE_32F_FAST_TF32 if _tf32.get() and both == np.float32 else COMPUTE_32F
    scalars = SCALARS[summed_in].ctypes.data
    number, result = CUDA_TYPES[both], CUDA_TYPES[summed_in]
    # cuBLAS counts columns first: to it these are the transposes, and it is asked for
    # product.T = right.T @ left.T, which lies in memory just as product does.
    xp.cuda.cublas.gemmStridedBatchedEx(
        xp.cuda.get_cublas_handle(), how_right.operation, how_left.operation, n, m, k,
        scalars, right.data.ptr, number, how_right.step, how_right.stride,
        left.data.ptr, number, how_left.step, how_left.stride,
        scalars + summed_in.itemsize, product.data.ptr, result, width, m * width,
        math.prod(stack), compute if summed_in == np.float32 else COMPUTE_64F, GEMM_DEFAULT,
    )  # fmt: skip
    return product[..., :n] if width > n else product


# --- functions as one kernel on the device -----------------------------------------------

# Array operations one by one read or write the scores eight times for softmax, and the hidden layer
# eighteen times for GELU. Here each is read once and written once (a row again from the cache).
FUSED = r"""
extern "C" __global__ void __launch_bounds__(256) softmax(
    const float* x, float* out, int n, int n_rows) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n_rows) return;
    x += (long long)row * n;
    out += (long long)row * n;
    float most = x[0], total = 0;
    for (int i = lane; i < n; i += 32) most = fmaxf(most, x[i]);
    for (int other = 16; other; other /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, other));
    for (int i = lane; i < n; i += 32) total += expf(x[i] - most);
    for (int other = 16; other; other /= 2) total += __shfl_xor_sync(0xffffffffu, total, other);
    for (int i = lane; i < n; i += 32) out[i] = expf(x[i] - most) / total;
}

extern "C" __global__ void __launch_bounds__(256) gelu(
    const float* x, float* out, int n, int n_rows) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n * n_rows) return;
    float value = x[i], inner = 0.7978845608f * (value + 0.044715f * value * value * value);
    out[i] = 0.5f * value * (1 + tanhf(inner));
}
"""
FUSED_NUMBERS = {"softmax": 8, "gelu": 256}  # rows, or numbers, of a block


def fused(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of an array; on a GPU the kernel of its name computes float32."""

    @functools.wraps(function)
    def call(x):
        if isinstance(x, np.ndarray):
            return function(x)
        kernels = fused_kernels(namespace(x))
        if not (kernels and x.dtype == np.float32 and x.flags.c_contiguous and 0 < x.size < 2**30):
            return function(x)
        result, n = namespace(x).empty(x.shape, x.dtype), x.shape[-1]
        n_rows, name = x.size // n, function.__name__
        n_blocks = -(-(x.size if name == "gelu" else n_rows) // FUSED_NUMBERS[name])
        kernels[name]((n_blocks,), (256,), (x, result, np.int32(n), np.int32(n_rows)))
        return result

    return call


@functools.cache
def fused_kernels(xp: ModuleType) -> dict[str, Any] | None:
    if not hasattr(xp, "RawModule"):
        return None
    try:
        module = xp.RawModule(code=FUSED, options=("-std=c++17",))
        return {name: module.get_function(name) for name in FUSED_NUMBERS}
    except Exception as error:  # NVRTC's or the driver's
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        print(f"gpt2_np: softmax and GELU are slow on this GPU ({reason})", file=sys.stderr)
        return None


# --- the fast decode step --------------------------------------------------------------


def start_decoding(model: Any, cache: Any, tokens: Any, *options: Any) -> Any:
    """What makes the next tokens of a generation faster than the forward pass, or None.

    The step is captured once per model and kept beside it; `cuda_step` says what it does.
    """
    xp = namespace(model.params["wte"])
    if xp is np or not hasattr(xp, "RawModule"):
        return None
    decoder = vars(model).get("_decoder")
    if decoder is None or not decoder.is_for(model.params):
        try:
            if __package__:
                from . import cuda_step
            else:
                import cuda_step
        except ImportError:  # vendored without it
            return None
        decoder = vars(model)["_decoder"] = cuda_step.Decoder(model.params, model.config, xp)
    return decoder.start(cache, tokens, *options)

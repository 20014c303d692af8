"""A stand-in for CuPy on a machine without a GPU: arrays that refuse to mix with NumPy's.

Each array hides a NumPy array. As in CuPy there is no implicit way back to the host: NumPy
functions, NumPy operands and NumPy indices raise TypeError, and `asarray` and `get` are the only
doors. Functions that CuPy lacks are missing. Copies between host and device and calls of cuBLAS
are refused while a stream is captured, as in CuPy 14. `cuda` is the part of CuPy's that the
project calls: cuBLAS as its manual describes it, on the memory of these arrays.
"""
import ctypes
import operator
import sys
from types import SimpleNamespace

import numpy as np

float16, float32, float64 = np.float16, np.float32, np.float64
capturing = None  # the launches of the graph that is being captured, or None


def refuse_capture(what, error=RuntimeError):
    if capturing is not None:
        raise error(f"the current stream is capturing, so {what} are disallowed")


class ndarray:
    __array_ufunc__ = None  # `numpy_array + strict` must not be computed by NumPy
    __cuda_array_interface__ = None

    def __init__(self, host):
        assert type(host) is np.ndarray
        self._host = host

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion to a NumPy array is not allowed: use .get()")

    def get(self, stream=None, order="C", out=None, blocking=True):
        refuse_capture("D2H transfers")
        if out is None:
            return self._host.copy()
        if (type(out), out.dtype, out.shape) != (np.ndarray, self.dtype, self.shape):
            raise TypeError(f"{out.dtype} {out.shape} from {self.dtype} {self.shape}")
        assert out.flags.c_contiguous and self._host.flags.c_contiguous  # else CuPy copies first
        out[...] = self._host
        return out

    def set(self, host, stream=None):
        refuse_capture("H2D transfers")
        if (type(host), host.dtype, host.shape) != (np.ndarray, self.dtype, self.shape):
            raise TypeError(f"{host.dtype} {host.shape} to {self.dtype} {self.shape}")
        if not self._host.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        self._host[...] = host

    class _Pointer:
        def __init__(self, host):
            self.ptr = host.ctypes.data

    data = property(lambda self: self._Pointer(self._host))
    flags = property(lambda self: self._host.flags)
    strides = property(lambda self: self._host.strides)
    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)

    def __len__(self):
        return len(self._host)

    def __getitem__(self, index):
        return _wrap(self._host[_index(index)])

    def __setitem__(self, index, value):
        self._host[_index(index)] = _open(value)

    def __int__(self):
        return int(self._host)

    def __float__(self):
        return float(self._host)

    def __bool__(self):
        return bool(self._host)


def _open(value):
    """Return the host array behind a strict one. Python numbers pass, NumPy arrays do not."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray | list):
        raise TypeError(f"unsupported type {type(value)}")
    return value


def _index(index):
    if isinstance(index, tuple):
        return tuple(_index(part) for part in index)
    return _open(index)


def _wrap(value):
    return ndarray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _method(name):
    def method(self, *args, **kwargs):
        kwargs = {key: _open(value) for key, value in kwargs.items()}
        return _wrap(getattr(self._host, name)(*map(_open, args), **kwargs))

    return method


for _name in ("argmax", "astype", "copy", "max", "min", "reshape", "sum", "swapaxes", "transpose"):
    setattr(ndarray, _name, _method(_name))


def _binary(function, swapped=False):
    def method(self, other):
        pair = (_open(other), self._host) if swapped else (self._host, _open(other))
        return _wrap(function(*pair))

    return method


def _in_place(function):
    def method(self, other):
        self._host = function(self._host, _open(other))
        return self

    return method


ndarray.__gt__ = _binary(operator.gt)
for _name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    setattr(ndarray, f"__{_name}__", _binary(getattr(operator, _name)))
    setattr(ndarray, f"__r{_name}__", _binary(getattr(operator, _name), swapped=True))
    setattr(ndarray, f"__i{_name}__", _in_place(getattr(operator, "i" + _name)))


def _function(name):
    def function(*args, out=None, **kwargs):
        kwargs = {key: _open(value) for key, value in kwargs.items()}
        if out is not None:
            kwargs["out"] = out._host
        return _wrap(getattr(np, name)(*map(_open, args), **kwargs))

    return function


for _name in ("arange", "ascontiguousarray", "copyto", "einsum", "empty", "exp", "log", "maximum",
              "multiply", "tanh", "where", "zeros"):
    setattr(sys.modules[__name__], _name, _function(_name))


def asarray(value, dtype=None):
    """Return a strict array of a NumPy array, a list, a number or a strict array."""
    if isinstance(value, ndarray):
        return ndarray(value._host.astype(dtype, copy=False)) if dtype else value
    refuse_capture("H2D transfers")
    return ndarray(np.array(value, dtype=dtype))


# --- cuBLAS ----------------------------------------------------------------------------


def _columns(pointer, dtype, rows, columns, leading, stride, count):
    """Return [matrix, row, column] in cuBLAS's order: element (i, j) is at i + j * leading."""
    assert leading >= max(1, rows)
    size = (count - 1) * stride + (columns - 1) * leading + rows
    memory = (ctypes.c_char * (size * np.dtype(dtype).itemsize)).from_address(pointer)
    item = np.dtype(dtype).itemsize
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(memory, dtype), (count, rows, columns),
        (stride * item, item, leading * item),
    )  # fmt: skip


def _gemm(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, stride_a, b, type_b, ldb, stride_b,
          beta, c, type_c, ldc, stride_c, count, compute, algorithm):
    refuse_capture("calls of cuBLAS", NotImplementedError)
    integers = (op_a, op_b, m, n, k, lda, stride_a, ldb, stride_b, ldc, stride_c, count)
    assert all(type(number) is int for number in integers)
    assert max(m, n, k, lda, ldb, ldc, count) < 2**31  # int in CuPy's binding; strides are longer
    types = {0: np.float32, 1: np.float64, 2: np.float16}
    assert type_a == type_b and (type_a, type_c, compute) in (
        (0, 0, 68), (0, 0, 77), (2, 0, 68), (1, 1, 70))
    scalar = ctypes.c_double if compute == 70 else ctypes.c_float
    assert (scalar.from_address(alpha).value, scalar.from_address(beta).value) == (1, 0)
    calls.append(SimpleNamespace(shape=(count, m, n, k), type=types[type_a], compute=compute))
    left = _columns(a, types[type_a], *((k, m) if op_a else (m, k)), lda, stride_a, count)
    right = _columns(b, types[type_b], *((n, k) if op_b else (k, n)), ldb, stride_b, count)
    left, right = (
        (x.swapaxes(1, 2) if op else x).astype(types[type_c])
        for op, x in ((op_a, left), (op_b, right))
    )
    memory = np.frombuffer((ctypes.c_char * (((count - 1) * stride_c + (n - 1) * ldc + m)
                            * np.dtype(types[type_c]).itemsize)).from_address(c), types[type_c])
    item = memory.itemsize
    np.lib.stride_tricks.as_strided(memory, (count, m, n),
                                    (stride_c * item, item, ldc * item))[...] = left @ right


calls = []  # of cuBLAS
cuda = SimpleNamespace(
    cublas=SimpleNamespace(gemmStridedBatchedEx=_gemm), get_cublas_handle=lambda: 1,
    runtime=SimpleNamespace(memGetInfo=lambda: (2**33, 2**34)),
)

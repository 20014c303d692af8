"""A stand-in for CuPy where there is no GPU: arrays that refuse to mix with NumPy's.

Each array hides a NumPy array. Like CuPy it has no implicit way back to the host: NumPy
functions, NumPy operands and NumPy indices raise TypeError; `asarray` and `get` are the only
doors. What CuPy lacks is left out here too.
"""
import operator
import sys

import numpy as np

float32, float64 = np.float32, np.float64


class ndarray:
    __array_ufunc__ = None  # `numpy_array + strict` must not be computed by NumPy
    __cuda_array_interface__ = None

    def __init__(self, host):
        assert type(host) is np.ndarray
        self._host = host

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion to a NumPy array is not allowed: use .get()")

    def get(self):
        return self._host.copy()

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
    """The host array behind a strict one; plain Python numbers pass, NumPy arrays do not."""
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


for _name in ("arange", "copyto", "einsum", "empty", "exp", "log", "maximum", "multiply", "tanh",
              "zeros"):
    setattr(sys.modules[__name__], _name, _function(_name))


def asarray(value, dtype=None):
    """From the host (a NumPy array, a list, a number) or from a strict array."""
    if isinstance(value, ndarray):
        return ndarray(value._host.astype(dtype, copy=False)) if dtype else value
    return ndarray(np.array(value, dtype=dtype))

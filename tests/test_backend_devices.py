"""The choice of a device, and the sentences that say why there is none and what to do."""
import re
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from small_model import save_small_model

import gpt2_np
from gpt2_np import backend


class FakeCupy:
    """CuPy as it imports on a machine without a GPU: the first allocation gives the reason."""

    def __init__(self, message):
        self.message = message

    def zeros(self, shape):
        raise RuntimeError(self.message)


@pytest.fixture
def cupy_that_says(monkeypatch):
    def install(message):
        monkeypatch.setitem(sys.modules, "cupy", FakeCupy(message))
        monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())

    return install


def test_cpu_is_numpy_and_loads_no_cupy():
    assert backend.pick("cpu") is np


def test_auto_is_numpy_if_cupy_is_missing(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert backend.pick("auto") is np


def test_cuda_without_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(backend.DeviceError, match=r"not installed: pip install \"cupy-cuda1\dx"):
        backend.pick("cuda")


# The first and the one on libcublas were read with CuPy 14 on a machine without driver and
# libraries. The others are the usual words of CUDA, CuPy and the loader, not met here.
@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime "
            "version",
            "no NVIDIA driver answers, or it is older than CuPy's CUDA version",
        ),
        ("cudaErrorNoDevice: no CUDA-capable device is detected", "the driver finds no GPU"),
        ("libcudart.so.13: cannot open shared object file", "CUDA's libraries are missing"),
        ("CuPy failed to load libnvrtc.so.13: OSError: no file", "CUDA's libraries are missing"),
        ('Failure finding "libcublas.so": No such file', r"pip install .cupy-cuda13x\[ctk\]"),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image", "not built for this GPU"),
        ("an error nobody has met", "an error nobody has met"),
    ],
)
def test_cuda_that_is_not_available_says_why(cupy_that_says, said, told):
    cupy_that_says(said)
    assert backend.pick("auto") is np
    with pytest.raises(backend.DeviceError, match=f"{told}.*choose device 'cpu'") as caught:
        backend.pick("cuda")
    assert "\n" not in str(caught.value)


def test_an_unknown_device_lists_the_known():
    with pytest.raises(backend.DeviceError, match=r"unknown device 'tpu': .* auto, cpu, cuda"):
        backend.pick("tpu")


def test_a_host_array_goes_to_numpy_without_a_copy():
    array = np.ones(3)
    assert backend.to_device(array, np) is array
    assert backend.to_host(array) is array


class Gpu:
    """A GPU of 8 GiB, 3 of them free, as CuPy describes it."""

    __version__ = "14.2.0"
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0),
        runtime=SimpleNamespace(
            memGetInfo=lambda: (3 << 30, 8 << 30),
            getDeviceProperties=lambda _: {"name": b"Some GPU", "major": 9, "minor": 0},
        ),
    )

    def get_default_memory_pool():
        return SimpleNamespace(free_bytes=lambda: 1 << 30)


def test_verbose_says_which_device_and_why(monkeypatch):
    assert backend.about(Gpu) == (
        "Some GPU (compute capability 9.0, 3.00 GiB of 8.00 GiB free, CuPy 14.2.0)"
    )
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert re.match(r"the CPU \(NumPy .*\); device 'cuda' needs CuPy", backend.about(np))


def test_weights_that_do_not_fit_are_refused_before_they_are_moved():
    backend.check_room(4 << 30, Gpu)
    backend.check_room(1 << 50, np)
    with pytest.raises(backend.DeviceError, match=r"need 6.00 GiB .* 4.00 GiB of 8.00 GiB"):
        backend.check_room(6 << 30, Gpu)


def test_memory_that_ran_out_on_the_gpu_says_what_was_needed_and_free(monkeypatch):
    class OutOfMemoryError(MemoryError):
        __module__ = "cupy.cuda.memory"

    monkeypatch.setitem(sys.modules, "cupy", Gpu)
    error = OutOfMemoryError("Out of memory allocating 5,368,709,120 bytes (allocated so far: 1).")
    assert "5.00 GiB more were needed, 3.00 GiB of 8.00 GiB are free; choose fewer samples" in (
        backend.memory_advice(error)
    )
    assert "choose a smaller model" in backend.memory_advice(MemoryError())


def test_an_error_is_not_cudas_if_cupy_has_no_cublas(monkeypatch):
    class Cuda(SimpleNamespace):
        def __getattr__(self, name):  # as CuPy 14.2 does: it loads cuBLAS when it is asked for
            raise ImportError('Failure finding "libcublas.so.13"')

    errors = SimpleNamespace(CUDARuntimeError=OSError, CUDADriverError=OSError)
    cupy = SimpleNamespace(cuda=Cuda(runtime=errors, driver=errors))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert not backend.is_cuda_error(ValueError("a shard's own fault"))
    assert backend.is_cuda_error(OSError("CUDA's"))


def test_float16_on_the_cpu_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(gpt2_np.Error, match=r"'float16' is for the GPU.*choose dtype 'float32'"):
        gpt2_np.load(save_small_model(tmp_path), "cpu", "float16")


# --- several packages of CuPy ----------------------------------------------------------

# As CuPy 14.2 words it.
SEVERAL = """
--------------------------------------------------------------------------------

  CuPy may not function correctly because multiple CuPy packages are installed
  in your environment:

    cupy-cuda12x, cupy-cuda13x

  Follow these steps to resolve this issue:

    1. For all packages listed above, run the following command to remove all
       existing CuPy installations:

         $ pip uninstall <package_name>

--------------------------------------------------------------------------------
"""
CONFLICT = (
    "CuPy may not function correctly because multiple CuPy packages are installed in your "
    "environment: cupy-cuda12x, cupy-cuda13x; uninstall all of them, then install one"
)


@pytest.fixture
def cupy_beside_another(tmp_path, monkeypatch):
    """Install a CuPy that warns at its first import, and then runs or fails by `body`."""

    def install(body):
        source = f"import warnings\nwarnings.warn({SEVERAL!r})\nwarnings.warn('no CUDA_PATH')\n"
        (tmp_path / "cupy.py").write_text(source + body)
        monkeypatch.syspath_prepend(tmp_path)

    monkeypatch.setattr(backend, "_cupy_conflicts", [])
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    yield install
    sys.modules.pop("cupy", None)


WORKS = """
from types import SimpleNamespace
import numpy
zeros = numpy.zeros
cuda = SimpleNamespace(get_cublas_handle=lambda: 1)
"""


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_second_cupy_is_warned_of_once_when_a_gpu_is_picked(cupy_beside_another, device):
    cupy_beside_another(WORKS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        xp = backend.pick(device)
        assert backend.pick(device) is xp is sys.modules["cupy"]
    assert [str(warning.message) for warning in caught] == [CONFLICT]


@pytest.mark.parametrize("body", [
    "def zeros(shape):\n    raise RuntimeError('cudaErrorNoDevice')",
    "raise ImportError('libnvrtc.so.13: cannot open shared object file')",
], ids=["finds no GPU", "is broken"])  # fmt: skip
def test_a_second_cupy_is_named_whenever_the_gpu_is_not_available(cupy_beside_another, body):
    cupy_beside_another(body)
    assert backend.pick("auto") is np
    with pytest.raises(backend.DeviceError) as caught:
        backend.pick("cuda")
    for said in str(caught.value), backend.about(np):
        assert f"device 'cuda' is not available; {CONFLICT}: " in said
        assert "CUDA_PATH" not in said and "\n" not in said


# --- arrays to and from the host ---------------------------------------------------------


class OtherArray:
    """An array of a library that is neither NumPy nor CuPy."""

    def __array__(self, dtype=None, copy=None):
        return np.arange(3.0)


def test_arrays_of_any_library_come_to_the_host():
    assert backend.to_host(OtherArray()).tolist() == [0, 1, 2]
    assert backend.to_host(np.float32(2)).shape == ()
    assert gpt2_np.sample(OtherArray(), temperature=0.5, seed=1) in (0, 1, 2)

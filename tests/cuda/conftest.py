"""Arrays for the tests of cuda/: on a stand-in for CuPy, or on a GPU."""
import shutil

import cuda_on_cpu
import pytest
import strict_arrays

from gpt2_np import backend
from gpt2_np.cuda import decode_step

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture
def launched(monkeypatch):
    """The stand-in with launches that are checked and not computed."""
    cuda_on_cpu.install(monkeypatch)
    return strict_arrays


@pytest.fixture(params=[pytest.param("compiled", marks=pytest.mark.compiler), CUDA])
def xp(request, monkeypatch):
    """Kernels that compute: their source compiled for the CPU, or CuPy."""
    if request.param == "cuda":
        return backend.pick("cuda")
    compiler = shutil.which("c++")
    assert compiler, "the tests marked compiler need a C++ compiler named c++"
    cuda_on_cpu.install(monkeypatch, compiler)
    return strict_arrays


@pytest.fixture(params=["strict", CUDA])
def arrays(request):
    """The stand-in without kernels, or CuPy."""
    return backend.pick("cuda") if request.param == "cuda" else strict_arrays


@pytest.fixture
def few_parts(monkeypatch):
    """Search the vocabulary in 3 parts and not in 64, which is most of a step's time on the CPU."""
    monkeypatch.setattr(decode_step, "N_PARTS", 3)

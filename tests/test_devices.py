"""The same code on either kind of array: a strict stand-in here, CuPy where there is a GPU."""
import sys

import numpy as np
import pytest
import strict_arrays
from random_model import TINY, map_params, random_model

import backend
import gpt2_np

HOST = random_model()
TOKENS = np.random.default_rng(7).integers(0, TINY.n_vocab, TINY.n_ctx)


@pytest.fixture(params=["strict", pytest.param("cuda", marks=pytest.mark.gpu)])
def xp(request):
    return backend.pick("cuda") if request.param == "cuda" else strict_arrays


@pytest.fixture
def model(xp):
    params = map_params(lambda array: backend.to_device(array, xp), HOST.params)
    return gpt2_np.Model(TINY, params)


def same(device_array, host_array):
    host = backend.to_host(device_array)
    assert host.dtype == host_array.dtype
    np.testing.assert_allclose(host, host_array, rtol=1e-4, atol=1e-5)


def test_the_stand_in_refuses_to_mix():
    strict = strict_arrays.asarray(np.ones(3, np.float32))
    for mix in (
        lambda: strict + np.ones(3),
        lambda: np.ones(3) + strict,
        lambda: np.exp(strict),
        lambda: np.asarray(strict),
        lambda: strict[np.array([0])],
        lambda: strict @ np.ones(3, np.float32),
        lambda: strict_arrays.exp(np.ones(3)),
        lambda: strict.__setitem__(0, np.ones(())),
    ):
        with pytest.raises(TypeError):
            mix()


def test_forward_on_the_device_equals_forward_on_the_host(model, xp):
    for tokens in (TOKENS, TOKENS.reshape(2, 12), TOKENS.tolist(), xp.asarray(TOKENS)):
        host_tokens = backend.to_host(tokens) if hasattr(tokens, "get") else tokens
        logits = gpt2_np.forward(model.params, TINY, tokens)
        assert backend.namespace(logits) is xp
        same(logits, gpt2_np.forward(HOST.params, TINY, host_tokens))


def test_the_cache_lives_on_the_device(model, xp):
    cache = gpt2_np.KVCache(TINY)
    gpt2_np.forward(model.params, TINY, TOKENS[:10], cache)
    logits = gpt2_np.forward(model.params, TINY, TOKENS[10:], cache, last_only=True)
    same(logits, gpt2_np.forward(HOST.params, TINY, TOKENS)[-1:])


def test_taps_see_and_edit_device_arrays(model, xp):
    def double_values(name, array):
        assert backend.namespace(array) in (xp, np)
        return array * 2 if name.endswith("hook_v") else None

    edited = gpt2_np.forward(model.params, TINY, TOKENS, tap=double_values)
    same(edited, gpt2_np.forward(HOST.params, TINY, TOKENS, tap=double_values))


def test_results_per_head_on_the_device(model):
    class Result:
        def wants(self, name):
            return name.endswith("hook_result")

        def __call__(self, name, array):
            return array * 0.5

    edited = gpt2_np.forward(model.params, TINY, TOKENS, tap=Result())
    same(edited, gpt2_np.forward(HOST.params, TINY, TOKENS, tap=Result()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "top_k": 20, "seed": 3},
        {"temperature": 1.1, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 4},
        {"repetition_penalty": 1.5},
    ],
)
def test_generation_on_the_device_equals_the_hosts(model, options):
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    rows = gpt2_np.generate_batch(model, prompts, 8, **options)
    assert rows == gpt2_np.generate_batch(HOST, prompts, 8, **options)
    single = list(gpt2_np.generate(model, prompts[0], 8, **options))
    assert single == list(gpt2_np.generate(HOST, prompts[0], 8, **options))


def test_scores_on_the_device_equal_the_hosts(model):
    text = np.tile(TOKENS, 3)
    np.testing.assert_allclose(
        gpt2_np.score(model, text), gpt2_np.score(HOST, text), rtol=1e-4, atol=1e-5
    )


def test_sample_takes_device_logits(xp):
    logits = np.array([0.0, 3.0, 1.0], np.float32)
    assert gpt2_np.sample(xp.asarray(logits)) == 1
    for seed in range(5):
        on_device = gpt2_np.sample(xp.asarray(logits), temperature=1.0, seed=seed)
        assert on_device == gpt2_np.sample(logits, temperature=1.0, seed=seed)


# --- choosing a device -----------------------------------------------------------------


class FakeCupy:
    """CuPy as it imports on a machine without a GPU: the first allocation says why."""

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


def test_auto_is_numpy_where_cupy_is_missing(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert backend.pick("auto") is np


def test_cuda_without_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(backend.DeviceError, match=r"not installed: pip install cupy-cuda1\dx"):
        backend.pick("cuda")


# The first was read with CuPy 14 where there is no driver; the others are the usual words of CUDA
# and of the loader, not met here.
@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime "
            "version",
            "no NVIDIA driver answers, or it is older than CuPy's CUDA version",
        ),
        ("cudaErrorNoDevice: no CUDA-capable device is detected", "the driver finds no GPU"),
        ("libcudart.so.13: cannot open shared object file", "libcudart.so.13: cannot open"),
    ],
)
def test_cuda_that_cannot_be_had_says_why(cupy_that_says, said, told):
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

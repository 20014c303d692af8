"""The same code on either kind of array: a strict stand-in here, CuPy where there is a GPU."""
import contextvars
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import strict_arrays
from random_model import TINY, map_params, random_model
from small_model import save_small_model

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
    with pytest.raises(backend.DeviceError, match=r"not installed: pip install \"cupy-cuda1\dx"):
        backend.pick("cuda")


# The first and the one on libcublas were read with CuPy 14 on a machine without driver and
# libraries; the others are the usual words of CUDA, CuPy and the loader, not met here.
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


def test_float16_on_the_cpu_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(gpt2_np.Error, match=r"'float16' is for the GPU.*choose dtype 'float32'"):
        gpt2_np.load(save_small_model(tmp_path), "cpu", "float16")


def test_a_checkpoint_goes_to_the_device_in_float16(tmp_path, xp, monkeypatch):
    monkeypatch.setattr(backend, "pick", lambda device: xp)
    monkeypatch.setattr(backend, "check_room", lambda n_bytes, xp: None)
    folder = save_small_model(tmp_path)
    model = gpt2_np.load(folder, "cuda", "float16")
    monkeypatch.undo()
    host = gpt2_np.load(folder, "cpu")
    assert model.params["blocks"][0]["ln_1"]["g"].dtype == np.float16
    logits = gpt2_np.forward(model.params, model.config, TOKENS)
    expected = gpt2_np.forward(host.params, host.config, TOKENS)
    assert relative(backend.to_host(logits), expected) < 2e-3


# --- float16, TF32 and cuBLAS ----------------------------------------------------------


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture
def half(xp):
    params = map_params(lambda array: xp.asarray(array.astype(np.float16)), HOST.params)
    return gpt2_np.Model(TINY, params)


@pytest.mark.parametrize("shape", [(1, 24), (2, 12), (24, 1)])
def test_float16_is_near_float32(half, xp, shape):
    tokens = TOKENS.reshape(shape)
    logits = gpt2_np.forward(half.params, TINY, tokens)
    assert logits.dtype == np.float32
    assert relative(logits.get(), gpt2_np.forward(HOST.params, TINY, tokens)) < 2e-3
    cache = gpt2_np.KVCache(TINY, *shape[:1])
    for start in range(0, shape[1], 5):
        pieces = gpt2_np.forward(half.params, TINY, tokens[:, start : start + 5], cache)
    assert relative(pieces.get()[:, -1], logits.get()[:, -1]) < 2e-3
    assert {array.dtype for layer in cache._layers for array in layer} == {np.dtype(np.float16)}


def test_float16_scores_and_generation_run(half):
    expected = gpt2_np.score(HOST, np.tile(TOKENS, 3))
    assert relative(gpt2_np.score(half, np.tile(TOKENS, 3)), expected) < 2e-3
    assert len(gpt2_np.generate_batch(half, [[1, 2], [3]], 8)[1]) == 8


def test_tf32_is_used_only_where_it_was_asked_for():
    def compute_types():
        strict_arrays.calls.clear()
        ones = strict_arrays.asarray(np.ones((2, 2), np.float32))
        backend.einsum("bq,qd->bd", ones, ones)
        return [call.compute for call in strict_arrays.calls]

    assert compute_types() == [backend.COMPUTE_32F]
    contextvars.copy_context().run(backend.allow_tf32)
    assert compute_types() == [backend.COMPUTE_32F]
    asked = contextvars.copy_context()
    asked.run(backend.allow_tf32)
    assert asked.run(compute_types) == [backend.COMPUTE_32F_FAST_TF32]


LAYOUTS = {
    "rows": lambda a: a,
    "columns": lambda a: a.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "sliced": lambda a: np.concatenate([a, a], -1)[..., : a.shape[-1]],
    "sliced columns": lambda a: np.concatenate([a, a], -2)[..., : a.shape[-2], :],
    "every other": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "stack inside": lambda a: np.moveaxis(np.moveaxis(a, 0, -2).copy(), -2, 0),
}


@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_a_product_reads_every_layout(xp, left, right):
    rng = np.random.default_rng(0)
    for stack in ((), (3,), (2, 3)):
        for m, k, n in ((2, 3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 1), (1, 1, 1), (2, 3, 1025)):
            a, b = rng.normal(size=(*stack, m, k)), rng.normal(size=(*stack, k, n))
            a, b = LAYOUTS[left](a), LAYOUTS[right](b)
            for dtype, error in ((np.float64, 1e-14), (np.float32, 1e-6), (np.float16, 1e-3)):
                here = strided(xp, a.astype(dtype), LAYOUTS[left])
                there = strided(xp, b.astype(dtype), LAYOUTS[right])
                product = backend.device_product(here, there)
                assert product.dtype == np.promote_types(dtype, np.float32)
                assert relative(product.get(), a @ b) < error


def strided(xp, array, arrange):
    """On the device, laid out as `arrange` leaves it."""
    if xp is strict_arrays:
        return strict_arrays.ndarray(arrange(array))
    base = xp.zeros(tuple(2 * n for n in array.shape), array.dtype)
    view = base[tuple(slice(0, n) for n in array.shape)]
    view[...] = xp.asarray(array)
    return view


def test_the_cache_is_never_copied(model, xp, monkeypatch):
    def refuse(array):
        raise AssertionError("a copy")

    cache = gpt2_np.KVCache(TINY, 2)
    gpt2_np.forward(model.params, TINY, TOKENS.reshape(2, 12)[:, :11], cache)
    monkeypatch.setattr(xp, "ascontiguousarray", refuse)
    gpt2_np.forward(model.params, TINY, TOKENS.reshape(2, 12)[:, 11:], cache)

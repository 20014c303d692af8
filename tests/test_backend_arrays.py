"""The same code on either kind of array: a strict stand-in for CuPy, or CuPy on a GPU."""
import numpy as np
import pytest
import strict_arrays
from random_model import TINY, map_params, random_model
from small_model import save_small_model

import gpt2_np
from gpt2_np import backend
from gpt2_np.inference.branches import Branches, branch_scores

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


def test_beams_on_the_device_equal_the_hosts(model):
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    options = {"n_beams": 3, "n_results": 3, "stop": range(0, 60, 4), "no_repeat_ngram": 2}
    for device, host in zip(gpt2_np.beam_search_batch(model, prompts, 8, **options),
                            gpt2_np.beam_search_batch(HOST, prompts, 8, **options), strict=True):
        assert [beam.tokens for beam in device] == [beam.tokens for beam in host]
        assert [beam.log_p for beam in device] == pytest.approx([beam.log_p for beam in host])


def test_scores_on_the_device_equal_the_hosts(model):
    text = np.tile(TOKENS, 3)
    np.testing.assert_allclose(
        gpt2_np.score(model, text), gpt2_np.score(HOST, text), rtol=1e-4, atol=1e-5
    )


def test_scores_of_branches_on_the_device_equal_the_hosts(model):
    groups = [Branches(TOKENS[:9], [TOKENS[9:12], TOKENS[3:5]]),
              Branches(TOKENS[3:7], [TOKENS[:1]])]
    expected, found = (sorted(branch_scores(one, groups), key=lambda one: one[:2])
                       for one in (HOST, model))
    for (*name, scores), (*its_name, its_scores) in zip(expected, found, strict=True):
        assert name == its_name
        same(its_scores.log_probabilities, scores.log_probabilities)
        np.testing.assert_array_equal(its_scores.is_greedy, scores.is_greedy)


def test_sample_takes_device_logits(xp):
    logits = np.array([0.0, 3.0, 1.0], np.float32)
    assert gpt2_np.sample(xp.asarray(logits)) == 1
    for seed in range(5):
        on_device = gpt2_np.sample(xp.asarray(logits), temperature=1.0, seed=seed)
        assert on_device == gpt2_np.sample(logits, temperature=1.0, seed=seed)


# --- float16 -----------------------------------------------------------------------------


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
    assert {array.dtype for layer in cache.layers for array in layer} == {np.dtype(np.float16)}


def test_float16_scores_and_generation_run(half):
    expected = gpt2_np.score(HOST, np.tile(TOKENS, 3))
    assert relative(gpt2_np.score(half, np.tile(TOKENS, 3)), expected) < 2e-3
    assert len(gpt2_np.generate_batch(half, [[1, 2], [3]], 8)[1]) == 8


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


def test_the_cache_is_never_copied(model, xp, monkeypatch):
    def refuse(array):
        raise AssertionError("a copy")

    cache = gpt2_np.KVCache(TINY, 2)
    gpt2_np.forward(model.params, TINY, TOKENS.reshape(2, 12)[:, :11], cache)
    monkeypatch.setattr(xp, "ascontiguousarray", refuse)
    gpt2_np.forward(model.params, TINY, TOKENS.reshape(2, 12)[:, 11:], cache)

"""Softmax, GELU and the causal mask as one kernel each, beside the reference."""
import functools

import numpy as np
import pytest
from random_model import map_params, random_model

from gpt2_np import Config, forward
from gpt2_np.cuda import elementwise
from gpt2_np.gpt2_np import gelu, mask_future, softmax

CHUNKS = Config(n_vocab=61, n_ctx=150, n_embd=40, n_head=8, n_layer=2)
COMPILED = elementwise.compiled


@pytest.mark.parametrize("shape", [(3,), (1, 1), (2, 9, 61), (40, 300)], ids=str)
@pytest.mark.parametrize("function", [softmax, gelu], ids=["softmax", "gelu"])
def test_a_function_as_one_kernel_is_the_same_function(xp, function, shape):
    host = np.random.default_rng(0).normal(size=shape, scale=3).astype(np.float32)
    host[..., 1:] += np.where(np.arange(1, shape[-1]) % 3 == 0, -np.inf, 0)  # masked
    if function is gelu:
        host[host == -np.inf] = 1e4
    array, before = xp.asarray(host), host.copy()
    np.testing.assert_allclose(function(array).get(), function(host), rtol=1e-5, atol=1e-6)
    assert (array.get() == before).all()
    doubled = xp.asarray(np.repeat(host, 2, -1))[..., ::2]  # not contiguous: operation by operation
    np.testing.assert_allclose(function(doubled).get(), function(host), rtol=1e-5, atol=1e-6)
    assert function(array.astype(np.float64)).dtype == np.float64


POSITIONS = {
    "from the start": np.arange(7)[None],
    "after a cache": 5 + np.arange(3)[None],
    "two rows": 5 + np.arange(3) + np.zeros((2, 1), int),
    "rows of different lengths": np.array([[4, 5], [0, 1]]),
    "one query": np.array([[6], [6]]),
}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mask_hides_the_same_keys_as_on_the_host(xp, positions, dtype):
    positions = POSITIONS[positions]
    shape = (len(positions), 3, positions.shape[1], positions.max() + 1)
    scores = np.random.default_rng(0).normal(size=shape).astype(dtype)
    expected = mask_future.__wrapped__(scores, positions)
    masked = mask_future(xp.asarray(scores), positions)
    assert masked.dtype == dtype and (masked.get() == expected).all()


def test_functions_that_cannot_be_compiled_are_computed_step_by_step_and_say_so_once(
    launched, monkeypatch, capsys
):
    def fail(**_):
        raise RuntimeError("RawModule failed\nwith a long explanation")

    monkeypatch.setattr(elementwise, "compiled", functools.cache(COMPILED.__wrapped__))
    monkeypatch.setattr(launched, "RawModule", fail)
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    for function in (softmax, gelu):
        result = function(launched.asarray(host)).get()
        np.testing.assert_allclose(result, function(host), rtol=1e-6)
    said = capsys.readouterr().err
    assert said == "gpt2_np: softmax and GELU are slow on this GPU (RawModule failed)\n"


def test_the_forward_pass_with_functions_as_one_kernel_equals_the_hosts(xp):
    host = random_model(CHUNKS)
    tokens = np.random.default_rng(0).integers(0, CHUNKS.n_vocab, (2, 70))
    logits = forward(map_params(xp.asarray, host.params), CHUNKS, tokens).get()
    assert elementwise.compiled(xp) is not None
    expected = forward(host.params, CHUNKS, tokens)
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-5

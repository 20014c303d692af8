"""The residual stream is the sum of its parts, at every point and for any shape."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_pair import CLEAN, MODEL, close
from random_model import random_model

from gpt2_np import Config, circuits

STREAMS = [f"blocks.{n}.hook_resid_{s}" for n in range(3) for s in ("pre", "mid", "post")]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("at", STREAMS)
def test_parts_sum_to_the_stream_at_every_point(at, apart):
    stream = circuits.run(MODEL, CLEAN, [at])[at]
    for neurons in ((), range(3)):
        parts = circuits.decompose(MODEL, CLEAN, at, neurons=neurons, constants_apart=apart)
        close(parts.values.sum(axis=0), stream)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3))
def test_parts_sum_to_the_stream_for_any_shape(seed, n_head, n_layer):
    config = Config(n_vocab=17, n_ctx=9, n_embd=4 * n_head, n_head=n_head, n_layer=n_layer)
    model = random_model(config, seed)
    tokens = np.random.default_rng(seed).integers(0, 17, (2, 9))
    parts = circuits.decompose(model, tokens)
    close(parts.values.sum(axis=0),
          circuits.run(model, tokens, "*")[f"blocks.{n_layer - 1}.hook_resid_post"])


def test_parts_are_what_their_labels_say():
    seen = circuits.run(MODEL, CLEAN, "*")
    parts = circuits.decompose(MODEL, CLEAN, neurons=[1])
    close(parts["embed"], seen["hook_embed"])
    close(parts["L2H1"], seen["blocks.2.attn.hook_result"][:, :, 1])
    close(parts["MLP0"], seen["blocks.0.hook_mlp_out"])
    w = MODEL.params["blocks"][1]["mlp"]["c_proj"]["w"]
    close(parts["L1N7"], seen["blocks.1.mlp.hook_post"][..., 7:8] * w[7])
    one = circuits.decompose(MODEL, CLEAN, position=-2)
    close(one.values[:, :, 0], circuits.decompose(MODEL, CLEAN).values[:, :, -2])


def test_constants_apart_moves_only_what_a_head_always_writes():
    plain, apart = (circuits.decompose(MODEL, CLEAN, constants_apart=a) for a in (False, True))
    moved = plain["L1H0"] - apart["L1H0"]
    close(moved, np.broadcast_to(moved[:1, :1], moved.shape), 1e-5)
    assert np.abs(moved).max() > 0.1
    close(plain["MLP1"], apart["MLP1"])

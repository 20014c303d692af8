"""The residual stream is the sum of its parts, at every point and for any shape."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_pair import CLEAN, MODEL, close
from random_model import TINY, random_model, random_params

from gpt2_np import Config, Error, Model, circuits

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


def test_accumulated_parts_are_the_stream_at_every_point():
    seen, points = circuits.run(MODEL, CLEAN, "*"), circuits.lens(MODEL, CLEAN).points
    for options in ({}, {"neurons": "all"}, {"edits": {"resid_pre": circuits.add(0.2)}}):
        streams = circuits.run(MODEL, CLEAN, "*", edits=options.get("edits"))
        labels, grown = circuits.decompose(MODEL, CLEAN, **options).accumulated()
        assert labels == points
        for layer in range(3):
            close(grown[2 * layer], streams["resid_pre", layer])
            close(grown[2 * layer + 1], streams["resid_mid", layer])
        close(grown[-1], streams["resid_post", -1])
    labels, grown = circuits.decompose(MODEL, CLEAN, "1_mid", position=4).accumulated()
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid"]
    close(grown[-1][:, 0], seen["resid_mid", 1][:, 4])
    assert circuits.decompose(MODEL, CLEAN, "0_post").accumulated()[0][-1] == "0_post"
    assert circuits.decompose(MODEL, CLEAN, "0_pre").accumulated()[0] == ["0_pre"]


@pytest.mark.parametrize("shape", [(20,), (3, 20), (1, 20), (3, 12, 20)])
def test_parts_along_a_direction_are_those_of_a_calculation_by_hand(shape):
    model = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))
    direction = np.random.default_rng(0).standard_normal(shape)
    parts, norm = circuits.decompose(model, CLEAN), model.params["ln_f"]
    stream = parts.values.sum(axis=0)
    spread = np.sqrt(stream.var(axis=-1) + 1e-5)
    each = np.broadcast_to(direction if direction.ndim != 2 else direction[:, None], (3, 12, 20))
    found, plain = parts.project(direction), parts.project(direction, normalized=False)
    for p, b, q in ((0, 0, 0), (4, 1, 7), (17, 2, 11)):
        vector, along = parts.values[p, b, q], each[b, q]
        read = (vector - vector.mean()) / spread[b, q] * norm["g"]
        assert found[p, b, q] == pytest.approx(read @ along, abs=1e-12)
        assert plain[p, b, q] == pytest.approx(vector @ along, abs=1e-12)
    row = model.params["wte"][9]
    np.testing.assert_allclose(parts.project(row).sum(axis=0) + norm["b"] @ row,
                               circuits.run(model, CLEAN).logits[..., 9], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("point", "name"), [
    ("2_mid", "blocks.2.hook_resid_mid"), ("1_pre", "blocks.1.hook_resid_pre"),
    ("0_post", "blocks.0.hook_resid_post"), ("final_post", "blocks.2.hook_resid_post"),
])  # fmt: skip
def test_a_point_of_the_stream_may_be_named_as_the_lens_names_it(point, name):
    np.testing.assert_array_equal(circuits.decompose(MODEL, CLEAN, point).values,
                                  circuits.decompose(MODEL, CLEAN, name).values)


@pytest.mark.parametrize(("read", "message"), [
    (lambda: circuits.decompose(MODEL, CLEAN, 2), "at is 2, a layer: say .* '2_pre', '2_mid' or"),
    (lambda: circuits.decompose(MODEL, CLEAN, "7_mid"), "unknown activation"),
    (lambda: circuits.decompose(MODEL, CLEAN, ""), "unknown activation"),
    (lambda: circuits.decompose(MODEL, CLEAN, "z"), "'z', which is 3 activations"),
    (lambda: circuits.decompose(MODEL, CLEAN, neurons="some"), "neurons is 'some': .* or 'all'"),
    (lambda: circuits.decompose(MODEL, CLEAN, neurons=[3]), "layer 3 does not exist"),
    (lambda: circuits.decompose(MODEL, CLEAN)["L0H9"], "unknown part 'L0H9'; did you mean L0H"),
    (lambda: circuits.decompose(MODEL, CLEAN).project(np.ones(7)), r"\(7,\): .* width, 20"),
    (lambda: circuits.decompose(MODEL, CLEAN).project(np.ones((2, 20))),
     r"direction has shape \(2, 20\): give one, \[20\], one for each of 3 prompts, \[3, 20\]"),
    (lambda: circuits.decompose(MODEL, CLEAN).project("up"), "the values are 'up': give numbers"),
])  # fmt: skip
def test_a_question_without_an_answer_is_one_clear_error(read, message):
    with pytest.raises(Error, match=message):
        read()


def test_parts_that_no_memory_would_hold_are_refused_before_the_pass():
    config = Config(n_vocab=3, n_ctx=50000, n_embd=64, n_head=2, n_layer=6)
    model = Model(config, random_params(config))
    with pytest.raises(Error, match=r"\(1562, 1, 49999, 64\), at least 18 GiB: choose"):
        circuits.decompose(model, [1] * 49999, neurons="all")

"""Vectors of the stream read through the vocabulary."""
import numpy as np
import pytest
from prompt_pair import CLEAN, MODEL, TEXT, close
from random_model import TINY, random_params

from gpt2_np import Error, Model, circuits

DOUBLE = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))
VECTORS = np.random.default_rng(2).standard_normal((4, 20))


def test_unembedded_vectors_are_products_with_the_embedding():
    wte, gain = DOUBLE.params["wte"], DOUBLE.params["ln_f"]["g"]
    np.testing.assert_allclose(circuits.unembed(DOUBLE, VECTORS), VECTORS @ wte.T, atol=1e-12)
    assert circuits.unembed(DOUBLE, VECTORS[0].tolist()).shape == (61,)
    folded = VECTORS @ (wte * gain - (wte * gain).mean(axis=-1, keepdims=True)).T
    folded -= folded.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(circuits.unembed(DOUBLE, VECTORS, folded=True), folded, atol=1e-12)


def test_the_finished_stream_unembedded_with_its_layer_norm_is_the_models_logits():
    seen = circuits.run(MODEL, CLEAN, "*")
    close(circuits.unembed(MODEL, seen["resid_post", -1], layer_norm=True), seen.logits)
    norm = MODEL.params["ln_f"]
    normalized = seen["ln_final.hook_normalized"] * norm["g"] + norm["b"]
    close(circuits.unembed(MODEL, normalized), seen.logits)
    points = circuits.lens(MODEL, CLEAN, keep_logits=True)
    close(circuits.unembed(MODEL, seen.stack("resid_mid"), layer_norm=True), points.logits[1:6:2])


def test_the_top_tokens_are_those_with_the_highest_logits(speaking):
    vectors = np.random.default_rng(1).standard_normal((2, 3, 24))
    logits = circuits.unembed(speaking, vectors)
    found = circuits.top_tokens(speaking, vectors, 4)
    assert found.ids.shape == found.logits.shape == found.texts.shape == (2, 3, 4)
    for row in np.ndindex(2, 3):
        order = np.argsort(-logits[row], kind="stable")[:4]
        assert found.ids[row].tolist() == order.tolist()
        np.testing.assert_array_equal(found.logits[row], logits[row][order])
        assert found.texts[row].tolist() == circuits.labels_of(speaking, order)
    assert circuits.top_tokens(speaking, vectors, 10**9).ids.shape == (2, 3, speaking.n_vocab)


def test_top_tokens_print_a_line_for_each_vector(speaking):
    found = circuits.top_tokens(speaking, speaking.params["wte"][[40, 41]])
    first, second = str(found).splitlines()
    assert first.startswith(f"{found.texts[0, 0]!r} {found.logits[0, 0]:.2f}  ")
    assert second.endswith(f"{found.logits[1, 9]:.2f}")
    one = circuits.top_tokens(speaking, speaking.params["wte"][40], 3)
    assert repr(one) == f"TopTokens({one})" and str(one) == "  ".join(first.split("  ")[:3])
    many = repr(circuits.top_tokens(speaking, np.ones((30, 24)))).splitlines()
    assert many[0] == "TopTokens of 30 vectors:" and len(many) == 9


def test_tokens_of_neurons_and_singular_directions_are_top_tokens():
    for folded in (False, True):
        vector = MODEL.params["blocks"][1]["mlp"]["c_proj"]["w"][5]
        vector = vector - vector.mean() if folded else vector
        found = circuits.top_tokens(MODEL, vector, 6, folded=folded)
        raised = circuits.neuron_tokens(MODEL, "L1N5", 6, folded)["raises"]
        assert raised.ids.tolist() == found.ids.tolist()
        close(raised.logits, found.logits)
        [first] = circuits.singular_tokens(MODEL, "L1H2", n=1, folded=folded)
        vt = circuits.ov(MODEL, "L1H2", folded).svd()[2]
        either = [circuits.top_tokens(MODEL, sign * vt[0], 8, folded=folded) for sign in (1, -1)]
        assert first["writes"].ids.tolist() in [one.ids.tolist() for one in either]


def test_rows_that_pad_the_embedding_are_no_tokens(speaking, padded):
    vectors = np.random.default_rng(1).standard_normal((2, 24))
    close(circuits.unembed(padded, vectors), circuits.unembed(speaking, vectors))
    stream = circuits.run(padded, TEXT[:20], "resid_post")["resid_post", -1]
    assert circuits.top_tokens(padded, stream, layer_norm=True).ids.max() < speaking.n_vocab


@pytest.mark.parametrize(("read", "message"), [
    (lambda: circuits.unembed(MODEL, np.ones(19)), r"\(19,\): the last axis must be .* width, 20"),
    (lambda: circuits.unembed(MODEL, 3.0), r"vectors has shape \(\)"),
    (lambda: circuits.unembed(MODEL, "a text"), "the values are 'a text': give numbers"),
    (lambda: circuits.unembed(MODEL, VECTORS, layer_norm=True, folded=True), "give one of them"),
    (lambda: circuits.top_tokens(MODEL, VECTORS, 0), "top is 0"),
    (lambda: circuits.top_tokens(MODEL, VECTORS * np.nan), "hold NaN or infinity"),
])  # fmt: skip
def test_vectors_of_another_width_are_one_clear_error(read, message):
    with pytest.raises(Error, match=message):
        read()

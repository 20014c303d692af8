"""A histogram of a stream of texts is that of all values at once."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_pair import MODEL
from random_model import TINY

from gpt2_np import Error, circuits
from gpt2_np.circuits.distributions import GrowingBins

RNG = np.random.default_rng(2)
TEXTS = [RNG.integers(0, TINY.n_vocab, n) for n in (5, 24, 1, 9, 12)]


def all_values(name, texts=TEXTS):
    return np.concatenate([circuits.run(MODEL, text, name)[name].ravel() for text in texts])


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_post", "hook_embed", "ln_final.hook_scale",
                                  "blocks.2.mlp.hook_post"])
def test_a_histogram_equals_that_of_all_values(name):
    found = circuits.histogram(MODEL, iter(TEXTS), name, bins=20)
    values = all_values(name).astype(float)
    assert found.n == values.size == found.counts.sum()
    assert found.n_texts == 5 and (found.below, found.above) == (0, 0)
    assert 10 <= len(found.counts) <= 20
    assert np.abs(np.histogram(values, found.edges)[0] - found.counts).sum() <= 2  # a rounded edge
    assert (found.min, found.max) == pytest.approx((values.min(), values.max()), rel=1e-5)
    assert found.mean == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)
    assert found.std == pytest.approx(values.std(), rel=1e-5)


def test_edges_that_are_given_count_what_lies_outside():
    values = all_values("blocks.1.hook_resid_post")
    found = circuits.histogram(MODEL, TEXTS, "blocks.1.hook_resid_post", [-1.01, 0.003, 1.02])
    assert found.counts.tolist() == np.histogram(values, found.edges)[0].tolist()
    assert (found.below, found.above) == ((values < -1.01).sum(), (values >= 1.02).sum())
    assert found.counts.sum() + found.below + found.above == found.n
    assert "below" in str(found) and "above" in str(found)


@pytest.mark.parametrize("unit", ["L1N17", "L1H2"])
def test_the_histogram_of_a_unit_ends_at_its_highest_example(unit):
    found = circuits.histogram(MODEL, TEXTS, unit)
    best = circuits.max_activating(MODEL, TEXTS, unit, top=1)
    assert found.max == pytest.approx(best[0].value, rel=1e-6)
    assert (found.n, found.n_texts) == (best.n_tokens, best.n_texts)
    assert len(repr(found)) < 250 and "\n" not in repr(found)
    assert len(str(found).splitlines()) == 1 + len(found.counts)


def test_patterns_count_the_keys_that_a_query_can_see():
    found = circuits.histogram(MODEL, TEXTS, "blocks.1.attn.hook_pattern", [0, 0.5, 1.001])
    assert found.n == sum(4 * n * (n + 1) // 2 for n in map(len, TEXTS))
    assert found.mean * found.n == pytest.approx(4 * sum(map(len, TEXTS)), rel=1e-5)
    scores = circuits.histogram(MODEL, TEXTS, "blocks.1.attn.hook_attn_scores")
    assert np.isfinite(scores.min) and scores.n == found.n


def test_one_layers_activation_may_be_named_by_a_pair():
    whole = circuits.histogram(MODEL, TEXTS, "blocks.1.hook_resid_post")
    assert repr(circuits.histogram(MODEL, TEXTS, ("resid_post", 1))) == repr(whole)
    assert circuits.histogram(MODEL, TEXTS, (1, 2)).name == "L1H2"


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9),
                min_size=1, max_size=5), st.integers(2, 12))
def test_growing_bins_depend_on_the_values_alone(parts, most):
    """However the values come, the bins are the narrowest that hold all of them."""
    def counted(parts):
        bins = GrowingBins(most)
        for part in parts:
            bins.add(np.array(part, float))
        return bins

    values = np.concatenate(parts)
    streamed, at_once = counted(parts), counted([values])
    turned = counted([part[::-1] for part in parts[::-1]])
    edges, counts, *_ = streamed.finished()
    for other in (at_once, turned):
        np.testing.assert_array_equal(other.finished()[0], edges)
        np.testing.assert_array_equal(other.finished()[1], counts)
    assert len(counts) <= most and counts[0] and counts[-1]
    assert counts.sum() == values.size
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert ((values >= low) & (values < high)).sum() == count


@pytest.mark.parametrize(
    ("name", "bins", "message"),
    [
        ("resid_post", 9, "'resid_post' is in 3 layers: name one, as blocks.0.hook_resid_post"),
        ("resid_pots", 9, "did you mean resid_post"),
        ("L1N80", 9, "neuron 80 does not exist"),
        ("L1N8", 1, "bins is 1"),
        ("L1N8", 0, "bins is 0"),
        ("L1N8", 10**10, "bins is 10000000000: it must be at most 1048576"),
        ("L1N8", [1, 1], "edges that rise"),
        ("L1N8", [1], "edges that rise"),
        ("L1N8", [[1], [2]], "edges that rise"),
        ("L1N8", ["a", "b"], "edges that rise"),
        ("L1N8", [0, float("nan")], "edges that rise"),
    ],
)
def test_bad_names_and_bins_are_one_clear_error(name, bins, message):
    with pytest.raises(Error, match=message):
        circuits.histogram(MODEL, TEXTS, name, bins)


def test_a_histogram_needs_a_token():
    with pytest.raises(Error, match="there is no token"):
        circuits.histogram(MODEL, [[]], "L1N8")


def test_a_histogram_counts_the_edited_model():
    found = circuits.histogram(MODEL, TEXTS, "L1N17", edits={"blocks.1.mlp.hook_post": 0.5})
    assert (found.min, found.max, found.std) == (0.5, 0.5, 0)

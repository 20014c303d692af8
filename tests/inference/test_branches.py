"""Continuations that share a context, beside each of them in a text of its own."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import TINY, random_model

import gpt2_np
from gpt2_np.gpt2_np import Tap
from gpt2_np.inference import branches
from gpt2_np.inference.branches import Branches, branch_scores

MODEL = random_model()


def random_groups(sizes, seed=0):
    """Return groups of (length of the context, lengths of the continuations)."""
    rng = np.random.default_rng(seed)
    return [Branches(rng.integers(0, 61, n), [rng.integers(0, 61, m) for m in lengths])
            for n, lengths in sizes]


def check(groups, tap=None):
    found = {(group, branch): scores for group, branch, scores
             in branch_scores(MODEL, groups, Tap(tap))}
    names = [(i, j) for i, group in enumerate(groups) for j in range(len(group.continuations))]
    assert sorted(found) == names
    for i, (context, continuations) in enumerate(groups):
        rows = np.zeros((len(continuations), TINY.n_ctx + 1), int)  # what follows changes nothing
        for row, ids in zip(rows, continuations, strict=True):
            row[: len(context) + len(ids)] = [*context, *ids]
        logits = gpt2_np.forward(MODEL.params, TINY, rows[:, :-1]).astype(float)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for j, ids in enumerate(continuations):
            own = log_p[j, len(context) - 1 :][: len(ids)]
            np.testing.assert_allclose(found[i, j].log_probabilities,
                                       own[np.arange(len(ids)), ids], atol=1e-5)
            np.testing.assert_array_equal(found[i, j].is_greedy, own.argmax(axis=-1) == ids)


GROUP = st.integers(1, 23).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.integers(1, 25 - n), min_size=1, max_size=5)))


@settings(max_examples=30)
@given(st.lists(GROUP, min_size=1, max_size=5), st.integers(0, 99))
def test_branches_score_as_texts_of_their_own(sizes, seed):
    check(random_groups(sizes, seed))


def test_a_tap_sees_every_text_from_its_beginning():
    passes = []
    check(random_groups([(5, [1, 3]), (4, [2])]),
          lambda name, array: passes.append(array.shape) if name == "hook_embed" else None)
    assert passes == [(1, 5, 20), (1, 7, 20), (1, 5, 20)]


def passes_of(groups, monkeypatch):
    """Return the shape of the tokens of each pass."""
    shapes = []

    def transformer(params, config, tokens, *rest):
        shapes.append(tokens.shape)
        return gpt2_np.gpt2_np.transformer(params, config, tokens, *rest)

    monkeypatch.setattr(branches, "transformer", transformer)
    check(groups)
    return shapes


def test_contexts_are_packed_and_read_once(monkeypatch):
    groups = random_groups([(10, [3, 2, 3]), (9, [2, 2])])
    assert passes_of(groups, monkeypatch) == [(1, 19), (5, 2)]


def test_choices_of_one_token_need_no_second_pass(monkeypatch):
    assert passes_of(random_groups([(10, [1, 1, 1]), (9, [1, 1])]), monkeypatch) == [(1, 19)]


@pytest.mark.parametrize("most, n_passes", [(1 << 30, 2), (1, 6)])
def test_branches_are_computed_within_the_memory_that_is_allowed(monkeypatch, most, n_passes):
    monkeypatch.setattr(branches, "CACHE_BYTES", most)
    groups = random_groups([(6, [3, 2]), (7, [2, 2]), (8, [3, 3])])
    assert len(passes_of(groups, monkeypatch)) == n_passes


def test_weights_that_are_not_finite_are_rejected():
    params = {**MODEL.params, "wpe": np.full_like(MODEL.params["wpe"], np.nan)}
    broken = gpt2_np.Model(TINY, params)
    for lengths in [2, 2], [2]:  # one continuation is read as a text of its own
        with pytest.raises(gpt2_np.Error, match="not all finite"):
            list(branch_scores(broken, random_groups([(4, lengths)])))

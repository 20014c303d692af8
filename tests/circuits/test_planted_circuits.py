"""Every tool finds the heads that were planted, and the induction head's story holds in full."""
from pathlib import Path

import numpy as np
import pytest
from planted import CONFIG, INDUCTION, NEGATIVE, PREVIOUS, planted_model, subspaces

import gpt2_np
from gpt2_np import circuits

MODEL = planted_model()
TASK = circuits.repeated_tokens(MODEL, 9, 6)
METRIC = TASK.metric(MODEL)
NOISING = {"base": TASK.clean, "source": TASK.corrupted, "metric": METRIC}
EMBEDDED = Path(gpt2_np.__file__).parent / "models" / "shakespeare"


def strongest(values):
    return tuple(map(int, np.unravel_index(np.nanargmax(values), values.shape)))


def others(values, *planted):
    values = np.array(values, float)
    for index in planted:
        values[index] = np.nan
    return np.abs(values[~np.isnan(values)]).max()


def test_head_scores_find_each_planted_head():
    scores = circuits.heads(MODEL)
    assert strongest(scores.previous_token) == PREVIOUS
    assert strongest(scores.induction) == INDUCTION
    assert strongest(scores.duplicate_token) == NEGATIVE
    assert scores.previous_token[PREVIOUS] > 0.99
    assert scores.induction[INDUCTION] > 0.9
    assert scores.duplicate_token[NEGATIVE] == pytest.approx(0.5, abs=0.02)  # the rest on itself
    assert others(scores.induction, INDUCTION) < 0.2
    assert scores.entropy[PREVIOUS] < 0.05 < scores.entropy[0, 0]
    assert scores.distance[PREVIOUS] == pytest.approx(1, abs=0.01)


def test_weights_show_who_copies_who_suppresses_and_who_composes():
    copying = circuits.copying_scores(MODEL)
    assert copying[INDUCTION] > 0.99
    assert copying[NEGATIVE] < -0.99
    assert others(copying, INDUCTION, NEGATIVE) < 0.5
    by_key, planted = circuits.composition(MODEL, "K"), (*PREVIOUS, *INDUCTION)
    assert by_key.top(1) == [(("L0H1", "L1H2"), by_key.values[planted])]
    assert others(by_key.values, planted) < 0.6 * by_key.values[planted]
    for kind in "QV":
        assert circuits.composition(MODEL, kind).values.max() < 0.05


def test_full_circuits_hold_the_planted_entries():
    ov = circuits.full_ov(MODEL, INDUCTION).full()
    assert (ov.argmax(axis=1) == np.arange(CONFIG.n_vocab)).all()
    assert (circuits.full_ov(MODEL, NEGATIVE).full().argmin(axis=1) == np.arange(20)).all()
    token, before, _ = subspaces()
    lookup = (token @ circuits.qk(MODEL, INDUCTION) @ before.T).full()
    assert (lookup.argmax(axis=1) == np.arange(CONFIG.n_vocab)).all()
    singular = circuits.singular_tokens(MODEL, INDUCTION, n=19, top=1)
    assert all(found["reads"].ids[0] == found["writes"].ids[0] for found in singular)


def test_attribution_and_the_lens_name_the_induction_head():
    result = circuits.attribution(MODEL, TASK.clean, TASK.answers, TASK.wrong)
    by_head = result.heads().mean(axis=-1)
    assert strongest(by_head) == INDUCTION
    assert by_head[INDUCTION] > 0.95 * result.total.mean()
    itself = circuits.attribution(MODEL, TASK.clean, TASK.clean.tokens[:, -1]).heads()
    assert strongest(-itself.mean(axis=-1)) == NEGATIVE
    lens = circuits.lens(MODEL, TASK.clean, TASK.answers, position=-1)
    assert lens.points[3] == "1_mid"
    assert (lens.probability[2] < 0.1).all() and (lens.probability[3] > 0.5).all()
    assert (lens.rank[3:] == 0).all()


def test_patching_finds_both_heads_and_through_what_they_work():
    share = circuits.patching(MODEL, "z", **NOISING).normalized
    assert share[INDUCTION] == pytest.approx(1, abs=0.01)
    assert share[PREVIOUS] > 0.7
    assert others(share, INDUCTION, PREVIOUS) < 0.02
    for what, planted in (("pattern", 0.7), ("k", 0.7), ("v", 1.5)):
        share = circuits.patching(MODEL, what, **NOISING, layers=[1]).normalized[1]
        assert share[INDUCTION[1]] > planted
        assert others(share, INDUCTION[1]) < 0.02
    queries = circuits.patching(MODEL, "q", **NOISING, layers=[1])
    assert np.abs(queries.normalized[1]).max() < 0.02  # the last token is the same


def test_path_patching_tells_keys_from_queries_and_values():
    effect = {kind: circuits.path_patching(
        MODEL, **NOISING, receivers=[(*INDUCTION, kind)]).effect for kind in "qkv"}
    assert strongest(-effect["k"]) == PREVIOUS
    assert effect["k"][PREVIOUS] < -8
    assert others(effect["k"], PREVIOUS) < 0.1
    assert np.abs([effect["q"], effect["v"]]).max() < 0.2
    direct = circuits.path_patching(MODEL, **NOISING).effect
    assert strongest(-direct) == INDUCTION
    assert others(direct, INDUCTION) < 0.1


@pytest.mark.parametrize("mode", ["resample", "mean"])
def test_the_search_finds_exactly_the_planted_heads(mode):
    found = circuits.find(MODEL, **NOISING, keep=0.9, mode=mode)
    assert found.kept == ["L0H1", "L1H2"]
    assert found.share.value == pytest.approx(1, abs=0.03)
    assert found.share.low > 0.9
    assert found.incompleteness.value < 0.01
    assert all(lost.low > 0.2 for lost in found.minimality.values())


def test_the_search_finds_exactly_the_planted_edges():
    """The last token is the same in both prompts, so what feeds the query carries no difference."""
    found = circuits.find_edges(MODEL, **NOISING, keep=0.9)
    assert set(found.kept) == {("embed", "L0H1.v"), ("L0H1", "L1H2.k"), ("embed", "L1H2.v"),
                                ("L1H2", "logits")}
    assert found.share.value == pytest.approx(1, abs=0.05)
    assert found.incompleteness.value < 0.05
    assert found.minimality.keys() == set(found.kept)
    assert all(lost.value > 0.3 for lost in found.minimality.values())


def tell_the_story(model, task, threshold):
    """Check each sentence that is said about induction heads, and return the heads.

    They attend from a token to the token that followed it before. They raise the logit of the
    token that they attend to. They find it through keys that a previous-token head wrote. Without
    them repeats are not predicted.
    """
    scores = circuits.heads(model)
    found = [tuple(map(int, i)) for i in np.argwhere(scores.induction > threshold)]
    assert found, "no head attends to what followed the current token"

    copying = circuits.copying_scores(model)
    assert all(copying[head] > 0.3 for head in found)

    previous = strongest(scores.previous_token)
    assert scores.previous_token[previous] > threshold
    by_key = circuits.composition(model, "K").values
    assert all(strongest(by_key[:, :, layer, head]) == previous for layer, head in found)

    n_half = task.clean.tokens.shape[1] // 2
    metric = circuits.repeat_loss(task.clean.tokens, n_half - 1)

    def loss(heads):
        edits = circuits.ablated(model, heads)
        return metric(circuits.run(model, task.clean, edits=edits).logits).mean()

    chance = np.log(model.config.n_vocab)
    rest = [(layer, head) for layer in range(model.config.n_layer)
            for head in range(model.config.n_head)
            if (layer, head) not in (*found, previous) and (layer or model is MODEL)]
    rng = np.random.default_rng(0)
    harmless = [rest[i] for i in rng.permutation(len(rest))[: len(found)]]
    whole = loss([])
    assert whole < 0.2 * chance
    assert loss(found) > whole + 0.3 * chance
    assert loss([previous]) > whole + 0.3 * chance
    assert loss(harmless) < whole + 0.1 * chance
    return found


def test_the_induction_head_end_to_end_on_planted_weights():
    assert tell_the_story(MODEL, TASK, 0.5) == [INDUCTION]


def test_the_induction_heads_of_the_embedded_model_end_to_end():
    model = gpt2_np.load(EMBEDDED, "cpu")
    task = circuits.repeated_tokens(model, 20, 8)
    for layer, head in tell_the_story(model, task, 0.5):
        assert layer > 0, f"L{layer}H{head} cannot build on an earlier head"

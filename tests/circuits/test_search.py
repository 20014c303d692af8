"""Attribution leads the search to a circuit that exact sweeps alone find, or one as small.

The models here are small, so that the tests lower FEW, the number of nodes that are swept exactly.
A metric that is a plain function has no gradient, so that all of its ranking is exact.
"""
import numpy as np
import pytest
from planted import planted_model
from random_model import random_model

import gpt2_np
from gpt2_np import Config, circuits
from gpt2_np.circuits import search, sweeps

SHAKESPEARE = gpt2_np.load("shakespeare", "cpu")


def pair(task, model):
    return {"base": task.clean, "source": task.corrupted, "metric": task.metric(model)}


def without_gradient(pair):
    metric = pair["metric"]
    return pair | {"metric": lambda logits: metric(logits)}


@pytest.fixture
def swept(monkeypatch):
    """Collect the nodes that are looked at exactly."""
    seen, sweep = [], sweeps.BaseRun.sweep

    def counted(self, *args):
        seen.extend(args[-1])
        return sweep(self, *args)

    monkeypatch.setattr(sweeps.BaseRun, "sweep", counted)
    return seen


@pytest.mark.parametrize("mode", ["resample", "mean"])
def test_attribution_leads_to_the_planted_circuit(mode, swept, monkeypatch):
    monkeypatch.setattr(search, "FEW", 2)
    model = planted_model()
    found = circuits.find(model, **pair(circuits.repeated_tokens(model, 6, 4), model), mode=mode)
    assert found.kept == ["L0H1", "L1H2"]
    assert len(set(swept)) == 3  # and one that goes then


@pytest.mark.parametrize(("mode", "keep"), [("resample", 0.5), ("mean", 0.7)])
def test_attribution_leads_to_the_circuit_that_exact_sweeps_find(mode, keep, swept, monkeypatch):
    """Here the gradient at base alone misses most of what L0H0 does: attention is saturated."""
    given = pair(circuits.repeated_tokens(SHAKESPEARE, 8, 4), SHAKESPEARE)
    exact = circuits.find(SHAKESPEARE, keep, **given, mode=mode, subsets=1)
    assert len(set(swept)) == 20  # all nodes: there are few
    swept.clear()
    monkeypatch.setattr(search, "FEW", 16)
    found = circuits.find(SHAKESPEARE, keep, **given, mode=mode, subsets=1)
    assert len(set(swept)) <= 16
    assert found.kept == exact.kept
    assert found.share == exact.share
    assert found.minimality.keys() == exact.minimality.keys()


@pytest.mark.filterwarnings("ignore:the metric is")  # chance decides which prompts are better
@pytest.mark.parametrize("seed", [1, 3])
def test_many_nodes_are_never_swept_and_the_circuit_is_no_larger(seed, swept):
    model = random_model(Config(n_vocab=61, n_ctx=24, n_embd=20, n_head=5, n_layer=6), seed)
    given = pair(circuits.repeated_tokens(model, 4, 4, seed=seed, bos=False), model)
    found = circuits.find(model, 0.8, **given, subsets=1)
    assert len(set(swept)) <= search.FEW
    swept.clear()
    exact = circuits.find(model, 0.8, **without_gradient(given), subsets=1)
    assert len(set(swept)) == 36
    assert len(found.kept) <= len(exact.kept)
    assert abs(1 - found.share.value) <= 0.2


def test_weak_nodes_go_in_an_order_in_which_their_effects_cancel():
    change = {"a": 0.1, "b": 0.11, "c": -0.12, "d": 0.2, "e": -0.3}
    assert search.balanced("abcde", change, 1.0) == ["c", "a", "b", "e", "d"]
    assert search.balanced("abd", change, 1.0) == ["a", "b", "d"]


def test_edits_that_gradients_cannot_go_through_leave_the_search_exact(swept):
    model = planted_model()
    given = pair(circuits.repeated_tokens(model, 6, 4), model)
    for edits in ({"z": lambda name, z: None}, {"blocks.0.ln1.hook_scale": circuits.add(0.0)}):
        swept.clear()
        assert circuits.find(model, **given, edits=edits).kept == ["L0H1", "L1H2"]
        assert len(set(swept)) == 10  # all nodes


@pytest.mark.parametrize("few", [8, 20])
def test_no_node_can_go_and_what_is_lost_is_that_of_whole_passes(few, monkeypatch):
    monkeypatch.setattr(search, "FEW", few)
    model, keep = SHAKESPEARE, 0.7
    given = pair(circuits.name_repetition(model, 4), model)
    found = circuits.find(model, keep, **given, subsets=1)
    nodes = [f"L{layer}H{head}" for layer in range(4) for head in range(4)]
    nodes += [f"MLP{layer}" for layer in range(4)]

    def share(kept):
        edits = circuits.ablated(model, [node for node in nodes if node not in kept], "resample",
                                 source=given["source"])
        logits = circuits.run(model, given["base"], edits=edits, last_only=True).logits
        values = given["metric"](logits)
        return (values - found.none).mean() / (found.base - found.none).mean()

    assert share(found.kept) == pytest.approx(found.share.value, abs=1e-4)
    assert abs(1 - share(found.kept)) <= 1 - keep
    for node in found.kept:
        left = share([one for one in found.kept if one != node])
        assert abs(1 - left) > 1 - keep
        assert found.minimality[node].value == pytest.approx(share(found.kept) - left, abs=1e-4)
        assert np.isfinite(found.minimality[node]).all()


@pytest.mark.parametrize("option", [{"subsets": 0}, {"seed": -1}])
def test_a_bad_option_is_told_before_the_search(option, swept):
    model = planted_model()
    with pytest.raises(gpt2_np.Error, match=r"subsets is 0|seed is -1"):
        circuits.find(model, **pair(circuits.repeated_tokens(model, 6, 4), model), **option)
    assert not swept

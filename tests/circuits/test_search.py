"""The search finds by attribution the circuit that exact sweeps alone find, and checks it exactly.

A metric that is a plain function has no gradient, so that all of its ranking is exact.
"""
import numpy as np
import pytest
from planted import planted_model
from random_model import random_model

import gpt2_np
from gpt2_np import circuits
from gpt2_np.circuits import sweeps

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
@pytest.mark.parametrize(("task", "keep"), [
    (circuits.repeated_tokens(SHAKESPEARE, 8, 4), 0.5),
    pytest.param(circuits.name_repetition(SHAKESPEARE, 4), 0.8, marks=pytest.mark.slow),
])
def test_attribution_leads_to_the_circuit_that_exact_sweeps_find(task, keep, mode):
    """Here the gradient at base alone misses most of what L0H0 does: attention is saturated."""
    given = pair(task, SHAKESPEARE)
    found = circuits.find(SHAKESPEARE, keep, **given, mode=mode, subsets=1)
    exact = circuits.find(SHAKESPEARE, keep, **without_gradient(given), mode=mode, subsets=1)
    assert found.kept == exact.kept
    assert found.share == exact.share
    assert found.minimality.keys() == exact.minimality.keys()


@pytest.mark.filterwarnings("ignore:the metric is")  # chance decides which prompts are better
@pytest.mark.parametrize("seed", range(2))
def test_on_random_weights_it_is_no_larger_than_that_of_exact_sweeps(seed):
    model = random_model(seed=seed)
    given = pair(circuits.repeated_tokens(model, 4, 4, seed=seed, bos=False), model)
    found = circuits.find(model, 0.8, **given, subsets=1)
    exact = circuits.find(model, 0.8, **without_gradient(given), subsets=1)
    assert len(found.kept) <= len(exact.kept)
    assert abs(1 - found.share.value) <= 0.2


def test_nodes_that_attribution_is_sure_of_are_never_swept(swept):
    given = pair(circuits.name_repetition(SHAKESPEARE, 4), SHAKESPEARE)
    circuits.find(SHAKESPEARE, 0.5, **given, subsets=1)
    by_attribution = swept.copy()
    swept.clear()
    circuits.find(SHAKESPEARE, 0.5, **without_gradient(given), subsets=1)
    assert len(by_attribution) < len(swept)
    assert set(by_attribution) < set(swept)


def test_edits_that_gradients_cannot_go_through_leave_the_search_exact(swept):
    model = planted_model()
    given = pair(circuits.repeated_tokens(model, 6, 4), model)
    for edits in ({"z": lambda name, z: None}, {"blocks.0.ln1.hook_scale": circuits.add(0.0)}):
        swept.clear()
        assert circuits.find(model, **given, edits=edits).kept == ["L0H1", "L1H2"]
        assert len(set(swept)) == 10  # all nodes


def test_no_node_of_the_circuit_can_go_and_what_is_lost_is_that_of_whole_passes():
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

"""Gradients are the slopes of the metric."""
import numpy as np
import pytest
from prompt_pair import ANSWERS, CLEAN, METRIC, MODEL, TEXT, close
from random_model import TINY, random_params

from gpt2_np import Error, Model, circuits
from gpt2_np.circuits.backward import GRADIENTS


@pytest.mark.parametrize("metric", ["difference", "log-probability"])
@pytest.mark.parametrize("short", GRADIENTS)
def test_gradients_are_the_slopes_of_the_metric(short, metric):
    model = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))
    metric = METRIC if metric == "difference" else circuits.log_probability(model, ANSWERS)
    found = circuits.gradients(model, CLEAN, metric)
    names = [name for name in found if name.endswith(f"hook_{short}")]
    assert len(names) == (1 if "embed" in short else 3)
    for layer, name in enumerate(names):
        step = 1e-5 * np.random.default_rng(layer).standard_normal(found[name].shape)
        up, down = (metric(circuits.run(model, CLEAN, edits={
            name: lambda _, x, s=sign, d=step: x + s * d}).logits) for sign in (1, -1))
        slope = (found[name] * step).sum(axis=tuple(range(1, step.ndim)))
        np.testing.assert_allclose((up - down) / 2, slope, rtol=1e-5, atol=1e-12)


def test_gradients_of_a_log_probability_leave_the_padding_out(speaking, padded):
    def gradient(model):
        metric = circuits.log_probability(model, " the")
        return circuits.gradients(model, TEXT[:30], metric)["blocks.0.hook_resid_pre"]

    close(gradient(padded), gradient(speaking))


@pytest.mark.parametrize("names", ["z", ["blocks.2.hook_resid_post", "q"], "hook_embed",
                                   "blocks.1.*", ("z", 1), [("z", 1), "hook_embed"]])
def test_gradients_of_some_names_are_those_of_all(names):
    every, some = circuits.gradients(MODEL, CLEAN, METRIC), circuits.gradients(
        MODEL, CLEAN, METRIC, names=names)
    asked = circuits.run(MODEL, CLEAN, names).activations.keys() & every.keys()
    assert some.keys() == asked
    assert all(np.array_equal(some[name], every[name]) for name in asked)
    seen = circuits.run(MODEL, CLEAN, "*")
    assert all(every[name].shape == seen[name].shape for name in every)


def test_a_name_without_a_gradient_is_a_clear_error():
    with pytest.raises(Error, match="no gradient of 'result': choose of embed, pos_embed, resid"):
        circuits.gradients(MODEL, CLEAN, METRIC, names="result")
    with pytest.raises(Error, match=r"no gradient of \[\]"):
        circuits.gradients(MODEL, CLEAN, METRIC, names=[])
    with pytest.raises(Error, match="'resid_pots'; did you mean resid_post"):
        circuits.gradients(MODEL, CLEAN, METRIC, names="resid_pots")


def test_gradients_are_named_as_the_activations_of_a_run():
    found, seen = circuits.gradients(MODEL, CLEAN, METRIC), circuits.run(MODEL, CLEAN, "*")
    assert list(found) == [name for name in seen if name in found]
    assert found["z", -1] is found["blocks.2.attn.hook_z"]
    assert found.stack("resid_pre").shape == seen.stack("resid_pre").shape
    assert "result" not in found

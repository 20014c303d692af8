"""Gradients are the slopes of the metric."""
import numpy as np
import pytest
from prompt_pair import ANSWERS, CLEAN, METRIC, TEXT, close
from random_model import TINY, random_params

from gpt2_np import Model, circuits

GRADIENTS = ["resid_pre", "resid_mid", "q", "k", "v", "z", "attn_out", "mlp_out"]


@pytest.mark.parametrize("metric", ["difference", "log-probability"])
@pytest.mark.parametrize("short", GRADIENTS)
def test_gradients_are_the_slopes_of_the_metric(short, metric):
    model = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))
    metric = METRIC if metric == "difference" else circuits.log_probability(model, ANSWERS)
    found = circuits.gradients(model, CLEAN, metric)
    for layer in range(3):
        name = circuits.activation_name(short, layer)
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

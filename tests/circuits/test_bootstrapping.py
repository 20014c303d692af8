"""Bootstrap intervals cover as often as they say; one prompt has none."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, MODEL

from gpt2_np import Error, circuits


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(100):
        sample = rng.standard_normal(40)
        found = circuits.bootstrap(lambda i, x=sample: x[i].mean(axis=-1), 40, seed=trial)
        hits += found.low <= 0 <= found.high
    assert 86 <= hits <= 100


def test_what_has_no_interval_says_so_instead_of_one_of_no_width():
    found = circuits.bootstrap(lambda i: i.mean(axis=-1) + 3, 1)
    assert found.value == 3 and np.isnan([found.low, found.high]).all()
    assert str(found) == "3 [no interval]"
    effect = np.array([0.0, 1.0])  # 0 in every fourth resample
    found = circuits.bootstrap(lambda i: 1 / effect[i].sum(axis=-1), 2)
    assert found.value == 1 and np.isnan(found.low)
    one = circuits.find(MODEL, base=CLEAN[:1], source=CORRUPTED[:1],
                        metric=circuits.logit_difference(MODEL, 6, 3))
    assert np.isnan([one.share.low, one.incompleteness.high]).all()
    assert all(np.isnan(lost.low) for lost in one.minimality.values())
    assert np.isnan(circuits.measure(MODEL, [CLEAN[0]]).loss.low)


def test_blocks_of_resamples_are_those_drawn_one_after_another():
    x, rng = np.random.default_rng(1).normal(size=3000), np.random.default_rng(0)
    found = circuits.bootstrap(lambda i: x[i].mean(axis=-1), 3000, resamples=20)
    means = [x[rng.integers(0, 3000, 3000)].mean() for _ in range(20)]
    assert found == pytest.approx((x.mean(), *np.quantile(means, [0.025, 0.975])), rel=1e-12)


def test_a_statistic_that_adds_up_resamples_is_told_to_keep_them_apart():
    for statistic in np.mean, lambda i: i.mean(axis=0):
        with pytest.raises(Error, match="reduce over the last axis"):
            circuits.bootstrap(statistic, 5)


def test_bootstrap_is_repeatable():
    first, second = (circuits.bootstrap(lambda i: i.mean(axis=-1), 20, seed=4) for _ in range(2))
    assert first == second
    assert str(first).startswith("9.5 [")

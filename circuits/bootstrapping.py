"""Bootstrap intervals: the range of a figure over other choices of prompts.

A circuit found on eight prompts is a statement about these eight. Recomputing the figure on
prompts drawn from them with replacement shows how far it can be trusted, without any assumption
about its distribution. (Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".)
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .inputs import check_count


class Estimate(NamedTuple):
    """A value and its 95% interval, from `low` to `high`; NaN if there is no interval."""

    value: float
    low: float
    high: float

    def __str__(self):
        if math.isnan(self.low):
            return f"{self.value:.4g} [no interval]"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    statistic: Callable[[np.ndarray], Any],
    n: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return `statistic(indices)` of all n items, with its percentile interval over resamples.

    There is no interval (NaN) for one item, whose resamples are all the same, or if a resample
    has no value, such as a share of an effect that is 0.
    """
    for name, count in (("n", n), ("resamples", resamples)):
        check_count(name, count)
    rng, low, high = np.random.default_rng(seed), math.nan, math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(np.arange(n)))
        values = [float(statistic(rng.integers(0, n, n))) for _ in range(resamples if n > 1 else 0)]
    if values and np.isfinite(values).all():
        low, high = map(float, np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))
    return Estimate(value, low, high)

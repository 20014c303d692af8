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

from ..gpt2_np import Error, generator
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
    """Return the statistic of all n items, with its percentile interval over resamples.

    `statistic` takes indices [resample, n] and returns a value for each resample: the mean of x is
    `lambda i: x[i].mean(axis=-1)`. There is no interval (NaN) for one item, whose resamples are
    all the same, or if a resample has no value, such as a share of an effect that is 0.
    """
    for name, count in (("n", n), ("resamples", resamples)):
        check_count(name, count)
    if not 0 < level <= 1:
        raise Error(f"level is {level}: it must be a share above 0, such as 0.95")
    rng, values, low, high = generator(seed), [], math.nan, math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.asarray(statistic(np.arange(n)[None]))
        if whole.shape != (1,):
            raise Error(f"the statistic of indices [1, {n}] has shape {whole.shape}, not (1,): "
                        "reduce over the last axis, as in x[i].mean(axis=-1)")
        while n > 1 and len(values) < resamples:
            rows = min(resamples - len(values), 2**14 // n + 1)  # bounds the memory of statistics
            values.extend(statistic(rng.integers(0, n, (rows, n))))
    if values and np.isfinite(values).all():
        low, high = map(float, np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))
    return Estimate(float(whole[0]), low, high)

"""Attribution patching: estimate every patch of a sweep from gradients.

To first order a patch changes the metric by the change of the activation times the gradient. One
pass back gives all of these products at once, so 124M's 36,864 neurons cost as much as its 144
heads. The estimate is good if the metric bends little on the way from base to source. It is poor
for large changes, above all of the early residual stream and of saturated attention. (Nanda 2023,
"Attribution Patching: Activation Patching At Industrial Scale"; Syed et al. 2023, "Attribution
Patching Outperforms Automated Circuit Discovery".)

Integrated gradients average the gradient over the straight line between the two activations, and
follow the bend. (Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks".)
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..gpt2_np import Error, Model
from .activations import run
from .backward import gradients
from .inputs import PromptsLike, check_count
from .interventions import EditsLike
from .metrics import Metric, is_better_low, measured, reads_last
from .names import BY_QUERY, activation_name
from .resumed_runs import empty_cells, sweep_axes, widened
from .short_reprs import MOST_LINES, Result, strongest, table
from .sweeps import Sweep, by_groups, patched_kind, prompt_groups


def attribution_patching(
    model: Model,
    what: str = "z",
    *,
    base: PromptsLike,
    source: PromptsLike,
    metric: Metric,
    by_position: bool | None = None,
    layers: int | Sequence[int] | None = None,
    steps: int = 1,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Sweep:
    """A sweep, estimated: the metric if one activation of `base` were that of `source`.

    The result has the form of `patching`'s, and arguments mean the same. The metric must know its
    gradient. With `steps` 1 it is the gradient at `base`, and costs one pass back. More steps
    average it over the midpoints of as many stretches of the way to `source`, a layer's whole
    activation at a time: a pass forward and back for each step and layer. The effects of a layer's
    cells then add up to that of patching the whole layer.
    """
    check_count("steps", steps)
    what, layers = patched_kind(what, layers, model.config)
    names, last_only = [activation_name(what, layer) for layer in layers], reads_last(metric)
    axes = sweep_axes(what, by_position)

    def of_one_length(base, source, metric):
        here, there = (run(model, given, names, edits=edits, last_only=last_only)
                       for given in (base, source))
        slopes = gradients(model, base, metric, names=names, edits=edits) if steps == 1 else None
        of_base, of_source = (measured(metric, seen.logits, len(base.tokens))
                              for seen in (here, there))
        per_prompt = empty_cells(model.config, axes, base.tokens.shape[1], len(of_base))
        for layer, name in zip(layers, names, strict=True):
            old = widened(here[name])
            change = widened(there[name]) - old
            slope = slopes[name] if slopes is not None else mean_gradient(
                model, base, metric, name, old, change, steps, edits)
            per_prompt[layer] = of_base + cell_sums(change * slope, what, axes)
        return Sweep(what, axes, per_prompt, of_base, of_source, base.tokens, base.bos,
                     estimated=True, lower_is_better=is_better_low(metric),
                     tokenizer=model.tokenizer)

    return by_groups(of_one_length, prompt_groups(model, base, source, bos=bos), metric, axes)


def mean_gradient(model, base, metric, name, old, change, steps, edits):
    """Return the mean gradient of an activation over the way from `old` to `old + change`."""
    total = 0.0
    for step in range(steps):
        on_the_way = {name: old + (step + 0.5) / steps * change}
        total = total + gradients(model, base, metric, names=name, edits=[edits, on_the_way])[name]
    return total / steps


def cell_sums(products, what, axes):
    """Return the sums of a layer's products over what a cell holds, [*axes but the layer, b]."""
    if what in BY_QUERY:  # [b, h, q, k] -> [b, q, h]
        products = products.sum(axis=-1).swapaxes(1, 2)
    elif what != "post":  # [b, q, (h), d | e] -> [b, q, (h)]
        products = products.sum(axis=-1)
    cells = products.swapaxes(0, 1)  # [q, b, (unit)]
    if "position" not in axes:
        cells = cells.sum(axis=0, keepdims=True)
    if cells.ndim == 3:
        cells = cells.transpose(2, 0, 1)  # [unit, q, b]
    return cells if "position" in axes else cells.squeeze(axis=-2)


# --- beside the exact sweep ------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Estimated and exact effects [cell] of the cells that both sweeps have, by name.

    `rank_correlation` is Spearman's, from -1 to 1: if the estimate puts the cells in the right
    order. NaN if all cells of either are equal. `base` and `source` [b] are the metric of the two
    runs, and `kind` is that of the sweeps.
    """

    what: str
    cells: list[str]
    exact: np.ndarray
    estimate: np.ndarray
    rank_correlation: float
    base: np.ndarray
    source: np.ndarray
    kind: str

    @property
    def miss(self) -> np.ndarray:
        """The estimate minus the exact effect, [cell]."""
        return self.estimate - self.exact

    @property
    def worst(self) -> tuple[str, float]:
        """The cell that the estimate misses most, and its miss."""
        at = int(np.abs(self.miss).argmax())
        return self.cells[at], float(self.miss[at])

    def __repr__(self) -> str:
        return self.table(MOST_LINES)

    def table(self, top: int = 10) -> str:
        """Return a table of the cells with the largest exact effects, under a summary."""
        check_count("top", top)
        cell, miss = self.worst
        rows = [["cell", "exact", "estimate", "miss"]]
        rows += [[self.cells[i], *(f"{x[i]:+.4f}" for x in (self.exact, self.estimate, self.miss))]
                 for (i,) in strongest(self.exact, top)]
        return table(f"Comparison of {len(self.cells)} cells of {self.what} ({self.kind}, metric "
                     f"{self.base.mean():.4g}, source {self.source.mean():.4g}):\nrank correlation "
                     f"{self.rank_correlation:.3f}, worst miss {miss:+.4g} at {cell}", rows)


def compare(estimate: Sweep, exact: Sweep) -> Comparison:
    """Return the effects of two sweeps of one activation side by side: an estimate and the truth.

    `estimate` is `attribution_patching`'s, `exact` that of `patching` on the same prompts. Raises
    Error if the sweeps have other cells, prompts or metrics.
    """
    if exact.estimated or not estimate.estimated:
        raise Error("the sweeps are not an estimate and the truth: give attribution_patching's "
                    "first, then patching's")
    for name, mine, other in (("what", estimate.what, exact.what),
                              ("axes", estimate.axes, exact.axes),
                              ("shape", estimate.per_prompt.shape, exact.per_prompt.shape)):
        if mine != other:
            raise Error(f"the sweeps cannot be compared: {name} is {mine} in the estimate, {other} "
                        "in the exact one: sweep the same activation of the same prompts")
    if not all(map(np.array_equal, estimate.tokens, exact.tokens)):
        raise Error("the sweeps cannot be compared: their prompts differ")
    if exact.source is None or estimate.source is None:
        raise Error("the sweeps cannot be compared: an ablation has no source, give patching's")
    for name, mine, other in (("base", estimate.base, exact.base),
                              ("source", estimate.source, exact.source)):
        if not np.allclose(mine, other, rtol=1e-3, atol=1e-4):
            raise Error(f"the sweeps cannot be compared: the metric of {name} is "
                        f"{mine.mean():.4g} in the estimate, {other.mean():.4g} in the exact one: "
                        "sweep with the same metric, source and edits")
    both = np.isfinite(estimate.values) & np.isfinite(exact.values)
    if not both.any():
        raise Error("the sweeps have no cell in common: look at their layers")
    cells = [exact.cell(index) for index in np.argwhere(both).tolist()]
    values = exact.effect[both], estimate.effect[both]
    return Comparison(exact.what, cells, *values, rank_correlation(*values), exact.base,
                      exact.source, exact.kind)


def rank_correlation(a, b):
    """Return Spearman's rank correlation of two arrays [n]; equal values share their mean rank."""
    a, b = (mean_ranks(x) - (len(x) - 1) / 2 for x in (a, b))
    spread = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / spread) if spread > 0 else float("nan")


def mean_ranks(x):
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count + 1) / 2)[place]

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
from .inputs import PromptsLike, check_count, one_each
from .interventions import EditsLike
from .metrics import Metric, checked_values, reads_last
from .names import BY_QUERY, activation_name
from .sweeps import Sweep, by_groups, patched_kind, prompt_groups, sweep_axes, widened


def attribution_patching(
    model: Model,
    what: str = "z",
    *,
    base: PromptsLike,
    source: PromptsLike,
    metric: Metric,
    by_position: bool | None = None,
    layers: Sequence[int] | None = None,
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

    def of_one_length(base, source, metric):
        here, there = (run(model, given, names, edits=edits, last_only=last_only)
                       for given in (base, source))
        slopes = gradients(model, base, metric, names=names, edits=edits) if steps == 1 else None
        axes, sizes = sweep_axes(model.config, what, by_position, base.tokens.shape[1])
        measured = checked_values(metric(here.logits), len(base.tokens))
        per_prompt = np.full((*sizes, len(measured)), np.nan)
        for layer, name in zip(layers, names, strict=True):
            old = widened(here[name])
            change = widened(there[name]) - old
            slope = slopes[name] if slopes is not None else mean_gradient(
                model, base, metric, name, old, change, steps, edits)
            per_prompt[layer] = measured + cell_sums(change * slope, what, axes)
        arrived = checked_values(metric(one_each(there.logits, len(measured))), len(measured))
        return Sweep(what, axes, per_prompt, measured, arrived, base.tokens, base.bos,
                     estimated=True, tokenizer=model.tokenizer)

    return by_groups(of_one_length, prompt_groups(model, base, source, bos=bos), metric)


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


@dataclass(frozen=True, eq=False)
class Comparison:
    """Estimated and exact effects [cell] of the cells that both sweeps have, by name.

    `rank_correlation` is Spearman's, from -1 to 1: if the estimate puts the cells in the right
    order. NaN if all cells of either are equal.
    """

    what: str
    cells: list[str]
    exact: np.ndarray
    estimate: np.ndarray
    rank_correlation: float

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
        cell, miss = self.worst
        return (f"<Comparison of {len(self.cells)} cells of {self.what}: rank correlation "
                f"{self.rank_correlation:.3f}, worst miss {miss:+.4g} at {cell}>")

    def __str__(self) -> str:
        return self.table()

    def table(self, top: int = 10) -> str:
        """Return a table of the cells with the largest exact effects, under a summary."""
        order = np.argsort(-np.abs(self.exact), kind="stable")[:top]
        width = max(len("cell"), *(len(self.cells[i]) for i in order))
        lines = [f"{'cell':{width}s} {'exact':>10s} {'estimate':>10s} {'miss':>10s}"]
        lines += [f"{self.cells[i]:{width}s} {self.exact[i]:10.4f} {self.estimate[i]:10.4f} "
                  f"{self.miss[i]:+10.4f}" for i in order]
        return "\n".join([repr(self)[1:-1], *lines])


def compare(estimate: Sweep, exact: Sweep) -> Comparison:
    """Return the effects of two sweeps of one activation side by side: an estimate and the truth.

    `estimate` is `attribution_patching`'s, `exact` that of `patching` on the same prompts. Raises
    Error if the sweeps have other cells or prompts.
    """
    if exact.estimated and not estimate.estimated:
        raise Error("the sweeps are the wrong way round: give the estimate first, then patching's")
    for name, mine, other in (("what", estimate.what, exact.what),
                              ("axes", estimate.axes, exact.axes),
                              ("shape", estimate.per_prompt.shape, exact.per_prompt.shape)):
        if mine != other:
            raise Error(f"the sweeps cannot be compared: {name} is {mine} in the estimate, {other} "
                        "in the exact one: sweep the same activation of the same prompts")
    if not all(map(np.array_equal, estimate.tokens, exact.tokens)):
        raise Error("the sweeps cannot be compared: their prompts differ")
    both = np.isfinite(estimate.values) & np.isfinite(exact.values)
    if not both.any():
        raise Error("the sweeps have no cell in common: look at their layers")
    cells = [exact.cell(index) for index in np.argwhere(both).tolist()]
    values = exact.effect[both], estimate.effect[both]
    return Comparison(exact.what, cells, *values, rank_correlation(*values))


def rank_correlation(a, b):
    """Return Spearman's rank correlation of two arrays [n]; equal values share their mean rank."""
    a, b = (mean_ranks(x) - (len(x) - 1) / 2 for x in (a, b))
    spread = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / spread) if spread > 0 else float("nan")


def mean_ranks(x):
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count + 1) / 2)[place]

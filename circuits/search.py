"""Circuit search: the smallest set of heads and MLPs that still does the task.

Sweeps rank parts one by one, but parts back each other up. A circuit is tested as a whole: all
other parts get another prompt's activations, and the share of the effect that is left is its
faithfulness. (Wang et al. 2022, section 4, on faithfulness, completeness and minimality; Conmy et
al. 2023, "Towards Automated Circuit Discovery", on pruning.)
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bpe import shown
from ..gpt2_np import Error, Model, generator
from ..inference.options import warn
from .activations import run
from .backward import gradients
from .bootstrapping import Estimate, bootstrap
from .drawings import circuit_picture
from .edits import replacements, replacing_edits, units_by_name
from .inputs import (
    PromptsLike,
    PromptWarning,
    check_count,
    check_same_length,
    prompts,
)
from .interventions import Edits, EditsLike
from .metrics import Differentiable, Metric, is_better_low, kind_of_patching, measured, reads_last
from .names import activation_name, node_names, parse_node
from .resumed_runs import BaseRun
from .short_reprs import MOST_LINES, Result, table

# Attribution ranks more nodes than this. So few are quick to sweep.
FEW = 20


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(Result):
    """Parts that suffice: `kept` of the `n_all` parts of the model.

    Parts are heads and MLPs by name ("L9H6", "MLP3"), layer by layer, or edges (sender, receiver),
    the strongest first and with their attribution in `scores`.

    `share` (faithfulness) is the share of the whole effect that is left if every other part is
    replaced. `incompleteness` is the mean |F(C \\ K) - F(M \\ K)| over random subsets K of the
    parts, as a share of the effect; 0 is best. `minimality` is the share that is lost without each
    part, above 0 if it helps. Intervals are over prompts.

    `base` [b] is the metric with all parts, `none` [b] that with every part replaced, and `source`
    [b] that of the prompts that replace them (None for means).
    """

    kept: list[Any]
    n_all: int
    share: Estimate
    incompleteness: Estimate
    minimality: dict[Any, Estimate]
    scores: dict[Any, float] | None
    base: np.ndarray
    none: np.ndarray
    source: np.ndarray | None
    keep: float
    tokens: np.ndarray
    bos: bool
    lower_is_better: bool = False

    @property
    def kind(self) -> str:
        """"noising" if replacing all parts makes the metric worse, else "denoising"."""
        return kind_of_patching(self.base, self.none, self.lower_is_better)

    def __repr__(self) -> str:
        lost = sorted(self.minimality.items(), key=lambda part: -part[1].value)[: MOST_LINES - 1]
        return table(f"Circuit of {len(self.kept)} of {self.n_all} parts, which keeps {self.share} "
                     f"of the effect\n({self.kind}, metric {self.base.mean():.4g} with all, "
                     f"{self.none.mean():.4g} with none); the share lost without each:",
                     [[name if isinstance(name, str) else " → ".join(name), str(share)]
                      for name, share in lost])

    def _repr_html_(self) -> str:
        return circuit_picture(self)


def find(
    model: Model,
    keep: float = 0.9,
    *,
    base: PromptsLike,
    source: PromptsLike,
    metric: Metric,
    mode: str = "resample",
    subsets: int = 8,
    seed: int = 0,
    progress: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Circuit:
    """Prune heads and MLPs to a smallest set that keeps the share `keep` of the effect.

    The circuit is that of the `base` prompts. A pruned node gets its activation from `source`
    ("resample"), or its mean there ("mean").

    In every round the nodes that are left are ranked by their effects in the circuit so far: by
    attribution, or by an exact sweep once few are left. As many of the weakest go as leave the
    share between `keep` and 2 - `keep`: pruning parts that work against the task overshoots. While
    many are left, the order is one in which effects cancel. If none can go in that order, an exact
    sweep finds those that can, or the one that can best go alone. Every decision is that of an
    exact run. The result is a local minimum: an exact sweep has shown that no single node of it
    can go.

    If the metric has no gradient, or an edit is a function or of a layer norm, every round is an
    exact sweep. `edits`, as for `run`, hold in every pass, so that the circuit is the edited
    model's. `bos`, as for `run`, puts <|endoftext|> first: by default before text and not before
    ids. All prompts have one length.

    `base` should do the task better than `source`. Given the wrong way round they have a circuit
    too, which keeps the metric bad: a PromptWarning says so.
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    if mode not in ("resample", "mean"):
        raise Error(f"unknown mode {shown(mode)}: choose 'resample' or 'mean'")
    check_same_length(base, source, "source", any_number=mode == "mean")
    names = [activation_name(what, layer) for layer in range(model.config.n_layer)
             for what in ("z", "mlp_out")]
    edits, n, last_only = Edits(model, edits), len(base.tokens), reads_last(metric)
    new, n_shared, logits = replacements(model, base, mode, source, names, edits, last_only)
    of_source = None if logits is None else measured(metric, logits, n)

    def without(removed):
        return [edits, replacing_edits(units_by_name(removed), new)]

    def measure(removed):
        seen = run(model, base, edits=without(removed), last_only=last_only)
        return measured(metric, seen.logits, n)

    def removed_alone(removed, nodes):
        stored = BaseRun(model, base, metric, ("z", "mlp_out"), without(removed), last_only)
        return stored.measured, one_more_replaced(stored, new, n_shared, nodes, progress)

    def attributed_alone(removed, nodes):
        seen = run(model, base, names, edits=without(removed), last_only=last_only)
        slopes = gradients(model, base, metric, names=names, edits=without(removed))
        current = measured(metric, seen.logits, n)
        changes = {name: (new[name] - seen[name]) * slopes[name] for name in names}
        return current, {node: current + attributed(changes, *node) for node in nodes}

    nodes = {parse_node(model.config, name): name for name in node_names(model.config)}
    pruning = Pruning(measure, list(nodes), keep, base, of_source, metric, subsets, seed)
    has_gradient = isinstance(metric, Differentiable) and not edits.without_gradient
    left, removed = list(nodes), []
    while True:
        weakest = []
        if has_gradient and len(left) > FEW:
            weakest = pruning.removable(removed, *attributed_alone(removed, left))
        if not weakest:
            current, alone = removed_alone(removed, left)
            weakest = pruning.removable(removed, current, alone, exact=True)
        if not weakest:
            return pruning.circuit(left, removed, alone, nodes)
        removed = removed + weakest
        left = [node for node in left if node not in weakest]


def one_more_replaced(stored, new, n_shared, nodes, progress):
    """Return {node: metric [b]} of the run with one more node replaced."""
    alone = {}
    for what in ("z", "mlp_out"):
        index = {node: node[:1] if what == "mlp_out" else node
                 for node in nodes if (node[1] is None) == (what == "mlp_out")}
        values = stored.sweep(new, what, False, None, n_shared, progress and bool(index),
                              set(index.values()))
        alone |= {node: values[cell] for node, cell in index.items()}
    return alone


def attributed(changes, layer, head):
    """Return the change of the metric [b] by replacing one node, to first order."""
    if head is None:
        return changes[activation_name("mlp_out", layer)].sum(axis=(1, 2))
    return changes[activation_name("z", layer)][:, :, head].sum(axis=(1, 2))


class Pruning:
    """Decisions about parts that can go. `measure(removed)` is the metric [b] without some parts.

    Shares are of the effect of all parts: the metric of the whole model minus that of none.
    """

    def __init__(self, measure, parts, keep, given, of_source, metric, subsets, seed):
        if not 0 < keep <= 1:
            raise Error(f"keep is {keep}: the share to keep must be above 0 and at most 1")
        check_count("subsets", subsets)
        self.subsets, self.seed, self.rng = subsets, seed, generator(seed)
        self.measure, self.keep, self.given, self.n_all = measure, keep, given, len(parts)
        self.of_source, self.lower_is_better = of_source, is_better_low(metric)
        self.whole, self.none = measure([]), measure(parts)
        self.effect = self.whole - self.none
        if abs(self.effect.mean()) < 1e-6 * max(1.0, abs(self.whole.mean())):
            raise Error("replacing every part of the model does not change the metric, so there is "
                        "no effect to explain: look at the prompts and the answers")
        if kind_of_patching(self.whole, self.none, self.lower_is_better) == "denoising":
            warn(
                f"the metric is {self.whole.mean():.4g} on base and gets better, "
                f"{self.none.mean():.4g}, if every part is replaced from source: give the prompts "
                "that do the task as base, and those that do not as source", PromptWarning)

    def share(self, values, index=slice(None)):
        return (values - self.none)[index].mean(axis=-1) / self.effect[index].mean(axis=-1)

    def suffices(self, values):
        return abs(1 - self.share(values)) <= 1 - self.keep

    def most_removable(self, removed, weakest):
        """Return how many of the weakest, in order, can go too: found by bisection."""
        fewest, most = 0, len(weakest)
        while fewest < most:
            middle = (fewest + most + 1) // 2
            if self.suffices(self.measure(removed + weakest[:middle])):
                fewest = middle
            else:
                most = middle - 1
        return fewest

    def removable(self, removed, current, alone, exact=False):
        """Return the weakest parts that can go together, or the one that can best go alone.

        `current` is the metric of the circuit so far, and `alone` that without each of its parts,
        `exact` or estimated.
        """
        change = {part: self.share(values) - self.share(current) for part, values in alone.items()}
        order = sorted(change, key=lambda part: abs(change[part]))
        if len(order) > FEW:
            order = balanced(order, change, self.share(current))
        if count := self.most_removable(removed, order):
            return order[:count]
        fit = [part for part in order if exact and self.suffices(alone[part])]
        return sorted(fit, key=lambda part: abs(1 - self.share(alone[part])))[:1]

    def circuit(self, kept, removed, alone, names, scores=None):
        """Return the parts kept as a Circuit.

        `alone` has the metric with one part more removed, `names` the name of each part.
        """
        own, differences = self.measure(removed), []
        for _ in range(self.subsets):
            subset = [part for part in kept if self.rng.random() < 0.5]
            differences.append(self.measure(removed + subset) - self.measure(subset))
        several = np.array(differences)

        def incompleteness(i):
            return abs(several[:, i].mean(axis=-1) / self.effect[i].mean(axis=-1)).mean(axis=0)

        def lost(part):
            less = own - alone[part]
            return lambda i: less[i].mean(axis=-1) / self.effect[i].mean(axis=-1)

        def estimate(statistic):
            return bootstrap(statistic, len(own), seed=self.seed)

        return Circuit(
            kept=[names[part] for part in kept],
            n_all=self.n_all,
            share=estimate(lambda i: self.share(own, i)),
            incompleteness=estimate(incompleteness),
            minimality={names[part]: estimate(lost(part)) for part in kept},
            scores=scores and {names[part]: float(scores[part]) for part in kept},
            base=self.whole,
            none=self.none,
            source=self.of_source,
            keep=self.keep,
            tokens=self.given.tokens,
            bos=self.given.bos,
            lower_is_better=self.lower_is_better,
        )


def balanced(ranked, change, share):
    """Return the parts in an order in which their changes, added up, keep the share close to 1.

    The weakest of those that raise it, or of those that lower it, is next.
    """
    waiting = {up: [part for part in reversed(ranked) if (change[part] > 0) == up]
               for up in (True, False)}
    order = []
    while waiting[True] or waiting[False]:
        order.append((waiting[share < 1] or waiting[share >= 1]).pop())
        share += change[order[-1]]
    return order

"""Sweeps: one intervention after another, over layers, heads and positions.

Patching copies one activation of a clean prompt into a corrupted one. If the answer comes back, the
activation carries information that the answer depends on. Ablation removes one part at a time and
measures the loss. Patching finds parts that suffice, ablation finds parts that are needed. (Vig et
al. 2020, "Investigating Gender Bias in Language Models Using Causal Mediation Analysis"; Meng et
al. 2022, "Locating and Editing Factual Associations in GPT"; Heimersheim & Nanda 2024, "How to use
and interpret activation patching".)

A sweep gives the results of a whole pass for every cell, for a fraction of the work. It starts at
the sub-layer of the patch and at the first position that differs, from the stored stream plus the
change, with many cells in one batch.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..bpe import Tokenizer, shown
from ..gpt2_np import Error, Model
from ..inference.options import warn
from .drawings import sweep_picture
from .edits import check_mode, replacements
from .inputs import (
    PromptsLike,
    PromptWarning,
    by_length,
    check_count,
    check_index,
    in_order,
    pairs_by_length,
)
from .interventions import EditsLike, chosen_indices
from .metrics import ByPrompt, Metric, is_better_low, kind_of_patching, of_rows, reads_last
from .names import (
    activation_name,
    cell_name,
    kind_of,
    layer_of,
    matching_names,
    node_name,
    parse_node,
)
from .resumed_runs import PATCHABLE, BaseRun, needed_kinds, sweep_axes
from .short_reprs import MOST_LINES, Result, prompts_in, strongest, table


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result):
    """The metric after each intervention, over `axes`.

    `per_prompt` is [*axes, b]. `base` [b] is the metric without intervention, `source` [b] that of
    the prompts that the activations came from (None for zeros and means). `senders` are the names
    along an axis "sender", of path patching. `tokens` is a list of rows if lengths differ.
    `estimated` is True for attribution patching.
    """

    what: str
    axes: tuple[str, ...]
    per_prompt: np.ndarray
    base: np.ndarray
    source: np.ndarray | None
    tokens: np.ndarray | list[np.ndarray]
    bos: bool
    senders: tuple[str, ...] = ()
    estimated: bool = False
    lower_is_better: bool = False
    tokenizer: Tokenizer | None = field(default=None, repr=False, kw_only=True)

    @property
    def kind(self) -> str:
        """"denoising" if the source does better by the metric, "noising", or "ablation".

        Denoising puts what is right into prompts without the answer, and finds parts that suffice.
        Noising destroys it, and finds parts that are needed. "no difference" says that both runs
        have one metric. A metric with `lower_is_better`, a loss, is better low.
        """
        return kind_of_patching(self.base, self.source, self.lower_is_better)

    @property
    def values(self) -> np.ndarray:
        """The metric, averaged over prompts: [*axes]."""
        return self.per_prompt.mean(axis=-1)

    @property
    def effect(self) -> np.ndarray:
        """The metric minus the metric without intervention: [*axes]."""
        return self.values - self.base.mean()

    @property
    def normalized(self) -> np.ndarray:
        """The effect as a share of the way from base to source, without a source from base to 0.

        0.95 says that patching restored, or ablation removed, 95%; below 0 is away from it. Raises
        Error if base and source do not differ.
        """
        whole = (0 if self.source is None else self.source.mean()) - self.base.mean()
        if abs(whole) < 1e-6 * max(1.0, abs(self.base.mean())):
            raise Error("the metric is the same on both prompts, so shares of the effect are "
                        "undefined: look at the prompts and the answers")
        return self.effect / whole

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """Return the cells with the largest effects, and these, in either direction.

        A cell is "L1H1", "L2N17", "layer 1, position 5" or "L1H1, position 5".
        """
        check_count("n", n)
        effect = self.effect
        return [(self.cell(index), float(effect[index])) for index in strongest(effect, n)]

    def __getitem__(self, node: Any) -> Any:
        """Return the effect at a head, neuron, MLP or sender by name: a number, or [position]."""
        given = parse_node(None, node)
        unit = "neuron" if len(given) == 3 else "head" if given[1] is not None else "MLP"
        whole = "MLP" if self.what in ("mlp_out", "path") else "stream"  # a layer's one cell
        index = tuple(i for i in given if i is not None)
        if self.senders:
            name = node_name(*given)
            index = (self.senders.index(name),) if name in self.senders else ()
        elif unit != next((axis for axis in self.axes if axis in ("head", "neuron")), whole):
            index = ()
        if not index:
            raise Error(f"there is no {shown(node)} in a sweep of {self.what} over "
                        f"{', '.join(self.axes)}: index its effect by these axes")
        for axis, i, size in zip(self.axes, index, self.per_prompt.shape, strict=False):
            check_index(axis, i, size)
        return self.per_prompt[index].mean(axis=-1) - self.base.mean()

    def cell(self, index: Sequence[int]) -> str:
        """Return the name of one cell: "L1H1", "L2N17", "layer 1, position 5"."""
        return self.senders[index[0]] if self.senders else cell_name(self.axes, index)

    def __repr__(self) -> str:
        source = "" if self.source is None else f", source {self.source.mean():.4g}"
        about = f"{self.what} over {', '.join(self.axes)} ({self.kind}), {prompts_in(self.tokens)}"
        return table(f"Sweep of {about}: metric {self.base.mean():.4g}{source}; "
                     "the largest changes:",
                     [[name, f"{value:+.4g}"] for name, value in self.top(MOST_LINES) if value])

    def _repr_html_(self) -> str:
        return sweep_picture(self)


def patching(
    model: Model,
    what: str = "z",
    *,
    base: PromptsLike,
    source: PromptsLike,
    metric: Metric,
    by_position: bool | None = None,
    layers: int | Sequence[int] | None = None,
    last_only: bool | None = None,
    progress: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Sweep:
    """A sweep: run `base` with one activation at a time from `source`; the metric after each.

    (`patch` is the edit that puts one activation into a run.) `base` is the run that is changed,
    `source` the one that activations come from; `kind` of the result says which does the task
    better. `what` is resid_pre, resid_mid, resid_post, attn_out or mlp_out (axes layer, position),
    or per head q, k, v, z or pattern (axes layer, head; and position if asked for, a pattern's
    being the query's), or post (axes layer, neuron). A long name or a glob also chooses layers.

    Options: `by_position` adds the axis position, or leaves it out. `layers` left out are NaN. The
    metric sees the last position only, unless it says otherwise or `last_only` is off. `progress`
    shows a bar on stderr. `edits`, as for `run`, hold in both prompts, and come before the patch.
    `bos` puts <|endoftext|> first: by default before text and not before ids.

    Pairs may differ in length from each other. Each length is swept by itself, and the metric gets
    one after another: if it has answers of its own for each prompt, it needs `ByPrompt.of_rows`.
    """
    return sweep_of(model, what, base, source, metric, "resample", by_position, layers, last_only,
                    progress, edits, bos)


def ablation(
    model: Model,
    what: str = "z",
    *,
    base: PromptsLike,
    metric: Metric,
    mode: str = "zero",
    source: PromptsLike | Mapping[str, np.ndarray] | None = None,
    by_position: bool | None = None,
    layers: int | Sequence[int] | None = None,
    last_only: bool | None = None,
    progress: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Sweep:
    """A sweep: run `base` with one head (or MLP, neuron, ...) at a time ablated.

    (`ablated` makes the edits that ablate parts in a run.) `mode` "zero" puts in zeros, "mean" the
    mean over the `source` prompts, position by position, and "resample" their activations, prompt
    by prompt, as `patching` does. `what` and the options are those of `patching`. Means are over
    the source prompts of the same length, or over texts of any lengths if `source` is a mapping,
    {name: mean_activation(model, texts, name)}.
    """
    return sweep_of(model, what, base, source, metric, mode, by_position, layers, last_only,
                    progress, edits, bos)


def sweep_of(model, what, base, source, metric, mode, by_position, layers, last_only, progress,
             edits, bos):
    """Return the Sweep of a mode of ablation; "resample" is patching."""
    check_mode(mode, source)
    what, layers = patched_kind(what, layers, model.config)
    names, axes = [activation_name(what, layer) for layer in layers], sweep_axes(what, by_position)
    last_only = reads_last(metric, last_only)

    def of_one_length(base, source, metric):
        stored = BaseRun(model, base, metric, needed_kinds(what), edits, last_only)
        new, n_shared, logits = replacements(model, base, mode, source, names, edits, last_only)
        per_prompt = stored.sweep(new, what, by_position, layers, n_shared, progress)
        of_source = None if logits is None else stored.source_metric(logits)
        return Sweep(what, axes, per_prompt, stored.measured, of_source, base.tokens, base.bos,
                     lower_is_better=is_better_low(metric), tokenizer=model.tokenizer)

    return by_groups(of_one_length, prompt_groups(model, base, source, mode, bos), metric, axes)


def prompt_groups(model, base, source, mode="resample", bos=None):
    """Return (rows, base, source) for each length of prompts. Means are over any number of them."""
    if source is None or isinstance(source, Mapping):
        return [(*group, source) for group in by_length(model, base, bos)]
    if mode != "mean":
        return list(pairs_by_length(model, base, source, bos))
    ours, theirs = by_length(model, base, bos), by_length(model, source, bos)
    of_length = {group.prompts.tokens.shape[1]: group.prompts for group in theirs}
    return [(*group, of_length.get(group.prompts.tokens.shape[1], theirs[0].prompts))
            for group in ours]


def by_groups(sweep, groups, metric, axes):
    """Return `sweep(base, source, metric)` of prompts of every length as one Sweep.

    Raises Error if it has positions, which prompts of several lengths do not share.
    """
    rows, n = [own for own, _, _ in groups], sum(len(own) for own, _, _ in groups)
    if len(groups) > 1:
        if "position" in axes:
            raise Error("the prompts differ in length, so they share no positions to sweep over: "
                        "give by_position=False, or prompts of one length")
        if not isinstance(metric, ByPrompt):
            warn("the metric gets the prompts of each length by themselves, and has no of_rows: if "
                 "it has an answer for each, give it one (circuits.ByPrompt)", PromptWarning)
    parts = [sweep(base, source, of_rows(metric, own, n)) for own, base, source in groups]
    first, whole = parts[0], {}
    if len(parts) == 1:
        return first
    for name in ("per_prompt", "base", *["source"] * (first.source is not None)):
        whole[name] = in_order(rows, [getattr(part, name) for part in parts], axis=-1)
    tokens = {i: row for own, part in zip(rows, parts, strict=True)
              for i, row in zip(own.tolist(), part.tokens, strict=True)}
    return replace(first, **whole, tokens=[tokens[i] for i in range(n)],
                   bos=all(part.bos for part in parts))


def patched_kind(what, layers, config):
    """Return the short name of the activation to patch, and the layers."""
    found = matching_names(what, config)
    kinds = {kind_of(name) for name in found}
    if len(kinds) != 1 or not kinds <= PATCHABLE.keys():
        raise Error(f"cannot patch {shown(what)}: choose one of {', '.join(PATCHABLE)}")
    layers = chosen_indices("layer", layers, config.n_layer)
    return kinds.pop(), sorted({*map(layer_of, found)} & {*layers.tolist()})

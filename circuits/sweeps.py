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

import contextlib
import functools
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack

import numpy as np

from ..backend import namespace, to_host
from ..bpe import Tokenizer, shown
from ..gpt2_np import (
    NO_TAP,
    Cache,
    Error,
    Model,
    Tap,
    attend,
    attention_layer,
    layer_norm,
    mlp_layer,
    unembed,
)
from ..inference.turns import turn
from .activations import run
from .drawings import sweep_picture
from .edits import replacements
from .head_weights import attention_weights
from .inputs import (
    PromptsLike,
    by_length,
    check_count,
    check_index,
    check_numbers,
    in_order,
    one_each,
    pairs_by_length,
)
from .interventions import Edits, EditsLike, HeldEdits, InTurn, Place, Replacement
from .metrics import Metric, ReadsStream, checked_values, of_rows, reads_last
from .names import (
    BY_HEAD,
    BY_NEURON,
    SHORT_NAMES,
    activation_name,
    cell_name,
    kind_of,
    layer_of,
    matching_names,
)
from .short_reprs import MOST_LINES, Result, prompts_in, table
from .weights import on_host

# Batches of about this many positions let the matrix products reach full speed and hold a few
# tens of MB of activations.
POSITIONS_AT_ONCE = 1024

# The sub-layer before which the stream has changed, counted from the attention of the patched
# layer: the attention is sub-layer 0, the MLP 1.
PATCHABLE = {"resid_pre": 0, "resid_mid": 1, "resid_post": 2, "attn_out": 1, "mlp_out": 2,
             "q": 1, "k": 1, "v": 1, "z": 1, "pattern": 1, "post": 2}  # fmt: skip


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
    tokenizer: Tokenizer | None = field(default=None, repr=False, kw_only=True)

    @property
    def kind(self) -> str:
        """"denoising" if the source has the higher metric, else "noising", or "ablation".

        Denoising puts what is right into prompts without the answer, and finds parts that suffice.
        Noising destroys it, and finds parts that are needed. With a metric that is better lower, a
        loss, the two words change places.
        """
        return kind_of_patching(self.base, self.source)

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
        known = np.argwhere(np.isfinite(self.effect))
        order = sorted(map(tuple, known.tolist()), key=lambda index: -abs(self.effect[index]))
        return [(self.cell(index), float(self.effect[index])) for index in order[:n]]

    def cell(self, index: Sequence[int]) -> str:
        """Return the name of one cell: "L1H1", "L2N17", "layer 1, position 5"."""
        return self.senders[index[0]] if self.senders else cell_name(self.axes, index)

    def __repr__(self) -> str:
        source = "" if self.source is None else f", source {self.source.mean():.4g}"
        about = f"{self.what} over {', '.join(self.axes)} ({self.kind}), {prompts_in(self.tokens)}"
        return table(f"Sweep of {about}: metric {self.base.mean():.4g}{source}; "
                     "the largest changes:",
                     [[name, f"{value:+.4g}"] for name, value in self.top(MOST_LINES)])

    def _repr_html_(self) -> str:
        return sweep_picture(self)


def kind_of_patching(base, source):
    """Return the `kind` of a result that holds the metric of base and of source, each [b]."""
    if source is None:
        return "ablation"
    return "denoising" if source.mean() > base.mean() else "noising"


class SweepOptions(TypedDict, total=False):
    """Options of a sweep, all of them optional."""

    by_position: bool | None
    layers: Sequence[int] | None
    last_only: bool | None
    progress: bool
    edits: EditsLike | None
    bos: bool | None


def patching(
    model: Model,
    what: str = "z",
    *,
    base: PromptsLike,
    source: PromptsLike,
    metric: Metric,
    **options: Unpack[SweepOptions],
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

    Pairs may differ in length from each other. Each length is swept by itself, and the metric gets
    one after another: if it has answers of its own for each prompt, it needs `ByPrompt.of_rows`.
    """
    return sweep_of(model, what, base, source, metric, "resample", **options)


def ablation(
    model: Model,
    what: str = "z",
    *,
    base: PromptsLike,
    metric: Metric,
    mode: str = "zero",
    source: PromptsLike | None = None,
    **options: Unpack[SweepOptions],
) -> Sweep:
    """A sweep: run `base` with one head (or MLP, neuron, ...) at a time ablated.

    (`ablated` makes the edits that ablate parts in a run.) `mode` "zero" puts in zeros, "mean" the
    mean over the `source` prompts, position by position, and "resample" their activations, prompt
    by prompt, as `patching` does. `what` and the options are those of `patching`.
    """
    return sweep_of(model, what, base, source, metric, mode, **options)


def sweep_of(model, what, base, source, metric, mode, *, by_position=None, layers=None,
             last_only=None, progress=False, edits=None, bos=None):
    """Return the Sweep of a mode of ablation; "resample" is patching."""
    what, layers = patched_kind(what, layers, model.config)
    names = [activation_name(what, layer) for layer in layers]
    last_only = reads_last(metric, last_only)

    def of_one_length(base, source, metric):
        stored = BaseRun(model, base, metric, needed_kinds(what), edits, last_only)
        new, n_shared, logits = replacements(model, base, mode, source, names, edits, last_only)
        found = stored.sweep(new, what, by_position, layers, n_shared, progress)
        return found if logits is None else replace(found, source=stored.source_metric(logits))

    return by_groups(of_one_length, prompt_groups(model, base, source, mode, bos), metric)


def prompt_groups(model, base, source, mode="resample", bos=None):
    """Return (rows, base, source) for each length of prompts. Means are over any number of them."""
    if mode != "mean" or source is None:
        if mode == "zero" or source is None:
            return [(*group, None) for group in by_length(model, base, bos)]
        return list(pairs_by_length(model, base, source, bos))
    ours, theirs = by_length(model, base, bos), by_length(model, source, bos)
    of_length = {group.prompts.tokens.shape[1]: group.prompts for group in theirs}
    return [(*group, of_length.get(group.prompts.tokens.shape[1], theirs[0].prompts))
            for group in ours]


def by_groups(sweep, groups, metric):
    """Return `sweep(base, source, metric)` of prompts of every length as one Sweep.

    Raises Error if it has positions, which prompts of several lengths do not share.
    """
    rows, n = [own for own, _, _ in groups], sum(len(own) for own, _, _ in groups)
    parts = [sweep(base, source, of_rows(metric, own, n)) for own, base, source in groups]
    first, whole = parts[0], {}
    if len(parts) == 1:
        return first
    if "position" in first.axes:
        raise Error("the prompts differ in length, so they share no positions to sweep over: give "
                    "by_position=False, or prompts of one length")
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
    for layer in () if layers is None else layers:
        check_index("layer", layer, config.n_layer)
    named = sorted(map(layer_of, found))
    return kinds.pop(), [n for n in named if layers is None or n in layers]


def sweep_axes(config, what, by_position, length):
    """Return the axes of a sweep and their sizes: layer, head or neuron, position."""
    by_unit = ["head"] * (what in BY_HEAD) or ["neuron"] * (what in BY_NEURON)
    by_position = not by_unit if by_position is None else by_position
    axes = ("layer", *by_unit, *["position"] * by_position)
    sizes = {"layer": config.n_layer, "head": config.n_head, "position": length,
             "neuron": 4 * config.n_embd}
    return axes, [sizes[axis] for axis in axes]


def needed_kinds(what):
    """Return the stored activations from which the effect of a patch on the stream follows."""
    if what in ("q", "k", "v"):
        return "q", "k", "v", "z"
    return ("pattern", "v") if what == "pattern" else (what,)


# --- the pass from a stored stream on --------------------------------------------------


class BaseRun:
    """A run of the base prompts with its streams, keys and values, from which sweeps go on.

    `edits` (for `run`) change that run, and hold in every batch of copies of its prompts.
    """

    def __init__(self, model, given, metric, kinds=(), edits=None, last_only=True):
        self.model, self.metric, self.last_only = model, metric, last_only
        self.edits = Edits(model, edits)
        config = model.config
        self.w_out = functools.lru_cache(1)(
            lambda layer: on_host(model.params["blocks"][layer]["mlp"]["c_proj"]["w"]))
        self.w_o = functools.lru_cache(1)(lambda layer: attention_weights(model, layer).W_O)
        names = {activation_name(kind, layer) for layer in range(config.n_layer)
                 for kind in ("resid_pre", "resid_mid", "k", "v", *kinds)}
        names.add(activation_name("resid_post", config.n_layer - 1))
        self.run = run(model, given, sorted(names), edits=self.edits, last_only=last_only)
        check_numbers("the logits", self.run.logits, model)
        self.n_prompts, self.length = self.run.tokens.shape
        self.measured = checked_values(metric(self.run.logits), self.n_prompts)

    def source_metric(self, logits):
        """Return the metric [b] of the prompts that activations come from, one or one each."""
        return checked_values(self.metric(one_each(logits, self.n_prompts)), self.n_prompts)

    def stream(self, start):
        """Return the residual stream before sub-layer `start`, [b, q, d].

        Sub-layers alternate: 2 l is the attention of layer l, 2 l + 1 its MLP.
        """
        n_layer = self.model.config.n_layer
        if start >= 2 * n_layer:
            return self.run[activation_name("resid_post", n_layer - 1)]
        return self.run[activation_name(("resid_pre", "resid_mid")[start % 2], start // 2)]

    def first_changed(self, n_shared):
        """Return the first position to compute: functions of the caller's see whole texts."""
        return 0 if self.edits.has_functions else n_shared

    def held(self, first, copies=1, start=-1):
        """Return a tap that keeps the edits up in a pass from sub-layer `start` on.

        The stream that such a pass begins with is edited already.
        """
        n_layer = self.model.config.n_layer
        begins = start % 2 == 0 and start < 2 * n_layer
        skip = activation_name("resid_pre", start // 2) if begins else ""
        place = Place.from_position(first, self.n_prompts, self.length, copies)
        return HeldEdits(self.edits, place, skip)

    def measure(self, x, start, first, before=None, after=None):
        """Return the metric [copy, b] of streams [copy b, q, d] before sub-layer `start`.

        They begin at position `first`; earlier positions are those of this run. `before` and
        `after` are taps that come before the edits and after them.
        """
        copies = len(x) // self.n_prompts
        params, metric, tap = self.model.params, self.metric, NO_TAP
        if self.edits or before or after:
            tap = Tap(InTurn(before, self.held(first, copies, start), after))
        with turn(self.model, has_tap=bool(self.edits)):
            x = self.finish(x, start, EarlierPositions(self.run, first, copies), tap)
        if self.last_only and isinstance(metric, ReadsStream):
            x = to_host(x).reshape(copies, self.n_prompts, -1)
            return np.stack([checked_values(metric.of_stream(own, params), self.n_prompts)
                             for own in x])
        with turn(self.model):
            logits = to_host(unembed(x, params))
        logits = logits.reshape(copies, self.n_prompts, *logits.shape[1:])
        if not self.last_only:
            earlier = np.broadcast_to(self.run.logits[:, :first],
                                      (copies, self.n_prompts, first, logits.shape[-1]))
            logits = np.concatenate([earlier, logits], axis=2)
        return np.stack([checked_values(metric(own), self.n_prompts) for own in logits])

    def finish(self, x, start, cache, tap):
        """Return the final layer norm's result for a stream before sub-layer `start`.

        Positions before the last are dropped as soon as no attention needs them.
        """
        config, params = self.model.config, self.model.params
        only_last = self.last_only and not self.edits.has_functions
        x = namespace(params["wte"]).asarray(x)
        positions = cache.reserve(x.shape[:2])
        for layer in range(start // 2, config.n_layer):
            block, here = params["blocks"][layer], tap.under(f"blocks.{layer}.")
            if start <= 2 * layer:
                x = attention_layer(x, block, config.n_head, positions, cache, layer, here)
            if only_last and layer == config.n_layer - 1:
                x = x[:, -1:]
            x = mlp_layer(x, block, here)
        x = layer_norm(x[:, -1:] if only_last else x, **params["ln_f"],
                       tap=tap.under("ln_final."))
        return x[:, -1:] if self.last_only else x

    # --- cells -------------------------------------------------------------------------

    def sweep(self, source, what, by_position=None, layers=None, n_shared=0, progress=False,
              chosen=None):
        """Return a Sweep that puts in `source` (None: zeros). Cells outside `chosen` stay NaN.

        The first `n_shared` positions of source and base are the same.
        """
        config, n_shared = self.model.config, self.first_changed(n_shared)
        axes, sizes = sweep_axes(config, what, by_position, self.length)
        by_position = "position" in axes
        layers = range(config.n_layer) if layers is None else layers
        per_prompt = np.full((*sizes, self.n_prompts), np.nan)
        cells = []  # (sub-layer, first position that changes, index)
        for index in np.ndindex(per_prompt.shape[:-1]):
            if index[0] in layers and (chosen is None or index in chosen):
                first = max(n_shared, index[-1]) if by_position else n_shared
                if first >= self.length or (by_position and index[-1] < n_shared):
                    per_prompt[index] = self.measured  # nothing differs there
                else:
                    first = self.first_changed(first)
                    cells.append((2 * index[0] + PATCHABLE[what], first, index))
        with progress_bar(len(cells), progress) as bar:
            for start, first, indices in self.batches(cells):
                patches = [dict(zip(axes, index, strict=True)) for index in indices]
                if self.edits_between(what, indices[0][0]):
                    values = self.through_edits(source, what, first, patches)
                else:
                    stream = self.stream(start)[:, first:]
                    x = np.concatenate([
                        stream + self.change(source, what, n_shared, **patch)[:, first:]
                        for patch in patches])
                    values = self.measure(x, start, first)
                for index, value in zip(indices, values, strict=True):
                    per_prompt[index] = value
                bar.update(len(indices))
        return Sweep(what, axes, per_prompt, self.measured, None, self.run.tokens, self.run.bos,
                     tokenizer=self.model.tokenizer)

    def batches(self, cells):
        """Group cells that start at the same sub-layer and close positions.

        Yields sub-layer, the first of their positions, and their indices.
        """
        cells = sorted(cells, key=lambda cell: (cell[0], -cell[1]))
        while cells:
            (start, first), count = cells[0][:2], 0
            for cell_start, cell_first, _ in cells:
                if cell_start != start or count >= self.copies_at_once(cell_first):
                    break
                first, count = cell_first, count + 1
            yield start, first, [index for _, _, index in cells[:count]]
            cells = cells[count:]

    def copies_at_once(self, first):
        """Return the number of copies of the prompts, from position `first` on, for one batch."""
        return max(1, POSITIONS_AT_ONCE // (self.n_prompts * max(1, self.length - first)))

    def edits_between(self, what, layer):
        """Return True if edits stand between a patch and the stream before the next sub-layer.

        The change of the stream then does not follow from stored activations.
        """
        if not self.edits or what in ("resid_pre", "resid_mid"):
            return False
        kinds = list(SHORT_NAMES)
        end = "resid_mid" if PATCHABLE[what] == 1 else "resid_post"
        between = kinds[kinds.index(what) + 1 : kinds.index(end) + 1]
        names = [activation_name(kind, layer) for kind in between]
        if end == "resid_post" and layer + 1 < self.model.config.n_layer:
            names.append(activation_name("resid_pre", layer + 1))
        return any(name in self.edits for name in names)

    def through_edits(self, source, what, first, patches):
        """Return the metric [copy, b] after patches of one layer, from its own sub-layer on."""
        layer, name = patches[0]["layer"], activation_name(what, patches[0]["layer"])
        start = 2 * layer + (PATCHABLE[what] == 2)
        values = 0.0 if source is None else source[name]
        edits = [Replacement(values, patch.get("head"), patch.get("neuron"), patch.get("position"))
                 for patch in patches]
        place = Place.from_position(first, self.n_prompts, self.length)
        x = np.concatenate([self.stream(start)[:, first:]] * len(patches))
        return self.measure(x, start, first, after=PatchOfEachCopy(name, edits, place))

    def change(self, source, what, n_shared, layer, head=None, position=None, neuron=None):
        """Return the change of the stream [b, q, d] by a patch, from stored activations alone."""
        name = activation_name(what, layer)
        old = widened(self.run[name])
        new = np.zeros_like(old) if source is None else widened(source[name])
        if neuron is not None:
            old, new = old[..., neuron : neuron + 1], new[..., neuron : neuron + 1]
        elif head is not None:
            axis = 1 if what == "pattern" else 2  # [b, h, q, k], the others [b, q, h, e]
            old, new = old.take(head, axis), new.take(head, axis)
        here = np.arange(self.length)
        here = here >= n_shared if position is None else here == position
        new = np.where(here[:, None], new, old)  # [b, q, d | e | k]
        if neuron is not None:
            return (new - old) * self.w_out(layer)[neuron]
        if head is None:
            return new - old
        return self.change_of_z(what, layer, head, old, new) @ self.w_o(layer)[head]

    def change_of_z(self, what, layer, head, old, new):
        """Return the change of a head's z [b, q, e] if its q, k, v, z or pattern becomes `new`."""
        if what == "z":
            return new - old
        stored = {kind: widened(self.run[activation_name(kind, layer)])
                  for kind in needed_kinds(what) if kind != "pattern"}
        if what == "pattern":
            return (new - old) @ stored["v"][:, :, head]
        q, k, v = (new if kind == what else stored[kind][:, :, head] for kind in "qkv")
        positions = np.broadcast_to(np.arange(self.length), q.shape[:2])
        z = attend(*(x[:, :, None] for x in (q, k, v)), positions, NO_TAP)[:, :, 0]
        return z - stored["z"][:, :, head]


class PatchOfEachCopy:
    """A tap that gives each copy of the prompts an edit of its own, of one activation."""

    def __init__(self, name, edits, place):
        self.name, self.edits, self.place = name, edits, place

    def wants(self, name):
        return name == self.name

    def __call__(self, name, array):
        result, n = array.copy(), len(array) // len(self.edits)
        place = self.place.fitted(name, array)
        for start, edit in zip(range(0, len(array), n), self.edits, strict=True):
            result[start : start + n] = edit.at(name, array[start : start + n], place)
        return result


def widened(x):
    """Return float16 as float32, since differences of rounded numbers say little."""
    return x.astype(np.promote_types(x.dtype, np.float32), copy=False)


class EarlierPositions(Cache):
    """A cache that begins with the stored keys and values of the first positions.

    Its rows are `copies` of the prompts, and go on from position `first`.
    """

    def __init__(self, stored, first, copies):
        self.stored, self.first, self.copies = stored, first, copies

    def reserve(self, shape):
        return np.broadcast_to(np.arange(self.first, self.first + shape[1]), shape)

    def append(self, layer, keys, values):
        if not self.first:
            return keys, values
        return self.behind_stored("k", layer, keys), self.behind_stored("v", layer, values)

    def behind_stored(self, kind, layer, new):
        xp, first = namespace(new), self.first
        stored = xp.asarray(self.stored[activation_name(kind, layer)][:, :first])
        joined = xp.empty((len(new), first + new.shape[1], *new.shape[2:]), new.dtype)
        joined.reshape(self.copies, len(stored), *joined.shape[1:])[:, :, :first] = stored
        joined[:, first:] = new
        return joined


def progress_bar(total, shown):
    """Return a progress bar on stderr, or an object whose `update` shows nothing."""
    if shown:
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            return tqdm(total=total, unit="patch", file=sys.stderr, leave=False)
    return contextlib.nullcontext(types.SimpleNamespace(update=lambda n: None))

"""A run of prompts that goes on, many times, from its stored streams.

A patch changes the stream from one sub-layer and one position on. The pass is resumed there: from
the stored stream plus the change, with many patches in one batch, and with the stored keys and
values of earlier positions. `BaseRun.sweep` measures cell by cell; path patching and the searches
resume runs, too.
"""
from __future__ import annotations

import contextlib
import functools
import sys
import types

import numpy as np

from ..backend import namespace, to_host
from ..gpt2_np import (
    NO_TAP,
    Cache,
    Tap,
    attend,
    attention_layer,
    layer_norm,
    mlp_layer,
    unembed,
)
from ..inference.turns import turn
from .activations import run
from .head_weights import attention_weights
from .inputs import check_numbers
from .interventions import Edits, HeldEdits, InTurn, Place, Replacement
from .metrics import ReadsStream, checked_values, measured
from .names import BY_HEAD, BY_NEURON, SHORT_NAMES, activation_name
from .weights import on_host

# Batches of about this many positions let the matrix products reach full speed and hold a few
# tens of MB of activations.
POSITIONS_AT_ONCE = 1024

# The sub-layer before which the stream has changed, counted from the attention of the patched
# layer: the attention is sub-layer 0, the MLP 1.
PATCHABLE = {"resid_pre": 0, "resid_mid": 1, "resid_post": 2, "attn_out": 1, "mlp_out": 2,
             "q": 1, "k": 1, "v": 1, "z": 1, "pattern": 1, "post": 2}  # fmt: skip


def sweep_axes(what, by_position):
    """Return the axes of a sweep: layer, head or neuron, position."""
    by_unit = ["head"] * (what in BY_HEAD) or ["neuron"] * (what in BY_NEURON)
    by_position = not by_unit if by_position is None else by_position
    return ("layer", *by_unit, *["position"] * by_position)


def empty_cells(config, axes, length, n_prompts):
    """Return NaN in the shape of a sweep, [*axes, b]."""
    sizes = {"layer": config.n_layer, "head": config.n_head, "position": length,
             "neuron": 4 * config.n_embd}
    return np.full((*(sizes[axis] for axis in axes), n_prompts), np.nan)


def needed_kinds(what):
    """Return the stored activations from which the effect of a patch on the stream follows."""
    if what in ("q", "k", "v"):
        return "q", "k", "v", "z"
    return ("pattern", "v") if what == "pattern" else (what,)


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
        self.measured = measured(metric, self.run.logits, self.n_prompts)

    def source_metric(self, logits):
        """Return the metric [b] of the prompts that activations come from, one or one each."""
        return measured(self.metric, logits, self.n_prompts)

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
        return np.stack([measured(metric, own, self.n_prompts) for own in logits])

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
        """Return the metric [*axes, b] with `source` (None: zeros) put into one cell after another.

        Cells outside `chosen` are NaN. The first `n_shared` positions of both are the same.
        """
        config, n_shared = self.model.config, self.first_changed(n_shared)
        axes = sweep_axes(what, by_position)
        by_position = "position" in axes
        layers = range(config.n_layer) if layers is None else layers
        per_prompt = empty_cells(config, axes, self.length, self.n_prompts)
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
        return per_prompt

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


def progress_bar(total, shown, unit="patch"):
    """Return a progress bar on stderr, or an object whose `update` shows nothing."""
    if shown:
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            return tqdm(total=total, unit=unit, unit_scale=unit != "patch", file=sys.stderr,
                        leave=False)
    return contextlib.nullcontext(types.SimpleNamespace(update=lambda n: None))

"""The residual stream as a sum: embeddings, then the output of every head and MLP.

Every part of the model only adds to the stream, so its value at any point is a sum whose terms
are known. Attribution of logits to parts follows from this. (Elhage et al. 2021, "The Residual
Stream as a Communication Channel".)
"""
from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..backend import einsum
from ..bpe import shown
from ..gpt2_np import LAYER_NORM_EPSILON, Error, Model
from .activations import recorded
from .head_weights import attention_weights
from .inputs import Batched, PromptsLike, check_index, position_slice, prompts
from .interventions import Edits, EditsLike
from .names import (
    BY_QUERY,
    activation_name,
    activation_names,
    kind_of,
    layer_of,
    matching_names,
    nearest,
    node_name,
    parse_node,
)
from .short_reprs import MOST_LINES, prompts_in, short, strongest, table
from .weights import centred, checked_vectors, on_host

WRITTEN_BEFORE = {"resid_pre": (0, 0), "resid_mid": (1, 0), "resid_post": (1, 1)}
ADDED_BY_EDITS = {"resid_pre", "result", "attn_out", "resid_mid", "resid_post"}
FINAL_BIAS = "ln_final.b"  # the part of an attribution that is no part of the stream
MOST_NUMBERS = 1 << 31  # of one result: 8 GiB in float32


@dataclass(frozen=True, eq=False, repr=False)
class Terms(Batched):
    """The terms of a sum: `values` [p, ...] over `labels`. One by its label: `terms["L5H1"]`."""

    labels: list[str]
    values: np.ndarray
    prompt_axes: ClassVar[dict[str, int]] = {"values": 1}

    def __getitem__(self, label: Any) -> np.ndarray:
        """Return the term of a label; a head, MLP or neuron may be spelled "5.1" or (5, 1) too."""
        with contextlib.suppress(Error):
            label = node_name(*parse_node(None, label))
        if label not in self.labels:
            layer = re.fullmatch(r"L(\d+)N\d+", str(label))
            hint = (f": ask for neurons=[{layer[1]}]" if layer and f"MLP{layer[1]}" in self.labels
                    else nearest(label, self.labels))
            raise Error(f"unknown part {shown(label)}{hint}")
        return self.values[self.labels.index(label)]


class StreamSum(Terms):
    """Terms that sum to the stream at the point `at`, or to a reading of it."""

    at = "final_post"

    def layers(self) -> tuple[list[str], np.ndarray]:
        """Return terms summed by sub-layer: "embed", "pos_embed", "0_attn_out", "0_mlp_out", ..."""
        of_part = [sub_layer_of(label) for label in self.labels if label != FINAL_BIAS]
        where = {name: i for i, name in enumerate(dict.fromkeys(of_part))}
        sums = np.zeros((len(where), *self.values.shape[1:]), self.values.dtype)
        for name, value in zip(of_part, self.values, strict=False):
            sums[where[name]] += value
        return list(where), sums

    def accumulated(self) -> tuple[list[str], np.ndarray]:
        """Return the sum as the stream grows: at "0_pre", "0_mid", "1_pre", ..., "final_post".

        Without the final layer norm's bias, which is no part of the stream.
        """
        names, sums = self.layers()
        points = [f"{i // 2}_{('pre', 'mid')[i % 2]}" for i in range(len(names) - 2)]
        return [*points, self.at], np.cumsum(sums, axis=0)[1:]


def sub_layer_of(label):
    """Return "5_attn_out" or "5_mlp_out" for a part's label, or the label of an embedding."""
    layer = re.search(r"\d+", label)
    if not layer:
        return label
    n = int(layer[0])
    if label.startswith("edit_resid_pre"):  # what reads it comes next
        return f"{n - 1}_mlp_out" if n else "pos_embed"
    of_attention = re.match(r"L\d+H|b_O|edit_(attn_out|result|resid_mid)", label)
    return f"{n}_{'attn' if of_attention else 'mlp'}_out"


@dataclass(frozen=True, eq=False, repr=False)
class Parts(StreamSum):
    """The terms of the residual stream: `values` [p, b, q, d] over `labels` sum to the stream.

    `at` is the point of the stream, `gain` [d] that of the final layer norm.
    """

    tokens: np.ndarray
    bos: bool
    gain: np.ndarray
    at: str = "final_post"
    prompt_axes: ClassVar[dict[str, int]] = {"values": 1, "tokens": 0}

    def __repr__(self) -> str:
        norms = np.linalg.norm(self.values[:, :, -1], axis=-1).mean(axis=-1)
        return table(f"Parts of the stream at {self.at} in {prompts_in(self.tokens)}: "
                     f"{short(self.values)}, of which the longest at the last position:",
                     [[self.labels[i], f"{norms[i]:.4g}"] for (i,) in strongest(norms, MOST_LINES)])

    def project(self, direction: np.ndarray, normalized: bool = True) -> np.ndarray:
        """Return each part along a direction as [p, b, q]. The direction is [d], [b, d], [b, q, d].

        `normalized` puts the parts through the final layer norm, at the scale of the stream that
        they sum to and without its bias: at the end of the last layer, along a token's row of the
        embedding, these are the terms of `attribution`. If it is False they are plain products.
        """
        directions = directions_for(direction, self.values.shape[1:3], self.gain)
        if not normalized:
            return along(self.values, directions)
        stream = centred(self.values.sum(axis=0))
        scale = np.sqrt((stream * stream).mean(axis=-1) + LAYER_NORM_EPSILON)
        return along(self.values, centred(directions * self.gain)) / scale


def along(vectors, directions):
    """Return the products of vectors [p, b, q, d] with directions [b, d] or [b, q, d]."""
    return einsum(f"pbqd,{'bq'[: directions.ndim - 1]}d->pbq", vectors, directions)


def directions_for(direction, shape, like):
    """Return a direction as one for each prompt, [b, d], or for each position, [b, q, d].

    `shape` is (b, q), `like` any vector [d].
    """
    found = checked_vectors("direction", direction, like)
    full = (*shape[: max(found.ndim - 1, 1)], len(like))
    try:
        return np.broadcast_to(found, full)
    except ValueError:
        n, d = shape[0], len(like)
        raise Error(f"direction has shape {found.shape}: give one, [{d}], one for each of {n} "
                    f"prompts, [{n}, {d}], or for each position, [{n}, {shape[1]}, {d}]") from None


def decompose(
    model: Model,
    text_or_tokens: PromptsLike,
    at: str | None = None,
    *,
    position: int | None = None,
    neurons: Sequence[int] | str = (),
    constants_apart: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Parts:
    """Return the stream at `at`, a layer's resid_pre, resid_mid or resid_post, as a sum of parts.

    `at` may be a point as `lens` names it, "2_mid"; the default is the end of the last layer.
    Labels: "embed", "pos_embed", heads "L5H1", each layer's attention bias "b_O5", MLPs "MLP5". In
    the layers that `neurons` lists ("all" for all), single neurons "L5N17" and the bias "b_out5"
    replace "MLP5". One `position` (an axis of length 1) or all.

    `constants_apart` counts (b_V + ln_1.b W_V) W_O, which a head writes regardless of attention,
    as attention bias. TransformerLens puts it there when it processes weights.

    With `edits`, as for `run`, the parts are the edited ones. The change that an edit makes to the
    stream itself or to attn_out is a part of its own, "edit_resid_mid5". Text gets <|endoftext|>
    put before it, unlike in `complete` and `score`; `bos=False` leaves it out.
    """
    given, last = prompts(model, text_or_tokens, bos), stream_name(None, model.config)
    at = stream_name(at, model.config)
    found = stream_terms(model, given, at, position, neurons, constants_apart, edits)
    point = f"{layer_of(at)}_{kind_of(at).removeprefix('resid_')}"
    return Parts(found.labels, found.values, given.tokens, given.bos,
                 on_host(model.params["ln_f"]["g"]), "final_post" if at == last else point)


# --- the terms, as vectors or along directions -----------------------------------------


class StreamTerms(NamedTuple):
    """Terms [p, b, q, d], or along directions [p, b, q]; the final scale [b, q, 1].

    `sources` [head, b, q, k] are the heads' terms by the position that they attend to.
    """

    labels: list[str]
    values: np.ndarray
    scale: np.ndarray
    sources: np.ndarray | None


def stream_terms(model, given, at, position, neurons, constants_apart, edits, directions=None,
                 by_source=False):
    """Return the StreamTerms of a stream from one pass.

    Along `directions`, [b, d] or [b, q, d], no part's vectors are ever held.
    """
    config = model.config
    n_attention, n_mlp = (layer_of(at) + n for n in WRITTEN_BEFORE[kind_of(at)])
    apart = neuron_layers(neurons, config)
    here = position_slice(position, given.tokens)
    reader = Reader(directions if np.ndim(directions) < 3 else directions[:, here])
    shape = (*given.tokens[:, here].shape, *([config.n_embd] if directions is None else []))
    n_parts = 2 + n_attention * (config.n_head + 1) + n_mlp + len(apart) * 4 * config.n_embd
    check_size((n_parts, *shape), "choose a position, fewer neurons, or attribution to an answer")
    if by_source:
        check_size((n_attention * config.n_head, *shape, given.tokens.shape[1]),
                   "choose a position")
    names = {"hook_embed", "hook_pos_embed", "ln_final.hook_scale"}
    for kind in ("z", "v", "pattern") if by_source else ("z",):
        names |= {activation_name(kind, layer) for layer in range(n_attention)}
    names |= {activation_name("post" if layer in apart else "mlp_out", layer)
              for layer in range(n_mlp)}

    def cut(name, array):
        if kind_of(name) in BY_QUERY:
            return array[:, :, here]
        return array if kind_of(name) == "v" else array[:, here]

    edits = Edits(model, edits)
    added = names_of_added(edits, at, config, apart)
    of_z = [name for name in names if by_source and kind_of(name) == "z" and name in edits]
    _, recorder = recorded(model, given, names, edits, last_only=True,
                           change_names=[*added, *of_z], cut=cut)
    seen = recorder.kept

    blocks = [([name], reader.vectors(seen[f"hook_{name}"])[None])
              for name in ("embed", "pos_embed")]
    sources = []
    for layer in range(n_attention):
        kept = {kind: seen.get(activation_name(kind, layer)) for kind in ("z", "v", "pattern")}
        heads, bias, moved = attention_terms(model, layer, reader, constants_apart, **kept)
        blocks.append(([f"L{layer}H{head}" for head in range(config.n_head)], heads))
        blocks.append(([f"b_O{layer}"], bias))
        if by_source:
            name = activation_name("z", layer)
            if name in of_z:  # a head whose z was put in moves nothing from any position
                moved *= (recorder.changes[name] == 0).all(axis=-1).transpose(2, 0, 1)[..., None]
            sources.append(moved)
        if layer < n_mlp and layer in apart:
            blocks += neuron_terms(model, layer, reader, seen[activation_name("post", layer)])
        elif layer < n_mlp:
            out = seen[activation_name("mlp_out", layer)]
            blocks.append(([f"MLP{layer}"], reader.vectors(out)[None]))
    for name in added:
        change = recorder.changes[name]
        change = change.sum(axis=2) if kind_of(name) == "result" else change
        label = f"edit_{kind_of(name)}{layer_of(name)}"
        blocks.append(([label], reader.vectors(change)[None]))
    values = np.concatenate([np.broadcast_to(part, (len(labels), *shape))
                             for labels, part in blocks])
    return StreamTerms([label for labels, _ in blocks for label in labels], values,
                       seen["ln_final.hook_scale"], np.concatenate(sources) if sources else None)


class Reader:
    """Reads the stream: all of it, or along a direction a prompt, [b, d], or position, [b, q, d].

    Weights that write to the stream are multiplied by the directions before the activations are,
    so that a head or a neuron is a number from the start.
    """

    def __init__(self, directions=None):
        self.directions = directions
        self.axes = "d" if directions is None else "bq"[: directions.ndim - 1]

    def vectors(self, x):  # [b, q, d] -> [b, q, d] or [b, q]
        return x if self.directions is None else along(x[None], self.directions)[0]

    def weights(self, w):  # [..., d] -> [..., d], [..., b] or [..., b, q]
        if self.directions is None:
            return w
        *each, d = self.directions.shape
        return (w @ self.directions.reshape(-1, d).T).reshape(*w.shape[:-1], *each)

    def bias(self, w):  # [d] -> [d], [b, 1] or [b, q]
        return w if self.directions is None else self.weights(w).reshape(len(self.directions), -1)

    def written(self, x, axes, weights, result):
        """Return what activations write by weights that were read; `axes` are as for einsum."""
        end = "d" if self.directions is None else ""
        return einsum(f"{axes[0]},{axes[1]}{self.axes}->{result}{end}", x, weights)


def attention_terms(model, layer, reader, constants_apart, z, v, pattern):
    """Return the terms of the heads and the bias, and the heads' by source if v is given."""
    weights = attention_weights(model, layer)
    bias = weights.b_O
    if constants_apart:
        constant = weights.b_V + einsum("d,hde->he", weights.shift, weights.W_V)
        bias = bias + np.einsum("he,hed->d", constant, weights.W_O)
        z, v = z - constant, v if v is None else v - constant
    w_o, moved = reader.weights(weights.W_O), None
    if v is not None:
        moved = reader.written(v, ("bkhe", "he"), w_o, f"h{reader.axes}k")  # [h, b, k] or [hbqk]
        moved = pattern.swapaxes(0, 1) * moved.reshape(*moved.shape[:2], -1, moved.shape[-1])
    return reader.written(z, ("bqhe", "he"), w_o, "hbq"), reader.bias(bias)[None], moved


def neuron_terms(model, layer, reader, post):
    c_proj = on_host(model.params["blocks"][layer]["mlp"]["c_proj"])
    written = reader.written(post, ("bqm", "m"), reader.weights(c_proj["w"]), "mbq")
    return [([f"L{layer}N{n}" for n in range(len(written))], written),
            ([f"b_out{layer}"], reader.bias(c_proj["b"])[None])]


def neuron_layers(neurons, config):
    """Return the layers that `neurons` means: one, a list, or "all"."""
    if isinstance(neurons, str):
        if neurons != "all":
            raise Error(f"neurons is {shown(neurons)}: give layers, such as [5], or 'all'")
        return set(range(config.n_layer))
    layers = [neurons] if np.ndim(neurons) == 0 else list(neurons)
    for layer in layers:
        check_index("layer", layer, config.n_layer, negative=True)
    return {layer % config.n_layer for layer in layers}


def check_size(shape, remedy):
    n = math.prod(shape)
    if n > MOST_NUMBERS:
        raise Error(f"the result would be {n:,} numbers {shape}, at least {n >> 28} GiB: {remedy}")


def names_of_added(edits, at, config, neurons):
    """Return the names, up to `at`, whose edits add to the stream beside its other parts."""
    known = activation_names(config)
    return [name for name in known[: known.index(at) + 1] if name in edits
            and (kind_of(name) in ADDED_BY_EDITS
                 or (kind_of(name) == "mlp_out" and layer_of(name) in neurons))]


def stream_name(at, config):
    """Return the full name of the stream that `at` means, by default the end of the last layer."""
    if isinstance(at, int | np.integer):
        raise Error(f"at is {at}, a layer: say which of its points, '{at}_pre', '{at}_mid' or "
                    f"'{at}_post'")
    found = sorted(matching_names("final_post" if at is None else at, config))
    if len(found) != 1:
        raise Error(f"at is {shown(at)}, which is {len(found)} activations: name one, such as "
                    "blocks.0.hook_resid_mid")
    if kind_of(found[0]) not in WRITTEN_BEFORE:
        raise Error(f"{shown(at)} is not the residual stream: choose a layer's "
                    f"{', '.join(WRITTEN_BEFORE)}")
    return found[0]

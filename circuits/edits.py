"""Edits: patch in another run's activations, zero them, steer, cut attention, ablate parts.

An edit is called as a tap is, (name, array), with a copy of the activation. Ablation asks if a part
is necessary. Zeros are far from anything that the later layers know; the mean over other prompts,
or another prompt's own activations, stay closer to it. (Wang et al. 2022, section 2.1, on mean
ablation; Geva et al. 2023, "Dissecting Recall of Factual Associations", on knocked-out attention;
Turner et al. 2023, "Activation Addition: Steering Language Models Without Optimization".)
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import namespace, to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, is_number
from .activations import run
from .inputs import PromptsLike, check_same_length, prompts, shared_positions
from .interventions import PlacedEdit, Replacement, chosen_indices, host_numbers
from .names import (
    BY_HEAD,
    BY_NEURON,
    BY_QUERY,
    activation_name,
    kind_of,
    matching_names,
    node_list,
    parse_node,
)

MODES = ("zero", "mean", "resample")


def patch(values: Any, head: Any = None, position: Any = None, neuron: Any = None) -> PlacedEdit:
    """Return an edit that puts in `values`, an activation or one that NumPy broadcasts to it.

    (`patching` is the sweep: a patch of one head or position after another, and the metric.)
    `head`, `neuron` (of pre and post) and `position` restrict it: each an int, a list, a slice, or
    None for all. For attention patterns the position is the query's. Positions are those of the
    text: while it is generated, slice(5, None) is every one from 5 on, and negative ones count
    from the end of the prompt.
    """
    return Replacement(values, head, neuron, position)


def zero(head: Any = None, position: Any = None, neuron: Any = None) -> PlacedEdit:
    """Return an edit that sets an activation to 0, in part as in `patch`, or everywhere."""
    return Replacement(0.0, head, neuron, position)


def add(
    vector: Any, scale: float = 1.0, *, head: Any = None, position: Any = None, neuron: Any = None
) -> PlacedEdit:
    """Return an edit that adds `scale` times a vector: steering, if it is the residual stream's.

    The vector may be any array that NumPy broadcasts to the activation. `head`, `position` and
    `neuron` are those of `patch`.
    """
    if not is_number(scale):
        raise Error(f"scale is {shown(scale)}: it must be a number")
    return Replacement(scale * host_numbers(vector), head, neuron, position, adds=True)


def knock_out(queries: Any, keys: Any = None, head: Any = None) -> PlacedEdit:
    """Return an edit of hook_attn_scores: these queries can no longer attend to these keys.

    Without `keys`, `queries` is a list of pairs (query, key). Scores become -inf, and the rest of
    the attention is normalised again. Raises Error if a query would be left without any key.
    """
    return KnockOut(queries, keys, head)


class KnockOut(PlacedEdit):
    """The edit of `knock_out`."""

    def __init__(self, queries, keys, head):
        pairs = [(queries, keys)]
        if keys is None:
            pairs = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in
                     (queries if isinstance(queries, list | tuple) else ())]
            if not pairs or any(len(pair) != 2 for pair in pairs):
                raise Error(f"knock_out got {shown(queries)} and no keys: give queries and keys, "
                            "or a list of pairs (query, key)")
        self.pairs, self.head = pairs, head

    def __repr__(self):
        return f"knock_out({shown(self.pairs)}, head={self.head})"

    def mask(self, name, array, place):
        if not name.endswith("hook_attn_scores"):
            raise Error(f"knock_out edits hook_attn_scores, not {name}")
        b, n_head, _, n_keys = array.shape
        keys_here = np.broadcast_to(np.arange(n_keys), (b, n_keys))
        mask = False
        for queries, keys in self.pairs:
            query = place.chosen(queries, axis="query")[:, None, :, None]
            key = place.chosen(keys, keys_here, "key")[:, None, None, :]
            mask = mask | (query & key)
        heads = np.zeros(n_head, bool)
        heads[chosen_indices("head", self.head, n_head)] = True
        return mask & heads[:, None, None]

    def at(self, name, array, place):
        scores = np.where(self.mask(name, array, place), -np.inf, to_host(array))
        if np.isneginf(scores).all(axis=-1).any():
            raise Error(f"knock_out leaves a query of {name} without any key: leave it one")
        return namespace(array).asarray(scores, dtype=array.dtype)


# --- ablation of heads and MLPs --------------------------------------------------------


def ablated(
    model: Model,
    nodes: Any,
    mode: str = "zero",
    *,
    source: PromptsLike | Mapping[str, np.ndarray] | None = None,
) -> dict[str, PlacedEdit]:
    """Return edits that ablate heads, neurons and MLPs ("L5H1", "5.1", (5, 1), "L2N17", "MLP3").

    They go into `edits=` of any tool, for one part or a list. (`ablation` is the sweep: one part
    ablated after another, and the metric.) `mode` "zero" puts in zeros, "mean" the mean over the
    `source` prompts, position by position, "resample" their activations, prompt by prompt. Source
    prompts must be as long as those of the run; for means over texts of any lengths `source` is
    {name: mean_activation(model, texts, name)}. Source text gets <|endoftext|> put before it:
    `prompts` with bos=False leaves it out.
    """
    units = units_by_name(parse_node(model.config, node) for node in node_list(nodes))
    new, *_ = replacements(model, source, mode, source, sorted(units))
    return replacing_edits(units, new)


def units_by_name(nodes):
    """Return {name: {"head": heads}} of each hook_z, {"neuron": ...} of hook_post, {} of MLPs."""
    found: dict[str, Any] = {}
    for node in nodes:
        if len(node) == 3:
            here = found.setdefault(activation_name("post", node[0]), {"neuron": []})
            here["neuron"].append(node[2])
        elif node[1] is None:
            found[activation_name("mlp_out", node[0])] = {}
        else:
            found.setdefault(activation_name("z", node[0]), {"head": []})["head"].append(node[1])
    return found


def replacing_edits(units, new):
    """Return edits that put `new` activations (None: zeros) in at those heads, neurons and MLPs."""
    return {name: patch(0.0 if new is None else new[name], **chosen)
            for name, chosen in units.items()}


def check_mode(mode, source):
    """Raise Error for an unknown mode of ablation, and for a source too much or too few."""
    if not isinstance(mode, str) or mode not in MODES:
        raise Error(f"unknown ablation {shown(mode)}: choose one of {', '.join(MODES)}")
    if mode == "zero" and source is not None:
        raise Error("zero-ablation has no use for source: leave it out, or give mode='mean' or "
                    "'resample'")
    if mode != "zero" and source is None:
        raise Error(f"{mode}-ablation needs source prompts: give source=")


def given_means(model, mode, source, names):
    """Return means [1, 1, ...] by name, from a mapping of activations to one vector each."""
    h, d = model.config.n_head, model.config.n_embd
    means = {name: host_numbers(mean) for key, mean in source.items()
             for name in matching_names(key, model.config)}
    for name in names:
        kind, found = kind_of(name), np.shape(means.get(name, ()))
        expected = (h, d // h) if kind in BY_HEAD else (4 * d,) if kind in BY_NEURON else (d,)
        if mode != "mean" or kind in BY_QUERY or found != expected:
            raise Error(f"source is a mapping, and {mode}-ablation of {name} cannot use it: with "
                        f"mode='mean' give {{name: mean_activation(model, texts, name)}}, of shape "
                        f"{expected}")
    return {name: means[name][None, None] for name in names}


def replacements(model, base, mode, source, names, edits=None, last_only=True):
    """Return an ablation's activations [1 or b, q, ...] by name (None: zeros).

    The second result counts the first positions at which they do not differ from the prompts', the
    third is the logits of the prompts that they come from, if they are one's own.
    """
    check_mode(mode, source)
    if mode == "zero":
        return None, 0, None
    if isinstance(source, Mapping):
        return given_means(model, mode, source, names), 0, None
    base, source = prompts(model, base), prompts(model, source)
    check_same_length(base, source, "source", any_number=mode == "mean")
    seen = run(model, source, names, edits=edits, last_only=last_only)
    if mode == "mean":
        return {name: array.mean(axis=0, keepdims=True)
                for name, array in seen.activations.items()}, 0, None
    return seen.activations, shared_positions(base, source), seen.logits

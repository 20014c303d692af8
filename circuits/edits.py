"""Edits for `run`: patch in another run's activations, zero them, cut attention, ablate parts.

An edit is a function (array, name) on a copy of an activation. Ablation asks if a part is
necessary. Zeros are far from anything that the later layers know; the mean over other prompts, or
another prompt's own activations, stay closer to it. (Wang et al. 2022, section 2.1, on mean
ablation; Geva et al. 2023, "Dissecting Recall of Factual Associations", on knocked-out attention.)
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend import namespace, to_host
from ..bpe import shown
from ..gpt2_np import Error, Model
from .activations import Edit, run
from .inputs import PromptsLike, check_index, check_same_length, prompts, shared_positions
from .names import BY_HEAD, activation_name, kind_of, parse_node

MODES = ("zero", "mean", "resample")


def patch(values: Any, head: Any = None, position: Any = None) -> Edit:
    """Return an edit that puts in `values`, an activation of the same shape.

    `head` and `position` restrict it: each an int, a list, a slice, or None for all. For attention
    patterns the position is the query's.
    """

    def edit(array, name):
        index = index_of(array, name, head, position)
        new = namespace(array).asarray(values)
        if new.shape[1:] != array.shape[1:] or new.shape[0] not in (1, array.shape[0]):
            raise Error(f"the values to patch into {name} have shape {new.shape}, "
                        f"they must have {array.shape}")
        array[index] = new[index]

    return edit


def zero(head: Any = None, position: Any = None) -> Edit:
    """Return an edit that sets an activation to 0, at a head and position or everywhere."""

    def edit(array, name):
        array[index_of(array, name, head, position)] = 0

    return edit


def knock_out(queries: Any, keys: Any, head: Any = None) -> Edit:
    """Return an edit of hook_attn_scores: these queries can no longer attend to these keys.

    Scores become -inf, and the rest of the attention is normalised again. Raises Error if a query
    would be left without any key.
    """

    def edit(array, name):
        if not name.endswith("hook_attn_scores"):
            raise Error(f"knock_out edits hook_attn_scores, not {name}")
        scores = to_host(array)  # [b, h, q, k]
        wanted = (("head", head), ("query", queries), ("key", keys))
        chosen = [chosen_indices(axis, i, n) for (axis, i), n in
                  zip(wanted, scores.shape[1:], strict=True)]
        scores[np.ix_(range(len(scores)), *chosen)] = -np.inf
        if np.isneginf(scores).all(axis=-1).any():
            raise Error(f"knock_out leaves a query of {name} without any key: leave it one")
        return scores

    return edit


def index_of(array, name, head, position):
    """Return the index of heads and positions in the activation of that name."""
    kind, xp = kind_of(name), namespace(array)
    if head is not None and kind not in BY_HEAD:
        raise Error(f"{name} has no heads: leave head out")
    wanted = [("position", position)]
    if kind in ("pattern", "attn_scores"):  # [b, h, q, k]
        wanted.insert(0, ("head", head))
    elif kind in BY_HEAD:  # [b, q, h, ...]
        wanted.append(("head", head))
    chosen = [chosen_indices(axis, i, n)
              for (axis, i), n in zip(wanted, array.shape[1:], strict=False)]
    return (slice(None), *map(xp.asarray, np.ix_(*chosen)))


def chosen_indices(axis, index, n):
    """Return the indices below n that an int, a list, a slice or None (all) means, checked."""
    if index is None or isinstance(index, slice):
        return np.arange(n)[slice(None) if index is None else index]
    for one in np.atleast_1d(index).tolist():
        check_index(axis, one, n, negative=True)
    return np.atleast_1d(index) % n


# --- ablation of heads and MLPs --------------------------------------------------------


def ablated(
    model: Model, nodes: Iterable[Any], mode: str = "zero", *, reference: PromptsLike | None = None
) -> dict[str, Edit]:
    """Return edits for `run` that ablate heads and MLPs ("L5H1", "5.1", (5, 1), "MLP3").

    "zero"; "mean" puts in the mean over the `reference` prompts, position by position; "resample"
    their activations, prompt by prompt. Reference prompts must be as long as those of the run.
    """
    heads_of = heads_by_name(parse_node(model.config, node) for node in nodes)
    source, _ = replacements(model, reference, mode, reference, sorted(heads_of))
    return replacing_edits(heads_of, source)


def heads_by_name(nodes):
    """Return {name: heads}: the heads of each hook_z, None for the whole of a hook_mlp_out."""
    found: dict[str, Any] = {}
    for layer, head in nodes:
        if head is None:
            found[activation_name("mlp_out", layer)] = None
        else:
            found.setdefault(activation_name("z", layer), []).append(head)
    return found


def replacing_edits(heads_of, source):
    """Return edits that put `source` (None: zeros) in at those heads and MLPs."""
    return {name: zero(chosen) if source is None else patch(source[name], chosen)
            for name, chosen in heads_of.items()}


def replacements(model, given, mode, reference, names):
    """Return an ablation's activations [1 or b, q, ...] by name (None: zeros).

    The second result counts the first positions at which they do not differ from the prompts'.
    """
    if mode not in MODES:
        raise Error(f"unknown ablation {shown(mode)}: choose one of {', '.join(MODES)}")
    if mode == "zero":
        return None, 0
    if reference is None:
        raise Error(f"{mode}-ablation needs reference prompts: give reference=")
    given, reference = prompts(model, given), prompts(model, reference)
    check_same_length(given, reference, "reference", any_number=mode == "mean")
    seen = run(model, reference, names, last_only=True).activations
    if mode == "mean":
        return {name: array.mean(axis=0, keepdims=True) for name, array in seen.items()}, 0
    return seen, shared_positions(given, reference)

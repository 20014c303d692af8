"""Run a model, keep the activations asked for, and edit some on the way.

One pass shows every quantity between token ids and logits. An edit changes one of them and lets
the rest of the pass respond, so that its effect on the logits is causal, not a correlation.
"""
from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import namespace, to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, forward
from ..inference.turns import turn
from .inputs import PromptsLike, prompts
from .names import as_glob, matching_names, nearest

Edit = Callable[[Any, str], Any]  # (a copy of the activation, its name) -> an array, or None


@dataclass(frozen=True, eq=False)
class Run:
    """The result of one pass: logits [b, q, v], activations by name, and the prompts."""

    logits: np.ndarray
    activations: dict[str, np.ndarray]
    tokens: np.ndarray
    bos: bool

    def __getitem__(self, name: str) -> np.ndarray:
        """Return an activation by its full name, or by a short one that means only one."""
        if name in self.activations:
            return self.activations[name]
        found = fnmatch.filter(self.activations, as_glob(name))
        if not found:
            raise Error(f"{shown(name)} was not kept{nearest(name, self.activations)}")
        if len(found) > 1:
            raise Error(f"{shown(name)} is in {len(found)} layers: name one, as {found[0]}")
        return self.activations[found[0]]


class Recorder:
    """A tap that keeps some activations on the host and edits some."""

    def __init__(self, keep, edits):
        self.keep, self.edits, self.kept = keep, edits, {}

    def wants(self, name):
        return name in self.keep or name in self.edits

    def __call__(self, name, array):
        edited = array
        for edit in self.edits.get(name, ()):
            given = edited.copy()
            result = edit(given, name) if callable(edit) else edit
            edited = given if result is None else namespace(array).asarray(result, array.dtype)
        if name in self.keep:
            kept = to_host(edited)
            self.kept[name] = kept if kept.base is None else kept.copy()  # a view keeps its base
        return edited


def run(
    model: Model,
    text_or_tokens: PromptsLike,
    names: Sequence[str] | str | Callable[[str], bool] = (),
    *,
    edits: Mapping[str, Edit | Any] | None = None,
    bos: bool | None = None,
    last_only: bool = False,
) -> Run:
    """Return the logits and the activations asked for. No other activation is kept.

    `names` is one or several full names, short names or globs, or a predicate. `edits` maps such
    names to arrays, or to functions (array, name) that return an array or change theirs. Edits
    come before an activation is kept. `last_only` gives logits of the last position, [b, 1, v].
    Raises Error for a name that does not exist, with the nearest that do, and for an edit of
    another shape.
    """
    given = prompts(model, text_or_tokens, bos)
    by_name: dict[str, list] = {}
    for pattern, edit in (edits or {}).items():
        for name in matching_names(pattern, model.config):
            by_name.setdefault(name, []).append(edit)
    recorder = Recorder(matching_names(names, model.config), by_name)
    with turn(model, has_tap=bool(by_name)):
        logits = forward(model.params, model.config, given.tokens, tap=recorder,
                         last_only=last_only)
    return Run(to_host(logits), recorder.kept, given.tokens, given.bos)

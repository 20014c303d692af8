"""Run a model, keep the activations asked for, and edit some on the way.

One pass shows every quantity between token ids and logits. An edit changes one of them and lets
the rest of the pass respond, so that its effect on the logits is causal, not a correlation.
"""
from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..backend import to_host
from ..bpe import Tokenizer, shown
from ..gpt2_np import Error, Model, forward
from ..inference.turns import turn
from .drawings import patterns_picture
from .inputs import PromptsLike, prompts
from .interventions import Edits, EditsLike, Place
from .names import as_glob, kind_of, layer_of, matching_names, nearest
from .short_reprs import Result


@dataclass(frozen=True, eq=False, repr=False)
class Run(Result):
    """The result of one pass: logits [b, q, v], activations by name, and the prompts."""

    logits: np.ndarray
    activations: dict[str, np.ndarray]
    tokens: np.ndarray
    bos: bool
    tokenizer: Tokenizer | None = field(default=None, repr=False, kw_only=True)

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

    def _repr_html_(self) -> str | None:
        """Return a picture of the patterns of the first prompt, if any were kept."""
        n = self.tokens.shape[1]
        patterns = {layer_of(name): array[0] for name, array in self.activations.items()
                    if kind_of(name) == "pattern" and array.shape[2:] == (n, n)}
        return patterns_picture(self, patterns) if patterns else None


class Recorder:
    """A tap that edits some activations and keeps some on the host, after their edits.

    `changes` are what the edits of `change_names` added to them.
    """

    def __init__(self, keep, edits, place, change_names=()):
        self.keep, self.edits, self.place, self.kept = keep, edits, place, {}
        self.change_names, self.changes = change_names, {}

    def wants(self, name):
        return name in self.keep or name in self.edits

    def __call__(self, name, array):
        edited = self.edits.apply(name, array, self.place) if name in self.edits else array
        if name in self.keep:
            kept = to_host(edited)
            self.kept[name] = kept if kept.base is None else kept.copy()  # a view keeps its base
        if name in self.change_names and name in self.edits:
            self.changes[name] = to_host(edited) - to_host(array)
        return edited


def run(
    model: Model,
    text_or_tokens: PromptsLike,
    names: Sequence[str] | str | Callable[[str], bool] = (),
    *,
    edits: EditsLike | None = None,
    bos: bool | None = None,
    last_only: bool = False,
) -> Run:
    """Return the logits and the activations asked for. No other activation is kept.

    `names` is one or several full names, short names or globs, or a predicate. `edits` maps such
    names to edits: arrays, or functions (name, array) that return an array or change theirs; or a
    list of edits, made one after another. It may be a tap, and a list of mappings and taps. Edits
    come before an activation is kept. `last_only` gives logits of the last position, [b, 1, v].
    Raises Error for a name that does not exist, with the nearest that do, and for an edit of
    another shape.
    """
    given = prompts(model, text_or_tokens, bos)
    logits, recorder = recorded(model, given, matching_names(names, model.config),
                              Edits(model, edits), last_only)
    return Run(to_host(logits), recorder.kept, given.tokens, given.bos,
               tokenizer=model.tokenizer)


def recorded(model, given, names, edits, last_only=False, change_names=(), place=None):
    """Return the logits of one pass and its Recorder."""
    place = place or Place.from_position(0, *given.tokens.shape)
    recorder = Recorder(names, edits, place, change_names)
    with turn(model, has_tap=bool(edits)):
        logits = forward(model.params, model.config, given.tokens, tap=recorder,
                         last_only=last_only)
    return logits, recorder

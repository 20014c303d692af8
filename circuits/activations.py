"""Run a model, keep the activations asked for, and edit some on the way.

One pass shows every quantity between token ids and logits. An edit changes one of them and lets
the rest of the pass respond, so that its effect on the logits is causal, not a correlation.
"""
from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..backend import to_host
from ..bpe import Tokenizer, shown
from ..gpt2_np import Config, Error, Model, forward, softmax
from ..inference.turns import turn
from .drawings import patterns_picture
from .inputs import PromptsLike, check_count, prompts
from .interventions import Edits, EditsLike, Place
from .names import (
    BLOCK_NAMES,
    SHORT_NAMES,
    activation_names,
    glob_of,
    kind_of,
    layer_glob,
    layer_of,
    matching_names,
    nearest,
)
from .short_reprs import Result
from .weights import TopTokens, best_tokens

Name = str | tuple[str, int]
Names = Name | Sequence[Name] | Callable[[str], bool]


class NotKept(Error, KeyError):
    """The error of an activation that was not kept, and a KeyError to `get` and `in`."""

    __str__ = Error.__str__  # KeyError's shows the repr of the message


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Result, Mapping[str, np.ndarray]):
    """Arrays by the full names of activations, in the order of the forward pass, and the prompts.

    `r["blocks.1.attn.hook_z"]`, or `r["z", 1]` by layer (-1 is the last), or `r["z"]` if only one
    layer was kept. Two are equal only if they are the same object.
    """

    activations: dict[str, np.ndarray]
    tokens: np.ndarray
    bos: bool
    config: Config
    tokenizer: Tokenizer | None = field(default=None, repr=False, kw_only=True)

    def __getitem__(self, name: str | tuple[str, int]) -> np.ndarray:
        """Return an activation by its full name, a short one that means only one, or by layer."""
        found = self.names_of(name)
        if not found:
            wanted = name[0] if isinstance(name, tuple) else name
            known = activation_names(self.config)
            there = (wanted in BLOCK_NAMES
                     or fnmatch.filter(known, glob_of(wanted, self.config)))
            raise NotKept(f"{shown(name)} was not kept" + (
                f": ask for it with names={wanted!r}" if there
                else nearest(wanted, [*SHORT_NAMES, *known])))
        if len(found) > 1:
            raise Error(f"{shown(name)} is in {len(found)} layers: name one, as {found[0]}, or "
                        "stack them")
        return self.activations[found[0]]

    def __contains__(self, name: object) -> bool:
        """Return True if one or more of the activations that a name means were kept."""
        try:
            return bool(self.names_of(name))
        except Error:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    __eq__, __hash__ = object.__eq__, object.__hash__  # Mapping would compare the arrays

    def names_of(self, name: Any) -> list[str]:
        """Return the names of the kept activations that a full or short name or a pair means."""
        if isinstance(name, str) and name in self.activations:
            return [name]
        return fnmatch.filter(self.activations, glob_of(name, self.config))

    def stack(self, kind: str) -> np.ndarray:
        """Return a kind of activation of all layers that were kept, in order, as [layer, b, ...].

        `kind` is a short name, such as "resid_pre".
        """
        found = fnmatch.filter(self.activations, layer_glob(kind))
        if not found:
            raise NotKept(f"{shown(kind)} was kept of no layer: ask for it with names={kind!r}")
        return np.stack([self.activations[name] for name in found])


@dataclass(frozen=True, eq=False, repr=False)
class Run(Activations):
    """The result of one pass: logits [b, q, v], and the activations that were kept by name."""

    logits: np.ndarray

    def __repr__(self) -> str:
        nothing = "the logits alone: names='z', or '*' for all, keeps activations too"
        text = Activations.__repr__(self)
        return text if self.activations else text.replace("activations={}", nothing, 1)

    def top(self, n: int = 10) -> TopTokens:
        """Return the n most probable next tokens of each prompt, [b, n], and probabilities."""
        check_count("n", n)
        n_vocab = getattr(self.tokenizer, "n_vocab", self.config.n_vocab)  # less rows that pad
        logits = self.logits[:, -1, :n_vocab]
        found = best_tokens(self.tokenizer, logits, n)
        return replace(found, probabilities=np.take_along_axis(softmax(logits), found.ids, axis=-1))

    def _repr_html_(self) -> str | None:
        """Return a picture of the patterns of the first prompt, if any were kept."""
        n = self.tokens.shape[1]
        patterns = {layer_of(name): array[0] for name, array in self.items()
                    if kind_of(name) == "pattern" and array.shape[2:] == (n, n)}
        return patterns_picture(self, patterns) if patterns else None


class Recorder:
    """A tap that edits some activations and keeps some on the host, after their edits.

    `changes` are what the edits of `change_names` added to them. `cut` (name, array) returns the
    part of an activation that is kept.
    """

    def __init__(self, keep, edits, place, change_names=(), cut=None):
        self.keep, self.edits, self.place, self.kept = keep, edits, place, {}
        self.change_names, self.changes = change_names, {}
        self.cut = cut or (lambda name, array: array)

    def wants(self, name):
        return name in self.keep or name in self.edits

    def __call__(self, name, array):
        edited = self.edits.apply(name, array, self.place) if name in self.edits else array
        if name in self.keep:
            kept = to_host(self.cut(name, edited))
            self.kept[name] = kept if kept.base is None else kept.copy()  # a view keeps its base
        if name in self.change_names and name in self.edits:
            before, after = (to_host(self.cut(name, x)) for x in (array, edited))
            self.changes[name] = after - before
        return edited


def run(
    model: Model,
    text_or_tokens: PromptsLike,
    names: Names = (),
    *,
    edits: EditsLike | None = None,
    bos: bool | None = None,
    last_only: bool = False,
) -> Run:
    """Return the logits alone, and with `names` also activations: "z", or "*" for all of them.

    The result is a mapping: `r["z", 1]`, `r["resid_post", -1]`, `r.stack("resid_pre")`; `r.top(5)`
    are the most probable next tokens. `names` is one or several full names, short names, globs,
    pairs ("z", 1) or `lens`'s points, or a predicate. `edits` maps
    such names to edits: arrays, or functions (name, array) that return an array or change theirs;
    or a list of edits, made one after another. It may be a tap, and a list of mappings and taps.
    Edits come before an activation is kept. `last_only` gives logits of the last position,
    [b, 1, v].

    Text gets <|endoftext|> put before it, unlike in `complete` and `score`; `bos=False` leaves it
    out. Raises Error for a name that does not exist, with the nearest that do, and for an edit of
    another shape.
    """
    given = prompts(model, text_or_tokens, bos)
    logits, recorder = recorded(model, given, matching_names(names, model.config),
                              Edits(model, edits), last_only)
    return Run(recorder.kept, given.tokens, given.bos, model.config, to_host(logits),
               tokenizer=model.tokenizer)


def recorded(model, given, names, edits, last_only=False, change_names=(), place=None, cut=None):
    """Return the logits of one pass and its Recorder."""
    place = place or Place.from_position(0, *given.tokens.shape)
    recorder = Recorder(names, edits, place, change_names, cut)
    with turn(model, has_tap=bool(edits)):
        logits = forward(model.params, model.config, given.tokens, tap=recorder,
                         last_only=last_only)
    return logits, recorder

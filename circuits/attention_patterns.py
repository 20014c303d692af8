"""Attention patterns as scores: which heads look at the previous token, at copies, after copies.

A head that attends from a token to the token after its earlier copy is an induction head: it can
continue a sequence that it has seen once. Random tokens that repeat show it, because nothing but
the repetition can be learnt from them. (Olsson et al. 2022, "In-context Learning and Induction
Heads", "Head activation evaluators".)
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from ..backend import to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, Tokens, forward
from ..inference.turns import turn
from .drawings import attention_picture
from .inputs import (
    OnePrompt,
    Prompts,
    PromptsLike,
    begins_with_end,
    by_length,
    check_count,
    check_numbers,
    windows_of,
)
from .interventions import Edits, EditsLike, HeldEdits, InTurn, Place
from .metrics import entropy
from .names import nearest
from .short_reprs import Result, prompts_in, table
from .tasks import repeated_tokens

SHARES = ("previous_token", "current_token", "duplicate_token", "induction", "beginning")
KINDS = (*SHARES, "entropy", "distance")


@dataclass(frozen=True, eq=False, repr=False)
class Attention(Result):
    """Averages of each head's attention, every array [layer, head].

    Shares of attention from 0 to 1: to the previous token, to the current token itself, to earlier
    copies of it, to the tokens after them (induction), to the first position. `entropy` in nats,
    `distance` in positions back. The first query is left out, as it has one key only. NaN if no
    position of the prompts could show it.
    """

    previous_token: np.ndarray
    current_token: np.ndarray
    duplicate_token: np.ndarray
    induction: np.ndarray
    beginning: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    tokens: np.ndarray
    bos: bool

    def __repr__(self) -> str:
        rows = [[kind.replace("_", " "), *(f"{name} {value:.2f}" for name, value in
                                           self.top(kind, 4))] for kind in SHARES]
        return table(f"Attention of {self.induction.shape[0]} layers of {self.induction.shape[1]} "
                     f"heads in {prompts_in(self.tokens)}: the highest of each kind", rows)

    def _repr_html_(self) -> str:
        return attention_picture(self, SHARES)

    def top(self, kind: str, n: int = 10) -> list[tuple[str, float]]:
        """Return the heads with the highest scores of a kind, such as "induction", and these.

        Heads that have no score are left out. Raises Error for a kind that is not a score.
        """
        check_count("n", n)
        kind = kind.replace(" ", "_")
        if kind not in KINDS:
            raise Error(f"unknown score {shown(kind)}{nearest(kind, KINDS)}")
        scores = getattr(self, kind)
        order = np.argsort(-scores, axis=None, kind="stable")[: min(n, np.isfinite(scores).sum())]
        return [(f"L{layer}H{head}", float(scores[layer, head])) for layer, head in
                zip(*np.unravel_index(order, scores.shape), strict=True)]


@overload
def heads(
    model: Model,
    text_or_tokens: Prompts | OnePrompt | None = None,
    *,
    length: int | None = None,
    batch: int = 4,
    seed: int = 0,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Attention: ...
@overload
def heads(
    model: Model,
    text_or_tokens: Sequence[str] | Sequence[Tokens],
    *,
    length: int | None = None,
    batch: int = 4,
    seed: int = 0,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Attention | list[Attention]: ...
def heads(
    model: Model,
    text_or_tokens: PromptsLike | None = None,
    *,
    length: int | None = None,
    batch: int = 4,
    seed: int = 0,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Attention | list[Attention]:
    """Score the attention of every head on a text, or else on random tokens that repeat once.

    The random tokens are `batch` rows of `length` tokens twice: 50, or as many as n_ctx holds. A
    score is the attention on the keys in question, averaged over the queries that have any: all
    but the first for previous tokens, those with an earlier copy for duplicates and induction.
    Each layer's pattern is scored as it is computed, after its `edits`, and not kept.

    Prompts of one length are averaged; those of several lengths give a list, one Attention a
    prompt. A text longer than n_ctx is read in windows that overlap by half. Each position is
    counted in the first window that has it, and looks back no further than that window's
    beginning; edits see one window after another. Text gets <|endoftext|> put before it, unlike in
    `complete` and `score`; `bos=False` leaves it out.
    """
    if text_or_tokens is None:
        config = model.config
        if length is None:
            length = min(50, (config.n_ctx - 1) // 2, (model.n_vocab - 2) // 2)
        text_or_tokens = repeated_tokens(model, length, batch, seed=seed, bos=bos).clean
    elif (length, batch, seed) != (None, 4, 0):
        raise Error("length, batch and seed are of random tokens: leave them or the text out")
    edits = Edits(model, edits)
    groups = by_length(model, text_or_tokens, bos, long=True)
    scores = [scored(model, group.prompts.tokens, edits) for group in groups]
    if len(groups) == 1:
        return scores[0].attention(model, groups[0].prompts.tokens)
    found = {row: own.attention(model, group.prompts.tokens[[i]], [i])
             for group, own in zip(groups, scores, strict=True)
             for i, row in enumerate(group.rows.tolist())}
    return [found[row] for row in sorted(found)]


def scored(model, tokens, edits):
    """Return the PatternScores of prompts of one length, window by window."""
    scores = PatternScores(model.config, len(tokens))
    for window in windows_of([tokens.shape[1]], model.config.n_ctx):
        own = tokens[:, window.start : window.end]
        scores.begin(own, max(1, window.first_scored) - window.start)
        tap = InTurn(HeldEdits(edits, Place.from_position(0, *own.shape)), scores)
        with turn(model, has_tap=bool(edits)):
            forward(model.params, model.config, own, tap=tap, last_only=True)
    return scores


class PatternScores:
    """A tap that sums, prompt by prompt, the attention that scores count: [layer, b, h] a kind.

    `n_queries` [b] of each kind are those that have such keys.
    """

    def __init__(self, config, n_prompts):
        shape = config.n_layer, n_prompts, config.n_head
        self.sums = {kind: np.zeros(shape) for kind in KINDS}
        self.n_queries = {kind: np.zeros(n_prompts, int) for kind in KINDS}

    def begin(self, tokens, first):
        """Begin a pass over tokens [b, q], of which the queries from `first` on are counted."""
        self.layer, self.first, weights = 0, first, key_weights(tokens)
        self.weights = {kind: array[:, first:] for kind, array in weights.items()}
        for kind, array in self.weights.items():
            self.n_queries[kind] += array.any(axis=-1).sum(axis=-1)
        self.n_queries["entropy"] += tokens.shape[1] - first

    def wants(self, name):
        return name.endswith("hook_pattern")

    def __call__(self, name, pattern):
        pattern = to_host(pattern)[:, :, self.first :]  # [b, h, q, k]
        for kind, weights in self.weights.items():
            self.sums[kind][self.layer] += np.einsum("bhqk,bqk->bh", pattern,
                                                     weights.astype(pattern.dtype))
        self.sums["entropy"][self.layer] += entropy(pattern).sum(axis=-1)
        self.layer += 1

    def attention(self, model, tokens, rows=slice(None)):
        """Return the averages over some of the prompts, by default all."""
        columns = {}
        for kind in KINDS:
            total, n = self.sums[kind][:, rows].sum(axis=1), self.n_queries[kind][rows].sum()
            check_numbers("attention patterns", total, model)
            columns[kind] = total / n if n else np.full_like(total, np.nan)
        return Attention(**columns, tokens=tokens, bos=begins_with_end(model, tokens))


def key_weights(tokens):
    """Return the weight of the attention on each key in each kind of score, [b, q, k] by kind."""
    b, n = tokens.shape
    back = np.arange(n)[:, None] - np.arange(n)  # [q, k]
    same = (tokens[:, :, None] == tokens[:, None, :]) & (back > 0)
    after_same = np.zeros_like(same)
    after_same[:, :, 1:] = same[:, :, :-1]
    at_fixed_keys = {"previous_token": back == 1, "current_token": back == 0,
                     "beginning": (back > 0) & (np.arange(n) == 0),
                     "distance": np.maximum(back, 0)}  # fmt: skip
    at_fixed_keys = {kind: np.broadcast_to(one, (b, n, n)) for kind, one in at_fixed_keys.items()}
    return {**at_fixed_keys, "duplicate_token": same, "induction": after_same}

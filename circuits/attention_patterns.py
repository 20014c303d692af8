"""Attention patterns as scores: which heads look at the previous token, at copies, after copies.

A head that attends from a token to the token after its earlier copy is an induction head: it can
continue a sequence that it has seen once. Random tokens that repeat show it, because nothing but
the repetition can be learnt from them. (Olsson et al. 2022, "In-context Learning and Induction
Heads", "Head activation evaluators".)
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend import to_host
from ..gpt2_np import Model, forward
from ..inference.turns import turn
from .drawings import attention_picture
from .inputs import PromptsLike, check_numbers, prompts
from .interventions import Edits, EditsLike, HeldEdits, InTurn, Place
from .metrics import entropy
from .short_reprs import Result, prompts_in, table
from .tasks import repeated_tokens

# The arrays of an Attention that are shares of attention.
SHARES = ("previous_token", "duplicate_token", "induction", "beginning")


@dataclass(frozen=True, eq=False, repr=False)
class Attention(Result):
    """Averages of each head's attention, every array [layer, head].

    Shares of attention from 0 to 1: to the previous token, to earlier copies of the current token,
    to the tokens after them (induction), to the first position. `entropy` in nats, `distance` in
    positions back. NaN if no position of the prompts could show it.
    """

    previous_token: np.ndarray
    duplicate_token: np.ndarray
    induction: np.ndarray
    beginning: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    tokens: np.ndarray
    bos: bool

    def __repr__(self) -> str:
        rows = []
        for kind in SHARES:
            values = getattr(self, kind)
            order = np.argsort(-np.nan_to_num(values), axis=None, kind="stable")[:4]
            best = zip(*np.unravel_index(order, values.shape), strict=True)
            rows.append([kind.replace("_", " "), *(f"L{n}H{h} {values[n, h]:.2f}" for n, h in best
                                                   if values[n, h] == values[n, h])])
        return table(f"Attention of {self.induction.shape[0]} layers of {self.induction.shape[1]} "
                     f"heads in {prompts_in(self.tokens)}: the highest of each kind", rows)

    def _repr_html_(self) -> str:
        return attention_picture(self, SHARES)


def heads(
    model: Model,
    text_or_tokens: PromptsLike | None = None,
    *,
    length: int | None = None,
    batch: int = 4,
    seed: int = 0,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Attention:
    """Score the attention of every head on a text, or else on random tokens that repeat once.

    The random tokens are `batch` rows of `length` tokens twice: 50, or as many as n_ctx holds. A
    score is the attention on the keys in question, averaged over the queries that have any: all
    but the first for previous tokens, those with an earlier copy for duplicates and induction.
    Each layer's pattern is scored as it is computed, after its `edits`, and not kept.
    """
    if text_or_tokens is None:
        config = model.config
        length = length or min(50, (config.n_ctx - 1) // 2, (model.n_vocab - 2) // 2)
        text_or_tokens = repeated_tokens(model, length, batch, seed=seed, bos=bos).clean
    given = prompts(model, text_or_tokens, bos)
    scores = PatternScores(given.tokens)
    edits = Edits(model, edits)
    tap = InTurn(HeldEdits(edits, Place.from_position(0, *given.tokens.shape)), scores)
    with turn(model, has_tap=bool(edits)):
        forward(model.params, model.config, given.tokens, tap=tap, last_only=True)
    columns = {kind: np.stack([row[kind] for row in scores.rows]) for kind in scores.rows[0]}
    check_numbers("attention patterns", columns["entropy"], model)
    return Attention(**columns, tokens=given.tokens, bos=given.bos)


class PatternScores:
    """A tap that scores the attention patterns of each layer, [h] for each kind of score."""

    def __init__(self, tokens):
        n = tokens.shape[1]
        self.masks, self.rows = key_masks(tokens), []  # a row for each layer
        self.distance = np.arange(n)[:, None] - np.arange(n)

    def wants(self, name):
        return name.endswith("hook_pattern")

    def __call__(self, name, pattern):
        pattern = to_host(pattern)  # [b, h, q, k]
        b, _, n, _ = pattern.shape
        row = {kind: mean_share(pattern, mask) for kind, mask in self.masks.items()}
        row["entropy"] = entropy(pattern).mean(axis=(0, 2))
        row["distance"] = np.einsum("bhqk,qk->h", pattern, self.distance) / (b * n)
        self.rows.append(row)


def key_masks(tokens):
    """Return the keys that each kind of head would attend to, booleans [b, q, k] by kind."""
    n = tokens.shape[1]
    earlier = np.tri(n, n, -1, dtype=bool)
    same = (tokens[:, :, None] == tokens[:, None, :]) & earlier
    after_same = np.zeros_like(same)
    after_same[:, :, 1:] = same[:, :, :-1]
    shape = tokens.shape[0], n, n
    return {
        "previous_token": np.broadcast_to(np.eye(n, k=-1, dtype=bool), shape),
        "duplicate_token": same,
        "induction": after_same,
        "beginning": np.broadcast_to((np.arange(n) == 0) & (np.arange(n) > 0)[:, None], shape),
    }


def mean_share(pattern, mask):
    """Return the attention [b, h, q, k] on masked keys, averaged over queries that have any: [h].

    NaN if no query has any.
    """
    queries = mask.any(axis=-1)
    if not queries.any():
        return np.full(pattern.shape[1], np.nan)
    return np.einsum("bhqk,bqk->h", pattern, mask.astype(pattern.dtype)) / queries.sum()

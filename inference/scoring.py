"""Scoring: the log-probabilities of texts of any length, many at once, without all their logits.

A text longer than n_ctx is read in windows that overlap. Windows of several texts are packed into
one row of n_ctx tokens.
"""
from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..gpt2_np import (
    Config,
    Error,
    Model,
    Tap,
    TapFunction,
    Tokens,
    check_finite,
    einsum,
    is_number,
    namespace,
    to_host,
    transformer,
)
from .options import one_text, start_of_text, text_list
from .packing import Packed
from .taps import announce, checked_tap
from .turns import turn

# Logits of a block of the vocabulary at a time: 16 MiB of float32 on the CPU, 64 on a GPU.
LOGITS_AT_ONCE, DEVICE_LOGITS_AT_ONCE = 1 << 22, 1 << 24


def score(
    model: Model,
    tokens: Tokens,
    stride: int | None = None,
    tap: TapFunction | None = None,
    bos: bool = False,
) -> npt.NDArray[np.float32]:
    """Return log p(tokens[i + 1] | tokens[: i + 1]) in nats, float32 [position - 1].

    A text longer than n_ctx is read in windows that begin `stride` tokens apart, half of n_ctx by
    default. So every token but those of the first window has at least n_ctx - stride tokens before
    it. `tap` is that of `forward`, and sees one window after another, each from position 0 on.

    Nothing is put before the tokens, unlike in `circuits.run` of a text. `bos=True` scores them
    behind <|endoftext|>, as the beginning of a text: float32 [position], the first token's too.
    """
    return score_batch(model, [tokens], stride, tap, bos)[0]


def score_batch(
    model: Model,
    texts: Iterable[Tokens],
    stride: int | None = None,
    tap: TapFunction | None = None,
    bos: bool = False,
) -> list[npt.NDArray[np.float32]]:
    """Return the `score` of several texts of any lengths, computed together.

    With a tap they are computed one after another, as `score` would: it sees [1, ...].
    """
    rows = text_list("texts", texts, vocabulary_config(model))
    return [one.checked().log_probabilities for one in
            score_windows(model, rows, stride, checked_tap(tap), bos)]


def vocabulary_config(model: Model) -> Config:
    """Return the model's config, without ids that only pad the embedding."""
    return replace(model.config, n_vocab=model.n_vocab)


class Scores(NamedTuple):
    """The log-probability of each target in nats, and True if no token has a higher one."""

    log_probabilities: npt.NDArray[np.float32]
    is_greedy: npt.NDArray[np.bool_]

    def checked(self) -> Scores:
        """Return the scores. Raises Error if one is not finite."""
        check_finite(self.log_probabilities.sum())
        return self


def score_windows(model, texts, stride=None, tap=None, bos=False) -> list[Scores]:
    """Return the scores of texts: `score_batch`, and which tokens greedy decoding would choose.

    They are not checked: one text's may be not finite, which does not change another's.
    """
    config = model.config
    stride = config.n_ctx // 2 if stride is None else stride
    if not (is_number(stride) and stride % 1 == 0 and 1 <= stride <= config.n_ctx):
        raise Error(f"stride is {stride!r}: it must be from 1 to n_ctx = {config.n_ctx}")
    known = vocabulary_config(model)
    texts = [one_text(text, known) for text in texts]
    start = start_of_text(model, bos, texts)
    texts = [np.insert(text, 0, start) for text in texts]
    scores = [Scores(np.empty(len(text) - 1, np.float32), np.empty(len(text) - 1, bool))
              for text in texts]
    windows = text_windows(texts, config.n_ctx, int(stride))
    queries = [Query(w.text, text[w.start : w.end],
                     np.arange(w.first_scored, w.end) - w.start,
                     text[w.first_scored + 1 : w.end + 1])
               for w in windows for text in [texts[w.text]]]
    for number, found in query_scores(model, queries, tap, len(texts)):
        w = windows[number]
        for whole, part in zip(scores[w.text], found, strict=True):
            whole[w.first_scored : w.end] = part
    return scores


class Query(NamedTuple):
    """Ask for log p(targets[i] | inputs[: at[i] + 1]), where inputs begin at position 0.

    Several targets may stand at one position. `text` is the number that a tap is told.
    """

    text: int
    inputs: np.ndarray
    at: np.ndarray
    targets: np.ndarray


def query_scores(model, queries, tap=None, n_texts=1) -> Iterator[tuple[int, Scores]]:
    """Yield the number of each query with the scores of its targets, as they are computed.

    Queries of up to n_ctx inputs are packed into rows. With a tap they are run one by one.
    """
    config, params, tap = model.config, model.params, tap or Tap()
    has_tap = tap.function is not None
    wte = params["wte"][: model.n_vocab]
    windows = [Window(number, 0, len(query.inputs), 0) for number, query in enumerate(queries)]
    for row in [[w] for w in windows] if has_tap else pack_windows(windows, config.n_ctx):
        asked = [queries[w.text] for w in row]
        lengths = [w.end for w in row]
        starts = np.cumsum([0, *lengths[:-1]])
        inputs = np.concatenate([query.inputs for query in asked])
        at = np.concatenate([query.at + start for query, start in zip(asked, starts, strict=True)])
        targets = np.concatenate([query.targets for query in asked])
        announce(tap, np.arange(lengths[0]), [asked[0].text], lengths[:1], n_texts)
        with turn(model, has_tap=has_tap):
            x = transformer(params, config, inputs[None], Packed(lengths), tap)
            found = target_scores(x[:, namespace(x).asarray(at)], targets, wte)
        end = 0
        for w, query in zip(row, asked, strict=True):
            start, end = end, end + len(query.targets)
            yield w.text, Scores(found.log_probabilities[start:end], found.is_greedy[start:end])


class Window(NamedTuple):
    """Inputs [start, end) of a text. Those before `first_scored` are scored by another window."""

    text: int
    start: int
    end: int
    first_scored: int


def text_windows(texts: Sequence[Tokens], n_ctx: int, stride: int) -> list[Window]:
    """Return the windows that score every token of every text once."""
    windows = []
    for text, tokens in enumerate(texts):
        first_scored = 0
        for start in range(0, len(tokens) - 1, stride):
            end = min(start + n_ctx, len(tokens) - 1)
            windows.append(Window(text, start, end, first_scored))
            first_scored = end
            if end == len(tokens) - 1:
                break
    return windows


def pack_windows(windows: Sequence[Window], n_ctx: int) -> list[list[Window]]:
    """Pack windows into rows of up to n_ctx tokens, the longest first, where they fit best."""
    rows: list[list[Window]] = []
    room: list[tuple[int, int]] = []  # the free tokens and the number of each row, in order
    for window in sorted(windows, key=lambda w: w.start - w.end):
        length = window.end - window.start
        best = bisect.bisect_left(room, (length, 0))
        free, row = room.pop(best) if best < len(room) else (n_ctx, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(window)
        bisect.insort(room, (free - length, row))
    return rows


def target_scores(x: Any, targets: np.ndarray, wte: Any) -> Scores:
    """Return the scores of `targets` [q] on the host, for the stream x [1, q, d] and wte [v, d].

    Logits of a block of the vocabulary are held at a time. The sum of exponentials is kept
    relative to the highest logit so far.
    """
    xp = namespace(x)
    highest, total = -math.inf, 0.0  # [b, q] each after the first block
    chosen = xp.empty(x.shape[:2], x.dtype)  # the targets' logits
    step = max(1, (LOGITS_AT_ONCE if xp is np else DEVICE_LOGITS_AT_ONCE) // len(targets))
    for start in range(0, len(wte), step):
        logits = einsum("bqd,vd->bqv", x, wte[start : start + step])
        here = np.flatnonzero((start <= targets) & (targets < start + step))
        positions, columns = xp.asarray(here), xp.asarray(targets[here] - start)
        chosen[:, positions] = logits[:, positions, columns]
        before, highest = highest, xp.maximum(highest, logits.max(axis=-1))
        logits -= highest[..., None]
        xp.exp(logits, out=logits)
        total = total * xp.exp(before - highest) + logits.sum(axis=-1)
    log_p = chosen - highest - xp.log(total)
    return Scores(to_host(log_p)[0], (to_host(chosen) == to_host(highest))[0])

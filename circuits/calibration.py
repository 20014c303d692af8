"""Loss, bits per byte, entropy and calibration of a model on texts, with intervals by text.

A model is calibrated if, of the tokens that it gives a probability of 0.7, 70% are right. Loss
rewards both knowing and knowing that one does not know; calibration tells the two apart.
(Guo et al. 2017, "On Calibration of Modern Neural Networks".)
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import to_host
from ..bpe import shown
from ..gpt2_np import NO_TAP, Error, Model, Tap, generator, transformer, unembed
from ..inference.packing import Packed
from ..inference.scoring import pack_windows, text_windows
from ..inference.turns import turn
from .bootstrapping import Estimate, bootstrap
from .inputs import check_count, check_numbers, end_of_text
from .interventions import Edits, EditsLike, HeldEdits, Place
from .metrics import log_sum_exp
from .short_reprs import Result
from .texts import chunks, text_ids

MOST_BINS = 1000  # whose sums are kept for each text
LOGITS_AT_ONCE = 128  # positions; logits of 1,024 positions in float64 would be 400 MB


@dataclass(frozen=True, eq=False, repr=False)
class Measures(Result):
    """The quality of a model's predictions on texts, each with an interval by text.

    `loss` and `entropy` are in nats a token, `bits_per_byte` of UTF-8 (None for ids),
    `calibration_error` from 0 to 1. `reliability` has a row for each bin of confidence: mean
    confidence, accuracy, number of tokens. `bos` is True if every text had <|endoftext|> first.
    """

    loss: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate | None
    entropy: Estimate
    calibration_error: Estimate
    reliability: np.ndarray
    n_tokens: int
    bos: bool


def measure(
    model: Model,
    texts: Sequence[Any],
    *,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Measures:
    """Return loss, perplexity, bits per byte, entropy and calibration over texts or lists of ids.

    Confidence is the probability of the most probable token. Expected calibration error is the mean
    distance of accuracy from confidence over equal bins. Chance in the bins only adds to it, and
    resampling adds more, so with few texts its value lies near the lower end of its interval. A
    text longer than n_ctx is read in windows that overlap by half. Resampling is by text: give
    several. `edits`, as for `run`, see one window after another, [1, q, ...], and their positions
    are those of the window. Text gets <|endoftext|> put before it, unlike in `complete` and
    `score`; `bos=False` leaves it out.
    """
    if isinstance(texts, str) or not hasattr(texts, "__len__") or not len(texts):
        raise Error(f"texts is {shown(texts)}: give a list of texts, at least one, as intervals "
                    "are over texts")
    check_count("bins", bins, most=MOST_BINS)
    check_count("resamples", resamples)
    generator(seed)  # a wrong one is an error now, and not after all texts were read
    edits, tokenizer, sums, n_bytes, begins = Edits(model, edits), model.tokenizer, [], [], True
    are_text = all(isinstance(text, str) for text in texts)
    for _, chunk in chunks(measured_ids(model, text, bos) for text in texts):
        sums += sums_over_texts(model, chunk, bins, edits)
        begins &= all(ids[0] == end_of_text(model) for ids in chunk)
        if tokenizer and are_text:
            n_bytes += [len(tokenizer.decode_bytes(ids[1:].tolist())) for ids in chunk]
    n, loss, entropy = (np.array([getattr(one, name) for one in sums])
                        for name in ("n_tokens", "loss", "entropy"))
    table = np.stack([one.bins for one in sums])  # [text, bin, (confidence, right, tokens)]

    def estimate(statistic):
        return bootstrap(statistic, len(sums), resamples=resamples, seed=seed)

    def mean(values, over=n):
        return lambda i: values[i].sum(axis=-1) / over[i].sum(axis=-1)

    def calibration(i):
        confidence, right, _ = np.moveaxis(table[i].sum(axis=-3), -1, 0)
        return np.abs(confidence - right).sum(axis=-1) / n[i].sum(axis=-1)

    per_byte = estimate(mean(loss, math.log(2) * np.array(n_bytes))) if n_bytes else None
    total = table.sum(axis=0)
    reliability = np.column_stack([total[:, :2] / np.maximum(total[:, 2:], 1), total[:, 2]])
    return Measures(
        loss=estimate(mean(loss)),
        perplexity=estimate(lambda i: np.exp(mean(loss)(i))),
        bits_per_byte=per_byte,
        entropy=estimate(mean(entropy)),
        calibration_error=estimate(calibration),
        reliability=reliability,
        n_tokens=int(n.sum()),
        bos=begins,
    )


def measured_ids(model, text, bos):
    ids = text_ids(model, text, bos)
    if len(ids) < 2:
        raise Error(f"{shown(text)} has no token that follows another: there is nothing to measure")
    return ids


@dataclass
class Sums:
    """Sums over the tokens of one text; `bins` [bin, (confidence, right, tokens)]."""

    bins: np.ndarray
    n_tokens: int = 0
    loss: float = 0.0
    entropy: float = 0.0

    def add(self, logits, targets):
        rows, log_p = np.arange(len(targets)), logits - log_sum_exp(logits)[:, None]
        p, best = np.exp(log_p), logits.argmax(axis=-1)
        self.n_tokens += len(targets)
        self.loss -= log_p[rows, targets].sum()
        self.entropy -= (p * log_p).sum()
        confidence = p.max(axis=-1)
        which = np.minimum((confidence * len(self.bins)).astype(int), len(self.bins) - 1)
        np.add.at(self.bins, which, np.column_stack([confidence, best == targets, rows >= 0]))


def sums_over_texts(model, texts, bins, edits):
    """Return the Sums of each text. Short texts and windows share a pass, but for edits."""
    config, params, n = model.config, model.params, model.n_vocab
    sums = [Sums(np.zeros((bins, 3))) for _ in texts]
    windows = text_windows(texts, config.n_ctx, max(1, config.n_ctx // 2))
    for row in [[w] for w in windows] if edits else pack_windows(windows, config.n_ctx):
        inputs = np.concatenate([texts[w.text][w.start : w.end] for w in row])
        lengths = [w.end - w.start for w in row]
        tap = Tap(HeldEdits(edits, Place.from_position(0, 1, lengths[0]))) if edits else NO_TAP
        with turn(model, has_tap=bool(edits)):
            x = transformer(params, config, inputs[None], Packed(lengths), tap)
        for window, stop in zip(row, np.cumsum(lengths).tolist(), strict=True):
            targets = texts[window.text][window.first_scored + 1 : window.end + 1]
            scored = x[:, stop - len(targets) : stop]
            for start in range(0, len(targets), LOGITS_AT_ONCE):
                block = slice(start, start + LOGITS_AT_ONCE)
                with turn(model):
                    logits = to_host(unembed(scored[:, block], params))[0, :, :n]
                check_numbers("logits", logits, model)
                sums[window.text].add(logits.astype(float), targets[block])
    return sums

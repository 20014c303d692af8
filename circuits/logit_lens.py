"""The logit lens: read the stream after each layer as if the model ended there.

Every layer refines one stream that the unembedding reads, so an unfinished stream can be read
too. It shows the layer at which an answer appears, and its rivals before that layer.
(nostalgebraist 2020, "interpreting GPT: the logit lens".)
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, overload

import numpy as np

from ..backend import namespace, to_host
from ..bpe import Tokenizer, shown
from ..gpt2_np import LAYER_NORM_EPSILON, NO_TAP, Error, Model, Tokens, layer_norm, softmax, unembed
from ..inference.turns import turn
from .activations import run
from .drawings import lens_picture
from .inputs import (
    Answers,
    Batched,
    OnePrompt,
    Prompts,
    PromptsLike,
    answer_ids,
    check_count,
    check_numbers,
    for_each_length,
    one_each,
    position_slice,
    token_texts,
    windows_of,
)
from .interventions import Edits, EditsLike
from .metrics import entropy
from .names import activation_name, stream_points
from .short_reprs import MOST_LINES, prompts_in, table
from .weights import centred

POSITIONS_AT_ONCE = 128  # logits of 1,024 positions at 124M are 206 MB, and several are held


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Batched):
    """The distribution over the next token at each point of the stream.

    `points` are "0_pre", "0_mid", ..., "final_post". `probability` and `rank` (0 is the best) of
    the target and `entropy` (nats) are [point, b, q]; `top` and `top_probability` are
    [point, b, q, k]; `logits` are [point, b, q, v], or None unless asked for. Axis q has one
    `position`, or all if it is None.
    """

    points: list[str]
    probability: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    top: np.ndarray
    top_probability: np.ndarray
    logits: np.ndarray | None
    targets: np.ndarray
    tokens: np.ndarray
    bos: bool
    prompt_axes: ClassVar[dict[str, int]] = {
        "probability": 1, "rank": 1, "entropy": 1, "top": 1, "top_probability": 1, "logits": 1,
        "targets": 0, "tokens": 0}  # fmt: skip
    position: int | None
    tokenizer: Tokenizer | None = field(default=None, repr=False, kw_only=True)

    @property
    def read_tokens(self) -> np.ndarray:
        """The tokens [b, q] after which the next is predicted."""
        return self.tokens if self.position is None else self.tokens[:, [self.position]]

    def __repr__(self) -> str:
        rows, n = [], len(self.points)
        for i in np.linspace(0, n - 1, min(n, MOST_LINES)).round().astype(int):
            words = token_texts(self.tokenizer, self.top[i, 0, -1, :4])
            best = zip(map(shown, words), self.top_probability[i, 0, -1], strict=False)
            rows.append([self.points[i], *(f"{word} {p:.3f}" for word, p in best)])
        last = self.position in (None, self.tokens.shape[1] - 1)
        place = "the last" if last else f"position {self.position}"
        return table(f"Lens of {prompts_in(self.tokens)}: the best tokens after {place}, "
                     "were each layer the last:", rows)

    def _repr_html_(self) -> str:
        return lens_picture(self)


@overload
def lens(
    model: Model,
    text_or_tokens: Prompts | OnePrompt,
    answer: Answers | None = None,
    *,
    position: int | None = None,
    top: int = 5,
    frozen: bool = False,
    keep_logits: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Lens: ...
@overload
def lens(
    model: Model,
    text_or_tokens: Sequence[str] | Sequence[Tokens],
    answer: Answers | None = None,
    *,
    position: int | None = None,
    top: int = 5,
    frozen: bool = False,
    keep_logits: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Lens | list[Lens]: ...
def lens(
    model: Model,
    text_or_tokens: PromptsLike,
    answer: Answers | None = None,
    *,
    position: int | None = None,
    top: int = 5,
    frozen: bool = False,
    keep_logits: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Lens | list[Lens]:
    """Return the logit lens before and after every attention and at the end.

    Targets are `answer` (one for all prompts, or one for each), or else the tokens that follow and,
    at the last position, the model's best. One `position` or all. `top` is the number of best
    tokens to keep. The stream gets the final layer norm with its own statistics; `frozen` takes
    the scale of the finished stream instead, as attribution does. `edits` are those of `run`, but
    for the final layer norm's own.

    Prompts of several lengths give a list, one Lens a prompt. A text longer than n_ctx is read in
    windows that overlap by half, each position in the first window that has it; edits see one
    window after another. Text gets <|endoftext|> put before it, unlike in `complete` and `score`;
    `bos=False` leaves it out.
    """
    check_count("top", top, most=model.n_vocab)
    edits = Edits(model, edits)
    edits.refuse("lens", ("ln_final",), "it reads every layer through the model's own layer norm")

    def lens_of(given, rows, n):
        answers = None if answer is None else one_each(answer_ids(model, answer), n)[rows]
        return lens_of_group(model, given, answers, position, top, frozen, keep_logits, edits)

    return for_each_length(model, text_or_tokens, bos, lens_of, long=True)


def lens_of_group(model, given, answers, position, top, frozen, keep_logits, edits):
    """Return the Lens of prompts of one length; `answers` are ids [b], or None."""
    tokens, (b, length), n_ctx = given.tokens, given.tokens.shape, model.config.n_ctx
    first, stop, _ = position_slice(position, tokens).indices(length)
    if keep_logits and stop - first > n_ctx:
        raise Error(f"keep_logits would keep those of {stop - first} positions, more than n_ctx = "
                    f"{n_ctx}: give one position, or a shorter text")
    streams = [activation_name(point, layer) for layer in range(model.config.n_layer)
               for point in ("resid_pre", "resid_mid")]
    streams.append(activation_name("resid_post", model.config.n_layer - 1))
    blocks, step = [], max(1, POSITIONS_AT_ONCE // b)
    for window in windows_of([length], n_ctx):
        begin, end = max(first, window.first_scored), min(stop, window.end)
        if begin >= end:
            continue
        seen = run(model, tokens[:, window.start : window.end], streams, edits=edits,
                   last_only=True)
        check_numbers("the logits", seen.logits, model)
        if answers is None:
            best = seen.logits[:, -1:, : model.n_vocab].argmax(axis=-1)
            targets = np.append(tokens, best, axis=1)[:, window.start + 1 : window.end + 1]
        else:
            targets = np.broadcast_to(answers[:, None], (b, window.end - window.start))
        for start in range(begin, end, step):
            here = slice(start - window.start, min(start + step, end) - window.start)
            read = read_streams(model, [seen[name][:, here] for name in streams],
                                targets[:, here], top, frozen, keep_logits)
            blocks.append([targets[None, :, here], *read])
    targets, probability, rank, spread, best, best_probability, *logits = (
        np.concatenate(arrays, axis=2) for arrays in zip(*blocks, strict=True))
    return Lens(stream_points(model.config), probability, rank, spread, best, best_probability,
                logits[0] if keep_logits else None, targets[0], tokens, given.bos,
                None if position is None else first, tokenizer=model.tokenizer)


def read_streams(model, streams, targets, top, frozen, keep_logits):
    """Return `read_logits` of each stream [b, q, d], stacked by point; with its logits last."""
    params, rows = model.params, []
    xp, norm = namespace(params["wte"]), params["ln_f"]
    finished = centred(streams[-1])
    scale = xp.asarray(np.sqrt((finished * finished).mean(axis=-1, keepdims=True)
                               + LAYER_NORM_EPSILON))
    tap = FixedScale(scale) if frozen else NO_TAP
    for stream in streams:
        normalized = layer_norm(xp.asarray(stream), **norm, tap=tap)
        with turn(model):
            logits = to_host(unembed(normalized, params))[..., : model.n_vocab]
        rows.append((*read_logits(logits, targets, top), *([logits] if keep_logits else ())))
    return map(np.stack, zip(*rows, strict=True))


class FixedScale:
    """A tap for one layer norm that replaces the scale by another stream's."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, name, array):
        return self.scale if name == "hook_scale" else array


def read_logits(logits, targets, top):
    """Return the target's probability and rank, the entropy, the best ids and their probability."""
    probabilities = softmax(logits)
    of_target = np.take_along_axis(logits, targets[..., None], axis=-1)
    rank = (logits > of_target).sum(axis=-1)
    best = np.argpartition(logits, -top, axis=-1)[..., -top:]
    order = np.argsort(-np.take_along_axis(logits, best, axis=-1), axis=-1, kind="stable")
    best = np.take_along_axis(best, order, axis=-1)
    target = np.take_along_axis(probabilities, targets[..., None], axis=-1)[..., 0]
    return (target, rank, entropy(probabilities), best,
            np.take_along_axis(probabilities, best, axis=-1))

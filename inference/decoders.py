"""Decoders: three ways to the next token of texts that grow together, with the same tokens.

The plain one runs the forward pass once a token. The drafting one checks a guess of several tokens
in one pass. The captured one replays a step that the GPU holds as one graph.
"""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..cuda import decode_step
from ..gpt2_np import (
    Error,
    KVCache,
    Model,
    Sampling,
    choose,
    map_leaves,
    namespace,
    transformer,
    unembed,
)
from .drafts import Drafts
from .taps import announce
from .text_stream import StopWatcher
from .turns import turn


class NotFinite(Error):
    """The model computed a number that is not finite for a text."""


class GrowingText:
    """A prompt and the tokens that continue it, until `ended_by` gives the reason for its end.

    "length" is `n_tokens` reached, "context" n_ctx reached, "stop" a stop string or token.
    `ended_by` is "" until then.
    """

    def __init__(self, prompt: Sequence[int], n_tokens: int, n_ctx: int, stops: StopWatcher,
                 rng: np.random.Generator, row: int = 0):
        self.row = row  # of the batch
        self.tokens, self.n_prompt, self.n_ctx = list(prompt), len(prompt), n_ctx
        self.n_tokens, self.stops, self.rng = n_tokens, stops, rng
        self.ended_by = "" if n_tokens else "length"

    @property
    def continuation(self) -> list[int]:
        return self.tokens[self.n_prompt :]

    @property
    def n_left(self) -> int:
        """The number of tokens that are still wanted."""
        return self.n_tokens - (len(self.tokens) - self.n_prompt)

    def choose(self, logits: Any, options: Sampling) -> int:
        try:
            return choose(logits, options, self.tokens, self.rng)
        except Error as error:  # `choose` raises no other
            raise NotFinite(str(error)) from None

    def add(self, token: int) -> bool:
        """Append the token unless it is a stop token, and return True if it was appended."""
        if self.stops.ends_before(token):
            self.ended_by = "stop"
            return False
        self.tokens.append(token)
        if self.stops.ends_after(token):
            self.ended_by = "stop"
        elif not self.n_left:
            self.ended_by = "length"
        elif len(self.tokens) > self.n_ctx:
            self.ended_by = "context"
        return True


class Decoder(Protocol):
    """A way to the next tokens."""

    def step(self, texts: Sequence[GrowingText]) -> Iterator[tuple[GrowingText, int]]:
        """Choose the next token of each text, or several; add it to its text and yield both.

        `texts` are those of the step before, less the ones that have ended since.
        """


def next_logits(model: Model, tokens: Any, cache: Any, tap: Any = None) -> Any:
    """Return logits [row, position, n_vocab] after tokens [row, position], padding left out."""
    x = transformer(model.params, model.config, np.asarray(tokens), cache, tap)
    return unembed(x, model.params)[..., : model.n_vocab]


def add_chosen(
    texts: Sequence[GrowingText], logits: Any, options: Sampling
) -> Iterator[tuple[GrowingText, int]]:
    """Choose a token for each text from its logits [row, n_vocab]."""
    for text, row in zip(texts, logits, strict=True):
        token = text.choose(row, options)
        if text.add(token):
            yield text, token


def rows_left(before: Sequence[GrowingText], now: Sequence[GrowingText]) -> list[int] | None:
    """Return the rows of `before` that are in `now`, or None if all are."""
    if len(now) == len(before):
        return None
    left = set(map(id, now))
    return [row for row, text in enumerate(before) if id(text) in left]


class PlainDecoder:
    """One pass of the model for one token of every text."""

    def __init__(self, model: Model, cache: KVCache, texts: Sequence[GrowingText],
                 options: Sampling, tap: Any, n_rows: int):
        self.model, self.cache, self.options, self.tap = model, cache, options, tap
        self.texts, self.n_rows = texts, n_rows

    def step(self, texts: Sequence[GrowingText]) -> Iterator[tuple[GrowingText, int]]:
        if rows := rows_left(self.texts, texts):
            self.cache.select(rows)
            self.texts = texts
        last = [text.tokens[-1:] for text in texts]
        announce(self.tap, self.cache.lengths[:, None], [text.row for text in texts],
                 [text.n_prompt for text in texts], self.n_rows)
        with turn(self.model, has_tap=self.tap.function is not None):
            logits = next_logits(self.model, last, self.cache, self.tap)
        yield from add_chosen(texts, logits[:, 0], self.options)


class DraftingDecoder:
    """One pass of the model for a token of one text and a draft of those that may follow it."""

    def __init__(self, model: Model, cache: KVCache, text: GrowingText, options: Sampling):
        self.model, self.cache, self.options = model, cache, options
        self.drafts = Drafts(text.tokens[:-1])
        self.drafts.push(text.tokens[-1])

    def step(self, texts: Sequence[GrowingText]) -> Iterator[tuple[GrowingText, int]]:
        [text] = texts
        draft = self.drafts.propose(min(text.n_left - 1, text.n_ctx - len(text.tokens)))
        with turn(self.model):
            started = time.perf_counter()
            logits = next_logits(self.model, [[text.tokens[-1], *draft]], self.cache)
            self.drafts.learn_time(time.perf_counter() - started)
        for row, drafted in zip(logits[0], [*draft, None], strict=True):
            token = text.choose(row, self.options)
            if not text.add(token):
                return
            self.drafts.push(token)
            yield text, token
            if text.ended_by or token != drafted:
                break
        self.cache.lengths[:] = len(text.tokens) - 1  # forget the rest of the draft


class CapturedDecoder:
    """A step on a GPU that is launched as one graph and chooses most tokens itself."""

    def __init__(self, run: Any, texts: Sequence[GrowingText], options: Sampling):
        self.run, self.texts, self.options = run, texts, options

    def step(self, texts: Sequence[GrowingText]) -> Iterator[tuple[GrowingText, int]]:
        if rows := rows_left(self.texts, texts):
            self.run.select(rows)
            self.texts = texts
        if not self.run.chooses:
            logits = self.run.logits(np.array([text.tokens[-1] for text in texts]))
            yield from add_chosen(texts, logits, self.options)
            return
        for text, token in zip(texts, self.run.tokens(texts[0].n_left), strict=True):
            if text.add(int(token)):
                yield text, int(token)


def captured_decoder(
    model: Model, cache: KVCache, texts: Sequence[GrowingText], options: Sampling
) -> CapturedDecoder | None:
    """Return a decoder that continues these texts on the GPU, or None if that is not possible.

    The step is captured once for a model and a number of rows and kept beside the model.
    """
    xp = namespace(model.params["wte"])
    if xp is np or not hasattr(xp, "RawModule"):
        return None
    arrays: list[Any] = []
    map_leaves(lambda _, array: arrays.append(array), model.params)
    decoder = vars(model).get("_decoder")
    if decoder is None or not decoder.is_for(arrays):
        decoder = decode_step.CapturedSteps(model.params, model.config, arrays, xp)
        vars(model)["_decoder"] = decoder
    last = np.array([text.tokens[-1] for text in texts])
    generators = [text.rng for text in texts]
    run = decoder.start(cache, last, options, model.n_vocab, generators)
    return CapturedDecoder(run, texts, options) if run else None

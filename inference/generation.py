"""Generation: the reference's `generate` made faster, for several prompts at once, and as text.

Every row of a batch gets the tokens that its prompt gets alone. A prefix that all prompts share is
computed once. The decoder that makes the tokens is picked to suit the device and the options.
"""
from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np

from ..bpe import shown
from ..gpt2_np import (
    Error,
    KVCache,
    Model,
    Sampling,
    TapFunction,
    Tokens,
    generator,
    namespace,
    transformer,
    unembed,
)
from .decoders import (
    Decoder,
    DraftingDecoder,
    GrowingText,
    PlainDecoder,
    add_chosen,
    captured_decoder,
)
from .options import (
    GenerationOptions,
    Seed,
    Stop,
    check_count,
    one_text,
    sampling_of,
    start_of_text,
    text_list,
)
from .packing import Packed
from .taps import announce, checked_tap
from .text_stream import StopWatcher, stop_list, stop_strings, text_pieces
from .turns import turn

# Run the prefix that all prompts share once if that saves more than this many tokens.
LEAST_SHARED = 32


class ContextWarning(UserWarning):
    """A text has come to n_ctx, the model's last position, before its end.

    If warnings are errors, nothing is lost: `result` is what the call would have returned.
    """

    def __init__(self, message: str, result: Any = None):
        super().__init__(message)
        self.result = result


class Continuations(list[list[int]]):
    """A list of token ids for each prompt. `reasons` tells why each ended, as in `generate`."""

    def __init__(self, rows: Iterable[list[int]], reasons: Sequence[str]):
        super().__init__(rows)
        self.reasons = list(reasons)


def generate(
    model: Model,
    tokens: Tokens,
    n_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: Stop = (),
    seed: Seed | None = None,
    draft: bool = True,
    tap: TapFunction | None = None,
) -> Generator[int, None, str]:
    """Yield up to `n_tokens` token ids that continue `tokens`, each as soon as it is chosen.

    The sampling options are those of `sample`. Generation ends after the token that completes a
    string in `stop` (which needs the model's tokenizer), before a token id in `stop`, and, with a
    ContextWarning, at n_ctx. `stop=model.tokenizer.end_of_text` ends at the end of a text. The
    generator's return value is the reason: "length", "stop" or "context". `draft` makes text that
    repeats itself several tokens at a time; the tokens are the same but for ties within rounding.
    `tap` is that of `forward`: it sees the prompt, then each token by itself. Nothing is put before
    the tokens: a text begins with model.tokenizer.end_of_text. Raises Error at once for bad options
    and for a prompt that is empty or longer than n_ctx.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    generation = Generation(model, [tokens], n_tokens, stop, [seed], sampling, draft, tap)
    return with_warning(model, generation.only_text())


def generate_batch(
    model: Model,
    prompts: Iterable[Tokens],
    n_tokens: int,
    **options: Unpack[GenerationOptions],
) -> Continuations:
    """Return the continuations of several prompts of any lengths, computed together.

    The options are those of `generate`. The result is a list of lists; its `reasons` tell why each
    row ended. A tap sees [row, ...]: the prompts, padded on the right to one length, then a token
    of every row that has not ended. Row 0 draws with `seed`, row i with (seed, i), so that each
    row is what `generate` gives for its prompt alone. A Generator, BitGenerator or SeedSequence
    seeds row 0 itself and the other rows with the generators that it spawns.
    """
    generation = run_batch(model, prompts, n_tokens, **options)
    rows = Continuations(generation.continuations, generation.reasons)
    warn_if_full(model, rows.reasons, rows)
    return rows


def stream(
    model: Model,
    prompt: str | Tokens,
    n_tokens: int = 40,
    *,
    bos: bool = False,
    **options: Unpack[GenerationOptions],
) -> Generator[str, None, str]:
    """Yield the continuation of a text as it is made, in pieces of whole characters.

    The options are those of `generate`. A stop string and what follows it are left out. A prompt
    in text is ordinary text: give token ids to use special tokens. Nothing is put before it, unlike
    in `circuits.run`; `bos=True` puts <|endoftext|> there, with which GPT-2's training texts begin.
    The return value is that of `generate`. Raises Error if the model has no tokenizer.
    """
    return with_warning(model, quiet_stream(model, prompt, n_tokens, bos, **options))


def complete(
    model: Model,
    prompt: str | Tokens,
    n_tokens: int = 40,
    *,
    bos: bool = False,
    **options: Unpack[GenerationOptions],
) -> str:
    """Return the continuation of a text, without the prompt. The options are those of `stream`."""
    pieces, parts = quiet_stream(model, prompt, n_tokens, bos, **options), []
    while True:
        try:
            parts.append(next(pieces))
        except StopIteration as end:
            text = "".join(parts)
            warn_if_full(model, [end.value], text)
            return text


def quiet_stream(model, prompt, n_tokens, bos=False, stop=(), seed=None, draft=True, tap=None,
                 **options):
    """Return the pieces of `stream`, without its warning."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise Error("this model has no tokenizer: use generate on token ids")
    if isinstance(prompt, bytes | bytearray | memoryview) or not isinstance(prompt, Iterable):
        raise Error(f"the prompt is {shown(prompt)}: give text, or token ids")
    tokens: Any = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if bos:  # in place of what this tokenizer may put before every text
        own = len(tokenizer.start_ids) if isinstance(prompt, str) else 0
        tokens = tokens[own:]
        tokens = [*start_of_text(model, bos, [tokens]), *tokens]
    stop, sampling = stop_list(stop), sampling_of(options)
    generation = Generation(model, [tokens], n_tokens, stop, [seed], sampling, draft, tap)
    return text_pieces(generation.only_text(), tokenizer.decoder(), stop_strings(stop))


def with_warning(model, items):
    """Yield the items and return the reason they ended, after a warning if that is n_ctx."""
    reason = yield from items
    warn_if_full(model, [reason], reason)
    return reason


def warn_if_full(model: Model, reasons: Sequence[str], result: Any) -> None:
    """Warn the caller of the function that calls this one if a text has reached n_ctx."""
    if "context" in reasons:
        message = f"generation stopped at n_ctx = {model.config.n_ctx} positions"
        warnings.warn(ContextWarning(message, result), stacklevel=3)


def run_batch(
    model, prompts, n_tokens, stop=(), seed=None, draft=True, tap=None, **options
) -> Generation:
    """Run a whole batch and return it, with its continuations and the reasons they ended."""
    prompts = text_list("prompts", prompts, model.config)
    seeds, sampling = row_seeds(seed, len(prompts)), sampling_of(options)
    generation = Generation(model, prompts, n_tokens, stop, seeds, sampling, draft, tap)
    for _ in generation:
        pass
    return generation


def row_seeds(seed: Seed | None, n_rows: int) -> list[Any]:
    """Return a seed for each row of a batch. The first is that of one text alone."""
    if isinstance(seed, np.random.Generator | np.random.BitGenerator | np.random.SeedSequence):
        if isinstance(seed, np.random.SeedSequence):
            seed = copy.copy(seed)  # which counts what it has spawned
        seed = np.random.default_rng(seed)
        return [seed, *seed.spawn(n_rows - 1)] if n_rows else []
    return [(seed, row) if row and seed is not None else seed for row in range(n_rows)]


class Generation:
    """Prompts that are continued together. Iterating yields (row, token) as tokens are chosen."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Tokens] | np.ndarray,
        n_tokens: int,
        stop: Stop,
        seeds: Sequence[Any],
        options: Sampling,
        draft: bool = True,
        tap: TapFunction | None = None,
    ):
        n_ctx = model.config.n_ctx
        check_count("n_tokens", n_tokens, 0)
        n_tokens, stop = int(min(n_tokens, n_ctx + 1)), stop_list(stop)  # no text has room for more
        rows = [one_text(prompt, model.config).tolist() for prompt in prompts]
        longest = max(map(len, rows), default=0)
        if longest > n_ctx:
            raise Error(f"the prompt has {longest} tokens and this model's n_ctx is {n_ctx}: drop "
                        "its beginning")
        self.model, self.options, self.draft = model, options, draft
        self.tap = checked_tap(tap)
        stops = [StopWatcher(stop, model.tokenizer) for _ in rows]
        each = zip(rows, stops, seeds, strict=True)
        self.texts = [GrowingText(prompt, n_tokens, n_ctx, watcher, generator(seed), row)
                      for row, (prompt, watcher, seed) in enumerate(each)]

    @property
    def continuations(self) -> list[list[int]]:
        return [text.continuation for text in self.texts]

    @property
    def reasons(self) -> list[str]:
        """The reason why each text ended: "length", "stop" or "context"."""
        return [text.ended_by for text in self.texts]

    def only_text(self) -> Generator[int, None, str]:
        """Yield the tokens of a single prompt and return the reason they ended."""
        for _, token in self:
            yield token
        return self.reasons[0]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        growing = [text for text in self.texts if not text.ended_by]
        if not growing:
            return
        with turn(self.model, has_tap=self.tap.function is not None):
            cache, logits = self.read_prompts()
        chosen, decoder = add_chosen(growing, logits, self.options), None
        while True:
            for text, token in chosen:
                yield text.row, token
            before, growing = growing, [text for text in growing if not text.ended_by]
            if not growing:
                return
            if decoder is None:
                if len(growing) < len(before):
                    cache.select([text.row for text in growing])
                decoder = self.pick_decoder(cache, growing)
            chosen = decoder.step(growing)

    def pick_decoder(self, cache: KVCache, texts: Sequence[GrowingText]) -> Decoder:
        model, options = self.model, self.options
        if self.tap.function is None:
            if captured := captured_decoder(model, cache, texts, options):
                return captured
            # The time of a pass is known on the CPU only: a GPU is still at work on its return.
            on_cpu = namespace(model.params["wte"]) is np
            if self.draft and on_cpu and len(self.texts) == 1:
                return DraftingDecoder(model, cache, texts[0], options)
        return PlainDecoder(model, cache, texts, options, self.tap, len(self.texts))

    def read_prompts(self) -> tuple[KVCache, Any]:
        """Return a cache that holds every prompt, and the logits at their ends [row, n_vocab]."""
        config, prompts = self.model.config, [text.tokens for text in self.texts]
        n_prompt, n_rows = np.array([len(prompt) for prompt in prompts]), len(prompts)
        capacity = min(config.n_ctx, n_prompt.max() + self.texts[0].n_tokens)
        has_tap = self.tap.function is not None  # which sees rows, each from its beginning
        # A row needs a token of its own after the shared ones.
        n_shared = 0 if has_tap else min(shared_prefix(prompts), n_prompt.min() - 1)
        n_padding = (n_prompt.max() - n_prompt).sum()
        if has_tap or n_shared * (n_rows - 1) - n_padding > LEAST_SHARED:
            cache = KVCache(config, 1, capacity)
            if n_shared:
                self.transformer([prompts[0][:n_shared]], cache)
            cache.select([0] * n_rows)
            rest = np.zeros((n_rows, n_prompt.max() - n_shared), int)
            for row, prompt in enumerate(prompts):
                rest[row, : len(prompt) - n_shared] = prompt[n_shared:]
            announce(self.tap, np.arange(n_shared, n_prompt.max()), np.arange(n_rows), n_prompt,
                     n_rows)
            x = self.transformer(rest, cache)
            cache.lengths[:] = n_prompt  # shorter rests were padded on the right
            ends = np.arange(n_rows), n_prompt - n_shared - 1
        else:
            cache = KVCache(config, n_rows, capacity)
            x = self.transformer([list(itertools.chain(*prompts))], Packed(n_prompt, cache))
            ends = np.zeros(n_rows, int), n_prompt.cumsum() - 1
        xp = namespace(x)
        x = x[xp.asarray(ends[0]), xp.asarray(ends[1])][:, None]
        return cache, unembed(x, self.model.params)[:, 0, : self.model.n_vocab]

    def transformer(self, tokens, cache):
        return transformer(self.model.params, self.model.config, np.asarray(tokens), cache,
                           self.tap)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return the number of tokens that all prompts begin with."""
    columns = zip(*prompts, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))

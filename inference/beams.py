"""Beam search: the continuations of the highest probability among those that are looked at.

Each step keeps the `n_beams` most probable texts, as rows of one cache whose rows are put into a
new order. Which texts end, when the search ends and how lengths are compared is as in
transformers, so that its users get the same tokens.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np

from ..bpe import shown
from ..gpt2_np import (
    Error,
    KVCache,
    Model,
    Sampling,
    TapFunction,
    Tokens,
    check_finite,
    is_number,
    namespace,
    to_host,
)
from .costs import check_rows
from .decoders import GrowingText, next_logits
from .generation import Generation, warn_if_full
from .options import BeamOptions, Stop, check_count, text_list
from .taps import announce
from .turns import turn


@dataclass(frozen=True)
class Beam:
    """A continuation that beam search found, or one that it still looks at.

    `log_p` is the log-probability of `tokens` in nats, with that of the stop token that ended them
    and is left out. `score`, by which beams are ranked, is log_p / n ** length_penalty for these n
    tokens. `ended_by` is a reason of `generate`, or "repeat" if `no_repeat_ngram` left no token.
    """

    tokens: list[int]
    log_p: float
    score: float
    ended_by: str

    def __repr__(self) -> str:
        return (f"Beam({len(self.tokens)} tokens, log_p {self.log_p:.3f}, score {self.score:.3f}, "
                f"ended by {self.ended_by})")


def beam_search(
    model: Model,
    tokens: Tokens,
    n_tokens: int,
    n_beams: int = 5,
    n_results: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    no_repeat_ngram: int | None = None,
    stop: Stop = (),
    tap: TapFunction | None = None,
) -> list[Beam]:
    """Return the `n_results` best texts of up to `n_tokens` that continue `tokens`, best first.

    There are fewer if fewer were found. A `length_penalty` above 0 favours long texts, one below 0
    short ones. Once `n_beams` texts have ended, the search goes on until none that grows can be
    among the best. It ends then at once if `early_stopping` is True. If False, the most probable
    one counts as if it ended now; if "never", as if it grew to its full length at no cost.
    `no_repeat_ngram` bans tokens that would repeat so many in a row, of the prompt too. `stop` and
    n_ctx end a text as in `generate`. A `tap` sees the prompt, then one token of every beam.
    """
    rules = Rules(n_beams, n_results, length_penalty, early_stopping, no_repeat_ngram)
    [beams] = search_all(model, [tokens], n_tokens, rules, stop, tap)
    warn_if_full(model, [beam.ended_by for beam in beams], beams)
    return beams


def beam_search_batch(
    model: Model, prompts: Iterable[Tokens], n_tokens: int,
    **options: Unpack[BeamOptions],
) -> list[list[Beam]]:  # fmt: skip
    """Return the `beam_search` of several prompts of any lengths, computed together.

    The options are those of `beam_search`.
    """
    stop, tap = options.pop("stop", ()), options.pop("tap", None)
    found = search_all(model, prompts, n_tokens, Rules(**options), stop, tap)  # type: ignore[misc]
    warn_if_full(model, [beam.ended_by for beams in found for beam in beams], found)
    return found


@dataclass(frozen=True)
class Rules:
    """The options of `beam_search`, checked."""

    n_beams: int = 5
    n_results: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram: int | None = None

    def __post_init__(self) -> None:
        check_count("n_beams", self.n_beams)
        check_count("n_results", self.n_results)
        if self.n_results > self.n_beams:
            raise Error(f"n_results is {shown(self.n_results)}: it must be at most n_beams = "
                        f"{shown(self.n_beams)}")
        if not is_number(self.length_penalty) or not -20 <= self.length_penalty <= 20:
            raise Error(f"length_penalty is {shown(self.length_penalty)}: it must be a number "
                        "from -20 to 20")
        early = self.early_stopping
        if not isinstance(early, bool) and not (isinstance(early, str) and early == "never"):
            raise Error(f'early_stopping is {shown(early)}: it must be True, False or "never"')
        if self.no_repeat_ngram is not None:
            check_count("no_repeat_ngram", self.no_repeat_ngram)

    def score(self, log_p: float, n_tokens: int) -> float:
        return log_p / max(n_tokens, 1) ** float(self.length_penalty)


class Search:
    """The beams of one prompt: those that grow, the most probable first, and the best that ended.

    `parents` are the places that the growing ones had before the last step.
    """

    def __init__(self, prompt: GrowingText, rules: Rules):
        self.prompt, self.rules, self.n_beams = prompt, rules, int(rules.n_beams)
        self.most = min(prompt.n_tokens, prompt.n_ctx + 1 - prompt.n_prompt)  # tokens of a beam
        self.growing, self.parents = [Beam([], 0.0, 0.0, prompt.ended_by)], [0]
        self.ended = [] if self.most else self.growing

    @property
    def is_over(self) -> bool:
        if not self.growing or not self.most:
            return True
        if len(self.ended) < self.n_beams or self.rules.early_stopping is True:
            return len(self.ended) == self.n_beams
        n, best = len(self.growing[0].tokens), self.growing[0].log_p
        if self.rules.early_stopping == "never" and self.rules.length_penalty > 0:
            n = self.most
        return self.rules.score(best, n) <= self.ended[-1].score

    def step(self, log_p: np.ndarray) -> None:
        """Take the next token of each beam, given log-probabilities [beam, n_vocab]."""
        rules, n_vocab = self.rules, log_p.shape[1]
        log_p = log_p + np.array([[beam.log_p] for beam in self.growing])
        if rules.no_repeat_ngram is not None:
            for row, beam in zip(log_p, self.growing, strict=True):
                text = self.prompt.tokens + beam.tokens
                banned = repeating(text, int(rules.no_repeat_ngram))
                row[[token for token in banned if token < n_vocab]] = -math.inf
        # So many that n_beams of them go on even if every stop token comes first.
        n_looked_at = self.n_beams * max(2, 1 + len(self.prompt.stops.ids))
        before, self.growing, self.parents, ended = self.growing, [], [], []
        for rank, index in enumerate(highest(log_p.ravel(), n_looked_at)):
            parent, token = divmod(int(index), n_vocab)
            tokens, total = [*before[parent].tokens, token], float(log_p[parent, token])
            if total == -math.inf:
                break
            beam = self.grown(tokens, total)
            if beam.ended_by:
                ended += [beam] if rank < self.n_beams else []
            elif len(self.growing) < self.n_beams:
                self.growing.append(beam)
                self.parents.append(parent)
        self.ended = sorted(self.ended + ended, key=lambda beam: -beam.score)[: self.n_beams]
        if not self.growing and not self.ended:
            self.ended = [Beam(b.tokens, b.log_p, b.score, "repeat") for b in before]

    def grown(self, tokens: list[int], log_p: float) -> Beam:
        n, ended_by = len(tokens), ""
        if self.prompt.stops.ends_before(tokens[-1]):
            tokens, ended_by = tokens[:-1], "stop"
        elif self.prompt.stops.completed_by(tokens):
            ended_by = "stop"
        elif n == self.most:
            ended_by = "length" if n == self.prompt.n_tokens else "context"
        return Beam(tokens, log_p, self.rules.score(log_p, n), ended_by)


def search_all(
    model: Model, prompts: Iterable[Tokens], n_tokens: int, rules: Rules,
    stop: Stop = (), tap: TapFunction | None = None,
) -> list[list[Beam]]:  # fmt: skip
    """Return the best beams of each prompt, without the warning at n_ctx."""
    prompts = text_list("prompts", prompts, model.config)
    generation = Generation(model, prompts, n_tokens, stop, [0] * len(prompts), Sampling(), tap=tap)
    searches = [Search(text, rules) for text in generation.texts]
    going = [search for search in searches if not search.is_over]
    if going:
        most = max(search.prompt.n_prompt + search.most for search in going)
        check_rows("n_beams", int(rules.n_beams), model, min(most, model.config.n_ctx), len(going))
        with turn(model, has_tap=generation.tap.function is not None):
            cache, logits = generation.read_prompts()
    while going:
        rows, n_before, prompts_before = [], 0, [s.prompt.row for s in going for _ in s.growing]
        log_p = log_softmax(to_host(logits))
        for search in going:
            first, n_before = n_before, n_before + len(search.growing)
            search.step(log_p[first:n_before])
            if not search.is_over:
                rows += [first + parent for parent in search.parents]
        going = [search for search in going if not search.is_over]
        if not going:
            break
        beams = [(search.prompt, beam) for search in going for beam in search.growing]
        if [prompt.row for prompt, _ in beams] == prompts_before:
            reorder(cache, rows, min(search.prompt.n_prompt for search in going))
        else:
            cache.select(rows)
        announce(generation.tap, cache.lengths[:, None], [prompt.row for prompt, _ in beams],
                 [prompt.n_prompt for prompt, _ in beams], len(searches))
        with turn(model, has_tap=generation.tap.function is not None):
            last = [beam.tokens[-1:] for _, beam in beams]
            logits = next_logits(model, last, cache, generation.tap)[:, 0]
    return [search.ended[: int(rules.n_results)] for search in searches]


def log_softmax(logits: np.ndarray) -> np.ndarray:  # [row, n_vocab], in float64
    check_finite(logits.max())
    log_p = logits.astype(np.float64)
    log_p -= log_p.max(axis=-1, keepdims=True)
    return log_p - np.log(np.exp(log_p).sum(axis=-1, keepdims=True))


def highest(values: np.ndarray, n: int) -> np.ndarray:
    """Return the indices of the n highest values in order, the lowest index first among equals."""
    candidates = np.arange(values.size)
    if n < values.size:
        candidates = np.flatnonzero(values >= np.partition(values, -n)[-n])
    return candidates[np.argsort(-values[candidates], kind="stable")[:n]]


def repeating(tokens: Sequence[int], n: int) -> list[int]:
    """Return the tokens that would make the last n tokens ones that occurred before."""
    last = tokens[len(tokens) - n + 1 :]
    return [tokens[end] for end in range(n - 1, len(tokens)) if tokens[end - n + 1 : end] == last]


def reorder(cache: KVCache, rows: Sequence[int], start: int) -> None:
    """Replace the rows of a cache by `rows` of it. They differ from position `start` on only."""
    end = int(cache.lengths.max())
    for layer in cache.layers:
        for stored in layer:
            order = namespace(stored).asarray(rows)
            stored[:, :, start:end] = stored[order, :, start:end]

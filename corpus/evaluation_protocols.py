"""The protocols of evaluations: which tokens are scored after which, and what is divided by what.

A figure without its protocol says little. LAMBADA's last token is easier to predict than the whole
last word, and WikiText's perplexity per token is far below that per word.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..bpe import shown
from ..circuits.bootstrapping import Estimate, bootstrap
from ..circuits.inputs import end_of_text, tokenizer_of
from ..circuits.resumed_runs import progress_bar
from ..circuits.texts import chunks
from ..gpt2_np import Error, Model
from ..inference.scoring import Scores, score_windows
from .documents import Inputs
from .evaluation_data import (
    detokenized,
    joined_rows,
    n_word_tokens,
    n_words,
    pages,
    read_lambada,
    read_wikitext,
)
from .summary import ScoredTotals, Skipped, reasons_of
from .work import Scorer


class Options(NamedTuple):
    """Options of `evaluate` that the protocols read."""

    stride: int | None = None
    limit: int | None = None
    field: str = "text"
    documents: str = "lines"
    input_format: str | None = None
    progress: bool = False


class Measured(NamedTuple):
    """The result of a protocol.

    `resampled` are the units of the intervals. `differs` says in what the run is not the published
    one.
    """

    estimates: dict[str, Estimate]
    n_tokens: int  # that were scored
    n_resampled: int
    resampled: str
    protocol: str
    differs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# --- LAMBADA ---------------------------------------------------------------------------

LAMBADA_PROTOCOL = (
    "Protocol: a passage is read with nothing before it. Its last word is what follows the last "
    "space. A word counts as right if each of its tokens is the most probable one after the true "
    "tokens before it.")


def lambada(model: Model, path: str, options: Options) -> Measured:
    every, encode = read_lambada(path, options.field), tokenizer_of(model).encode
    pieces = []
    for context, word in every[: options.limit]:
        tokens = encode(context + word)
        n_scored = len(tokens) - len(encode(context))
        if n_scored < 1:
            raise Error(f"the last word of {shown(context + word)} has no token of its own, so "
                        "that it cannot be predicted: leave the passage out")
        pieces.append(Piece(tokens[-model.config.n_ctx - 1 :], n_scored))
    found = scored(model, pieces, options.progress)
    n, n_tokens = len(found), np.array([len(scores.is_greedy) for scores in found])
    word_loss = losses(found)
    token_loss = [-scores.log_probabilities[-1] for scores in found]
    return Measured(
        {
            "last_token_accuracy": ratio([scores.is_greedy[-1] for scores in found]),
            "last_word_accuracy": ratio([scores.is_greedy.all() for scores in found]),
            "last_token_perplexity": ratio(token_loss, scale=np.exp),
            "last_word_perplexity": ratio(word_loss, scale=np.exp),
            "last_word_token_perplexity": ratio(word_loss, n_tokens, np.exp),
        },
        int(n_tokens.sum()), n, "passages", LAMBADA_PROTOCOL,
        first_part(n, len(every), "passages"),
    )  # fmt: skip


def first_part(n: int, n_all: int, unit: str) -> tuple[str, ...]:
    return (f"the first {n:,} of {n_all:,} {unit}",) if n < n_all else ()


# --- WikiText --------------------------------------------------------------------------


def wikitext(model: Model, path: str, options: Options) -> Measured:
    text, encode, n_ctx = read_wikitext(path), tokenizer_of(model).encode, model.config.n_ctx
    every = pages(text)
    articles = every[: options.limit]
    if len(articles) < len(every):
        text = "\n".join(articles)
    stride, start = options.stride or n_ctx, end_of_text(model)
    first = [] if start is None else [start]
    raw = strided(encode(joined_rows(text)), n_ctx, stride)
    rolled = [rolling([*first, *encode(detokenized(article))], n_ctx) for article in articles]
    found = scored(model, [*raw, *itertools.chain(*rolled)], options.progress)
    raw_loss, rest = losses(found[: len(raw)]), iter(losses(found[len(raw) :]))
    loss = [sum(itertools.islice(rest, len(pieces))) for pieces in rolled]
    n_raw = [piece.n_scored for piece in raw]
    n_bytes = [len(article.encode()) for article in articles]
    return Measured(
        {
            "raw_token_perplexity": ratio(raw_loss, n_raw, np.exp),
            "word_perplexity": ratio(loss, list(map(n_words, articles)), np.exp),
            "word_token_perplexity": ratio(loss, list(map(n_word_tokens, articles)), np.exp),
            "bits_per_byte": ratio(np.array(loss) / math.log(2), n_bytes),
        },
        sum(n_raw), len(articles), f"articles, and the {len(raw):,} windows of the raw text",
        "Protocol: the raw text is that of transformers' documentation, rows joined by blank "
        f"lines, in windows of {n_ctx:,} tokens with stride {stride:,}. The first token of a "
        "window is not scored. For words and bytes, each article is de-tokenized by lm-eval's "
        f"rules and read {'after <|endoftext|> ' * bool(first)}in windows of {n_ctx:,} tokens that "
        "score each token once. The loss is divided by the words or bytes of the original article.",
        (*first_part(len(articles), len(every), "articles"),
         *([f"stride {stride:,} of the raw text"] if stride != n_ctx else [])),
    )  # fmt: skip


def strided(tokens: Sequence[int], n_ctx: int, stride: int) -> list[Piece]:
    """Return the windows of transformers' documentation: n_ctx tokens, every `stride` tokens.

    Each scores its tokens that no window before it had, but not its first one.
    """
    pieces, before = [], 0
    for start in range(0, len(tokens), stride):
        end = min(start + n_ctx, len(tokens))
        n_scored = end - max(before, start + 1)
        if n_scored > 0:
            pieces.append(Piece(tokens[start:end], n_scored))
        before = end
        if end == len(tokens):
            break
    return pieces


def rolling(tokens: Sequence[int], n_ctx: int) -> list[Piece]:
    """Return lm-eval's windows, which together score every token but the first one.

    The last window begins earlier than the one before it ends, so that it has n_ctx inputs, too.
    """
    pieces, before = [], 1
    while before < len(tokens):
        end = min(before + n_ctx, len(tokens))
        pieces.append(Piece(tokens[max(0, end - n_ctx - 1) : end], end - before))
        before = end
    return pieces


# --- any texts -------------------------------------------------------------------------


def texts(model: Model, path: str, options: Options) -> Measured:
    """Measure each text as `corpus.score` does."""
    inputs = Inputs((path,), options.field, documents=options.documents,
                    input_format=options.input_format)
    work = Scorer(model, stride=options.stride, per_token=True)
    totals, skipped, n_read, one = ScoredTotals(), Skipped(), 0, None
    with progress_bar(inputs.n_bytes(), options.progress, "B") as progress:
        for shard in inputs.shards():
            left = None if options.limit is None else options.limit - n_read
            documents = list(itertools.islice(inputs.read(shard), left))
            n_read += len(documents)
            records = skipped.rest(work.records(documents))
            totals.begin(shard.number)
            totals.add(records)
            one = next((record for record in records if record["n_tokens"]), one)
            progress.update(shard.n_bytes)
            if n_read == options.limit:
                break
    reasons = reasons_of(skipped.figures())
    if one is None:
        raise Error(f"{path} has no text to score: {reasons or 'it is empty'}")
    n_ctx = model.config.n_ctx
    stride = options.stride or max(1, n_ctx // 2)
    n, unit, estimates = totals.n_scored, "texts", estimates_of(totals.figures())
    if n == 1 and len(one["tokens"]) > stride:
        n, estimates = in_parts(model, one, stride)
        unit = f"parts of {stride:,} tokens of the one text"
    begins = "begins with <|endoftext|> and " * (end_of_text(model) is not None)
    return Measured(
        estimates, totals.n_tokens, n, unit,
        f"Protocol: each text {begins}is scored as it is, in windows of {n_ctx:,} tokens with "
        f"stride {stride:,} if it is longer.",
        notes=((f"Read: the first {n_read:,} texts.",) if n_read == options.limit else ())
        + ((f"Skipped: {reasons}.",) if reasons else ()),
    )  # fmt: skip


def estimates_of(figures: dict[str, Any]) -> dict[str, Estimate]:
    """Return the figures of a summary as estimates. A number that is missing is NaN."""
    found = {"loss": figures["nats_per_token"], "perplexity": figures["perplexity"],
             "bits_per_byte": figures["bits_per_byte"]}
    return {name: Estimate(*(math.nan if value is None else value for value in figure.values()))
            for name, figure in found.items()}


def in_parts(
    model: Model, record: dict[str, Any], stride: int
) -> tuple[int, dict[str, Estimate]]:
    """Return the number of parts of `stride` tokens of one text, and estimates over the parts."""
    loss = -np.asarray(record["log_probabilities"], float)
    token_bytes = tokenizer_of(model).token_bytes
    sizes = [len(token_bytes(token)) for token in record["tokens"]]
    starts = np.arange(0, len(loss), stride)
    loss, n_tokens, n_bytes = (np.add.reduceat(values, starts)
                               for values in (loss, np.ones(len(loss)), sizes))
    return len(starts), {
        "loss": ratio(loss, n_tokens),
        "perplexity": ratio(loss, n_tokens, np.exp),
        "bits_per_byte": ratio(loss / math.log(2), n_bytes),
    }


# --- scores and intervals --------------------------------------------------------------


class Piece(NamedTuple):
    """Up to n_ctx + 1 tokens, of which the last ones are scored."""

    tokens: Sequence[int]
    n_scored: int


def scored(model: Model, pieces: Sequence[Piece], progress: bool) -> list[Scores]:
    """Return the scores of the last tokens of each piece, packed into rows of n_ctx."""
    found = []
    with progress_bar(sum(len(piece.tokens) for piece in pieces), progress, "token") as bar:
        for first, chunk in chunks(piece.tokens for piece in pieces):
            for n, scores in enumerate(score_windows(model, chunk), first):
                log_p, is_greedy = scores.checked()
                start = -pieces[n].n_scored
                found.append(Scores(log_p[start:], is_greedy[start:]))
            bar.update(sum(map(len, chunk)))
    return found


def losses(found: Sequence[Scores]) -> np.ndarray:
    """Return the summed loss of each, in nats, float64 [n]."""
    return -np.array([scores.log_probabilities.sum(dtype=float) for scores in found])


def ratio(above: Any, below: Any = None, scale: Callable[[Any], Any] = np.asarray) -> Estimate:
    """Return scale(sum of `above` / sum of `below`) of units [n], with the interval over them.

    Without `below` it is the mean.
    """
    above = np.asarray(above, float)
    below = np.ones(len(above)) if below is None else np.asarray(below, float)
    return bootstrap(lambda i: scale(above[i].sum(axis=-1) / below[i].sum(axis=-1)), len(above))

"""Published evaluations: what is measured, beside what was published for that size.

    python -m gpt2_np.corpus evaluate lambada -m 124M

A figure without its protocol says little: the last token of LAMBADA is easier than the last word,
and WikiText's perplexity per token is far below that per word. So each variant has a line.
"""
from __future__ import annotations

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .. import checkpoint
from ..circuits.bootstrapping import Estimate, bootstrap
from ..circuits.inputs import check_count, end_of_text, tokenizer_of
from ..circuits.texts import chunks
from ..command_line import add_model_options, print_json, text_model
from ..gpt2_np import SIZES, Error, Model
from ..inference.scoring import Scores, score_windows
from .ablations import ablated_model, ablation_name
from .documents import Inputs
from .evaluation_data import (
    FILES,
    data_file,
    detokenized,
    is_published,
    joined_rows,
    n_word_tokens,
    n_words,
    pages,
    read_lambada,
    read_wikitext,
)
from .published_figures import FIGURES, Figure
from .work import Scorer

MEASURES = {  # in the order of the output
    "last_token_accuracy": "accuracy, last token",
    "last_word_accuracy": "accuracy, whole last word",
    "last_token_perplexity": "perplexity, last token",
    "last_word_perplexity": "perplexity of the last word, per word",
    "last_word_token_perplexity": "perplexity of the last word, per token",
    "raw_token_perplexity": "perplexity per token, raw text",
    "word_perplexity": "perplexity per word, as lm-eval counts",
    "word_token_perplexity": "perplexity per word or line end",
    "loss": "loss, nats per token",
    "perplexity": "perplexity per token",
    "bits_per_byte": "bits per byte",
}


class Measure(NamedTuple):
    """A measured value with its 95% interval, and what was published for a model of that size."""

    name: str
    estimate: Estimate
    published: tuple[Figure, ...]


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. `print` shows it as a text, `as_dict` is for JSON.

    `differs` says in what the run differs from the one that was published: an edit, other data, or
    a part of them. `resampled` are the units of the intervals.
    """

    name: str
    model: str
    ablated: str | None
    data: str
    n_tokens: int  # that were scored
    n_resampled: int
    resampled: str
    measures: tuple[Measure, ...]
    protocol: str
    differs: tuple[str, ...]
    notes: tuple[str, ...]
    skipped: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, measure: str) -> Estimate:
        """Return the estimate of a measure: evaluation["last_word_accuracy"].value."""
        found = {one.name: one.estimate for one in self.measures}
        if measure not in found:
            raise Error(f"{self.name} has no {measure}: choose one of {', '.join(found)}")
        return found[measure]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it. Numbers that do not exist are None."""
        measures = {
            one.name: {
                **{key: finite(value) for key, value in one.estimate._asdict().items()},
                "published": [figure._asdict() for figure in one.published],
            } for one in self.measures
        }  # fmt: skip
        return {**vars(self), "measures": measures, "differs": list(self.differs),
                "notes": list(self.notes)}

    def __str__(self) -> str:
        edit = f" without {self.ablated}" if self.ablated else ""
        lines = [f"{self.name}: {self.model}{edit}, {self.n_tokens:,} tokens scored of {self.data}"]
        for name, (value, low, high), published in self.measures:
            interval = "no interval" if math.isnan(low) else f"{digits(low)} to {digits(high)}"
            lines.append(f"  {MEASURES[name]:40s}{digits(value):>10s}   {interval}")
            same = f" (not the same: {'; '.join(self.differs)})" if self.differs else ""
            for size in {figure.size: None for figure in published}:
                lines.append(f"      published for {size}{same}:")
            lines.extend(f"          {figure}" for figure in published)
        skipped = [f"Skipped: {n:,} {why}." for why, n in self.skipped.items()]
        interval = (f"Intervals: 95%, by resampling the {self.n_resampled:,} {self.resampled}."
                    if self.n_resampled > 1 else f"Intervals need more than one of {self.resampled}.")
        return "\n".join([*lines, self.protocol, interval, *self.notes, *skipped])


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def digits(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"


class Measured(NamedTuple):
    """What one evaluation found, without the words around it."""

    estimates: dict[str, Estimate]
    n_tokens: int
    n_resampled: int
    resampled: str
    protocol: str
    differs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: dict[str, int] = {}


class Options(NamedTuple):
    """Options of `evaluate` that the evaluations read."""

    stride: int | None
    limit: int | None
    field: str
    progress: bool


def evaluate(
    name: str,
    model: str | Model = "124M",
    *,
    ablate: Any = None,
    stride: int | None = None,
    limit: int | None = None,
    data: str | None = None,
    field: str = "text",
    progress: bool = False,
) -> Evaluation:
    """Return an evaluation: "lambada", "wikitext2", or the path of a file of texts.

    `model` is a name that `load` takes, or a model. `ablate` has nodes to be set to zero, "L5H1" or
    a list, as in `ablated_model`. `stride` is that of the windows of long texts, `limit` the number
    of first passages, articles or texts to read. `data` is a file to use in place of the published
    one, `field` the field of the text in JSON. `progress` shows bars on stderr. Raises Error if
    the data are not as expected, and DownloadError if they are not available.
    """
    if limit is not None:
        check_count("limit", limit)
    if data is not None and name not in FILES:
        raise Error(f"data goes with {' and '.join(FILES)}: leave it out, {name} is the data")
    path = data_file(name, data, progress)
    label = None if isinstance(model, Model) else str(model)
    whole = model if isinstance(model, Model) else checkpoint.load(model)
    tokenizer_of(whole)
    size = next((size for size, config in SIZES.items() if config == whole.config), None)
    edited = whole if ablate is None else ablated_model(whole, ablate)
    if stride is not None:
        check_count("stride", stride, 1, whole.config.n_ctx)
    run = {"lambada": lambada, "wikitext2": wikitext}.get(name, texts)
    found = run(edited, path, Options(stride, limit, field, progress))
    ablated = None if ablate is None else ablation_name(whole, ablate)
    differs = [f"without {ablated}"] if ablated else []
    if name in FILES and not is_published(name, path):
        differs.append("other data")
    differs.extend(found.differs)
    measures = [
        Measure(measure, estimate, tuple(one for one in FIGURES.get(measure, ()) if one.size == size))
        for measure, estimate in found.estimates.items()
    ]  # fmt: skip
    return Evaluation(
        name, label or size or "a model", ablated, path, found.n_tokens, found.n_resampled,
        found.resampled, tuple(measures), found.protocol, tuple(differs), found.notes, found.skipped,
    )  # fmt: skip


# --- LAMBADA ---------------------------------------------------------------------------


def lambada(model: Model, path: str, options: Options) -> Measured:
    if options.stride is not None:
        raise Error("stride goes with texts in windows: leave it out, LAMBADA's passages are short")
    passages, encode = read_lambada(path, options.field), model.tokenizer.encode
    n_all, passages = len(passages), passages[: options.limit]
    pieces = []
    for context, word in passages:
        tokens = encode(context + word)
        n_scored = len(tokens) - len(encode(context))
        if n_scored < 1:
            raise Error(f"{path}: the last word of {context + word!r} has no token of its own")
        pieces.append(Piece(tokens[-model.config.n_ctx - 1 :], n_scored))
    found = scored(model, pieces, options.progress)
    one = np.ones(len(found))
    n_tokens = np.array([len(scores.is_greedy) for scores in found])
    word_loss = -np.array([scores.log_probabilities.sum(dtype=float) for scores in found])
    token_loss = -np.array([float(scores.log_probabilities[-1]) for scores in found])
    greedy_word = np.array([scores.is_greedy.all() for scores in found])
    greedy_token = np.array([scores.is_greedy[-1] for scores in found])
    return Measured(
        {
            "last_token_accuracy": ratio(greedy_token, one),
            "last_word_accuracy": ratio(greedy_word, one),
            "last_token_perplexity": ratio(token_loss, one, np.exp),
            "last_word_perplexity": ratio(word_loss, one, np.exp),
            "last_word_token_perplexity": ratio(word_loss, n_tokens, np.exp),
        },
        int(n_tokens.sum()), len(found), "passages",
        "Protocol: a passage is read with nothing before it; its last word follows its last space, "
        "and counts as right if each of its tokens is the most probable, given the true ones before.",
        part("passages", len(found), n_all),
        ("The paper reports 52.66% without and 63.24% with a stop-word filter for 1558M. The filter "
         "was not published, and none is applied.",),
    )  # fmt: skip


def part(unit: str, n: int, n_all: int) -> tuple[str, ...]:
    return (f"the first {n:,} of {n_all:,} {unit}",) if n < n_all else ()


# --- WikiText --------------------------------------------------------------------------


def wikitext(model: Model, path: str, options: Options) -> Measured:
    text, encode, n_ctx = read_wikitext(path), model.tokenizer.encode, model.config.n_ctx
    every = pages(text)
    articles = every[: options.limit]
    if len(articles) < len(every):
        text = "\n".join(articles)
    stride = options.stride or n_ctx
    raw = strided(encode(joined_rows(text)), n_ctx, stride)
    start = end_of_text(model)
    first = [] if start is None else [start]
    rolled = [rolling([*first, *encode(detokenized(article))], n_ctx) for article in articles]
    found = scored(model, [*raw, *itertools.chain(*rolled)], options.progress)
    losses = iter([-scores.log_probabilities.sum(dtype=float) for scores in found])
    raw_losses = np.array(list(itertools.islice(losses, len(raw))))
    loss = np.array([sum(itertools.islice(losses, len(pieces))) for pieces in rolled])

    def per(count, scale=np.exp):
        return ratio(loss, np.array([count(article) for article in articles]), scale)

    raw_counts = np.array([piece.n_scored for piece in raw])
    return Measured(
        {
            "raw_token_perplexity": ratio(raw_losses, raw_counts, np.exp),
            "word_perplexity": per(n_words),
            "word_token_perplexity": per(n_word_tokens),
            "bits_per_byte": per(lambda article: len(article.encode()), lambda x: x / math.log(2)),
        },
        int(raw_counts.sum()), len(articles),
        f"articles, of the raw text its {len(raw):,} windows",
        f"Protocol: raw text is that of transformers' documentation, rows joined by blank lines, in "
        f"windows of {n_ctx:,} tokens with stride {stride:,}, whose first token is not scored. For "
        f"words and bytes, each article is de-tokenized by lm-eval's rules, begins with "
        f"<|endoftext|>, and is read in windows of {n_ctx:,} tokens that score each token once; "
        "the sum is divided by the words or bytes of the original article.",
        (*part("articles", len(articles), len(every)),
         *([f"stride {stride:,} of the raw text"] if stride != n_ctx else [])),
        ("The paper gives 29.41 for WikiText-2 and 37.50 for WikiText-103 at 124M, though both have "
         "the same test text; its de-tokenizers were not published. Others come near 29.41 per "
         "token of the raw text, and near 37.50 per word.",),
    )  # fmt: skip


def strided(tokens: Sequence[int], n_ctx: int, stride: int) -> list[Piece]:
    """Return the windows of transformers' documentation: n_ctx tokens, every `stride` tokens.

    Of each window the tokens are scored that no window before it had, but not its first token.
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
    """Return lm-eval's windows, which score every token but the first of all once.

    Each has n_ctx tokens before its last. The last window begins earlier, so that it is full, too.
    """
    pieces, before = [], 1
    while before < len(tokens):
        end = min(before + n_ctx, len(tokens))
        pieces.append(Piece(tokens[max(0, end - n_ctx - 1) : end], end - before))
        before = end
    return pieces


# --- any texts -------------------------------------------------------------------------


def texts(model: Model, path: str, options: Options) -> Measured:
    totals, alone, skipped = [], None, Counter()
    for record in records(model, path, options):
        if "skipped" in record or not record["n_tokens"]:
            skipped[record.get("skipped", "without a token to score")] += 1
            continue
        totals.append((-record["log_probability"], record["n_tokens"], record["n_bytes"]))
        alone = record if len(totals) == 1 else None
    if not totals:
        reasons = ", ".join(f"{n:,} {why}" for why, n in skipped.items()) or "it is empty"
        raise Error(f"{path} has no text to score: {reasons}")
    stride = options.stride or max(1, model.config.n_ctx // 2)
    unit = "texts"
    if alone and len(alone["tokens"]) > stride:
        totals, unit = of_windows(model, alone, stride), f"parts of {stride:,} tokens of one text"
    loss, n_tokens, n_bytes = np.array(totals).T
    begin = "begins with <|endoftext|> and " if end_of_text(model) is not None else ""
    return Measured(
        {"loss": ratio(loss, n_tokens), "perplexity": ratio(loss, n_tokens, np.exp),
         "bits_per_byte": ratio(loss / math.log(2), n_bytes)},
        int(n_tokens.sum()), len(totals), unit,
        f"Protocol: each text {begin}is scored as it is, in windows of {model.config.n_ctx:,} tokens "
        f"with stride {stride:,}.",
        skipped=dict(skipped),
    )  # fmt: skip


def records(model: Model, path: str, options: Options) -> Iterator[dict[str, Any]]:
    """Yield the score of each text. The first one's has every token, for it may be alone."""
    inputs, left = Inputs((path,), field=options.field), options.limit
    detailed = Scorer(model, stride=options.stride, per_token=True)
    work = Scorer(model, stride=options.stride)
    has_first = False
    with bar(inputs.n_bytes(), "B", options.progress) as progress:
        for shard in inputs.shards():
            documents = list(itertools.islice(inputs.read(shard), left))
            while documents and not has_first:
                [record] = detailed.records([documents.pop(0)])
                has_first = "skipped" not in record
                left = left and left - 1
                yield record
            yield from work.records(documents)
            progress.update(shard.n_bytes)
            if left is not None:
                left -= len(documents)
                if left <= 0:
                    return


def of_windows(model: Model, record: dict[str, Any], stride: int) -> list[tuple[Any, ...]]:
    """Return loss, tokens and bytes of each `stride` tokens of one text's record."""
    loss = -np.asarray(record["log_probabilities"], float)
    sizes = [len(model.tokenizer.token_bytes(token)) for token in record["tokens"][-len(loss) :]]
    starts = np.arange(0, len(loss), stride)
    columns = [np.add.reduceat(values, starts) for values in (loss, np.ones(len(loss)), sizes)]
    return list(zip(*columns, strict=True))


# --- scores and intervals --------------------------------------------------------------


class Piece(NamedTuple):
    """Up to n_ctx + 1 tokens, of which the last ones are scored."""

    tokens: Sequence[int]
    n_scored: int


def scored(model: Model, pieces: Sequence[Piece], progress: bool) -> list[Scores]:
    """Return the scores of the last tokens of each piece, packed into rows of n_ctx."""
    found = []
    with bar(sum(len(piece.tokens) for piece in pieces), "token", progress) as shown_progress:
        for first, chunk in chunks(piece.tokens for piece in pieces):
            for n, scores in enumerate(score_windows(model, chunk), first):
                found.append(Scores(*(array[-pieces[n].n_scored :] for array in scores)))
            shown_progress.update(sum(map(len, chunk)))
    return found


def bar(total: int, unit: str, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, unit_scale=True, disable=not progress)


def ratio(numerators: Any, denominators: Any, scale: Any = float) -> Estimate:
    """Return scale(sum / sum) over units [n], with its interval over resampled units."""
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    return bootstrap(lambda rows: scale(above[rows].sum() / below[rows].sum()), len(above))


# --- the command -----------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command `evaluate`."""
    add = parser.add_argument
    add("name", metavar="EVALUATION", help="lambada, wikitext2, or a file of texts")
    add_model_options(add)
    add("--dtype", default="float32", choices=checkpoint.DTYPES, help="default float32")
    add("--ablate", metavar="NODES", help="heads, MLPs and neurons to set to zero: L5H1,MLP3,L2N17")
    add("--stride", type=int, metavar="N", help="tokens from one window to the next")
    add("--limit", type=int, metavar="N", help="read the first N passages, articles or texts only")
    add("--data", metavar="PATH", help="a file in place of the published one")
    add("--field", default="text", help="field of the text in JSON lines (default text)")
    add("--json", action="store_true", help="machine-readable result")
    add("--quiet", action="store_true", help="no progress on stderr")


def run_command_line(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Evaluate and print. The data come first: they are smaller than a model."""
    for name, least in (("stride", 1), ("limit", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name} is {value}: it must be at least {least}")
    if args.data is None or args.name in FILES:
        data_file(args.name, args.data, not args.quiet)
    found = evaluate(
        args.name, text_model(args), ablate=args.ablate, stride=args.stride, limit=args.limit,
        data=args.data, field=args.field, progress=not args.quiet,
    )  # fmt: skip
    found = replace(found, model=args.model)
    if args.json:
        print_json(found.as_dict())
    else:
        print(found)

"""Published evaluations in one command: what is measured, beside what was published.

    python -m gpt2_np.corpus evaluate lambada -m 124M
"""
from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import checkpoint
from ..bpe import shown
from ..circuits.bootstrapping import Estimate
from ..circuits.inputs import tokenizer_of
from ..circuits.short_reprs import WIDTH
from ..command_line import add_model_options, check_counts, print_json, text_model
from ..gpt2_np import SIZES, Error, Model
from ..inference.options import check_count
from .ablations import ablated_model, ablation_name
from .documents import INPUT_FORMATS
from .evaluation_data import FILES, data_file, is_published
from .evaluation_protocols import Options, lambada, texts, wikitext
from .published_figures import FIGURES, NOTES, Figure

PROTOCOLS = {"lambada": lambada, "wikitext2": wikitext}
UNUSED = {"lambada": ("stride", "documents", "input_format"),
          "wikitext2": ("field", "documents", "input_format")}  # options
MEASURES = {
    "last_token_accuracy": "accuracy, last token",
    "last_word_accuracy": "accuracy, whole last word",
    "last_token_perplexity": "perplexity of the last token",
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

    `evaluation["last_word_accuracy"]` is one estimate: value, low and high. `differs` says in what
    the run is not the published one: an edit, other data, or a part of them. `resampled` are the
    units of the intervals.
    """

    name: str
    model: str
    ablated: str | None
    data: str
    n_tokens: int
    n_resampled: int
    resampled: str
    measures: tuple[Measure, ...]
    protocol: str
    differs: tuple[str, ...]
    notes: tuple[str, ...]

    def __getitem__(self, measure: str) -> Estimate:
        estimates = {measured.name: measured.estimate for measured in self.measures}
        if measure not in estimates:
            raise Error(f"{self.name} has no measure {shown(measure)}: choose one of "
                        f"{', '.join(estimates)}")
        return estimates[measure]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them. Numbers that do not exist are None."""
        measures = {
            measure.name: {name: value if math.isfinite(value) else None
                           for name, value in measure.estimate._asdict().items()}
            | {"published": [figure._asdict() for figure in measure.published]}
            for measure in self.measures
        }
        return {**vars(self), "measures": measures, "differs": list(self.differs),
                "notes": list(self.notes)}

    def __str__(self) -> str:
        from textwrap import fill

        edit = f" without {self.ablated}" if self.ablated else ""
        lines = [f"{self.name}: {self.model}{edit}, {self.n_tokens:,} tokens scored of {self.data}"]
        for name, (value, low, high), published in self.measures:
            interval = "no interval" if math.isnan(low) else f"[{digits(low)}, {digits(high)}]"
            lines.append(f"  {MEASURES[name]:40s}{digits(value):>10s}  {interval}")
            if published:
                of = f"unedited {published[0].size}" if edit else published[0].size
                lines.append(f"      published for {of}: {'; '.join(map(str, published))}")
        interval = f"95%, bootstrap over the {self.n_resampled:,} {self.resampled}"
        if all(math.isnan(measure.estimate.low) for measure in self.measures):
            interval = "a bootstrap needs more than one unit"
        words = [self.protocol, f"Intervals: {interval}.", *self.notes]
        if self.differs:
            words.insert(0, f"Not as in the published runs: {'; '.join(self.differs)}.")
        return "\n".join([*lines, *(fill(line, WIDTH) for line in words)])


def digits(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"


def evaluate(
    name: str, model: str | Model = "124M", *, ablate: Any = None, stride: int | None = None,
    limit: int | None = None, data: str | None = None, field: str = "text",
    documents: str = "lines", input_format: str | None = None, progress: bool = False,
) -> Evaluation:  # fmt: skip
    """Return the result of "lambada", "wikitext2", or the texts of a file with that path.

    `model` is a name for `gpt2_np.load`, or a Model. `ablate` sets nodes to zero, as
    `ablated_model` does: "L5H1,MLP3" or a list. `stride` is that of the windows of long texts.
    `limit` is the number of passages, articles or texts to read. `data` is a file to read in place
    of the published one. `field`, `documents` and `input_format` say how texts are found in a file,
    as in `corpus.score`. `progress` shows bars on stderr.

    Raises Error if the data are not as expected, DownloadError if they are not available.
    """
    if limit is not None:
        check_count("limit", limit)
    options = Options(stride, limit, field, documents, input_format, progress)
    path = find_data(name, data, options)
    if isinstance(model, Model):
        return run_protocol(name, path, options, model, ablate)
    return run_protocol(name, path, options, checkpoint.load(model), ablate, str(model))


def find_data(name: str, data: str | None, options: Options) -> str:
    """Return the path of an evaluation's data. Raises Error for an option that it does not read."""
    for option in UNUSED.get(name, ()):
        if getattr(options, option) != Options._field_defaults[option]:
            raise Error(f"{option} does not go with {name}: leave it out")
    return data_file(name, data, options.progress)


def run_protocol(
    name: str, path: str, options: Options, whole: Model, ablate: Any, model_name: str = ""
) -> Evaluation:
    """Return the result of an evaluation whose data are found, by a model that is loaded."""
    tokenizer_of(whole)
    if options.stride is not None:
        check_count("stride", options.stride, 1, whole.config.n_ctx)
    edited = whole if ablate is None else ablated_model(whole, ablate)
    found = PROTOCOLS.get(name, texts)(edited, path, options)
    ablated = None if ablate is None else ablation_name(whole, ablate)
    differs = [f"{ablated} set to zero"] if ablated else []
    if name in FILES and not is_published(name, path):
        differs.append("other data")
    if (dtype := whole.params["wte"].dtype.name) != "float32":
        differs.append(f"computed in {dtype}")
    size = next((size for size, config in SIZES.items() if config == whole.config), None)
    measures = [Measure(measure, estimate, tuple(figure for figure in FIGURES.get(measure, ())
                                                 if figure.size == size))
                for measure, estimate in found.estimates.items()]
    notes = [NOTES[name]] if any(measure.published for measure in measures) else []
    return Evaluation(
        name, model_name or size or "a model", ablated, path,
        found.n_tokens, found.n_resampled, found.resampled, tuple(measures), found.protocol,
        (*differs, *found.differs) if name in FILES else (), (*notes, *found.notes),
    )  # fmt: skip


# --- the command -----------------------------------------------------------------------


def add_text_options(add: Any) -> None:
    """Add the options of a model, and of the texts that it reads."""
    add_model_options(add, checkpoint.DTYPES)
    add("--field", default="text", metavar="NAME", help="of the texts (default text)")
    add("--documents", default="lines", choices=("lines", "files"),
        help="of plain text: each line, or each file (default lines)")
    add("--input-format", choices=INPUT_FORMATS, help="of files whose suffix does not tell")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command `evaluate`."""
    add = parser.add_argument
    add("name", metavar="EVALUATION", help="lambada, wikitext2, or a file of texts")
    add_text_options(add)
    add("--ablate", metavar="NODES", help="heads, MLPs and neurons to set to zero: L5H1,MLP3,L2N17")
    add("--stride", type=int, metavar="N", help="tokens from one window to the next")
    add("--limit", type=int, metavar="N", help="read the first N passages, articles or texts")
    add("--data", metavar="PATH", help="a file to read in place of the published one")
    add("--json", action="store_true", help="machine-readable result")
    add("--quiet", action="store_true", help="no progress on stderr")


def run_command_line(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Evaluate and print. The data come first, because a model is larger."""
    check_counts(args, parser, "stride", "limit")
    options = Options(args.stride, args.limit, args.field, args.documents, args.input_format,
                      not args.quiet)
    path = find_data(args.name, args.data, options)
    at_terminal = sys.stderr is not None and sys.stderr.isatty()
    options = options._replace(progress=options.progress and at_terminal)
    evaluation = run_protocol(args.name, path, options, text_model(args), args.ablate, args.model)
    if args.json:
        print_json(evaluation.as_dict())
    else:
        print(evaluation)

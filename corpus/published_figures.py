"""Published figures of OpenAI's models, each with its source."""
from __future__ import annotations

from typing import NamedTuple

PAPER = "Radford et al. 2019, table 3"


class Figure(NamedTuple):
    """A published value of a model's size, its standard error if it was given, and its source."""

    size: str
    value: float
    source: str
    stderr: float | None = None

    def __str__(self) -> str:
        error = f" ± {self.stderr}" if self.stderr else ""
        return f"{self.value}{error} ({self.source})"


def by_size(source: str, *values: float) -> list[Figure]:
    """Return a row of the paper's table: the values of the four sizes."""
    return [Figure(size, value, source)
            for size, value in zip(("124M", "355M", "774M", "1558M"), values, strict=True)]


FIGURES: dict[str, list[Figure]] = {
    "last_token_accuracy": [
        *by_size(PAPER, 0.4599, 0.5548, 0.6012, 0.6324),
        Figure("124M", 0.4667, "transformers issue 13761"),
    ],
    "last_token_perplexity": by_size(f"{PAPER}, unit not stated", 35.13, 15.60, 10.87, 8.63),
    "last_word_accuracy": [
        Figure("124M", 0.3256, "lm-evaluation-harness issue 2159", 0.0065),
        Figure("1558M", 0.5121, "gpt-neo README"),
    ],
    "last_word_perplexity": [
        Figure("124M", 40.0554, "lm-evaluation-harness issue 2159", 1.4787),
        Figure("1558M", 10.634, "gpt-neo README"),
    ],
    "raw_token_perplexity": [
        Figure("124M", 29.94, "transformers issue 13761; llm.c issue 276"),
        Figure("774M", 19.44, "transformers documentation on perplexity"),
    ],
    "word_perplexity": [Figure("124M", 37.37, "transformers issue 13761, by lm-eval")],
    "word_token_perplexity": [
        *by_size(f"{PAPER}, WikiText-2", 29.41, 22.76, 19.93, 18.34),
        *by_size(f"{PAPER}, WikiText-103", 37.50, 26.37, 22.05, 17.48),
    ],
}

NOTES = {  # of evaluations, where figures need a word
    "lambada": "The paper's text (section 3.3) gives 52.66% for 1558M, and its table 63.24%, with "
    "a stop-word filter that was not published. None is applied here. Others come near the table "
    "by the last token (46.67% at 124M), and near the text by the whole word (51.21% at 1558M).",
    "wikitext2": "The paper gives 29.41 for WikiText-2 and 37.50 for WikiText-103 at 124M, though "
    "both have the same test text. Its de-tokenizers were not published. Others come near 29.41 "
    "per token of the raw text, and near 37.50 per word.",
}

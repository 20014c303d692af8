"""Texts that excite a neuron or a head most: the first look at what a unit is for.

The places where a unit is at its highest often have a meaning in common. They are a hypothesis, not
a proof: the ten highest of a million places say little about the rest, which a histogram shows.
(Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4, for image
models; Bolukbasi et al. 2021, "An Interpretability Illusion for BERT", on the caution.)
"""
from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..gpt2_np import Error, Model
from .activations import run
from .inputs import check_count, check_numbers, labels_of
from .interventions import EditsLike
from .names import activation_name
from .short_reprs import visible
from .texts import passages, unit_of

BEFORE, AFTER = 12, 5  # tokens of the text form around the marked one
BLUE, RED = "59,130,214", "217,84,63"  # between the inks of pages.css for light and for dark paper
WINDOW_STYLE = "text-align:left;font-family:monospace;white-space:pre-wrap"


@dataclass(frozen=True, eq=False)
class Example:
    """One place of a text: its window, with the unit's `values` [q], highest at `marked`.

    `tokens` [q] and `labels` are those of the window, which begins at token `start` of text number
    `text`, counted from 0. `attention` [q] is that of a head at the marked token, None for a
    neuron.
    """

    value: float
    text: int
    start: int
    marked: int
    tokens: np.ndarray
    labels: list[str]
    values: np.ndarray
    attention: np.ndarray | None = None

    @property
    def position(self) -> int:
        """The marked token's number in its text, <|endoftext|> included."""
        return self.start + self.marked

    def __str__(self) -> str:
        return self.line()

    def __repr__(self) -> str:
        label = visible(self.labels[self.marked])
        return f"<Example {self.value:.4g} at «{label}», text {self.text}, token {self.position}>"

    def line(self, before: int = BEFORE, after: int = AFTER) -> str:
        """Return a line: value, place, and the text around the marked token, «so»."""
        place = f"text {self.text}, token {self.position}"
        return f"{self.value:9.4g}  {place:24s}  {self.window(before, after)}"

    def window(self, before: int = BEFORE, after: int = AFTER) -> str:
        """Return the text around the marked token, «so», and where a head looks from there."""
        start = max(0, self.marked - before)
        parts = [visible(label) for label in self.labels[start : self.marked + after + 1]]
        parts[self.marked - start] = f"«{parts[self.marked - start]}»"
        about = ""
        if self.attention is not None:
            best = int(self.attention.argmax())
            about = f"  (attends {self.attention[best]:.2f} to «{visible(self.labels[best])}»"
            about += f", {self.marked - best} back)" if best < self.marked else ", itself)"
        return "".join(parts) + about


@dataclass(frozen=True, eq=False)
class Examples:
    """The places that excite a `unit` most, the highest first: a sequence of Example.

    `measure` says in words which number was compared. `n_tokens` and `n_texts` were read.
    """

    unit: str
    measure: str
    examples: tuple[Example, ...]
    n_tokens: int
    n_texts: int

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    @property
    def title(self) -> str:
        return (f"{self.unit}, {self.measure}: the highest {len(self)} windows "
                f"of {self.n_tokens:,} tokens in {self.n_texts:,} texts")

    def __repr__(self) -> str:
        best, least = self.examples[0].value, self.examples[-1].value
        return f"<Examples of {self.title}; {best:.4g} to {least:.4g}>"

    def __str__(self) -> str:
        return "\n".join([self.title, *map(str, self.examples)])

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{one.value:.4g}</td><td>{one.text}: {one.position}</td>"
            f'<td style="{WINDOW_STYLE}">{marked_up(one)}</td></tr>' for one in self.examples)
        return (f"<table><caption>{escape(self.title)}</caption><tr><th>value</th>"
                f"<th>text: token</th><th>window</th></tr>{rows}</table>")


def max_activating(
    model: Model,
    texts: Iterable[Any],
    unit: Any,
    top: int = 10,
    *,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Examples:
    """Return the windows of texts in which a neuron "L2N17" or a head "L1H1" is at its highest.

    A neuron is measured by its activation (hook_post), a head by the norm of its output
    (hook_result). `texts` is any iterable of texts or lists of token ids; only the best windows are
    kept. A window has up to n_ctx tokens and counts once, at its highest token. The <|endoftext|>
    before a text is not counted. `edits`, as for `run`, see one window after another. Raises Error
    if the model has no such unit.
    """
    check_count("top", top)
    chosen = unit_of(model, unit, edits)
    best: list[tuple[float, int, int, Example]] = []
    n_tokens, n_texts = 0, 0
    for passage in passages(model, texts, chosen.activation, edits, bos):
        n_texts = max(n_texts, passage.text + 1)
        values = chosen.value(passage.array)
        counted = values[passage.first :]
        if not len(counted):
            continue
        check_numbers("activations", counted, model)
        n_tokens += len(counted)
        marked = passage.first + int(counted.argmax())
        value = float(values[marked])
        order = value, -passage.text, -passage.start
        if len(best) < top or order > best[0][:3]:
            example = Example(value, passage.text, passage.start, marked, passage.tokens, [],
                              values.copy())
            (heapq.heappush if len(best) < top else heapq.heapreplace)(best, (*order, example))
    if not best:
        raise Error("there is no token in these texts: give at least one")
    ordered = sorted(best, key=lambda entry: entry[:3], reverse=True)
    examples = tuple(finished(model, chosen, entry[3], edits) for entry in ordered)
    return Examples(chosen.name, chosen.measure, examples, n_tokens, n_texts)


def finished(model, unit, example, edits):
    """Return an example with its labels, and for a head with the attention of one more pass."""
    labels, attention = labels_of(model, example.tokens), None
    if model.tokenizer is None:  # ids, which would run together
        labels = [f" {label}" for label in labels]
    if unit.head is not None:
        name = activation_name("pattern", unit.layer)
        pattern = run(model, example.tokens, name, edits=edits, bos=False,
                      last_only=True)[name]
        attention = pattern[0, unit.head, example.marked].copy()
    return replace(example, labels=labels, attention=attention)


def marked_up(example):
    """Return a window as HTML: the higher a token the darker, the marked one framed."""
    from html import escape

    scale, spans = max(float(np.abs(example.values).max()), 1e-30), []
    for i, label in enumerate(example.labels):
        value = float(example.values[i])
        colour = BLUE if value >= 0 else RED
        style = f"background:rgba({colour},{abs(value) / scale:.2f})"
        title = f"{value:.4g}"
        if i == example.marked:
            style += ";outline:2px solid"
        if example.attention is not None:
            share = float(example.attention[i])
            title += f", attention {share:.2f}"
            if i == example.attention.argmax():
                style += ";border-bottom:2px solid"
        spans.append(f'<span style="{style}" title="{title}">{escape(visible(label))}</span>')
    return "".join(spans)

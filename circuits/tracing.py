"""The trace: every named activation of one pass, measured and not claimed.

Introductions to the Transformer print a table of dimensions: embedding, queries, scores, logits.
This table comes from a run. A tap measures shapes, types and bytes. The einsum that made an
activation is the forward pass's own, noted as it is called.
"""
from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from ..gpt2_np import Model, einsum, forward
from ..inference.turns import turn
from .inputs import PromptsLike, prompts
from .names import BY_HEAD, BY_NEURON, BY_QUERY, kind_of
from .short_reprs import Result, markdown_lines, prompts_in, table_lines

HEADER = ("name", "axes", "shape", "type", "bytes", "multiply-adds", "einsum")


class TraceRow(NamedTuple):
    """One activation: its letters of the alphabet for einsum ("1" for an axis of length 1).

    `einsum` is the specification of the product that made it, "" if only elementwise work did.
    The product that makes queries, keys and values counts a third for each.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    multiply_adds: int
    einsum: str


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Result):
    """The activations of one pass in order, `rows`, and at the end the logits.

    hook_result is left out: a pass builds it only for a tap that asks for it.
    """

    rows: list[TraceRow]
    n_layer: int
    tokens: np.ndarray
    bos: bool

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def cache_bytes(self) -> int:
        """The bytes of all keys and values: what a cache would hold."""
        return sum(row.bytes for row in self.rows if kind_of(row.name) in ("k", "v"))

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of all products but those of the layer norms."""
        return sum(row.multiply_adds for row in self.rows) - self.norm_multiply_adds

    @property
    def norm_multiply_adds(self) -> int:
        """The multiply-adds of the variances in layer norms."""
        return sum(row.multiply_adds for row in self.rows if kind_of(row.name) == "scale")

    @property
    def flops_per_token(self) -> float:
        """Operations per token, as `describe` counts one that attends to as many tokens."""
        return 2 * self.multiply_adds / self.tokens.size

    def cells(self, every: bool = False) -> list[list[Any]]:
        """Return the rows of the table: each layer's, or repeated layers once as "blocks.*"."""
        return [[row.name if every else row.name.replace("blocks.0.", "blocks.*."),
                 " ".join(row.axes), "×".join(map(str, row.shape)), row.dtype, f"{row.bytes:,}",
                 f"{row.multiply_adds:,}" if row.einsum else "", row.einsum]
                for row in self.rows if every or not is_repeated(row.name)]

    def notes(self, every: bool = False) -> list[str]:
        """Return sentences below the table: the sums over all layers."""
        repeated = "" if every else f"blocks.* is each of {self.n_layer} layers. "
        return [f"{repeated}In all {self.bytes:,} bytes, of which {self.cache_bytes:,} are keys "
                f"and values; {self.multiply_adds:,} multiply-adds, and "
                f"{self.norm_multiply_adds:,} in layer norms.",
                f"Without layer norms that is {self.flops_per_token:,.0f} operations per token, "
                f"as `describe` counts one that attends to {self.tokens.shape[1]}."]

    def text(self, every: bool = False) -> str:
        """Return the table as aligned text."""
        return "\n".join([*table_lines(HEADER, self.cells(every)), *self.notes(every)])

    def markdown(self, every: bool = False) -> str:
        """Return the table in Markdown."""
        code = [[cell and f"`{cell}`" if title in ("name", "einsum") else cell
                 for title, cell in zip(HEADER, cells, strict=True)] for cells in self.cells(every)]
        return "\n".join([*markdown_lines(HEADER, code, HEADER[4:6]), "", *self.notes(every)])

    def __repr__(self) -> str:
        lines = [f"Trace of {prompts_in(self.tokens)}: {len(self.rows)} activations",
                 *self.notes(every=True)]
        return "\n    ".join(lines)

    def __str__(self) -> str:
        return self.text()

    def _repr_markdown_(self) -> str:
        return self.markdown()


def is_repeated(name):
    return name.startswith("blocks.") and not name.startswith("blocks.0.")


def trace(model: Model, text_or_tokens: PromptsLike, *, bos: bool | None = None) -> Trace:
    """Run the model once and return every activation's name, axes, shape, type, bytes and einsum.

    Masked scores count as work, because they are computed. `print` shows a table with repeated
    layers once, `.text(every=True)` each, `.markdown()` the same in Markdown.
    """
    given, watcher = prompts(model, text_or_tokens, bos), Watcher()
    with turn(model), watcher.watching():
        logits = forward(model.params, model.config, given.tokens, tap=watcher)
    watcher("logits", logits)
    return Trace(watcher.rows, model.config.n_layer, given.tokens, given.bos)


class Watcher:
    """A tap that measures activations and knows which einsums made them."""

    def __init__(self):
        self.rows: list[TraceRow] = []
        self.products: list[tuple[str, int]] = []  # those that no activation has been made of yet

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note this thread's calls of `einsum`. A profiler that runs is interrupted meanwhile."""
        before: Any = sys.getprofile()
        sys.setprofile(self.profile)
        try:
            yield
        finally:
            sys.setprofile(before if callable(before) else None)
            if hasattr(before, "enable"):  # cProfile of Python 3.11
                before.enable()

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is einsum.__code__:
            self.note(**frame.f_locals)

    def note(self, specification: str, operands: Sequence[Any]) -> None:
        terms = specification.partition("->")[0].split(",")
        sizes = {letter: n for term, operand in zip(terms, operands, strict=True)
                 for letter, n in zip(term, operand.shape, strict=True)}
        n_made = sizes.get("c", 1)  # query, key and value are three activations
        self.products += [(specification, math.prod(sizes.values()) // n_made)] * n_made

    def __call__(self, name: str, array: Any) -> None:
        specification, multiply_adds = self.products.pop(0) if self.products else ("", 0)
        n_bytes = math.prod(array.shape) * array.dtype.itemsize
        self.rows.append(TraceRow(name, axes_of(name), array.shape, str(array.dtype), n_bytes,
                                  multiply_adds, specification))


def axes_of(name: str) -> str:
    """Return the letters of an activation's axes: "bqhe" for hook_q."""
    kind = kind_of(name)
    if kind in BY_QUERY:
        return "bhqk"
    if kind in BY_HEAD:
        return "bqhd" if kind == "result" else "bqhe"
    if kind in BY_NEURON:
        return "bqm"
    return {"scale": "bq1", "logits": "bqv"}.get(kind, "bqd")

"""Short reprs: a result shows names, sizes and shapes, so that a notebook's cell may end in it."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ..bpe import shown

FEW, WIDTH = 4, 100  # items that are shown one by one; characters of a line
MOST_LINES = 8  # of a table, below a line or two


class Result:
    """The base class of results, dataclasses that hold arrays. `_properties` are shown too."""

    _properties: tuple[str, ...] = ()

    def __repr__(self) -> str:
        from textwrap import fill

        own: Any = self
        names = [*(field.name for field in fields(own) if field.repr), *self._properties]
        text = ", ".join(f"{name}={short(getattr(self, name))}" for name in names)
        return fill(f"{type(self).__name__}({text})", WIDTH, subsequent_indent="    ",
                    break_long_words=False, break_on_hyphens=False)


def short(value: Any) -> str:
    """Return a value on part of a line: an array as its type and shape, a long list by its ends."""
    if isinstance(value, np.ndarray):
        if value.ndim == 1 and value.size <= FEW:
            return listed([short(one) for one in value.tolist()], "[]")
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, Mapping):
        return listed([f"{short(key)}: {short(one)}" for key, one in value.items()], "{}")
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return str(value)
    if isinstance(value, list | tuple):
        return listed([short(one) for one in value], "[]" if isinstance(value, list) else "()")
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return shown(value) if isinstance(value, str) else repr(value)


def listed(items, brackets):
    """Return all of a few short items, or the first two of many and the last."""
    text = ", ".join(items)
    if len(items) > FEW and len(text) > WIDTH:
        text = f"{len(items)} items: {items[0]}, {items[1]}, ..., {items[-1]}"
    return brackets[0] + text + brackets[1]


def strongest(values: np.ndarray, n: int) -> list[tuple[int, ...]]:
    """Return the indices of the n largest values, in either direction, without NaN."""
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[: np.isfinite(values).sum()][:n]
    return list(zip(*(i.tolist() for i in np.unravel_index(order, values.shape)), strict=True))


def prompts_in(tokens: np.ndarray | list[np.ndarray]) -> str:
    """Return "3 prompts of 12 tokens" for tokens [b, q], or "of 9 to 12" for rows that differ."""
    n, lengths = len(tokens), sorted({len(row) for row in tokens})
    length = str(lengths[0]) + f" to {lengths[-1]}" * (len(lengths) > 1)
    return f"{n} prompt{'s' * (n > 1)} of {length} token{'s' * (lengths[-1] > 1)}"


def table(title: str, rows: list[list[str]]) -> str:
    """Return a title and rows, which may differ in length, in columns below it."""
    most = max(map(len, rows), default=0)
    lines = table_lines([""] * most, [[*row, *[""] * (most - len(row))] for row in rows])[1:]
    return "\n".join([title, *(f"    {line}"[:WIDTH] for line in lines)])


def table_lines(header, rows):
    """Return lines of aligned columns, text to the left and numbers to the right; "-" for NaN."""
    cells = [list(header)]
    for row in rows:
        cells.append(["-" if x != x else f"{x:.4f}" if isinstance(x, float) else str(x)
                      for x in row])
    number, lines = re.compile(r"-?[\d.,]+|-|"), []
    columns = list(zip(*cells, strict=True))
    to_right = [all(map(number.fullmatch, column[1:])) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    for row in cells:
        lines.append("  ".join(text.rjust(width) if right else text.ljust(width)
                               for text, width, right in zip(row, widths, to_right, strict=True)
                               ).rstrip())
    return lines


def markdown_lines(header, rows, numbers=()):
    """Return the lines of a table in Markdown, with the columns of numbers to the right."""
    rule = ["---:" if title in numbers else "---" for title in header]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]


def visible(text: str) -> str:
    """Return a text on one line: line ends and other characters that print nothing as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

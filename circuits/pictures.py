"""Pictures of results, written to image files with matplotlib: maps, attention, the lens, bars.

    from gpt2_np.circuits import pictures
    pictures.plot_map(sweep.normalized, "patching.png", "share of the effect restored")

matplotlib is imported when the first picture is drawn. Its global state (pyplot) stays untouched,
so drawing needs no display and leaves a notebook's figures alone.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..gpt2_np import Error, Model
from .inputs import labels_of
from .logit_lens import Lens

__all__ = ["plot_attention", "plot_bars", "plot_lens", "plot_map"]


def plot_map(
    values: np.ndarray,
    path: Any,
    title: str = "",
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    axes: tuple[str, str] = ("layer", "head"),
    signed: bool = True,
    label: str = "",
) -> None:
    """Write a map [layer, head], [layer, position] or any [row, column] to an image file.

    `rows` and `columns` are labels, by default numbers from 0; `axes` names the two axes and
    `label` the colours. A `signed` map has 0 at white. NaN is left blank. Raises Error if the file
    cannot be written or matplotlib is not installed.
    """
    rows, columns = (list(map(str, range(n))) if names is None else names
                     for names, n in zip((rows, columns), values.shape, strict=True))
    width = max(2.0, 0.3 * values.shape[1], 0.07 * len(title))
    figure = new_figure(1.6 + 0.06 * max(map(len, rows)) + width,
                        0.9 + 0.06 * max(map(len, columns)) + 0.26 * values.shape[0])
    drawn = figure.subplots()
    draw_heat_map(drawn, values, title, rows, columns, signed, label)
    drawn.set_ylabel(axes[0], fontsize=8)
    drawn.set_xlabel(axes[1], fontsize=8)
    save(figure, path)


def plot_attention(
    patterns: np.ndarray, labels: Sequence[str], path: Any, titles: Sequence[str] = ()
) -> None:
    """Write attention maps [head, query, key] side by side, with token labels, to an image file."""
    n, size = len(patterns), 1.2 + 0.17 * len(labels)
    n_rows = math.ceil(n / 4)
    figure = new_figure((size + 0.8) * min(n, 4), size * n_rows)
    grid = figure.subplots(n_rows, min(n, 4), squeeze=False).ravel()
    for axes in grid[n:]:
        axes.set_visible(False)
    for i, (axes, pattern) in enumerate(zip(grid, patterns, strict=False)):
        title = titles[i] if i < len(titles) else ""
        draw_heat_map(axes, pattern, title, labels, labels, False, "attention")
        axes.set_ylabel("from", fontsize=8)
        axes.set_xlabel("to", fontsize=8)
    save(figure, path)


def plot_lens(result: Lens, model: Model, path: Any, row: int = 0) -> None:
    """Write the lens of one prompt to an image file: the best token at every point and position."""
    top, p = result.top[:, row, :, 0][::-1], result.top_probability[:, row, :, 0][::-1]
    words = labels_of(model, result.tokens[row])[-p.shape[1] :]
    figure = new_figure(1.8 + 0.55 * p.shape[1], 1.3 + 0.24 * len(p))
    axes = figure.subplots()
    draw_heat_map(axes, p, "the best next token, were each layer the last", result.points[::-1],
                  words, False, "probability")
    for (y, x), token in np.ndenumerate(top):
        axes.text(x, y, printable(labels_of(model, [token])[0].strip(" "))[:8], ha="center",
                  va="center", fontsize=6, parse_math=False,
                  color="white" if p[y, x] > 0.6 * p.max() else "black")
    save(figure, path)


def plot_bars(
    panels: Mapping[str, tuple[Sequence[str], Sequence[float]]], path: Any, title: str = ""
) -> None:
    """Write panels of horizontal bars to an image file: {title: (labels, values)}."""
    n_rows = max(len(values) for _, values in panels.values())
    longest = max((len(label) for labels, _ in panels.values() for label in labels), default=0)
    figure = new_figure((2.2 + 0.06 * longest) * len(panels) + 0.5, 1 + 0.2 * n_rows)
    figure.suptitle(printable(title), fontsize=9, parse_math=False)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, (labels, values)) in zip(grid, panels.items(), strict=True):
        colours = ["tab:blue" if value >= 0 else "tab:red" for value in values]
        axes.barh(range(len(values)), values, color=colours)
        axes.set_yticks(range(len(labels)), [printable(label) for label in labels], fontsize=7,
                        parse_math=False)
        axes.set_ylim(n_rows - 0.5, -0.5)
        axes.axvline(0, color="black", linewidth=0.5)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(name, fontsize=8)
    save(figure, path)


def new_figure(width, height):
    """Return a figure that needs no display and touches no global state of matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Error("pictures need matplotlib: pip install 'gpt2_np[plot]', or pip install "
                    "matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def draw_heat_map(axes, values, title, rows, columns, signed, label):
    """Draw values as colours: signed ones with 0 at white, others from 0 on."""
    bound = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    axes.set_facecolor("0.9")  # shows through where a value is NaN
    image = axes.imshow(values, cmap="RdBu" if signed else "Blues", vmin=-bound if signed else 0,
                        vmax=bound, aspect="auto")
    axes.set_title(printable(title), fontsize=9, parse_math=False)
    for names, axis in ((rows, axes.yaxis), (columns, axes.xaxis)):
        upright = axis is axes.xaxis and max(map(len, names)) > 3
        axis.set_ticks(range(len(names)), [printable(name) for name in names], fontsize=7,
                       rotation=90 if upright else 0, parse_math=False)
    colours = axes.figure.colorbar(image, ax=axes)
    colours.set_label(label, fontsize=8)
    colours.ax.tick_params(labelsize=7)


def printable(text):
    """Return a text as a label: line ends as ⏎, characters that fonts lack as question marks."""
    text = text.replace("\n", "⏎")
    return "".join(c if (c.isprintable() and ord(c) < 0x2500) or c == "⏎" else "?" for c in text)


def save(figure, path):
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise Error(f"{path} cannot be written: {error}") from None

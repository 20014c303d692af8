"""Pictures of results, drawn with matplotlib: maps, attention, the lens, bars, surveys.

    from gpt2_np.circuits import pictures
    pictures.plot_map(sweep, "patching.png")  # in a notebook without the path

Each function returns its figure, which a notebook shows as the value of a cell, and writes it to an
image file if a path is given. Results are drawn as they are, with labels of their own.

matplotlib is imported when the first picture is drawn. Its global state (pyplot) stays untouched,
so drawing needs no display and leaves a notebook's figures alone.
"""
from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..bpe import shown
from ..gpt2_np import Error, Model
from .attention_patterns import SHARES, Attention
from .calibration import Measures
from .distributions import Histogram
from .drawings import sweep_grid
from .inputs import token_texts
from .logit_attribution import Attribution
from .logit_lens import Lens
from .surveying import Survey
from .sweeps import Sweep

__all__ = ["plot_attention", "plot_bars", "plot_lens", "plot_map", "plot_reliability",
           "plot_survey"]

MOST_INCHES, MOST_LABELS, MOST_BARS, MOST_LINES = 24, 60, 20, 6


def plot_map(
    values: Sweep | Attention | Lens | np.ndarray,
    path: Any = None,
    title: str = "",
    *,
    model: Model | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    axes: tuple[str, str] | None = None,
    signed: bool | None = None,
    label: str = "",
) -> Any:
    """Draw a map and return the figure: of a Sweep, an Attention, a Lens, or an array.

    An array is [layer, head], [layer, position] or any [row, column]; one of three dimensions has a
    row for each pair of the first two. A Sweep from a source shows shares of the way to the source,
    one without a source the change of the metric. Positions are labelled by the tokens of the first
    prompt, by the vocabulary of the `model` or of the one that was run. `rows` and `columns` are
    labels, by default numbers from 0; `axes` names the two axes and `label` the colours. A `signed`
    map has 0 at white. NaN is left blank. Raises Error if the file cannot be written or matplotlib
    is not installed.
    """
    if isinstance(values, Lens):
        return plot_lens(values, model, path)
    if isinstance(values, Attention):
        return plot_shares(values, path, title)
    if isinstance(values, Sweep):
        grid = sweep_grid(values, (model or values).tokenizer)
        values, title, label = grid.values, title or grid.title, label or grid.label
        rows, columns, axes = rows or grid.rows, columns or grid.columns, axes or grid.axes
    values, first = as_array("plot_map", values, "a Sweep, an Attention, a Lens or"), "layer"
    if values.ndim == 3:
        rows = rows or [f"{i}.{j}" for i, j in np.ndindex(values.shape[:2])]
        values, first = values.reshape(-1, values.shape[-1]), "layer.head"
    rows, columns = (numbers(n) if given is None else list(given)
                     for given, n in zip((rows, columns), values.shape, strict=True))
    for kind, own, n in zip(("rows", "columns"), (rows, columns), values.shape, strict=True):
        if len(own) != n:
            raise Error(f"{len(own)} {kind} are named, but the array has {n}: give one each")
    axes = axes or (first, "position" if first != "layer" else "head")
    figure = new_figure(1.6 + label_inches(rows)
                        + inches(0.3 * values.shape[1], 2.0, 0.07 * len(title)),
                        0.9 + label_inches(columns) + inches(0.26 * values.shape[0]))
    drawn = figure.subplots()
    draw_heat_map(drawn, values, title, rows, columns, signed is not False, label)
    drawn.set_ylabel(axes[0], fontsize=8)
    drawn.set_xlabel(axes[1], fontsize=8)
    return saved(figure, path)


def plot_shares(attention, path, title):
    """Draw the shares of an Attention side by side, each [layer, head]."""
    n_layer, n_head = attention.induction.shape
    panel = inches(0.3 * n_head, 2.0)
    figure = new_figure((panel + 1.2) * len(SHARES), 1.2 + inches(0.26 * n_layer))
    figure.suptitle(printable(title or "attention to"), fontsize=9, parse_math=False)
    panels = [getattr(attention, kind) for kind in SHARES]
    bound = float(np.nanmax(np.stack(panels), initial=0))  # so that panels can be compared
    for axes, kind, values in zip(figure.subplots(1, len(SHARES)), SHARES, panels, strict=True):
        draw_heat_map(axes, values, kind.replace("_", " "), numbers(n_layer), numbers(n_head),
                      False, "", bound)
        axes.set_ylabel("layer", fontsize=8)
        axes.set_xlabel("head", fontsize=8)
    return saved(figure, path)


def plot_attention(
    patterns: np.ndarray | Attention,
    labels: Sequence[str] | None = None,
    path: Any = None,
    titles: Sequence[str] = (),
) -> Any:
    """Draw attention maps [head, query, key] or [query, key] side by side; return the figure.

    `labels` are those of the tokens, by default their numbers. An Attention is drawn as by
    `plot_map`.
    """
    if isinstance(patterns, Attention):
        return plot_map(patterns, path)
    patterns = as_array("plot_attention", patterns, "patterns of one prompt, as")
    patterns = patterns.reshape(-1, *patterns.shape[-2:])
    queries, keys = (numbers(n) if labels is None else list(labels) for n in patterns.shape[1:])
    if (len(queries), len(keys)) != patterns.shape[1:]:
        raise Error(f"{len(keys)} labels for patterns of shape {patterns.shape}: give one a token")
    n, size = len(patterns), inches(1.2 + 0.17 * len(keys))
    n_rows = math.ceil(n / 4)
    figure = new_figure((size + 0.8) * min(n, 4), size * n_rows)
    grid = figure.subplots(n_rows, min(n, 4), squeeze=False).ravel()
    for axes in grid[n:]:
        axes.set_visible(False)
    for i, (axes, pattern) in enumerate(zip(grid, patterns, strict=False)):
        title = titles[i] if i < len(titles) else ""
        draw_heat_map(axes, pattern, title, queries, keys, False, "attention")
        axes.set_ylabel("from", fontsize=8)
        axes.set_xlabel("to", fontsize=8)
    return saved(figure, path)


def plot_lens(result: Lens, model: Model | None = None, path: Any = None, row: int = 0) -> Any:
    """Draw the lens of one prompt, the best token at every point and position; return the figure.

    Tokens are shown by the vocabulary of the `model`, by default the one that was run.
    """
    if not isinstance(result, Lens):
        raise Error(f"plot_lens takes the result of circuits.lens, not {described(result)}: draw "
                    "arrays with plot_map")
    top, p = result.top[:, row, :, 0][::-1], result.top_probability[:, row, :, 0][::-1]

    def words(tokens):
        return token_texts((model or result).tokenizer, tokens)

    figure = new_figure(1.8 + inches(0.55 * p.shape[1], most=60), 1.3 + inches(0.24 * len(p)))
    axes = figure.subplots()
    draw_heat_map(axes, p, "the best next token, were each layer the last", result.points[::-1],
                  words(result.read_tokens[row]), False, "probability")
    for (y, x), token in np.ndenumerate(top):
        axes.text(x, y, printable(words([token])[0].strip(" "))[:8], ha="center",
                  va="center", fontsize=6, parse_math=False,
                  color="white" if p[y, x] > 0.6 * p.max() else "black")
    return saved(figure, path)


def plot_bars(
    panels: Mapping[str, tuple[Sequence[str], Sequence[float]]] | Sweep | Attribution | Histogram,
    path: Any = None,
    title: str = "",
) -> Any:
    """Draw panels of horizontal bars, {title: (labels, values)}; return the figure.

    Of a Sweep or an Attribution the largest are drawn, of a Histogram all bins.
    """
    panels = bar_panels(panels)
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
    return saved(figure, path)


def plot_reliability(measures: Measures | Mapping[str, Measures], path: Any = None) -> Any:
    """Draw the accuracy of predictions by their confidence, of one model or of {name: Measures}.

    A model is calibrated where it lies on the diagonal. The area of a point is the share of tokens.
    Returns the figure.
    """
    given = measures if isinstance(measures, Mapping) else {"": measures}
    if not given or not all(isinstance(one, Measures) for one in given.values()):
        raise Error("plot_reliability takes the result of circuits.measure, or {name: result}, not "
                    f"{described(measures)}")
    figure = new_figure(4, 3.6)
    draw_reliability(figure.subplots(), list(given.values()), line_styles(list(given)), any(given))
    return saved(figure, path)


def draw_reliability(axes, measures, styles, legend):
    """Draw accuracy by confidence, a line for each Measures, and the diagonal."""
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.5, linestyle=":")
    for one, style in zip(measures, styles, strict=True):
        confidence, accuracy, n = one.reliability[one.reliability[:, 2] > 0].T
        axes.plot(confidence, accuracy, **style)
        axes.scatter(confidence, accuracy, 200 * n / n.sum(), color=style["color"])
    finish_lines(axes, "reliability", "confidence", "accuracy", legend)


def line_styles(names):
    """Return colours from the first line to the last, and labels of a few."""
    from matplotlib import colormaps

    n = len(names)
    labelled = range(n) if n <= MOST_LINES else {0, n // 2, n - 1}
    return [{"color": colormaps["viridis"](0.9 * i / max(1, n - 1)), "linewidth": 1.2,
             "label": printable(name) if i in labelled else None} for i, name in enumerate(names)]


def finish_lines(axes, title, x, y, legend):
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    if legend:
        axes.legend(fontsize=7)


def plot_survey(survey: Survey, path: Any = None) -> Any:
    """Draw a survey: its columns by layer, a line a model, calibration, and its models in order.

    Of many models the legend and the reliability diagram show the first, the middle and the last.
    The last panel, the loss and the best heads of each model, is for several. Returns the figure.
    """
    if not isinstance(survey, Survey):
        raise Error(f"plot_survey takes the result of circuits.survey, not {described(survey)}")
    profiles, names = survey.profiles, [one.name for one in survey.profiles]
    several, styles, figure = len(names) > 1, line_styles(names), new_figure(11, 6)
    panels = figure.subplots(2, 3).ravel()
    for axes, kind, title, unit in zip(panels, ("norm", "entropy", "outliers", "induction"), (
            "norm of the stream after a layer", "entropy of attention", "outlier dimensions",
            "best induction head"), ("norm", "nats", "number", "attention"), strict=False):
        values = survey.by_layer(kind)
        for column, style in zip(values.T, styles, strict=True):
            axes.plot(range(len(column)), column, marker=".", **style)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if kind == "norm" and (values[values == values] > 0).all():
            axes.set_yscale("log")
        if kind == "outliers":
            axes.set_ylim(0, max(1, 1.05 * np.nanmax(values)))
            axes.yaxis.get_major_locator().set_params(integer=True)
        finish_lines(axes, title, "layer", unit, several and kind == "norm")
    few = [i for i, style in enumerate(styles) if style["label"]]
    draw_reliability(panels[4], [profiles[i].measures for i in few], [styles[i] for i in few],
                     several)
    panels[5].set_visible(several)
    if several:
        draw_models(panels[5], names, [one.overall for one in profiles])
    return saved(figure, path)


def draw_models(axes, names, columns):
    """Draw the best scores of heads and, on an axis to the right, the loss of each model."""
    right = axes.twinx()
    for own, kind, colour in ((axes, "previous", "tab:orange"), (axes, "induction", "tab:blue"),
                              (right, "loss", "0.5")):
        own.plot([one[kind] for one in columns], marker=".", color=colour, label=kind)
    right.set_ylabel("loss in nats (grey)", fontsize=8)
    right.tick_params(labelsize=7)
    step = math.ceil(len(names) / 24)
    axes.set_xticks(range(0, len(names), step), [printable(name) for name in names[::step]],
                    rotation=90, parse_math=False)
    axes.set_ylim(0, 1.02)
    finish_lines(axes, "best heads, and loss", "", "attention", False)
    axes.legend(fontsize=7, loc="center left")


def bar_panels(given):
    """Return {title: (labels, values)} of what plot_bars takes."""
    if isinstance(given, Mapping) and given:
        return given
    if isinstance(given, Histogram):
        labels = [f"{low:.4g} to {high:.4g}" for low, high in
                  zip(given.edges, given.edges[1:], strict=False)]
        return {f"{given.name}: number of values": (labels, given.counts)}
    if isinstance(given, Sweep):
        cells = given.top(MOST_BARS)
        return {f"{given.what}: change of the metric": tuple(zip(*cells, strict=True))}
    if isinstance(given, Attribution) and given.values.ndim == 2:
        values = given.values.mean(axis=1)
        order = np.argsort(-np.abs(values), kind="stable")[:MOST_BARS]
        return {"logits": ([given.labels[i] for i in order], values[order])}
    raise Error("plot_bars takes {title: (labels, values)}, a Sweep, an Attribution to one logit "
                f"or a Histogram, not {described(given)}: draw arrays with plot_map")


def as_array(function, values, others):
    """Return an array of two or three dimensions; Error for anything else."""
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError):
        array = values
    if isinstance(array, np.ndarray) and array.ndim in (2, 3) and array.size:
        return array
    raise Error(f"{function} takes {others} an array of two or three dimensions, not "
                f"{described(array)}: choose a prompt, a layer or a head of it")


def numbers(n):
    return list(map(str, range(n)))


def described(value):
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else shown(value)


def new_figure(width, height):
    """Return a figure that needs no display and touches no global state of matplotlib."""
    return figure_class()(figsize=(width, height), layout="constrained", dpi=150)


@functools.cache
def figure_class():
    """Return matplotlib's Figure with a picture for notebooks, which pyplot's figures have."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Error("pictures need matplotlib: pip install matplotlib") from None

    class Picture(Figure):
        def _repr_png_(self):
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Picture


def inches(wanted, *least, most=MOST_INCHES):
    return min(max(wanted, *least, 0), most)


def label_inches(names):
    return 0.06 * max(map(len, names))


def draw_heat_map(axes, values, title, rows, columns, signed, label, bound=None):
    """Draw values as colours: signed ones with 0 at white, others from 0 on, up to `bound`."""
    bound = bound or float(np.nanmax(np.abs(values), initial=0)) or 1.0
    axes.set_facecolor("0.9")  # shows through where a value is NaN
    image = axes.imshow(values, cmap="RdBu" if signed else "Blues", vmin=-bound if signed else 0,
                        vmax=bound, aspect="auto")
    axes.set_title(printable(title), fontsize=9, parse_math=False)
    for names, axis in ((rows, axes.yaxis), (columns, axes.xaxis)):
        upright, step = axis is axes.xaxis and max(map(len, names)) > 3, tick_step(names)
        axis.set_ticks(range(0, len(names), step), [printable(name) for name in names[::step]],
                       fontsize=7, rotation=90 if upright else 0, parse_math=False)
    colours = axes.figure.colorbar(image, ax=axes)
    colours.set_label(label, fontsize=8)
    colours.ax.tick_params(labelsize=7)


def tick_step(names):
    """Return the distance of labels: numbers and names of units may be left out, tokens not."""
    plain = all(name.isalnum() or not name for name in names)
    return math.ceil(len(names) / MOST_LABELS) if plain else 1


def printable(text):
    """Return a text as a label: line ends as ⏎, characters that fonts lack as question marks."""
    text = text.replace("\n", "⏎")
    return "".join(c if (c.isprintable() and ord(c) < 0x2500) or c == "⏎" else "?" for c in text)


def saved(figure, path):
    """Return the figure, written to an image file if there is a path."""
    if path is not None:
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise Error(f"{path} cannot be written: {error}") from None
    return figure

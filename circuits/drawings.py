"""Small pictures of results for notebooks: SVG from Python, and a script that adds a little life.

A picture is an <img> of SVG, so that it shows where scripts do not run and shares no style or id
with its neighbours. pages/picture.js adds the rest: a cell's value under the pointer or the arrow
keys, a head chosen by a click. pages/pages.css says what the colours mean. Nothing is fetched, and
tokens are data: every text is escaped.
"""
from __future__ import annotations

import base64
import functools
import json
import math
import re
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from .inputs import token_texts
from .names import cell_name
from .short_reprs import visible

LETTER, LINE = 6.63, 15  # width of a letter of the labels, height of a line, in pixels
MOST_CELLS, WIDEST = 2048, 200  # of a sweep's map and of its rows; larger ones become bars
MOST_COLUMNS, MOST_BARS, LONGEST = 16, 16, 14  # positions, bars, letters of a label
MOST_PATTERN_CELLS = 1 << 20
ON_BLUE = {"half": 0.601, "strong": 0.789}  # from these opacities on text is of another class


class Area(NamedTuple):
    """Cells of one size within a picture, with what each says, row by row; `does` if clicked."""

    x: float
    y: float
    cell: tuple[float, float]
    shape: tuple[int, int]
    said: list[str]
    does: str = ""


def page_file(name: str) -> str:
    """Return a file that pages share."""
    return files(__package__).joinpath("pages", name).read_text(encoding="utf-8")


@functools.cache
def colours() -> str:
    """Return the shared style without its comments, for a picture or the page around it."""
    return re.sub(r"/\*.*?\*/\s*", "", page_file("pages.css"), flags=re.DOTALL)


class Drawing:
    """A picture that grows: pieces of SVG, areas that speak, and the size so far."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.areas: list[Area] = []
        self.width, self.height, self.n_maps = 0.0, 0.0, 0

    def reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def add(self, svg: str) -> None:
        self.pieces.append(svg)

    def text(self, x: float, y: float, text: str, kind: str = "", more: str = "") -> None:
        """Write a text. `kind` is any of the classes of STYLE."""
        if text:
            self.add(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" {more}>{escape(text)}</text>')
        if not set(kind.split()) & {"end", "middle"} and not more:
            self.reach(x + (1.1 if "title" in kind else 1) * text_width(text), y + 4)

    def ink(self, t: np.ndarray, x: float, y: float, width: float, height: float) -> None:
        """Paint a map of opacities from -1 to 1, blue if positive and red if negative."""
        for ink, opacity in (("blue", t), ("red", -t)):
            if not (opacity > 0).any():
                continue
            self.n_maps += 1
            extent = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            self.add(f'<mask id="m{self.n_maps}"><image {extent} preserveAspectRatio="none" '
                     f'href="{png(opacity)}"/></mask><rect {extent} class="{ink}" '
                     f'mask="url(#m{self.n_maps})"/>')
        blank = np.argwhere(np.isnan(t))
        for row, column in blank if len(blank) < MOST_CELLS else ():
            h, w = height / t.shape[0], width / t.shape[1]
            self.text(x + (column + 0.5) * w, y + (row + 0.5) * h + 4, "·", "middle muted")
        self.add(f'<rect x="{x - 0.5:.1f}" y="{y - 0.5:.1f}" width="{width + 1:.1f}" '
                 f'height="{height + 1:.1f}" class="frame"/>')
        self.reach(x + width + 1, y + height + 1)

    def html(self, about: str) -> str:
        """Return the picture for a notebook. `about` is said to those who cannot see it."""
        width, height = round(self.width + 8), round(self.height + 8)
        svg = (f'<svg xmlns="http://www.w3.org/2000/svg" class="gpt2-np" width="{width}" '
               f'height="{height}" viewBox="0 0 {width} {height}"><style>{colours()}{STYLE}</style>'
               f'<rect width="100%" height="100%" class="sheet"/>{"".join(self.pieces)}</svg>')
        encoded = base64.b64encode(svg.encode()).decode()
        cells = escape(json.dumps([area._asdict() for area in self.areas], ensure_ascii=False))
        return (f'<div class="gpt2-np gpt2-np-picture" data-areas="{cells}">'
                f'<img width="{width}" height="{height}" style="max-width:100%;height:auto" '
                f'alt="{escape(about)}" src="data:image/svg+xml;base64,{encoded}">'
                f"<style>{colours()}</style><script>{page_file('picture.js')}</script></div>")


STYLE = """
text{font:11px var(--mono);fill:var(--ink)}.title{font:600 12px var(--sans)}
.muted{fill:var(--muted)}.end{text-anchor:end}.middle{text-anchor:middle}
.faint{fill:light-dark(#000,#fff)}.half{fill:#000}.strong{fill:light-dark(#fff,#000)}
.sheet{fill:var(--paper)}.blue{fill:var(--blue)}.red{fill:var(--red)}
.frame{fill:none;stroke:var(--line)}.gap{stroke:var(--paper);stroke-width:2}
.chosen{fill:none;stroke:var(--accent);stroke-width:2}.whisker{stroke:var(--ink)}
image{image-rendering:pixelated}
"""


def png(t: np.ndarray) -> str:
    """Return values from 0 to 1 [row, column] as a grey PNG, a data URI; NaN and below are 0."""
    grey = np.rint(255 * np.clip(np.nan_to_num(t), 0, 1)).astype(np.uint8)

    def chunk(kind, data):
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    rows = np.insert(grey, 0, 0, axis=1).tobytes()  # each row begins with its filter, 0
    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    image = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
             + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))
    return "data:image/png;base64," + base64.b64encode(image).decode()


# --- labels ----------------------------------------------------------------------------


def text_width(text: str) -> float:
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return LETTER * (len(text) + wide)


def label(text: str, longest: int = LONGEST) -> str:
    """Return a token as a short label: spaces around it are not shown."""
    text = visible(text.replace("\n", "⏎")).strip() or "␣" * bool(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def quoted(text: str) -> str:
    """Return a token as a sentence names it, with its spaces."""
    return f"“{visible(text)}”"


def labels_beside(drawing, labels, x, y, cell):
    """Write the labels of rows, to the left of x; not all, if rows are narrow."""
    step = math.ceil((LINE - 3) / cell)
    for i, text in enumerate(labels[::step]):
        drawing.text(x - 5, y + (i * step + 0.5) * cell + 4, text, "end")


def labels_below(drawing, labels, x, y, cell):
    """Write the labels of columns under y, upright if they are wide; return their height.

    Numbers may be left out, and stand for words that would overlap.
    """
    widest = max(map(text_width, labels), default=0)
    upright = widest > cell - 2
    if upright and (cell < LINE - 4 or all(text.isdigit() for text in labels)):
        labels = [str(i) for i in range(len(labels))]
        widest, upright = text_width(labels[-1]), False
    if upright:
        for i, text in enumerate(labels):
            extent = f"{x + (i + 0.5) * cell + 4:.1f} {y + 5:.1f}"
            drawing.text(0, 0, text, "end", f'transform="translate({extent}) rotate(-90)"')
        height = widest + 8
    else:
        step = max(1, math.ceil((widest + 4) / cell))
        for i, text in enumerate(labels[::step]):
            drawing.text(x + (i * step + 0.5) * cell, y + 13, text, "middle")
        height = float(LINE)
    drawing.reach(x + cell * len(labels), y + height)
    return height


# --- pictures --------------------------------------------------------------------------


def number(value: float) -> str:
    return "no value" if value != value else f"{value:.4g}"


def heat_map(drawing, values, x, y, title, rows, columns, axes, said, *, cell=(18, 18), t=None):
    """Draw a map with its title, labels and axes; return the x and y where it ends."""
    peak = 1.0 if t is not None else float(np.nanmax(np.abs(values), initial=0)) or 1.0
    with np.errstate(invalid="ignore"):
        t = values / peak if t is None else t
    left = x + max(map(text_width, [*rows, axes[0]]), default=0) + 8
    top = y + 2 * LINE + 6
    width, height = cell[0] * values.shape[1], cell[1] * values.shape[0]
    drawing.text(x, y + 12, title, "title")
    drawing.ink(t, left, top, width, height)
    labels_beside(drawing, rows, left, top, cell[1])
    end = top + height + labels_below(drawing, columns, left, top + height, cell[0])
    drawing.text(left - 5, top - 4, axes[0], "end muted")
    sign = "±" if (t < 0).any() else ""
    scale = f"{axes[1]} · full colour: {sign}{number(peak)}".removeprefix(" · ")
    drawing.text(left, end + 13, scale, "muted")
    drawing.areas.append(Area(left, top, cell, values.shape, said))
    return max(left + width, x + 1.1 * text_width(title)), end + LINE


def bars(labels: Sequence[str], values: Sequence[float], title: str, about: str,
         intervals: Sequence[tuple[float, float]] | None = None) -> str:
    """Return horizontal bars from 0, blue to the right and red to the left, with their numbers."""
    drawing, x, y, row = Drawing(), 8.0, 4.0, 18
    values = np.asarray(values, float)
    ends = np.append(values, [0, *np.ravel(intervals)] if intervals is not None else 0)
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    scale = 260 / ((high - low) or 1)
    names = [label(text, 30) for text in labels]
    left = x + max(map(text_width, names), default=0) + 8
    zero = left - low * scale
    drawing.text(x, y + 12, title, "title")
    top = y + LINE + 8
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        middle = top + (i + 0.5) * row
        ink, start = ("blue", zero) if value >= 0 else ("red", zero + value * scale)
        drawing.text(left - 5, middle + 4, name, "end")
        if value == value:
            drawing.add(f'<rect x="{start:.1f}" y="{middle - 6:.1f}" '
                        f'width="{abs(value) * scale:.1f}" height="12" class="{ink}"/>')
        if intervals is not None and intervals[i][0] == intervals[i][0]:
            start, end = (zero + one * scale for one in intervals[i])
            drawing.add(f'<path class="whisker" d="M{start:.1f} {middle:.1f}H{end:.1f}"/>')
        has_sign = low < 0 and value == value
        drawing.text(left + 268, middle + 4, f"{value:+.4g}" if has_sign else number(value))
    height = row * len(names)
    drawing.add(f'<path class="frame" d="M{zero:.1f} {top}v{height}"/>')
    drawing.reach(left + 268 + 8 * LETTER, top + height)
    said = [f"{visible(name)}: {number(value)}" for name, value in zip(labels, values, strict=True)]
    if intervals is not None:
        said = [f"{text}, from {number(low)} to {number(high)}" if low == low else text
                for text, (low, high) in zip(said, intervals, strict=True)]
    drawing.areas.append(Area(x, top, (left + 260 - x, row), (len(names), 1), said))
    return drawing.html(about)


def cell_size(n: int, most: int = 26) -> float:
    """Return the width of one of n cells."""
    return min(most, max(4, 720 // n))


# --- results ---------------------------------------------------------------------------


def lens_picture(lens: Any) -> str:
    """Return the best token at every point and position of the first prompt, the end on top."""
    n, words = lens.top.shape[2], functools.partial(token_texts, lens.tokenizer)
    here = range(max(0, n - MOST_COLUMNS), n)
    p = lens.top_probability[::-1, 0, here, 0]
    tokens, points, said = words(lens.read_tokens[0]), lens.points[::-1], []
    for i, point in reversed(list(enumerate(lens.points))):
        for q in here:
            best = ", ".join(f"{quoted(word)} {share:.3f}" for word, share in
                             zip(words(lens.top[i, 0, q]), lens.top_probability[i, 0, q],
                                 strict=True))
            [target] = words([lens.targets[0, q]])
            said.append(f"{point}, after {quoted(tokens[q])}: {best}; entropy "
                        f"{lens.entropy[i, 0, q]:.2f} nats; {quoted(target)} is number "
                        f"{lens.rank[i, 0, q] + 1} with {lens.probability[i, 0, q]:.3f}")
    drawing, cell = Drawing(), (58, 18)
    heat_map(drawing, p, 8, 4, "the best next token, were each layer the last" + part(len(here), n),
             points, [label(tokens[q], 8) for q in here], ("point", "position"), said, cell=cell,
             t=p)
    area = drawing.areas[0]
    for (row, column), share in np.ndenumerate(p):
        [word] = words([lens.top[::-1][row, 0, here[column], 0]])
        drawing.text(area.x + (column + 0.5) * cell[0], area.y + (row + 0.5) * cell[1] + 4,
                     label(word, 8), f"middle {text_class(share)}")
    return drawing.html(repr(lens))


def text_class(t: float) -> str:
    """Return the class of a text on blue of opacity t: black or white, by the higher contrast."""
    return "strong" if t > ON_BLUE["strong"] else "half" if t > ON_BLUE["half"] else "faint"


def part(shown: int, n: int, which: str = "last", things: str = "positions") -> str:
    return f" (the {which} {shown} of {n} {things})" if shown < n else ""


class Grid(NamedTuple):
    """A Sweep as a map: values [row, column] and the labels."""

    values: np.ndarray
    title: str
    rows: list[str]
    columns: list[str]
    axes: tuple[str, str]
    label: str


def sweep_grid(sweep: Any, tokenizer: Any = None) -> Grid:
    """Return a Sweep of one, two or three axes as a Grid."""
    values, label = sweep.effect, "change of the metric"
    title = f"{sweep.what} ablated"
    if sweep.source is not None:
        title = "direct paths from source" if sweep.what == "path" else f"{sweep.what} from source"
        if abs(sweep.source.mean() - sweep.base.mean()) > 1e-6 * max(1, abs(sweep.base.mean())):
            values, label = sweep.normalized, "share of the way to source"
    if values.ndim == 1:
        values = values[:, None]
    *outer, last = sweep.axes if len(sweep.axes) > 1 else (*sweep.axes, "")
    rows = [*sweep.senders] or digits(len(values))
    if len(outer) > 1:
        rows = [cell_name(outer, index) for index in np.ndindex(values.shape[:-1])]
        values = values.reshape(-1, values.shape[-1])
    columns = [str(i) if last else "" for i in range(values.shape[1])]
    if last == "position" and tokenizer:
        columns = token_texts(tokenizer, sweep.tokens[0])
    return Grid(values, title, rows, columns, (outer[-1], last), label)


def sweep_picture(sweep: Any) -> str:
    """Return the effects of a sweep as a map, those of very many cells as the largest in bars."""
    effect, shares = sweep.effect, np.array(np.nan)
    if effect.size > MOST_CELLS or effect.shape[-1] > WIDEST:
        names, values = zip(*sweep.top(MOST_BARS), strict=True)
        return bars(names, values, f"{sweep.what}: the largest changes of the metric", repr(sweep))
    grid = sweep_grid(sweep, sweep.tokenizer)
    if grid.label.startswith("share"):
        shares = sweep.normalized
    shares, said = np.broadcast_to(shares, effect.shape), []
    has_tokens = grid.axes[1] == "position" and sweep.tokenizer is not None
    for index in np.ndindex(effect.shape):
        token = f" {quoted(grid.columns[index[-1]])}" if has_tokens else ""
        share = "" if np.isnan(shares[index]) else f", {shares[index]:.1%} of the way"
        said.append(f"{sweep.cell(index)}{token}: metric {number(sweep.values[index])}, "
                    f"changed by {number(effect[index])}{share}")
    drawing, values = Drawing(), grid.values
    heat_map(drawing, values, 8, 4, f"{grid.title}: {grid.label}", grid.rows,
             [label(column) for column in grid.columns], grid.axes, said,
             cell=(cell_size(values.shape[1]), cell_size(2 * len(values), 18)))
    return drawing.html(repr(sweep))


def attention_picture(attention: Any, kinds: Sequence[str]) -> str:
    """Return a map [layer, head] for each kind of head, with its strongest head named."""
    drawing, x = Drawing(), 8.0
    for kind in kinds:
        values, name = getattr(attention, kind), kind.replace("_", " ")
        if np.isnan(values).all():
            continue
        layer, head = np.unravel_index(np.nanargmax(values), values.shape)
        cell = cell_size(len(kinds) * values.shape[1])
        said = [f"L{i}H{j}, {name}: {number(value)}" for (i, j), value in np.ndenumerate(values)]
        title = f"{name}: L{layer}H{head} {values[layer, head]:.2f}"
        x = 20 + heat_map(drawing, values, x, 4, title, digits(len(values)),
                          digits(values.shape[1]), ("layer", "head"), said, cell=(cell, cell),
                          t=np.sqrt(values))[0]
    return drawing.html(repr(attention))


def survey_picture(survey: Any, kinds: Sequence[str]) -> str:
    """Return a map [layer, model] for each column of a survey's profiles; cells say their names."""
    drawing, x, names = Drawing(), 8.0, [one.name for one in survey.profiles]
    axes, numbers = ("layer", ""), [""]
    if len(names) > 1:
        axes, numbers = ("layer", "number of the model"), digits(len(names))
    for kind in kinds:
        values = survey.by_layer(kind)
        said = [f"{visible(names[j])}, layer {i}: {kind} {number(value)}"
                for (i, j), value in np.ndenumerate(values)]
        size = min(18, cell_size(len(kinds) * len(names)))
        x = 20 + heat_map(drawing, values, x, 4, kind, digits(len(values)), numbers,
                          axes if kind == kinds[0] else ("", ""), said,
                          cell=(size, cell_size(2 * len(values), 18)))[0]
    return drawing.html(repr(survey))


def digits(n: int) -> list[str]:
    return list(map(str, range(n)))


def attribution_picture(attribution: Any) -> str:
    """Return the largest parts of a logit as bars, averaged over prompts."""
    parts, total = attribution.top(MOST_BARS), float(attribution.total.mean())
    if len(parts) < len(attribution.labels):
        parts.append(("all others", total - sum(value for _, value in parts)))
    labels, values = zip(*parts, strict=True)
    return bars(labels, values, f"logit {total:.4g}, the sum of all parts", repr(attribution))


def circuit_picture(circuit: Any) -> str:
    """Return what is lost without each part of a circuit, as bars with their intervals."""
    lost = sorted(circuit.minimality.items(), key=lambda part: -part[1].value)[:MOST_BARS]
    names = [name if isinstance(name, str) else " → ".join(name) for name, _ in lost]
    title = f"share lost without each of {len(circuit.kept)} parts" \
        f"{part(len(lost), len(circuit.kept), 'first', 'parts')}"
    return bars(names, [one.value for _, one in lost], title, repr(circuit),
                [(one.low, one.high) for _, one in lost])


def patterns_picture(run: Any, patterns: dict[int, np.ndarray]) -> str:
    """Return the patterns {layer: [h, q, k]} of one prompt: one head large, all to choose from."""
    n_head, n = next(iter(patterns.values())).shape[:2]
    layers = list(patterns)[: max(1, MOST_PATTERN_CELLS // (n_head * n * n))]
    heads = [f"L{layer}H{head}" for layer in layers for head in range(n_head)]
    grid = np.stack([patterns[layer] for layer in layers])  # [l, h, q, k]
    mosaic = np.sqrt(grid.transpose(0, 2, 1, 3).reshape(len(layers) * n, n_head * n))
    tokens = token_texts(run.tokenizer, run.tokens[0])
    drawing, cell = Drawing(), min(18, max(2, 320 // n))
    names = [label(token) for token in tokens] if cell >= LINE - 4 else digits(n)
    x, y, size = 8 + max(map(text_width, names)) + 8, 4.0 + LINE + 8, cell * n
    drawing.text(8, 16, heads[0], "title", 'id="name"')
    whole = f'width="{n_head * n}" height="{len(layers) * n}"'
    drawing.add(f'<mask id="all"><image {whole} href="{png(mosaic)}" id="mosaic"/></mask>')
    small = min(48, max(24, 420 // n_head))
    left = x + size + 28
    for extent, box, name in ((f'x="{x:.1f}" y="{y}" width="{size}" height="{size}"',
                              f"0 0 {n} {n}", "large"),
                             (f'x="{left:.1f}" y="{y}" width="{small * n_head}" '
                              f'height="{small * len(layers)}"',
                              f"0 0 {n_head * n} {len(layers) * n}", "small")):
        drawing.add(f'<svg {extent} viewBox="{box}" preserveAspectRatio="none" id="{name}">'
                    f'<rect {whole} class="blue" mask="url(#all)"/></svg>')
        drawing.add(f'<rect {extent} class="frame"/>')
    labels_beside(drawing, names, x, y, cell)
    end = y + size + labels_below(drawing, names, x, y + size, cell)
    drawing.text(x, end + 13, "rows attend to columns", "muted")
    lines = [f"M{left + i * small:.1f} {y}v{small * len(layers)}" for i in range(1, n_head)]
    lines += [f"M{left:.1f} {y + i * small}h{small * n_head}" for i in range(1, len(layers))]
    drawing.add(f'<path class="gap" d="{"".join(lines)}"/>')
    drawing.add(f'<rect x="{left:.1f}" y="{y}" width="{small}" height="{small}" class="chosen" '
                'id="chosen"/>')
    labels_beside(drawing, [f"L{layer}" for layer in layers], left, y, small)
    some = part(len(layers), len(patterns), "first", "layers")
    drawing.text(left, 16, f"{len(heads)} heads{some}: click one", "title")
    labels_below(drawing, digits(n_head), left, y + small * len(layers), small)
    drawing.reach(left + small * n_head, y + small * len(layers) + LINE)
    drawing.areas += [Area(x, y, (cell, cell), (n, n), list(map(quoted, tokens)), "value"),
                      Area(left, y, (small, small), (len(layers), n_head), heads, "choose")]
    return drawing.html(repr(run))

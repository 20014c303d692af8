"""Pictures of README.md from the result file: `python pictures.py results.json FOLDER`.

They are transparent, with greys and colours that are legible on white and on dark pages.
"""
import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import report

GREY, OURS = "#808890", "#e8710a"
COLOURS = {"transformers": "#3d85c6", "CTranslate2": "#45a06a", "llama.cpp": "#a66cc8",
           "ONNX Runtime": "#c0504d"}
mpl.rcParams |= {
    "text.color": GREY, "axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY,
    "ytick.color": GREY, "axes.spines.top": False, "axes.spines.right": False, "font.size": 10,
    "legend.frameon": False, "axes.titlelocation": "left", "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
}  # fmt: skip


def colour(label):
    """Return the colour of a library, the same in every precision."""
    matching = [shade for name, shade in COLOURS.items() if label.startswith(name)]
    return OURS if label == report.OURS else (matching or ["#9aa0a6"])[0]


def starred(label):
    return label if report.precision(label) == "float32" else f"{label}*"


def number_position(x, line, room):
    """Return the x of the number of a bar that ends at x, clear of the vertical line."""
    return line if line - room < x < line else x


def bars(axes, part, case, rate, line):
    """Draw a bar for each peer, best on top, with a whisker from the slowest to the quickest round.

    A dashed line marks a limit.
    """
    found = {label: report.spread([rate(s) for s in report.select(part, case, label)])
             for label in report.labels(part, case)}  # fmt: skip
    order = sorted(found, key=lambda label: found[label].median)
    room = 0.12 * max(high for _, _, high in found.values())
    for y, label in enumerate(order):
        middle, low, high = found[label]
        axes.barh(y, middle, color=colour(label), height=0.7,
                  alpha=1 if report.precision(label) == "float32" else 0.45)
        axes.plot([low, high], [y, y], color=GREY, lw=1.5)
        axes.text(number_position(high, line, room), y, f"  {middle:.0f}", va="center")
    axes.axvline(line, color=GREY, ls="--", lw=1, zorder=0)
    axes.set_yticks(range(len(order)), [starred(label) for label in order])
    axes.tick_params(axis="y", length=0)
    for text, label in zip(axes.get_yticklabels(), order, strict=True):
        text.set_fontweight("bold" if label == report.OURS else "normal")


def note_lower_precision(axes, part, case, mark="* pale:", y=0.0):
    if any(report.precision(label) != "float32" for label in report.labels(part, case)):
        axes.text(1, y, f"{mark} weights in fewer bits than float32", transform=axes.transAxes,
                  ha="right", va="bottom", fontsize=8)


def decode(results):
    sizes = [size for size in report.sizes(results, "decode")
             if len(report.labels(results["parts"][f"decode/{size}"])) > 2] or (
                 report.sizes(results, "decode")[:1])
    figure, panels = plt.subplots(1, len(sizes), figsize=(4.6 * len(sizes), 3.4), squeeze=False)
    for axes, size in zip(panels[0], sizes, strict=True):
        part = results["parts"][f"decode/{size}"]
        case = report.cases(part)[0]
        n = int(case.split()[0])
        ours = report.select(part, case, report.OURS)
        limit = statistics.median(1 / s["limit_seconds"] for s in ours)
        bars(axes, part, case, lambda s, n=n: n / s["seconds"], limit)
        axes.set_title(f"{size}: tokens per second, one text\ndashed: NumPy's products alone")
        axes.margins(x=0.12)
    part = results["parts"][f"decode/{sizes[0]}"]
    note_lower_precision(panels[0][0], part, report.cases(part)[0])
    return figure


def context(results):
    size = report.sizes(results, "context")[0]
    part = results["parts"][f"context/{size}"]
    figure, axes = plt.subplots(figsize=(5.6, 3.4))
    lengths = sorted(map(int, report.cases(part)))
    lines(axes, part, lengths, lambda s: 1000 * s["step"])
    axes.set(xlabel="cached tokens", title=f"{size}: milliseconds per token")
    return figure


def prefill(results):
    size = report.sizes(results, "prefill")[0]
    part = results["parts"][f"prefill/{size}"]
    figure, axes = plt.subplots(figsize=(5.6, 3.4))
    lengths = sorted(map(int, report.cases(part)))
    lines(axes, part, lengths, lambda s: int(s["case"]) / s["seconds"])
    axes.set(xlabel="tokens in the text", title=f"{size}: tokens read per second, all logits")
    return figure


def lines(axes, part, lengths, rate):
    """Draw a line for each peer in float32, named at its right end, with the range of rounds."""
    ends = []
    for label in report.labels(part):
        found = [report.spread([rate(s) for s in report.select(part, str(n), label)])
                 for n in lengths]  # fmt: skip
        if report.precision(label) != "float32" or None in found:
            continue
        axes.fill_between(lengths, [f.low for f in found], [f.high for f in found],
                          color=colour(label), alpha=0.15, lw=0)
        axes.plot(lengths, [f.median for f in found], color=colour(label), marker="o", ms=4,
                  lw=2.5 if label == report.OURS else 1.5)
        ends.append((found[-1].median, label))
    axes.set_ylim(bottom=0)
    gap, name_y = axes.get_ylim()[1] * 0.07, -1e9
    for y, label in sorted(ends):
        name_y = max(y, name_y + gap)  # names do not overlap
        axes.annotate(label, (lengths[-1], name_y), (6, 0), textcoords="offset points", va="center",
                      color=colour(label), annotation_clip=False,
                      fontweight="bold" if label == report.OURS else "normal")


def cold(results):
    size = report.sizes(results, "cold")[0]
    part = results["parts"][f"cold/{size}"]
    figure, axes = plt.subplots(figsize=(6.4, 3))
    order = sorted(report.labels(part, "40 tokens"),
                   key=lambda label: -statistics.median(
                       report.values(part, "40 tokens", label, "seconds")))
    for y, label in enumerate(order):
        first, end = (statistics.median(report.values(part, "40 tokens", label, key))
                      for key in ("first", "seconds"))
        axes.barh(y, first, color=colour(label), alpha=0.35, height=0.7)
        axes.barh(y, end - first, left=first, color=colour(label), height=0.7)
        axes.text(end, y, f"  {first:.2f} / {end:.2f} s", va="center",
                  fontweight="bold" if label == report.OURS else "normal")
    axes.set_yticks(range(len(order)), [starred(label) for label in order])
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.2)
    note_lower_precision(axes, part, "40 tokens", "*", 0.9)
    axes.set_title(f"{size}: seconds from the command to the first token (pale)\n"
                   "and to the end of 40 tokens")
    return figure


def drafts(results):
    size = report.sizes(results, "drafts")[0]
    part = results["parts"][f"drafts/{size}"]
    figure, axes = plt.subplots(figsize=(5.6, 3.4))
    order = report.cases(part)[::-1]
    for y, case in enumerate(order):
        for shift, label in ((0.2, report.OURS), (-0.2, "transformers")):
            found = report.spread(
                report.ratios(part, case, label, f"{label} with drafts", "step"))
            if found:
                axes.barh(y + shift, found.median, 0.36, color=colour(label), label=label)
                axes.text(number_position(found.high, 1, 0.4), y + shift, f"  {found.median:.2f}",
                          va="center", fontsize=9)
    axes.axvline(1, color=GREY, ls="--", lw=1, zorder=0)
    axes.set_yticks(range(len(order)), order)
    axes.tick_params(axis="y", length=0)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend(handles.values(), handles.keys(), loc="lower right")
    axes.set_title(f"{size}: times as fast with drafts from the text itself")
    return figure


def main(file, folder):
    results = json.loads(Path(file).read_text())
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    for draw in (decode, context, prefill, cold, drafts):
        if not report.sizes(results, draw.__name__):
            continue
        figure = draw(results)
        figure.savefig(folder / f"{draw.__name__}.png", dpi=110, transparent=True)
        plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])

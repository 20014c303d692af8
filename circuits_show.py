"""What circuits.py finds, shown: pictures with matplotlib, and the command line with its tables.

    python circuits.py lens | attribution | heads | patch | find | neurons   (each has --help)

Apart from circuits.py because that computes and this only shows. Part of gpt2_np.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

if __package__:
    from . import circuits, gpt2_np
    from .circuits import Lens, activation_name, head_names, labels_of, node_names, parse_node
    from .gpt2_np import Error, Model
else:
    import circuits
    import gpt2_np
    from circuits import Lens, activation_name, head_names, labels_of, node_names, parse_node
    from gpt2_np import Error, Model

__all__ = ["main", "plot_attention", "plot_bars", "plot_lens", "plot_map"]


# --- pictures --------------------------------------------------------------------------


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
    """Write a map to an image file: [layer, head], [layer, position], or any [row, column].

    `rows` and `columns` are labels, counted from 0 where they are left out; `axes` says what they
    are and `label` what the colours are. NaN is left blank.
    """
    rows, columns = (list(map(str, range(n))) if names is None else names
                     for names, n in zip((rows, columns), values.shape, strict=True))
    width = max(2.0, 0.3 * values.shape[1], 0.07 * len(title))
    figure = _figure(1.6 + 0.06 * max(map(len, rows)) + width,
                     0.9 + 0.06 * max(map(len, columns)) + 0.26 * values.shape[0])
    drawn = figure.subplots()
    _heat_map(drawn, values, title, rows, columns, signed, label)
    drawn.set_ylabel(axes[0], fontsize=8)
    drawn.set_xlabel(axes[1], fontsize=8)
    _save(figure, path)


def plot_attention(
    patterns: np.ndarray, labels: Sequence[str], path: Any, titles: Sequence[str] = ()
) -> None:
    """Write attention maps [head, query, key] side by side, with token labels, to an image file."""
    n, size = len(patterns), 1.2 + 0.17 * len(labels)
    n_rows = math.ceil(n / 4)
    figure = _figure((size + 0.8) * min(n, 4), size * n_rows)
    grid = figure.subplots(n_rows, min(n, 4), squeeze=False).ravel()
    for axes in grid[n:]:
        axes.set_visible(False)
    for i, (axes, pattern) in enumerate(zip(grid, patterns, strict=False)):
        title = titles[i] if i < len(titles) else ""
        _heat_map(axes, pattern, title, labels, labels, False, "attention")
        axes.set_ylabel("from", fontsize=8)
        axes.set_xlabel("to", fontsize=8)
    _save(figure, path)


def plot_lens(result: Lens, model: Model, path: Any, row: int = 0) -> None:
    """Write the lens of one prompt to an image file: the best token of every point and position."""
    top, p = result.top[:, row, :, 0][::-1], result.top_probability[:, row, :, 0][::-1]
    words = labels_of(model, result.tokens[row])[-p.shape[1] :]
    figure = _figure(1.8 + 0.55 * p.shape[1], 1.3 + 0.24 * len(p))
    axes = figure.subplots()
    _heat_map(axes, p, "the best next token, were each layer the last", result.points[::-1], words,
              False, "probability")
    for (y, x), token in np.ndenumerate(top):
        axes.text(x, y, _drawn(labels_of(model, [token])[0].strip(" "))[:8], ha="center",
                  va="center", fontsize=6, parse_math=False,
                  color="white" if p[y, x] > 0.6 * p.max() else "black")
    _save(figure, path)


def plot_bars(
    panels: Mapping[str, tuple[Sequence[str], Sequence[float]]], path: Any, title: str = ""
) -> None:
    """Write horizontal bars to an image file: for each title of a panel, its labels and values."""
    n_rows = max(len(values) for _, values in panels.values())
    longest = max((len(label) for labels, _ in panels.values() for label in labels), default=0)
    figure = _figure((2.2 + 0.06 * longest) * len(panels) + 0.5, 1 + 0.2 * n_rows)
    figure.suptitle(_drawn(title), fontsize=9, parse_math=False)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, (labels, values)) in zip(grid, panels.items(), strict=True):
        colours = ["tab:blue" if value >= 0 else "tab:red" for value in values]
        axes.barh(range(len(values)), values, color=colours)
        axes.set_yticks(range(len(labels)), [_drawn(label) for label in labels], fontsize=7,
                        parse_math=False)
        axes.set_ylim(n_rows - 0.5, -0.5)
        axes.axvline(0, color="black", linewidth=0.5)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(name, fontsize=8)
    _save(figure, path)


def _figure(width, height):
    """A figure that needs no display and touches no global state of matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Error("pictures need matplotlib: pip install 'gpt2_np[plot]', or pip install "
                    "matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _heat_map(axes, values, title, rows, columns, signed, label):
    """Signed values have 0 at white; others run from 0."""
    bound = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    axes.set_facecolor("0.9")  # where there is no value
    image = axes.imshow(values, cmap="RdBu" if signed else "Blues", vmin=-bound if signed else 0,
                        vmax=bound, aspect="auto")
    axes.set_title(_drawn(title), fontsize=9, parse_math=False)
    for names, axis in ((rows, axes.yaxis), (columns, axes.xaxis)):
        upright = axis is axes.xaxis and max(map(len, names)) > 3
        axis.set_ticks(range(len(names)), [_drawn(name) for name in names], fontsize=7,
                       rotation=90 if upright else 0, parse_math=False)
    colours = axes.figure.colorbar(image, ax=axes)
    colours.set_label(label, fontsize=8)
    colours.ax.tick_params(labelsize=7)


def _drawn(text):
    """A text as a label: line ends as a sign, what fonts lack as a question mark."""
    text = text.replace("\n", "⏎")
    return "".join(c if (c.isprintable() and ord(c) < 0x2500) or c == "⏎" else "?" for c in text)


def _save(figure, path):
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise Error(f"{path} cannot be written: {error}") from None


# --- command line ----------------------------------------------------------------------

_KINDS = ("previous_token", "duplicate_token", "induction", "beginning")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="circuits.py", description="Look inside GPT-2 from the command line.",
        epilog="Each command has its own --help. Texts get <|endoftext|> put before them unless "
        "--no-bos. Words inside a text begin with a space: --answer ' Mary'.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, about, top=None, default=10):
        added = commands.add_parser(name, help=about, description=about)
        add = added.add_argument
        gpt2_np.add_model_options(add)
        added.set_defaults(dtype="float32")
        add("--no-bos", action="store_true", help="do not put <|endoftext|> before the text")
        add("--json", action="store_true", help="machine-readable result")
        add("--plot", metavar="FILE.png", help="draw it, with matplotlib")
        if top:
            add("--top", type=int, default=default, metavar="N",
                help=f"{top} to show (default {default})")
        return add

    def answers(add, required):
        add("--answer", required=required, metavar="TOKEN", help="the token in question")
        add("--wrong", metavar="TOKEN", help="look at the difference from this token's logit")

    add = command("lens", "What every layer would say: the logit lens at the last position.",
                  "tokens of each layer", 5)
    add("text")
    add("--answer", metavar="TOKEN", help="follow this token's probability and rank")
    add = command("attribution", "What each head and MLP adds to a token's logit.", "parts")
    add("text")
    answers(add, required=True)
    add("--constants-apart", action="store_true",
        help="count what heads write whatever they attend to as bias, as in papers")
    add = command("heads", "Which heads attend to previous, duplicate or induction tokens.",
                  "heads of each kind")
    add("text", nargs="?", help="instead of random tokens that repeat")
    add("--head", action="append", default=[], metavar="5.1",
        help="with --plot: draw this head's attention on the text; may be repeated")
    add("--kind", default="induction", choices=_KINDS, help="with --plot: the score to draw")
    for name, about, top in (
        ("patch", "Put activations of a clean prompt into a corrupted one, one after another.",
         "strongest effects"),
        ("find", "The smallest set of heads and MLPs that keeps the effect.", None),
    ):
        add = command(name, about, top)
        add("clean", nargs="?", help="a text that has the answer")
        add("corrupted", nargs="?", help="one of as many tokens that has not")
        answers(add, required=False)
        add("--task", choices=circuits.TASKS,
            help="prompts made by this program instead of two texts")
        add("--prompts", type=int, default=8, metavar="N", help="how many, with --task (8)")
        add("--seed", type=int, default=0, metavar="S", help="which, with --task (0)")
        if name == "patch":
            add("--what", default="z", choices=circuits.PATCHABLE, help="what to patch (default z)")
            add("--by-position", action="store_true", help="one position at a time")
        else:
            add("--keep", type=float, default=0.9, metavar="SHARE", help="default 0.9")
            add("--mode", default="resample", choices=("resample", "mean"),
                help="what pruned nodes get: corrupted activations or their mean")
            add("--edges", action="store_true", help="prune edges, not heads and MLPs")
    add = command("neurons", "What neurons read and write, or which of them made an answer.",
                  "neurons, or tokens of one")
    add("text", nargs="?")
    answers(add, required=False)
    add("--layer", type=int, metavar="L", help="this layer only")
    add("--neuron", type=int, metavar="N", help="what this neuron of --layer reads and writes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: tables to stdout, all else to stderr; returns the exit status."""
    return gpt2_np.run_command("circuits", command_line(), argv, _one_sentence)


def _one_sentence(args, parser):
    """Linear algebra that fails, on weights that are no numbers, is told like our own errors."""
    try:
        _run_command(args, parser)
    except np.linalg.LinAlgError as error:
        raise Error(f"{args.model} has weights that linear algebra fails on: {error}") from error


class _Report(NamedTuple):
    """What a command found: for JSON, as a table under notes, and as a picture."""

    given: Any  # what has the tokens and bos of the prompts, or None
    data: dict[str, Any]
    header: Sequence[str]
    rows: Iterable[Sequence[Any]]
    notes: Sequence[str]
    draw: Callable[[str], None]


def _run_command(args, parser):
    _check_usage(args, parser)
    for name in ("text", "clean", "corrupted", "answer", "wrong"):
        gpt2_np.utf_8(os.fsencode(getattr(args, name, None) or ""), "the text")
    model = gpt2_np.text_model(args)
    report = _COMMANDS[args.command](model, args)
    if args.plot:
        report.draw(args.plot)
    given = report.given
    if args.json:
        about = {"command": args.command, "model": args.model}
        if given is not None:
            about |= {"bos": given.bos, "tokens": given.tokens}
        print(json.dumps(_plain({**about, **report.data})))
        return
    if given is not None:
        n, length = given.tokens.shape
        print(f"{n} prompt{'s' * (n > 1)} of {length} token{'s' * (length > 1)}, "
              f"{'with' if given.bos else 'without'} <|endoftext|> at the beginning")
    print("\n".join([*report.notes, *_table(report.header, report.rows)]))


def _check_usage(args, parser):
    if getattr(args, "top", 1) < 1:
        parser.error(f"--top is {args.top}: it must be at least 1")
    if args.command in ("patch", "find"):
        texts = args.clean is not None and args.corrupted is not None
        if args.task and (args.clean is not None or args.answer or args.wrong):
            parser.error("--task brings its own prompts and answers: leave the others out")
        if not args.task and not (texts and args.answer):
            parser.error("give a clean and a corrupted text and --answer, or --task")
        if args.task and args.no_bos:
            parser.error("--task decides where <|endoftext|> stands: leave --no-bos out")
        if not 1 <= args.prompts <= circuits.MOST_PROMPTS:
            parser.error(f"--prompts is {args.prompts}: it must be from 1 to "
                         f"{circuits.MOST_PROMPTS}")
        if args.seed < 0:
            parser.error(f"--seed is {args.seed}: it must be at least 0")
    if args.command == "find" and args.edges and args.mode != "resample":
        parser.error("--edges carry corrupted activations: leave --mode out")
    if args.command == "neurons":
        if args.neuron is not None and (args.layer is None or args.text):
            parser.error("--neuron goes with --layer and without a text")
        if args.neuron is None and not (args.text and args.answer):
            parser.error("give a text and --answer, or --layer and --neuron")
    if args.command == "heads" and args.head and not (args.plot and args.text):
        parser.error("--head draws attention on a text: give a text and --plot")
    if getattr(args, "wrong", None) and not args.answer:
        parser.error("--wrong goes with --answer")


def _plain(value):
    """For JSON: arrays as lists, NaN as null."""
    if isinstance(value, circuits.Estimate):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(header, rows):
    """Lines of aligned columns, text to the left and numbers to the right; "-" for no number."""
    shown = [list(header)]
    for row in rows:
        shown.append(["-" if x != x else f"{x:.4f}" if isinstance(x, float) else str(x)
                      for x in row])
    number, lines = re.compile(r"-?[\d.]+|-"), []
    columns = list(zip(*shown, strict=True))
    right = [all(map(number.fullmatch, column[1:])) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    for row in shown:
        cells = zip(row, widths, right, strict=True)
        lines.append("  ".join(text.rjust(width) if to_right else text.ljust(width)
                               for text, width, to_right in cells).rstrip())
    return lines


def _bos(args):
    return False if args.no_bos else None


def _word(model, token):
    return gpt2_np.quoted(model.tokenizer.token_bytes(int(token)))


def _asked(args):
    return f"logit of {args.answer!r}" + (f" minus {args.wrong!r}" if args.wrong else "")


def _lens_command(model, args):
    result = circuits.lens(model, args.text, args.answer, position=None if args.plot else -1,
                           top=min(args.top, gpt2_np.vocabulary_size(model)), bos=_bos(args))
    rows, records = [], []
    for i, point in enumerate(result.points):
        p, rank, entropy = (array[i, 0, -1].item() for array in
                            (result.probability, result.rank, result.entropy))
        best = [{"text": _word(model, t), "probability": float(q)} for t, q in
                zip(result.top[i, 0, -1], result.top_probability[i, 0, -1], strict=True)]
        rows.append([point, entropy, p, rank,
                     " ".join(f"{word['text']} {word['probability']:.3f}" for word in best)])
        records.append({"point": point, "entropy": entropy, "probability": p, "rank": rank,
                        "top": best})
    target = _word(model, result.targets[0, -1])
    return _Report(result, {"target": target, "points": records},
                   ["point", "entropy", f"p({target})", "rank", "best"], rows, [],
                   lambda path: plot_lens(result, model, path))


def _attribution_command(model, args):
    result = circuits.attribution(model, args.text, args.answer, args.wrong, bos=_bos(args),
                                  constants_apart=args.constants_apart)
    values, what = result.values[:, 0], _asked(args)
    order = np.argsort(-np.abs(values), kind="stable")
    rows = [[result.labels[i], float(values[i])] for i in order[: args.top]]
    others = order[args.top :]
    rows += [[f"{len(others)} others", float(values[others].sum())]] if len(others) else []
    rows.append(["sum", float(result.total[0])])
    parts = dict(zip(result.labels, values.tolist(), strict=True))
    return _Report(result, {"what": what, "total": result.total[0], "parts": parts},
                   ["part", what], rows, [],
                   lambda path: _plot_nodes(model, parts, path, what, "logits"))


def _plot_nodes(model, values, path, title, label):
    """Values by name as a map [layer, heads and MLP]; blank where there is none."""
    names = np.array(node_names(model.config)).reshape(model.config.n_layer, -1)
    grid = np.array([values.get(name, math.nan) for name in names.flat]).reshape(names.shape)
    plot_map(grid, path, title, columns=[*map(str, range(model.config.n_head)), "MLP"], label=label)


def _heads_command(model, args):
    nodes = [parse_node(model.config, node) for node in args.head]
    if any(head is None for _, head in nodes):
        raise Error("--head takes heads, such as 5.1: an MLP has no attention")
    result = circuits.heads(model, args.text, bos=_bos(args))
    names, kinds = head_names(model.config), {kind: getattr(result, kind) for kind in _KINDS}
    scores = {**kinds, "copying": circuits.copying_scores(model)}
    columns = []
    for values in (array.ravel() for array in scores.values()):
        best = np.argsort(-values, kind="stable")[: args.top]
        columns.append([f"{names[i]} {values[i]:.3f}" if values[i] == values[i] else "-"
                        for i in best])
    missing = [kind.replace("_", " ") for kind in _KINDS if np.isnan(kinds[kind]).all()]
    why = "repeats no token" if "beginning" not in missing else "is one token"

    def draw(path):
        if not nodes and np.isnan(kinds[args.kind]).all():
            raise Error(f"the text {why}: there is no {args.kind.replace('_', ' ')} score to draw")
        if not nodes:
            title = f"{args.kind.replace('_', ' ')} score"
            plot_map(kinds[args.kind], path, title, signed=False, label="attention")
            return
        seen = circuits.run(model, args.text, {activation_name("pattern", n) for n, _ in nodes},
                            bos=_bos(args), last_only=True)
        patterns = np.stack([seen[activation_name("pattern", n)][0, h] for n, h in nodes])
        plot_attention(patterns, labels_of(model, seen.tokens[0]), path,
                       [f"L{n}H{h}" for n, h in nodes])

    of = "the text" if args.text else "random tokens that repeat once"
    header = ["previous token", "duplicate token", "induction", "beginning", "copying (OV)"]
    data = {**scores, "entropy": result.entropy, "distance": result.distance}
    notes = [f"attention on {of}: the highest heads of each kind"]
    if missing:
        notes.append(f"this text {why}, so that no head can show {' or '.join(missing)}")
    return _Report(result, data, header, zip(*columns, strict=True), notes, draw)


def _prompt_pair(model, args):
    """Clean and corrupted prompts and a metric, from a task or from two texts."""
    if args.task:
        task = circuits.TASKS[args.task](model, args.prompts, args.seed)
        return task.clean, task.corrupted, task.metric(model)
    clean, corrupted = (circuits.prompts(model, text, _bos(args))
                        for text in (args.clean, args.corrupted))
    if args.wrong:
        return clean, corrupted, circuits.logit_difference(model, args.answer, args.wrong)
    return clean, corrupted, circuits.log_probability(model, args.answer)


def _patch_command(model, args):
    clean, corrupted, metric = _prompt_pair(model, args)
    sweep = circuits.patching(model, corrupted, clean, metric, args.what,
                              by_position=True if args.by_position else None,
                              progress=sys.stderr.isatty())
    shares, last = sweep.normalized, sweep.axes[-1]
    labels = labels_of(model, clean.tokens[0]) if last == "position" else None
    order = np.argsort(-np.abs(shares).ravel(), kind="stable")[: args.top]
    rows = []
    for index in zip(*np.unravel_index(order, shares.shape), strict=True):
        where = list(map(int, index))
        if labels:
            where[-1] = f"{where[-1]} {labels[where[-1]]!r}"
        rows.append([*where, float(sweep.values[index]), float(shares[index])])

    def draw(path):
        flat, title = shares, f"{args.what}: share of the effect restored"
        if shares.ndim == 3:  # every head and position: a row for each head
            flat = shares.reshape(-1, shares.shape[-1])
        plot_map(flat, path, title, rows=head_names(model.config) if shares.ndim == 3 else None,
                 columns=labels, axes=("layer" if shares.ndim == 2 else "head", last),
                 label="share")

    before, after = float(sweep.base.mean()), float(sweep.source.mean())
    data = {"what": args.what, "axes": sweep.axes, "values": sweep.values, "normalized": shares,
            "corrupted": before, "clean": after}
    note = (f"metric {before:.4f} corrupted, {after:.4f} clean; {args.what} of clean put into "
            "corrupted" + f" (tokens of the first of {len(clean.tokens)})" * bool(labels) + ":")
    return _Report(sweep, data, [*sweep.axes, "metric", "share"], rows, [note], draw)


def _find_command(model, args):
    prompt_pair, progress = _prompt_pair(model, args), sys.stderr.isatty()
    if args.edges:
        found = circuits.find_edges(model, *prompt_pair, args.keep, seed=args.seed,
                                    progress=progress)
        what, header = "edges", ["sender", "receiver", "attribution"]
    else:
        found = circuits.find(model, *prompt_pair, args.keep, mode=args.mode, seed=args.seed,
                              progress=progress)
        what, header = "heads and MLPs", ["node"]
    rows, parts = [], []
    for part in sorted(found.kept, key=lambda part: -found.minimality[part].value):
        about = [*part, found.scores[part]] if args.edges else [part]
        rows.append([*about, *found.minimality[part]])
        parts.append({**dict(zip(header, about, strict=True)), "lost": found.minimality[part]})
    intervals = "intervals are 95%, over prompts"
    if len(found.tokens) == 1:
        intervals = "there are no intervals: they are over prompts, and this is one"
    notes = [
        f"{len(found.kept)} of {found.n_all} {what} keep {found.share} of the effect "
        f"(metric {found.whole:.4f} with all, {found.none:.4f} with none)",
        f"incompleteness {found.incompleteness}; {intervals}",
    ]
    data = {"kept": parts, "n_all": found.n_all, "share": found.share,
            "incompleteness": found.incompleteness, "whole": found.whole, "none": found.none}
    return _Report(found, data, [*header, "share lost without it", "from", "to"], rows, notes,
                   lambda path: _plot_circuit(model, found, path))


def _plot_circuit(model, found, path):
    """What is lost without each part: heads and MLPs by layer, edges by sender and receiver."""
    title, lost = "share of the effect lost without it", found.minimality
    if found.scores is None:
        values = {name: share.value for name, share in lost.items()}
        _plot_nodes(model, values, path, title, "share")
        return
    ends = [[name for name in names if any(edge[i] == name for edge in lost)]
            for i, names in enumerate(circuits.edge_names(model.config)[:2])]
    grid = np.full((len(ends[0]), len(ends[1])), np.nan)
    for (sender, receiver), share in lost.items():
        grid[ends[0].index(sender), ends[1].index(receiver)] = share.value
    plot_map(grid, path, title, rows=ends[0], columns=ends[1], axes=("sender", "receiver"),
             label="share")


def _neurons_command(model, args):
    if args.neuron is not None:
        return _one_neuron(model, args)
    layers = range(model.config.n_layer) if args.layer is None else [args.layer]
    found = []
    for layer in layers:  # one at a time: all neurons' vectors of 1558M would take gigabytes
        result = circuits.attribution(model, args.text, args.answer, args.wrong, neurons=[layer],
                                      bos=_bos(args))
        found += [(float(value), label)
                  for label, value in zip(result.labels, result.values[:, 0], strict=True)
                  if re.fullmatch(r"L\d+N\d+", label)]
    found = sorted(found, key=lambda pair: -abs(pair[0]))[: args.top]
    rows, records = [], []
    for value, label in found:
        layer, neuron = map(int, label[1:].split("N"))
        ends = {end: [_word(model, t) for t in ids]
                for end, (ids, _) in circuits.neuron_tokens(model, layer, neuron, 4).items()}
        rows.append([label, value, *(" ".join(words) for words in ends.values())])
        records.append({"neuron": label, "value": value, **ends})
    what = _asked(args)
    bars = ([f"{r['neuron']} raises {' '.join(r['raises'][:3])}" for r in records],
            [value for value, _ in found])
    return _Report(result, {"what": what, "neurons": records},
                   ["neuron", what, "reads", "raises", "lowers"], rows, [],
                   lambda path: plot_bars({what: bars}, path, "direct effect of single neurons"))


def _one_neuron(model, args):
    ends = {end: ([_word(model, t) for t in ids], scores.tolist())
            for end, (ids, scores) in circuits.neuron_tokens(model, args.layer, args.neuron,
                                                             args.top).items()}
    title = f"neuron {args.neuron} of layer {args.layer}"
    records = {end: [{"text": word, "score": score} for word, score in zip(*both, strict=True)]
               for end, both in ends.items()}
    columns = ([f"{word['text']} {word['score']:.3f}" for word in words]
               for words in records.values())
    return _Report(None, {"layer": args.layer, "neuron": args.neuron, **records},
                   list(ends), zip(*columns, strict=True),
                   [f"{title}: the tokens it reads, raises and lowers"],
                   lambda path: plot_bars(ends, path, title))


_COMMANDS = {
    "lens": _lens_command, "attribution": _attribution_command, "heads": _heads_command,
    "patch": _patch_command, "find": _find_command, "neurons": _neurons_command,
}  # fmt: skip

"""The commands that look inside a model: lens, attribution, heads, patch, excite, survey, ...

    python -m gpt2_np.circuits lens "The Eiffel Tower is in"     (each command has --help)

A command checks its arguments, calls one function of circuits and reports the result as a table,
as JSON or as a picture. Tables go to standard output and everything else to standard error.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import circuits
from ..command_line import (
    STDIN_CLOSED,
    add_model_options,
    called,
    check_counts,
    decode_utf_8,
    prompt_text,
    quoted,
    run_command,
    text_model,
)
from ..gpt2_np import Error
from .attention_patterns import SHARES
from .inputs import check_same_length
from .names import activation_name, head_names, node_names, parse_node
from .pictures import plot_attention, plot_bars, plot_lens, plot_map, plot_survey
from .reporting import report_page
from .resumed_runs import PATCHABLE
from .short_reprs import prompts_in, table_lines
from .tasks import MOST_PROMPTS, TASKS
from .tracing import HEADER


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command_line()
    return run_command(parser.prog, parser, argv, run)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    check_usage(args, parser)
    for name in ("text", "clean", "corrupted", "answer", "wrong"):
        decode_utf_8(os.fsencode(getattr(args, name, None) or ""), "the text")
    try:
        model = text_model(args)
        report = COMMANDS[args.command](model, args)
    except np.linalg.LinAlgError as error:  # a ValueError of NumPy's, about undefined weights
        raise Error(f"linear algebra fails on the weights of {args.model}: {error}") from error
    if getattr(args, "plot", None):
        report.draw(args.plot)
    if getattr(args, "markdown", False):
        print(report.given.markdown(args.all))
    else:
        (print_json if args.json else print_table)(args, report)


# --- arguments -------------------------------------------------------------------------


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("gpt2-np-circuits", __package__),
        description="Look inside GPT-2 from the command line.",
        epilog="Each command has its own --help. Texts get <|endoftext|> put before them unless "
        "--no-bos. Words inside a text begin with a space: --answer ' Mary'.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, about, top=None, default=10, plot=True):
        added = commands.add_parser(name, help=about, description=about)
        add = added.add_argument
        add_model_options(add)
        added.set_defaults(dtype="float32")
        add("--no-bos", action="store_true", help="do not put <|endoftext|> before the text")
        add("--json", action="store_true", help="machine-readable result")
        if plot:
            add("--plot", metavar="FILE.png", help="draw the result with matplotlib")
        if top:
            add("--top", type=int, default=default, metavar="N",
                help=f"{top} to show (default {default})")
        return add

    def answers(add, required):
        add("--answer", required=required, metavar="TOKEN", help="the token to explain")
        add("--wrong", metavar="TOKEN", help="explain the difference from this token's logit")

    add = command("lens", "Logit lens: the best next tokens if the model ended at each layer.",
                  "tokens of each layer", 5)
    add("text")
    add("--answer", metavar="TOKEN", help="follow this token's probability and rank")
    add = command("attribution", "Contribution of each head and MLP to a token's logit.", "parts")
    add("text")
    answers(add, required=True)
    add("--constants-apart", action="store_true",
        help="count as bias what heads write regardless of attention, as papers do")
    add = command("heads", "Heads that attend to previous tokens, duplicates, or after them.",
                  "heads of each kind")
    add("text", nargs="?", help="a text instead of random tokens that repeat")
    add("--head", action="append", default=[], metavar="5.1",
        help="with --plot: draw this head's attention on the text; may be repeated")
    add("--kind", default="induction", choices=SHARES, help="with --plot: the score to draw")
    for name, about, top in (
        ("patch", "Copy activations of a clean prompt into a corrupted one, one after another.",
         "strongest effects"),
        ("find", "Find the smallest set of heads and MLPs that keeps the effect.", None),
    ):
        add = command(name, about, top)
        add("clean", nargs="?", help="a text with the answer")
        add("corrupted", nargs="?", help="a text of as many tokens without it")
        answers(add, required=False)
        add("--task", choices=TASKS, help="prompts made by this program instead of two texts")
        add("--prompts", type=int, default=8, metavar="N",
            help="with --task: number of prompts (default 8)")
        add("--seed", type=int, default=0, metavar="S",
            help="with --task: choice of prompts (default 0)")
        if name == "patch":
            add("--what", default="z", choices=PATCHABLE, help="activation to patch (default z)")
            add("--by-position", action="store_true", help="one position at a time")
        else:
            add("--keep", type=float, default=0.9, metavar="SHARE",
                help="share of the effect to keep (default 0.9)")
            add("--mode", default="resample", choices=("resample", "mean"),
                help="give pruned nodes their corrupted activations, or the mean of these")
            add("--edges", action="store_true", help="prune edges, not heads and MLPs")
    add = command("neurons", "Tokens that neurons read and write, or neurons that made an answer.",
                  "neurons, or tokens of one")
    add("text", nargs="?")
    answers(add, required=False)
    add("--layer", type=int, metavar="L", help="this layer only")
    add("--neuron", type=int, metavar="N", help="show the tokens of this neuron of --layer")
    for name, about, top in (
        ("excite", "Texts that excite a neuron or a head most.", "windows"),
        ("histogram", "How often a neuron, a head or an activation is high, and how high.", None),
    ):
        add = command(name, about, top)
        add("unit", help="a neuron L2N17 or a head L1H1" + (
            "" if top else ", or an activation such as blocks.2.hook_resid_post"))
        add("files", nargs="+", metavar="FILE", help="UTF-8 text, or - for standard input")
        add("--lines", action="store_true", help="each line is a text of its own")
        if name == "histogram":
            add("--bins", type=int, default=20, metavar="N", help="at most N bins (default 20)")
    add = command("survey", "Norms, outliers, attention and calibration by layer, or by model.")
    add("files", nargs="+", metavar="FILE", help="UTF-8 text, or - for standard input")
    add("--lines", action="store_true", help="each line is a text of its own")
    add("--checkpoints", nargs="+", default=[], metavar="NAME",
        help="more models, such as steps of its training, after --model")
    add = command("report", "One page about a text, to look at in a browser.", plot=False)
    add("prompt", nargs="?", metavar="text", help="the text, or - to read standard input")
    add("--file", metavar="PATH", help="read the text from a file")
    answers(add, required=False)
    add("-o", "--output", default="report.html", metavar="FILE.html",
        help="default report.html; an older report is replaced, no other file is")
    add = command("trace", "Shape, bytes and work of every activation of a real run, with the "
                  "einsum that made it.", plot=False)
    add("text")
    add("--all", action="store_true", help="every layer's rows, not repeated layers once")
    add("--markdown", action="store_true", help="the table in Markdown")
    return parser


def check_usage(args, parser):
    """End the program if arguments do not go together."""
    check_counts(args, parser, "top")
    if args.command == "histogram" and args.bins < 2:
        parser.error(f"--bins is {args.bins}: it must be at least 2")
    if args.command in ("patch", "find"):
        check_prompt_pair(args, parser)
    if args.command == "find" and args.edges and args.mode != "resample":
        parser.error("--edges carry corrupted activations: leave --mode out")
    if args.command == "neurons":
        if args.neuron is not None and (args.layer is None or args.text):
            parser.error("--neuron goes with --layer and without a text")
        if args.neuron is None and not (args.text and args.answer):
            parser.error("give a text and --answer, or --layer and --neuron")
    if args.command == "heads" and args.head and not (args.plot and args.text):
        parser.error("--head draws attention on a text: give a text and --plot")
    if args.command == "report" and (args.prompt is None) == (args.file is None):
        parser.error("give a text or --file, and not both")
    if getattr(args, "wrong", None) and not args.answer:
        parser.error("--wrong goes with --answer")


def check_prompt_pair(args, parser):
    texts = args.clean is not None and args.corrupted is not None
    if args.task and (args.clean is not None or args.answer or args.wrong):
        parser.error("--task brings its own prompts and answers: leave the others out")
    if not args.task and not (texts and args.answer):
        parser.error("give a clean and a corrupted text and --answer, or --task")
    if args.task and args.no_bos:
        parser.error("--task decides about <|endoftext|> itself: leave --no-bos out")
    if not 1 <= args.prompts <= MOST_PROMPTS:
        parser.error(f"--prompts is {args.prompts}: it must be from 1 to {MOST_PROMPTS}")
    if args.seed < 0:
        parser.error(f"--seed is {args.seed}: it must be at least 0")


# --- printouts -------------------------------------------------------------------------


class Printout(NamedTuple):
    """The result of a command: as data for JSON, as a table below notes, and as a picture."""

    given: Any  # a result with the tokens and bos of the prompts, or None
    data: dict[str, Any]
    header: Sequence[str]
    rows: Iterable[Sequence[Any]]
    notes: Sequence[str]
    draw: Callable[[str], None]


def print_json(args, report):
    about = {"command": args.command, "model": args.model}
    if report.given is not None:
        about |= {"bos": report.given.bos, "tokens": report.given.tokens}
    print(json.dumps(plain({**about, **report.data})))


def plain(value):
    """Return a value that JSON can hold: arrays as lists, NaN as null."""
    if isinstance(value, circuits.Estimate):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(_, report):
    if report.given is not None:
        print(f"{prompts_in(report.given.tokens)}, "
              f"{'with' if report.given.bos else 'without'} <|endoftext|> at the beginning")
    print("\n".join([*report.notes, *table_lines(report.header, report.rows)]))


def bos_of(args):
    return False if args.no_bos else None


def word(model, token):
    return quoted(model.tokenizer.token_bytes(int(token)))


def logit_title(args):
    return f"logit of {args.answer!r}" + (f" minus {args.wrong!r}" if args.wrong else "")


# --- commands --------------------------------------------------------------------------


def lens(model, args):
    result = circuits.lens(model, args.text, args.answer, position=None if args.plot else -1,
                           top=min(args.top, model.n_vocab), bos=bos_of(args))
    rows: list[list[Any]] = []
    records: list[dict[str, Any]] = []
    for i, point in enumerate(result.points):
        p, rank, entropy = (array[i, 0, -1].item() for array in
                            (result.probability, result.rank, result.entropy))
        best = [{"text": word(model, t), "probability": float(q)} for t, q in
                zip(result.top[i, 0, -1], result.top_probability[i, 0, -1], strict=True)]
        rows.append([point, entropy, p, rank,
                     " ".join(f"{one['text']} {one['probability']:.3f}" for one in best)])
        records.append({"point": point, "entropy": entropy, "probability": p, "rank": rank,
                        "top": best})
    target = word(model, result.targets[0, -1])
    return Printout(result, {"target": target, "points": records},
                    ["point", "entropy", f"p({target})", "rank", "best"], rows, [],
                    lambda path: plot_lens(result, model, path))


def attribution(model, args):
    result = circuits.attribution(model, args.text, args.answer, args.wrong, bos=bos_of(args),
                                  constants_apart=args.constants_apart)
    values, title = result.values[:, 0], logit_title(args)
    order = np.argsort(-np.abs(values), kind="stable")
    rows = [[result.labels[i], float(values[i])] for i in order[: args.top]]
    others = order[args.top :]
    rows += [[f"{len(others)} others", float(values[others].sum())]] if len(others) else []
    rows.append(["sum", float(result.total[0])])
    parts = dict(zip(result.labels, values.tolist(), strict=True))
    return Printout(result, {"what": title, "total": result.total[0], "parts": parts},
                    ["part", title], rows, [],
                    lambda path: plot_nodes(model, parts, path, title, "logits"))


def plot_nodes(model, values, path, title, label):
    """Draw values by name as a map [layer, heads and MLP]; nodes without a value stay blank."""
    names = np.array(node_names(model.config)).reshape(model.config.n_layer, -1)
    grid = np.array([values.get(name, math.nan) for name in names.flat]).reshape(names.shape)
    plot_map(grid, path, title, columns=[*map(str, range(model.config.n_head)), "MLP"], label=label)


def heads(model, args):
    nodes = [parse_node(model.config, node) for node in args.head]
    if any(node[1] is None for node in nodes):
        raise Error("--head takes heads, such as 5.1: an MLP has no attention")
    result = circuits.heads(model, args.text, bos=bos_of(args))
    names, kinds = head_names(model.config), {kind: getattr(result, kind) for kind in SHARES}
    scores = {**kinds, "copying": circuits.copying_scores(model)}
    columns = []
    for values in (array.ravel() for array in scores.values()):
        best = np.argsort(-values, kind="stable")[: args.top]
        columns.append([f"{names[i]} {values[i]:.3f}" if values[i] == values[i] else "-"
                        for i in best])
    missing = [kind.replace("_", " ") for kind in SHARES if np.isnan(kinds[kind]).all()]
    reason = "repeats no token" if "beginning" not in missing else "is one token"

    def draw(path):
        if nodes:
            plot_patterns(model, args, nodes, path)
            return
        title = args.kind.replace("_", " ")
        if np.isnan(kinds[args.kind]).all():
            raise Error(f"the text {reason}: there is no {title} score to draw")
        plot_map(kinds[args.kind], path, f"{title} score", signed=False, label="attention")

    text = "the text" if args.text else "random tokens that repeat once"
    header = [*(kind.replace("_", " ") for kind in SHARES), "copying (OV)"]
    data = {**scores, "entropy": result.entropy, "distance": result.distance}
    notes = [f"attention on {text}: the highest heads of each kind"]
    if missing:
        notes.append(f"this text {reason}, so that no head can show {' or '.join(missing)}")
    return Printout(result, data, header, zip(*columns, strict=True), notes, draw)


def plot_patterns(model, args, nodes, path):
    names = [activation_name("pattern", layer) for layer, _ in nodes]
    seen = circuits.run(model, args.text, names, bos=bos_of(args), last_only=True)
    patterns = np.stack([seen[activation_name("pattern", n)][0, h] for n, h in nodes])
    plot_attention(patterns, circuits.labels_of(model, seen.tokens[0]), path,
                   [f"L{n}H{h}" for n, h in nodes])


def prompt_pair(model, args):
    """Return clean and corrupted prompts and a metric, from a task or from two texts."""
    if args.task:
        task = TASKS[args.task](model, args.prompts, args.seed)
        return task.clean, task.corrupted, task.metric(model)
    clean, corrupted = (circuits.prompts(model, text, bos_of(args))
                        for text in (args.clean, args.corrupted))
    check_same_length(clean, corrupted, "corrupted")
    if args.wrong:
        return clean, corrupted, circuits.logit_difference(model, args.answer, args.wrong)
    return clean, corrupted, circuits.log_probability(model, args.answer)


def patch(model, args):
    clean, corrupted, metric = prompt_pair(model, args)
    sweep = circuits.patching(model, args.what, base=corrupted, source=clean, metric=metric,
                              by_position=True if args.by_position else None,
                              progress=sys.stderr.isatty())
    shares, last = sweep.normalized, sweep.axes[-1]
    labels = circuits.labels_of(model, clean.tokens[0]) if last == "position" else None
    order = np.argsort(-np.abs(shares).ravel(), kind="stable")[: args.top]
    rows = []
    for index in zip(*np.unravel_index(order, shares.shape), strict=True):
        cell: list[Any] = list(map(int, index))
        if labels:
            cell[-1] = f"{cell[-1]} {labels[cell[-1]]!r}"
        rows.append([*cell, float(sweep.values[index]), float(shares[index])])

    def draw(path):
        plot_map(sweep, path, f"{args.what}: share of the effect restored", model=model,
                 label="share")

    assert sweep.base is not None and sweep.source is not None, "a patching sweep has both"
    before, after = float(sweep.base.mean()), float(sweep.source.mean())
    data = {"what": args.what, "axes": sweep.axes, "values": sweep.values, "normalized": shares,
            "corrupted": before, "clean": after, "kind": sweep.kind}
    note = (f"metric {before:.4f} corrupted, {after:.4f} clean; {sweep.kind}, {args.what} of "
            "clean put into corrupted"
            + f" (tokens of the first of {len(clean.tokens)})" * bool(labels) + ":")
    return Printout(sweep, data, [*sweep.axes, "metric", "share"], rows, [note], draw)


def find(model, args):
    clean, corrupted, metric = prompt_pair(model, args)
    common: dict[str, Any] = {"base": clean, "source": corrupted, "metric": metric,
                              "seed": args.seed, "progress": sys.stderr.isatty()}
    if args.edges:
        found = circuits.find_edges(model, args.keep, **common)
        parts, header = "edges", ["sender", "receiver", "attribution"]
    else:
        found = circuits.find(model, args.keep, mode=args.mode, **common)
        parts, header = "heads and MLPs", ["node"]
    rows: list[list[Any]] = []
    records: list[dict[str, Any]] = []
    for part in sorted(found.kept, key=lambda part: -found.minimality[part].value):
        about = [*part, found.scores[part]] if found.scores else [part]
        rows.append([*about, *found.minimality[part]])
        records.append({**dict(zip(header, about, strict=True)), "lost": found.minimality[part]})
    whole, none = float(found.base.mean()), float(found.none.mean())
    intervals = "intervals are 95%, over prompts"
    if len(found.tokens) == 1:
        intervals = "there are no intervals: they are over prompts, and this is one"
    notes = [
        f"{len(found.kept)} of {found.n_all} {parts} keep {found.share} of the effect "
        f"(metric {whole:.4f} with all, {none:.4f} with none)",
        f"incompleteness {found.incompleteness}; {intervals}",
    ]
    data = {"kept": records, "n_all": found.n_all, "share": found.share,
            "incompleteness": found.incompleteness, "whole": whole, "none": none,
            "kind": found.kind}
    return Printout(found, data, [*header, "share lost without it", "from", "to"], rows, notes,
                    lambda path: plot_circuit(model, found, path))


def plot_circuit(model, found, path):
    """Draw the share lost without each part: nodes by layer, edges by sender and receiver."""
    title, lost = "share of the effect lost without it", found.minimality
    if found.scores is None:
        values = {name: share.value for name, share in lost.items()}
        plot_nodes(model, values, path, title, "share")
        return
    ends = [[name for name in names if any(edge[i] == name for edge in lost)]
            for i, names in enumerate(circuits.edge_names(model.config)[:2])]
    grid = np.full((len(ends[0]), len(ends[1])), np.nan)
    for (sender, receiver), share in lost.items():
        grid[ends[0].index(sender), ends[1].index(receiver)] = share.value
    plot_map(grid, path, title, rows=ends[0], columns=ends[1], axes=("sender", "receiver"),
             label="share")


def neurons(model, args):
    if args.neuron is not None:
        return one_neuron(model, args)
    result = circuits.attribution(model, args.text, args.answer, args.wrong, bos=bos_of(args),
                                  neurons="all" if args.layer is None else [args.layer])
    found = result.top(args.top, kind="neurons")
    rows: list[list[Any]] = []
    records: list[dict[str, Any]] = []
    for label, value in found:
        ends = {end: [word(model, t) for t in one.ids]
                for end, one in circuits.neuron_tokens(model, label, 4).items()}
        rows.append([label, value, *(" ".join(words) for words in ends.values())])
        records.append({"neuron": label, "value": value, **ends})
    title = logit_title(args)
    bars = ([f"{record['neuron']} raises {' '.join(record['raises'][:3])}" for record in records],
            [value for _, value in found])
    return Printout(result, {"what": title, "neurons": records},
                    ["neuron", title, "reads", "raises", "lowers"], rows, [],
                    lambda path: plot_bars({title: bars}, path, "direct effect of single neurons"))


def trace(model, args):
    found = circuits.trace(model, args.text, bos=bos_of(args))
    totals = {name: getattr(found, name) for name in (
        "n_layer", "bytes", "cache_bytes", "multiply_adds", "norm_multiply_adds",
        "flops_per_token")}
    data = {**totals, "activations": [row._asdict() for row in found.rows]}
    return Printout(found, data, HEADER, found.cells(args.all), found.notes(args.all),
                    lambda _: None)


def one_neuron(model, args):
    found = circuits.neuron_tokens(model, f"L{args.layer}N{args.neuron}", args.top)
    ends = {end: ([word(model, t) for t in one.ids], one.logits.tolist())
            for end, one in found.items()}
    title = f"neuron {args.neuron} of layer {args.layer}"
    records = {end: [{"text": text, "score": score} for text, score in zip(*both, strict=True)]
               for end, both in ends.items()}
    columns = ([f"{record['text']} {record['score']:.3f}" for record in tokens]
               for tokens in records.values())
    return Printout(None, {"layer": args.layer, "neuron": args.neuron, **records},
                    list(ends), zip(*columns, strict=True),
                    [f"{title}: the tokens it reads, raises and lowers"],
                    lambda path: plot_bars(ends, path, title))


def texts_of(args):
    """Yield the texts of the files, or of each of their lines, one after another."""
    for name in args.files:
        if name == "-" and sys.stdin is None:
            raise Error(STDIN_CLOSED)
        try:
            with contextlib.ExitStack() as stack:
                file = sys.stdin.buffer if name == "-" else stack.enter_context(open(name, "rb"))
                for number, data in enumerate(file if args.lines else [file.read()], 1):
                    source = f"line {number} of {name}" if args.lines else name
                    text = decode_utf_8(data.rstrip(b"\r\n") if args.lines else data, source)
                    if text.strip():
                        yield text
        except OSError as error:
            raise Error(f"{name} cannot be read: {error.strerror}") from None


def excite(model, args):
    found = circuits.max_activating(model, texts_of(args), args.unit, args.top, bos=bos_of(args))
    rows = [[one.value, one.text, one.position, one.window()] for one in found]
    records = [{"value": one.value, "text": one.text, "token": one.position, "start": one.start,
                "marked": one.marked, "tokens": one.tokens, "values": one.values} for one in found]
    data = {"unit": found.unit, "measure": found.measure, "examples": records,
            "n_tokens": found.n_tokens, "n_texts": found.n_texts}
    bars = [f"{one.text}: {one.position} {one.labels[one.marked]!r}" for one in found]
    return Printout(None, data, ["value", "text", "token", "window"], rows, [found.title],
                    lambda path: plot_bars({found.unit: (bars, [one.value for one in found])}, path,
                                           found.title))


def histogram(model, args):
    found = circuits.histogram(model, texts_of(args), args.unit, args.bins, bos=bos_of(args))
    edges, counts = found.edges.tolist(), found.counts.tolist()
    rows = [[low, high, count, "#" * math.ceil(40 * count / max(counts))]
            for low, high, count in zip(edges, edges[1:], counts, strict=False)]
    return Printout(None, vars(found), ["from", "to", "values", ""], rows, [found.title],
                    lambda path: plot_bars(found, path))


def survey(model, args):
    def loaded(name):
        return lambda: text_model(argparse.Namespace(**{**vars(args), "model": name}))

    models = {args.model: model} | {name: loaded(name) for name in args.checkpoints
                                    if name != args.model}
    names = [os.path.basename(os.path.normpath(name)) for name in models]
    if len(set(names)) == len(names):
        models = dict(zip(names, models.values(), strict=True))
    found = circuits.survey(models, list(texts_of(args)), bos=bos_of(args))
    header, rows = found.table()
    records = [{**vars(one), "repeats": vars(one.repeats), "measures": vars(one.measures),
                "growth": one.growth, "outliers": one.outliers} for one in found.profiles]
    return Printout(None, {"models": records}, header, rows, [found.title],
                    lambda path: plot_survey(found, path))


def report(model, args):
    text = prompt_text(args)
    again = [*called("gpt2-np-circuits", __package__).split(), "report", "-m", args.model]
    for option in ("answer", "wrong", "file", "output"):
        if getattr(args, option) is not None:
            again.append(f"--{option}={getattr(args, option)}")
    again += ["--no-bos"] * args.no_bos + (["--", text] if args.file is None else [])
    given = circuits.prompts(model, text, bos_of(args))
    page = report_page(model, given, args.answer, args.wrong, args.model, shlex.join(again))
    page.save(args.output)
    size = len(page.page.encode())
    return Printout(given, {"file": args.output, "bytes": size}, ["file", "MB"],
                    [[args.output, f"{size / 1e6:.2f}"]], [], lambda path: None)


COMMANDS = {"lens": lens, "attribution": attribution, "heads": heads, "patch": patch, "find": find,
            "neurons": neurons, "excite": excite, "histogram": histogram, "survey": survey,
            "trace": trace, "report": report}


if __name__ == "__main__":
    raise SystemExit(main())

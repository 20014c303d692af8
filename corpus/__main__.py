"""The commands for many texts: score, generate, status, evaluate, lm-eval.

    python -m gpt2_np.corpus score texts.jsonl -o scores/     (each command has --help)

Summaries go to standard output and everything else to standard error.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import backend
from ..checkpoint.loading import pick_device
from ..command_line import (
    add_sampling_options,
    called,
    check_counts,
    check_drawing,
    option,
    run_command,
    sampling_options,
)
from ..gpt2_np import Error, __version__
from . import evaluations, lm_eval_adapter
from .documents import SUFFIXES
from .driver import ENGINES, Incomplete, RunOptions, Stopped, check_workers, generate, score
from .runs import progress_words, status
from .shard_files import FORMATS
from .summary import reasons_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join([*program().split(), *words])
    parser = command_line(f"cd {shlex.quote(os.getcwd())} && {command}")
    return run_command(program(), parser, words, lambda args, _: args.run(args))


def program() -> str:
    return called("gpt2-np-corpus", __package__)


# --- arguments -------------------------------------------------------------------------


def command_line(again: str = "") -> argparse.ArgumentParser:
    """Return the parser. `again` is the command that its user typed, for `status`."""
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Score or continue every text of a corpus; repeat published evaluations.",
        epilog="Each command has its own --help. Exit status: 0 all is done, 1 an error, 2 wrong "
        "usage, 3 something is missing, 130 stopped by Ctrl-C, 143 by SIGTERM.",
    )
    parser.add_argument("--version", action="version", version=f"gpt2_np {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, about, run):
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(run=lambda args: run(args, added), again=again)
        return added

    add = command("score", "Log-probabilities of texts: per document, and of the whole corpus.",
                  run_score).add_argument
    add_run_options(add)
    add("--stride", type=int, metavar="N",
        help="texts longer than the context are read in windows N tokens apart (default half of "
        "the context)")
    add("--no-bos", action="store_true", help="do not put <|endoftext|> before each text")
    add("--per-token", action="store_true", help="also every token and its log-probability")
    add = command("generate", "Continue texts.", run_generate).add_argument
    add_run_options(add)
    add_sampling_options(add)
    add("--seed", type=int, default=0, metavar="S",
        help="of the draws, beside each document's id (default 0)")
    add("--batch", type=int, default=32, metavar="N", help="texts at a time (default 32)")
    add("--bos", action="store_true", help="put <|endoftext|> before each text")
    add("--per-token", action="store_true", help="also the tokens of each continuation")
    command("status", "How far a run has come, and how to go on.", print_status).add_argument(
        "folder", help="the output of score or generate")
    evaluations.add_options(command(
        "evaluate",
        "Published evaluations, lambada and wikitext2, and the loss of any file of texts.",
        evaluations.run_command_line))
    lm_eval_adapter.add_options(command(
        "lm-eval", "The command line of lm-evaluation-harness, which gets this model.",
        lm_eval_adapter.run_command_line))
    return parser


def add_run_options(add: Any) -> None:
    add("inputs", nargs="+", metavar="INPUT", help=f"files: {', '.join(SUFFIXES)}; .gz may follow")
    add("-o", "--output", required=True, metavar="FOLDER",
        help="for the results, a file for each shard of the input; the same command goes on with "
        "a run that was stopped")
    evaluations.add_text_options(add)
    add("--id", metavar="NAME", help="field of ids (default: file and offset)")
    add("--max-bytes", type=int, default=2**24, metavar="N",
        help="skip longer documents (default 16 MiB)")
    add("--shard-bytes", type=int, metavar="N", help="of the input, in each shard")
    add("--output-format", default="jsonl", choices=FORMATS, help="default jsonl")
    add("--engine", default="processes", choices=ENGINES,
        help="processes of this machine (default), or a Ray cluster")
    add("--address", metavar="ADDRESS", help="of a Ray cluster, or auto")
    add("--workers", type=int, metavar="N", help="by default as many as cores allow")
    add("--threads", type=int, default=1, metavar="N",
        help="BLAS threads of each worker (default 1); their number changes the last digits")
    add("--gpus", type=int, default=0, metavar="N", help="use N GPUs, with a worker for each")
    add("--quiet", action="store_true", help="show no progress")


def run_options(args, parser) -> dict[str, Any]:
    """Return the options of `RunOptions`. Ends the program if they do not go together."""
    check_counts(args, parser, "max_bytes", "shard_bytes", "workers", "threads", "stride", "tokens",
                 "batch")
    given = {name: value for name, value in vars(args).items()
             if name in RunOptions.__annotations__}
    try:
        check_workers(**given)
    except Error as error:
        parser.error(as_typed(error, args))
    if args.verbose:
        where = "a GPU for each worker" if args.gpus else backend.about(pick_device(args.device))
        print(f"{program()}: running in {args.dtype} on {where}", file=sys.stderr)
    return {**given, "progress": not args.quiet, "command": args.again}


def as_typed(error: Error, args: argparse.Namespace) -> str:
    """Return the sentence of an error, which may begin with an option, as its user typed it."""
    name, verb, rest = str(error).partition(" is ")
    is_option = name in vars(args) and name not in args.inputs
    return f"{option(name)}{verb}{rest}" if is_option else str(error)


# --- commands --------------------------------------------------------------------------


def run_score(args, parser):
    options = run_options(args, parser)
    with stoppable(args):
        print_summary(args, score(args.inputs, args.output, args.model, stride=args.stride,
                                  bos=not args.no_bos, per_token=args.per_token, **options))


def run_generate(args, parser):
    options = run_options(args, parser)
    check_drawing(args, parser)
    with stoppable(args):
        print_summary(args, generate(
            args.inputs, args.output, args.model, n_tokens=args.tokens, stop=args.stop,
            seed=args.seed, batch=args.batch, bos=args.bos, per_token=args.per_token,
            **sampling_options(args), **options))


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


@contextlib.contextmanager
def stoppable(args: argparse.Namespace) -> Iterator[None]:
    """End the program with a sentence and the right status if a run is stopped or incomplete."""

    def terminate(*_):
        raise Terminated

    before = None
    with contextlib.suppress(ValueError):  # not the main thread
        before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except Incomplete as error:
        print(f"{program()}: {error}", file=sys.stderr)
        raise SystemExit(3) from None
    except Error as error:
        raise Error(as_typed(error, args)) from None
    except KeyboardInterrupt as stop:
        words = stop if isinstance(stop, Stopped) else "stopped; the same command goes on"
        print(f"\n{program()}: {words}", file=sys.stderr)
        by_sigterm = isinstance(stop, Terminated) or isinstance(stop.__cause__, Terminated)
        raise SystemExit(143 if by_sigterm else 130) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def print_summary(args: argparse.Namespace, summary: Mapping[str, Any]) -> None:
    skipped = summary["skipped"]
    reasons = reasons_of(skipped)
    n = summary["n_documents"]
    print(f"{n:,} document{'s' * (n != 1)}, {summary['n_tokens']:,} tokens"
          + f"; skipped {skipped['n_documents']:,} ({reasons})" * bool(reasons))
    for name in ("nats_per_token", "perplexity", "bits_per_byte"):
        if (about := summary.get(name)) and about["value"] is not None:
            low, high = about["low"], about["high"]
            interval = "" if low is None else f"  ({low:.4f} to {high:.4f})"
            print(f"{name.replace('_per_', ' a ').replace('_', ' '):14s}"
                  f"{about['value']:.4f}{interval}")
    print(f"results and summary.json are in {args.output}")


def print_status(args, parser):
    about = status(args.folder)
    print(progress_words(about.n_done, about.n_shards))
    if about.is_complete:
        return
    if about.at_work:
        print(f"a run is at work on it: {about.at_work}")
    elif about.summary and about.n_shards is None:
        print("an input is damaged, as summary.json says: fetch it again and give another output "
              "folder")
    else:
        if about.n_done == about.n_shards:
            print("the summary is missing")
        print(f"to go on: {about.command or 'call the same function of corpus again'}")
    print(end="", flush=True)
    raise SystemExit(3)


if __name__ == "__main__":
    raise SystemExit(main())

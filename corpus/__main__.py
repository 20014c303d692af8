"""The commands for many texts: score, generate, status, evaluate, lm-eval.

    python -m gpt2_np.corpus score texts.jsonl -o scores/     (each command has --help)
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..command_line import called, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command_line()
    return run_command(parser.prog, parser, argv, run)


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("gpt2-np-corpus", __package__),
        description="Score or continue every text of a corpus; repeat published evaluations.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("status")
    return parser


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    args.run(args, parser)


if __name__ == "__main__":
    raise SystemExit(main())

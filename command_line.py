"""The command line: continue a text, score one, or tell the cost of a model.

`python gpt2_np.py`, `python -m gpt2_np` and the installed `gpt2-np` are this program. Text goes to
standard output and everything else to standard error.
"""
from __future__ import annotations

import argparse
import contextlib
import contextvars
import io
import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import backend, checkpoint
from .gpt2_np import SIZES, Error, Model, Sampling, __version__, namespace
from .inference.beams import Rules, search_all
from .inference.costs import check_rows, describe
from .inference.generation import run_batch, stream
from .inference.scoring import score
from .inference.text_stream import cut_at_stop, stop_list, stop_strings

# --- what every program of the package shares ------------------------------------------


def called(installed: str, module: str) -> str:
    """Return the words that start this program again, as its user started it."""
    name = os.path.basename(sys.argv[0]).removesuffix(".exe")
    if name in (installed, "gpt2_np.py"):
        return "python gpt2_np.py" if name == "gpt2_np.py" else installed
    return f"python -m {module}"


def add_model_options(add: Callable[..., Any], dtypes: Sequence[str] = ()) -> None:
    """Add the options that `text_model` reads, by the `add_argument` of a parser.

    Without `dtypes` there is no --dtype, and the parser needs a default for it.
    """
    add("-m", "--model", default="124M", metavar="NAME",
        help=f"{', '.join(SIZES)} or gpt2, gpt2-medium, ..., shakespeare, a folder or file, a URL, "
        "or owner/name on Hugging Face's hub (default 124M)")
    add("--device", default="auto", choices=backend.DEVICES, help="default auto")
    if dtypes:
        saved = ", or --save" * ("bfloat16" in dtypes)
        add("--dtype", default="float32", choices=dtypes,
            help=f"default float32; float16 needs a GPU{saved}")
    add("--tf32", action="store_true",
        help="on a GPU, float32 products of less precision on tensor cores")
    add("--verbose", action="store_true", help="say on stderr which device was picked, and why")


def add_sampling_options(add: Callable[..., Any]) -> None:
    """Add the options that `check_drawing` checks, but for --seed."""
    add("-n", "--tokens", type=int, default=40, metavar="N", help="tokens to make (default 40)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    add("--top-k", type=int, metavar="K", help="draw from the K most probable tokens")
    add("--top-p", type=float, metavar="P", help="draw from the most probable that reach P")
    add("--min-p", type=float, metavar="P", help="leave out tokens under P times the best")
    add("--repetition-penalty", type=float, metavar="R", help="above 1 discourages repeats")
    add("--stop", action="append", default=[], metavar="TEXT",
        help="end before this text, such as '<|endoftext|>'; may be repeated")


def text_model(args: argparse.Namespace) -> Model:
    """Return the model of these options. Raises Error if it has no tokenizer."""
    model = checkpoint.load(args.model, args.device, args.dtype)
    if args.tf32:
        backend.allow_tf32()
    if args.verbose:
        where = backend.about(namespace(model.params["wte"]))
        print(f"gpt2_np: running in {args.dtype} on {where}", file=sys.stderr)
    return with_tokenizer(model, args.model)


def with_tokenizer(model: Model, name: object) -> Model:
    """Return the model. Raises Error if it has no tokenizer."""
    if model.tokenizer is None:
        raise Error(f"{name} has no tokenizer that can be used: if no warning says why, add "
                    "vocab.bpe, merges.txt or tokenizer.json beside its weights")
    return model


def run_command(
    name: str,
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    job: Callable[[argparse.Namespace, argparse.ArgumentParser], None],
) -> int:
    """Run job(args, parser) as a program and return its exit status.

    Each failure is one sentence on standard error. Streams, the handler of Ctrl-C, warnings and
    TF32 are left as they were, for a program that calls this one.
    """
    with standard_error(), as_program():  # in a context of its own, which --tf32 changes
        return contextvars.copy_context().run(run_job, name, parser, argv, job)


def run_job(name, parser, argv, job):
    try:
        args = parser.parse_args(argv)
        if sys.stdout is None or sys.stdout.closed:
            raise Error("standard output is closed: there is nowhere to print to")
        with np.errstate(all="ignore"), warnings.catch_warnings():  # NaN results become errors
            warnings.showwarning = lambda message, *_: print(f"{name}: {message}", file=sys.stderr)
            job(args, parser)
        print(end="", flush=True)
        return 0
    except SystemExit as end:  # argparse: help, the version, wrong usage
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        discard_output()
        return 141
    except Error as error:
        reason = str(error)
    except OSError as error:
        discard_output()
        reason = f"reading or writing failed: {error}"
    except MemoryError as error:
        reason = backend.memory_advice(error)
    except RuntimeError as error:
        if not backend.is_cuda_error(error):
            raise  # a bug
        reason = str(error)
    print(f"{name}: {reason}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def standard_error() -> Iterator[None]:
    """Drop what is for a closed standard error: Python would print it on standard output."""
    if sys.stderr is not None:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def as_program() -> Iterator[None]:
    """Make output UTF-8 on any locale and Ctrl-C an exception, until the end of the block."""
    streams = [(file, file.encoding, file.errors)
               for file in (sys.stdin, sys.stdout, sys.stderr)
               if isinstance(file, io.TextIOWrapper) and not file.closed]  # not a notebook's
    for file, _, _ in streams:
        if file is not sys.stdin:
            file.reconfigure(encoding="utf-8", errors="replace")
    ctrl_c_kills = signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # set while NumPy loads
    if ctrl_c_kills:
        set_interrupts(signal.default_int_handler)
    try:
        yield
    finally:
        if ctrl_c_kills:
            set_interrupts(signal.SIG_DFL)
        for file, encoding, errors in streams:
            if (file.encoding, file.errors) != (encoding, errors):
                with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                    file.reconfigure(encoding=encoding, errors=errors)


def set_interrupts(handler):
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, handler)


def discard_output():
    """Drop output that is still buffered, over which Python would raise again at its end."""
    with contextlib.suppress(AttributeError, OSError), open(os.devnull, "wb") as nowhere:
        number = sys.stdout.fileno()  # a notebook's streams have none
        kept = os.dup(number)
        try:
            os.dup2(nowhere.fileno(), number)
            sys.stdout.flush()
        finally:
            os.dup2(kept, number)
            os.close(kept)


def decode_utf_8(data: bytes, source: str) -> str:
    """Return the text of UTF-8 bytes. Raises Error that names `source` and the wrong byte."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Error(f"{source} is not UTF-8 text, byte {error.start} is "
                    f"{data[error.start]:#x}: convert it to UTF-8") from None


def quoted(token: bytes) -> str:
    """Return a token's text in quotes, or its bytes if it is part of a character."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


# --- arguments -------------------------------------------------------------------------


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("gpt2-np", __package__),
        usage="%(prog)s [options] [prompt]",
        description="GPT-2 in NumPy: continue a text, score one, or tell the cost of a model.",
        epilog="The official models are downloaded on first use; --model shakespeare needs no "
        "download. Environment: GPT2_NP_CACHE (folder of downloads), GPT2_NP_OFFLINE=1, "
        "GPT2_NP_DEVICE, GPT2_NP_URL and HF_ENDPOINT (mirrors).",
    )
    add = parser.add_argument
    add("prompt", nargs="?", help="the text to continue; - reads standard input")
    add_model_options(add, (*checkpoint.DTYPES, "bfloat16"))
    add_sampling_options(add)
    add("--seed", type=int, metavar="S", help="makes sampling repeatable")
    add("--samples", type=int, default=1, metavar="N", help="continuations, made as one batch")
    add("--beams", type=int, metavar="N",
        help="beam search: follow the N most probable texts, print the best (or --samples of them)")
    add("--no-draft", action="store_true",
        help="one token at a time, also if the text repeats itself; the tokens are the same")
    add("--no-echo", action="store_true", help="print the continuation without the prompt")
    add("--file", metavar="PATH", help="read the prompt, or the text to score, from a file")
    add("--score", action="store_true", help="log-probability of every token of the text")
    add("--info", action="store_true", help="sizes, bytes and operations of a model")
    add("--interactive", action="store_true", help="continue one prompt after another")
    add("--download", action="store_true", help="fetch and verify the model, and no more")
    add("--save", metavar="FOLDER",
        help="write the model as a new folder in Hugging Face's layout, in the type --dtype, which "
        "may be bfloat16 too")
    add("--json", action="store_true", help="machine-readable result of generate, score, info")
    add("--version", action="version", version=f"gpt2_np {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command("gpt2_np", command_line(), argv, run)


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
JOBS = ("score", "info", "interactive", "download", "save")  # beside generating, the default


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    job = check_usage(args, parser)
    if job == "info":
        print_info(args)
    elif job == "download":
        print(checkpoint.download(args.model))
    elif job == "save":
        save(args)
    elif job == "interactive":
        interact(text_model(args), args)
    else:
        text = prompt_text(args)
        model = text_model(args)
        (print_score if job == "score" else print_text)(model, text, args)


def check_usage(args, parser) -> str:
    """Return the job that was asked for. Ends the program if arguments do not go together."""
    jobs = [name for name in JOBS if getattr(args, name) not in (None, False)]
    if len(jobs) > 1:
        parser.error(f"--{jobs[0]} and --{jobs[1]} are different jobs: choose one")
    job = jobs[0] if jobs else "generate"
    if args.json and job in ("interactive", "download", "save"):
        parser.error(f"--json goes with generating, --score and --info, not with --{job}")
    check_unused_options(args, parser, job)
    if args.json and args.no_echo:
        parser.error("--json has the prompt apart from the continuations: leave --no-echo out")
    check_sampling(args, parser)
    texts = [name for name, value in (("a prompt", args.prompt), ("--file", args.file))
             if value is not None]
    if job not in ("generate", "score"):
        texts.append(f"--{job}")
    if len(texts) > 1:
        parser.error(f"{texts[0]} and {texts[1]} do not go together")
    if not texts:
        parser.error(f'there is no prompt: {parser.prog} "Alan Turing was", or - to read stdin')
    return job


def check_unused_options(args, parser, job):
    generating = [] if job == "generate" else ["samples", "beams"]
    if job not in ("generate", "interactive"):
        generating += ["tokens", *SAMPLING, "seed", "stop", "no_draft", "no_echo"]
    running = ["device", "tf32", "verbose"] if job in ("info", "download", "save") else []
    running += ["dtype"] if job == "download" else []
    dtypes = checkpoint.SAVED_DTYPES if job == "save" else checkpoint.DTYPES
    if args.dtype not in dtypes:
        use = "running a model, not with --save" if job == "save" else "--save"
        parser.error(f"--dtype {args.dtype} goes with {use}: choose {' or '.join(dtypes)}")
    for name in generating + running:
        if getattr(args, name) != parser.get_default(name):
            use = "generating" if name in generating else "running a model"
            parser.error(f"{option(name)} goes with {use}, not with --{job}")


def check_sampling(args, parser):
    check_counts(args, parser, "samples", "beams")
    if args.beams is not None:
        check_beams(args, parser)
    elif args.samples > 1 and args.temperature == 0:
        parser.error("--samples above 1 needs --temperature above 0: greedy texts are all the same")
    check_drawing(args, parser)


def check_drawing(args, parser):
    if args.tokens < 0:
        parser.error(f"--tokens is {args.tokens}: it must be at least 0")
    try:
        Sampling(**sampling_options(args))
        stop_list(args.stop)
    except Error as error:  # its message begins with the name of the argument
        name, _, rest = str(error).partition(" ")
        parser.error(f"{option(name)} {rest}")
    restricted = [name for name in ("top_k", "top_p", "min_p") if getattr(args, name) is not None]
    if restricted and args.temperature == 0:
        parser.error(f"{option(restricted[0])} needs --temperature above 0: greedy decoding draws "
                     "nothing")
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed is {args.seed}: it must be at least 0")


def check_beams(args, parser):
    if args.samples > args.beams:
        parser.error(f"--samples is {args.samples}: it must be at most --beams, {args.beams}")
    for name in (*SAMPLING, "seed", "no_draft"):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"{option(name)} does not go with --beams, which looks for the most "
                         "probable text: leave one of them out")


def check_counts(args: argparse.Namespace, parser: argparse.ArgumentParser, *names: str) -> None:
    """End the program if one of these options is given and is below 1."""
    for name in names:
        value = getattr(args, name, None)
        if value is not None and value < 1:
            parser.error(f"{option(name)} is {value}: it must be at least 1")


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def sampling_options(args) -> dict[str, Any]:
    return {name: getattr(args, name) for name in SAMPLING}


STDIN_CLOSED = "standard input is closed: give the text as an argument or with --file"


def prompt_text(args) -> str:
    """Return the prompt of the argument, the file or standard input, as UTF-8 on any locale."""
    source = args.file
    try:
        if args.file is not None:
            with open(args.file, "rb") as file:
                data = file.read()
        elif args.prompt == "-":
            source = "standard input"
            if sys.stdin is None:
                raise Error(STDIN_CLOSED)
            data = sys.stdin.buffer.read()
        else:
            source, data = "the prompt", os.fsencode(args.prompt)
    except OSError as error:
        raise Error(f"{source} cannot be read: {error.strerror}") from None
    text = decode_utf_8(data, source).removeprefix("\ufeff")  # a byte-order mark is no text
    if not text:
        raise Error(f"{source} is empty: give some text, or '<|endoftext|>' to begin from nothing")
    return text


def prompt_tokens(model, text: str) -> list[int]:
    """Return the ids of a prompt typed by a person, in which <|endoftext|> stands for the token.

    Raises Error if a token has no row in the embedding: tokenizers may know more than the model.
    """
    tokens = model.tokenizer.encode(text, allowed_special="all")
    for token in tokens:
        if token >= model.config.n_vocab:
            raise Error(f"{quoted(model.tokenizer.token_bytes(token))} is token {token}, but the "
                        f"model's embedding has {model.config.n_vocab} rows: leave it out")
    return tokens


# --- generating ------------------------------------------------------------------------


def generation_options(model, args) -> dict[str, Any]:
    stop = [model.tokenizer.special_tokens.get(text, text) for text in args.stop]
    return {"n_tokens": args.tokens, "stop": stop, "draft": not args.no_draft,
            **sampling_options(args)}


def print_text(model, text, args):
    seed = int(np.random.default_rng().integers(2**32)) if args.seed is None else args.seed
    options, tokens = generation_options(model, args), prompt_tokens(model, text)
    n_rows, name = (args.beams, "--beams") if args.beams else (args.samples, "--samples")
    check_rows(name, n_rows, model, min(len(tokens) + args.tokens, model.config.n_ctx))
    echo = "" if args.no_echo else text
    if args.beams:
        rules = Rules(args.beams, n_results=args.samples)
        [beams] = search_all(model, [tokens], args.tokens, rules, options["stop"])
        rows, reasons = [beam.tokens for beam in beams], [beam.ended_by for beam in beams]
        choice = {"beams": args.beams}
        numbers = [{"log_p": beam.log_p, "score": beam.score} for beam in beams]
    elif args.samples == 1 and not args.json:
        pieces = stream(model, tokens, seed=seed, **options)
        print(echo, end="", flush=True)
        print_stream(pieces, model)
        return
    else:
        generation = run_batch(model, [tokens] * args.samples, seed=seed, **options)
        rows, reasons = generation.continuations, generation.reasons
        choice, numbers = {"seed": seed, **sampling_options(args)}, [{}] * args.samples
    strings = stop_strings(options["stop"])
    texts = [cut_at_stop(model.tokenizer.decode(row), strings) for row in rows]
    if args.json:
        samples = [{"text": sample_text, "tokens": row, "ended_by": reason, **more}
                   for sample_text, row, reason, more
                   in zip(texts, rows, reasons, numbers, strict=True)]
        print_json({"model": args.model, "prompt": text, "prompt_tokens": tokens, **choice,
                    "samples": samples})
        return
    print("\n---\n".join(echo + sample_text for sample_text in texts))
    if "context" in reasons:
        note_full(model)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_stream(pieces: Iterator[str], model: Model) -> None:
    """Print text as it is made, to the last whole character even if it is interrupted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while True:
            try:
                print(next(pieces), end="", flush=True)
            except StopIteration as end:
                print(flush=True)
                if end.value == "context":
                    note_full(model)
                return


def note_full(model):
    print(f"gpt2_np: stopped at n_ctx = {model.config.n_ctx} positions", file=sys.stderr)


def interact(model, args):
    """Continue one line after another; the arrow keys bring earlier lines back."""
    with contextlib.suppress(ImportError):  # there is no readline on Windows
        import readline  # noqa: F401
    if sys.stdin is None:
        raise Error(STDIN_CLOSED)
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # this process has read some of it
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        print("A line is continued; an empty line or Ctrl-D ends.", file=sys.stderr)
    options = generation_options(model, args)
    while True:
        try:
            line = input("> " if at_terminal else "")
        except EOFError:
            return
        if not line:
            return
        try:
            line = decode_utf_8(line.encode(errors="surrogateescape"), "this line")
            pieces = stream(model, prompt_tokens(model, line), seed=args.seed, **options)
            print("" if args.no_echo else line, end="", flush=True)
            print_stream(pieces, model)
        except Error as error:
            print(f"gpt2_np: {error}", file=sys.stderr)


# --- saving, scoring and costs ---------------------------------------------------------


def save(args):
    folder = checkpoint.check_new(args.save)  # before a download of gigabytes
    checkpoint.save(checkpoint.load(args.model, "cpu"), folder, args.dtype)
    print(folder)


def print_score(model, text, args):
    tokens = prompt_tokens(model, text)
    start, end = model.tokenizer.start_ids, model.tokenizer.end_of_text
    if not start and end is not None:
        start = (end,)
        tokens = [end, *tokens]
    scored = tokens[max(len(start), 1) :]
    if not scored:
        raise Error("one token is too short to score: this vocabulary has no <|endoftext|> to "
                    "put before it")
    log_p = score(model, tokens)[-len(scored) :].astype(float)
    loss, n_bytes = -log_p.mean(), len(model.tokenizer.decode_bytes(scored))
    totals = {
        "loss_nats_per_token": loss,
        "perplexity": math.exp(loss) if loss < 700 else None,  # JSON has no infinity
        "bits_per_byte": -log_p.sum() / math.log(2) / n_bytes,
    }
    if args.json:
        names = [model.tokenizer.decode([token]) for token in scored]
        rows = [{"token": t, "text": name, "log_p": p}
                for t, name, p in zip(scored, names, log_p, strict=True)]
        print_json({"model": args.model, "tokens": rows, "n_bytes": n_bytes, **totals})
        return
    print(" token     log p  text")
    for token, p in zip(scored, log_p, strict=True):
        print(f"{token:6d} {p:9.4f}  {quoted(model.tokenizer.token_bytes(token))}")
    given = f"the first after {model.tokenizer.decode(start)}" if start else (
        "the first is not scored")
    print(f"{len(scored)} tokens ({given}), {n_bytes} bytes")
    print(f"loss {loss:.4f} nats per token, perplexity {totals['perplexity'] or math.inf:.2f}, "
          f"{totals['bits_per_byte']:.4f} bits per byte")


def print_info(args):
    size = checkpoint.official_size(args.model)
    config = SIZES[size] if size else checkpoint.load(args.model, "cpu").config
    about = describe(config, np.dtype(args.dtype).itemsize)
    if args.json:
        print_json({"model": args.model, "dtype": args.dtype, **about})
        return
    sizes = ", ".join(f"{name} {value:,}" for name, value in about["config"].items())
    print(f"{args.model}: {sizes}")
    print("parameters")
    for part, n in about["parameters"].items():
        print(f"  {part:34s} {n:15,d} {n / about['parameters']['total']:7.1%}")
    for name, key, unit in (
        (f"weights in {args.dtype}", "bytes", "bytes"),
        ("key/value cache, a token", "cache_bytes_per_token", "bytes"),
        ("key/value cache at n_ctx", "cache_bytes_at_n_ctx", "bytes"),
        ("read to decode a token at n_ctx", "bytes_read_per_token", "bytes"),
        ("operations, the first token", "flops_per_token_first", "FLOP"),
        ("operations, a token at n_ctx", "flops_per_token_at_n_ctx", "FLOP"),
    ):
        print(f"{name:36s} {about[key]:15,d} {unit}")

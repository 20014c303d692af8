# ruff: noqa: E402  the repository is put on the path first
"""Speed beside other libraries: one command that makes its environment and measures everything.

    python benchmarks/run.py                      # every peer; less of the larger sizes
    python benchmarks/run.py --quick              # 124M, the main peers, 3 to 4 minutes
    python benchmarks/run.py --only decode,score --sizes 124M
    python benchmarks/run.py --check              # judge the result file; status 1 if a promise
                                                  # does not hold
    python benchmarks/run.py --report             # fill README.md's tables and draw the pictures

A part is a scenario at a size. A new part replaces the old one in the result file and leaves the
others, so measuring can be split into several runs. Every peer is a process that loads the model
once. The peers take turns, one at a time, so that ratios of neighbours hold although the machine's
speed drifts.
"""
import argparse
import contextlib
import datetime
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT)]

import environment
import report
import texts

import bpe  # the file alone: this interpreter may have no NumPy

OURS = "gpt2_np"
# Name in peers.py: the package it needs, its memory in sizes of the weights, and GiB besides.
PEERS = {
    OURS: ("numpy", 1.0, 0.5),
    "transformers": ("transformers", 1.3, 0.8),
    "CTranslate2": ("CTranslate2", 1.1, 0.5),
    "CTranslate2 int8": ("CTranslate2", 0.4, 0.5),
    "ONNX Runtime": ("ONNX Runtime", 2.4, 0.6),
    "llama.cpp": ("llama.cpp", 1.1, 0.6),
    "llama.cpp F16": ("llama.cpp", 0.6, 0.6),
    "llama.cpp Q8_0": ("llama.cpp", 0.4, 0.6),
}
QUICK_PEERS = (OURS, "transformers", "CTranslate2", "CTranslate2 int8")
TOKENIZERS = ("gpt2_np", "tiktoken", "tokenizers")
WEIGHTS_GIB = {"124M": 0.47, "355M": 1.33, "774M": 2.89, "1558M": 5.81}
ROUNDS = {"124M": 5, "355M": 3, "774M": 2, "1558M": 2}
MAX_ROUNDS = {"context": 3, "prefill": 3, "score": 3, "drafts": 3, "batch": 3, "cold": 4,
               "load": 2, "tokenizer": 2}  # fmt: skip
QUICK_PARTS = ("decode", "prefill", "score", "drafts", "cold", "tokenizer")
# The parts of the larger sizes, unless --only says more: they take most of the time.
PARTS = {"355M": ("decode", "context", "prefill", "load"), "774M": ("decode", "load"),
         "1558M": ("decode", "load")}  # fmt: skip
# The peers of the larger sizes, unless --peers says more.
PEERS_AT = {"355M": ("transformers", "CTranslate2", "ONNX Runtime", "llama.cpp"),
            "774M": ("transformers",), "1558M": ("transformers",)}  # fmt: skip
NOT_RUN = {"transformers with torch.compile": "58 s of compiling made 32 tokens 11% quicker, "
           "measured once"}  # fmt: skip
PROMPT = "In the beginning there was a small machine that could"
TIMEOUT = 900  # seconds until a peer that does not answer is killed


class Turn(NamedTuple):
    """One peer's part in a round, under the label that tables show.

    `case` is the name of its samples if one round holds several lengths.
    """

    label: str
    peer: str
    request: dict[str, Any]
    case: str | None = None


class Case(NamedTuple):
    """The turns of a round. Each peer first answers `setup` and `warm_up` once, untimed."""

    name: str
    turns: list[Turn]
    warm_up: dict[str, Any]
    setup: dict[str, Any] | None = None


# --- scenarios: the requests to the peers -----------------------------------------------------


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(50256), k=n)


def is_short(args, folder):
    """Return True if fewer lengths are measured. The folder is named after the model's size."""
    return args.quick or folder.name != "124M"


def same_turns(peers, request, ours=()):
    """Return a turn with the same request for each peer. `ours` is added to our own request."""
    return [Turn(p, p, request | (dict(ours) if p == OURS else {})) for p in peers]


def decode(peers, args, folder) -> Iterator[Case]:
    n = 64 if args.quick else 128
    request = {"do": "decode", "prompt": random_tokens(32), "n": n}
    yield Case(f"{n} after 32", same_turns(peers, request, {"limit": True}), {"n": 8})


def context(peers, args, folder) -> Iterator[Case]:
    """Yield one case with all lengths, a peer's one after another: growth is their difference."""
    lengths = (32, 1000) if is_short(args, folder) else (32, 384, 1000)
    turns = [
        Turn(peer, peer, {"do": "decode", "prompt": random_tokens(cached), "n": 21}, str(cached))
        for peer in peers for cached in lengths
    ]  # fmt: skip
    yield Case("context", turns, {"n": 2})


def prefill(peers, args, folder) -> Iterator[Case]:
    for length in (64, 1024) if is_short(args, folder) else (64, 256, 1024):
        request = {"do": "prefill", "tokens": random_tokens(length)}
        yield Case(str(length), same_turns(peers, request, {"limit": True}), {})


def score(peers, args, folder) -> Iterator[Case]:
    rng = random.Random(0)
    lengths = [rng.randint(20, 400) for _ in range(4 if args.quick else 8)]
    rows = [random_tokens(length, seed) for seed, length in enumerate(lengths)]
    name = f"{len(rows)} texts, {sum(lengths) - len(rows)} targets"
    yield Case(name, same_turns(peers, {"do": "score", "texts": rows}), {})


def batch(peers, args, folder) -> Iterator[Case]:
    n = 16 if args.quick else 32
    for rows in (1, 16) if args.quick else (1, 4, 16):
        prompts = [random_tokens(32, seed) for seed in range(rows)]
        request = {"do": "batch", "prompts": prompts, "n": n}
        yield Case(f"{rows} x {n}", same_turns(peers, request), {"n": 2})


def drafts(peers, args, folder) -> Iterator[Case]:
    """Yield texts that the model has memorized (see peers.py), with and without drafts."""
    tokenizer = bpe.Tokenizer.from_files(str(folder / "merges.txt"), str(folder / "vocab.json"))
    all_texts = {**texts.REPEATING, **texts.NOT_REPEATING}
    encoded = {name: tokenizer.encode(text) for name, text in all_texts.items()}
    encoded["random tokens"] = random_tokens(600)
    if args.quick:
        encoded = {name: encoded[name] for name in ("code", "prose")}
    for name, tokens in encoded.items():
        prompt, n = 320, 64 if args.quick else 96
        turns = [
            Turn(label + (" with drafts" if draft else ""), label,
                 {"do": "decode", "prompt": tokens[:prompt], "n": n, "draft": draft})
            for label in (OURS, "transformers") if label in peers for draft in (False, True)
        ]  # fmt: skip
        setup = {"do": "memorize", "tokens": tokens[: prompt + n + 1]}
        yield Case(name, turns, {"n": 4}, setup)


SERVED = {"decode": decode, "context": context, "prefill": prefill, "score": score,
          "batch": batch, "drafts": drafts}  # fmt: skip


# --- peers that stay loaded and take turns ----------------------------------------------------


class Worker:
    """A peer's process. It loads the model once and answers requests line by line."""

    def __init__(self, args, name, folder):
        self.name = name
        command = [args.python, str(HERE / "peers.py"), "serve", name, str(folder),
                   str(args.threads)]
        self.process = subprocess.Popen(
            command, env=process_environment(args), text=True, cwd=HERE,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log_file(args, name))
        self.loaded = self.answer()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except OSError:
            return {"error": "the process has ended"}
        return self.answer()

    def answer(self):
        timer = threading.Timer(TIMEOUT, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        self.process.wait()
        return {"error": f"the process ended with status {self.process.returncode}: "
                         f"{last_line(log_name(self.name))}"}

    def close(self):
        with contextlib.suppress(BrokenPipeError):  # the process has ended already
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


LOGS = Path()


def log_name(name):
    return LOGS / f"{name.replace(' ', '-')}.log"


def log_file(args, name):
    return log_name(name).open("w", encoding="utf-8")


def last_line(log):
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "its log is empty"


def process_environment(args) -> dict[str, str]:
    """Give every library the same threads and no network, and import gpt2_np from this checkout."""
    threads = str(args.threads)
    return os.environ | {
        "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
        "NUMEXPR_NUM_THREADS": threads, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error", "PYTHONDONTWRITEBYTECODE": "",
    }  # fmt: skip


def groups(peers, size, budget) -> tuple[list[list[str]], dict[str, str]]:
    """Return groups of peers that fit into memory together, each with ours, and the refused.

    The refused peers come with the reason.
    """

    def need(peer):
        _, times, besides = PEERS[peer]
        return times * WEIGHTS_GIB[size] + besides

    grouped, refused = [[OURS]], {}
    if need(OURS) > budget:
        return [], {OURS: f"{size} needs {need(OURS):.1f} GiB, {budget:.1f} are free"}
    for peer in peers:
        if peer == OURS:
            continue
        if need(OURS) + need(peer) > budget:
            refused[peer] = (f"{size} beside ours needs {need(OURS) + need(peer):.1f} GiB, "
                             f"{budget:.1f} are free")
        elif sum(map(need, [*grouped[-1], peer])) > budget:
            grouped.append([OURS, peer])
        else:
            grouped[-1].append(peer)
    return grouped, refused


def parts_of(args, size):
    return args.only or (QUICK_PARTS if args.quick else PARTS.get(size, [*SERVED, *FRESH]))


def rounds_of(args, size, name):
    return args.rounds or min(ROUNDS[size], MAX_ROUNDS.get(name, 99))


def peers_of(args, size):
    chosen = args.peers or (QUICK_PEERS if args.quick else
                            PEERS_AT.get(size, PEERS))
    return [OURS, *(peer for peer in chosen if peer != OURS)]


def run_served(args, size, results):
    """Run all scenarios of one size that talk to loaded peers."""
    # The order matters: drafts come last because they change the weights.
    wanted = [name for name in SERVED if name in parts_of(args, size)
              and not skipped(args, results, f"{name}/{size}")]  # fmt: skip
    if not wanted:
        return
    folder = environment.weights(args.python, args.cache, size)
    usable = [peer for peer in peers_of(args, size) if prepare(args, results, peer, folder, size)]
    grouped, refused = groups(usable, size, args.memory)
    for peer, reason in refused.items():
        leave_out(results, f"{peer} at {size}", reason)
    parts = {f"{name}/{size}": new_part(args) for name in wanted}
    for group, names in enumerate(grouped):
        workers = {}
        for name in names:
            worker = Worker(args, name, folder)
            if "error" in worker.loaded:
                leave_out(results, f"{name} at {size}", worker.loaded["error"])
                worker.close()
            else:
                workers[name] = worker
        if OURS not in workers:
            raise SystemExit(f"gpt2_np itself does not start: see {LOGS}")
        for name in wanted:
            part, start = parts[f"{name}/{size}"], time.time()
            for case in SERVED[name](list(workers), args, folder):
                rounds = rounds_of(args, size, name)
                take_turns(args, part, case, workers, group, rounds)
            part["minutes"] = part.get("minutes", 0) + (time.time() - start) / 60
            if group == len(grouped) - 1:
                save_part(args, results, f"{name}/{size}", part)
        for worker in workers.values():
            worker.close()


def take_turns(args, part, case, workers, group, rounds):
    """Warm up, then run rounds in alternating order and compare the answers with ours."""
    failed = set()
    for peer in {turn.peer: 0 for turn in case.turns} if case.setup else ():
        if "error" in workers[peer].ask(case.setup):
            failed.add(peer)
    turns = []
    for turn in case.turns:
        answer = {"error": "it cannot be prepared for this"}
        if turn.peer not in failed:
            answer = workers[turn.peer].ask(turn.request | case.warm_up)
        if "error" in answer:
            part["left out"][turn.label] = answer["error"]
            print(f"    {turn.label}: left out of {case.name}: {answer['error']}", flush=True)
        else:
            turns.append(turn)
    expected = {}  # by case: the first answer, which is ours
    for i in range(rounds):
        for turn in turns if i % 2 == 0 else turns[::-1]:
            time.sleep(args.pause)  # until the threads of the last peer stop spinning
            answer = workers[turn.peer].ask(turn.request)
            if "error" in answer:
                part["left out"][turn.label] = answer["error"]
                turns = [other for other in turns if other.label != turn.label]
                continue
            name = turn.case or case.name
            if name not in expected:
                expected[name] = {key: answer[key] for key in ("tokens", "values") if key in answer}
            answer |= report.agreement(answer, expected[name])
            sample = {key: value for key, value in answer.items() if key not in expected[name]}
            part["samples"].append(
                {"case": name, "label": turn.label, "round": i, "group": group, **sample})


# --- fresh processes --------------------------------------------------------------------------


def run_process(args, command, stdin) -> dict[str, Any]:
    """Run a command to its end. Return its output and the seconds to the first of it and in all."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=process_environment(args), cwd=HERE,
                               stdout=subprocess.PIPE, stderr=log_file(args, "fresh"),
                               stdin=subprocess.PIPE)
    timer = threading.Timer(TIMEOUT, process.kill)
    timer.start()
    with contextlib.suppress(BrokenPipeError):  # the process ended early: its status says why
        process.stdin.write(stdin.encode())
        process.stdin.close()
    head = process.stdout.read1(1)
    first = time.perf_counter() - start
    output = head + process.stdout.read()
    process.wait()
    seconds = time.perf_counter() - start
    timer.cancel()
    process.stdout.close()
    if process.returncode:
        return {"error": f"status {process.returncode}: {last_line(log_name('fresh'))}"}
    return {"first": first, "seconds": seconds, "output": output.decode(errors="replace")}


def peer_command(args, job, peer, folder):
    return [args.python, str(HERE / "peers.py"), job, peer, str(folder), str(args.threads)]


def cold(args, size, folder, peers):
    """Yield new processes that make 40 tokens, timed to the first token and to the end.

    Ours is the command that a user types, with tokenizer and drafts. The others get token ids.
    """
    tokens = random_tokens(12)
    for label in peers:
        if label == OURS:
            yield "40 tokens", label, [args.python, str(ROOT / "gpt2_np.py"), "-m", str(folder),
                                       "-n", "40", "--no-echo", PROMPT], None
        else:
            request = {"do": "decode", "prompt": tokens, "n": 40}
            yield "40 tokens", label, peer_command(args, "cold", label, folder), request
    yield "--help", OURS, [args.python, str(ROOT / "gpt2_np.py"), "--help"], None
    # The lower bound of --help.
    yield "import numpy", "NumPy alone", [args.python, "-c", "import numpy"], None


def load(args, size, folder, peers):
    request = {"do": "decode", "prompt": [1, 2, 3], "n": 2}
    for label in peers:
        yield "load", label, peer_command(args, "serve", label, folder), request


def memory(args, size, folder, peers):
    shapes = [(1, 64), (1, 1000), (4, 128), (16, 128)]
    for rows, length in [(1, 64), (1, 1000)] if args.quick else shapes:
        prompts = [random_tokens(length, seed) for seed in range(rows)]
        for label in peers:
            request = {"do": "batch", "prompts": prompts, "n": 4}
            if rows == 1:
                request = {"do": "decode", "prompt": prompts[0], "n": 4}
            yield f"{rows} x {length}", label, peer_command(args, "serve", label, folder), request
    tokens = random_tokens(1024)
    for label in peers:
        yield "all logits of 1024", label, peer_command(args, "serve", label, folder), {
            "do": "prefill", "tokens": tokens}


def tokenizer(args, size, folder, peers):
    for kind in ("construct", *texts.KINDS, "English in one piece", "worst cases"):
        for label in TOKENIZERS:
            if label in args.absent:
                continue
            yield kind, label, [args.python, str(HERE / "tokenizing.py"), label, str(folder),
                                kind], None


FRESH = {"cold": cold, "load": load, "memory": memory, "tokenizer": tokenizer}
ONCE = ("tokenizer",)  # at the first size only: it does not depend on the weights
ONE_ROUND = ("memory",)  # it varies by less than a percent


def run_fresh(args, size, name, results):
    if skipped(args, results, f"{name}/{size}"):
        return
    folder = environment.weights(args.python, args.cache, size)
    usable = [peer for peer in peers_of(args, size) if prepare(args, results, peer, folder, size)]
    fits = []
    for peer in usable:
        need = PEERS[peer][1] * WEIGHTS_GIB[size] + PEERS[peer][2]
        if need > args.memory:
            leave_out(results, f"{peer} at {size}", f"needs {need:.1f} GiB, "
                                                    f"{args.memory:.1f} are free")
        else:
            fits.append(peer)
    part, start = new_part(args), time.time()
    rounds = 1 if name in ONE_ROUND else rounds_of(args, size, name)
    if name not in ONE_ROUND:  # an untimed round first, to bring the files into the page cache
        rounds += 1
    turns = list(FRESH[name](args, size, folder, fits))
    for i in range(rounds):
        for case, label, command, request in turns if i % 2 == 0 else turns[::-1]:
            if f"{label}, {case}" in part["left out"]:
                continue
            lines = [request, {"do": "memory"}] if request else []
            stdin = "".join(json.dumps(line) + "\n" for line in lines)
            sample = read_sample(name, run_process(args, command, stdin))
            if "error" in sample:
                part["left out"][f"{label}, {case}"] = sample["error"]
                print(f"    {label}, {case}: left out: {sample['error']}", flush=True)
            elif i > 0 or rounds == 1:
                part["samples"].append(
                    {"case": case, "label": label, "round": i, "group": 0, **sample})
    order = [(case, label) for case, label, _, _ in turns]
    part["samples"].sort(key=lambda s: (order.index((s["case"], s["label"])), s["round"]))
    part["minutes"] = (time.time() - start) / 60
    save_part(args, results, f"{name}/{size}", part)


def read_sample(name, outcome):
    """Return the sample that a process printed, without its output."""
    output = outcome.pop("output", "")
    if "error" in outcome or name == "cold":
        return outcome
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    errors = [answer for answer in answers if "error" in answer]
    if errors or not answers:
        return errors[0] if errors else {"error": "it printed no result"}
    if name == "tokenizer":
        return answers[-1]
    loaded, answer, peak = answers
    return {"load": loaded["load"], "first_token": answer.get("first"), **peak}


# --- the run ----------------------------------------------------------------------------------


def new_part(args):
    return {"when": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            "commit": commit(), "quick": args.quick, "samples": [], "left out": {}}


def commit() -> str:
    """Return the commit of this checkout, with + if files of the package differ from it."""
    if not shutil.which("git"):
        return ""

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout

    changed = [line for line in git("status", "--porcelain").splitlines()
               if line[3:].endswith((".py", ".cu")) and not line[3:].startswith("benchmarks/")]
    return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed else "")


def skipped(args, results, key):
    return args.resume and key in results["parts"]


def leave_out(results, name, reason):
    if results["left out"].get(name) != reason:
        print(f"  left out: {name}: {reason}", flush=True)
    results["left out"][name] = reason


def prepare(args, results, peer, folder, size):
    """Write the peer's own files. Return False if that failed or if it is not installed."""
    package = PEERS[peer][0]
    if package in args.absent:
        leave_out(results, peer, args.absent[package])
        return False
    marker = folder / f"prepared-{peer.replace(' ', '-')}"
    if not marker.exists():
        command = peer_command(args, "prepare", peer, folder)
        with log_file(args, f"prepare {peer}") as log:
            status = subprocess.run(command, env=process_environment(args), cwd=HERE, stdout=log,
                                    stderr=log).returncode
        if status:
            leave_out(results, f"{peer} at {size}",
                      "its files could not be written: " + last_line(log_name(f"prepare {peer}")))
            return False
        marker.touch()
    return True


def save_part(args, results, key, part):
    results["parts"][key] = part
    idle_cpu = max((s.get("idle_cpu", 0) for s in part["samples"]), default=0)
    note = f", an idle peer used {idle_cpu:.2f} s of CPU" if idle_cpu > 0.2 else ""
    print(f"  {key}: {len(part['samples'])} samples, "
          f"{part['minutes']:.1f} minutes{note}", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1)
    args.output.with_suffix(".part").write_text(text)
    args.output.with_suffix(".part").replace(args.output)


def read_results(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"machine": {}, "versions": {}, "threads": 0, "left out": {}, "parts": {}}
    return json.loads(path.read_text())


def command_line():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog=__doc__.split("\n\n", 1)[1])
    add = parser.add_argument
    names = ", ".join([*SERVED, *FRESH])
    add("--only", type=split_list, metavar="A,B", help=f"measure these parts only: {names}")
    add("--sizes", type=split_list, metavar="A,B", help="default 124M,355M,774M,1558M")
    add("--peers", type=split_list, metavar="A,B",
        help=f"measure these only, and ours: {', '.join(PEERS)}")
    add("--rounds", type=int, metavar="N", help="rounds of turns (default 2 to 5)")
    add("--threads", type=int, default=min(4, os.cpu_count() or 1), metavar="N",
        help="threads of every library (default: the machine's cores, at most 4)")
    add("--memory", type=float, metavar="GIB",
        help="memory for all loaded peers (default: 80%% of what is free)")
    add("--pause", type=float, default=0.2, metavar="S",
        help="seconds between turns (default 0.2)")
    add("--quick", action="store_true", help="fewer parts and rounds, main peers, 124M")
    add("--resume", action="store_true", help="skip the parts that the file already holds")
    add("--output", type=Path, metavar="FILE", help="default results.json beside this script; "
        "with --quick a file in the cache folder")
    add("--cache", type=Path, default=environment.cache_folder(), metavar="DIR",
        help="folder of the environment and the weights (default %(default)s)")
    add("--python", metavar="EXE", help="use this interpreter, which has the peers")
    add("--fresh-environment", action="store_true", help="make the environment again")
    add("--check", action="store_true", help="judge the result file; with --only or --quick "
        "measure first")
    add("--report", action="store_true", help="fill README.md's tables and draw the pictures")
    return parser


def draw(args):
    """Draw the pictures with an interpreter that has matplotlib."""
    python = args.python or environment.python_with_peers(args.cache)[0]
    command = [python, str(HERE / "pictures.py"), str(args.output), str(HERE / "pictures")]
    subprocess.run(command, check=True, env=process_environment(args))


def split_list(text):
    return [item.strip() for item in text.split(",") if item.strip()]


def main():
    global LOGS
    parser = command_line()
    args = parser.parse_args()
    measure = args.quick or args.only or not (args.check or args.report)
    args.sizes = args.sizes or (["124M"] if args.quick else list(WEIGHTS_GIB))
    for option, chosen, known in (("--only", args.only, [*SERVED, *FRESH]),
                                  ("--sizes", args.sizes, WEIGHTS_GIB),
                                  ("--peers", args.peers, PEERS)):  # fmt: skip
        for item in chosen or ():
            if item not in known:
                parser.error(f"{option} {item} is unknown: choose from {', '.join(known)}")
    args.rounds = args.rounds or (2 if args.quick else None)
    args.output = args.output or (
        args.cache / "quick.json" if args.quick else HERE / "results.json")
    args.memory = args.memory or 0.8 * environment.memory_gib()
    args.cache = args.cache.resolve()
    LOGS = args.cache / "logs"
    LOGS.mkdir(parents=True, exist_ok=True)
    results = read_results(args.output)
    if measure:
        args.absent = {}
        if not args.python:
            args.python, args.absent = environment.python_with_peers(
                args.cache, args.fresh_environment)
        measure_all(args, results)
        print(report.tables(results))
    elif not results["parts"]:
        parser.error(f"{args.output} holds no results: measure first, without --check or --report")
    if args.report:
        report.write(results, HERE)
        draw(args)
    if args.check:
        lines, status = report.check(results)
        print(lines)
        return status
    return 0


def measure_all(args, results):
    about = {"machine": environment.machine(), "versions": environment.versions(args.python),
             "threads": args.threads}
    before = {key: results[key] for key in ("machine", "threads")}
    if results["parts"] and before != {key: about[key] for key in before}:
        raise SystemExit(f"{args.output} was measured on another machine or with other threads "
                         f"({before}): name another --output, or remove it")
    results |= about
    for name, reason in (NOT_RUN | args.absent).items():
        leave_out(results, name, reason)
    start = time.time()
    for size in args.sizes:
        print(f"{size}, {args.threads} threads", flush=True)
        run_served(args, size, results)
        for name in (name for name in parts_of(args, size) if name in FRESH):
            if name not in ONCE or size == args.sizes[0]:
                run_fresh(args, size, name, results)
    print(f"measured in {(time.time() - start) / 60:.1f} minutes: {args.output}\n")


if __name__ == "__main__":
    raise SystemExit(main())

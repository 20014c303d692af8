# ruff: noqa: E402  a clone is made importable first
"""Measure corpus/: two workers beside one process, memory, overhead, and a million documents.

    python benchmarks/corpus_speed.py [MODEL] [--parts speed memory overhead million]
        [--documents 20000] [--workers 2] [--rounds 3] [--seconds 60]

Speed: workers with one BLAS thread each beside one process with as many threads. Overhead: the
command with one worker beside a loop over the same shards that starts no process and writes
nothing. Whole programs are timed, from their start to their end, in turn. A ratio is taken within a
round. Memory: the sum of the workers' proportional set sizes (PSS), every half second, beside the
bytes of the weights. Million: a million lines of 40 characters, until a worker has begun its first
shard, and the driver's peak memory `--seconds` later. Memory needs Linux.
"""
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import texts

from gpt2_np import checkpoint
from gpt2_np.checkpoint.loading import weight_bytes
from gpt2_np.corpus import Scorer
from gpt2_np.corpus.documents import Inputs
from gpt2_np.corpus.processes import thread_variables
from gpt2_np.corpus.shard_files import batches

MILLION = 1_000_000


# --- programs --------------------------------------------------------------------------


def score_all(model, path, shard_bytes):
    """Score a file in this process: the work of the command, and nothing around it."""
    inputs, scorer = Inputs((path,), shard_bytes=shard_bytes), Scorer(model, device="cpu")
    for shard in inputs.shards():
        for documents in batches(inputs.read(shard)):
            scorer.records(documents)


def loop(args, path, threads):
    """Start a process that does all of the work with that many BLAS threads."""
    program = ("import sys, corpus_speed as own\n"
               "own.score_all(sys.argv[1], sys.argv[2], int(sys.argv[3]))")
    environment = os.environ | thread_variables(threads) | {"PYTHONPATH": str(ROOT / "benchmarks")}
    return subprocess.Popen([sys.executable, "-c", program, args.model, path,
                             str(args.shard_bytes)], env=environment)


def command(args, path, folder, workers, threads=1, shard_bytes=None):
    """Start the command in a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "gpt2_np.corpus", "score", path, "-o", folder, "-m", args.model,
         "--device", "cpu", "--workers", str(workers), "--threads", str(threads), "--quiet",
         *(["--shard-bytes", str(shard_bytes)] if shard_bytes else [])],
        cwd=ROOT, stdout=subprocess.DEVNULL)  # fmt: skip


def seconds_of(start):
    """Return the seconds from the start of a process to its end."""
    started = time.perf_counter()
    process = start()
    if process.wait():
        raise SystemExit(f"a program ended with status {process.returncode}")
    return time.perf_counter() - started


def in_turn(ways, rounds):
    """Return the seconds of each way, one for each round."""
    taken = {name: [] for name in ways}
    for _ in range(rounds):
        for name, start in ways.items():
            taken[name].append(seconds_of(start))
    return taken


def spread(numbers):
    return f"{statistics.median(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"


# --- parts -----------------------------------------------------------------------------


def new_folder(folder):
    return tempfile.mkdtemp(dir=folder)


def measure_speed(args, path, folder):
    n = args.workers
    taken = in_turn({
        "workers": lambda: command(args, path, new_folder(folder), n, 1, args.shard_bytes),
        "one": lambda: loop(args, path, n),
    }, args.rounds)  # fmt: skip
    for name, label in (("workers", f"{n} workers, 1 thread each"),
                        ("one", f"1 process, {n} threads")):
        rates = [args.documents / seconds for seconds in taken[name]]
        print(f"{label:28s} {spread(rates)} documents a second")
    ratios = [one / many for many, one in zip(taken["workers"], taken["one"], strict=True)]
    print(f"{'workers beside one process':28s} {spread(ratios)} times")


def measure_overhead(args, path, folder):
    taken = in_turn({
        "command": lambda: command(args, path, new_folder(folder), 1, 1, args.shard_bytes),
        "loop": lambda: loop(args, path, 1),
    }, args.rounds)  # fmt: skip
    for name in taken:
        print(f"{name:28s} {spread(taken[name])} s")
    ratios = [a / b for a, b in zip(taken["command"], taken["loop"], strict=True)]
    print(f"{'command beside loop':28s} {spread(ratios)} times")


def measure_memory(args, path, folder):
    opened = checkpoint.open_checkpoint(checkpoint.locate(args.model))
    weights = weight_bytes(opened.tensors, "float32")
    for workers in sorted({1, args.workers}):
        process = command(args, path, new_folder(folder), workers, 1, args.shard_bytes)
        most = 0
        while process.poll() is None:
            most = max(most, sum(pss(pid) for pid in workers_of(process.pid)))
            time.sleep(0.5)
        allowed = weights + workers * 150e6
        print(f"{workers} workers: {most / 1e6:.0f} MB at most, weights {weights / 1e6:.0f} MB, "
              f"{(most - weights) / workers / 1e6:.0f} MB a worker beyond them, "
              f"{'within' if most <= allowed else 'over'} {allowed / 1e6:.0f} MB")


def measure_million(args, _, folder):
    path = os.path.join(folder, "million.jsonl")
    english = texts.english(1 << 20)
    with open(path, "w", encoding="utf-8") as file:
        for n in range(MILLION):
            start = 40 * n % (len(english) - 40)
            file.write(json.dumps({"id": n, "text": english[start : start + 40]}) + "\n")
    output = new_folder(folder)
    started = time.perf_counter()
    process = command(args, path, output, args.workers)
    while not any(name.startswith("part-") for name in os.listdir(output)):
        if process.poll() is not None:
            raise SystemExit(f"the command ended with status {process.returncode}")
        time.sleep(0.01)
    print(f"first shard begun after {time.perf_counter() - started:.2f} s")
    time.sleep(args.seconds)
    done = sum(name.endswith(".jsonl") for name in os.listdir(output))
    print(f"driver {peak_memory(process.pid) / 1e6:.0f} MB at most, {done} shards done "
          f"{args.seconds:.0f} s later")
    process.send_signal(signal.SIGINT)
    process.wait()


PARTS = {"speed": measure_speed, "memory": measure_memory, "overhead": measure_overhead,
         "million": measure_million}


# --- memory of Linux -------------------------------------------------------------------


def kilobytes(path, name):
    """Return a size from a file of /proc in bytes, 0 if the process has ended."""
    try:
        with open(path) as file:
            lines = (line.split() for line in file)
            return next(1024 * int(words[1]) for words in lines if words[0] == name + ":")
    except (OSError, StopIteration):
        return 0


def pss(pid):
    return kilobytes(f"/proc/{pid}/smaps_rollup", "Pss")


def peak_memory(pid):
    return kilobytes(f"/proc/{pid}/status", "VmHWM")


def workers_of(pid):
    """Return the processes that a driver has started, but its tracker of resources."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [child for child in children if b"resource_tracker" not in
                Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="shakespeare")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--characters", type=int, default=100, help="of a document")
    parser.add_argument("--shard-bytes", type=int, default=1 << 16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    if os.path.exists(args.model):
        args.model = os.path.abspath(args.model)
    with tempfile.TemporaryDirectory() as folder:
        path, size = os.path.join(folder, "texts.txt"), args.characters
        english = texts.english(args.documents * size)
        with open(path, "w", encoding="utf-8") as file:
            for start in range(0, len(english), size):
                file.write(english[start : start + size].replace("\n", " ").strip() + "\n")
        for part in args.parts:
            print(f"--- {part}", flush=True)
            PARTS[part](args, path, folder)


if __name__ == "__main__":
    main()

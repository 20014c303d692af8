# ruff: noqa: E402  the number of threads is set before NumPy is imported
"""A run that keeps every activation, and a patching sweep over all heads, beside TransformerLens.

    pip install torch "transformer-lens>=3.9,<4"
    python benchmarks/circuits_speed.py [--size 124M] [--prompts 8] [--threads 1]

Random weights at an official size; prompts of 15 tokens that differ from their corruption in one
token, two thirds in (as the indirect-object task with the other name) or near the beginning (as
with three other names). Both libraries run the same weights, one after the other.
"""
import argparse
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--size", default="124M")
parser.add_argument("--prompts", type=int, default=8)
parser.add_argument("--threads", type=int, default=1)
args = parser.parse_args()
os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)  # before NumPy is imported

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]

import numpy as np
import torch
from random_model import random_params
from test_circuits_parity import hooked
from transformer_lens import patching as peer_patching

import circuits
from gpt2_np import SIZES, Model

warnings.simplefilter("ignore")
torch.set_num_threads(args.threads)
torch.set_grad_enabled(False)
config = SIZES[args.size]
model = Model(config, random_params(config, scale=0.03))
peer = hooked(model)
clean = np.random.default_rng(0).integers(0, config.n_vocab, (args.prompts, 15))
metric = circuits.logit_difference(model, 3, 5)


def peer_metric(logits):
    return (logits[:, -1, 3] - logits[:, -1, 5]).mean()


def seconds(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def report(what, here, there):
    print(f"{what:48s} {here:8.2f} s  {there:8.2f} s  {there / here:5.1f} times as fast",
          flush=True)


print(f"{args.size}, {args.prompts} prompts of 15 tokens, {args.threads} thread(s)")
print(f"{'':48s} {'gpt2_np':>10s}  {'TransformerLens':>10s}")
peer.run_with_cache(torch.tensor(clean))
here = min(seconds(lambda: circuits.run(model, clean, "*"))[0] for _ in range(3))
there = min(seconds(lambda: peer.run_with_cache(torch.tensor(clean)))[0] for _ in range(3))
report("a run that keeps every activation", here, there)
_, cache = peer.run_with_cache(torch.tensor(clean))
cells = config.n_layer * config.n_head
for where, position in (("at token 10", 10), ("at token 2", 2)):
    corrupted = clean.copy()
    corrupted[:, position] = (clean[:, position] + 1) % config.n_vocab
    here, sweep = seconds(partial(circuits.patching, model, corrupted, clean, metric, "z"))
    sweep_there = peer_patching.get_act_patch_attn_head_out_all_pos
    there, theirs = seconds(partial(sweep_there, peer, torch.tensor(corrupted), cache, peer_metric))
    report(f"patching {cells} heads, prompts differ {where}", here, there)
    largest = np.abs(theirs.numpy() - sweep.base.mean()).max()
    print(f"  largest difference between the two maps: "
          f"{np.abs(sweep.values - theirs.numpy()).max() / largest:.1e} of the largest effect")

# ruff: noqa: E402  the number of threads is set before NumPy is imported
"""A patching sweep over all heads beside whole passes, ours and TransformerLens's.

    pip install torch "transformer-lens>=3.9,<4"
    python benchmarks/circuits_speed.py [--size 124M] [--prompts 4] [--threads 2] [--rounds 3]

Random weights at an official size. Prompts of 15 tokens differ from their corruption in one token.
It is near the beginning, as in the indirect-object task with three other names (nearly everything
must be computed again), or two thirds in, as with the other giver.

Every round runs, one after the other: our sweep of all cells for either corruption; our own whole
passes (all prompts at once, logits of the last position only); TransformerLens's patching function.
The last two are timed on one head of each layer, because they cost the same for every cell and
either corruption. The multiply-adds of each are printed beside the times: the ratio that arithmetic
alone allows. At the end every neuron is attributed to an answer, with the memory that this takes.
"""
import argparse
import os
import statistics
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--size", default="124M")
parser.add_argument("--prompts", type=int, default=4)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()
os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)  # before NumPy is imported
os.environ["TQDM_DISABLE"] = "1"  # TransformerLens's progress bars

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]

import numpy as np
import pandas
import torch
from random_model import random_params
from test_circuits_parity import hooked
from transformer_lens import patching as peer_patching

from gpt2_np import SIZES, Model, circuits

LENGTH = 15
CORRUPTIONS = {"token 2 (three other names)": 2, "token 10 (the other giver)": 10}

warnings.simplefilter("ignore")
torch.set_num_threads(args.threads)
torch.set_grad_enabled(False)
config = SIZES[args.size]
model = Model(config, random_params(config, scale=0.03))
peer = hooked(model)
clean = np.random.default_rng(0).integers(0, config.n_vocab, (args.prompts, LENGTH))
metric = circuits.logit_difference(model, 3, 5)
_, cache = peer.run_with_cache(torch.tensor(clean))
source = circuits.run(model, clean, "blocks.*.attn.hook_z")
sample = [(layer, layer % config.n_head) for layer in range(config.n_layer)]
n_cells = config.n_layer * config.n_head


def corrupt(position):
    tokens = clean.copy()
    tokens[:, position] = (clean[:, position] + 1) % config.n_vocab
    return tokens


def own_passes(tokens):
    """Return the metric of every sampled cell, from a whole pass of ours each."""
    values = []
    for layer, head in sample:
        name = circuits.activation_name("z", layer)
        edits = {name: circuits.patch(source[name], head)}
        logits = circuits.run(model, tokens, edits=edits, last_only=True).logits
        values.append(metric(logits).mean())
    return np.array(values)


def peer_passes(tokens):
    return peer_patching.generic_activation_patch(
        peer, torch.tensor(tokens), cache, lambda x: (x[:, -1, 3] - x[:, -1, 5]).mean(),
        peer_patching.layer_head_vector_patch_setter, "z",
        index_df=pandas.DataFrame(sample, columns=["layer", "head"]),
    ).numpy()  # fmt: skip


def multiply_adds(first=0, start=0, rows_unembedded=1, last_position_only=False):
    """Count them for one prompt, from sub-layer `start` and position `first` on."""
    d, n = config.n_embd, LENGTH - first
    total = rows_unembedded * d * config.n_vocab
    for layer in range(start // 2, config.n_layer):
        if start <= 2 * layer:
            total += n * (4 * d * d + 2 * LENGTH * d)
        last = last_position_only and layer == config.n_layer - 1
        total += (1 if last else n) * 8 * d * d
    return total


def sweep_multiply_adds(first):
    """Count them for one prompt and the average cell, without the two passes before the sweep."""
    cells = [multiply_adds(first, 2 * layer + 1, 0, True) for layer in range(config.n_layer)]
    return sum(cells) / len(cells)


def seconds(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def summary(times):
    return f"{statistics.median(times):8.2f} s ({min(times):.2f} to {max(times):.2f})"


times = {"own": [], "peer": [], **{where: [] for where in CORRUPTIONS}}
keep_all = {"own": [], "peer": []}
own_passes(corrupt(2)), peer_passes(corrupt(2))
for _ in range(args.rounds):
    for where, position in CORRUPTIONS.items():
        tokens = corrupt(position)
        elapsed, sweep = seconds(lambda t=tokens: circuits.patching(model, "z", base=t,
                                                                    source=clean, metric=metric))
        times[where].append(elapsed)
    elapsed, ours = seconds(lambda t=tokens: own_passes(t))
    times["own"].append(elapsed * n_cells / len(sample))
    elapsed, theirs = seconds(lambda t=tokens: peer_passes(t))
    times["peer"].append(elapsed * n_cells / len(sample))
    keep_all["own"].append(seconds(lambda: circuits.run(model, clean, "*"))[0])
    keep_all["peer"].append(seconds(lambda: peer.run_with_cache(torch.tensor(clean)))[0])
    for whole in (ours, theirs):
        difference = np.abs([sweep.values[cell] for cell in sample] - whole).max()
        assert difference < 1e-3 * np.abs(sweep.effect).max(), difference

print(f"{args.size}, {args.prompts} prompts of {LENGTH} tokens, {args.threads} thread(s), medians "
      f"of {args.rounds} rounds (least to most)")
print(f"a run that keeps every activation: {summary(keep_all['own'])} here, "
      f"{summary(keep_all['peer'])} TransformerLens")
print(f"\nall {n_cells} heads patched, one after another{'':24s}"
      "million multiply-adds\n" + " " * 66 + "a prompt and cell")
own = multiply_adds()
theirs = multiply_adds(rows_unembedded=LENGTH)
print(f"TransformerLens, a pass per cell       {summary(times['peer'])}  {theirs / 1e6:8.0f}")
print(f"our own whole pass per cell            {summary(times['own'])}  {own / 1e6:8.0f}")
for where, position in CORRUPTIONS.items():
    needed = sweep_multiply_adds(position)
    print(f"our sweep, {where:27s} {summary(times[where])}  {needed / 1e6:8.0f}")
print()
for where, position in CORRUPTIONS.items():
    ratios = {kind: sorted(a / b for a, b in zip(times[kind], times[where], strict=True))
              for kind in ("own", "peer")}
    allowed = own / sweep_multiply_adds(position)
    shown = [f"{statistics.median(r):.1f} ({r[0]:.1f} to {r[-1]:.1f})" for r in ratios.values()]
    print(f"{where}: {shown[0]} times as fast as our own passes, where arithmetic alone allows "
          f"{allowed:.1f}; {shown[1]} times as fast as TransformerLens")


def all_neurons():
    return circuits.attribution(model, clean, 3, 5, neurons="all")


elapsed = [seconds(all_neurons)[0] for _ in range(args.rounds + 1)][1:]
tracemalloc.start()
n_neurons = sum("N" in label for label in all_neurons().labels)
peak = tracemalloc.get_traced_memory()[1] / 2**20
print(f"\nattribution of all {n_neurons} neurons: {summary(elapsed)}, {peak:.0f} MiB at most "
      "beside the weights")

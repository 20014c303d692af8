"""Decoding, prefill and a cold start beside transformers: the same weights, alternating processes.

    pip install -e ".[test,parity]"
    python benchmarks/beside_transformers.py [--rounds 4] [--threads 2]

Weights are random, of 124M's shape, float32, written once to a temporary folder (1 GB). Decoding is
128 greedy tokens after a prompt of 32; prefill is all logits of 1,024 tokens; a cold start is a
process that loads the weights from the disk, continues a text by 40 tokens and ends.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PREPARE = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config())
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.02)
model.save_pretrained(folder)
"""
LOAD = {
    "gpt2_np": """
import numpy, gpt2_np
model = gpt2_np.load(folder, "cpu")
def decode(n):
    return list(gpt2_np.generate(model, prompt, n))
def prefill():
    gpt2_np.forward(model.params, model.config, long)
""",
    "transformers": """
import torch
from transformers import GPT2LMHeadModel
torch.set_num_threads(threads)
model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
def decode(n):
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n,
                         do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[0, len(prompt):].tolist()
def prefill():
    with torch.no_grad():
        model(torch.tensor([long])).logits
""",
}
WARM = """
import json, time
decode(4)
start = time.perf_counter(); tokens = decode(128); decoding = time.perf_counter() - start
times = []
for _ in range(4):
    start = time.perf_counter(); prefill(); times.append(time.perf_counter() - start)
print(json.dumps([128 / decoding, min(times[1:]), tokens]))
"""


def run(program, folder, threads):
    given = f"folder, threads = {str(folder)!r}, {threads}\n"
    given += "prompt, long = list(range(1000, 1032)), [i * 37 % 50257 for i in range(1024)]\n"
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
    }  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", given + program], env=environment, check=True,
                          stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, done.stdout


def show(what, unit, ours, theirs, ratios):
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"| {what}, {unit} | {statistics.median(ours):.3g} | {statistics.median(theirs):.3g} | "
          f"{middle:.2f} ({low:.2f} to {high:.2f}) |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run(PREPARE, folder, args.threads)
        for _ in range(args.rounds):
            row = {}
            for name, load in LOAD.items():
                cold, _ = run(load + "decode(40)", folder, args.threads)
                _, printed = run(load + WARM, folder, args.threads)
                rate, prefill, tokens = json.loads(printed.splitlines()[-1])
                row[name] = rate, prefill, cold, tokens
            rows.append(row)
    same = all(row["gpt2_np"][3] == row["transformers"][3] for row in rows)
    print(f"124M's shape, {args.threads} threads, {args.rounds} rounds; medians; the same tokens "
          f"from both: {'yes' if same else 'NO'}\n")
    print("| | gpt2_np | transformers | times faster (worst to best round) |")
    print("| --- | --- | --- | --- |")
    quantities = [("decoding", "tokens/s"), ("prefill of 1,024", "s"), ("cold, 40 tokens", "s")]
    for index, (what, unit) in enumerate(quantities):
        ours, theirs = ([row[name][index] for row in rows] for name in LOAD)
        ratios = [a / b if index == 0 else b / a for a, b in zip(ours, theirs, strict=True)]
        show(what, unit, ours, theirs, ratios)


if __name__ == "__main__":
    main()

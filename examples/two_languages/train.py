"""Train the toy model of ../encoder_decoder.py to translate: sentences, training, shipped files.

    pip install torch safetensors numpy
    python examples/two_languages/train.py

torch.nn.Transformer with the paper's choices (post-layer-norm, ReLU, one embedding used three
times, sinusoids, Adam with a warm-up) learns from random sentences of language.py. The program
writes model.safetensors (float16) and config.json beside this file, in the layout of
../encoder_decoder.py.
"""
from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent)]
from encoder_decoder import END, PAD, SPECIAL, START, load, padded, sinusoids
from language import ENGLISH, MIRRO, sentences
from measure import measure

WORDS = [*SPECIAL, *ENGLISH, *MIRRO]
IDS = {word: i for i, word in enumerate(WORDS)}


class Translator(nn.Module):
    """The model of "Attention Is All You Need", without dropout."""

    def __init__(self, d: int, n_head: int, n_layer: int, m: int):
        super().__init__()
        self.wte = nn.Embedding(len(WORDS), d)
        nn.init.normal_(self.wte.weight, std=d**-0.5)
        self.transformer = nn.Transformer(d, n_head, n_layer, n_layer, m, dropout=0.0,
                                          batch_first=True)
        # PyTorch adds a layer norm after each stack, which the paper does not have.
        self.transformer.encoder.norm = self.transformer.decoder.norm = None

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:  # [b, q] -> [b, q, d]
        d = self.wte.embedding_dim
        positions = torch.from_numpy(sinusoids(np.arange(tokens.shape[1]), d)).float()
        return self.wte(tokens) * math.sqrt(d) + positions

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # [b, q, v]
        future = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        x = self.transformer(
            self.embed(source), self.embed(target), tgt_mask=future,
            src_key_padding_mask=source == PAD, memory_key_padding_mask=source == PAD,
        )
        return x @ self.wte.weight.T


def train(model: Translator, pairs: list, args: argparse.Namespace) -> None:
    """Train with Adam. The rate rises for 400 steps, then falls linearly to zero."""
    adam = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9)
    rng, losses, start = np.random.default_rng(args.seed), [], time.monotonic()
    for step in range(args.steps):
        chosen = [pairs[i] for i in rng.integers(len(pairs), size=args.batch)]
        source, _ = padded([english for english, _ in chosen])
        target, _ = padded([[START, *mirro, END] for _, mirro in chosen])
        source, target = torch.from_numpy(source), torch.from_numpy(target)
        logits = model(source, target[:, :-1])
        loss = nats(logits, target[:, 1:])
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = args.lr * min((step + 1) / 400, 1 - step / args.steps)
        adam.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}: {np.mean(losses):.4f} nats a word, "
                  f"{(time.monotonic() - start) / 60:.1f} minutes", flush=True)
            losses = []


def nats(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the words that are no padding."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)


def exported(model: Translator) -> dict[str, torch.Tensor]:
    """Return the weights by the names of ../encoder_decoder.py. Its matrices are [in, out]."""
    tensors = {"wte": model.wte.weight}
    for stack in "encoder", "decoder":
        for i, layer in enumerate(getattr(model.transformer, stack).layers):
            parts = {"attn": layer.self_attn}
            if stack == "decoder":
                parts["cross_attn"] = layer.multihead_attn
            linear = {}
            for name, part in parts.items():
                linear[f"{name}.c_attn"] = part.in_proj_weight, part.in_proj_bias
                linear[f"{name}.c_proj"] = part.out_proj.weight, part.out_proj.bias
            linear["mlp.c_fc"] = layer.linear1.weight, layer.linear1.bias
            linear["mlp.c_proj"] = layer.linear2.weight, layer.linear2.bias
            for name, (weight, bias) in linear.items():
                tensors[f"{stack}.{i}.{name}.w"] = weight.T
                tensors[f"{stack}.{i}.{name}.b"] = bias
            for n in range(1, len(parts) + 2):
                norm = getattr(layer, f"norm{n}")
                tensors[f"{stack}.{i}.ln_{n}.g"] = norm.weight
                tensors[f"{stack}.{i}.ln_{n}.b"] = norm.bias
    return {name: tensor.detach() for name, tensor in tensors.items()}


def save(model: Translator, n_head: int, folder: Path) -> None:
    tensors = {name: w.half().contiguous() for name, w in exported(model).items()}
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    config = {"n_head": n_head, "english": ENGLISH, "mirro": MIRRO}
    (folder / "config.json").write_text(json.dumps(config) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64, help="sentences in a step")
    parser.add_argument("--sentences", type=int, default=50_000, help="to learn from")
    parser.add_argument("--lr", type=float, default=0.003, help="Adam's peak learning rate")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2, help="of the encoder and of the decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the shipped files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    model = Translator(args.width, args.heads, args.layers, 4 * args.width)
    pairs = [([IDS[word] for word in english], [IDS[word] for word in mirro])
             for english, mirro in sentences(args.sentences, "training", args.seed)]
    train(model, pairs, args)
    save(model, args.heads, args.out)
    measure(load(args.out))


if __name__ == "__main__":
    main()

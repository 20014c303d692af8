"""How close a decode step in NumPy can come to its matrix-vector products alone.

The same step three times, by turns: its products with the weights and nothing else, written out by
hand (no einsum, no taps, no new array, a text of one row), and `gpt2_np.forward`.

    python benchmarks/by_hand.py 124M 355M
"""
import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import gpt2_np

CACHED = 96  # tokens before the one that is timed
ROUNDS = 25


def random_params(shapes, rng):
    if isinstance(shapes, tuple):
        return rng.standard_normal(shapes, np.float32) * np.float32(0.02)
    if isinstance(shapes, dict):
        return {name: random_params(inner, rng) for name, inner in shapes.items()}
    return [random_params(inner, rng) for inner in shapes]


def linear_layers(block):
    return (block["attn"]["c_attn"], block["attn"]["c_proj"], block["mlp"]["c_fc"],
            block["mlp"]["c_proj"])  # fmt: skip


def products(params):
    """A function that multiplies one row with every matrix of the model."""
    matrices = [layer["w"] for block in params["blocks"] for layer in linear_layers(block)]
    matrices.append(params["wte"].T)
    rows = {n: np.ones(n, np.float32) for matrix in matrices for n in matrix.shape}
    pairs = [(rows[matrix.shape[0]], matrix, rows[matrix.shape[1]].copy()) for matrix in matrices]

    def step():
        for row, matrix, out in pairs:
            np.dot(row, matrix, out=out)

    return step


def by_hand(params, config, cache):
    """A function that computes the logits of one token at a position, into buffers of its own."""
    d, h = config.n_embd, config.n_head
    e = d // h
    caches = [cache.layer(layer, params["wte"]) for layer in range(config.n_layer)]
    normalized, update = np.empty((1, d), np.float32), np.empty((1, d), np.float32)
    qkv, logits = np.empty((1, 3 * d), np.float32), np.empty((1, config.n_vocab), np.float32)
    pre, post = np.empty((1, 4 * d), np.float32), np.empty((1, 4 * d), np.float32)
    q, k, v = qkv.reshape(3, h, 1, e)
    root, wte = 1 / math.sqrt(e), params["wte"].T

    def layer_norm(x, g, b):
        np.subtract(x, np.add.reduce(x[0]) / d, out=normalized)
        row = normalized[0]
        np.multiply(normalized, 1 / math.sqrt(row.dot(row) / d + 1e-5), out=normalized)
        np.multiply(normalized, g, out=normalized)
        np.add(normalized, b, out=normalized)

    def step(token, position):
        x = params["wte"][token : token + 1] + params["wpe"][position]
        for block, (keys, values) in zip(params["blocks"], caches, strict=True):
            attn, attn_out, mlp, mlp_out = linear_layers(block)
            layer_norm(x, **block["ln_1"])
            np.matmul(normalized, attn["w"], out=qkv)
            np.add(qkv, attn["b"], out=qkv)
            keys[0, :, position], values[0, :, position] = k[:, 0], v[:, 0]
            np.multiply(q, root, out=q)
            scores = np.matmul(q, keys[0, :, : position + 1].transpose(0, 2, 1))
            np.subtract(scores, np.maximum.reduce(scores, axis=-1, keepdims=True), out=scores)
            np.exp(scores, out=scores)
            np.divide(scores, np.add.reduce(scores, axis=-1, keepdims=True), out=scores)
            z = np.matmul(scores, values[0, :, : position + 1]).reshape(1, d)
            np.matmul(z, attn_out["w"], out=update)
            np.add(update, attn_out["b"], out=update)
            np.add(x, update, out=x)
            layer_norm(x, **block["ln_2"])
            np.matmul(normalized, mlp["w"], out=pre)
            np.add(pre, mlp["b"], out=pre)
            np.multiply(pre, pre, out=post)
            np.multiply(post, 0.044715 * math.sqrt(2 / math.pi), out=post)
            np.add(post, math.sqrt(2 / math.pi), out=post)
            np.multiply(post, pre, out=post)
            np.tanh(post, out=post)
            np.add(post, 1, out=post)
            np.multiply(post, pre, out=post)
            np.multiply(post, 0.5, out=post)
            np.matmul(post, mlp_out["w"], out=update)
            np.add(update, mlp_out["b"], out=update)
            np.add(x, update, out=x)
        layer_norm(x, **params["ln_f"])
        return np.matmul(normalized, wte, out=logits)

    return step


def measure(size):
    config = gpt2_np.SIZES[size]
    params = random_params(gpt2_np.parameter_shapes(config), np.random.default_rng(0))
    cache = gpt2_np.KVCache(config, capacity=CACHED + 1)
    gpt2_np.forward(params, config, list(range(CACHED)), cache)

    def forward():
        cache.lengths[:] = CACHED
        return gpt2_np.forward(params, config, [5], cache)

    hand = by_hand(params, config, cache)
    expected, found = forward(), hand(5, CACHED)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
    jobs = (products(params), lambda: hand(5, CACHED), forward)
    times = []
    for _ in range(ROUNDS):
        turn = []
        for job in jobs:
            start = time.perf_counter()
            job()
            turn.append(time.perf_counter() - start)
        times.append(turn)
    alone, hand_ms, ours = (1000 * statistics.median(turn[i] for turn in times) for i in range(3))
    hand_share, our_share = (statistics.median(turn[0] / turn[i] for turn in times) for i in (1, 2))
    print(f"{size}: products alone {alone:.1f} ms; by hand {hand_ms:.1f} ms, of which products "
          f"{hand_share:.3f}; forward {ours:.1f} ms, of which {our_share:.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sizes", nargs="*", default=["124M"], choices=gpt2_np.SIZES)
    for size in parser.parse_args().sizes:
        measure(size)

"""Compare a decode step with its matrix-vector products alone.

Three versions of the same step are timed in turn: its products with the weights and nothing else,
the step written out by hand, and `gpt2_np.forward`. The step by hand has no einsum and no taps, and
writes into arrays that it reuses.

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
from gpt2_np.gpt2_np import map_leaves

N_CACHED = 96  # tokens before the one that is timed
ROUNDS = 25


def linear_layers(block):
    return (block["attn"]["c_attn"], block["attn"]["c_proj"], block["mlp"]["c_fc"],
            block["mlp"]["c_proj"])  # fmt: skip


def products(params):
    """Return a function that multiplies one row with every matrix of the model."""
    matrices = [layer["w"] for block in params["blocks"] for layer in linear_layers(block)]
    matrices.append(params["wte"].T)
    rows = {n: np.ones(n, np.float32) for matrix in matrices for n in matrix.shape}
    pairs = [(rows[matrix.shape[0]], matrix, rows[matrix.shape[1]].copy()) for matrix in matrices]

    def step():
        for row, matrix, out in pairs:
            np.dot(row, matrix, out=out)

    return step


def by_hand(params, config, cache):
    """Return a function that computes the logits of one token at a position.

    The function writes into buffers of its own.
    """
    d, h = config.n_embd, config.n_head
    e = d // h
    caches = [cache.buffers(layer, params["wte"]) for layer in range(config.n_layer)]
    normalized, update = np.empty((1, d), np.float32), np.empty((1, d), np.float32)
    qkv, logits = np.empty((1, 3 * d), np.float32), np.empty((1, config.n_vocab), np.float32)
    pre, post = np.empty((1, 4 * d), np.float32), np.empty((1, 4 * d), np.float32)
    q, k, v = qkv.reshape(3, h, 1, e)
    scale, wte = 1 / math.sqrt(e), params["wte"].T

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
            np.multiply(q, scale, out=q)
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
    rng = np.random.default_rng(0)
    params = map_leaves(lambda _, shape: rng.standard_normal(shape, np.float32) * np.float32(0.02),
                        gpt2_np.parameter_shapes(config))
    cache = gpt2_np.KVCache(config, capacity=N_CACHED + 1)
    gpt2_np.forward(params, config, list(range(N_CACHED)), cache)

    def forward():
        cache.lengths[:] = N_CACHED
        return gpt2_np.forward(params, config, [5], cache)

    hand = by_hand(params, config, cache)
    expected, found = forward(), hand(5, N_CACHED)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
    steps = (products(params), lambda: hand(5, N_CACHED), forward)
    rounds = []
    for _ in range(ROUNDS):
        times = []
        for step in steps:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        rounds.append(times)
    alone_ms, hand_ms, our_ms = (1000 * statistics.median(column)
                                 for column in zip(*rounds, strict=True))
    hand_share, our_share = (statistics.median(times[0] / times[i] for times in rounds)
                             for i in (1, 2))
    print(f"{size}: products alone {alone_ms:.1f} ms; by hand {hand_ms:.1f} ms, of which products "
          f"{hand_share:.3f}; forward {our_ms:.1f} ms, of which products {our_share:.3f}",
          flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sizes", nargs="*", default=["124M"], choices=gpt2_np.SIZES)
    for size in parser.parse_args().sizes:
        measure(size)

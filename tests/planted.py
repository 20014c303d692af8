"""Weights built by hand, so that the work of every head is known.

The stream has three subspaces: the token here, the token before, the position. Every direction
comes with its opposite, so that layer norm has no mean to subtract.

L0H1 attends to the previous position and notes its token ("before"). L1H2 is an induction head:
it looks for positions that follow the current token, and raises the logits of their tokens. L1H0
attends to copies of the current token and lowers their logits. All else is noise.
"""
import numpy as np
from random_model import random_params

from gpt2_np import Config, Model

N_VOCAB, N_CTX = 20, 24
CONFIG = Config(n_vocab=N_VOCAB, n_ctx=N_CTX, n_embd=2 * (2 * N_VOCAB + N_CTX), n_head=4, n_layer=2)
PREVIOUS, INDUCTION, NEGATIVE = (0, 1), (1, 2), (1, 0)
NOISE = 0.003


def subspaces():
    """Orthonormal rows: token [v, d], before [v, d], position [n_ctx, d]; each sums to 0."""
    half = np.eye(CONFIG.n_embd // 2)
    rows = np.concatenate([half, -half], axis=1) / np.sqrt(2)
    return rows[:N_VOCAB], rows[N_VOCAB : 2 * N_VOCAB], rows[2 * N_VOCAB :]


def planted_model(seed=0):
    """Two layers, four heads, no tokenizer: ids only, without <|endoftext|>."""
    params = random_params(CONFIG, seed, scale=NOISE)
    token, before, position = subspaces()
    params["wte"], params["wpe"] = token.astype(np.float32), position.astype(np.float32)
    for block in params["blocks"]:
        for leaf in (block["mlp"]["c_fc"], block["mlp"]["c_proj"]):
            leaf["w"] *= 0.1
    following = np.roll(position, -1, axis=0)  # position p reads as the key of p - 1
    plant(params, PREVIOUS, following.T, position.T, token.T, before, 0.15)
    plant(params, INDUCTION, token.T, before.T, token.T, token, 0.6)
    plant(params, NEGATIVE, token.T, token.T, token.T, -token, 0.1)
    return Model(CONFIG, params, None)


def plant(params, head, query, key, value, output, strength):
    """Give a head W_Q, W_K, W_V [d, r] and W_O [r, d]; r is at most the head's width."""
    layer, number = head
    attn, width = params["blocks"][layer]["attn"], CONFIG.n_embd // CONFIG.n_head
    by_head = attn["c_attn"]["w"].reshape(CONFIG.n_embd, 3, CONFIG.n_head, width)
    for c, (matrix, scale) in enumerate(((query, 2.0), (key, 2.0), (value, 1.0))):
        by_head[:, c, number, : matrix.shape[1]] += scale * matrix
    out = attn["c_proj"]["w"].reshape(CONFIG.n_head, width, CONFIG.n_embd)
    out[number, : len(output)] += strength * output

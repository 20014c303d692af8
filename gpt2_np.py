"""GPT-2: the forward pass in einsum, a key/value cache, sampling, generation, scoring, a command line.

Language Models are Unsupervised Multitask Learners, Radford et al. 2019.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__version__ = "0.1.0"


class Error(ValueError):
    """What every failure of this project is: the message says what was wrong, where, what to do."""


@dataclass(frozen=True)
class Config:
    """The sizes of a GPT-2; a head is n_embd // n_head wide."""

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int


SIZES = {
    "124M": Config(n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12),
    "355M": Config(n_vocab=50257, n_ctx=1024, n_embd=1024, n_head=16, n_layer=24),
    "774M": Config(n_vocab=50257, n_ctx=1024, n_embd=1280, n_head=20, n_layer=36),
    "1558M": Config(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48),
}


@dataclass(frozen=True)
class Model:
    """A model ready to run: `params` is a nested dict of arrays, named as in the checkpoint."""

    config: Config
    params: Mapping[str, Any]
    tokenizer: Any = None


def parameter_shapes(config: Config) -> dict[str, Any]:
    """The shape of every parameter, nested as `Model.params` is. Weights are [in, out]."""
    d, m = config.n_embd, 4 * config.n_embd

    def norm():
        return {"g": (d,), "b": (d,)}

    def linear(n_in, n_out):
        return {"w": (n_in, n_out), "b": (n_out,)}

    def block():
        return {
            "ln_1": norm(),
            "attn": {"c_attn": linear(d, 3 * d), "c_proj": linear(d, d)},
            "ln_2": norm(),
            "mlp": {"c_fc": linear(d, m), "c_proj": linear(m, d)},
        }

    return {
        "wte": (config.n_vocab, d),
        "wpe": (config.n_ctx, d),
        "blocks": [block() for _ in range(config.n_layer)],
        "ln_f": norm(),
    }

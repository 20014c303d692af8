"""The cost of a model: parameters, bytes, key/value cache and operations per token."""
from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from ..backend import total_memory
from ..gpt2_np import Config, Error, Model, map_leaves, namespace, parameter_shapes

PARTS = {
    "wte": "token embedding (and unembedding)", "wpe": "position embedding", "attn": "attention",
    "mlp": "MLP", "ln_1": "layer norms", "ln_2": "layer norms", "ln_f": "layer norms",
}  # fmt: skip


def count_parameters(config: Config) -> dict[str, int]:
    """Return the number of parameters of each part of the model, by the names in `PARTS`."""
    counts = Counter(dict.fromkeys(PARTS.values(), 0))

    def count(path, shape):
        counts[PARTS[path[2] if path[0] == "blocks" else path[0]]] += math.prod(shape)

    map_leaves(count, parameter_shapes(config))
    return dict(counts)


def describe(config: Config, bytes_per_number: int = 4) -> dict[str, Any]:
    """Return parameters by part, bytes, key/value cache, and floating-point operations per token.

    A product of sizes [1, n] and [n, m] counts 2 n m operations. Layer norms, GELU, softmax and
    biases are left out: they are under 1% at these sizes.
    """
    parts, d, layers = count_parameters(config), config.n_embd, config.n_layer
    total = sum(parts.values())
    cache = 2 * layers * d * bytes_per_number
    products = 2 * (layers * 12 * d * d + config.n_vocab * d)
    return {
        "config": asdict(config),
        "parameters": parts | {"total": total},
        "bytes": total * bytes_per_number,
        "cache_bytes_per_token": cache,
        "cache_bytes_at_n_ctx": cache * config.n_ctx,
        "flops_per_token_first": products + 4 * layers * d,
        "flops_per_token_at_n_ctx": products + 4 * layers * d * config.n_ctx,
    }


def check_rows(name: str, n_rows: int, model: Model, n_positions: int, n_texts: int = 1) -> None:
    """Raise Error if the keys and values of so many rows a text would fill over half the memory."""
    wte = model.params["wte"]
    one = describe(model.config, wte.dtype.itemsize)["cache_bytes_per_token"]
    one *= n_positions * n_texts
    memory = total_memory(namespace(wte))
    most = max(1, memory // 2 // one)  # half is for weights and activations
    if n_rows > most:
        raise Error(f"{name} is {n_rows}: their keys and values would take {n_rows * one >> 30:,} "
                    f"GiB, over half of all memory ({memory >> 30:,} GiB); choose at most {most}")

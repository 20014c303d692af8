"""The cost of a model: parameters, bytes, key/value cache and operations per token.

A GPT-2 is one `Decoder` of many. The formulas use the letters of `architectures`, and

    k keys that a token attends to   b texts decoded at once   B bytes a number
"""
from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..backend import total_memory
from ..bpe import shown
from ..gpt2_np import Config, Error, Model, is_number, namespace
from .architectures import Decoder
from .options import check_count


def count_parameters(config: Config | Decoder, active: bool = False) -> dict[str, int]:
    """Return the number of parameters of each part of the model, or those that one token uses."""
    counts: dict[str, int] = {}
    for tensor in Decoder.of(config).tensors():
        copies = tensor.active if active else tensor.copies
        counts[tensor.part] = counts.get(tensor.part, 0) + copies * tensor.size
    return counts


def cached_numbers(decoder: Decoder) -> int:
    """Return the numbers that all layers keep of one position: 2 L g e, or L (r + p) of latents."""
    c = decoder
    if c.attention == "latent":
        return c.n_layer * (c.kv_rank + c.d_rope)
    return 2 * c.n_layer * c.kv_heads * c.head_width


def count_flops(decoder: Decoder, n_keys: int) -> int:
    """Return the operations of one token: twice its weights, and 4 L h e for each of its keys.

    A product of sizes [1, n] and [n, m] counts 2 n m operations. Norms, activations, softmax,
    rotations and biases are left out: they are under 1% at usual sizes. Latent attention works on
    the cached latents, as decoding does: 2 L h (2 r + p) for each key.
    """
    c = decoder
    products = sum(tensor.active * tensor.size for tensor in c.tensors()
                   if len(tensor.shape) == 2 and not tensor.lookup)
    if c.attention == "latent":
        return 2 * products + 2 * c.n_layer * c.n_head * (2 * c.kv_rank + c.d_rope) * n_keys
    return 2 * products + 4 * c.n_layer * c.n_head * c.head_width * n_keys


def numbers_read(decoder: Decoder, n_keys: int, batch: int = 1) -> float:
    """Return the weights and cached numbers that decoding reads for one token, of `batch` at once.

    A step reads each weight once for all its tokens, of each table one row a token, and all that
    is cached. Tokens choose their experts evenly: x (1 - (1 - t/x)^b) of x are expected to be read.
    """
    c, weights, rows = decoder, 0.0, 0
    for tensor in c.tensors():
        if tensor.lookup:
            rows += tensor.shape[1]
        elif tensor.copies == tensor.active:
            weights += tensor.copies * tensor.size
        else:
            read = 1 - (1 - c.n_active / c.n_expert) ** batch
            weights += tensor.copies * tensor.size * read
    return weights / batch + rows + cached_numbers(c) * n_keys


def describe(
    config: Config | Decoder, bytes_per_number: float = 4, batch: int = 1
) -> dict[str, Any]:
    """Return parameters by part, bytes, key/value cache, and operations and reads per token.

    `config` is that of a GPT-2 or any `Decoder`. `cache_bytes_per_token` is that of one position
    of one text, `cache_bytes_at_n_ctx` that of a full text. `bytes_read_per_token` is read while
    `batch` full texts are decoded at once: divide a memory's bandwidth by it for tokens a second.
    Raises Error if the sizes do not fit together.
    """
    check_count("batch", batch, 1)
    if not is_number(bytes_per_number) or not 0 < bytes_per_number <= 16:
        raise Error(f"bytes_per_number is {shown(bytes_per_number)}: choose a number above 0, at "
                    "most 16")
    c = Decoder.of(config)
    parts, active = count_parameters(c), sum(count_parameters(c, active=True).values())
    total = sum(parts.values())
    cache = cached_numbers(c) * bytes_per_number
    return {
        "config": asdict(config),
        "parameters": parts | {"total": total},
        "active_parameters": active,
        "bytes": total * bytes_per_number,
        "cache_bytes_per_token": cache,
        "cache_bytes_at_n_ctx": cache * c.n_ctx,
        "flops_per_token_first": count_flops(c, 1),
        "flops_per_token_at_n_ctx": count_flops(c, c.n_ctx),
        "bytes_read_per_token": round(numbers_read(c, c.n_ctx, batch) * bytes_per_number),
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

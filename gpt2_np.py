"""GPT-2 in NumPy, and on a GPU through CuPy: from sizes to the command line, in reading order.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". This file copied alone
runs the model on token ids with NumPy only; `bpe`, `checkpoint` and `backend` beside it add text,
the official weights and the GPU.

One alphabet for einsum: b batch, q query position, k key position, d residual width, h head,
e head width, m hidden width of the MLP, v vocabulary, c the three of query, key, value.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np


def is_ours(name):
    """Whether the module of that name beside this file is this project's: it is read, not run.

    Copied alone, this file may lie beside a stranger's backend.py.
    """
    try:
        spec = importlib.util.find_spec(f"{__package__}.{name}" if __package__ else name)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:  # nothing, or a folder
        return False
    try:
        return b"Part of gpt2_np." in spec.loader.get_data(spec.origin)
    except (AttributeError, OSError):  # frozen into an application, with what it was made with
        return True


try:
    if not is_ours("backend"):
        raise ImportError
    if __package__:
        from .backend import einsum, fused, memory_advice, namespace, start_decoding, to_host
    else:
        from backend import einsum, fused, memory_advice, namespace, start_decoding, to_host
except ImportError:  # copied alone: NumPy does everything, a little slower

    def einsum(specification, *operands):
        return np.einsum(specification, *operands, optimize=True)

    def fused(function):
        return function

    def namespace(array):
        return np

    def to_host(array):
        return array

    def start_decoding(*_):
        return None

    def memory_advice(error):
        return "there is not enough memory: choose a smaller model, or fewer or shorter texts"


try:
    if not is_ours("drafts"):
        raise ImportError
    if __package__:
        from .drafts import Drafts
    else:
        from drafts import Drafts
except ImportError:  # copied without it: one token at a time

    def Drafts(text):
        return None


__version__ = "0.1.0"
__all__ = [
    "SIZES",
    "Config",
    "Error",
    "KVCache",
    "Model",
    "complete",
    "describe",
    "forward",
    "generate",
    "generate_batch",
    "load",
    "main",
    "parameter_shapes",
    "sample",
    "score",
    "score_batch",
    "stream",
]

SIBLINGS = ("backend", "bpe", "checkpoint", "circuits", "circuits_show", "cuda_step", "drafts")

LAYER_NORM_EPSILON = 1e-5
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)  # a Python float: np.sqrt would make everything float64

# Elementwise work goes through the second-level cache (1 to 2 MiB a core) in blocks of this many
# elements, and attention in tiles of about as many scores: 128 queries of one head see 1,024 keys.
BLOCK_ELEMENTS = 1 << 17
TILE_QUERIES = 128
DEVICE_BLOCK_ELEMENTS = 1 << 24  # a GPU wants few and large kernels: 64 MiB of float32 scores

# A pass of its own for what prompts share pays where it saves about this many tokens.
LEAST_SHARED = 32


class Error(ValueError):
    """What failed, where, and what to do. CheckpointError and DownloadError are of this class.

    bpe.TokenizerError and backend.DeviceError stand beside it, because those modules import
    nothing of the project. All are ValueErrors.
    """


# --- sizes -----------------------------------------------------------------------------


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


@dataclass(frozen=True, eq=False)
class Model:
    """A model ready to run: `params` is a nested dict of arrays, named as in the checkpoint.

    Raises Error for parameters that have not the shapes of `config`.
    """

    config: Config
    params: Mapping[str, Any]
    tokenizer: Any = None

    def __post_init__(self):
        if self.config.n_embd % self.config.n_head:
            raise Error(f"{self.config.n_head} heads do not divide n_embd = {self.config.n_embd}")
        check_shapes(self.params, parameter_shapes(self.config))


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


def check_shapes(params, expected, name="params"):
    """Raise Error unless `params` is nested as `expected` is, with arrays of its shapes."""
    if isinstance(expected, tuple):
        if getattr(params, "shape", None) != expected:
            found = getattr(params, "shape", type(params).__name__)
            raise Error(f"{name} is {found}: these sizes need an array of shape {expected}")
        return
    if isinstance(expected, list) and len(params) != len(expected):
        raise Error(f"{name} are {len(params)}: these sizes need {len(expected)}")
    for key, part in expected.items() if isinstance(expected, dict) else enumerate(expected):
        if isinstance(expected, dict) and key not in params:
            raise Error(f"{name} has no {key!r}")
        check_shapes(params[key], part, f"{name}[{key!r}]")


def load(
    name_or_path: str | os.PathLike[str], device: str = "auto", dtype: str = "float32"
) -> Model:
    """The model of an official size, "shakespeare", a folder or file, or an http(s) URL.

    Official sizes are downloaded on first use. Raises CheckpointError, DownloadError, both Error.
    """
    return checkpoint_module().load(name_or_path, device, dtype)


def __getattr__(name: str) -> Any:
    """The modules beside this file and the errors of `load`, loaded when first asked for.

    The package's too, where this file is part of one: `__init__.py` has the same names so.
    """
    if name in ("CheckpointError", "DownloadError"):
        try:
            return getattr(checkpoint_module(), name)
        except Error as error:
            raise AttributeError(str(error)) from None
    if name in SIBLINGS and is_ours(name):
        return importlib.import_module(f"{__package__}.{name}" if __package__ else name)
    if name in globals():
        return globals()[name]
    raise AttributeError(f"module {__package__ or __name__!r} has no attribute {name!r}")


def checkpoint_module():
    missing = [f"{name}.py" for name in ("checkpoint", "bpe", "backend") if not is_ours(name)]
    if missing:
        raise Error(
            f"there is no {', '.join(missing)} of gpt2_np beside gpt2_np.py: to load models it "
            "needs checkpoint.py, bpe.py and backend.py"
        )
    if __package__:
        from . import checkpoint
    else:
        import checkpoint
    return checkpoint


# --- the forward pass ------------------------------------------------------------------


def forward(
    params: Mapping[str, Any],
    config: Config,
    tokens: Any,
    cache: KVCache | None = None,
    tap: Callable[[str, Any], Any] | None = None,
    last_only: bool = False,
) -> Any:
    """The logits of the token that follows each position.

    `tokens` is [position] or [batch, position], a list or an integer array; the logits have the
    same rank and n_vocab more: [position, n_vocab] or [batch, position, n_vocab], of which
    `last_only` keeps the last position (an axis of length 1). With a `cache`, `tokens` continue
    what it holds. `tap(name, array)` sees every named activation but hook_result, always with a
    batch axis; what it returns, if not None, replaces the array. With a method `wants(name)` it is
    asked first, hook_result included, and what it does not want (whole attention patterns) is not
    made. Raises Error for tokens outside the vocabulary and for positions past n_ctx.
    """
    batch = token_batch(tokens, config)
    x = residual_stream(params, config, batch, cache, Tap(tap) if tap else NO_TAP)  # [b, q, d]
    logits = unembed(x[:, -1:] if last_only else x, params)
    return logits if np.ndim(tokens) == 2 else logits[0]


def residual_stream(params, config, tokens, cache=None, tap=None):
    """Token ids [b, q] -> the residual stream after the last block and layer norm [b, q, d]."""
    tap, cache = tap or NO_TAP, cache or NoCache()
    xp = namespace(params["wte"])
    positions = cache.reserve(tokens.shape)  # [b, q]
    if positions.max() >= config.n_ctx:
        raise Error(
            f"{positions.max() + 1} positions do not fit: this model's n_ctx is {config.n_ctx}; "
            "shorten the text or drop its beginning"
        )
    # Tiles depend on whether a tap looks at whole patterns, which it may in some layers only.
    tiles = functools.cache(functools.partial(attention_tiles, positions, config.n_head, xp))
    if positions.size >= TILE_QUERIES:
        keep_freed_memory()

    # float16 is for weights, keys and values; the residual stream is never narrower than float32.
    stream = np.promote_types(params["wte"].dtype, np.float32)
    x = tap("hook_embed", params["wte"][xp.asarray(tokens)].astype(stream, copy=False))
    x = x + tap("hook_pos_embed", params["wpe"][xp.asarray(positions)])
    for layer, block in enumerate(params["blocks"]):
        remember = functools.partial(cache.append, layer)
        here = tap.under(f"blocks.{layer}.")
        x = transformer_block(x, block, config.n_head, remember, tiles, here)
    cache.advance(tokens.shape[1])
    return layer_norm(x, **params["ln_f"], tap=tap.under("ln_final."))


def transformer_block(x, block, n_head, remember, tiles, tap):  # [b, q, d] -> [b, q, d]
    x = tap("hook_resid_pre", x)
    normalized = layer_norm(x, **block["ln_1"], tap=tap.under("ln1."))
    attn_out = attention(normalized, **block["attn"], n_head=n_head, remember=remember,
                         tiles=tiles, tap=tap.under("attn."))
    x = tap("hook_resid_mid", x + tap("hook_attn_out", attn_out))
    normalized = layer_norm(x, **block["ln_2"], tap=tap.under("ln2."))
    mlp_out = mlp(normalized, **block["mlp"], tap=tap.under("mlp."))
    return tap("hook_resid_post", x + tap("hook_mlp_out", mlp_out))


def layer_norm(x, g, b, tap):  # [b, q, d] -> [b, q, d]
    """Mean 0 and (biased) variance 1 over the residual width, then gain and bias."""
    width = x.shape[-1]
    x = x - x.sum(axis=-1, keepdims=True) / width
    variance = einsum("bqd,bqd->bq", x, x)[..., None] / width
    scale = tap("hook_scale", (variance + LAYER_NORM_EPSILON) ** 0.5)
    x /= scale
    x *= g
    x += b
    return tap("hook_normalized", x)


def attention(x, c_attn, c_proj, n_head, remember, tiles, tap):  # [b, q, d] -> [b, q, d]
    """Causal multi-head attention; `remember` puts keys and values behind the cached ones."""
    n_embd = x.shape[-1]
    by_head = (3, n_head, n_embd // n_head)
    qkv = einsum("bqd,dche->bqche", x, c_attn["w"].reshape(n_embd, *by_head))
    qkv += c_attn["b"].reshape(by_head)
    qkv = qkv.astype(c_attn["w"].dtype, copy=False)
    q, k, v = (tap(f"hook_{name}", qkv[:, :, c]) for c, name in enumerate("qkv"))
    k, v = remember(k, v)  # [b, k, h, e], from the first position on

    z = tap("hook_z", attend(q, k, v, tiles, tap))
    w = c_proj["w"].reshape(*by_head[1:], n_embd)
    if tap.wants("hook_result"):
        out = tap("hook_result", einsum("bqhe,hed->bqhd", z, w)).sum(axis=2)
    else:
        out = einsum("bqhe,hed->bqd", z, w)
    out += c_proj["b"]
    return out


def attend(q, k, v, tiles, tap):  # [b, q, h, e], [b, k, h, e] twice -> [b, q, h, e]
    """Attention of all heads and queries, or of a tile at a time where there are many scores."""
    tiles = tiles(whole=tap.wants("hook_attn_scores") or tap.wants("hook_pattern"))
    if len(tiles) == 1:
        return weighted_values(q, k, v, tiles[0], tap)
    z = namespace(q).empty(q.shape, q.dtype)
    for tile in tiles:
        rows, heads, queries, keys = tile[:4]
        z[rows, queries, heads] = weighted_values(
            q[rows, queries, heads], k[rows, keys, heads], v[rows, keys, heads], tile, tap
        )
    return z


def weighted_values(q, k, v, tile, tap):  # [b, q, h, e], [b, k, h, e] twice -> [b, q, h, e]
    """softmax(q kᵀ / √e) v, where no query sees a later key."""
    scores = einsum("bqhe,bkhe->bhqk", q / math.sqrt(q.shape[-1]), k)
    if tile.later is not None:
        namespace(q).copyto(scores[..., tile.first_masked :], -math.inf, where=tile.later)
    pattern = tap("hook_pattern", softmax(tap("hook_attn_scores", scores)))
    return einsum("bhqk,bkhe->bqhe", pattern, v)


@fused
def softmax(x):  # over the last axis
    x = x - x.max(axis=-1, keepdims=True)
    namespace(x).exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def mlp(x, c_fc, c_proj, tap):  # [b, q, d] -> [b, q, d]
    pre = einsum("bqd,dm->bqm", x, c_fc["w"])
    pre += c_fc["b"]
    post = tap("hook_post", gelu(tap("hook_pre", pre)))
    out = einsum("bqm,md->bqd", post, c_proj["w"])
    out += c_proj["b"]
    return out


@fused
def gelu(x):
    """x Φ(x) in the tanh approximation (Hendrycks & Gimpel 2016), block by block in the cache."""
    xp = namespace(x)
    result = xp.empty(x.shape, x.dtype)
    flat, out = x.reshape(-1), result.reshape(-1)
    step = block_elements(xp)
    for start in range(0, flat.size, step):
        block, inner = flat[start : start + step], out[start : start + step]
        xp.multiply(block, block, out=inner)  # √(2/π) (x + 0.044715 x³) = (x² · 0.0357 + 0.798) x
        inner *= 0.044715 * SQRT_2_OVER_PI
        inner += SQRT_2_OVER_PI
        inner *= block
        xp.tanh(inner, out=inner)
        inner += 1
        inner *= block
        inner *= 0.5
    return result


def unembed(x, params):  # [b, q, d] -> [b, q, v]; the embedding serves twice
    return einsum("bqd,vd->bqv", x, params["wte"])


class AttentionTile(NamedTuple):
    """Which scores are worked on at once, and which of them come too late for their query."""

    rows: slice
    heads: slice
    queries: slice
    keys: slice
    first_masked: int  # counted within `keys`
    later: Any  # [b, 1, q, k - first_masked], or None where every query sees every key


def attention_tiles(positions, n_head, xp, whole):
    """Split [batch, query] positions so that scores stay small and masked keys are skipped.

    A query at position p sees p + 1 keys: those of its row, of which the cache may hold the
    first, or in a row that packs several texts those of its own text. A mask made here serves
    every layer. `whole` is for those who look at scores or patterns: a single tile.

    One head at a time is what pays: 29 ms for a layer of 1,024 tokens at 124M's shape, where 32
    queries of all heads take 50 (2 cores). Threads of our own over heads, or over GELU, gained
    nothing: the BLAS library's threads keep spinning after a product.
    """
    n_rows, n_queries = positions.shape
    block, n_together, most_keys = block_elements(xp), TILE_QUERIES, int(positions.max()) + 1
    if xp is not np:
        n_together = max(n_together, block // (n_head * most_keys))
        one_text_a_row = (positions[:, -1] - positions[:, 0] == n_queries - 1).all()
        whole = whole or (one_text_a_row and n_head * positions.size * most_keys <= block)
    if whole or n_queries == 1:
        return [attention_tile(slice(0, n_rows), slice(0, n_head), slice(0, n_queries), 0,
                               positions, xp)]
    tiles = []
    for row in range(n_rows):
        # A text begins where positions do not go on; -2 is before no position.
        starts = np.flatnonzero(np.diff(positions[row], prepend=-2) != 1)
        for start, end in itertools.pairwise([*starts.tolist(), n_queries]):
            first_key = max(0, start - int(positions[row, start]))
            for query in range(start, end, n_together):
                queries = slice(query, min(query + n_together, end))
                tile = attention_tile(slice(row, row + 1), slice(0, n_head), queries, first_key,
                                      positions, xp)
                n_scores = (queries.stop - query) * (tile.keys.stop - first_key)
                step = max(1, block // n_scores)
                tiles += [tile._replace(heads=slice(head, head + step))
                          for head in range(0, n_head, step)]
    return tiles


def attention_tile(rows, heads, queries, first_key, positions, xp):
    here = positions[rows, queries]
    first_masked, n_keys = int(here.min()) + 1, int(here.max()) + 1
    later = None
    if first_masked < n_keys:
        later = xp.arange(first_masked, n_keys) > xp.asarray(here)[:, None, :, None]
    keys = slice(first_key, first_key + n_keys)
    return AttentionTile(rows, heads, queries, keys, first_masked, later)


def keep_freed_memory():
    """Have the next layer work in the memory that the last one freed.

    glibc hands large arrays back to the system when they are freed, and a page costs more to get
    than to fill: 8% of a prompt of 1,024 tokens at 124M. Freeing one array of almost 32 MiB, the
    largest that it learns from, raises its threshold (mallopt(3), M_MMAP_THRESHOLD); the array is
    never touched, so it costs nothing.
    """
    np.empty(2**25 - 2**16, np.uint8)


def block_elements(xp):
    return BLOCK_ELEMENTS if xp is np else DEVICE_BLOCK_ELEMENTS


class KVCache:
    """The keys and values of every position so far, so that each token is computed once.

    Holds up to `capacity` positions (1,024 is n_ctx of every official size) of `batch` rows:
    2 * n_layer * n_embd numbers a position. `lengths` [batch] says how many positions each row
    holds; setting it lower rolls a row back. The arrays are made on first use, of the keys' own
    type, and belong to one sequence of calls: threads need a cache each.
    """

    def __init__(self, config: Config, batch: int = 1, capacity: int = 1024):
        self.shape = (batch, config.n_head, capacity, config.n_embd // config.n_head)
        self.lengths = np.zeros(batch, int)
        self._layers = [[] for _ in range(config.n_layer)]  # keys, values: [b, h, capacity, e]
        self._end, self._places = 0, []  # of what was reserved: its last end; rows and positions

    def reserve(self, shape: tuple[int, int]) -> np.ndarray:
        """The positions [b, q] of the tokens that come next, once it is sure that they fit."""
        batch, capacity = self.shape[0], self.shape[2]
        if shape[0] != batch:
            raise Error(f"the cache was made for {batch} rows, the tokens are {shape[0]} rows")
        most = int(self.lengths.max())
        if most + shape[1] > capacity:
            raise Error(
                f"the cache holds {most} of at most {capacity} positions and {shape[1]} more "
                "were given: make it with a larger capacity"
            )
        self._end, n_new = most + shape[1], shape[1]
        if most == self.lengths.min():  # rows of one length: one place for all
            self._places = [(slice(0, batch), slice(most, self._end))]
        else:
            lengths = self.lengths.tolist()
            self._places = [(row, slice(n, n + n_new)) for row, n in enumerate(lengths)]
        return self.lengths[:, None] + np.arange(shape[1])

    def layer(self, layer: int, like: Any) -> list[Any]:
        """Keys and values of a layer [b, h, capacity, e], made on first use as `like` is."""
        if not self._layers[layer]:  # zeros: a masked position must hold a number, not a NaN
            self._layers[layer] = [namespace(like).zeros(self.shape, like.dtype) for _ in "kv"]
        return self._layers[layer]

    def append(self, layer: int, *new: Any) -> tuple[Any, Any]:
        """Store new keys and values [b, q, h, e]; all of that layer, [b, k, h, e] each."""
        held = self.layer(layer, new[0])
        for stored, array in zip(held, new, strict=True):
            array = array.swapaxes(1, 2)  # a head's positions side by side: one stream to read
            for row, place in self._places:
                stored[row, :, place] = array[row]
        return tuple(stored[:, :, : self._end].swapaxes(1, 2) for stored in held)

    def advance(self, n_new: int) -> None:
        """Every layer has stored that many positions more."""
        self.lengths += n_new

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch only, in this order; a row may be named several times."""
        rows = np.asarray(rows, int)
        self.shape = (len(rows), *self.shape[1:])
        self.lengths = self.lengths[rows]
        self._layers = [
            [array[namespace(array).asarray(rows)] for array in layer] for layer in self._layers
        ]


class NoCache:
    """What stands where nothing is remembered: every row begins at position 0."""

    def reserve(self, shape):
        return np.broadcast_to(np.arange(shape[1]), shape)

    def append(self, layer, keys, values):
        return keys, values

    def advance(self, n_new):
        pass


class Packed(NoCache):
    """Several texts in one row of tokens, one behind the other, so that nothing is padded.

    No position sees another text. Where a `cache` with a row for each text is given, it is filled.
    """

    def __init__(self, lengths, cache=None):
        self.lengths, self.cache = np.asarray(lengths), cache
        self.rows = np.repeat(np.arange(len(lengths)), lengths)
        self.positions = np.concatenate([np.arange(length) for length in lengths])

    def reserve(self, shape):
        return self.positions[None]

    def append(self, layer, *new):
        if self.cache:
            xp = namespace(new[0])
            rows, positions = xp.asarray(self.rows), xp.asarray(self.positions)
            for stored, array in zip(self.cache.layer(layer, new[0]), new, strict=True):
                stored[rows, :, positions] = array[0]
        return new

    def advance(self, n_new):
        if self.cache:
            self.cache.lengths[:] = self.lengths


class Tap:
    """A caller's tap as one place of the model sees it: names get the place's prefix."""

    def __init__(self, function, prefix=""):
        self.function, self.prefix = function, prefix
        self.asks = getattr(function, "wants", None)  # without it: everything but hook_result

    def under(self, prefix):
        return Tap(self.function, self.prefix + prefix)

    def __call__(self, name, array):
        if not self.wants(name):
            return array
        name = self.prefix + name
        replacement = self.function(name, array)
        if replacement is None:
            return array
        if np.shape(replacement) != array.shape:
            raise Error(
                f"the tap gave {name} back with shape {np.shape(replacement)}, "
                f"it must stay {array.shape}"
            )
        return namespace(array).asarray(replacement, dtype=array.dtype)

    def wants(self, name):
        name = self.prefix + name
        return self.asks(name) if self.asks else not name.endswith("hook_result")


class NoTap:
    """What stands where nobody looks: it hands every array on and wants nothing."""

    def under(self, prefix):
        return self

    def __call__(self, name, array):
        return array

    def wants(self, name):
        return False


NO_TAP = NoTap()


def token_batch(tokens: Any, config: Config) -> np.ndarray:
    """Tokens as a checked array [batch, position] on the host."""
    if hasattr(tokens, "__cuda_array_interface__"):
        tokens = to_host(tokens)
    try:
        array = np.asarray(tokens)
    except ValueError:
        raise Error("tokens of unequal length: pad them, or use generate_batch") from None
    if array.size == 0:
        raise Error("there are no tokens: give at least one")
    if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
        raise Error(
            "tokens must be integers, [position] or [batch, position]; "
            f"these are {array.dtype} of shape {array.shape}"
        )
    if array.min() < 0 or array.max() >= config.n_vocab:
        wrong = array.min() if array.min() < 0 else array.max()
        raise Error(f"token {wrong} is outside the vocabulary of {config.n_vocab}")
    return array.reshape(-1, array.shape[-1])


# --- sampling --------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Temperature 0 is greedy; None leaves a restriction out."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self):
        def check(name, fine, expected):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and fine(value)):
                raise Error(f"{name} is {value!r}: it must be {expected}")

        if self.temperature is None:
            raise Error("temperature is None: it must be a number from 0 up")
        check("temperature", lambda t: 0 <= t < math.inf, "a number from 0 up")
        check("top_k", lambda k: k >= 1 and k % 1 == 0, "a whole number from 1 up")
        check("top_p", lambda p: 0 < p <= 1, "above 0 and at most 1")
        check("min_p", lambda p: 0 <= p <= 1, "from 0 to 1")
        check("repetition_penalty", lambda r: 0 < r < math.inf, "a number above 0")


def is_number(value):
    return isinstance(value, int | float | np.integer | np.floating) and value == value


def sample(
    logits: Any,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    previous: Sequence[int] = (),
    seed: Any = None,
) -> int:
    """One token id chosen from logits [n_vocab].

    In this order: `repetition_penalty` divides positive logits of the tokens in `previous` and
    multiplies negative ones (Keskar et al. 2019, section 4.1); logits are divided by
    `temperature`; `top_k` keeps the k most probable tokens and what ties with the last of them;
    `top_p` the fewest of the most probable tokens whose probabilities reach p (Holtzman et al.
    2020), lower ids first among equals; `min_p` those with at least p times the highest
    probability. Temperature 0 takes the most probable token, the lowest id among equals. `seed`
    is what numpy.random.default_rng takes, a Generator included.
    """
    options = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    if not hasattr(logits, "argmax"):
        logits = np.asarray(logits, np.float32)
    if logits.ndim != 1 or not logits.size:
        raise Error(f"logits have shape {logits.shape}: give those of one position, [n_vocab]")
    return choose(logits, options, previous, generator(seed))


def generator(seed: Any) -> np.random.Generator:
    """The random generator of a seed: None, a whole number from 0 up, several, or a Generator."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise Error(f"seed is {seed!r}: it must be None, whole numbers from 0 up, or a Generator"
                    ) from None


def choose(logits, options, previous, rng):
    penalty = options.repetition_penalty or 1
    if penalty != 1 and len(previous):
        logits = to_host(logits).copy()
        seen = np.unique(np.asarray(previous))
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    if options.temperature == 0:
        token = int(logits.argmax())  # a NaN, if there is one
        check_number(logits[token])
        return token
    cumulative = probabilities(to_host(logits), options).cumsum()
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def check_number(number):
    """Raise Error where a logit or a sum of log-probabilities came out as NaN or infinite."""
    if not math.isfinite(number):
        raise Error(f"the model computes {float(number)}: its weights are not all finite numbers, "
                    "or do not belong together")


def probabilities(logits: np.ndarray, options: Sampling) -> np.ndarray:
    """The distribution [n_vocab], float64, that a token is drawn from at temperature above 0."""
    p = logits.astype(np.float64)
    check_number(p.max())
    p -= p.max()
    p /= options.temperature
    np.exp(p, out=p)
    if options.top_k is not None and options.top_k < p.size:
        p[p < np.partition(p, -int(options.top_k))[-int(options.top_k)]] = 0
    if options.top_p is not None and options.top_p < 1:
        total = p.sum()
        # Tokens under (1 - top_p) / n_vocab come to less than 1 - top_p together: sort the others.
        candidates = np.flatnonzero(p * p.size >= (1 - options.top_p) * total)
        ranked = candidates[np.argsort(-p[candidates], kind="stable")]
        before = np.cumsum(p[ranked]) - p[ranked]
        kept = ranked[before < options.top_p * total]
        restricted = np.zeros_like(p)
        restricted[kept] = p[kept]
        p = restricted
    if options.min_p is not None:
        p[p < options.min_p * p.max()] = 0
    return p / p.sum()


# --- generation ------------------------------------------------------------------------


def generate(
    model: Model,
    tokens: Sequence[int],
    n_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: Iterable[str | int] = (),
    seed: Any = None,
    draft: bool = True,
    tap: Callable[[str, Any], Any] | None = None,
) -> Iterator[int]:
    """Up to `n_tokens` token ids that continue `tokens`, each as soon as it is chosen.

    The sampling options are those of `sample`. It ends early after the token that completes a
    string in `stop` (which needs the model's tokenizer), before a token id in `stop` (so that
    `stop=(model.tokenizer.end_of_text,)` ends at the end of a text), and, with a warning, where
    n_ctx is reached. The generator's return value says which: "length", "stop" or "context".
    `draft` lets text that repeats itself be made several tokens at a time; the tokens are the same
    (but for ties within rounding). A `tap` is that of `forward`: it sees, and may change, what is
    computed for the prompt, then for each token by itself.
    Raises Error at once for bad options, and for a prompt that is empty or longer than n_ctx.
    """
    options = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    rows = Rows(model, [tokens], n_tokens, stop, [seed], options, draft, tap)

    def stream_tokens():
        for _, token in rows.steps():
            yield token
        rows.warn_if_full()
        return rows.reasons[0]

    return stream_tokens()


def generate_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    stop: Iterable[str | int] = (),
    seed: Any = None,
    **sampling: Any,
) -> list[list[int]]:
    """The continuations of several prompts of any lengths, computed together.

    What all prompts begin with is computed once. Options are those of `generate` but for the tap.
    Each row is what `generate` gives for its prompt alone: row 0 with the same seed, row i with
    seed (seed, i), or for a Generator what it spawns.
    """
    rows = generate_rows(model, prompts, n_tokens, stop, seed, **sampling)
    rows.warn_if_full()
    return rows.continuations()


def generate_rows(model, prompts, n_tokens, stop=(), seed=None, draft=True, **sampling) -> Rows:
    """`generate_batch` run to its end, with the reasons why each row ended."""
    rows = Rows(model, prompts, n_tokens, stop, row_seeds(seed, len(prompts)),
                Sampling(**sampling), draft)
    for _ in rows.steps():
        pass
    return rows


def row_seeds(seed, n_rows):
    """A seed for each row of a batch, of which the first is what one text alone would have."""
    if isinstance(seed, np.random.Generator):
        return [seed, *seed.spawn(n_rows - 1)] if n_rows else []
    return [(seed, row) if row and seed is not None else seed for row in range(n_rows)]


def vocabulary_size(model):
    """How many rows of the embedding are tokens: some checkpoints pad it with rows that are not."""
    return getattr(model.tokenizer, "n_vocab", model.config.n_vocab)


class Rows:
    """Texts that grow together: the loop behind `generate` and `generate_batch`."""

    def __init__(self, model, prompts, n_tokens, stop, seeds, options, draft, tap=None):
        if not is_number(n_tokens) or n_tokens % 1 or n_tokens < 0:
            raise Error(f"n_tokens is {n_tokens!r}: it must be a whole number from 0 up")
        self.model, self.options = model, options
        self.n_tokens = int(min(n_tokens, model.config.n_ctx + 1))  # no text has room for more
        self.texts = [token_batch([prompt], model.config)[0].tolist() for prompt in prompts]
        self.n_prompt = [len(text) for text in self.texts]
        if max(self.n_prompt, default=0) > model.config.n_ctx:
            raise Error(
                f"the prompt has {max(self.n_prompt)} tokens and this model's n_ctx is "
                f"{model.config.n_ctx}: drop its beginning"
            )
        self.generators = [generator(seed) for seed in seeds]
        stop = stop_tuple(stop)
        self.stops = [Stop(stop, model.tokenizer) for _ in prompts]
        self.reasons = ["length"] * len(self.texts)
        self.n_vocab = vocabulary_size(model)
        self.tap = Tap(tap) if tap else NO_TAP
        # What a pass takes is known on the CPU only: a GPU is still at work when it returns.
        draft = draft and not tap and namespace(model.params["wte"]) is np
        self.drafts = Drafts(self.texts[0]) if draft and len(self.texts) == 1 else None

    def steps(self) -> Iterator[tuple[int, int]]:
        """(row, token) for every token as it is chosen, row by row within a step."""
        growing = list(range(len(self.texts)))
        if not growing or not self.n_tokens:
            return
        cache, logits = self.read_prompts()  # logits [row, position, v]
        fast, chosen, draft = None, None, []
        for step in itertools.count():
            still = []
            for index, row in enumerate(growing):
                tokens = chosen[index] if chosen else self.choices(row, logits[index])
                if (yield from self.extend(row, tokens, draft)):
                    still.append(index)
            if not still:
                return
            if len(still) < len(growing):
                (fast or cache).select(still)
                growing = [growing[index] for index in still]
            last = [self.texts[row][-1] for row in growing]
            n_left = self.n_tokens - (len(self.texts[growing[0]]) - self.n_prompt[growing[0]])
            if not step and self.tap is NO_TAP:
                generators = [self.generators[row] for row in growing]
                fast = start_decoding(self.model, cache, np.array(last), self.options,
                                      self.n_vocab, generators)
            if fast and fast.chooses:
                chosen = [[int(token)] for token in fast.tokens(n_left)]
            elif fast:
                logits = fast.logits(np.array(last))[:, None]
            else:
                draft, logits = self.look_ahead(last, n_left, growing, cache)

    def look_ahead(self, last, n_left, growing, cache):
        """A draft, or none, and the logits after each row's last token and after the draft's."""
        cache.lengths[:] = [len(self.texts[row]) - 1 for row in growing]  # drops wrong drafts
        draft = []
        if self.drafts:
            n_free = self.model.config.n_ctx - len(self.texts[0])
            draft = self.drafts.propose(min(n_left - 1, n_free))
        started = time.perf_counter()
        tokens = np.array([[token, *draft] for token in last])
        logits = self.logits(self.residual_stream(tokens, cache))
        if self.drafts:
            self.drafts.took(time.perf_counter() - started)
        return draft, logits

    def residual_stream(self, tokens, cache):
        return residual_stream(self.model.params, self.model.config, tokens, cache, self.tap)

    def logits(self, x):  # [row, position, d] -> [row, position, v]
        return unembed(x, self.model.params)[..., : self.n_vocab]

    def choices(self, row, logits):
        """A token from each of logits [q, v], each chosen when those before it are in the text."""
        for here in logits:
            yield choose(here, self.options, self.texts[row], self.generators[row])

    def read_prompts(self):
        """A cache that holds every prompt, and the logits at their ends [row, 1, v].

        What all prompts begin with is read once where that saves more than a pass costs.
        """
        config, n_rows, n_prompt = self.model.config, len(self.texts), np.array(self.n_prompt)
        capacity = min(config.n_ctx, n_prompt.max() + self.n_tokens)
        columns = zip(*self.texts, strict=False)
        n_same = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
        n_shared = min(n_same, n_prompt.min() - 1)  # each row needs a position of its own
        n_padding = (n_prompt.max() - n_prompt).sum()
        if n_shared * (n_rows - 1) - n_padding > LEAST_SHARED:
            cache = KVCache(config, 1, capacity)
            self.residual_stream(np.array([self.texts[0][:n_shared]]), cache)
            cache.select([0] * n_rows)
            rest = np.zeros((n_rows, n_prompt.max() - n_shared), int)
            for row, text in enumerate(self.texts):
                rest[row, : len(text) - n_shared] = text[n_shared:]
            x = self.residual_stream(rest, cache)
            cache.lengths[:] = n_prompt  # shorter rests were padded on the right
            ends = np.arange(n_rows), n_prompt - n_shared - 1
        else:
            cache = KVCache(config, n_rows, capacity)
            tokens = np.array([list(itertools.chain(*self.texts))])
            x = self.residual_stream(tokens, Packed(n_prompt, cache))
            ends = np.zeros(n_rows, int), n_prompt.cumsum() - 1
        xp = namespace(x)
        return cache, self.logits(x[xp.asarray(ends[0]), xp.asarray(ends[1])][:, None])

    def extend(self, row, tokens, draft):
        """Take tokens for as long as they are those of the draft, and one more.

        Yields (row, token); returns whether the row grows on.
        """
        text, n_ctx = self.texts[row], self.model.config.n_ctx
        for token, drafted in zip(tokens, [*draft, None], strict=False):
            if self.stops[row].at_token(token):
                self.reasons[row] = "stop"
                return False
            text.append(token)
            if self.drafts:
                self.drafts.push(token)
            yield row, token
            if self.stops[row].after_token(token):
                self.reasons[row] = "stop"
                return False
            if len(text) == self.n_prompt[row] + self.n_tokens:
                return False
            if len(text) > n_ctx:
                self.reasons[row] = "context"
                return False
            if token != drafted:
                return True
        raise AssertionError("the last position has no draft to agree with")

    def continuations(self) -> list[list[int]]:
        return [text[n:] for text, n in zip(self.texts, self.n_prompt, strict=True)]

    def warn_if_full(self):
        if "context" in self.reasons:
            n_ctx = self.model.config.n_ctx
            level, frame = 1, sys._getframe()  # the caller's line, however deep in this file we are
            while frame and frame.f_code.co_filename == __file__:
                level, frame = level + 1, frame.f_back
            message = f"generation stopped at n_ctx = {n_ctx} positions"
            warnings.warn(message, stacklevel=level)


def stop_tuple(stop: Any) -> tuple[str | int, ...]:
    """One stop or several, checked: strings that are not empty, and token ids."""
    one = isinstance(stop, str) or not isinstance(stop, Iterable)
    stop = (stop,) if one else tuple(stop)
    for item in stop:
        if item == "" or not isinstance(item, str | int | np.integer):
            raise Error(f"stop holds {item!r}: give strings that are not empty, or token ids")
    return stop


class Stop:
    """Whether a growing text has come to one of the stop strings or token ids."""

    def __init__(self, stop, tokenizer):
        self.strings = [s for s in stop if isinstance(s, str)]
        self.ids = {int(s) for s in stop if not isinstance(s, str)}
        if self.strings and tokenizer is None:
            raise Error("stop strings need a tokenizer and this model has none: give token ids")
        self.decoder = tokenizer.decoder() if self.strings else None
        self.tail = ""  # what a stop string that the next token completes may begin with

    def at_token(self, token: int) -> bool:
        return token in self.ids

    def after_token(self, token: int) -> bool:
        if not self.strings:
            return False
        text = self.tail + self.decoder.push(token)
        longest = max(map(len, self.strings))
        self.tail = text[max(0, len(text) - longest + 1) :]
        return any(s in text for s in self.strings)


def stream(
    model: Model,
    prompt: str | Sequence[int],
    n_tokens: int = 40,
    stop: Iterable[str | int] = (),
    **options: Any,
) -> Iterator[str]:
    """The continuation of a text, in pieces of whole characters, as it is made.

    Options are those of `generate`. A stop string and what follows is left out, and nothing that
    may yet turn out to be the beginning of one is given. A prompt in text is ordinary text: give
    token ids to use special tokens. The generator's return value is `generate`'s.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise Error("this model has no tokenizer: use generate on token ids")
    tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    stop = stop_tuple(stop)
    chosen = generate(model, tokens, n_tokens, stop=stop, **options)
    return text_pieces(chosen, tokenizer.decoder(), [s for s in stop if isinstance(s, str)])


def text_pieces(chosen, decoder, stops):
    held, reason = "", None
    while reason is None:
        try:
            held += decoder.push(next(chosen))
        except StopIteration as end:
            reason, held = end.value, held + decoder.flush()
        cut = min((held.find(s) for s in stops if s in held), default=None)
        if cut is not None:
            yield held[:cut]
            return "stop"
        n_safe = len(held) if reason else len(held) - open_end(held, stops)
        if n_safe:
            yield held[:n_safe]
            held = held[n_safe:]
    return reason


def open_end(text, stops):
    """How many of the last characters may begin a stop string: "so\\n" and "\\n\\n" give 1."""
    return max(
        (n for s in stops for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])),
        default=0,
    )


def complete(model: Model, prompt: str, n_tokens: int = 40, **options: Any) -> str:
    """The continuation of a text, without the prompt. Options are those of `stream`."""
    return "".join(stream(model, prompt, n_tokens, **options))


# --- scoring ---------------------------------------------------------------------------


def score(
    model: Model,
    tokens: Sequence[int],
    stride: int | None = None,
    tap: Callable[[str, Any], Any] | None = None,
) -> np.ndarray:
    """log p(tokens[i + 1] | tokens[: i + 1]) in nats, float32 [position - 1].

    A text longer than n_ctx is read in windows that begin `stride` tokens apart (half of n_ctx
    unless told), so that every token but those of the first window is given at least
    n_ctx - stride tokens before it. No more than a block of the logits is held at a time. A `tap`
    is that of `forward`, and sees one window after another.
    """
    return score_windows(model, [tokens], stride, Tap(tap) if tap else NO_TAP)[0]


def score_batch(
    model: Model, texts: Iterable[Sequence[int]], stride: int | None = None
) -> list[np.ndarray]:
    """`score` of several texts of any lengths, computed together.

    Windows of up to n_ctx tokens in all are packed into one row, so that nothing is padded.
    """
    return score_windows(model, texts, stride, NO_TAP)


def score_windows(model, texts, stride, tap):
    config, params = model.config, model.params
    wte = params["wte"][: vocabulary_size(model)]
    stride = config.n_ctx // 2 if stride is None else stride
    if not (is_number(stride) and stride % 1 == 0 and 1 <= stride <= config.n_ctx):
        raise Error(f"stride is {stride!r}: it must be from 1 to n_ctx = {config.n_ctx}")
    texts = [token_batch([text], replace(config, n_vocab=len(wte)))[0] for text in texts]
    scores = [np.empty(len(text) - 1, np.float32) for text in texts]
    for row in windows_in_rows(texts, config.n_ctx, int(stride)):
        inputs = np.concatenate([texts[w.text][w.start : w.end] for w in row])
        targets = np.concatenate([texts[w.text][w.start + 1 : w.end + 1] for w in row])
        lengths = [w.end - w.start for w in row]
        x = residual_stream(params, config, inputs[None], Packed(lengths), tap)
        wanted = np.concatenate([np.arange(w.start, w.end) >= w.first_scored for w in row])
        x, targets = x[:, namespace(x).asarray(np.flatnonzero(wanted))], targets[wanted]
        log_p = target_log_probabilities(x, targets, wte)
        check_number(log_p.sum())
        log_p = iter(log_p)
        for w in row:
            n_scored = w.end - w.first_scored
            scores[w.text][w.first_scored : w.end] = list(itertools.islice(log_p, n_scored))
    return scores


class Window(NamedTuple):
    """Inputs [start, end) of a text, of which those from `first_scored` on have not been scored."""

    text: int
    start: int
    end: int
    first_scored: int


def windows_in_rows(texts, n_ctx, stride):
    """Every window of every text, in rows of up to n_ctx tokens: the longest first, each into the
    first row that has room."""
    windows = []
    for text, tokens in enumerate(texts):
        first_scored = 0
        for start in range(0, len(tokens) - 1, stride):
            end = min(start + n_ctx, len(tokens) - 1)
            windows.append(Window(text, start, end, first_scored))
            first_scored = end
            if end == len(tokens) - 1:
                break
    rows, room = [], []
    for window in sorted(windows, key=lambda w: w.start - w.end):
        length = window.end - window.start
        fits = next((row for row, free in enumerate(room) if free >= length), None)
        if fits is None:
            fits = len(rows)
            rows.append([])
            room.append(n_ctx)
        rows[fits].append(window)
        room[fits] -= length
    return rows


def target_log_probabilities(x, targets, wte):  # [1, q, d], [q], [v, d] -> [q] on the host
    """Log-probabilities of the targets alone: logits of a block of the vocabulary at a time."""
    xp = namespace(x)
    chosen = einsum("bqd,bqd->bq", x, wte[xp.asarray(targets)][None])
    highest, total = -math.inf, 0.0  # [b, q]: of the blocks so far; the sum of exp(logit - highest)
    step = max(1, max(32 * BLOCK_ELEMENTS, block_elements(xp)) // len(targets))
    for start in range(0, len(wte), step):
        logits = einsum("bqd,vd->bqv", x, wte[start : start + step])
        before, highest = highest, xp.maximum(highest, logits.max(axis=-1))
        logits -= highest[..., None]
        xp.exp(logits, out=logits)
        total = total * xp.exp(before - highest) + logits.sum(axis=-1)
    return to_host(chosen - highest - xp.log(total))[0]


# --- what a model costs ----------------------------------------------------------------


def describe(config: Config, bytes_per_number: int = 4) -> dict[str, Any]:
    """Parameters by part, bytes, key/value cache, and floating-point operations per token.

    A product of sizes [1, n] and [n, m] counts 2 n m operations; layer norms, GELU, softmax and
    biases are left out (under 1% at these sizes).
    """

    def count(shapes):
        if isinstance(shapes, tuple):
            return math.prod(shapes)
        return sum(map(count, shapes.values() if isinstance(shapes, Mapping) else shapes))

    shapes, d, layers = parameter_shapes(config), config.n_embd, config.n_layer
    parts = {
        "token embedding (and unembedding)": count(shapes["wte"]),
        "position embedding": count(shapes["wpe"]),
        "attention": sum(count(block["attn"]) for block in shapes["blocks"]),
        "MLP": sum(count(block["mlp"]) for block in shapes["blocks"]),
        "layer norms": count(shapes["ln_f"])
        + sum(count(block[name]) for block in shapes["blocks"] for name in ("ln_1", "ln_2")),
    }
    cache = 2 * layers * d * bytes_per_number
    products = 2 * (layers * 12 * d * d + config.n_vocab * d)
    return {
        "config": vars(config),
        "parameters": parts | {"total": count(shapes)},
        "bytes": count(shapes) * bytes_per_number,
        "cache_bytes_per_token": cache,
        "cache_bytes_at_n_ctx": cache * config.n_ctx,
        "flops_per_token_first": products + 4 * layers * d,
        "flops_per_token_at_n_ctx": products + 4 * layers * d * config.n_ctx,
    }


# --- command line ----------------------------------------------------------------------


def command_line():
    parser = argparse.ArgumentParser(
        prog=called(),
        usage="%(prog)s [options] [prompt]",
        description="GPT-2 in NumPy: continue a text, score one, or say what a model costs.",
        epilog="The official models are downloaded on first use; --model shakespeare needs no "
        "download. Environment: GPT2_NP_CACHE (where downloads go), GPT2_NP_OFFLINE=1, "
        "GPT2_NP_DEVICE, GPT2_NP_URL and HF_ENDPOINT (mirrors).",
    )
    add = parser.add_argument
    add("prompt", nargs="?", help="the text to continue; - reads standard input")
    add_model_options(add)
    add("-n", "--tokens", type=int, default=40, metavar="N", help="tokens to make (default 40)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    add("--top-k", type=int, metavar="K", help="draw from the K most probable tokens")
    add("--top-p", type=float, metavar="P", help="draw from the most probable that reach P")
    add("--min-p", type=float, metavar="P", help="leave out what is under P times the best")
    add("--repetition-penalty", type=float, metavar="R", help="above 1 discourages repeats")
    add("--seed", type=int, metavar="S", help="makes sampling repeatable")
    add("--samples", type=int, default=1, metavar="N", help="continuations, made as one batch")
    add("--stop", action="append", default=[], metavar="TEXT",
        help="end before this text, such as '<|endoftext|>'; may be repeated")
    add("--no-draft", action="store_true",
        help="one token at a time, also where the text repeats itself; the tokens are the same")
    add("--no-echo", action="store_true", help="print the continuation without the prompt")
    add("--file", metavar="PATH", help="read the prompt, or the text to score, from a file")
    add("--score", action="store_true", help="log-probability of every token of the text")
    add("--info", action="store_true", help="sizes, bytes and operations of a model")
    add("--interactive", action="store_true", help="continue one prompt after another")
    add("--download", action="store_true", help="fetch and verify the model, and no more")
    add("--dtype", default="float32", choices=("float32", "float64", "float16"),
        help="default float32; float16 on a GPU only")
    add("--json", action="store_true", help="machine-readable result of generate, score, info")
    add("--version", action="version", version=f"gpt2_np {__version__}")
    return parser


def called() -> str:
    """What starts this program again: the installed command, the file, or the package."""
    if os.path.basename(sys.argv[0]).removesuffix(".exe") == "gpt2-np":
        return "gpt2-np"
    module = __name__.replace("gpt2_np.gpt2_np", "gpt2_np")
    return f"python -m {module}" if __package__ else "python gpt2_np.py"


def add_model_options(add):
    """What every program that loads a model understands, as `text_model` reads it."""
    add("-m", "--model", default="124M", metavar="NAME",
        help=f"{', '.join(SIZES)}, shakespeare, a folder or file, or a URL (default 124M)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default auto")
    add("--tf32", action="store_true",
        help="on a GPU, float32 products of less precision on tensor cores")
    add("--verbose", action="store_true", help="say on stderr which device was picked, and why")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Text goes to stdout, all else to stderr; returns the exit status."""
    return run_command("gpt2_np", command_line(), argv, run)


# Of modules that import nothing of the project (see Error), and of CUDA in the midst of work.
STANDING_BESIDE = ("TokenizerError", "DeviceError", "CUDARuntimeError", "CUBLASError")


def run_command(name, parser, argv, job) -> int:
    """job(args, parser) as a program: UTF-8 on any locale, one sentence for each failure."""
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook's streams, or closed ones
            output.reconfigure(encoding="utf-8", errors="replace")
    args = parser.parse_args(argv)
    try:
        if sys.stdout is None:
            raise Error("standard output is closed: there is nowhere to print to")
        with np.errstate(all="ignore"):  # what is no number in the end is said in a sentence
            job(args, parser)
        print(end="", flush=True)
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        discard_output()
        return 141
    except OSError as error:
        discard_output()
        reason = f"reading or writing failed: {error}"
    except MemoryError as error:
        reason = memory_advice(error)
    except (ValueError, RuntimeError) as error:
        if not (isinstance(error, Error) or type(error).__name__ in STANDING_BESIDE):
            raise  # a bug
        reason = error
    print(f"{name}: {reason}", file=sys.stderr)
    return 1


def discard_output():
    """What is still buffered must not raise again when Python ends."""
    with contextlib.suppress(AttributeError, OSError):  # a notebook's streams
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(args, parser):
    modes = [name for name in ("score", "info", "interactive", "download") if getattr(args, name)]
    mode = modes[0] if modes else "generate"
    if len(modes) > 1:
        parser.error(f"--{modes[0]} and --{modes[1]} are different jobs: choose one")
    if args.json and mode in ("interactive", "download"):
        parser.error(f"--json goes with generating, --score and --info, not with --{mode}")
    only_generating = [] if mode == "generate" else ["samples"]
    if mode not in ("generate", "interactive"):
        only_generating += ["tokens", "temperature", "top_k", "top_p", "min_p",
                            "repetition_penalty", "seed", "stop", "no_draft", "no_echo"]
    only_running = ["device", "tf32", "verbose"] if mode in ("info", "download") else []
    only_running += ["dtype"] if mode == "download" else []
    for name in only_generating + only_running:
        if getattr(args, name) != parser.get_default(name):
            job = "generating" if name in only_generating else "running a model"
            parser.error(f"{option(name)} goes with {job}, not with --{mode}")
    if args.json and args.no_echo:
        parser.error("--json has the prompt apart from the continuations: leave --no-echo out")
    if args.samples < 1:
        parser.error(f"--samples is {args.samples}: it must be at least 1")
    if args.samples > 1 and args.temperature == 0:
        parser.error("--samples above 1 needs --temperature above 0: greedy texts are all the same")
    if args.tokens < 0:
        parser.error(f"--tokens is {args.tokens}: it must be at least 0")
    sampling = {
        name: getattr(args, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    }
    try:
        Sampling(**sampling)
        stop_tuple(args.stop)
    except Error as error:  # it begins with the argument's name
        name, _, rest = str(error).partition(" ")
        parser.error(f"{option(name)} {rest}")
    restricted = [name for name in ("top_k", "top_p", "min_p") if getattr(args, name) is not None]
    if restricted and args.temperature == 0:
        parser.error(f"{option(restricted[0])} needs --temperature above 0: greedy decoding draws "
                     "nothing")
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed is {args.seed}: it must be at least 0")
    texts = [name for name, value in (("a prompt", args.prompt), ("--file", args.file))
             if value is not None]
    if mode not in ("generate", "score"):
        texts.append(f"--{mode}")
    if len(texts) > 1:
        parser.error(f"{texts[0]} and {texts[1]} do not go together")
    if not texts:
        parser.error(f'there is no prompt: {called()} "Alan Turing was", or - to read stdin')

    if args.info:
        return print_info(args)
    if args.download:
        return print_download(args)
    if args.interactive:
        return interact(text_model(args), args, sampling)
    text = prompt_text(args)
    model = text_model(args)
    return print_score(model, text, args) if args.score else print_text(model, text, args, sampling)


def option(name):
    return f"--{name.replace('_', '-')}"


STDIN_CLOSED = "standard input is closed: give the text as an argument or with --file"


def prompt_text(args) -> str:
    """The prompt from the argument, the file or standard input; UTF-8 whatever the locale."""
    source = args.file
    try:
        if args.file is not None:
            with open(args.file, "rb") as file:
                data = file.read()
        elif args.prompt == "-" and sys.stdin is None:
            raise Error(STDIN_CLOSED)
        elif args.prompt == "-":
            source, data = "standard input", sys.stdin.buffer.read()
        else:
            source, data = "the prompt", os.fsencode(args.prompt)
    except OSError as error:
        raise Error(f"{source} cannot be read: {error.strerror}") from None
    if not data:
        raise Error(f"{source} is empty: give some text, or '<|endoftext|>' to begin from nothing")
    return utf_8(data, source)


def utf_8(data, source):
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Error(f"{source} is not UTF-8 text, byte {error.start} is "
                    f"{data[error.start]:#x}: convert it to UTF-8") from None


def text_model(args) -> Model:
    model = load(args.model, args.device, args.dtype)
    if args.tf32:
        checkpoint_module().backend.allow_tf32()
    if args.verbose:
        where = checkpoint_module().backend.about(namespace(model.params["wte"]))
        print(f"gpt2_np: running in {args.dtype} on {where}", file=sys.stderr)
    if model.tokenizer is None:
        raise Error(f"{args.model} has no vocabulary files beside its weights: the command line "
                    "needs them (vocab.bpe, merges.txt or tokenizer.json)")
    return model


def prompt_tokens(model, text):
    """A prompt typed by a person may hold <|endoftext|>, which stands for the token."""
    return model.tokenizer.encode(text, allowed_special="all")


def stops_of(model, args):
    """--stop texts, a special token's name as its id."""
    return [model.tokenizer.special_tokens.get(text, text) for text in args.stop]


def print_text(model, text, args, sampling):
    seed = int(np.random.default_rng().integers(2**32)) if args.seed is None else args.seed
    options = {"n_tokens": args.tokens, "stop": stops_of(model, args), "seed": seed,
               "draft": not args.no_draft, **sampling}
    tokens = prompt_tokens(model, text)
    check_samples(model, len(tokens), args)
    echo = "" if args.no_echo else text
    if args.samples == 1 and not args.json:
        pieces = stream(model, tokens, **options)
        print(echo, end="", flush=True)
        print_stream(pieces, model)
        return
    rows = generate_rows(model, [tokens] * args.samples, **options)
    texts = [cut_at_stop(model.tokenizer.decode(row), options["stop"])
             for row in rows.continuations()]
    if args.json:
        columns = zip(texts, rows.continuations(), rows.reasons, strict=True)
        samples = [
            {"text": sample_text, "tokens": row, "ended_by": reason}
            for sample_text, row, reason in columns
        ]
        result = {"model": args.model, "prompt": text, "prompt_tokens": tokens, "seed": seed,
                  **sampling, "samples": samples}
        print_json(result)
        return
    print("\n---\n".join(echo + sample_text for sample_text in texts))
    if "context" in rows.reasons:
        note_full(model)


def check_samples(model, n_prompt, args):
    """Refuse what this machine's memory, or the GPU's, cannot hold, rather than fill it."""
    n_positions = min(n_prompt + args.tokens, model.config.n_ctx)
    one = describe(model.config, np.dtype(args.dtype).itemsize)["cache_bytes_per_token"]
    xp = namespace(model.params["wte"])
    try:
        if xp is np:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        else:
            memory = xp.cuda.runtime.memGetInfo()[1]
    except (AttributeError, OSError, ValueError):  # Windows
        memory = 2**40
    each = one * n_positions
    most = max(1, memory // 2 // each)  # the other half is for weights and what is computed
    if args.samples > most:
        raise Error(f"--samples is {args.samples}: their keys and values would take "
                    f"{args.samples * each >> 30:,} GiB, over half of all memory "
                    f"({memory >> 30:,} GiB); choose at most {most}")


def print_json(value):
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def cut_at_stop(text, stop):
    cuts = [text.find(s) for s in stop if isinstance(s, str) and s in text]
    return text[: min(cuts, default=len(text))]


def print_stream(pieces, model):
    """Text as it is made, to the last whole character even when it is interrupted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while True:
            try:
                print(next(pieces), end="", flush=True)
            except StopIteration as end:
                print(flush=True)
                if end.value == "context":
                    note_full(model)
                return


def note_full(model):
    print(f"gpt2_np: stopped at n_ctx = {model.config.n_ctx} positions", file=sys.stderr)


def interact(model, args, sampling):
    """Continue one line after another; the arrow keys bring earlier lines back."""
    with contextlib.suppress(ImportError):  # there is no readline on Windows
        import readline  # noqa: F401
    if sys.stdin is None:
        raise Error(STDIN_CLOSED)
    with contextlib.suppress(AttributeError):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        print("A line is continued; an empty line or Ctrl-D ends.", file=sys.stderr)
    options = {"n_tokens": args.tokens, "stop": stops_of(model, args),
               "draft": not args.no_draft, **sampling}
    while True:
        try:
            line = input("> " if at_terminal else "")
        except EOFError:
            return
        if not line:
            return
        try:
            line = utf_8(line.encode(errors="surrogateescape"), "this line")
            pieces = stream(model, prompt_tokens(model, line), seed=args.seed, **options)
            print("" if args.no_echo else line, end="", flush=True)
            print_stream(pieces, model)
        except Error as error:
            print(f"gpt2_np: {error}", file=sys.stderr)


def print_score(model, text, args):
    tokens = prompt_tokens(model, text)
    start = model.tokenizer.end_of_text
    log_p = score(model, tokens if start is None else [start, *tokens]).astype(float)
    scored = tokens[len(tokens) - len(log_p) :]
    if not scored:
        raise Error("one token is too short to score: this vocabulary has no <|endoftext|> to "
                    "put before it")
    loss, n_bytes = -log_p.mean(), len(model.tokenizer.decode_bytes(scored))
    totals = {
        "loss_nats_per_token": loss,
        "perplexity": math.exp(loss) if loss < 700 else None,  # no float, and JSON has no infinity
        "bits_per_byte": -log_p.sum() / math.log(2) / n_bytes,
    }
    names = [model.tokenizer.decode([token]) for token in scored]
    if args.json:
        rows = [{"token": t, "text": name, "log_p": p}
                for t, name, p in zip(scored, names, log_p, strict=True)]
        print_json({"model": args.model, "tokens": rows, "n_bytes": n_bytes, **totals})
        return
    print(" token     log p  text")
    for token, p in zip(scored, log_p, strict=True):
        print(f"{token:6d} {p:9.4f}  {quoted(model.tokenizer.token_bytes(token))}")
    given = "the first after <|endoftext|>" if start is not None else "the first is not scored"
    print(f"{len(scored)} tokens ({given}), {n_bytes} bytes")
    print(f"loss {loss:.4f} nats per token, perplexity {totals['perplexity'] or math.inf:.2f}, "
          f"{totals['bits_per_byte']:.4f} bits per byte")


def quoted(token):
    """A token's text, or its bytes where it is part of a character."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def print_info(args):
    itemsize = np.dtype(args.dtype).itemsize
    config = SIZES.get(args.model) or load(args.model, "cpu").config
    about = describe(config, itemsize)
    if args.json:
        print_json({"model": args.model, "dtype": args.dtype, **about})
        return
    sizes = ", ".join(f"{name} {value:,}" for name, value in about["config"].items())
    print(f"{args.model}: {sizes}")
    print("parameters")
    for part, n in about["parameters"].items():
        print(f"  {part:34s} {n:15,d} {n / about['parameters']['total']:7.1%}")
    print(f"{'weights in ' + args.dtype:36s} {about['bytes']:15,d} bytes")
    print(f"{'key/value cache, a token':36s} {about['cache_bytes_per_token']:15,d} bytes")
    print(f"{'key/value cache at n_ctx':36s} {about['cache_bytes_at_n_ctx']:15,d} bytes")
    print(f"{'operations, the first token':36s} {about['flops_per_token_first']:15,d} FLOP")
    print(f"{'operations, a token at n_ctx':36s} {about['flops_per_token_at_n_ctx']:15,d} FLOP")


def print_download(args):
    print(checkpoint_module().download(args.model))


if __name__ == "__main__":
    # The modules beside this file import it by name and must get this very module, not a second.
    if __package__:
        from .gpt2_np import main
    else:
        sys.modules["gpt2_np"] = sys.modules["__main__"]
    raise SystemExit(main())

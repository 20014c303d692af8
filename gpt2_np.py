"""GPT-2 in NumPy, and on a GPU through CuPy: sizes, forward pass, cache, sampling, generation.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". This file runs alone:
given token ids and weights as arrays, it needs only NumPy. The package around it adds a tokenizer,
the official weights, the GPU and faster implementations.

Axis letters in einsum and in shapes: b batch, q query position, k key position, d residual width,
h head, e head width, m hidden width of the MLP, v vocabulary, c one of query, key and value.
Activations are named as in TransformerLens, parameters as in the official checkpoint.
"""
from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any, Protocol

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback on Ctrl-C while NumPy loads
if __name__ == "gpt2_np":  # in a clone, `import gpt2_np` finds this file before the package
    root = os.path.dirname(os.path.abspath(__file__))
    if os.path.exists(os.path.join(root, "cuda", "decode_step.cu")):
        spec: Any = spec_from_file_location(__name__, os.path.join(root, "__init__.py"))
        sys.modules[__name__] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[__name__])

import numpy as np

try:
    from .backend import Error, accelerated, einsum, namespace, tiled, to_host
except ImportError:  # this file alone: plain NumPy, a little slower

    class Error(ValueError):
        """The base class of this package's errors. The message says what to do."""

    def einsum(specification, *operands):
        return np.einsum(specification, *operands, optimize=True)

    def namespace(array):  # numpy or cupy
        return np

    def accelerated(function):
        return function

    to_host, tiled = np.asarray, accelerated

if TYPE_CHECKING:
    from .bpe import Tokenizer

__version__ = "0.1.0"
__all__ = ["SIZES", "Config", "Error", "KVCache", "Model", "Sampling", "forward", "generate",
           "parameter_shapes", "sample", "score"]

LAYER_NORM_EPSILON = 1e-5
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)  # np.sqrt returns a float64, which promotes float32 arrays


# --- sizes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """The sizes of a GPT-2. Each head is n_embd // n_head wide."""

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
    """A model ready to run. `params` is a nested dict of arrays, named as in the checkpoint.

    Raises Error if the shapes of `params` do not match `config`.
    """

    config: Config
    params: Mapping[str, Any] = field(repr=False)
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        if self.config.n_embd % self.config.n_head:
            raise Error(f"{self.config.n_head} heads do not divide n_embd = {self.config.n_embd}")
        check_shapes(self.params, parameter_shapes(self.config))

    @property
    def n_vocab(self) -> int:
        """The number of tokens that have an id and a row: tokenizer or embedding may have more."""
        return min(getattr(self.tokenizer, "n_vocab", self.config.n_vocab), self.config.n_vocab)


def parameter_shapes(config: Config) -> dict[str, Any]:
    """Return the shape of every parameter, nested as `Model.params` is. Weights are [in, out]."""
    d, m = config.n_embd, 4 * config.n_embd
    norm = {"g": (d,), "b": (d,)}

    def linear(n_in, n_out):
        return {"w": (n_in, n_out), "b": (n_out,)}

    block = {
        "ln_1": norm,
        "attn": {"c_attn": linear(d, 3 * d), "c_proj": linear(d, d)},
        "ln_2": norm,
        "mlp": {"c_fc": linear(d, m), "c_proj": linear(m, d)},
    }
    return {"wte": (config.n_vocab, d), "wpe": (config.n_ctx, d),
            "blocks": [block] * config.n_layer, "ln_f": norm}


# --- the forward pass ------------------------------------------------------------------


def forward(
    params: Mapping[str, Any], config: Config, tokens: Any, cache: Cache | None = None,
    tap: TapFunction | None = None, last_only: bool = False,
) -> Any:  # fmt: skip
    """Return the logits of the token that follows each position.

    `tokens` has shape [position] or [batch, position]; the logits have one more axis, n_vocab.
    With a `cache`, `tokens` continue the cached ones. `last_only` keeps only the last position, as
    an axis of length 1. `tap(name, array)` gets every named activation, always with a batch axis,
    and may return a replacement. A `SelectiveTap` gets only those that it wants, any other tap all
    but hook_result, the output of each head. Raises Error for tokens outside the vocabulary and
    for positions past n_ctx.
    """
    batch = token_batch(tokens, config)
    x = transformer(params, config, batch, cache, Tap(tap))  # [b, q, d]
    logits = unembed(x[:, -1:] if last_only else x, params)
    return logits if np.ndim(tokens) == 2 else logits[0]


def transformer(params, config, tokens, cache=None, tap=None):  # [b, q] -> [b, q, d]
    cache, tap, xp = cache or Cache(), tap or NO_TAP, namespace(params["wte"])
    positions = cache.reserve(tokens.shape)  # [b, q]
    if positions.max() >= config.n_ctx:
        raise Error(f"{positions.max() + 1} positions do not fit into n_ctx = {config.n_ctx}: "
                    "shorten the text or drop its beginning")
    x = params["wte"][xp.asarray(tokens)]
    x = x.astype(np.promote_types(x.dtype, np.float32), copy=False)  # the stream is never float16
    x = tap("hook_embed", x) + tap("hook_pos_embed", params["wpe"][xp.asarray(positions)])
    for layer, block in enumerate(params["blocks"]):
        here = tap.under(f"blocks.{layer}.")
        x = attention_layer(x, block, config.n_head, positions, cache, layer, here)
        x = mlp_layer(x, block, here)
    cache.advance(tokens.shape[1])
    return layer_norm(x, **params["ln_f"], tap=tap.under("ln_final."))


def attention_layer(x, block, n_head, positions, cache, layer, tap):  # [b, q, d] -> [b, q, d]
    x = tap("hook_resid_pre", x)
    normalized = layer_norm(x, **block["ln_1"], tap=tap.under("ln1."))
    out = attention(normalized, **block["attn"], n_head=n_head, positions=positions, cache=cache,
                    layer=layer, tap=tap.under("attn."))
    return tap("hook_resid_mid", x + tap("hook_attn_out", out))


def mlp_layer(x, block, tap):  # [b, q, d] -> [b, q, d]
    out = mlp(layer_norm(x, **block["ln_2"], tap=tap.under("ln2.")), **block["mlp"],
              tap=tap.under("mlp."))
    return tap("hook_resid_post", x + tap("hook_mlp_out", out))


def layer_norm(x, g, b, tap):  # [b, q, d] -> [b, q, d]
    """Normalize to mean 0 and variance 1 over the residual width, then scale by g and add b."""
    width = x.shape[-1]
    x = x - x.sum(axis=-1, keepdims=True) / width
    variance = einsum("bqd,bqd->bq", x, x)[..., None] / width
    scale = tap("hook_scale", (variance + LAYER_NORM_EPSILON) ** 0.5)
    return tap("hook_normalized", x / scale) * g + b


def attention(x, c_attn, c_proj, n_head, positions, cache, layer, tap):  # [b, q, d] -> [b, q, d]
    """Causal self-attention of the new positions to themselves and to the cached ones."""
    d = x.shape[-1]
    heads = n_head, d // n_head
    qkv = einsum("bqd,dche->bqche", x, c_attn["w"].reshape(d, 3, *heads))
    qkv += c_attn["b"].reshape(3, *heads)
    qkv = qkv.astype(c_attn["w"].dtype, copy=False)  # keys and values are cached as float16 too
    q, k, v = (tap(f"hook_{name}", qkv[:, :, c]) for c, name in enumerate("qkv"))
    k, v = cache.append(layer, k, v)  # [b, k, h, e], the cached positions included

    z = tap("hook_z", attend(q, k, v, positions, tap))
    w_o = c_proj["w"].reshape(*heads, d)
    if tap.wants("hook_result"):
        out = tap("hook_result", einsum("bqhe,hed->bqhd", z, w_o)).sum(axis=2)
    else:
        out = einsum("bqhe,hed->bqd", z, w_o)
    return out + c_proj["b"]


@tiled  # some heads and queries at a time, unless the tap wants whole patterns
def attend(q, k, v, positions, tap):  # [b, q, h, e], [b, k, h, e] twice -> [b, q, h, e]
    """softmax(q kᵀ / √e) v, where no query sees a later key."""
    scores = einsum("bqhe,bkhe->bhqk", q / math.sqrt(q.shape[-1]), k)
    scores = tap("hook_attn_scores", mask_future(scores, positions))
    pattern = tap("hook_pattern", softmax(scores))
    return einsum("bhqk,bkhe->bqhe", pattern, v)


@accelerated
def mask_future(scores, positions):  # [b, h, q, k], [b, q] -> [b, h, q, k]
    xp = namespace(scores)
    is_future = xp.arange(scores.shape[-1]) > xp.asarray(positions)[:, None, :, None]
    return xp.where(is_future, -math.inf, scores)


@accelerated
def softmax(x):  # over the last axis
    x = namespace(x).exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def mlp(x, c_fc, c_proj, tap):  # [b, q, d] -> [b, q, d]
    pre = einsum("bqd,dm->bqm", x, c_fc["w"]) + c_fc["b"]
    post = tap("hook_post", gelu(tap("hook_pre", pre)))
    return einsum("bqm,md->bqd", post, c_proj["w"]) + c_proj["b"]


@accelerated
def gelu(x):
    """x Φ(x) in the tanh approximation (Hendrycks & Gimpel 2016)."""
    return 0.5 * x * (1 + namespace(x).tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)))


def unembed(x, params):  # [b, q, d] -> [b, q, v]
    return einsum("bqd,vd->bqv", x, params["wte"])  # the embedding, transposed


# --- inputs, cache and taps ------------------------------------------------------------


def token_batch(tokens: Any, config: Config) -> np.ndarray:
    """Check token ids and return them as an array [batch, position] on the host."""
    try:
        array = np.asarray(to_host(tokens) if hasattr(tokens, "dtype") else tokens)
    except ValueError:
        raise Error("the rows of tokens differ in length: use generate_batch") from None
    if array.size == 0:
        raise Error("there are no tokens: give at least one")
    if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
        raise Error(f"tokens must be integers of shape [position] or [batch, position], "
                    f"not {array.dtype} of shape {array.shape}")
    if array.min() < 0 or array.max() >= config.n_vocab:
        wrong = array.min() if array.min() < 0 else array.max()
        raise Error(f"token {wrong} is outside the vocabulary of {config.n_vocab}")
    return array.reshape(-1, array.shape[-1])


def check_shapes(params, shapes):
    found = {}
    map_leaves(lambda path, x: found.update({path: getattr(x, "shape", type(x).__name__)}), params)

    def check(path, shape):
        if found.get(path) != shape:
            name = "".join(f"[{key!r}]" for key in path)
            raise Error(f"params{name} is {found.get(path, 'missing')}: "
                        f"these sizes need an array of shape {shape}")

    map_leaves(check, shapes)
    if len(params["blocks"]) > len(shapes["blocks"]):
        raise Error(f"params has {len(params['blocks'])} blocks, expected {len(shapes['blocks'])}")


def map_leaves(function, tree, path=()):
    """Return `tree` with function(path, leaf) for every leaf. A path is ("ln_f", "g")."""
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, part, (*path, key)) for key, part in tree.items()}
    if isinstance(tree, tuple) and tree and isinstance(tree[0], Mapping):
        tree = list(tree)
    if isinstance(tree, list):
        return [map_leaves(function, part, (*path, i)) for i, part in enumerate(tree)]
    return function(path, tree)


class Cache:
    """A cache that stores nothing: every row starts at position 0. Other caches derive from it."""

    def reserve(self, shape: tuple[int, int]) -> np.ndarray:
        """Return the positions [b, q] of the next tokens. Raises Error if they do not fit."""
        return np.broadcast_to(np.arange(shape[1]), shape)

    def append(self, layer: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """Store keys and values [b, q, h, e]. Return all of that layer's, [b, k, h, e] each."""
        return keys, values

    def advance(self, n_new: int) -> None:
        """Count positions that every layer has stored."""


class KVCache(Cache):
    """Keys and values of all positions so far, for `batch` rows of up to `capacity` positions.

    `lengths` [batch] is the number of positions in each row; lower it to roll a row back. Do not
    share a cache between threads.
    """

    def __init__(self, config: Config, batch: int = 1, capacity: int = 1024):
        self.shape = (batch, config.n_head, capacity, config.n_embd // config.n_head)
        self.lengths = np.zeros(batch, int)
        self.layers = [[] for _ in range(config.n_layer)]  # keys, values: [b, h, capacity, e]
        self._end, self._slots = 0, []  # of the reserved positions: their end, rows and slices

    def reserve(self, shape: tuple[int, int]) -> np.ndarray:
        batch, capacity = self.shape[0], self.shape[2]
        if shape[0] != batch:
            raise Error(f"the cache was made for {batch} rows, the tokens are {shape[0]} rows")
        most = int(self.lengths.max())
        self._end = most + shape[1]
        if self._end > capacity:
            raise Error(f"a cache of {capacity} cannot hold {self._end} positions: make it larger")
        if most == self.lengths.min():
            self._slots = [(slice(0, batch), slice(most, self._end))]
        else:
            self._slots = [(row, slice(n, n + shape[1]))
                            for row, n in enumerate(self.lengths.tolist())]
        return self.lengths[:, None] + np.arange(shape[1])

    def buffers(self, layer: int, like: Any) -> list[Any]:
        """Return the keys and values of one layer, made on first use with the type of `like`."""
        if not self.layers[layer]:  # zeros, because a masked position must not hold NaN
            self.layers[layer] = [namespace(like).zeros(self.shape, like.dtype) for _ in "kv"]
        return self.layers[layer]

    def append(self, layer: int, keys: Any, values: Any) -> tuple[Any, Any]:
        buffers = self.buffers(layer, keys)
        for stored, new in zip(buffers, (keys, values), strict=True):
            new = new.swapaxes(1, 2)  # a head's positions lie side by side: faster to read
            for row, slots in self._slots:
                stored[row, :, slots] = new[row]
        return tuple(stored[:, :, : self._end].swapaxes(1, 2) for stored in buffers)

    def advance(self, n_new: int) -> None:
        self.lengths += n_new

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order. A row may be repeated."""
        rows = np.asarray(rows, int)
        self.shape, self.lengths = (len(rows), *self.shape[1:]), self.lengths[rows]
        self.layers = [[array[namespace(array).asarray(rows)] for array in layer]
                       for layer in self.layers]


TapFunction = Callable[[str, Any], Any]  # (name, array) -> a replacement, or None
Tokens = Sequence[int] | np.ndarray  # ids, [position]


class SelectiveTap(Protocol):
    """A tap that chooses its activations. What it does not want may not even be computed."""

    def wants(self, name: str) -> bool: ...

    def __call__(self, name: str, array: Any) -> Any: ...


def all_but_results(name):  # the wants of any other tap
    return not name.endswith("hook_result")


class Tap:
    """Calls a caller's tap with full names such as blocks.0.attn.hook_q. None is no tap."""

    def __init__(self, function: TapFunction | None = None, prefix: str = ""):
        self.function, self.prefix = function, prefix
        self._wants = getattr(function, "wants", None) or all_but_results

    def under(self, prefix):
        return self if self.function is None else Tap(self.function, self.prefix + prefix)

    def wants(self, name):
        return self.function is not None and self._wants(self.prefix + name)

    def __call__(self, name, array):
        if not self.wants(name):
            return array
        replacement = self.function(self.prefix + name, array)
        if replacement is None:
            return array
        if np.shape(replacement) != array.shape:
            raise Error(f"the tap returned {self.prefix + name} with shape "
                        f"{np.shape(replacement)}, expected {array.shape}")
        return namespace(array).asarray(replacement, dtype=array.dtype)


NO_TAP = Tap()


# --- sampling --------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """The choice of a token. Temperature 0 is greedy; None turns a restriction off."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        def check(name, valid, expected):
            value = getattr(self, name)
            unset = value is None and name != "temperature"
            if not (unset or (is_number(value) and valid(value))):
                raise Error(f"{name} is {value!r}: it must be {expected}")

        # Temperatures and penalties beyond these would overflow.
        check("temperature", lambda t: t == 0 or 1e-99 <= t <= 1e99, "0, or from 1e-99 to 1e99")
        check("top_k", lambda k: k >= 1 and k % 1 == 0, "a positive integer")
        check("top_p", lambda p: 0 < p <= 1, "above 0 and at most 1")
        check("min_p", lambda p: 0 <= p <= 1, "from 0 to 1")
        check("repetition_penalty", lambda r: 1e-6 <= r <= 1e6, "from 1e-6 to 1e6")


def is_number(value):
    return isinstance(value, int | float | np.integer | np.floating) and value == value


def sample(
    logits: Any, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
    min_p: float | None = None, repetition_penalty: float | None = None,
    previous: Tokens = (), seed: Any = None,
) -> int:  # fmt: skip
    """Choose one token id from logits [n_vocab].

    Applied in this order: `repetition_penalty` on the tokens in `previous` (Keskar et al. 2019,
    section 4.1), `temperature`, `top_k` (keeps ties), `top_p` (Holtzman et al. 2020), `min_p`.
    Temperature 0 takes the most probable token, the lowest id among equals. `seed` is anything
    that numpy.random.default_rng accepts.
    """
    if not (hasattr(logits, "__cuda_array_interface__") and hasattr(logits, "get")):  # not CuPy's
        try:
            logits = np.asarray(logits)
            logits = logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Error(f"logits cannot become a NumPy array: {error}") from None
    if logits.ndim != 1 or not logits.size:
        raise Error(f"logits have shape {logits.shape}: give those of one position, [n_vocab]")
    used = previous if repetition_penalty is not None else ()
    if len(used) and not 0 <= min(used) <= max(used) < logits.size:
        raise Error(f"previous has tokens outside the vocabulary of {logits.size}")
    options = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    return choose(logits, options, previous, generator(seed))


def generator(seed: Any) -> np.random.Generator:
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise Error(f"seed is {seed!r}: expected None, integers from 0 up or a Generator") from None


def choose(logits, options, previous, rng):
    penalty = options.repetition_penalty or 1
    if penalty != 1 and len(previous):
        logits = to_host(logits).copy()
        seen = np.unique(np.asarray(previous))
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    if options.temperature == 0:
        token = int(logits.argmax())  # of the first NaN if there is one
        check_finite(logits[token])
        return token
    cumulative = probabilities(to_host(logits), options).cumsum()
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def check_finite(number):
    if not math.isfinite(number):
        raise Error(f"the model computed {float(number)}: its weights are not all finite, "
                    "or do not belong together")


def probabilities(logits: np.ndarray, options: Sampling) -> np.ndarray:
    """Return the distribution [n_vocab] to draw from, in float64. Needs a temperature above 0."""
    p = logits.astype(np.float64)
    check_finite(p.max())
    p = np.exp((p - p.max()) / options.temperature)
    if options.top_k is not None and options.top_k < p.size:
        p[p < np.partition(p, -int(options.top_k))[-int(options.top_k)]] = 0
    if options.top_p is not None and options.top_p < 1:
        # Tokens under (1 - top_p) / n_vocab add up to less than 1 - top_p: sort only the others.
        total = p.sum()
        candidates = np.flatnonzero(p * p.size >= (1 - options.top_p) * total)
        ranked = candidates[np.argsort(-p[candidates], kind="stable")]
        before = np.cumsum(p[ranked]) - p[ranked]
        kept = ranked[before < options.top_p * total]
        p, all_p = np.zeros_like(p), p
        p[kept] = all_p[kept]
    if options.min_p is not None:
        p[p < options.min_p * p.max()] = 0
    return p / p.sum()


# --- generation and scoring ------------------------------------------------------------


def generate(
    model: Model, tokens: Tokens, n_tokens: int, *, stop: Sequence[int] = (),
    seed: Any = None, tap: TapFunction | None = None, **options: Any,
) -> Generator[int, None, None]:  # fmt: skip
    """Yield up to `n_tokens` token ids that continue `tokens`, ending before an id in `stop`.

    The options are those of `Sampling`; they are checked when the first token is asked for.
    inference/generation.py yields the same tokens faster.
    """
    config, options, rng = model.config, Sampling(**options), generator(seed)
    text = token_batch([tokens], config)[0].tolist()
    cache, new = KVCache(config, capacity=max(config.n_ctx, len(text))), text
    for _ in range(n_tokens):
        logits = forward(model.params, config, new, cache, tap, last_only=True)[0, : model.n_vocab]
        token = choose(logits, options, text, rng)
        if token in stop:
            return
        yield token
        new, text = [token], [*text, token]
        if len(text) > config.n_ctx:
            return


def score(model: Model, tokens: Tokens, *, tap: TapFunction | None = None) -> np.ndarray:
    """Return log p(tokens[i + 1] | tokens[: i + 1]) in nats, float32 [position - 1].

    At most n_ctx + 1 tokens. inference/scoring.py scores longer texts, and many at once.
    """
    tokens = token_batch([tokens], replace(model.config, n_vocab=model.n_vocab))[0]
    if len(tokens) == 1:
        return np.empty(0, np.float32)
    logits = to_host(forward(model.params, model.config, tokens[:-1], tap=tap))[:, : model.n_vocab]
    logits = logits - logits.max(axis=-1, keepdims=True)
    chosen = logits[np.arange(len(logits)), tokens[1:]]
    log_p = chosen - np.log(np.exp(logits).sum(axis=-1))
    check_finite(log_p.sum())
    return log_p.astype(np.float32)


if __name__ == "__main__":
    try:
        from gpt2_np.command_line import main
    except ModuleNotFoundError as error:
        raise SystemExit(f"gpt2_np: {error}: the command line needs the whole repository") from None
    raise SystemExit(main())

"""Decoder-only Transformers by their sizes: attention, experts, norms, and every tensor of each.

One letter is one size, in the formulas of `costs` and of explorer/index.html:

    v n_vocab   n n_ctx   d n_embd   L n_layer   h n_head   g n_kv_head   e d_head   m n_hidden
    latent attention:    q q_rank   r kv_rank   a d_nope   p d_rope   u d_value
    mixture of experts:  x n_expert   t n_active   s n_shared   w n_expert_hidden   f n_dense
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..bpe import shown
from ..gpt2_np import SIZES, Config, Error

AT_MOST = 1 << 24  # of every size: totals stay far below float64's largest number


class Tensor(NamedTuple):
    """A parameter tensor of one shape, and its number of copies in all layers.

    One token uses `active` of the copies. A `lookup` is a table of which a token reads one row.
    """

    part: str
    name: str
    shape: tuple[int, ...]
    copies: int
    active: int
    lookup: bool = False

    @property
    def size(self) -> int:
        """The number of parameters of one copy."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The sizes of a decoder-only Transformer. Raises Error if they do not fit together.

    A 0 stands for what is usual: `n_kv_head` for n_head (multi-head attention), `d_head` for
    n_embd / n_head, `n_hidden` for 4 n_embd. Attention is `grouped` (Ainslie et al. 2023; 1
    key/value head is multi-query attention) or `latent` (DeepSeek-AI 2024, "DeepSeek-V2": keys and
    values come from `kv_rank` numbers a position, and a rotary key of d_rope is shared by the
    heads; `q_rank` 0 projects queries directly). With `n_expert` above 0, layers after the first
    `n_dense` have a mixture of experts in place of the MLP: each token uses `n_active` experts, and
    all use `n_shared` more. `biases` of the linear layers are `all`, `qkv` or `none`; the
    unembedding has none.
    """

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_layer: int
    n_head: int
    attention: Literal["grouped", "latent"] = "grouped"
    n_kv_head: int = 0
    d_head: int = 0
    qk_norm: bool = False
    q_rank: int = 0
    kv_rank: int = 0
    d_nope: int = 0
    d_rope: int = 0
    d_value: int = 0
    mlp: Literal["gelu", "swiglu"] = "swiglu"
    n_hidden: int = 0
    n_expert: int = 0
    n_active: int = 0
    n_shared: int = 0
    n_expert_hidden: int = 0
    n_dense: int = 0
    router_bias: bool = False
    positions: Literal["learned", "rotary"] = "rotary"
    norm: Literal["layer", "rms"] = "rms"
    biases: Literal["all", "qkv", "none"] = "none"
    tied: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
        if problem := impossible(self):
            raise Error(problem)

    @classmethod
    def of(cls, config: Config | Decoder) -> Decoder:
        """Return the sizes of a GPT-2 as those of any decoder."""
        if isinstance(config, Decoder):
            return config
        if not isinstance(config, Config):
            raise Error(f"config is {shown(config)}: give a Config or a Decoder, as model.config "
                        "is")
        sizes: dict[str, Any] = {name: int(value) for name, value in vars(config).items()}
        return cls(**sizes, mlp="gelu", positions="learned", norm="layer", biases="all",
                   tied=True)

    @property
    def kv_heads(self) -> int:
        """The number of heads that have keys and values of their own: `g`."""
        return self.n_kv_head or self.n_head

    @property
    def head_width(self) -> int:
        """The numbers of one head's query, key or value: `e`."""
        return self.d_head or self.n_embd // self.n_head

    @property
    def hidden_width(self) -> int:
        """The hidden numbers of the MLP: `m`."""
        return self.n_hidden or 4 * self.n_embd

    def tensors(self) -> list[Tensor]:
        """Return all parameter tensors: matrices as [in, out], tables as [row, n_embd]."""
        v, d, L = self.n_vocab, self.n_embd, self.n_layer
        sparse = L - self.n_dense if self.n_expert else 0
        table = "token embedding (and unembedding)" if self.tied else "token embedding"
        found = [Tensor(table, "embedding", (v, d), 1, 1, lookup=not self.tied)]
        if not self.tied:
            found.append(Tensor("unembedding", "unembedding", (d, v), 1, 1))
        if self.positions == "learned":
            found.append(Tensor("position embedding", "positions", (self.n_ctx, d), 1, 1, True))
        found += self._attention(L)
        found += self._mlp("MLP", self.hidden_width, L - sparse, L - sparse)
        if sparse:
            found.append(Tensor("router", "router", (d, self.n_expert), sparse, sparse))
            if self.router_bias:
                found.append(Tensor("router", "router bias", (self.n_expert,), sparse, sparse))
            found += self._mlp("experts", self.n_expert_hidden, sparse * self.n_expert,
                               sparse * self.n_active)
            if self.n_shared:  # as one MLP of their widths together
                found += self._mlp("shared experts", self.n_shared * self.n_expert_hidden, sparse,
                                   sparse)
        found += self._norm("norm", d, 2 * L + 1)
        found = [tensor for tensor in found if tensor.copies]
        return sorted(found, key=lambda tensor: tensor.part == "layer norms")

    def _attention(self, L):
        d, h = self.n_embd, self.n_head
        some, every = self.biases != "none", self.biases == "all"
        if self.attention == "grouped":
            e, g = self.head_width, self.kv_heads
            found = [*_linear("attention", "query", d, h * e, some, L),
                     *_linear("attention", "key", d, g * e, some, L),
                     *_linear("attention", "value", d, g * e, some, L)]
            if self.qk_norm:
                found += [*self._norm("query norm", e, L), *self._norm("key norm", e, L)]
            return [*found, *_linear("attention", "output", h * e, d, every, L)]
        q, r, a, p, u = self.q_rank, self.kv_rank, self.d_nope, self.d_rope, self.d_value
        if q:
            found = [*_linear("attention", "query down", d, q, some, L),
                     *self._norm("query norm", q, L),
                     *_linear("attention", "query up", q, h * (a + p), False, L)]
        else:
            found = _linear("attention", "query", d, h * (a + p), some, L)
        return [*found, *_linear("attention", "latent down", d, r + p, some, L),
                *self._norm("latent norm", r, L),
                *_linear("attention", "latent up", r, h * (a + u), False, L),
                *_linear("attention", "output", h * u, d, every, L)]

    def _mlp(self, part, hidden, copies, active):
        d, bias = self.n_embd, self.biases == "all"
        gate = _linear(part, "gate", d, hidden, bias, copies, active)
        return [*(gate if self.mlp == "swiglu" else []),
                *_linear(part, "up", d, hidden, bias, copies, active),
                *_linear(part, "down", hidden, d, bias, copies, active)]

    def _norm(self, name, width, copies):
        found = [Tensor("layer norms", name, (width,), copies, copies)]
        if self.norm == "layer":
            found.append(Tensor("layer norms", f"{name} bias", (width,), copies, copies))
        return found


def _linear(part, name, n_in, n_out, bias, copies, active=None):
    active = copies if active is None else active
    weight = Tensor(part, name, (n_in, n_out), copies, active)
    return [weight, Tensor(part, f"{name} bias", (n_out,), copies, active)] if bias else [weight]


# --- sizes that do not fit together ------------------------------------------------------

AT_LEAST = {
    "n_vocab": 1, "n_ctx": 1, "n_embd": 1, "n_layer": 1, "n_head": 1, "n_kv_head": 0, "d_head": 0,
    "q_rank": 0, "kv_rank": 0, "d_nope": 0, "d_rope": 0, "d_value": 0, "n_hidden": 0,
    "n_expert": 0, "n_active": 0, "n_shared": 0, "n_expert_hidden": 0, "n_dense": 0,
}  # fmt: skip
CHOICES = {
    "attention": ("grouped", "latent"), "mlp": ("gelu", "swiglu"),
    "positions": ("learned", "rotary"), "norm": ("layer", "rms"), "biases": ("all", "qkv", "none"),
}  # fmt: skip
FLAGS = "qk_norm", "router_bias", "tied"


def impossible(decoder: Decoder) -> str:
    """Return one sentence that says why no model has these sizes, or "" if one can."""
    c = decoder
    for name, least in AT_LEAST.items():
        value = getattr(c, name)
        if type(value) is not int or not least <= value <= AT_MOST:
            return f"{name} = {shown(value)}: choose a whole number from {least} to {AT_MOST:,}"
    for name, choices in CHOICES.items():
        value = getattr(c, name)
        if value not in choices:
            return f"{name} = {shown(value)}: choose {' or '.join(choices)}"
    for name in FLAGS:
        value = getattr(c, name)
        if not isinstance(value, bool):
            return f"{name} = {shown(value)}: choose True or False"
    if c.attention == "grouped":
        if not c.d_head and c.n_embd % c.n_head:
            return (f"{c.n_head} heads do not divide n_embd = {c.n_embd}: choose a divisor, or set "
                    "d_head")
        if c.n_head % c.kv_heads:
            return (f"{c.kv_heads} key/value heads do not divide {c.n_head} heads: choose a "
                    f"divisor of {c.n_head}")
        width = "d_head", c.head_width
    else:
        for name in "kv_rank", "d_nope", "d_value":
            if not getattr(c, name):
                return f"{name} = 0: latent attention needs at least 1"
        width = "d_rope", c.d_rope
    if c.positions == "rotary" and (width[1] % 2 or not width[1]):
        return (f"{width[0]} = {width[1]}: rotary positions turn pairs of numbers, so choose an "
                "even number from 2")
    if c.n_expert:
        if not 1 <= c.n_active <= c.n_expert:
            return (f"a token cannot use {c.n_active} of {c.n_expert} experts: choose n_active "
                    f"from 1 to {c.n_expert}")
        if not c.n_expert_hidden:
            return "n_expert_hidden = 0: experts need at least 1"
        if c.n_dense > c.n_layer:
            return (f"{c.n_dense} dense layers do not fit into {c.n_layer}: choose n_dense up to "
                    f"{c.n_layer}")
    return ""


# --- published models --------------------------------------------------------------------


def _gpt2_decoders() -> dict[str, Decoder]:  # mypy does not know SIZES outside a function
    return {f"GPT-2 {size}": Decoder.of(config) for size, config in SIZES.items()}


# The sizes in each model's config.json on the Hugging Face hub: meta-llama/Meta-Llama-3-8B,
# mistralai/Mistral-7B-Instruct-v0.2, Qwen/Qwen2.5-7B, Qwen/Qwen3-8B, mistralai/Mixtral-8x7B-v0.1
# and deepseek-ai/DeepSeek-V3.
DECODERS = {
    **_gpt2_decoders(),
    "Llama-3-8B": Decoder(n_vocab=128256, n_ctx=8192, n_embd=4096, n_layer=32, n_head=32,
                          n_kv_head=8, n_hidden=14336),
    "Mistral-7B-v0.2": Decoder(n_vocab=32000, n_ctx=32768, n_embd=4096, n_layer=32, n_head=32,
                               n_kv_head=8, n_hidden=14336),
    "Qwen2.5-7B": Decoder(n_vocab=152064, n_ctx=131072, n_embd=3584, n_layer=28, n_head=28,
                          n_kv_head=4, n_hidden=18944, biases="qkv"),
    "Qwen3-8B": Decoder(n_vocab=151936, n_ctx=40960, n_embd=4096, n_layer=36, n_head=32,
                        n_kv_head=8, d_head=128, qk_norm=True, n_hidden=12288),
    "Mixtral-8x7B": Decoder(n_vocab=32000, n_ctx=32768, n_embd=4096, n_layer=32, n_head=32,
                            n_kv_head=8, n_expert=8, n_active=2, n_expert_hidden=14336),
    "DeepSeek-V3": Decoder(n_vocab=129280, n_ctx=163840, n_embd=7168, n_layer=61, n_head=128,
                           attention="latent", q_rank=1536, kv_rank=512, d_nope=128, d_rope=64,
                           d_value=128, n_hidden=18432, n_expert=256, n_active=8, n_shared=1,
                           n_expert_hidden=2048, n_dense=3, router_bias=True),
}

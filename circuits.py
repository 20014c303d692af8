"""Looking inside GPT-2: activations, attribution, lenses, patching, weights, circuit search.

The residual stream is a sum: embeddings, then what every head and MLP adds (Elhage et al. 2021,
"A Mathematical Framework for Transformer Circuits"). All here follows from that, on NumPy arrays
and the model's own logits. Names are TransformerLens's; activations always have a batch axis.

Text gets <|endoftext|> put before it unless `bos=False`; token ids are taken as they are unless
`bos=True`. Every result says which it was in its field `bos`.

One alphabet for einsum: b batch (prompt), q query position, k key position, d residual width,
h head, e head width, m hidden width of the MLP, v vocabulary; and p part of the stream.
"""
from __future__ import annotations

import argparse
import contextlib
import difflib
import fnmatch
import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

if __package__:
    from . import gpt2_np
    from .backend import einsum, namespace, to_host
    from .gpt2_np import Config, Error, Model
else:
    import gpt2_np
    from backend import einsum, namespace, to_host
    from gpt2_np import Config, Error, Model

__all__ = [
    "Attention",
    "Attribution",
    "Circuit",
    "EdgeCircuit",
    "Estimate",
    "Lens",
    "LowRank",
    "Measures",
    "Parts",
    "Prompts",
    "Run",
    "Sweep",
    "Task",
    "ablated",
    "ablation",
    "activation_name",
    "activation_names",
    "attribution",
    "bootstrap",
    "composition",
    "copying_scores",
    "decompose",
    "edge_attribution",
    "edge_names",
    "find",
    "find_edges",
    "full_ov",
    "full_qk",
    "gradients",
    "head_names",
    "heads",
    "indirect_object",
    "knock_out",
    "labels_of",
    "lens",
    "log_probability",
    "logit_difference",
    "main",
    "measure",
    "name_repetition",
    "neuron_tokens",
    "node_names",
    "ov",
    "parse_node",
    "patch",
    "patch_edges",
    "patching",
    "path_patching",
    "plot_attention",
    "plot_heads",
    "plot_lens",
    "prompts",
    "qk",
    "repeat_loss",
    "repeated_tokens",
    "run",
    "singular_tokens",
    "token_id",
    "zero",
]

# Sweeps run as many patched prompts at once as make about this many positions: enough for the
# matrix products to reach full speed, and small enough that their activations stay in the cache.
ROWS_AT_ONCE = 512

Edit = Callable[[Any, str], Any]
Metric = Callable[[np.ndarray], np.ndarray]


# --- prompts ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length: ids [b, q]; `bos` says that <|endoftext|> is the first of each."""

    tokens: np.ndarray
    bos: bool


def prompts(model: Model, text_or_tokens: Any, bos: bool | None = None) -> Prompts:
    """A text, a list of texts, ids [q] or [b, q], or Prompts, as Prompts.

    `bos` puts <|endoftext|> first: by default before text and not before ids. Raises Error where
    the prompts differ in length, since their activations could not be one array.
    """
    if isinstance(text_or_tokens, Prompts):
        return text_or_tokens
    end = getattr(model.tokenizer, "end_of_text", None)
    texts = [text_or_tokens] if isinstance(text_or_tokens, str) else text_or_tokens
    if isinstance(texts, list | tuple) and texts and all(isinstance(t, str) for t in texts):
        encode = _tokenizer(model).encode
        bos = True if bos is None else bos
        rows = [encode(text, allowed_special="all") for text in texts]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise Error(
                f"the prompts have {', '.join(map(str, lengths))} tokens: they are compared "
                "position by position, so give prompts of equal length"
            )
        if not lengths[0] and not bos:
            raise Error("the text is empty: give some, or leave bos on")
        tokens = np.array(rows, int).reshape(len(rows), lengths[0])
    else:
        tokens = gpt2_np.token_batch(text_or_tokens, model.config)
    if bos:
        if end is None:
            raise Error("bos=True needs a model whose vocabulary has <|endoftext|>: use bos=False")
        tokens = np.insert(tokens, 0, end, axis=1)
    if tokens.shape[1] > model.config.n_ctx:
        raise Error(f"{tokens.shape[1]} positions do not fit: n_ctx is {model.config.n_ctx}")
    return Prompts(tokens, end is not None and bool((tokens[:, 0] == end).all()))


def _tokenizer(model):
    if model.tokenizer is None:
        raise Error("this model has no vocabulary files, so text means nothing to it: give ids")
    return model.tokenizer


def token_id(model: Model, text_or_id: Any) -> int:
    """The id of a text that is exactly one token, or an id checked; Error where it is neither."""
    if isinstance(text_or_id, str):
        ids = _tokenizer(model).encode(text_or_id, allowed_special="all")
        if len(ids) != 1:
            pieces = [model.tokenizer.decode([i]) for i in ids]
            hint = "" if text_or_id[:1] == " " else "; words inside a text begin with a space"
            raise Error(f"{text_or_id!r} is {len(ids)} tokens {pieces}, it must be one{hint}")
        return ids[0]
    return int(gpt2_np.token_batch([[text_or_id]], model.config)[0, 0])


def _ids(model, answers):
    """Ids from a text, an id, or a sequence of either."""
    several = isinstance(answers, list | tuple | np.ndarray)
    return np.array([token_id(model, answer) for answer in (answers if several else [answers])])


def _one_each(ids, n):
    """One id per prompt, [b]."""
    if len(ids) not in (1, n):
        raise Error(f"{len(ids)} answers were given for {n} prompts: give one, or one for each")
    return np.broadcast_to(ids, n)


def _answers(model, answers, n):
    return _one_each(_ids(model, answers), n)


def labels_of(model: Model, tokens: Sequence[int]) -> list[str]:
    """What each token reads as, for tables and plots; ids where there is no vocabulary."""
    if model.tokenizer is None:
        return [str(int(token)) for token in tokens]
    return [model.tokenizer.decode([int(token)]) for token in tokens]


# --- names -----------------------------------------------------------------------------

_BLOCK_NAMES = [
    "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k",
    "attn.hook_v", "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z",
    "attn.hook_result", "hook_attn_out", "hook_resid_mid", "ln2.hook_scale",
    "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
]  # fmt: skip
_SHORT = {name.rpartition("hook_")[2]: name for name in _BLOCK_NAMES if "ln" not in name} | {
    "scores": "attn.hook_attn_scores", "pre": "mlp.hook_pre", "post": "mlp.hook_post",
}  # fmt: skip
_BY_HEAD = {"q", "k", "v", "z", "result", "pattern", "attn_scores"}


def activation_name(short: str, layer: int) -> str:
    """("q", 5) -> "blocks.5.attn.hook_q"; likewise resid_pre, attn_out, pattern, post, ..."""
    if short not in _SHORT:
        raise Error(f"unknown activation {short!r}{_near(short, _SHORT)}")
    return f"blocks.{layer}.{_SHORT[short]}"


def activation_names(config: Config) -> list[str]:
    """Every name that `run` can give, in the order of the forward pass."""
    blocks = [f"blocks.{layer}.{name}" for layer in range(config.n_layer) for name in _BLOCK_NAMES]
    ends = ["ln_final.hook_scale", "ln_final.hook_normalized"]
    return ["hook_embed", "hook_pos_embed", *blocks, *ends]


def _near(name, known):
    """"; did you mean a, b or c?" with the names most like this one, or some that there are."""
    found = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if not found:
        known = list(known)
        return f"; there are {', '.join(known[:3])}, ... {known[-1]}" if known else "; none was"
    return f"; did you mean {' or '.join(filter(None, [', '.join(found[:-1]), found[-1]]))}?"


def _matching(names, config):
    """The set of activation names that exact names, globs or a predicate mean."""
    known = activation_names(config)
    if callable(names):
        return {name for name in known if names(name)}
    matching = set()
    for pattern in [names] if isinstance(names, str) else names:
        found = set(fnmatch.filter(known, pattern))
        if not found:
            raise Error(f"unknown activation {pattern!r}{_near(pattern, known)}")
        matching |= found
    return matching


# --- running ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What one pass gave: logits [b, q, v], activations by name, and the prompts it ran on."""

    logits: np.ndarray
    activations: dict[str, np.ndarray]
    tokens: np.ndarray
    bos: bool

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.activations:
            raise Error(f"{name!r} was not kept{_near(name, self.activations)}")
        return self.activations[name]


class _Watch:
    """A tap that keeps some activations on the host and edits some."""

    def __init__(self, keep, edits):
        self.keep, self.edits, self.kept = keep, edits, {}

    def wants(self, name):
        return name in self.keep or name in self.edits

    def __call__(self, name, array):
        edited = None
        for edit in self.edits.get(name, ()):
            given = (array if edited is None else edited).copy()
            edited = edit(given, name) if callable(edit) else edit
            edited = given if edited is None else edited
        if name in self.keep:
            seen = to_host(array if edited is None else edited)
            self.kept[name] = seen if seen.base is None else seen.copy()
        return edited


def run(
    model: Model,
    text_or_tokens: Any,
    names: Sequence[str] | str | Callable[[str], bool] = (),
    *,
    edits: Mapping[str, Edit | Any] | None = None,
    bos: bool | None = None,
    last_only: bool = False,
) -> Run:
    """Logits and the activations asked for, by exact name, glob or predicate; no other is kept.

    `edits` maps names or globs to `function(array, name)`, which returns a new array or changes
    the one it is given, or to an array; edits come before what is kept. `last_only` makes logits
    of the last position only, [b, 1, v]. Raises Error for names that do not exist, with the
    nearest that do, and for edits of another shape.
    """
    given = prompts(model, text_or_tokens, bos)
    by_name: dict[str, list] = {}
    for pattern, edit in (edits or {}).items():
        for name in _matching(pattern, model.config):
            by_name.setdefault(name, []).append(edit)
    watch = _Watch(_matching(names, model.config), by_name)
    logits = gpt2_np.forward(model.params, model.config, given.tokens, tap=watch,
                             last_only=last_only)
    return Run(to_host(logits), watch.kept, given.tokens, given.bos)


def rest(model, x, start, first=0, before=None, tap=gpt2_np.NO_TAP, last_only=False):
    """From the residual stream before sub-layer `start` to the logits, on the host [b, q, v].

    Sub-layers alternate: 2l is the attention of layer l, 2l + 1 its MLP. `x` [b, q, d] starts at
    position `first`; `before(layer)` gives the keys and values [b, first, h, e] of the earlier
    ones. `last_only` drops all but the last position as soon as no attention needs them.
    """
    config, params = model.config, model.params
    xp = namespace(params["wte"])
    x = xp.asarray(x)
    positions = np.broadcast_to(np.arange(first, first + x.shape[1]), x.shape[:2])
    short = x.shape[1] <= 256  # every prompt at once, where the scores stay small

    @functools.cache
    def tiles(whole):
        return gpt2_np.attention_tiles(positions, config.n_head, xp, whole or short)

    def remember(layer, *new):
        if not first:
            return new
        old = (xp.asarray(array) for array in before(layer))
        return [xp.concatenate(pair, axis=1) for pair in zip(old, new, strict=True)]

    for layer in range(start // 2, config.n_layer):
        block, here = params["blocks"][layer], tap.under(f"blocks.{layer}.")
        if start <= 2 * layer:
            normalized = gpt2_np.layer_norm(x, **block["ln_1"], tap=here.under("ln1."))
            out = gpt2_np.attention(
                normalized, **block["attn"], n_head=config.n_head, tiles=tiles,
                remember=functools.partial(remember, layer), tap=here.under("attn."),
            )
            x = x + here("hook_attn_out", out)
        if last_only and layer == config.n_layer - 1:
            x = x[:, -1:]
        normalized = gpt2_np.layer_norm(x, **block["ln_2"], tap=here.under("ln2."))
        out = gpt2_np.mlp(normalized, **block["mlp"], tap=here.under("mlp."))
        x = x + here("hook_mlp_out", out)
    if last_only:
        x = x[:, -1:]
    x = gpt2_np.layer_norm(x, **params["ln_f"], tap=tap.under("ln_final."))
    return to_host(gpt2_np.unembed(x, params))


# --- the residual stream as a sum ------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What wrote the residual stream: `values` [p, b, q, d] sum over `labels` to the stream."""

    labels: list[str]
    values: np.ndarray
    tokens: np.ndarray
    bos: bool

    def __getitem__(self, label: str) -> np.ndarray:
        return _labelled(self, label)


def _labelled(parts, label):
    if label not in parts.labels:
        raise Error(f"unknown part {label!r}{_near(label, parts.labels)}")
    return parts.values[parts.labels.index(label)]


def head_names(config: Config) -> list[str]:
    """"L0H0", "L0H1", ...: every head, layer by layer."""
    return [f"L{layer}H{head}" for layer in range(config.n_layer) for head in range(config.n_head)]


def decompose(
    model: Model,
    text_or_tokens: Any,
    at: str | None = None,
    *,
    position: int | None = None,
    neurons: Sequence[int] = (),
    folded: bool = False,
    bos: bool | None = None,
) -> Parts:
    """The stream at `at` (a resid_pre, resid_mid or resid_post; the last unless told) as a sum.

    Labels: "embed", "pos_embed", heads "L5H1", each layer's attention bias "b_O5", MLPs "MLP5";
    for layers in `neurons` single neurons "L5N17" and the bias "b_out5" instead of "MLP5". One
    `position` (an axis of length 1) or all. With `folded`, the constant that a head writes
    whatever it attends to, (b_V + ln_1.b W_V) W_O, counts as attention bias: where TransformerLens
    puts it when it processes weights. (Elhage et al. 2021, "virtual weights and the stream".)
    """
    config = model.config
    given = prompts(model, text_or_tokens, bos)
    n_attention, n_mlp = _writers_before(at, config)
    for layer in neurons:
        _check_index("layer", layer, config.n_layer)
    names = {"hook_embed", "hook_pos_embed"}
    names |= {activation_name("z", layer) for layer in range(n_attention)}
    names |= {activation_name("post" if layer in neurons else "mlp_out", layer)
              for layer in range(n_mlp)}
    seen = run(model, given, sorted(names), last_only=True)
    where = _one_position(position, given.tokens)

    def read(name):
        return seen[name][:, where]

    parts = {"embed": read("hook_embed"), "pos_embed": read("hook_pos_embed")}
    for layer in range(n_attention):
        attn, mlp = _attention_weights(model, layer), _host(model.params["blocks"][layer]["mlp"])
        z, bias = read(activation_name("z", layer)), attn.b_O
        if folded:
            constant = attn.b_V + einsum("d,hde->he", attn.shift, attn.W_V)
            z = z - constant
            bias = bias + np.einsum("he,hed->d", constant, attn.W_O)
        result = einsum("bqhe,hed->hbqd", z, attn.W_O)
        parts |= {f"L{layer}H{head}": part for head, part in enumerate(result)}
        parts[f"b_O{layer}"] = np.broadcast_to(bias, result.shape[1:])
        if layer >= n_mlp:
            continue
        if layer in neurons:
            post, w_out = read(activation_name("post", layer)), mlp["c_proj"]["w"]
            written = post.transpose(2, 0, 1)[..., None] * w_out[:, None, None]
            parts |= {f"L{layer}N{n}": part for n, part in enumerate(written)}
            parts[f"b_out{layer}"] = np.broadcast_to(mlp["c_proj"]["b"], result.shape[1:])
        else:
            parts[f"MLP{layer}"] = read(activation_name("mlp_out", layer))
    shape = (*given.tokens[:, where].shape, config.n_embd)
    values = np.stack([np.broadcast_to(part, shape) for part in parts.values()])
    return Parts(list(parts), values, given.tokens, given.bos)


def _writers_before(at, config):
    """How many attentions and how many MLPs have written the stream that `at` names."""
    streams = {"hook_resid_pre": (0, 0), "hook_resid_mid": (1, 0), "hook_resid_post": (1, 1)}
    at = at or activation_name("resid_post", config.n_layer - 1)
    known = {f"blocks.{layer}.{name}": (layer + a, layer + m)
             for layer in range(config.n_layer) for name, (a, m) in streams.items()}
    if at not in known:
        raise Error(f"{at!r} is not the residual stream{_near(at, known)}")
    return known[at]


def _one_position(position, tokens):
    """A slice of one position, or of all."""
    if position is None:
        return slice(None)
    n = tokens.shape[1]
    _check_index("position", position, n, negative=True)
    return slice(position % n, position % n + 1)


def _check_index(what, index, n, negative=False):
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise Error(f"{what} is {index!r}: it must be an integer")
    if not (-n if negative else 0) <= index < n:
        raise Error(f"{what} {index} does not exist: there are {n}, counted from 0")


class AttentionWeights(NamedTuple):
    """One layer's attention, head by head: W_Q, W_K, W_V [h, d, e], W_O [h, e, d], biases.

    `shift` [d] is what the layer norm adds to what it passes on.
    """

    W_Q: np.ndarray
    W_K: np.ndarray
    W_V: np.ndarray
    W_O: np.ndarray
    b_Q: np.ndarray
    b_K: np.ndarray
    b_V: np.ndarray
    b_O: np.ndarray
    shift: np.ndarray


def _attention_weights(model, layer, folded=False):
    """Views of one layer's weights; `folded` with the layer norm's gain and shift inside them.

    Folded weights read normalised streams, which have mean 0, so that their own mean over d is
    taken out of W_Q, W_K, W_V as well, and that of what W_O writes: no logit difference changes.
    """
    _check_index("layer", layer, model.config.n_layer)
    block = _host(model.params["blocks"][layer])
    d, h = model.config.n_embd, model.config.n_head
    attn, norm = block["attn"], block["ln_1"]
    reading = attn["c_attn"]["w"].reshape(d, 3, h, d // h).transpose(1, 2, 0, 3)
    biases = attn["c_attn"]["b"].reshape(3, h, d // h)
    writing, b_o, shift = attn["c_proj"]["w"].reshape(h, d // h, d), attn["c_proj"]["b"], norm["b"]
    if folded:
        biases = biases + np.einsum("d,chde->che", shift, reading)
        reading = _centred(reading * norm["g"][:, None], axis=-2)
        writing, b_o, shift = _centred(writing), _centred(b_o), np.zeros_like(shift)
    return AttentionWeights(*reading, writing, *biases, b_o, shift)


def _centred(array, axis=-1):
    return array - array.mean(axis=axis, keepdims=True)


def _host(params):
    """Nested parameters on the host: the arrays themselves where they are NumPy's already."""
    if isinstance(params, Mapping):
        return {key: _host(value) for key, value in params.items()}
    return to_host(params)


# --- direct logit attribution and the lens ---------------------------------------------


@dataclass(frozen=True)
class Attribution:
    """What each part of the stream adds to a logit, to a difference of two, or to every logit.

    `values` [p, b] (or [p, b, v]) over `labels` sum to `total`, the model's own logits. The last
    part, "ln_final.b", is the final layer norm's shift. Units: logits.
    """

    labels: list[str]
    values: np.ndarray
    total: np.ndarray
    position: int
    tokens: np.ndarray
    bos: bool

    def __getitem__(self, label: str) -> np.ndarray:
        return _labelled(self, label)

    def heads(self, config: Config) -> np.ndarray:
        """The heads' part, [layer, head, b] (or [layer, head, b, v])."""
        found = [self.labels.index(name) for name in head_names(config)]
        return self.values[found].reshape(config.n_layer, config.n_head, *self.values.shape[1:])

    def layers(self, config: Config) -> tuple[list[str], np.ndarray]:
        """Parts summed by sub-layer: "embed", "pos_embed", "0_attn_out", "0_mlp_out", ..."""
        names = ["embed", "pos_embed"]
        names += [f"{n}_{s}_out" for n in range(config.n_layer) for s in ("attn", "mlp")]
        sums = np.zeros((len(names), *self.values.shape[1:]), self.values.dtype)
        for label, value in zip(self.labels[:-1], self.values, strict=False):
            found = re.fullmatch(r"(?:L(\d+)H\d+|b_O(\d+))|(?:MLP|L|b_out)(\d+)(?:N\d+)?", label)
            attn, mlp = (found[1] or found[2], found[3]) if found else (None, None)
            name = f"{attn}_attn_out" if attn else f"{mlp}_mlp_out" if mlp else label
            sums[names.index(name)] += value
        return names, sums

    def accumulated(self, config: Config) -> tuple[list[str], np.ndarray]:
        """The logit as the stream grows: "0_pre", "0_mid", "1_pre", ..., "final_post".

        The lens with the final scale frozen; without the final layer norm's shift.
        """
        _, sums = self.layers(config)
        sums = np.cumsum(sums, axis=0)[1:]
        return _stream_points(config), sums


def _stream_points(config):
    points = [f"{n}_{half}" for n in range(config.n_layer) for half in ("pre", "mid")]
    return [*points, "final_post"]


def attribution(
    model: Model,
    text_or_tokens: Any,
    answer: Any = None,
    wrong: Any = None,
    *,
    position: int = -1,
    neurons: Sequence[int] = (),
    folded: bool = False,
    bos: bool | None = None,
) -> Attribution:
    """Direct logit attribution at one position: every part of the stream read by the unembedding.

    For the logit of `answer`, minus that of `wrong` where given (one for all prompts, or one each;
    texts of one token, or ids), or for all tokens. The final layer norm divides by the scale of
    the whole stream, held fixed, so that it is linear and parts sum to the logit exactly. `neurons`
    and `folded` as in `decompose`. (Elhage et al. 2021; Wang et al. 2022, section 3.1.)
    """
    given = prompts(model, text_or_tokens, bos)
    if wrong is not None and answer is None:
        raise Error("wrong was given without answer: give both, or answer alone")
    parts = decompose(model, given, position=position, neurons=neurons, folded=folded)
    values = parts.values[:, :, 0]  # [p, b, d]
    norm, wte = _host(model.params["ln_f"]), to_host(model.params["wte"])
    stream = _centred(values.sum(axis=0))
    scale = np.sqrt((stream * stream).mean(axis=-1, keepdims=True) + gpt2_np.LAYER_NORM_EPSILON)
    read = _centred(values) / scale * norm["g"]
    read = np.concatenate([read, np.broadcast_to(norm["b"], (1, *stream.shape))])
    if answer is None:
        values = einsum("pbd,vd->pbv", read, wte)
    else:
        direction = wte[_answers(model, answer, len(stream))]
        if wrong is not None:
            direction = direction - wte[_answers(model, wrong, len(stream))]
        values = np.einsum("pbd,bd->pb", read, direction)
    where = position % given.tokens.shape[1]
    return Attribution([*parts.labels, "ln_final.b"], values, values.sum(axis=0), where,
                       given.tokens, given.bos)


@dataclass(frozen=True)
class Lens:
    """The stream at each point read as if it were the last: the logit lens (nostalgebraist 2020).

    `points` are "0_pre", "0_mid", ..., "final_post". `probability`, `rank` (0 is the best) of the
    target and `entropy` (nats) are [point, b, q]; `top` and `top_probability` [point, b, q, k].
    Targets are the tokens that follow, and at the last position the best of the model; or
    `answer`. `logits` [point, b, q, v] where asked for.
    """

    points: list[str]
    probability: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    top: np.ndarray
    top_probability: np.ndarray
    logits: np.ndarray | None
    targets: np.ndarray
    tokens: np.ndarray
    bos: bool


def lens(
    model: Model,
    text_or_tokens: Any,
    answer: Any = None,
    *,
    position: int | None = None,
    top: int = 5,
    frozen: bool = False,
    keep_logits: bool = False,
    bos: bool | None = None,
) -> Lens:
    """The logit lens before and after every attention, and at the end, at one position or all.

    Each point gets the final layer norm with its own statistics; with `frozen`, the scale of the
    finished stream, as attribution has it.
    """
    config, params = model.config, model.params
    given = prompts(model, text_or_tokens, bos)
    where = _one_position(position, given.tokens)
    streams = [activation_name(s, n) for n in range(config.n_layer)
               for s in ("resid_pre", "resid_mid")]
    streams.append(activation_name("resid_post", config.n_layer - 1))
    seen = run(model, given, [*streams, "ln_final.hook_scale"])
    if not 1 <= top <= config.n_vocab:
        raise Error(f"top is {top}: it must be from 1 to the vocabulary's {config.n_vocab}")
    if answer is None:
        targets = np.append(given.tokens[:, 1:], seen.logits[:, -1:].argmax(axis=-1), axis=1)
    else:
        targets = np.repeat(_answers(model, answer, len(given.tokens))[:, None],
                            given.tokens.shape[1], axis=1)
    targets = targets[:, where]
    xp = namespace(params["wte"])
    rows = []
    for name in streams:
        fixed = xp.asarray(seen["ln_final.hook_scale"][:, where]) if frozen else None
        x = xp.asarray(seen[name][:, where])
        tap = gpt2_np.Tap(lambda _, array, fixed=fixed: fixed if array.shape[-1] == 1 else None)
        normalized = gpt2_np.layer_norm(x, **params["ln_f"], tap=tap if frozen else gpt2_np.NO_TAP)
        logits = to_host(gpt2_np.unembed(normalized, params))
        rows.append((*_read_logits(logits, targets, top), logits if keep_logits else None))
    columns = list(zip(*rows, strict=True))
    return Lens(_stream_points(config), *map(np.stack, columns[:5]),
                np.stack(columns[5]) if keep_logits else None, targets, given.tokens, given.bos)


def _read_logits(logits, targets, top):
    """Target's probability and rank, entropy in nats, and the `top` ids with probabilities."""
    probabilities = gpt2_np.softmax(logits)
    of_target = np.take_along_axis(logits, targets[..., None], axis=-1)
    rank = (logits > of_target).sum(axis=-1)
    entropy = _entropy(probabilities)
    best = np.argpartition(logits, -top, axis=-1)[..., -top:]
    order = np.argsort(-np.take_along_axis(logits, best, axis=-1), axis=-1, kind="stable")
    best = np.take_along_axis(best, order, axis=-1)
    target = np.take_along_axis(probabilities, targets[..., None], axis=-1)[..., 0]
    return target, rank, entropy, best, np.take_along_axis(probabilities, best, axis=-1)


def _entropy(probabilities):
    """Over the last axis, in nats; 0 log 0 is 0."""
    tiny = np.finfo(probabilities.dtype).tiny
    return -(probabilities * np.log(np.maximum(probabilities, tiny))).sum(axis=-1)


# --- attention -------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """How each head attends on average, every array [layer, head].

    Shares of attention from 0 to 1: to the previous token, to earlier copies of the current token,
    to the tokens after them (induction), to the first position. `entropy` in nats, `distance` in
    positions back. NaN where no position of the prompts could show it.
    """

    previous_token: np.ndarray
    duplicate_token: np.ndarray
    induction: np.ndarray
    beginning: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    tokens: np.ndarray
    bos: bool


def heads(
    model: Model,
    text_or_tokens: Any = None,
    *,
    length: int | None = None,
    batch: int = 4,
    seed: int = 0,
    bos: bool | None = None,
) -> Attention:
    """Scores of every head, on random tokens that repeat once (unless text or tokens are given).

    `batch` rows of `length` tokens twice: 50, or as many as n_ctx holds.

    A score is the attention on the keys in question, averaged over the queries that have any:
    for previous tokens all but the first, for duplicate and induction those whose token has been
    seen before. Patterns are read layer by layer and not kept. (Olsson et al. 2022, "Head
    activation evaluators".)
    """
    if text_or_tokens is None:
        config = model.config
        length = length or min(50, (config.n_ctx - 1) // 2, (config.n_vocab - 2) // 2)
        text_or_tokens = repeated_tokens(model, length, batch, seed=seed, bos=bos).clean
    given = prompts(model, text_or_tokens, bos)
    masks = _key_masks(given.tokens)
    n = given.tokens.shape[1]
    distance = np.arange(n)[:, None] - np.arange(n)
    scores = {}

    def read(name, pattern):
        pattern = to_host(pattern)  # [b, h, q, k]
        row = {kind: _mean_share(pattern, mask) for kind, mask in masks.items()}
        row["entropy"] = _entropy(pattern).mean(axis=(0, 2))
        row["distance"] = np.einsum("bhqk,qk->h", pattern, distance) / (len(pattern) * n)
        scores[int(name.split(".")[1])] = row

    read.wants = lambda name: name.endswith("hook_pattern")
    gpt2_np.forward(model.params, model.config, given.tokens, tap=read, last_only=True)
    columns = {kind: np.stack([scores[layer][kind] for layer in sorted(scores)])
               for kind in scores[0]}
    return Attention(**columns, tokens=given.tokens, bos=given.bos)


def _key_masks(tokens):
    """Which keys each query would attend to, [b, q, k], by kind of head."""
    n = tokens.shape[1]
    earlier = np.tri(n, n, -1, dtype=bool)
    same = (tokens[:, :, None] == tokens[:, None, :]) & earlier
    after_same = np.zeros_like(same)
    after_same[:, :, 1:] = same[:, :, :-1]
    shape = tokens.shape[0], n, n
    return {
        "previous_token": np.broadcast_to(np.eye(n, k=-1, dtype=bool), shape),
        "duplicate_token": same,
        "induction": after_same,
        "beginning": np.broadcast_to((np.arange(n) == 0) & (np.arange(n) > 0)[:, None], shape),
    }


def _mean_share(pattern, mask):
    """Attention [b, h, q, k] on masked keys, averaged over queries that have any: [h]."""
    queries = mask.any(axis=-1)
    if not queries.any():
        return np.full(pattern.shape[1], np.nan)
    return np.einsum("bhqk,bqk->h", pattern, mask.astype(pattern.dtype)) / queries.sum()


# --- metrics ---------------------------------------------------------------------------


def logit_difference(model: Model, answer: Any, wrong: Any) -> Metric:
    """Metric: logit of `answer` minus that of `wrong` at the last position, [b, q, v] -> [b].

    Each is one token (text or id) for all prompts, or one for each.
    """
    signs = ((answer, 1.0), (wrong, -1.0))
    return _logit_metric(model, signs)


def _logit_metric(model, signs):
    signs = [(_ids(model, tokens), sign) for tokens, sign in signs]

    def metric(logits):
        rows = np.arange(len(logits))
        return sum(sign * logits[rows, -1, _one_each(ids, len(rows))] for ids, sign in signs)

    def gradient(logits):  # d metric[b] / d logits[b, last, v]
        result = np.zeros((len(logits), logits.shape[-1]), logits.dtype)
        for ids, sign in signs:
            np.add.at(result, (np.arange(len(logits)), _one_each(ids, len(logits))), sign)
        return result

    metric.gradient = gradient
    return metric


def log_probability(model: Model, answer: Any) -> Metric:
    """Metric: log-probability (nats) of `answer` at the last position, [b, q, v] -> [b]."""
    ids = _ids(model, answer)

    def metric(logits):
        last = logits[:, -1]
        return last[np.arange(len(last)), _one_each(ids, len(last))] - _log_sum_exp(last)

    def gradient(logits):
        result = -gpt2_np.softmax(logits[:, -1])
        result[np.arange(len(result)), _one_each(ids, len(result))] += 1
        return result

    metric.gradient = gradient
    return metric


def repeat_loss(tokens: np.ndarray, n: int) -> Metric:
    """Metric: mean loss (nats) of the last `n` tokens given all before, [b, q, v] -> [b].

    Needs the logits of all positions: sweeps want `last_only=False` with it.
    """
    tokens = np.asarray(tokens)
    if not 1 <= n < tokens.shape[-1]:
        raise Error(f"the loss of {n} tokens was asked for: of {tokens.shape[-1]}, from 1 to "
                    f"{tokens.shape[-1] - 1} come after another")
    targets = tokens[:, -n:, None]

    def metric(logits):
        before = logits[:, -n - 1 : -1]
        right = np.take_along_axis(before, np.resize(targets, (*before.shape[:2], 1)), axis=-1)
        return (_log_sum_exp(before) - right[..., 0]).mean(axis=-1)

    return metric


def _log_sum_exp(x):
    best = x.max(axis=-1)
    return best + np.log(np.exp(x - best[..., None]).sum(axis=-1))


def _measured(metric, logits, n):
    """The metric of logits [b, q, v], checked to be one number per prompt."""
    values = np.asarray(metric(logits), float)
    if values.shape != (n,):
        raise Error(f"the metric gave shape {values.shape} for {n} prompts: it must give one "
                    f"number for each, ({n},)")
    return values


# --- interventions ---------------------------------------------------------------------


def _index(array, name, head, position):
    """Where head and position are in the activation of that name; None means all."""
    kind, xp = name.rpartition("hook_")[2], namespace(array)
    everything = slice(None)
    head, position = (
        everything if i is None else xp.asarray(np.array(i)) if isinstance(i, list) else i
        for i in (head, position)
    )
    if kind in ("pattern", "attn_scores"):
        return everything, head, position
    if kind in _BY_HEAD:
        return everything, position, head
    if head is not everything:
        raise Error(f"{name} has no heads: leave head out")
    return everything, position


def patch(values: Any, head: Any = None, position: Any = None) -> Edit:
    """Edit for `run`: put `values` (an activation of the same shape) in at a head and position.

    An int or slice each, a list for one of the two, or None for all. For attention patterns the
    position is the query's.
    """

    def edit(array, name):
        index = _index(array, name, head, position)
        new = namespace(array).asarray(values)
        if new.shape[1:] != array.shape[1:] or new.shape[0] not in (1, array.shape[0]):
            raise Error(f"the values to patch into {name} have shape {new.shape}, "
                        f"they must have {array.shape}")
        array[index] = new[index]

    return edit


def zero(head: Any = None, position: Any = None) -> Edit:
    """Edit for `run`: zero-ablation of a head and position, or of all."""

    def edit(array, name):
        array[_index(array, name, head, position)] = 0

    return edit


def knock_out(queries: Any, keys: Any, head: Any = None) -> Edit:
    """Edit for `run` on hook_attn_scores: these queries can no longer attend to these keys.

    Scores become -inf, and what is left of the attention is normalised again (Geva et al. 2023,
    "attention knockout"). Raises Error where a query would be left with no key at all.
    """

    def edit(array, name):
        if not name.endswith("hook_attn_scores"):
            raise Error(f"knock_out edits hook_attn_scores, not {name}")
        scores = to_host(array)
        n, n_heads = scores.shape[-1], scores.shape[1]
        chosen = np.arange(n_heads)[slice(None) if head is None else np.atleast_1d(head)]
        cut = np.ix_(np.arange(len(scores)), chosen, np.arange(n)[_axis(queries)],
                     np.arange(n)[_axis(keys)])
        scores[cut] = -np.inf
        if np.isneginf(scores).all(axis=-1).any():
            raise Error(f"knock_out leaves a query of {name} without any key: spare one")
        return scores

    return edit


def _axis(index):
    return index if isinstance(index, slice) else np.atleast_1d(index)


def parse_node(config: Config, node: Any) -> tuple[int, int | None]:
    """"L9H6", "9.6" or (9, 6) as a head (9, 6); "MLP3" as (3, None). Error where there is none."""
    found = re.fullmatch(r"(?:L?(\d+)[H.](\d+))|MLP(\d+)", node) if isinstance(node, str) else None
    if found:
        node = (int(found[3]), None) if found[3] else (int(found[1]), int(found[2]))
    if not (isinstance(node, tuple) and len(node) == 2):
        raise Error(f"{node!r} is not a head or MLP: write 'L9H6', '9.6', (9, 6) or 'MLP3'")
    _check_index("layer", node[0], config.n_layer)
    if node[1] is not None:
        _check_index(f"layer {node[0]}'s head", node[1], config.n_head)
    return node


def node_names(config: Config) -> list[str]:
    """Every head and MLP, layer by layer: "L0H0", ..., "MLP0", "L1H0", ..."""
    h = config.n_head
    return [name for n in range(config.n_layer)
            for name in [*head_names(config)[n * h : n * h + h], f"MLP{n}"]]


MODES = ("zero", "mean", "resample")


def _replacements(model, given, mode, reference, names):
    """What ablation puts in: activations [1 or b, q, ...] by name, and shared first positions."""
    if mode not in MODES:
        raise Error(f"unknown ablation {mode!r}: choose one of {', '.join(MODES)}")
    if mode == "zero":
        return None, 0
    if reference is None:
        raise Error(f"{mode}-ablation needs reference prompts: give reference=")
    given, reference = prompts(model, given), prompts(model, reference)
    _same_length(given, reference, "reference prompts")
    seen = run(model, reference, names, last_only=True).activations
    if mode == "mean":
        return {name: array.mean(axis=0, keepdims=True) for name, array in seen.items()}, 0
    if len(reference.tokens) not in (1, len(given.tokens)):
        raise Error(f"{len(reference.tokens)} reference prompts for {len(given.tokens)} prompts: "
                    "resampling needs one for each, or one for all")
    return seen, _shared(given, reference)


def _same_length(a, b, what):
    if a.tokens.shape[1] != b.tokens.shape[1]:
        raise Error(f"the prompts have {a.tokens.shape[1]} tokens and the {what} "
                    f"{b.tokens.shape[1]}: they are compared position by position")


def _shared(a, b):
    """How many first positions have the same token in every pair of prompts."""
    differ = (a.tokens != b.tokens).any(axis=0)
    return int(differ.argmax()) if differ.any() else a.tokens.shape[1]


def ablated(
    model: Model,
    nodes: Iterable[Any],
    mode: str = "zero",
    *,
    text_or_tokens: Any = None,
    reference: Any = None,
) -> dict[str, Edit]:
    """Edits for `run` that ablate heads and MLPs ("L5H1", "5.1", (5, 1), "MLP3").

    "zero"; "mean" puts in the mean over the `reference` prompts, position by position; "resample"
    their activations, prompt by prompt. Reference prompts must be as long as those of the run.
    """
    parsed = [parse_node(model.config, node) for node in nodes]
    names = sorted({activation_name("z" if h is not None else "mlp_out", n) for n, h in parsed})
    given = reference if text_or_tokens is None else text_or_tokens
    source, _ = _replacements(model, given, mode, reference, names)
    edits: dict[str, Edit] = {}
    for name in names:
        layer = int(name.split(".")[1])
        chosen = [h for n, h in parsed if n == layer and (h is not None) == name.endswith("z")]
        head = chosen if name.endswith("z") else None
        edits[name] = zero(head) if source is None else patch(source[name], head)
    return edits


# --- sweeps ----------------------------------------------------------------------------

# Sub-layers after layer's own attention (0) from which a patched activation changes the stream.
_START = {"resid_pre": 0, "resid_mid": 1, "resid_post": 2, "attn_out": 1, "mlp_out": 2,
          "q": 1, "k": 1, "v": 1, "z": 1, "pattern": 1}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """One intervention after another: the metric each leaves, over `axes`.

    `per_prompt` [*axes, b]; `base` [b] without intervention and `source` [b] (None for ablations)
    of the prompts that the activations came from.
    """

    what: str
    axes: tuple[str, ...]
    per_prompt: np.ndarray
    base: np.ndarray
    source: np.ndarray | None
    tokens: np.ndarray
    bos: bool

    @property
    def values(self) -> np.ndarray:
        """The metric, averaged over prompts: [*axes]."""
        return self.per_prompt.mean(axis=-1)

    @property
    def effect(self) -> np.ndarray:
        """The metric minus the unpatched metric: [*axes]."""
        return self.values - self.base.mean()

    @property
    def normalized(self) -> np.ndarray:
        """The effect as a share of source minus base (ablations: of base): 0 none, 1 all of it.

        Raises Error where there is no difference to have a share of.
        """
        whole = self.base.mean() if self.source is None else self.source.mean() - self.base.mean()
        if whole == 0:
            raise Error("the metric is the same on both prompts: there is no effect to have a "
                        "share of; look at the prompts and the answers")
        return self.effect / whole


def patching(
    model: Model,
    base: Any,
    source: Any,
    metric: Metric,
    what: str = "z",
    *,
    by_position: bool | None = None,
    layers: Sequence[int] | None = None,
    last_only: bool = True,
    progress: bool = False,
    bos: bool | None = None,
) -> Sweep:
    """Activation patching: run `base` with one activation at a time from `source`.

    `what` is resid_pre, resid_mid, resid_post, attn_out, mlp_out (axes layer, position) or per
    head q, k, v, z, pattern (axes layer, head, and position where asked for; a pattern's is the
    query's). `metric` maps logits [b, q, v] to [b]; it sees the last position only unless
    `last_only` is off. Layers below the patch and positions before it are not computed again.
    (Meng et al. 2022; Wang et al. 2022; Heimersheim & Nanda 2024 on how to read the result.)
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    _same_length(base, source, "source prompts")
    if len(source.tokens) not in (1, len(base.tokens)):
        raise Error(f"{len(source.tokens)} source prompts for {len(base.tokens)} prompts: "
                    "give one for each, or one for all")
    names = _patched_names(what, model.config)
    seen = run(model, source, names, last_only=last_only)
    sweep = _sweep(model, base, seen.activations, metric, what, by_position, layers,
                   _shared(base, source), last_only, progress)
    logits = np.broadcast_to(seen.logits, (len(base.tokens), *seen.logits.shape[1:]))
    return replace(sweep, source=_measured(metric, logits, len(base.tokens)))


def ablation(
    model: Model,
    text_or_tokens: Any,
    metric: Metric,
    what: str = "z",
    mode: str = "zero",
    reference: Any = None,
    *,
    by_position: bool | None = None,
    layers: Sequence[int] | None = None,
    last_only: bool = True,
    progress: bool = False,
    bos: bool | None = None,
) -> Sweep:
    """Ablate one head (or MLP, attention, ...) at a time; as `patching`, with what `mode` puts in.

    "zero"; "mean" over the `reference` prompts, position by position; "resample" their
    activations, prompt by prompt.
    """
    given = prompts(model, text_or_tokens, bos)
    names = _patched_names(what, model.config)
    source, shared = _replacements(model, given, mode, reference, names)
    return _sweep(model, given, source, metric, what, by_position, layers, shared, last_only,
                  progress)


def _patched_names(what, config):
    if what not in _START:
        near = difflib.get_close_matches(str(what), _START, n=2) or _START
        raise Error(f"cannot patch {what!r}: choose {' or '.join(near)}")
    return [activation_name(what, layer) for layer in range(config.n_layer)]


class _Base(NamedTuple):
    """An unpatched run and what sweeps restart from."""

    run: Run
    n_layer: int

    def stream(self, start):
        """The residual stream before sub-layer `start`, [b, q, d]."""
        if start >= 2 * self.n_layer:
            return self.run[activation_name("resid_post", self.n_layer - 1)]
        return self.run[activation_name(("resid_pre", "resid_mid")[start % 2], start // 2)]

    def keys_values(self, first, copies, layer):
        """Keys and values of the positions before `first`, for `copies` of the prompts."""
        return (np.tile(self.run[activation_name(name, layer)][:, :first], (copies, 1, 1, 1))
                for name in "kv")


def _base_run(model, given, extra=(), edits=None, last_only=True):
    config = model.config
    names = {activation_name(s, n) for n in range(config.n_layer)
             for s in ("resid_pre", "resid_mid", "k", "v", *extra)}
    names.add(activation_name("resid_post", config.n_layer - 1))
    seen = run(model, given, sorted(names), edits=edits, last_only=last_only)
    return _Base(seen, config.n_layer)


class _Cell(NamedTuple):
    """One intervention: where its value goes, and what it adds to the stream from where on."""

    index: tuple[int, ...]
    start: int
    first: int
    change: Callable[[], np.ndarray]  # [b, q, d], 0 before `first`


def _sweep(model, given, source, metric, what, by_position, layers, shared, last_only, progress,
           edits=None, tap=None, chosen=None):
    """Every cell of a sweep; `source` None is zeros. `tap(copies, first)` keeps `edits` up.

    Cells (index tuples) outside `chosen` stay NaN.
    """
    config = model.config
    by_head = what in _BY_HEAD
    by_position = (not by_head) if by_position is None else by_position
    extra = {what} | ({"q", "k", "v", "pattern"} if what in ("q", "k", "v", "pattern") else set())
    base = _base_run(model, given, extra, edits, last_only)
    axes = ["layer", *["head"] * by_head, *["position"] * by_position]
    sizes = {"layer": config.n_layer, "head": config.n_head, "position": given.tokens.shape[1]}
    layers = range(config.n_layer) if layers is None else layers
    for layer in layers:
        _check_index("layer", layer, config.n_layer)
    measured = _measured(metric, base.run.logits, len(given.tokens))
    per_prompt = np.full((*(sizes[a] for a in axes), len(given.tokens)), np.nan)
    cells = []
    for layer in layers:
        others = [range(sizes[a]) for a in axes[1:]]
        for index in np.ndindex(*map(len, others)):
            if chosen is not None and (layer, *index) not in chosen:
                continue
            at = dict(zip(axes, (layer, *index), strict=True))
            first = max(shared, at.get("position", 0))
            if at.get("position", shared) < shared or first >= sizes["position"]:
                per_prompt[(layer, *index)] = measured  # nothing differs there
                continue
            change = functools.partial(_change, model, base, source, what, layer,
                                       at.get("head"), at.get("position"), shared)
            cells.append(_Cell((layer, *index), 2 * layer + _START[what], first, change))
    for cell, values in _run_cells(model, base, cells, metric, last_only, progress, tap):
        per_prompt[cell.index] = values
    return Sweep(what, tuple(axes), per_prompt, measured, None, given.tokens, given.bos)


def _change(model, base, source, what, layer, head, position, shared):
    """What a patch adds to the stream, [b, q, d]: from the stored activations, no layer is run."""
    name = activation_name(what, layer)
    old = base.run[name]
    new = np.zeros_like(old) if source is None else source[name]
    pattern = what == "pattern"  # [b, h, q, k]
    if head is not None:
        old, new = (a[:, head] if pattern else a[:, :, head] for a in (old, new))
    kept = np.ones((1, old.shape[1], 1), bool)
    if position is None:
        kept[:, :shared] = False
    else:
        kept[:, np.arange(old.shape[1]) != position] = False
    new = np.where(kept, new, old)  # [b, q, d | e | k]
    if head is None:
        return new - old

    def other(kind):
        return base.run[activation_name(kind, layer)][:, :, head]  # [b, q, e]

    if what == "z":
        change = new - old
    elif what == "v":
        change = np.einsum("bqk,bke->bqe", base.run[activation_name("pattern", layer)][:, head],
                           new - old, optimize=True)
    elif what == "pattern":
        change = np.einsum("bqk,bke->bqe", new - old, other("v"), optimize=True)
    else:
        q, k = (new, other("k")) if what == "q" else (other("q"), new)
        scores = np.einsum("bqe,bke->bqk", q / math.sqrt(q.shape[-1]), k, optimize=True)
        scores[:, ~np.tri(scores.shape[1], dtype=bool)] = -np.inf
        difference = gpt2_np.softmax(scores) - base.run[activation_name("pattern", layer)][:, head]
        change = np.einsum("bqk,bke->bqe", difference, other("v"), optimize=True)
    return change @ _attention_weights(model, layer).W_O[head]


def _run_cells(model, base, cells, metric, last_only, progress, tap=None):
    """(cell, metric per prompt) of every cell, many cells to a batch.

    Cells that start at the same sub-layer and close positions share a batch; it starts at the
    first of their positions, from the stored stream plus each cell's change.
    """
    n, length = base.run.tokens.shape
    cells = sorted(cells, key=lambda cell: (cell.start, -cell.first))
    with _progress(len(cells), progress) as bar:
        while cells:
            start, first = cells[0].start, cells[0].first
            count = 0
            for cell in cells:
                rows = (count + 1) * n * (length - cell.first)
                if cell.start != start or (count and rows > ROWS_AT_ONCE):
                    break
                first, count = cell.first, count + 1
            group, cells = cells[:count], cells[count:]
            stream = base.stream(start)[:, first:]
            x = np.concatenate([stream + cell.change()[:, first:] for cell in group])
            before = functools.partial(base.keys_values, first, count)
            here = gpt2_np.Tap(tap(count, first)) if tap else gpt2_np.NO_TAP
            logits = rest(model, x, start, first, before, here, last_only)
            for cell, own in zip(group, logits.reshape(count, n, *logits.shape[1:]), strict=True):
                if not last_only:
                    own = np.concatenate([base.run.logits[:, :first], own], axis=1)
                yield cell, _measured(metric, own, n)
            bar.update(count)


@contextlib.contextmanager
def _progress(total, shown):
    """A progress bar on stderr, or nothing."""
    if not shown:
        yield _NoBar
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="patch", file=sys.stderr) as bar:
        yield bar


class _NoBar:
    @staticmethod
    def update(_):
        pass


def path_patching(
    model: Model,
    base: Any,
    source: Any,
    metric: Metric,
    receivers: str | Sequence[tuple[int, int, str]] = "logits",
    *,
    through_mlps: bool = True,
    position: int | None = None,
    last_only: bool = True,
    progress: bool = False,
    bos: bool | None = None,
) -> Sweep:
    """Path patching: what each head sends straight to the receivers, axes layer, head.

    One sender at a time, its output comes from `source` (at one `position` or all), every other
    head is held as in `base`, and only the `receivers` see the difference: "logits", or the q, k
    or v of heads, as (layer, head, "q"). MLPs between are computed anew, or held too where
    `through_mlps` is off. (Wang et al. 2022, section 3.1 and appendix B.)
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    _same_length(base, source, "source prompts")
    config, n = model.config, len(base.tokens)
    receivers = _receivers(config, receivers)
    if position is not None:
        position = _one_position(position, base.tokens).start
    stored = _base_run(model, base, ("z", "q"), last_only=last_only)
    names = [activation_name("z", layer) for layer in range(config.n_layer)]
    seen = run(model, source, names, last_only=last_only)
    measured = _measured(metric, stored.run.logits, n)
    per_prompt = np.repeat(measured[None], config.n_layer * config.n_head, axis=0)
    per_prompt = per_prompt.reshape(config.n_layer, config.n_head, n)
    shared = max(_shared(base, source), position or 0)
    ends = {layer for layer, _, _ in receivers} or {config.n_layer}
    with _progress(config.n_layer, progress) as bar:
        for layer in range(config.n_layer):
            if layer < max(ends) and shared < base.tokens.shape[1]:
                sent = np.concatenate([
                    _change(model, stored, seen.activations, "z", layer, head, position, shared)
                    for head in range(config.n_head)
                ])
                streams = _direct_streams(model, stored, sent, layer, ends, through_mlps)
                logits = _receive(model, stored, streams, receivers, layer, last_only)
                for head, own in enumerate(logits.reshape(config.n_head, n, *logits.shape[1:])):
                    per_prompt[layer, head] = _measured(metric, own, n)
            bar.update(1)
    from_source = np.broadcast_to(seen.logits, (n, *seen.logits.shape[1:]))
    return Sweep("path", ("layer", "head"), per_prompt, measured,
                 _measured(metric, from_source, n), base.tokens, base.bos)


def _receivers(config, receivers):
    """[] for the logits, else checked (layer, head, "q" | "k" | "v")."""
    if isinstance(receivers, str):
        if receivers != "logits":
            raise Error(f"unknown receiver {receivers!r}: give 'logits' or a list such as "
                        "[(9, 6, 'q')]")
        return []
    for receiver in receivers:
        if len(receiver) != 3 or receiver[2] not in ("q", "k", "v"):
            raise Error(f"unknown receiver {receiver!r}: write (layer, head, 'q'), 'k' or 'v'")
        parse_node(config, tuple(receiver[:2]))
    return list(receivers)


def _direct_streams(model, stored, sent, sender, ends, through_mlps):
    """The stream [c b, q, d] before each layer of `ends`, with `sent` added and no head moving."""
    copies = len(sent) // len(stored.run.tokens)
    streams = {}
    for layer in range(sender, max(ends) + 1):
        if layer in ends and layer > sender:
            streams[layer] = np.tile(stored.stream(2 * layer), (copies, 1, 1)) + sent
        if through_mlps and layer < max(ends):
            mid = stored.stream(2 * layer + 1)
            block, xp = model.params["blocks"][layer], namespace(model.params["wte"])

            def mlp_out(x, block=block, xp=xp):
                x = gpt2_np.layer_norm(xp.asarray(x), **block["ln_2"], tap=gpt2_np.NO_TAP)
                return to_host(gpt2_np.mlp(x, **block["mlp"], tap=gpt2_np.NO_TAP))

            changed = mlp_out(np.tile(mid, (copies, 1, 1)) + sent)
            sent = sent + changed - np.tile(mlp_out(mid), (copies, 1, 1))
    return streams


def _receive(model, stored, streams, receivers, sender, last_only):
    """Logits of the base run where only the receivers see the changed streams."""
    n_layer, xp = model.config.n_layer, namespace(model.params["wte"])
    if not receivers:
        return rest(model, streams[n_layer], 2 * n_layer, last_only=last_only)
    edits: dict[str, list] = {}
    for layer, head, kind in receivers:
        if layer > sender:
            norm, weights = model.params["blocks"][layer]["ln_1"], _attention_weights(model, layer)
            x = gpt2_np.layer_norm(xp.asarray(streams[layer]), **norm, tap=gpt2_np.NO_TAP)
            which = "qkv".index(kind)
            new = to_host(x) @ weights[which][head] + weights[4 + which][head]
            edits.setdefault(activation_name(kind, layer), []).append((head, new))
    lowest = min(layer for layer, _, _ in receivers if layer > sender)
    copies = len(streams[lowest]) // len(stored.run.tokens)

    def receive(name, array):
        array = array.copy()
        for head, new in edits[name]:
            array[:, :, head] = xp.asarray(new)
        return array

    receive.wants = edits.__contains__
    x = np.tile(stored.stream(2 * lowest), (copies, 1, 1))
    return rest(model, x, 2 * lowest, tap=gpt2_np.Tap(receive), last_only=last_only)


# --- weights ---------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRank:
    """A matrix [n, m] as a product left [n, r] @ right [r, m] that is not multiplied out.

    Leading axes, where there are any, are batches. Row vectors multiply from the left, as in the
    model: x @ W_V @ W_O. What TransformerLens calls FactoredMatrix.
    """

    left: np.ndarray
    right: np.ndarray
    __array_ufunc__ = None  # array @ LowRank is our __rmatmul__, not NumPy's

    def __post_init__(self):
        if self.left.shape[-1] != self.right.shape[-2]:
            raise Error(f"factors of shape {self.left.shape} and {self.right.shape} do not meet")

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def T(self) -> LowRank:
        return LowRank(self.right.swapaxes(-1, -2), self.left.swapaxes(-1, -2))

    def full(self) -> np.ndarray:
        """The product, [n, m]: for a full circuit of 124M that is 10 GB."""
        return self.left @ self.right

    def entries(self, rows: Any, columns: Any) -> np.ndarray:
        """The entries of some rows and columns, [rows, columns]."""
        return self.left[..., np.atleast_1d(rows), :] @ self.right[..., :, np.atleast_1d(columns)]

    def __matmul__(self, other: Any) -> LowRank:
        """With a matrix [m, k] or another LowRank, whose rank the product then keeps if smaller."""
        if not isinstance(other, LowRank):
            return LowRank(self.left, self.right @ other)
        middle = self.right @ other.left
        if self.left.shape[-1] <= other.left.shape[-1]:
            return LowRank(self.left, middle @ other.right)
        return LowRank(self.left @ middle, other.right)

    def __rmatmul__(self, other: np.ndarray) -> LowRank:
        return LowRank(other @ self.left, self.right)

    def eigenvalues(self) -> np.ndarray:
        """The r that can differ from 0, complex, of a square matrix: those of right @ left."""
        if self.shape[-2] != self.shape[-1]:
            raise Error(f"a matrix of shape {self.shape} has no eigenvalues: it is not square")
        return np.linalg.eigvals(self.right @ self.left)

    def svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """u [n, r], singular values [r] from the largest, vt [r, m], by QR of both factors."""
        q_left, r_left = np.linalg.qr(self.left)
        q_right, r_right = np.linalg.qr(self.right.swapaxes(-1, -2))
        u, values, vt = np.linalg.svd(r_left @ r_right.swapaxes(-1, -2), full_matrices=False)
        return q_left @ u, values, vt @ q_right.swapaxes(-1, -2)

    def norm(self) -> np.ndarray:
        """Frobenius norm."""
        return np.linalg.norm(_triangle(self.left)
                              @ _triangle(self.right.swapaxes(-1, -2)).swapaxes(-1, -2),
                              axis=(-2, -1))


def _triangle(matrix):
    return np.linalg.qr(matrix, mode="r")


def _head_weights(model, layer, head, folded):
    weights = _attention_weights(model, layer, folded)
    _check_index(f"layer {layer}'s head", head, model.config.n_head)
    return weights, head


def ov(model: Model, layer: int, head: int, folded: bool = False) -> LowRank:
    """W_V W_O [d, d]: what a head writes for what it attends to (Elhage et al. 2021).

    `folded` puts the layer norm's gain into W_V and takes means out that no difference of logits
    sees, as TransformerLens's default processing does; likewise in all that follows.
    """
    weights, head = _head_weights(model, layer, head, folded)
    return LowRank(weights.W_V[head], weights.W_O[head])


def qk(model: Model, layer: int, head: int, folded: bool = False) -> LowRank:
    """W_Q W_Kᵀ [d, d]: what a query looks for in a key, before division by √e."""
    weights, head = _head_weights(model, layer, head, folded)
    return LowRank(weights.W_Q[head], weights.W_K[head].T)


def _embedding(model, folded, extended):
    """W_E [v, d]; `extended` adds to each token what the first MLP makes of it alone."""
    wte = to_host(model.params["wte"])
    if extended:
        block = _host(model.params["blocks"][0])
        x = gpt2_np.layer_norm(wte[None], **block["ln_2"], tap=gpt2_np.NO_TAP)
        wte = wte + gpt2_np.mlp(x, **block["mlp"], tap=gpt2_np.NO_TAP)[0]
    return _centred(wte) if folded else wte


def _unembedding(model, folded):
    """W_U [d, v]; `folded` with the final gain, and centred over d and v."""
    w = to_host(model.params["wte"]).T
    if not folded:
        return w
    return _centred(_centred(w * to_host(model.params["ln_f"]["g"])[:, None], axis=0))


def full_ov(
    model: Model, layer: int, head: int, folded: bool = False, extended: bool = False
) -> LowRank:
    """W_E W_V W_O W_U [v, v]: how attending to a token changes the logit of each token.

    `extended` takes W_E plus the first MLP's output on it, which is what later layers read.
    """
    embedding, unembedding = _embedding(model, folded, extended), _unembedding(model, folded)
    return embedding @ ov(model, layer, head, folded) @ unembedding


def full_qk(
    model: Model, layer: int, head: int, folded: bool = False, extended: bool = False
) -> LowRank:
    """W_E W_Q W_Kᵀ W_Eᵀ [v, v]: which token (column) a token (row) attends to."""
    embedding = _embedding(model, folded, extended)
    return embedding @ qk(model, layer, head, folded) @ embedding.T


def copying_scores(model: Model, folded: bool = True, extended: bool = False) -> np.ndarray:
    """Σ λ / Σ |λ| over the eigenvalues of each head's full OV circuit, [layer, head].

    1 means that attending to any token raises that token's own logit; -1 that it lowers it.
    (Elhage et al. 2021, "Copying / primitive in-context learning".)
    """
    config = model.config
    # Eigenvalues of E W_V W_O U are those of W_O (U E) W_V: U E [d, d] serves every head.
    gram = _unembedding(model, folded) @ _embedding(model, folded, extended)
    scores = np.zeros((config.n_layer, config.n_head))
    for layer in range(config.n_layer):
        weights = _attention_weights(model, layer, folded)
        eigenvalues = np.linalg.eigvals(weights.W_O @ gram @ weights.W_V)
        scores[layer] = (eigenvalues.sum(axis=-1) / np.abs(eigenvalues).sum(axis=-1)).real
    return scores


def singular_tokens(
    model: Model, layer: int, head: int, n: int = 3, top: int = 8, folded: bool = True
) -> list[dict[str, Any]]:
    """The largest singular directions of a head's OV circuit and the tokens at their two ends.

    One dict each: "value"; "reads" and "writes", (token ids, scores) of the `top` tokens whose
    embedding lies furthest along the input direction, and whose logit the output raises most.
    Both signs of a singular vector say the same; the one that reads more strongly is given.
    """
    embedding, unembedding = _embedding(model, folded, False), _unembedding(model, folded)
    u, values, vt = ov(model, layer, head, folded).svd()
    found = []
    for i in range(min(n, len(values))):
        reads, writes = embedding @ u[:, i], vt[i] @ unembedding
        sign = 1 if reads.max() >= -reads.min() else -1
        found.append({"value": float(values[i]), "reads": _top(sign * reads, top),
                      "writes": _top(sign * writes, top)})
    return found


def _top(scores, n):
    """Ids and scores of the n largest."""
    best = np.argsort(-scores, kind="stable")[:n]
    return best, scores[best]


def neuron_tokens(
    model: Model, layer: int, neuron: int, top: int = 8, folded: bool = True
) -> dict[str, Any]:
    """The tokens whose embedding a neuron reads most, and those whose logits it raises and lowers.

    "reads", "raises", "lowers": (token ids, scores). (Geva et al. 2021, "Transformer Feed-Forward
    Layers Are Key-Value Memories"; Geva et al. 2022 on values as logits.)
    """
    config = model.config
    _check_index("layer", layer, config.n_layer)
    _check_index("neuron", neuron, 4 * config.n_embd)
    block = _host(model.params["blocks"][layer])
    reading, writing = block["mlp"]["c_fc"]["w"][:, neuron], block["mlp"]["c_proj"]["w"][neuron]
    if folded:
        reading, writing = _centred(reading * block["ln_2"]["g"]), _centred(writing)
    logits = writing @ _unembedding(model, folded)
    return {"reads": _top(_embedding(model, folded, False) @ reading, top),
            "raises": _top(logits, top), "lowers": _top(-logits, top)}


def composition(
    model: Model, kind: str, *, folded: bool = False, baseline: bool = True, seed: int = 0
) -> np.ndarray:
    """How much of what one head writes the next reads, [layer, head, later layer, later head].

    ‖A B‖ / (‖A‖ ‖B‖) (Frobenius), A the OV circuit of the first, B of the second: QK for `kind`
    "Q", QKᵀ for "K", OV for "V". `baseline` subtracts its mean for random matrices of the same
    shapes. 0 where the second head is not in a later layer. (Elhage et al. 2021, "Composition".)
    """
    if kind not in ("Q", "K", "V"):
        raise Error(f"unknown composition {kind!r}: choose 'Q', 'K' or 'V'")
    config = model.config
    layers = [_attention_weights(model, n, folded) for n in range(config.n_layer)]

    def stack(field):  # [l h, ...]
        return np.concatenate([getattr(layer, field) for layer in layers])

    first = LowRank(stack("W_V"), stack("W_O"))
    q, k = stack("W_Q"), stack("W_K")
    second = {"Q": LowRank(q, k.swapaxes(1, 2)), "K": LowRank(k, q.swapaxes(1, 2)), "V": first}
    h = config.n_head
    scores = np.zeros((len(q), len(q)))
    for layer in range(config.n_layer - 1):
        rows, later = slice(layer * h, layer * h + h), slice(layer * h + h, None)
        scores[rows, later] = _composed(
            LowRank(first.left[rows], first.right[rows]),
            LowRank(second[kind].left[later], second[kind].right[later]),
        )
        if baseline:
            scores[rows, later] -= _random_composition(config.n_embd, config.n_embd // h, seed)
    return scores.reshape(config.n_layer, h, config.n_layer, h)


def _composed(first, second):
    """‖A B‖ / (‖A‖ ‖B‖) of every pair from two batches, [a, b], through r x r matrices only."""
    outer = _triangle(first.left) @ first.right  # [a, r, d]; orthogonal factors change no norm
    inner = second.left @ _triangle(second.right.swapaxes(1, 2)).swapaxes(1, 2)  # [b, d, r]
    products = np.stack([np.linalg.norm(one @ inner, axis=(1, 2)) for one in outer])
    return products / first.norm()[:, None] / second.norm()


@functools.cache
def _random_composition(d, e, seed, n=16):
    """Mean composition of `n` pairs of products of Gaussian [d, e] and [e, d]; near 1/√d."""
    rng = np.random.default_rng(seed)

    def random():
        return LowRank(rng.standard_normal((n, d, e)), rng.standard_normal((n, e, d)))

    return float(_composed(random(), random()).mean())


# --- uncertainty -----------------------------------------------------------------------


class Estimate(NamedTuple):
    """A value and the interval that holds it in 95% of bootstrap resamples."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    statistic: Callable[[np.ndarray], Any],
    n: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """`statistic(indices)` of all n items, with its percentile interval over resampled items.

    (Efron 1979.) One item gives an interval of no width, which says nothing.
    """
    rng = np.random.default_rng(seed)
    values = [float(statistic(rng.integers(0, n, n))) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(np.arange(n))), float(low), float(high))


class Measures(NamedTuple):
    """How well a model predicts texts: each with an interval by text.

    `loss` and `entropy` in nats a token, `bits_per_byte` of UTF-8 (None for ids),
    `calibration_error` from 0 to 1; `reliability` rows are (mean confidence, accuracy, tokens) by
    bin of confidence. `bos` says that every text had <|endoftext|> before it.
    """

    loss: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate | None
    entropy: Estimate
    calibration_error: Estimate
    reliability: np.ndarray
    n_tokens: int
    bos: bool


def measure(
    model: Model,
    texts: Sequence[Any],
    *,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    bos: bool | None = None,
) -> Measures:
    """Loss, perplexity, bits per byte, entropy and calibration over texts (or lists of ids).

    Confidence is the probability of the most probable token; expected calibration error is the
    mean distance of accuracy from confidence over equal bins (Guo et al. 2017). A text longer than
    n_ctx is read in windows that overlap by half. Resampling is by text: give several.
    """
    if isinstance(texts, str) or not len(texts):
        raise Error("measure takes a list of texts: intervals are over texts")
    rows, n_bytes, firsts = [], [], []
    for text in texts:
        is_text = isinstance(text, str)
        ids = _tokenizer(model).encode(text, allowed_special="all") if is_text else list(text)
        end = getattr(model.tokenizer, "end_of_text", None)
        if end is not None and (is_text if bos is None else bos):
            ids = [end, *ids]
        if len(ids) < 2:
            raise Error(f"{text!r:.40} has no token that follows another: nothing to measure")
        rows.append(_measure_text(model, ids, bins))
        firsts.append(ids[0] == end)
        n_bytes.append(len(model.tokenizer.decode_bytes(ids[1:])) if is_text else 0)
    names = ("n", "loss", "entropy")
    sums = {name: np.array([row[name] for row in rows]) for name in names}
    table = np.stack([row["bins"] for row in rows])  # [text, bin, (confidence, right, tokens)]

    def estimate(statistic):
        return bootstrap(statistic, len(rows), resamples=resamples, seed=seed)

    def mean(name):
        return lambda i: sums[name][i].sum() / sums["n"][i].sum()

    def calibration(i):
        confidence, right, _ = table[i].sum(axis=0).T
        return np.abs(confidence - right).sum() / sums["n"][i].sum()

    size = np.array(n_bytes)
    per_byte = None
    if size.all():
        per_byte = estimate(lambda i: sums["loss"][i].sum() / math.log(2) / size[i].sum())
    total = table.sum(axis=0)
    reliability = np.column_stack([total[:, :2] / np.maximum(total[:, 2:], 1), total[:, 2]])
    return Measures(
        estimate(mean("loss")), estimate(lambda i: np.exp(mean("loss")(i))),
        per_byte, estimate(mean("entropy")), estimate(calibration),
        reliability, int(sums["n"].sum()), all(firsts),
    )  # fmt: skip


def _measure_text(model, ids, bins):
    """Sums over one text: tokens, loss, entropy; and per bin confidence, right answers, tokens."""
    config, params, scored = model.config, model.params, 0
    result = {"n": len(ids) - 1, "loss": 0.0, "entropy": 0.0, "bins": np.zeros((bins, 3))}
    ids = gpt2_np.token_batch([ids], config)[0]
    while scored < len(ids) - 1:
        start = 0 if scored == 0 else scored - config.n_ctx // 2
        stop = min(start + config.n_ctx, len(ids) - 1)
        x = gpt2_np.residual_stream(params, config, ids[None, start:stop])
        for block in range(scored, stop, 128):  # logits of 1,024 positions would be 200 MB
            targets = ids[block + 1 : min(block + 128, stop) + 1]
            logits = gpt2_np.unembed(x[:, block - start : block - start + len(targets)], params)
            _add_measures(result, to_host(logits)[0].astype(float), targets)
        scored = stop
    return result


def _add_measures(result, logits, targets):
    log_p = logits - _log_sum_exp(logits)[:, None]
    p, best = np.exp(log_p), logits.argmax(axis=-1)
    result["loss"] -= log_p[np.arange(len(targets)), targets].sum()
    result["entropy"] -= (p * log_p).sum()
    confidence, bins = p.max(axis=-1), result["bins"]
    which = np.minimum((confidence * len(bins)).astype(int), len(bins) - 1)
    np.add.at(bins, which, np.column_stack([confidence, best == targets, np.ones(len(targets))]))


# --- finding circuits: nodes -----------------------------------------------------------


@dataclass(frozen=True)
class Circuit:
    """The heads and MLPs that suffice: `nodes`, and what they were measured to do.

    `share` (faithfulness): the part of the whole effect left when every other node is replaced.
    `completeness`: mean |F(C \\ K) - F(M \\ K)| over random subsets K of the nodes, as a share of
    the effect; 0 is best. `minimality`: the share that is lost with each node. Intervals are over
    prompts. `whole` and `none` are the metric with all nodes and with none. (Wang et al. 2022,
    section 4.)
    """

    nodes: list[str]
    share: Estimate
    completeness: Estimate
    minimality: dict[str, Estimate]
    whole: float
    none: float
    keep: float
    tokens: np.ndarray
    bos: bool


class _Pruning:
    """The model with some nodes replaced by stored activations, and its metric per prompt."""

    def __init__(self, model, clean, source, shared, metric):
        self.model, self.clean, self.source, self.shared = model, clean, source, shared
        self.metric = metric
        self.nodes = [parse_node(model.config, name) for name in node_names(model.config)]
        self.whole = self.measure([])
        self.none = self.measure(self.nodes)
        self.effect = self.whole.mean() - self.none.mean()
        if abs(self.effect) < 1e-6 * max(1.0, abs(self.whole.mean())):
            raise Error("replacing every head and MLP does not change the metric: there is no "
                        "effect to explain; look at the prompts and the answers")

    def edits(self, removed):
        edits = {}
        for layer in {layer for layer, _ in removed}:
            chosen = [h for n, h in removed if n == layer and h is not None]
            if chosen:
                name = activation_name("z", layer)
                edits[name] = patch(self.source[name], chosen)
            if (layer, None) in removed:
                name = activation_name("mlp_out", layer)
                edits[name] = patch(self.source[name])
        return edits

    def measure(self, removed):
        """The metric per prompt, [b], with the nodes in `removed` replaced."""
        edits = self.edits(set(removed))
        seen = run(self.model, self.clean, edits=edits, last_only=True)
        return _measured(self.metric, seen.logits, len(self.clean.tokens))

    def share(self, values, index=slice(None)):
        whole, none = self.whole[index].mean(), self.none[index].mean()
        return (values[index].mean() - none) / (whole - none)

    def each_removed(self, removed, progress):
        """{node: metric per prompt} with one more of the remaining nodes replaced."""
        removed = set(removed)
        edits = self.edits(removed)

        def tap(copies, first):
            def hold(name, array):
                source = self.source[name]
                new = np.tile(np.broadcast_to(source, (len(self.clean.tokens), *source.shape[1:])),
                              (copies,) + (1,) * (source.ndim - 1))
                array = array.copy()
                if name.endswith("hook_mlp_out"):
                    array[:] = namespace(array).asarray(new[:, -array.shape[1] :])
                else:
                    layer = int(name.split(".")[1])
                    for head in (h for n, h in removed if n == layer and h is not None):
                        array[:, :, head] = namespace(array).asarray(new[:, first:, head])
                return array

            hold.wants = edits.__contains__
            return hold

        found = {}
        for what in ("z", "mlp_out"):
            chosen = {(n, h) if h is not None else (n,) for n, h in self.nodes
                      if (n, h) not in removed and (h is None) == (what == "mlp_out")}
            sweep = _sweep(self.model, self.clean, self.source, self.metric, what, False, None,
                           self.shared, True, progress, edits, tap, chosen)
            found |= {(*i, None) if len(i) == 1 else i: sweep.per_prompt[i] for i in chosen}
        return found


def find(
    model: Model,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    keep: float = 0.9,
    *,
    mode: str = "resample",
    subsets: int = 8,
    seed: int = 0,
    progress: bool = False,
    bos: bool | None = None,
) -> Circuit:
    """Prune heads and MLPs to a smallest set that keeps the share `keep` of the effect.

    A node that is pruned gets its activation from `corrupted` ("resample"), or its mean there
    ("mean"). Greedy by effect: in rounds, every remaining node is pruned alone to rank them, then
    as many of the weakest at once as leave the share between `keep` and 2 - `keep` (pruning what
    works against the task overshoots). It ends where no single node can go any more: a local
    minimum, and exact at every step. (Wang et al. 2022; Conmy et al. 2023 on pruning.)
    """
    pruning, clean = _pruning(model, clean, corrupted, metric, keep, mode, bos)

    def fine(values):
        return abs(1 - pruning.share(values)) <= 1 - keep

    removed: list = []
    while True:
        now = pruning.measure(removed).mean()
        alone = pruning.each_removed(removed, progress)
        ranked = sorted(alone, key=lambda node: abs(alone[node].mean() - now))
        fewest, most = 0, len(ranked)
        while fewest < most:
            middle = (fewest + most + 1) // 2
            if fine(pruning.measure(removed + ranked[:middle])):
                fewest = middle
            else:
                most = middle - 1
        if fewest == 0:
            ranked = [node for node in ranked if fine(alone[node])]
            ranked.sort(key=lambda node: abs(1 - pruning.share(alone[node])))
            fewest = 1
        if not ranked:
            break
        removed += ranked[:fewest]
    return _describe(pruning, removed, keep, subsets, seed, alone)


def _pruning(model, clean, corrupted, metric, keep, mode, bos):
    clean, corrupted = prompts(model, clean, bos), prompts(model, corrupted, bos)
    if not 0 < keep <= 1:
        raise Error(f"keep is {keep}: the share to keep must be above 0 and at most 1")
    if mode not in ("resample", "mean"):
        raise Error(f"unknown mode {mode!r}: choose 'resample' or 'mean'")
    _same_length(clean, corrupted, "corrupted prompts")
    names = [activation_name(s, n) for n in range(model.config.n_layer) for s in ("z", "mlp_out")]
    source, shared = _replacements(model, clean, mode, corrupted, names)
    return _Pruning(model, clean, source, shared, metric), clean


def _describe(pruning, removed, keep, subsets, seed, alone):
    """The circuit that is left, with its measures; `alone` are its nodes removed one by one."""
    config, n = pruning.model.config, len(pruning.clean.tokens)
    kept = [node for node in pruning.nodes if node not in removed]
    own, rng = pruning.measure(removed), np.random.default_rng(seed)
    differences = []
    for _ in range(subsets):
        subset = [node for node in kept if rng.random() < 0.5]
        differences.append(pruning.measure(removed + subset) - pruning.measure(subset))

    def lost(node):
        return lambda i: pruning.share(own, i) - pruning.share(alone[node], i)

    label = {parse_node(config, name): name for name in node_names(config)}
    return Circuit(
        [label[node] for node in kept],
        bootstrap(lambda i: pruning.share(own, i), n, seed=seed),
        _incompleteness(pruning.whole, pruning.none, differences, seed),
        {label[node]: bootstrap(lost(node), n, seed=seed) for node in kept},
        float(pruning.whole.mean()), float(pruning.none.mean()), keep,
        pruning.clean.tokens, pruning.clean.bos,
    )  # fmt: skip


# --- finding circuits: edges -----------------------------------------------------------


def gradients(
    model: Model, text_or_tokens: Any, metric: Metric, *, bos: bool | None = None
) -> dict[str, np.ndarray]:
    """d metric / d activation of every activation that attribution patching wants, by name.

    For resid_pre, resid_mid, q, k, v, z, attn_out, mlp_out of every layer, in the activations'
    own shapes. The metric must be of the last position and know its gradient, as
    `logit_difference` and `log_probability` do: `metric.gradient(logits [b, 1, v])` -> [b, v].
    """
    if not hasattr(metric, "gradient"):
        raise Error("this metric has no gradient: use logit_difference or log_probability, or "
                    "give the function an attribute gradient, logits [b, 1, v] -> [b, v]")
    given = prompts(model, text_or_tokens, bos)
    wanted = r"\.(hook_resid_(pre|mid|post)|attn\.hook_([qkvz]|pattern)|mlp\.hook_pre)$"
    seen = run(model, given, lambda name: bool(re.search(wanted, name)), last_only=True)
    config, found = model.config, {}
    norm = _host(model.params["ln_f"])
    x = np.zeros_like(seen[activation_name("resid_pre", 0)])
    x[:, -1] = metric.gradient(seen.logits) @ to_host(model.params["wte"])
    x = _layer_norm_gradient(x, seen[activation_name("resid_post", config.n_layer - 1)], norm["g"])
    for layer in reversed(range(config.n_layer)):
        block = _host(model.params["blocks"][layer])
        mlp = block["mlp"]

        def name(short, layer=layer):
            return activation_name(short, layer)

        found[name("mlp_out")] = x
        inside = (x @ mlp["c_proj"]["w"].T) * _gelu_gradient(seen[name("pre")])
        x = x + _layer_norm_gradient(inside @ mlp["c_fc"]["w"].T, seen[name("resid_mid")],
                                     block["ln_2"]["g"])
        found[name("resid_mid")] = found[name("attn_out")] = x
        weights = _attention_weights(model, layer)
        found |= _attention_gradients(x, seen, weights, layer)
        by_head = sum(einsum("bqhe,hde->bqd", found[name(kind)], w)
                      for kind, w in zip("qkv", weights, strict=False))
        x = x + _layer_norm_gradient(by_head, seen[name("resid_pre")], block["ln_1"]["g"])
        found[name("resid_pre")] = x
    return found


def _layer_norm_gradient(y, x, gain):
    """From the gradient [.., d] of a layer norm's result to that of its input x."""
    x = _centred(x)
    scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + gpt2_np.LAYER_NORM_EPSILON)
    x, y = x / scale, y * gain
    return (_centred(y) - x * (x * y).mean(axis=-1, keepdims=True)) / scale


def _gelu_gradient(x):
    tanh = np.tanh(gpt2_np.SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))
    inner = gpt2_np.SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner


def _attention_gradients(out, seen, weights, layer):
    """Gradients of q, k, v and z [b, q, h, e] from that of the attention's output [b, q, d]."""
    q, k, v, z, pattern = (activation_name(s, layer) for s in ("q", "k", "v", "z", "pattern"))
    of_z = einsum("bqd,hed->bqhe", out, weights.W_O)
    of_pattern = einsum("bqhe,bkhe->bhqk", of_z, seen[v])
    weighted = seen[pattern] * of_pattern
    of_scores = weighted - seen[pattern] * weighted.sum(axis=-1, keepdims=True)
    of_scores /= math.sqrt(weights.W_Q.shape[-1])
    return {z: of_z, v: einsum("bhqk,bqhe->bkhe", seen[pattern], of_z),
            q: einsum("bhqk,bkhe->bqhe", of_scores, seen[k]),
            k: einsum("bhqk,bqhe->bkhe", of_scores, seen[q])}  # fmt: skip


def edge_names(config: Config) -> tuple[list[str], list[str], np.ndarray]:
    """Senders, receivers, and which pairs [sender, receiver] are edges: sent before received.

    Senders are "embed", heads and MLPs; receivers "L1H2.q", ".k", ".v", "MLP1" and "logits".
    """
    h, senders, receivers, sent, received = config.n_head, ["embed"], [], [-1], []
    for layer in range(config.n_layer):
        names = head_names(config)[layer * h : layer * h + h]
        receivers += [f"{name}.{kind}" for kind in "qkv" for name in names] + [f"MLP{layer}"]
        received += [2 * layer] * 3 * h + [2 * layer + 1]
        senders += [*names, f"MLP{layer}"]
        sent += [2 * layer] * h + [2 * layer + 1]
    received.append(2 * config.n_layer)
    return senders, [*receivers, "logits"], np.array(sent)[:, None] < np.array(received)


def _written(model, seen):
    """What every sender wrote, [sender, b, q, d]; heads without their layer's bias."""
    parts = [seen["hook_embed"][None]]
    for layer in range(model.config.n_layer):
        z, w = seen[activation_name("z", layer)], _attention_weights(model, layer).W_O
        parts += [einsum("bqhe,hed->hbqd", z, w), seen[activation_name("mlp_out", layer)][None]]
    return np.concatenate(parts)


_WRITERS = ("hook_embed", "blocks.*.attn.hook_z", "blocks.*.hook_mlp_out")


def edge_attribution(
    model: Model, base: Any, source: Any, metric: Metric, *, bos: bool | None = None
) -> np.ndarray:
    """Estimated change of the metric from patching single edges, [sender, receiver, b].

    First order: what the sender writes in `source` minus in `base`, times the metric's gradient at
    the receiver's input; names and the pairs that exist from `edge_names`. (Syed et al. 2023,
    "Attribution Patching Outperforms Automated Circuit Discovery".)
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    _same_length(base, source, "source prompts")
    config = model.config
    seen = run(model, base, [*_WRITERS, "blocks.*.hook_resid_*"], last_only=True)
    other = run(model, source, _WRITERS, last_only=True)
    change = _written(model, other.activations) - _written(model, seen.activations)
    known = gradients(model, base, metric)
    inputs = []  # [receiver, b, q, d]
    for layer in range(config.n_layer):
        block, weights = _host(model.params["blocks"][layer]), _attention_weights(model, layer)
        for kind, w in zip("qkv", weights, strict=False):
            inside = einsum("bqhe,hde->hbqd", known[activation_name(kind, layer)], w)
            inputs.append(_layer_norm_gradient(inside, seen[activation_name("resid_pre", layer)],
                                               block["ln_1"]["g"]))
        # The MLP's input moves the stream through the MLP only: the skip connection is not its.
        mid, out = activation_name("resid_mid", layer), activation_name("mlp_out", layer)
        inputs.append((known[mid] - known[out])[None])
    inputs.append(known[activation_name("mlp_out", config.n_layer - 1)][None])
    scores = np.einsum("sbqd,rbqd->srb", change, np.concatenate(inputs), optimize=True)
    return np.where(edge_names(config)[2][..., None], scores, 0)


def patch_edges(
    model: Model, base: Any, source: Any, patched: np.ndarray, *, bos: bool | None = None
) -> np.ndarray:
    """Logits [b, 1, v] of `base` where the edges in `patched` carry what `source` wrote.

    `patched` [sender, receiver] booleans as in `edge_names`. Every head's q, k and v, every MLP
    and the logits read a stream of their own: exact, no approximation. (Goldowsky-Dill et al.
    2023, "path patching"; Conmy et al. 2023.)
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    _same_length(base, source, "source prompts")
    given = run(model, source, _WRITERS, last_only=True)
    return _patch_edges(model, base, _written(model, given.activations), patched)


def _patch_edges(model, base, written, patched):
    config, n = model.config, base.tokens.shape[1]
    params, mask = model.params, patched.astype(written.dtype)
    x = to_host(params["wte"])[base.tokens]
    change = np.zeros_like(written)  # by which each sender differs from what it should carry
    change[0] = written[0] - x
    x = x + to_host(params["wpe"])[:n]
    at, column = 1, 0

    def read(count):
        nonlocal column
        columns = mask[:at, column : column + count]
        column += count
        return x + einsum("sr,sbqd->rbqd", columns, change[:at])

    def normalized(streams, norm):
        rows = streams.reshape(-1, *streams.shape[2:])
        return gpt2_np.layer_norm(rows, **norm, tap=gpt2_np.NO_TAP).reshape(streams.shape)

    later = np.triu(np.ones((n, n), bool), 1)
    for layer in range(config.n_layer):
        block, weights = _host(params["blocks"][layer]), _attention_weights(model, layer)
        streams = normalized(read(3 * config.n_head), block["ln_1"])
        q, k, v = (
            einsum("hbqd,hde->hbqe", streams[c * config.n_head : (c + 1) * config.n_head], w)
            + b[:, None, None]
            for c, (w, b) in enumerate(zip(weights[:3], weights[4:7], strict=True))
        )
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        scores[..., later] = -np.inf
        out = einsum("hbqe,hed->hbqd", gpt2_np.softmax(scores) @ v, weights.W_O)
        change[at : at + config.n_head] = written[at : at + config.n_head] - out
        x = x + (out.sum(axis=0) + weights.b_O)
        at += config.n_head
        out = gpt2_np.mlp(normalized(read(1), block["ln_2"])[0], **block["mlp"],
                          tap=gpt2_np.NO_TAP)
        change[at] = written[at] - out
        x = x + out
        at += 1
    last = normalized(read(1)[:, :, -1:], _host(params["ln_f"]))[0]
    return to_host(gpt2_np.unembed(namespace(params["wte"]).asarray(last), params))


@dataclass(frozen=True)
class EdgeCircuit:
    """The edges (sender, receiver) that suffice, strongest first, with their attribution scores.

    `share`, `completeness` and `minimality` (by edge) as in `Circuit`; `n_edges` is how many the
    model has.
    """

    edges: list[tuple[str, str]]
    scores: np.ndarray
    share: Estimate
    completeness: Estimate
    minimality: dict[tuple[str, str], Estimate]
    n_edges: int
    whole: float
    none: float
    keep: float
    tokens: np.ndarray
    bos: bool


def find_edges(
    model: Model,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    keep: float = 0.9,
    *,
    checks: int = 200,
    subsets: int = 8,
    seed: int = 0,
    bos: bool | None = None,
) -> EdgeCircuit:
    """Prune edges to a small set that keeps the share `keep`: by attribution, checked exactly.

    Edges are ranked once by `edge_attribution`; the fewest of the strongest that suffice are found
    by bisection, then ever smaller blocks of the weakest are left out where an exact run allows
    it, with at most `checks` runs. The metric must know its gradient.
    """
    if not 0 < keep <= 1:
        raise Error(f"keep is {keep}: the share to keep must be above 0 and at most 1")
    clean, corrupted = prompts(model, clean, bos), prompts(model, corrupted, bos)
    scores = edge_attribution(model, clean, corrupted, metric).mean(axis=-1)
    senders, receivers, exist = edge_names(model.config)
    written = _written(model, run(model, corrupted, _WRITERS, last_only=True).activations)
    pairs = np.argwhere(exist)
    ranked = pairs[np.argsort(-np.abs(scores[exist]), kind="stable")]

    def measure_kept(kept):
        patched = exist.copy()
        patched[tuple(np.asarray(kept, int).reshape(-1, 2).T)] = False
        logits = _patch_edges(model, clean, written, patched)
        return _measured(metric, logits, len(clean.tokens))

    whole, none = measure_kept(ranked), measure_kept([])
    if abs(whole.mean() - none.mean()) < 1e-6 * max(1.0, abs(whole.mean())):
        raise Error("the metric is the same on clean and corrupted prompts: nothing to explain")

    def share(values, index=slice(None)):
        return (values[index] - none[index]).mean() / (whole[index] - none[index]).mean()

    def fine(kept):
        return abs(1 - share(measure_kept(kept))) <= 1 - keep

    fewest, most = 0, len(ranked)
    while fewest < most:
        middle = (fewest + most) // 2
        fewest, most = (fewest, middle) if fine(ranked[:middle]) else (middle + 1, most)
    kept = _read_edges(ranked[:most], exist, model.config)
    kept = _drop_blocks(kept, fine, checks)
    kept = _read_edges(kept, exist, model.config)
    own, n, rng = measure_kept(kept), len(clean.tokens), np.random.default_rng(seed)

    def without(edges, dropped):
        dropped = set(dropped)
        return measure_kept([edge for edge in map(tuple, edges) if edge not in dropped])

    chosen = [[edge for edge in kept if rng.random() < 0.5] for _ in range(subsets)]
    differences = [without(kept, subset) - without(ranked, subset) for subset in chosen]
    alone = {edge: without(kept, [edge]) for edge in kept}
    label = {edge: (senders[edge[0]], receivers[edge[1]]) for edge in kept}
    return EdgeCircuit(
        [label[edge] for edge in kept], np.array([scores[edge] for edge in kept]),
        bootstrap(lambda i: share(own, i), n, seed=seed),
        _incompleteness(whole, none, differences, seed),
        {label[edge]: bootstrap(lambda i, left=alone[edge]: share(own, i) - share(left, i), n,
                                seed=seed) for edge in kept},
        int(exist.sum()), float(whole.mean()), float(none.mean()), keep, clean.tokens, clean.bos,
    )  # fmt: skip


def _incompleteness(whole, none, differences, seed):
    """Mean |F(C \\ K) - F(M \\ K)| over subsets K, as a share of the effect."""

    def statistic(i):
        return np.mean([abs(d[i].mean()) for d in differences]) / abs((whole[i] - none[i]).mean())

    return bootstrap(statistic, len(whole), seed=seed)


def _drop_blocks(kept, fine, checks):
    """Leave out blocks of the weakest edges, halving their size, while `fine` stays true."""
    size = max(1, len(kept) // 2)
    while kept and checks > 0:
        end, dropped = len(kept), False
        while end > 0 and checks > 0:
            trial = kept[: max(0, end - size)] + kept[end:]
            checks -= 1
            if fine(trial):
                kept, dropped = trial, True
            end -= size
        if size == 1 and not dropped:
            break
        size = max(1, size // 2)
    return kept


def _read_edges(kept, exist, config):
    """Without the edges into nodes that no kept edge leads out of: nothing depends on them."""
    senders, receivers, _ = edge_names(config)
    kept = [tuple(map(int, pair)) for pair in kept]
    while True:
        read = {senders[s] for s, _ in kept} | {"logits"}
        used = [(s, r) for s, r in kept if receivers[r].partition(".")[0] in read]
        if len(used) == len(kept):
            return kept
        kept = used


# --- tasks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Prompts whose last position has an answer, and minimally different ones without it.

    `answers` and `wrong` are ids [b]; `metric(model)` is the difference of their logits.
    """

    name: str
    clean: Prompts
    corrupted: Prompts
    answers: np.ndarray
    wrong: np.ndarray

    def metric(self, model: Model) -> Metric:
        return logit_difference(model, self.answers, self.wrong)


def repeated_tokens(
    model: Model, length: int = 50, batch: int = 4, *, seed: int = 0, bos: bool | None = None
) -> Task:
    """Random tokens that repeat once: the answer is the first of them, for the third time.

    Corrupted: other tokens in the first half, so that nothing repeats, and another (`wrong`)
    where the second half begins. <|endoftext|> first where the vocabulary has one.
    """
    end = getattr(model.tokenizer, "end_of_text", None)
    bos = (end is not None) if bos is None else bos
    ordinary = np.array([i for i in range(model.config.n_vocab) if i != end])
    most = min((model.config.n_ctx - bos) // 2, (len(ordinary) - 1) // 2)
    if not 2 <= length <= most:
        raise Error(f"length is {length}: it must be from 2 to {most}, for two different halves "
                    "of this vocabulary to fit into n_ctx")
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(ordinary, 2 * length + 1, replace=False) for _ in range(batch)])
    once, others, wrong = rows[:, :length], rows[:, length:-1], rows[:, -1]
    clean = np.concatenate([once, once], axis=1)
    corrupted = np.concatenate([others, wrong[:, None], once[:, 1:]], axis=1)
    return Task("repeated tokens", prompts(model, clean, bos), prompts(model, corrupted, bos),
                once[:, 0], wrong)


_NAMES = (
    "Alan Alex Alice Amy Andrew Anna Ben Bill Bob Brian Charles Chris Dan Daniel David Eric Frank "
    "George Grant Henry Jack James Jane Jason Jim Joe John Jordan Josh Kate Kevin Laura Lisa Luke "
    "Mark Martin Mary Matt Max Michael Mike Paul Peter Rachel Rob Robert Roy Sam Sarah Scott "
    "Simon Steve Taylor Tim Tom Tony Will"
)
_PLACES = "bank beach bridge church farm garden hospital library market office school station"
_THINGS = "bag ball book box camera card drink key letter map phone ring ticket"
_TEMPLATES = (
    "When {A} and {B} met at the {place}, {S} handed the {thing} to",
    "Once {A} and {B} reached the {place}, {S} passed the {thing} to",
    "While {A} and {B} sat near the {place}, {S} sold the {thing} to",
    "After {A} and {B} left the {place}, {S} gave the {thing} to",
)


def indirect_object(
    model: Model, n: int = 8, *, corruption: str = "abc", seed: int = 0, bos: bool = True
) -> Task:
    """Two people, one of whom gives: the answer is the other (Wang et al. 2022, section 2).

    Half the prompts name the giver first (BABA), half second (ABBA). Corrupted: three other names,
    none twice ("abc"), or the other giver ("swap"). Names must be single tokens, as they are in
    the official vocabulary; Error where fewer than six are.
    """
    if corruption not in ("abc", "swap"):
        raise Error(f"unknown corruption {corruption!r}: choose 'abc' or 'swap'")
    encode = _tokenizer(model).encode

    def single(words):
        return [word for word in words.split() if len(encode(" " + word)) == 1]

    names, places, things = single(_NAMES), single(_PLACES), single(_THINGS)
    if len(names) < 6 or not places or not things:
        raise Error(f"only {len(names)} of the names are single tokens of this vocabulary, and the "
                    "indirect-object task needs 6: use name_repetition")
    rng = np.random.default_rng(seed)
    clean, corrupted, answers, wrong, length = [], [], [], [], None
    for _ in range(100 * n):
        template = str(rng.choice(_TEMPLATES))
        words = {"place": rng.choice(places), "thing": rng.choice(things)}
        other, giver, *new = rng.choice(names, 5, replace=False)
        first, second = (giver, other) if len(answers) % 2 == 0 else (other, giver)
        text = template.format(A=first, B=second, S=giver, **words)
        swapped = template.format(A=first, B=second, S=other, **words)
        abc = template.format(A=new[0], B=new[1], S=new[2], **words)
        length = length or len(encode(text))
        if len(encode(text)) == length:  # as the first prompt: templates differ
            clean.append(text)
            corrupted.append(abc if corruption == "abc" else swapped)
            answers.append(token_id(model, f" {other}"))
            wrong.append(token_id(model, f" {giver}"))
        if len(answers) == n:
            break
    return Task("indirect object", prompts(model, clean, bos), prompts(model, corrupted, bos),
                np.array(answers), np.array(wrong))


def name_repetition(model: Model, n: int = 8, *, seed: int = 0, bos: bool | None = None) -> Task:
    """An invented name of two tokens comes twice; after its first half, the answer is the second.

    Any vocabulary does: first halves are beginnings of capitalised words, second halves letters.
    Corrupted: another second half (`wrong`) both times.
    """
    tokenizer = _tokenizer(model)
    text_of = {i: tokenizer.decode([i]) for i in range(model.config.n_vocab)}
    firsts = [i for i, text in text_of.items() if re.fullmatch(r" [A-Z][a-z]{1,3}", text)]
    seconds = [i for i, text in text_of.items() if re.fullmatch(r"[a-z]{2,4}", text)]
    if len(firsts) < 2 or len(seconds) < 3:
        raise Error("this vocabulary has no tokens to make names from: use repeated_tokens")
    before, between, after = (tokenizer.encode(text) for text in (
        "I saw", ", and he saw me. I know the face of", " still, and all the men know"))
    rng = np.random.default_rng(seed)
    clean, corrupted, answers, wrong = [], [], [], []
    for _ in range(n):
        first = int(rng.choice(firsts))
        second, other = map(int, rng.choice(seconds, 2, replace=False))
        for rows, half in ((clean, second), (corrupted, other)):
            rows.append([*before, first, half, *between, first, half, *after, first])
        answers.append(second)
        wrong.append(other)
    bos = (tokenizer.end_of_text is not None) if bos is None else bos
    return Task("name repetition", prompts(model, clean, bos), prompts(model, corrupted, bos),
                np.array(answers), np.array(wrong))


TASKS = {
    "repeated": lambda model, n, seed: repeated_tokens(model, 20, n, seed=seed),
    "names": lambda model, n, seed: name_repetition(model, n, seed=seed),
    "indirect-object": lambda model, n, seed: indirect_object(model, n, seed=seed),
}


# --- pictures --------------------------------------------------------------------------


def _figure(width, height):
    """A figure that needs no display and touches no global state of matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Error("pictures need matplotlib: pip install 'gpt2_np[plot]', or pip install "
                    "matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained", dpi=100)


def _heat_map(axes, values, title, rows, columns, signed, label):
    bound = np.nanmax(np.abs(values)) or 1.0
    low = -bound if signed else min(0.0, float(np.nanmin(values)))
    image = axes.imshow(values, cmap="RdBu" if signed else "Blues", vmin=low, vmax=bound,
                        aspect="auto")
    axes.set_title(title, fontsize=9)
    for names, axis, rotation in ((rows, axes.yaxis, 0), (columns, axes.xaxis, 90)):
        axis.set_ticks(range(len(names)), [_drawn(name) for name in names], fontsize=7,
                       rotation=rotation, parse_math=False)
    colours = axes.figure.colorbar(image, ax=axes)
    colours.set_label(label, fontsize=8)
    colours.ax.tick_params(labelsize=7)


def _drawn(text):
    """A token as a label: line ends as a sign, what fonts lack as a question mark."""
    text = text.replace("\n", "⏎")
    return "".join(c if (c.isprintable() and ord(c) < 0x2500) or c == "⏎" else "?" for c in text)


def _save(figure, path):
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise Error(f"{path} cannot be written: {error}") from None


def plot_heads(
    values: np.ndarray, path: Any, title: str = "", *, labels: Sequence[str] | None = None,
    signed: bool = True, label: str = "",
) -> None:  # fmt: skip
    """Write a map [layer, head] or [layer, position] (with token `labels`) to an image file."""
    figure = _figure(1.9 + 0.4 * values.shape[1], 1.2 + 0.3 * values.shape[0])
    axes = figure.subplots()
    columns = labels or [str(i) for i in range(values.shape[1])]
    _heat_map(axes, values, title, [str(i) for i in range(len(values))], columns, signed, label)
    axes.set_ylabel("layer", fontsize=8)
    axes.set_xlabel("token" if labels else "head", fontsize=8)
    _save(figure, path)


def plot_attention(
    patterns: np.ndarray, labels: Sequence[str], path: Any, titles: Sequence[str] = ()
) -> None:
    """Write attention maps [head, query, key] side by side, with token labels, to an image file."""
    n, size = len(patterns), 1.2 + 0.17 * len(labels)
    n_rows = math.ceil(n / 4)
    figure = _figure((size + 0.8) * min(n, 4), size * n_rows)
    grid = figure.subplots(n_rows, min(n, 4), squeeze=False).ravel()
    for axes in grid[n:]:
        axes.set_visible(False)
    for i, (axes, pattern) in enumerate(zip(grid, patterns, strict=False)):
        title = titles[i] if i < len(titles) else ""
        _heat_map(axes, pattern, title, labels, labels, False, "attention")
        axes.set_ylabel("from", fontsize=8)
        axes.set_xlabel("to", fontsize=8)
    _save(figure, path)


def plot_lens(result: Lens, model: Model, path: Any, row: int = 0) -> None:
    """Write the lens of one prompt to an image file: the best token of every point and position."""
    top, p = result.top[:, row, :, 0][::-1], result.top_probability[:, row, :, 0][::-1]
    words = labels_of(model, result.tokens[row])[-p.shape[1] :]
    figure = _figure(1.8 + 0.55 * p.shape[1], 1.3 + 0.24 * len(p))
    axes = figure.subplots()
    _heat_map(axes, p, "the best next token, were each layer the last", result.points[::-1], words,
              False, "probability")
    for (y, x), token in np.ndenumerate(top):
        axes.text(x, y, _drawn(labels_of(model, [token])[0].strip(" "))[:8], ha="center",
                  va="center", fontsize=6, parse_math=False,
                  color="white" if p[y, x] > 0.6 * p.max() else "black")
    _save(figure, path)


# --- command line ----------------------------------------------------------------------

_KINDS = ("previous_token", "duplicate_token", "induction", "beginning")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="circuits.py", description="Look inside GPT-2 from the command line.",
        epilog="Texts get <|endoftext|> put before them unless --no-bos. Words inside a text begin "
        "with a space: --answer ' Mary'.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, about):
        added = commands.add_parser(name, help=about, description=about)
        add = added.add_argument
        add("-m", "--model", default="124M", metavar="NAME",
            help="a size, shakespeare, a folder, file or URL (default 124M)")
        add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default auto")
        add("--no-bos", action="store_true", help="do not put <|endoftext|> before the text")
        add("--json", action="store_true", help="machine-readable result")
        add("--top", type=int, default=10, metavar="N", help="rows to show (default 10)")
        if name != "neurons":
            add("--plot", metavar="FILE.png", help="draw it, with matplotlib")
        return add

    def answers(add, required):
        add("--answer", required=required, metavar="TOKEN", help="the token in question")
        add("--wrong", metavar="TOKEN", help="look at the difference from this token's logit")

    add = command("lens", "What every layer would say: the logit lens at the last position.")
    add("text")
    add("--answer", metavar="TOKEN", help="follow this token's probability and rank")
    add = command("attribution", "What each head and MLP adds to a token's logit.")
    add("text")
    answers(add, required=True)
    add("--folded", action="store_true", help="count constants of heads as bias, as in papers")
    add = command("heads", "Which heads attend to previous, duplicate or induction tokens.")
    add("text", nargs="?", help="instead of random tokens that repeat")
    add("--head", action="append", default=[], metavar="5.1",
        help="with --plot: draw this head's attention on the text; may be repeated")
    add("--kind", default="induction", choices=_KINDS, help="with --plot: the score to draw")
    for name, about in (
        ("patch", "Put activations of a clean prompt into a corrupted one, one after another."),
        ("find", "The smallest set of heads and MLPs that keeps the effect."),
    ):
        add = command(name, about)
        add("clean", nargs="?")
        add("corrupted", nargs="?")
        answers(add, required=False)
        add("--task", choices=TASKS, help="prompts made by this program instead of two texts")
        add("--prompts", type=int, default=8, metavar="N", help="how many, with --task (8)")
        add("--seed", type=int, default=0, metavar="S", help="which, with --task (0)")
        if name == "patch":
            add("--what", default="z", choices=_START, help="what to patch (default z)")
            add("--by-position", action="store_true", help="one position at a time")
        else:
            add("--keep", type=float, default=0.9, metavar="SHARE", help="default 0.9")
            add("--mode", default="resample", choices=("resample", "mean"),
                help="what pruned nodes get: corrupted activations or their mean")
            add("--edges", action="store_true", help="prune edges, not heads and MLPs")
    add = command("neurons", "What neurons read and write, or which of them made an answer.")
    add("text", nargs="?")
    answers(add, required=False)
    add("--layer", type=int, metavar="L", help="this layer only")
    add("--neuron", type=int, metavar="N", help="what this neuron of --layer reads and writes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: tables to stdout, all else to stderr; returns the exit status."""
    return gpt2_np.run_command("circuits", command_line(), argv, _run_command)


def _run_command(args, parser):
    _check_usage(args, parser)
    for name in ("text", "clean", "corrupted"):
        gpt2_np.utf_8(os.fsencode(getattr(args, name, None) or ""), "the text")
    model = gpt2_np.load(args.model, args.device)
    _tokenizer(model)
    result = _COMMANDS[args.command](model, args)
    if args.json:
        print(json.dumps(_plain({"model": args.model, **result})))
    else:
        print(result["table"])


def _check_usage(args, parser):
    if args.top < 1:
        parser.error(f"--top is {args.top}: it must be at least 1")
    if args.command in ("patch", "find"):
        texts = args.clean is not None and args.corrupted is not None
        if args.task and (args.clean is not None or args.answer or args.wrong):
            parser.error("--task brings its own prompts and answers: leave the others out")
        if not args.task and not (texts and args.answer):
            parser.error("give a clean and a corrupted text and --answer, or --task")
        if args.prompts < 1:
            parser.error(f"--prompts is {args.prompts}: it must be at least 1")
        if args.seed < 0:
            parser.error(f"--seed is {args.seed}: it must be at least 0")
    if args.command == "find" and args.edges and args.plot:
        parser.error("--plot draws heads: leave --edges out")
    if args.command == "neurons":
        if args.neuron is not None and (args.layer is None or args.text):
            parser.error("--neuron goes with --layer and without a text")
        if args.neuron is None and not (args.text and args.answer):
            parser.error("give a text and --answer, or --layer and --neuron")
    if args.command == "heads" and args.head and not (args.plot and args.text):
        parser.error("--head draws attention on a text: give a text and --plot")
    if getattr(args, "wrong", None) and not args.answer:
        parser.error("--wrong goes with --answer")


def _plain(value):
    """For JSON: arrays as lists, NaN as null, and not the table."""
    if isinstance(value, Estimate):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if key != "table"}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], *notes: str) -> str:
    """Aligned columns, text to the left and numbers to the right, under the notes."""
    shown = [[f"{x:.4f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    columns, number = range(len(header)), re.compile(r"-?[\d.]+|nan")
    right = [all(number.fullmatch(row[i]) for row in shown) for i in columns]
    widths = [max(len(row[i]) for row in [list(header), *shown]) for i in columns]
    lines = ["  ".join(text.rjust(width) if r else text.ljust(width)
                       for text, width, r in zip(row, widths, right, strict=True)).rstrip()
             for row in [list(header), *shown]]
    return "\n".join([*notes, *lines])


def _stated(result):
    """What every table says first: the prompts, and whether <|endoftext|> begins them."""
    n_prompts, length = result.tokens.shape
    return (f"{n_prompts} prompt{'s' * (n_prompts > 1)} of {length} tokens, "
            f"{'with' if result.bos else 'without'} <|endoftext|> at the beginning")


def _bos(args):
    return False if args.no_bos else None


def _word(model, token):
    return gpt2_np.quoted(model.tokenizer.token_bytes(int(token)))


def _lens_command(model, args):
    result = lens(model, args.text, args.answer, position=None if args.plot else -1,
                  top=min(args.top, model.config.n_vocab), bos=_bos(args))
    if args.plot:
        plot_lens(result, model, args.plot)
    rows, records = [], []
    for i, point in enumerate(result.points):
        p, rank, entropy = (array[i, 0, -1].item() for array in
                            (result.probability, result.rank, result.entropy))
        best = [{"text": _word(model, t), "probability": float(q)} for t, q in
                zip(result.top[i, 0, -1], result.top_probability[i, 0, -1], strict=True)]
        shown = " ".join(f"{word['text']} {word['probability']:.3f}" for word in best[:5])
        rows.append([point, entropy, p, rank, shown])
        records.append({"point": point, "entropy": entropy, "probability": p, "rank": rank,
                        "top": best})
    target = _word(model, result.targets[0, -1])
    return {"bos": result.bos, "target": target, "points": records,
            "table": _table(["point", "entropy", f"p({target})", "rank", "best"], rows,
                            _stated(result))}


def _asked(args):
    return f"logit of {args.answer!r}" + (f" minus {args.wrong!r}" if args.wrong else "")


def _attribution_command(model, args):
    result = attribution(model, args.text, args.answer, args.wrong, folded=args.folded,
                         bos=_bos(args))
    values, what = result.values[:, 0], _asked(args)
    order = np.argsort(-np.abs(values), kind="stable")
    if args.plot:
        plot_heads(result.heads(model.config)[..., 0], args.plot, what, label="logits")
    rows = [[result.labels[i], float(values[i])] for i in order[: args.top]]
    others = order[args.top :]
    rows += [[f"{len(others)} others", float(values[others].sum())]] if len(others) else []
    rows.append(["sum", float(result.total[0])])
    parts = dict(zip(result.labels, values.tolist(), strict=True))
    return {"bos": result.bos, "what": what, "total": result.total[0], "parts": parts,
            "table": _table(["part", what], rows, _stated(result))}


def _heads_command(model, args):
    result = heads(model, args.text, bos=_bos(args))
    names, kinds = head_names(model.config), {kind: getattr(result, kind) for kind in _KINDS}
    if args.head:
        _plot_chosen_heads(model, args)
    elif args.plot:
        plot_heads(kinds[args.kind], args.plot, f"{args.kind.replace('_', ' ')} score",
                   signed=False, label="attention")
    copying, columns = copying_scores(model), []
    for scores in (*kinds.values(), copying):
        flat = np.nan_to_num(scores.ravel(), nan=-np.inf)
        best = np.argsort(-flat, kind="stable")[: args.top]
        columns.append([f"{names[i]} {scores.ravel()[i]:.3f}" for i in best])
    header = ["previous token", "duplicate token", "induction", "beginning", "copying (OV)"]
    of = "the text" if args.text else "random tokens that repeat once"
    note = f"attention on {of}, the highest heads of each kind; {_stated(result)}"
    return {"bos": result.bos, **kinds, "entropy": result.entropy, "distance": result.distance,
            "copying": copying, "table": _table(header, zip(*columns, strict=True), note)}


def _plot_chosen_heads(model, args):
    nodes = [parse_node(model.config, node) for node in args.head]
    if any(head is None for _, head in nodes):
        raise Error("--head takes heads, such as 5.1: an MLP has no attention")
    names = sorted({activation_name("pattern", layer) for layer, _ in nodes})
    seen = run(model, args.text, names, bos=_bos(args), last_only=True)
    patterns = np.stack([seen[activation_name("pattern", n)][0, h] for n, h in nodes])
    plot_attention(patterns, labels_of(model, seen.tokens[0]), args.plot,
                   [f"L{n}H{h}" for n, h in nodes])


def _prompt_pair(model, args):
    """Clean and corrupted prompts and a metric, from a task or from two texts."""
    if args.task:
        task = TASKS[args.task](model, args.prompts, args.seed)
        return task.clean, task.corrupted, task.metric(model)
    clean, corrupted = (prompts(model, text, _bos(args)) for text in (args.clean, args.corrupted))
    if args.wrong:
        return clean, corrupted, logit_difference(model, args.answer, args.wrong)
    return clean, corrupted, log_probability(model, args.answer)


def _patch_command(model, args):
    clean, corrupted, metric = _prompt_pair(model, args)
    sweep = patching(model, corrupted, clean, metric, args.what,
                     by_position=True if args.by_position else None,
                     progress=sys.stderr.isatty())
    shares = sweep.normalized
    labels = labels_of(model, clean.tokens[0]) if "position" in sweep.axes else None
    if args.plot:
        strongest = np.abs(shares).argmax(axis=-1)[..., None]
        flat = shares if shares.ndim == 2 else np.take_along_axis(shares, strongest, -1)[..., 0]
        plot_heads(flat, args.plot, f"{args.what}: share of the effect restored", label="share",
                   labels=labels if shares.ndim == 2 else None)
    order = np.argsort(-np.abs(shares).ravel(), kind="stable")[: args.top]
    rows = []
    for index in zip(*np.unravel_index(order, shares.shape), strict=True):
        where = list(map(int, index))
        if labels:
            where[-1] = f"{where[-1]} {labels[where[-1]]!r}"
        rows.append([*where, float(sweep.values[index]), float(shares[index])])
    notes = [_stated(sweep), f"metric {sweep.base.mean():.4f} corrupted, "
             f"{sweep.source.mean():.4f} clean; {args.what} of clean put into corrupted:"]
    return {"bos": sweep.bos, "what": args.what, "axes": sweep.axes, "values": sweep.values,
            "normalized": shares, "corrupted": sweep.base.mean(), "clean": sweep.source.mean(),
            "table": _table([*sweep.axes, "metric", "share"], rows, *notes)}


def _find_command(model, args):
    pair = _prompt_pair(model, args)
    if args.edges:
        return _edges_result(find_edges(model, *pair, args.keep, seed=args.seed))
    found = find(model, *pair, args.keep, mode=args.mode, seed=args.seed,
                 progress=sys.stderr.isatty())
    if args.plot:
        shares = np.zeros((model.config.n_layer, model.config.n_head))
        for name, lost in found.minimality.items():
            layer, head = parse_node(model.config, name)
            if head is not None:
                shares[layer, head] = lost.value
        plot_heads(shares, args.plot, "share of the effect lost without the head", label="share")
    rows = sorted(((node, *lost) for node, lost in found.minimality.items()),
                  key=lambda row: -row[1])
    notes = [
        _stated(found),
        f"{len(found.nodes)} of {len(node_names(model.config))} heads and MLPs keep {found.share} "
        f"of the effect (metric {found.whole:.4f} with all, {found.none:.4f} with none)",
        f"incompleteness {found.completeness}; intervals are 95%, over prompts",
    ]
    return {"bos": found.bos, "nodes": found.nodes, "share": found.share,
            "completeness": found.completeness, "minimality": found.minimality,
            "whole": found.whole, "none": found.none,
            "table": _table(["node", "share lost without it", "from", "to"], rows, *notes)}


def _edges_result(found):
    note = (f"{len(found.edges)} of {found.n_edges} edges keep {found.share} of the effect "
            f"(metric {found.whole:.4f} with all, {found.none:.4f} with none)")
    missing = f"incompleteness {found.completeness}; intervals are 95%, over prompts"
    rows = [[*edge, float(score), *found.minimality[edge]]
            for edge, score in zip(found.edges, found.scores, strict=True)]
    header = ["sender", "receiver", "attribution", "share lost without it", "from", "to"]
    return {"bos": found.bos, "edges": [dict(zip(header, row, strict=True)) for row in rows],
            "share": found.share, "completeness": found.completeness, "n_edges": found.n_edges,
            "whole": found.whole, "none": found.none,
            "table": _table(header, rows, _stated(found), note, missing)}


def _neurons_command(model, args):
    if args.neuron is not None:
        ends = neuron_tokens(model, args.layer, args.neuron, args.top)
        words = {end: [(_word(model, t), float(s)) for t, s in zip(*found, strict=True)]
                 for end, found in ends.items()}
        rows = zip(*([f"{word} {score:.3f}" for word, score in column]
                     for column in words.values()), strict=True)
        note = f"neuron {args.neuron} of layer {args.layer}: tokens it reads, raises and lowers"
        return {"layer": args.layer, "neuron": args.neuron, **words,
                "table": _table(list(words), rows, note)}
    layers = range(model.config.n_layer) if args.layer is None else [args.layer]
    found = []
    for layer in layers:  # one at a time: all neurons' vectors of 1558M would take gigabytes
        result = attribution(model, args.text, args.answer, args.wrong, neurons=[layer],
                             bos=_bos(args))
        found += [(float(value), label)
                  for label, value in zip(result.labels, result.values[:, 0], strict=True)
                  if re.fullmatch(r"L\d+N\d+", label)]
    found.sort(key=lambda pair: -abs(pair[0]))
    rows, records = [], []
    for value, label in found[: args.top]:
        layer, neuron = map(int, label[1:].split("N"))
        ends = {end: [_word(model, t) for t in ids]
                for end, (ids, _) in neuron_tokens(model, layer, neuron, 4).items()}
        rows.append([label, value, *(" ".join(words) for words in ends.values())])
        records.append({"neuron": label, "value": value, **ends})
    header = ["neuron", _asked(args), "reads", "raises", "lowers"]
    return {"bos": result.bos, "what": _asked(args), "neurons": records,
            "table": _table(header, rows, _stated(result))}


_COMMANDS = {
    "lens": _lens_command, "attribution": _attribution_command, "heads": _heads_command,
    "patch": _patch_command, "find": _find_command, "neurons": _neurons_command,
}  # fmt: skip


if __name__ == "__main__":
    # Modules that import this one by name must get this very module, not a second.
    sys.modules.setdefault("circuits", sys.modules["__main__"])
    raise SystemExit(main())

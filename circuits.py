"""Looking inside GPT-2: activations, attribution, lenses, patching, weights, circuit search.

The residual stream is a sum: embeddings, then what every head and MLP adds (Elhage et al. 2021,
"A Mathematical Framework for Transformer Circuits"). All here follows from that, on NumPy arrays
and the model's own logits. Names are TransformerLens's; activations always have a batch axis.

    section               what is there
    1. activations        prompts, activation_names, run
    2. the stream         decompose
    3. logits             attribution, lens
    4. attention          heads
    5. interventions      metrics: logit_difference, log_probability, repeat_loss
                          edits for run: patch, zero, knock_out, ablated
                          sweeps: patching, ablation, path_patching
    6. weights            ov, qk, full_ov, full_qk, copying_scores, singular_tokens,
                          neuron_tokens, composition
    7. circuit search     find (heads and MLPs), find_edges, edge_attribution, patch_edges
    8. uncertainty        bootstrap, measure
    9. tasks              repeated_tokens, indirect_object, name_repetition
    command line          python circuits.py lens | attribution | heads | patch | find | neurons

Pictures and the command line are in circuits_show.py. Part of gpt2_np.

Text gets <|endoftext|> put before it unless `bos=False`; token ids are taken as they are unless
`bos=True`. Every result says which it was in its field `bos`, beside the `tokens` [b, q] it ran on.
Rows that pad an embedding, beyond the tokenizer's ids, are in no distribution and no list of
tokens, as none is ever drawn; `run` and attribution to all logits show them.

One alphabet for einsum: b batch (prompt), q query position, k key position, d residual width,
h head, e head width, m hidden width of the MLP, v vocabulary; and p part of the stream, s sender,
r receiver. Logits and what is measured in them are in the model's own units, losses and entropies
in nats.
"""
from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

if __package__:
    from . import gpt2_np
    from .backend import einsum, namespace, to_host
    from .gpt2_np import NO_TAP, Config, Error, Model, vocabulary_size
else:
    import gpt2_np
    from backend import einsum, namespace, to_host
    from gpt2_np import NO_TAP, Config, Error, Model, vocabulary_size

__all__ = [
    "Attention", "Attribution", "Circuit", "Estimate", "Lens", "LowRank", "Measures", "Parts",
    "Prompts", "Run", "Sweep", "Task", "ablated", "ablation", "activation_name",
    "activation_names", "attribution", "bootstrap", "composition", "copying_scores", "decompose",
    "edge_attribution", "edge_names", "find", "find_edges", "full_ov", "full_qk", "gradients",
    "head_names", "heads", "indirect_object", "knock_out", "labels_of", "lens", "log_probability",
    "logit_difference", "main", "measure", "name_repetition", "neuron_tokens", "node_names", "ov",
    "parse_node", "patch", "patch_edges", "patching", "path_patching", "prompts", "qk",
    "repeat_loss", "repeated_tokens", "run", "singular_tokens", "token_id", "zero",
]  # fmt: skip

# Sweeps run as many patched prompts at once as make about this many positions: enough for the
# matrix products to reach full speed (512 was 5% slower), and a few tens of MB of activations.
ROWS_AT_ONCE = 1024

# Stored activations of so many prompts of 41 tokens are 9 GB at 124M's shape.
MOST_PROMPTS = 1000

Edit = Callable[[Any, str], Any]
Metric = Callable[[np.ndarray], np.ndarray]


# --- 1. activations: prompts -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
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
        if bos not in (None, text_or_tokens.bos):
            raise Error(f"bos={bos} was given with Prompts that were made with "
                        f"bos={text_or_tokens.bos}: leave it out")
        return text_or_tokens
    texts = [text_or_tokens] if isinstance(text_or_tokens, str) else text_or_tokens
    if isinstance(texts, list | tuple) and texts and all(isinstance(t, str) for t in texts):
        rows = [_tokenizer(model).encode(text, allowed_special="all") for text in texts]
        bos = True if bos is None else bos
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise Error(
                f"the prompts have {', '.join(map(str, lengths))} tokens and must all have as "
                "many, since positions are compared: reword them, or run each length alone"
            )
        if not lengths[0] and not bos:
            raise Error("the text is empty: give some, or leave bos on")
        tokens = np.array(rows, int).reshape(len(rows), lengths[0])
    else:
        tokens = _ids(model, text_or_tokens)
    end = _end_of_text(model, needed=bos)
    if bos:
        tokens = np.insert(tokens, 0, end, axis=1)
    if tokens.shape[1] > model.config.n_ctx:
        raise Error(f"{tokens.shape[1]} positions do not fit: n_ctx is {model.config.n_ctx}")
    return Prompts(tokens, end is not None and bool((tokens[:, 0] == end).all()))


def _tokenizer(model):
    if model.tokenizer is None:
        raise Error("this model has no vocabulary files, so text means nothing to it: give ids")
    return model.tokenizer


def _end_of_text(model, needed=False):
    """The id of <|endoftext|>, or None where the model has no vocabulary or that lacks it."""
    end = getattr(model.tokenizer, "end_of_text", None)
    if needed and end is None:
        raise Error("bos=True needs a model whose vocabulary has <|endoftext|>: use bos=False")
    return end


def _ids(model, tokens):
    """Ids [b, q], checked to be tokens."""
    return gpt2_np.token_batch(tokens, replace(model.config, n_vocab=vocabulary_size(model)))


def token_id(model: Model, text_or_id: Any) -> int:
    """The id of a text that is exactly one token, or an id checked; Error where it is neither."""
    if isinstance(text_or_id, str):
        ids = _tokenizer(model).encode(text_or_id, allowed_special="all")
        if len(ids) != 1:
            pieces = [model.tokenizer.decode([i]) for i in ids]
            hint = "" if text_or_id[:1] == " " else "; words inside a text begin with a space"
            raise Error(f"{text_or_id!r} is {len(ids)} tokens {pieces}, it must be one{hint}")
        return ids[0]
    return int(_ids(model, [[text_or_id]])[0, 0])


def _answers(model, answers):
    """Ids [1 or b] from a text, an id, or a sequence of either."""
    several = isinstance(answers, list | tuple | np.ndarray)
    return np.array([token_id(model, answer) for answer in (answers if several else [answers])])


def _one_each(ids, n):
    """Ids [1 or n, ...] as one for each of n prompts."""
    if len(ids) not in (1, n):
        raise Error(f"{len(ids)} answers were given for {n} prompts: give one, or one for each")
    return np.broadcast_to(ids, (n, *ids.shape[1:]))


def labels_of(model: Model, tokens: Sequence[int]) -> list[str]:
    """What each token reads as, for tables and plots; an id where the vocabulary has no text."""
    n = 0 if model.tokenizer is None else vocabulary_size(model)
    return [model.tokenizer.decode([i]) if i < n else str(i) for i in map(int, tokens)]


def _check_index(what, index, n, negative=False):
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise Error(f"{what} is {index!r}: it must be an integer")
    if not (-n if negative else 0) <= index < n:
        raise Error(f"{what} {index} does not exist: there are {n}, counted from 0")


def _check_count(what, count, most=None):
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise Error(f"{what} is {count!r}: it must be an integer of at least 1")
    if most and count > most:
        raise Error(f"{what} is {count}: a task makes at most {most} prompts")


def _check_numbers(what, array, model=None):
    """Error where there is NaN or infinity, with the first parameter that holds it too."""
    if not np.isfinite(array).all():
        leaves = _leaves(model.params) if model else ()
        cause = next((f"{name} does" for name, leaf in leaves
                      if not np.isfinite(to_host(leaf)).all()), "weights do or are far too large")
        raise Error(f"{what} hold NaN or infinity, as the model's {cause}: get the model again")


def _leaves(params, name=""):
    """(name, array) of nested parameters: "blocks.0.attn.c_attn.w", ..."""
    if not isinstance(params, Mapping | list | tuple):
        yield name[1:], params
        return
    for key, inner in params.items() if isinstance(params, Mapping) else enumerate(params):
        yield from _leaves(inner, f"{name}.{key}")


# --- 1. activations: names -------------------------------------------------------------

_BLOCK_NAMES = [
    "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k",
    "attn.hook_v", "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z",
    "attn.hook_result", "hook_attn_out", "hook_resid_mid", "ln2.hook_scale",
    "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
]  # fmt: skip
_SHORT = {name.rpartition("hook_")[2]: name for name in _BLOCK_NAMES if "ln" not in name}
_BY_HEAD = {"q", "k", "v", "z", "result", "pattern", "attn_scores"}


def activation_name(short: str, layer: int) -> str:
    """("q", 5) -> "blocks.5.attn.hook_q"; likewise resid_pre, attn_out, pattern, post, ..."""
    if short not in _SHORT:
        raise Error(f"unknown activation {short!r}{_near(short, _SHORT)}")
    return f"blocks.{layer}.{_SHORT[short]}"


def _pattern(name):
    """What a short name stands for: "q" or "hook_q" every layer's; any other name is as it is."""
    short = str(name).removeprefix("hook_")
    if short in ("embed", "pos_embed"):
        return f"hook_{short}"
    return f"blocks.*.{_SHORT[short]}" if short in _SHORT else str(name)


def _layer_of(name):
    return int(name.split(".")[1])


def activation_names(config: Config) -> list[str]:
    """Every name that `run` can give, in the order of the forward pass."""
    blocks = [f"blocks.{layer}.{name}" for layer in range(config.n_layer) for name in _BLOCK_NAMES]
    ends = ["ln_final.hook_scale", "ln_final.hook_normalized"]
    return ["hook_embed", "hook_pos_embed", *blocks, *ends]


def head_names(config: Config) -> list[str]:
    """"L0H0", "L0H1", ...: every head, layer by layer."""
    return [f"L{layer}H{head}" for layer in range(config.n_layer) for head in range(config.n_head)]


def node_names(config: Config) -> list[str]:
    """Every head and MLP, layer by layer: "L0H0", ..., "MLP0", "L1H0", ..."""
    return [name for layer in range(config.n_layer)
            for name in [*(f"L{layer}H{head}" for head in range(config.n_head)), f"MLP{layer}"]]


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


def _near(name, known):
    """"; did you mean a, b or c?" with the names most like this one, or some that there are."""
    found = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if not found:
        known = list(known)
        return f"; there are {', '.join(known[:3])}, ... {known[-1]}" if known else "; none was"
    return f"; did you mean {' or '.join(filter(None, [', '.join(found[:-1]), found[-1]]))}?"


def _matching(names, config):
    """The set of activation names that names, short names, globs or a predicate mean."""
    known = activation_names(config)
    if callable(names):
        return {name for name in known if names(name)}
    matching = set()
    for name in [names] if isinstance(names, str) else names:
        found = set(fnmatch.filter(known, _pattern(name)))
        if not found:
            raise Error(f"unknown activation {name!r}{_near(name, [*_SHORT, *known])}")
        matching |= found
    return matching


# --- 1. activations: running -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Run:
    """What one pass gave: logits [b, q, v], activations by name, and the prompts it ran on."""

    logits: np.ndarray
    activations: dict[str, np.ndarray]
    tokens: np.ndarray
    bos: bool

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.activations:
            return self.activations[name]
        found = fnmatch.filter(self.activations, _pattern(name))
        if len(found) != 1:
            raise Error(f"{name!r} is in {len(found)} layers: name one, as {found[0]}" if found
                        else f"{name!r} was not kept{_near(name, self.activations)}")
        return self.activations[found[0]]


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
            edited = given if edited is None else namespace(array).asarray(edited, array.dtype)
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
    """Logits and the activations asked for; no other is kept.

    `names`: one or several of exact names, globs and short names ("resid_pre" is that of every
    layer, as "blocks.*.hook_resid_pre"), or a predicate. `edits` maps such names to
    `function(array, name)`, which returns a new array or changes the one it is given, or to an
    array; edits come before what is kept. `last_only` makes logits of the last position only,
    [b, 1, v]. Raises Error for names that do not exist, with the nearest that do, and for edits of
    another shape.
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


# --- 2. the residual stream as a sum ---------------------------------------------------


@dataclass(frozen=True, eq=False)
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


def decompose(
    model: Model,
    text_or_tokens: Any,
    at: str | None = None,
    *,
    position: int | None = None,
    neurons: Sequence[int] = (),
    constants_apart: bool = False,
    bos: bool | None = None,
) -> Parts:
    """The stream at `at`, a layer's resid_pre, resid_mid or resid_post (or the last), as a sum.

    Labels: "embed", "pos_embed", heads "L5H1", each layer's attention bias "b_O5", MLPs "MLP5";
    in the layers that `neurons` lists, single neurons "L5N17" and the bias "b_out5" instead of
    "MLP5". One `position` (an axis of length 1) or all. With `constants_apart`, what a head
    writes whatever it attends to, (b_V + ln_1.b W_V) W_O, counts as attention bias: where
    TransformerLens puts it when it processes weights. (Elhage et al. 2021, "The Residual Stream as
    a Communication Channel".)
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
        if constants_apart:
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
    written = {"resid_pre": (0, 0), "resid_mid": (1, 0), "resid_post": (1, 1)}
    found = sorted(_matching(at or activation_name("resid_post", config.n_layer - 1), config))
    if len(found) != 1:
        raise Error(f"at is {at!r}, which is {len(found)} activations: name one, such as "
                    "blocks.0.hook_resid_mid")
    kind = found[0].rpartition("hook_")[2]
    if kind not in written:
        raise Error(f"{at!r} is not the residual stream: choose a layer's {', '.join(written)}")
    layer = _layer_of(found[0])
    return layer + written[kind][0], layer + written[kind][1]


def _one_position(position, tokens):
    """A slice of one position, or of all."""
    if position is None:
        return slice(None)
    n = tokens.shape[1]
    _check_index("position", position, n, negative=True)
    return slice(position % n, position % n + 1)


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

    @property
    def reading(self):
        return self.W_Q, self.W_K, self.W_V

    @property
    def biases(self):
        return self.b_Q, self.b_K, self.b_V


def _attention_weights(model, layer, folded=False):
    """Views of one layer's weights; `folded` with the layer norm's gain and shift inside them.

    Folded weights read normalised streams, which have mean 0, so that their own mean over d is
    taken out of W_Q, W_K, W_V as well, and that of what W_O writes: no logit difference changes.
    """
    _check_index("layer", layer, model.config.n_layer)
    d, h = model.config.n_embd, model.config.n_head
    attn, norm = (_host(model.params["blocks"][layer][part]) for part in ("attn", "ln_1"))
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
    """Nested parameters on the host, of float16 as float32; others are the arrays themselves."""
    if isinstance(params, Mapping):
        return {key: _host(value) for key, value in params.items()}
    array = to_host(params)  # numpy.linalg refuses float16
    return array.astype(np.promote_types(array.dtype, np.float32), copy=False)


# --- 3. logits: direct attribution and the lens ----------------------------------------


@dataclass(frozen=True, eq=False)
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
            layer = re.search(r"\d+", label)  # "L5H1" and "b_O5", or "MLP5", "L5N17" and "b_out5"
            kind = "attn" if "H" in label or "b_O" in label else "mlp"
            sums[names.index(f"{layer[0]}_{kind}_out" if layer else label)] += value
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
    constants_apart: bool = False,
    bos: bool | None = None,
) -> Attribution:
    """Direct logit attribution at one position: every part of the stream read by the unembedding.

    For the logit of `answer`, minus that of `wrong` where given (one for all prompts, or one each;
    texts of one token, or ids), or for all tokens. The final layer norm divides by the scale of
    the whole stream, held fixed, so that it is linear and parts sum to the logit exactly. `neurons`
    and `constants_apart` as in `decompose`. (Elhage et al. 2021; Wang et al. 2022, section 3.1.)
    """
    given = prompts(model, text_or_tokens, bos)
    if wrong is not None and answer is None:
        raise Error("wrong was given without answer: give both, or answer alone")
    parts = decompose(model, given, position=position, neurons=neurons,
                      constants_apart=constants_apart)
    values = parts.values[:, :, 0]  # [p, b, d]
    norm, wte = _host(model.params["ln_f"]), _host(model.params["wte"])
    stream = _centred(values.sum(axis=0))
    scale = np.sqrt((stream * stream).mean(axis=-1, keepdims=True) + gpt2_np.LAYER_NORM_EPSILON)
    read = _centred(values) / scale * norm["g"]
    read = np.concatenate([read, np.broadcast_to(norm["b"], (1, *stream.shape))])
    if answer is None:
        values = einsum("pbd,vd->pbv", read, wte)
    else:
        direction = wte[_one_each(_answers(model, answer), len(stream))]
        if wrong is not None:
            direction = direction - wte[_one_each(_answers(model, wrong), len(stream))]
        values = np.einsum("pbd,bd->pb", read, direction)
    _check_numbers("the logits", values, model)
    where = position % given.tokens.shape[1]
    return Attribution([*parts.labels, "ln_final.b"], values, values.sum(axis=0), where,
                       given.tokens, given.bos)


@dataclass(frozen=True, eq=False)
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

    The stream at each point gets the final layer norm with its own statistics; with `frozen`, the
    scale of the finished stream, as attribution has it. `answer` is one for all prompts or one
    each; `top` is how many of the best tokens to keep.
    """
    config, params = model.config, model.params
    given = prompts(model, text_or_tokens, bos)
    where = _one_position(position, given.tokens)
    streams = [activation_name(s, n) for n in range(config.n_layer)
               for s in ("resid_pre", "resid_mid")]
    streams.append(activation_name("resid_post", config.n_layer - 1))
    seen = run(model, given, [*streams, "ln_final.hook_scale"])
    _check_numbers("the logits", seen.logits, model)
    n = vocabulary_size(model)
    if not 1 <= top <= n:
        raise Error(f"top is {top}: it must be from 1 to the vocabulary's {n}")
    if answer is None:
        best = seen.logits[:, -1:, :n].argmax(axis=-1)
        targets = np.append(given.tokens[:, 1:], best, axis=1)
    else:
        targets = _one_each(_answers(model, answer), len(given.tokens))[:, None]
        targets = np.repeat(targets, given.tokens.shape[1], axis=1)
    targets = targets[:, where]
    xp = namespace(params["wte"])
    rows = []
    for name in streams:
        fixed = xp.asarray(seen["ln_final.hook_scale"][:, where]) if frozen else None
        x = xp.asarray(seen[name][:, where])
        tap = gpt2_np.Tap(lambda name, _, fixed=fixed: fixed if name == "hook_scale" else None)
        normalized = gpt2_np.layer_norm(x, **params["ln_f"], tap=tap if frozen else NO_TAP)
        logits = to_host(gpt2_np.unembed(normalized, params))[..., :n]
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


# --- 4. attention ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
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
    """How every head attends in the given text, or else in random tokens that repeat once.

    The random tokens are `batch` rows of `length` tokens twice: 50, or as many as n_ctx holds. A
    score is the attention on the keys in question, averaged over the queries that have any: for
    previous tokens all but the first, for duplicate and induction those whose token has been seen
    before. Patterns are read layer by layer and not kept. (Olsson et al. 2022, "Head activation
    evaluators".)
    """
    if text_or_tokens is None:
        config = model.config
        length = length or min(50, (config.n_ctx - 1) // 2, (vocabulary_size(model) - 2) // 2)
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
        scores[_layer_of(name)] = row

    read.wants = lambda name: name.endswith("hook_pattern")
    gpt2_np.forward(model.params, model.config, given.tokens, tap=read, last_only=True)
    columns = {kind: np.stack([scores[layer][kind] for layer in sorted(scores)])
               for kind in scores[0]}
    _check_numbers("attention patterns", columns["entropy"], model)
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


# --- 5. interventions: metrics ---------------------------------------------------------
#
# A metric maps logits [b, q, v] to one number per prompt, [b]; any function does. It may carry
# `gradient(logits [b, 1, v]) -> [b, v]`, which attribution of edges needs, and
# `of_stream(x [b, d], params) -> [b]`, the same number from the final layer norm's result at the
# last position: sweeps then leave out the unembedding, a tenth to a quarter of their time.


def logit_difference(model: Model, answer: Any, wrong: Any) -> Metric:
    """Metric: logit of `answer` minus that of `wrong` at the last position, [b, q, v] -> [b].

    Each is one token (text or id) for all prompts, or one for each.
    """
    both = [_answers(model, tokens) for tokens in (answer, wrong)]

    def metric(logits):
        last = logits[:, -1]
        right, wrong = (last[np.arange(len(last)), _one_each(ids, len(last))] for ids in both)
        return right - wrong

    def gradient(logits):
        result = np.zeros((len(logits), logits.shape[-1]), logits.dtype)
        for ids, sign in zip(both, (1, -1), strict=True):
            np.add.at(result, (np.arange(len(logits)), _one_each(ids, len(logits))), sign)
        return result

    def of_stream(x, params):
        wte = params["wte"]
        right, wrong = (to_host(wte[namespace(wte).asarray(_one_each(ids, len(x)))])
                        for ids in both)
        return einsum("bd,bd->b", x, right - wrong)

    metric.gradient, metric.of_stream = gradient, of_stream
    return metric


def log_probability(model: Model, answer: Any) -> Metric:
    """Metric: log-probability (nats) of `answer` at the last position, [b, q, v] -> [b]."""
    ids, n = _answers(model, answer), vocabulary_size(model)

    def metric(logits):
        last = logits[:, -1, :n]
        return last[np.arange(len(last)), _one_each(ids, len(last))] - _log_sum_exp(last)

    def gradient(logits):
        result = np.zeros_like(logits[:, -1])
        result[:, :n] = -gpt2_np.softmax(logits[:, -1, :n])
        result[np.arange(len(result)), _one_each(ids, len(result))] += 1
        return result

    metric.gradient = gradient
    return metric


def repeat_loss(tokens: np.ndarray, n: int) -> Metric:
    """Metric: mean loss (nats) of the last `n` tokens given all before, [b, q, v] -> [b].

    Needs the logits of all positions: sweeps want `last_only=False` with it. It knows no model, so
    that the rows that pad an embedding count.
    """
    tokens = np.atleast_2d(tokens)
    if not 1 <= n < tokens.shape[1]:
        raise Error(f"the loss of {n} tokens was asked for: of {tokens.shape[1]}, from 1 to "
                    f"{tokens.shape[1] - 1} come after another")
    targets = tokens[:, -n:, None]

    def metric(logits):
        if logits.shape[1] != tokens.shape[1]:
            raise Error(f"the loss of {n} tokens needs the logits of all {tokens.shape[1]} "
                        f"positions, {logits.shape[1]} were given: use last_only=False")
        before = logits[:, -n - 1 : -1]
        right = np.take_along_axis(before, _one_each(targets, len(before)), axis=-1)
        return (_log_sum_exp(before) - right[..., 0]).mean(axis=-1)

    return metric


def _log_sum_exp(x):
    best = x.max(axis=-1)
    return best + np.log(np.exp(x - best[..., None]).sum(axis=-1))


def _checked(values, n):
    """What a metric gave, as floats [n]; Error where it is not one number per prompt."""
    values = np.asarray(values, float)
    if values.shape != (n,):
        raise Error(f"the metric gave shape {values.shape} for {n} prompts: it must give one "
                    f"number for each, ({n},)")
    return values


# --- 5. interventions: edits -----------------------------------------------------------


def patch(values: Any, head: Any = None, position: Any = None) -> Edit:
    """Edit for `run`: put `values` (an activation of the same shape) in at a head and position.

    Each is an int, a list, a slice, or None for all. For attention patterns the position is the
    query's.
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
        scores = to_host(array)  # [b, h, q, k]
        wanted = (("head", head), ("query", queries), ("key", keys))
        chosen = [_chosen(what, i, n) for (what, i), n in
                  zip(wanted, scores.shape[1:], strict=True)]
        scores[np.ix_(range(len(scores)), *chosen)] = -np.inf
        if np.isneginf(scores).all(axis=-1).any():
            raise Error(f"knock_out leaves a query of {name} without any key: spare one")
        return scores

    return edit


def _index(array, name, head, position):
    """Where heads and positions are in the activation of that name, as an index of it."""
    kind, xp = name.rpartition("hook_")[2], namespace(array)
    if head is not None and kind not in _BY_HEAD:
        raise Error(f"{name} has no heads: leave head out")
    wanted = [("position", position)]
    if kind in ("pattern", "attn_scores"):  # [b, h, q, k]
        wanted.insert(0, ("head", head))
    elif kind in _BY_HEAD:  # [b, q, h, ...]
        wanted.append(("head", head))
    chosen = [_chosen(what, i, n) for (what, i), n in zip(wanted, array.shape[1:], strict=False)]
    return (slice(None), *map(xp.asarray, np.ix_(*chosen)))


def _chosen(what, index, n):
    """The indices below n that an int, a list, a slice or None (all) means, checked."""
    if index is None or isinstance(index, slice):
        return np.arange(n)[slice(None) if index is None else index]
    for one in np.atleast_1d(index).tolist():
        _check_index(what, one, n, negative=True)
    return np.atleast_1d(index) % n


MODES = ("zero", "mean", "resample")


def ablated(
    model: Model, nodes: Iterable[Any], mode: str = "zero", *, reference: Any = None
) -> dict[str, Edit]:
    """Edits for `run` that ablate heads and MLPs ("L5H1", "5.1", (5, 1), "MLP3").

    "zero"; "mean" puts in the mean over the `reference` prompts, position by position; "resample"
    their activations, prompt by prompt. Reference prompts must be as long as those of the run.
    """
    heads_of = _heads_by_name(parse_node(model.config, node) for node in nodes)
    source, _ = _replacements(model, reference, mode, reference, sorted(heads_of))
    return _replacing(heads_of, source)


def _heads_by_name(nodes):
    """Which heads of which hook_z the nodes are; None for the whole of a hook_mlp_out."""
    found: dict[str, list | None] = {}
    for layer, head in nodes:
        if head is None:
            found[activation_name("mlp_out", layer)] = None
        else:
            found.setdefault(activation_name("z", layer), []).append(head)
    return found


def _replacing(heads_of, source):
    """Edits that put `source` (None: zeros) in at those heads and MLPs."""
    return {name: zero(chosen) if source is None else patch(source[name], chosen)
            for name, chosen in heads_of.items()}


def _replacements(model, given, mode, reference, names):
    """What ablation puts in: activations [1 or b, q, ...] by name, and shared first positions."""
    if mode not in MODES:
        raise Error(f"unknown ablation {mode!r}: choose one of {', '.join(MODES)}")
    if mode == "zero":
        return None, 0
    if reference is None:
        raise Error(f"{mode}-ablation needs reference prompts: give reference=")
    given, reference = prompts(model, given), prompts(model, reference)
    if mode == "mean":
        _check_pair(given, reference, "reference", any_number=True)
        seen = run(model, reference, names, last_only=True).activations
        return {name: array.mean(axis=0, keepdims=True) for name, array in seen.items()}, 0
    _check_pair(given, reference, "reference")
    return run(model, reference, names, last_only=True).activations, _shared(given, reference)


def _check_pair(given, other, what, any_number=False):
    """Error unless the other prompts are as long, and one for all or one for each."""
    (n, length), (n_other, other_length) = given.tokens.shape, other.tokens.shape
    if length != other_length:
        raise Error(f"the prompts have {length} tokens and the {what} prompts {other_length}: "
                    "positions are compared, so reword one until both have as many")
    if n_other not in (1, n) and not any_number:
        raise Error(f"{n_other} {what} prompts for {n} prompts: give one for each, or one for all")


def _shared(a, b):
    """How many first positions have the same token in every pair of prompts."""
    differ = (a.tokens != b.tokens).any(axis=0)
    return int(differ.argmax()) if differ.any() else a.tokens.shape[1]


# --- 5. interventions: sweeps ----------------------------------------------------------


@dataclass(frozen=True, eq=False)
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
        """How far the metric went from base to source (ablations: from base to 0), as a share.

        0 is not at all, 1 all the way, and below 0 away from it: 0.95 says that patching restored
        or ablation removed 95%, with the sign of `Circuit.minimality`. Raises Error where there is
        no difference to have a share of.
        """
        whole = (0 if self.source is None else self.source.mean()) - self.base.mean()
        if abs(whole) < 1e-6 * max(1.0, abs(self.base.mean())):
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
    query's); a long name or glob says layers too. `metric` maps logits [b, q, v] to [b]; it sees
    the last position only unless `last_only` is off. Layers left out are NaN. Layers below the
    patch and positions before it are not computed again, and the result is that of a whole pass for
    every cell.
    (Meng et al. 2022; Wang et al. 2022; Heimersheim & Nanda 2024 on how to read the result.)
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    _check_pair(base, source, "source")
    what, layers = _patched(what, layers, model.config)
    stored = _Stored(model, base, metric, _needed(what), last_only=last_only)
    seen = run(model, source, f"blocks.*.{_SHORT[what]}", last_only=last_only)
    sweep = stored.sweep(seen.activations, what, by_position, layers, _shared(base, source),
                         progress)
    return replace(sweep, source=stored.of_source(seen))


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
    what, layers = _patched(what, layers, model.config)
    stored = _Stored(model, given, metric, _needed(what), last_only=last_only)
    names = [activation_name(what, layer) for layer in range(model.config.n_layer)]
    source, shared = _replacements(model, given, mode, reference, names)
    return stored.sweep(source, what, by_position, layers, shared, progress)


# What can be patched, and the sub-layer before which the stream has changed, counted from that
# layer's attention.
PATCHABLE = {"resid_pre": 0, "resid_mid": 1, "resid_post": 2, "attn_out": 1, "mlp_out": 2,
             "q": 1, "k": 1, "v": 1, "z": 1, "pattern": 1}  # fmt: skip


def _patched(what, layers, config):
    """The short name of what is to be patched, and the layers."""
    found = _matching(what, config)
    kinds = {name.rpartition("hook_")[2] for name in found}
    if len(kinds) != 1 or not kinds <= PATCHABLE.keys():
        raise Error(f"cannot patch {what!r}: choose one of {', '.join(PATCHABLE)}")
    for layer in () if layers is None else layers:
        _check_index("layer", layer, config.n_layer)
    named = sorted(map(_layer_of, found))
    return kinds.pop(), [n for n in named if layers is None or n in layers]


def _needed(what):
    """The stored activations from which a patch of `what` is computed."""
    return ("q", "k", "v", "pattern") if what in ("q", "k", "v", "pattern") else (what,)


class _Stored:
    """A run of the base prompts, from whose stored streams, keys and values sweeps go on.

    `edits` (for `run`) change that run, and the tap that `held(copies)` gives keeps them up in
    batches of copies of its prompts.
    """

    def __init__(self, model, given, metric, extra=(), edits=None, held=None, last_only=True):
        self.model, self.metric, self.held, self.last_only = model, metric, held, last_only
        config = model.config
        names = {activation_name(short, layer) for layer in range(config.n_layer)
                 for short in ("resid_pre", "resid_mid", "k", "v", *extra)}
        names.add(activation_name("resid_post", config.n_layer - 1))
        self.run = run(model, given, sorted(names), edits=edits, last_only=last_only)
        _check_numbers("the logits", self.run.logits, model)
        self.n, self.length = self.run.tokens.shape
        self.measured = _checked(metric(self.run.logits), self.n)

    def of_source(self, seen):
        """The metric [b] of the prompts that activations come from: one for all, or one each."""
        return _checked(self.metric(_one_each(seen.logits, self.n)), self.n)

    def stream(self, start):
        """The residual stream before sub-layer `start`, [b, q, d]."""
        if start >= 2 * self.model.config.n_layer:
            return self.run[activation_name("resid_post", self.model.config.n_layer - 1)]
        return self.run[activation_name(("resid_pre", "resid_mid")[start % 2], start // 2)]

    def measure(self, x, start, first, tap=NO_TAP):
        """The metric [copy, b] of streams [copy b, q, d] before sub-layer `start`.

        They begin at position `first`: before it they are as stored.
        """
        copies = len(x) // self.n

        def before(layer):
            return (np.tile(self.run[activation_name(kind, layer)][:, :first], (copies, 1, 1, 1))
                    for kind in "kv")

        x = _rest(self.model, x, start, first, before, tap, self.last_only)
        params, of_stream = self.model.params, getattr(self.metric, "of_stream", None)
        if of_stream and self.last_only:
            x = to_host(x).reshape(copies, self.n, -1)
            return np.stack([_checked(of_stream(own, params), self.n) for own in x])
        logits = to_host(gpt2_np.unembed(x, params))
        logits = logits.reshape(copies, self.n, *logits.shape[1:])
        if not self.last_only:
            known = np.broadcast_to(self.run.logits[:, :first],
                                    (copies, self.n, first, logits.shape[-1]))
            logits = np.concatenate([known, logits], axis=2)
        return np.stack([_checked(self.metric(own), self.n) for own in logits])

    def sweep(self, source, what, by_position=None, layers=None, shared=0, progress=False,
              chosen=None):
        """Every cell of a sweep; `source` None is zeros. Cells outside `chosen` stay NaN.

        Cells that start at the same sub-layer and close positions share a batch, which starts at
        the first of their positions, from the stored stream plus each cell's change.
        """
        config = self.model.config
        by_position = what not in _BY_HEAD if by_position is None else by_position
        axes = ("layer", *["head"] * (what in _BY_HEAD), *["position"] * by_position)
        sizes = {"layer": config.n_layer, "head": config.n_head, "position": self.length}
        layers = range(config.n_layer) if layers is None else layers
        per_prompt = np.full((*(sizes[axis] for axis in axes), self.n), np.nan)
        cells = []  # (sub-layer, first position that changes, index)
        for index in np.ndindex(per_prompt.shape[:-1]):
            if index[0] in layers and (chosen is None or index in chosen):
                first = max(shared, index[-1]) if by_position else shared
                if first >= self.length or (by_position and index[-1] < shared):
                    per_prompt[index] = self.measured  # nothing differs there
                else:
                    cells.append((2 * index[0] + PATCHABLE[what], first, index))
        cells.sort(key=lambda cell: (cell[0], -cell[1]))
        with _progress(len(cells), progress) as bar:
            while cells:
                start, first, _ = cells[0]
                count = 0
                for cell_start, cell_first, _ in cells:
                    rows = (count + 1) * self.n * (self.length - cell_first)
                    if cell_start != start or (count and rows > ROWS_AT_ONCE):
                        break
                    first, count = cell_first, count + 1
                group, cells = cells[:count], cells[count:]
                stream = self.stream(start)[:, first:]
                changes = [self.change(source, what, shared, **dict(zip(axes, index, strict=True)))
                           for _, _, index in group]
                x = np.concatenate([stream + change[:, first:] for change in changes])
                tap = gpt2_np.Tap(self.held(count)) if self.held else NO_TAP
                values = self.measure(x, start, first, tap)
                for (_, _, index), value in zip(group, values, strict=True):
                    per_prompt[index] = value
                bar.update(count)
        return Sweep(what, axes, per_prompt, self.measured, None, self.run.tokens, self.run.bos)

    def change(self, source, what, shared, layer, head=None, position=None):
        """What a patch adds to the stream, [b, q, d]: from stored activations, no layer is run."""
        name = activation_name(what, layer)
        old = self.run[name]
        new = np.zeros_like(old) if source is None else source[name]
        if head is not None:
            axis = 1 if what == "pattern" else 2  # [b, h, q, k], the others [b, q, h, e]
            old, new = old.take(head, axis), new.take(head, axis)
        here = np.arange(self.length)
        here = here >= shared if position is None else here == position
        new = np.where(here[:, None], new, old)  # [b, q, d | e | k]
        change = new - old
        if head is None:
            return change
        if what != "z":
            q, k, v = (self.run[activation_name(kind, layer)][:, :, head] for kind in "qkv")
            pattern = self.run[activation_name("pattern", layer)][:, head]
            if what in ("q", "k"):
                q, k = (new, k) if what == "q" else (q, new)
                scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
                scores[:, ~np.tri(self.length, dtype=bool)] = -np.inf
                change = gpt2_np.softmax(scores) - pattern
            change = pattern @ change if what == "v" else change @ v
        return change @ _attention_weights(self.model, layer).W_O[head]


def _rest(model, x, start, first, before, tap, last_only):
    """From the stream before sub-layer `start` to the final layer norm's result, [b, q, d].

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
        x = x + here("hook_mlp_out", _mlp(block, x, here))
    return gpt2_np.layer_norm(x[:, -1:] if last_only else x, **params["ln_f"], tap=NO_TAP)


def _mlp(block, x, tap=NO_TAP):
    """What a block's MLP, with its layer norm, makes of a stream [b, q, d]."""
    normalized = gpt2_np.layer_norm(x, **block["ln_2"], tap=tap.under("ln2."))
    return gpt2_np.mlp(normalized, **block["mlp"], tap=tap.under("mlp."))


def _progress(total, shown):
    """A progress bar on stderr, or something that can be updated and shows nothing."""
    if shown:
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            return tqdm(total=total, unit="patch", file=sys.stderr, leave=False)
    return contextlib.nullcontext(types.SimpleNamespace(update=lambda n: None))


# --- 5. interventions: path patching ---------------------------------------------------


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
    _check_pair(base, source, "source")
    receivers = _receivers(model.config, receivers)
    if position is not None:
        position = _one_position(position, base.tokens).start
    stored = _Stored(model, base, metric, ("z",), last_only=last_only)
    seen = run(model, source, "blocks.*.attn.hook_z", last_only=last_only)
    n_layer, n_head = model.config.n_layer, model.config.n_head
    per_prompt = np.tile(stored.measured, (n_layer, n_head, 1))
    shared = _shared(base, source)
    first = max(shared, position or 0)  # nothing differs before
    at_once = max(1, ROWS_AT_ONCE // (stored.n * max(1, stored.length - first)))
    ends = {layer for layer, _, _ in receivers} or {n_layer}
    senders = [] if first == stored.length else [
        (layer, range(head, min(head + at_once, n_head)))
        for layer in range(max(ends)) for head in range(0, n_head, at_once)
    ]
    with _progress(len(senders), progress) as bar:
        for layer, chosen in senders:
            sent = np.concatenate([
                stored.change(seen.activations, "z", shared, layer, head, position)[:, first:]
                for head in chosen
            ])
            streams = _direct_streams(stored, sent, layer, ends, first, through_mlps)
            per_prompt[layer, chosen] = _receive(stored, streams, receivers, first)
            bar.update(1)
    return Sweep("path", ("layer", "head"), per_prompt, stored.measured, stored.of_source(seen),
                 base.tokens, base.bos)


def _receivers(config, receivers):
    """[] for the logits, else checked (layer, head, "q" | "k" | "v")."""
    if isinstance(receivers, str):
        if receivers != "logits":
            raise Error(f"unknown receiver {receivers!r}: give 'logits' or a list such as "
                        "[(9, 6, 'q')]")
        return []
    for receiver in receivers:
        if not (isinstance(receiver, list | tuple) and len(receiver) == 3
                and receiver[1] is not None and receiver[2] in ("q", "k", "v")):
            raise Error(f"unknown receiver {receiver!r}: write (layer, head, 'q'), 'k' or 'v'")
        parse_node(config, tuple(receiver[:2]))
    if not receivers:
        raise Error("there are no receivers: give some, such as [(9, 6, 'q')], or 'logits'")
    return list(receivers)


def _direct_streams(stored, sent, sender, ends, first, through_mlps):
    """{layer of `ends`: the stream before it}, with `sent` added and no other head moving.

    Streams and what the sender's layer adds to them, `sent`, are [copy b, q, d] from `first` on.
    """
    model, streams = stored.model, {}
    copies, xp = (len(sent) // stored.n, 1, 1), namespace(model.params["wte"])
    for layer in range(sender, max(ends) + 1):
        if layer in ends and layer > sender:
            streams[layer] = np.tile(stored.stream(2 * layer)[:, first:], copies) + sent
        if through_mlps and layer < max(ends):
            mid, block = stored.stream(2 * layer + 1)[:, first:], model.params["blocks"][layer]
            moved, still = (to_host(_mlp(block, xp.asarray(x)))
                            for x in (np.tile(mid, copies) + sent, mid))
            sent = sent + moved - np.tile(still, copies)
    return streams


def _receive(stored, streams, receivers, first):
    """The metric [copy, b] of the base run where only the receivers see the changed streams."""
    model, lowest = stored.model, min(streams)
    if not receivers:
        return stored.measure(streams[lowest], 2 * lowest, first)
    xp, arriving = namespace(model.params["wte"]), {}
    for layer, head, kind in receivers:
        if layer in streams:
            norm, weights = model.params["blocks"][layer]["ln_1"], _attention_weights(model, layer)
            x = to_host(gpt2_np.layer_norm(xp.asarray(streams[layer]), **norm, tap=NO_TAP))
            w, b = getattr(weights, f"W_{kind.upper()}"), getattr(weights, f"b_{kind.upper()}")
            new = x @ w[head] + b[head]
            arriving.setdefault(activation_name(kind, layer), []).append((head, new))

    def receive(name, array):
        array = array.copy()
        for head, new in arriving[name]:
            array[:, :, head] = xp.asarray(new)
        return array

    receive.wants = arriving.__contains__
    copies = len(streams[lowest]) // stored.n
    x = np.tile(stored.stream(2 * lowest)[:, first:], (copies, 1, 1))
    return stored.measure(x, 2 * lowest, first, gpt2_np.Tap(receive))


# --- 6. weights ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix [n, m] as a product left [n, r] @ right [r, m] that is not multiplied out.

    Leading axes, where there are any, are batches. Row vectors multiply from the left, as in the
    model: x @ W_V @ W_O. A product with a vector is a vector, with a matrix a LowRank. What
    TransformerLens calls FactoredMatrix.
    """

    left: np.ndarray
    right: np.ndarray
    __array_ufunc__ = None  # array @ LowRank is our __rmatmul__, not NumPy's

    def __post_init__(self):
        _check_meet(self.left, self.right)

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

    def __matmul__(self, other: Any) -> LowRank | np.ndarray:
        """With another LowRank the product keeps the smaller of the two ranks."""
        other = other if isinstance(other, LowRank) else np.asarray(other)
        _check_meet(self, other)
        if not isinstance(other, LowRank):
            right = self.right @ other
            if other.ndim > 1:
                return LowRank(self.left, right)
            return (self.left @ right[..., None])[..., 0]  # of a batch, vectors
        middle = self.right @ other.left
        if self.left.shape[-1] <= other.left.shape[-1]:
            return LowRank(self.left, middle @ other.right)
        return LowRank(self.left @ middle, other.right)

    def __rmatmul__(self, other: Any) -> LowRank | np.ndarray:
        return self.T @ other if np.ndim(other) == 1 else (self.T @ np.swapaxes(other, -1, -2)).T

    def eigenvalues(self) -> np.ndarray:
        """The r that can differ from 0, complex, of a square matrix: those of right @ left."""
        if self.shape[-2] != self.shape[-1]:
            raise Error(f"a matrix of shape {self.shape} has no eigenvalues: it is not square")
        inner = self.right @ self.left
        _check_numbers("the matrix's factors", inner)
        return np.linalg.eigvals(inner)

    def svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """u [n, r], singular values [r] from the largest, vt [r, m], by QR of both factors."""
        q_left, r_left = np.linalg.qr(self.left)
        q_right, r_right = np.linalg.qr(self.right.swapaxes(-1, -2))
        inner = r_left @ r_right.swapaxes(-1, -2)
        _check_numbers("the matrix's factors", inner)
        u, values, vt = np.linalg.svd(inner, full_matrices=False)
        return q_left @ u, values, vt @ q_right.swapaxes(-1, -2)

    def norm(self) -> np.ndarray:
        """Frobenius norm."""
        return np.linalg.norm(_triangle(self.left)
                              @ _triangle(self.right.swapaxes(-1, -2)).swapaxes(-1, -2),
                              axis=(-2, -1))


def _check_meet(left, right):
    if left.shape[-1] != right.shape[-2:][0]:  # of a vector its length
        raise Error(f"no product of shapes {left.shape} and {right.shape}: {left.shape[-1]} "
                    f"columns do not meet {right.shape[-2:][0]} rows")


def _triangle(matrix):
    return np.linalg.qr(matrix, mode="r")


def ov(model: Model, layer: int, head: int, folded: bool = False) -> LowRank:
    """W_V W_O [d, d]: what a head writes for what it attends to (Elhage et al. 2021).

    `folded` puts the layer norm's gain into W_V and takes means out that no difference of logits
    sees, as TransformerLens's default processing does; likewise in all that follows.
    """
    parse_node(model.config, (layer, head))
    weights = _attention_weights(model, layer, folded)
    return LowRank(weights.W_V[head], weights.W_O[head])


def qk(model: Model, layer: int, head: int, folded: bool = False) -> LowRank:
    """W_Q W_Kᵀ [d, d]: what a query looks for in a key, before division by √e."""
    parse_node(model.config, (layer, head))
    weights = _attention_weights(model, layer, folded)
    return LowRank(weights.W_Q[head], weights.W_K[head].T)


def _embedding(model, folded, extended):
    """W_E [v, d]; `extended` adds to each token what the first MLP makes of it alone."""
    wte = _host(model.params["wte"])[: vocabulary_size(model)]
    if extended:
        wte = wte + _mlp(_host(model.params["blocks"][0]), wte[None])[0]
    return _centred(wte) if folded else wte


def _unembedding(model, folded):
    """W_U [d, v]; `folded` with the final gain, and centred over d and v."""
    w = _host(model.params["wte"])[: vocabulary_size(model)].T
    if not folded:
        return w
    return _centred(_centred(w * _host(model.params["ln_f"]["g"])[:, None], axis=0))


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


def copying_scores(model: Model, folded: bool = False, extended: bool = False) -> np.ndarray:
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
        inner = weights.W_O @ gram @ weights.W_V
        _check_numbers(f"layer {layer}'s OV circuits", inner, model)
        eigenvalues = np.linalg.eigvals(inner)
        scores[layer] = (eigenvalues.sum(axis=-1) / np.abs(eigenvalues).sum(axis=-1)).real
    return scores


def singular_tokens(
    model: Model, layer: int, head: int, n: int = 3, top: int = 8, folded: bool = False
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
    _check_numbers("scores of tokens", scores)
    best = np.argsort(-scores, kind="stable")[:n]
    return best, scores[best]


def neuron_tokens(
    model: Model, layer: int, neuron: int, top: int = 8, folded: bool = False
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


# --- 7. circuit search: heads and MLPs -------------------------------------------------


@dataclass(frozen=True, eq=False)
class Circuit:
    """The parts that suffice: `kept` of the `n_all` that the model has.

    Parts are heads and MLPs by name ("L9H6", "MLP3"), or edges (sender, receiver), these with the
    strongest first and their attribution in `scores`. `share` (faithfulness): the part of the
    whole effect left when every other part is replaced. `incompleteness`: mean
    |F(C \\ K) - F(M \\ K)| over random subsets K of the parts, as a share of the effect; 0 is best.
    `minimality`: the share that is lost with each part, above 0 where it helps. Intervals are over
    prompts. `whole` and `none` are the metric with all parts and with none. (Wang et al. 2022,
    section 4.)
    """

    kept: list[Any]
    n_all: int
    share: Estimate
    incompleteness: Estimate
    minimality: dict[Any, Estimate]
    scores: dict[Any, float] | None
    whole: float
    none: float
    keep: float
    tokens: np.ndarray
    bos: bool


class _Search:
    """`measure(removed)`, the metric [b] without some parts, as a share of the effect of all."""

    def __init__(self, measure, parts, keep, given):
        if not 0 < keep <= 1:
            raise Error(f"keep is {keep}: the share to keep must be above 0 and at most 1")
        self.measure, self.keep, self.given, self.n_all = measure, keep, given, len(parts)
        self.whole, self.none = measure([]), measure(parts)
        if abs((self.whole - self.none).mean()) < 1e-6 * max(1.0, abs(self.whole.mean())):
            raise Error("replacing every part of the model does not change the metric: there is "
                        "no effect to explain; look at the prompts and the answers")

    def share(self, values, index=slice(None)):
        whole, none = self.whole[index].mean(), self.none[index].mean()
        return (values[index].mean() - none) / (whole - none)

    def fine(self, values):
        return abs(1 - self.share(values)) <= 1 - self.keep

    def most(self, removed, weakest):
        """How many of the weakest, in order, can go too: by bisection."""
        fewest, most = 0, len(weakest)
        while fewest < most:
            middle = (fewest + most + 1) // 2
            if self.fine(self.measure(removed + weakest[:middle])):
                fewest = middle
            else:
                most = middle - 1
        return fewest

    def circuit(self, kept, removed, alone, names, subsets, seed, scores=None):
        """What is kept, under its names; `alone` is the metric where one part more is removed."""
        _check_count("subsets", subsets)
        own, rng, differences = self.measure(removed), np.random.default_rng(seed), []
        for _ in range(subsets):
            subset = [part for part in kept if rng.random() < 0.5]
            differences.append(self.measure(removed + subset) - self.measure(subset))

        def incompleteness(i):
            effect = abs((self.whole[i] - self.none[i]).mean())
            return np.mean([abs(difference[i].mean()) for difference in differences]) / effect

        def lost(part):
            return lambda i: self.share(own, i) - self.share(alone[part], i)

        def estimate(statistic):
            return bootstrap(statistic, len(own), seed=seed)

        return Circuit(
            [names[part] for part in kept], self.n_all, estimate(lambda i: self.share(own, i)),
            estimate(incompleteness), {names[part]: estimate(lost(part)) for part in kept},
            None if scores is None else {names[part]: float(scores[part]) for part in kept},
            float(self.whole.mean()), float(self.none.mean()), self.keep,
            self.given.tokens, self.given.bos,
        )  # fmt: skip


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
    clean, corrupted = prompts(model, clean, bos), prompts(model, corrupted, bos)
    if mode not in ("resample", "mean"):
        raise Error(f"unknown mode {mode!r}: choose 'resample' or 'mean'")
    _check_pair(clean, corrupted, "corrupted", any_number=mode == "mean")
    names = [activation_name(s, n) for n in range(model.config.n_layer) for s in ("z", "mlp_out")]
    source, shared = _replacements(model, clean, mode, corrupted, names)

    def measure(removed):
        edits = _replacing(_heads_by_name(removed), source)
        seen = run(model, clean, edits=edits, last_only=True)
        return _checked(metric(seen.logits), len(clean.tokens))

    nodes = {parse_node(model.config, name): name for name in node_names(model.config)}
    search, removed = _Search(measure, list(nodes), keep, clean), []
    while True:
        left = [node for node in nodes if node not in removed]
        now, alone = _each_removed(model, clean, source, shared, metric, removed, left, progress)
        ranked = sorted(left, key=lambda node: abs(alone[node].mean() - now))
        most = search.most(removed, ranked)
        if not most:
            ranked = sorted((node for node in ranked if search.fine(alone[node])),
                            key=lambda node: abs(1 - search.share(alone[node])))
            most = 1
        if not ranked:
            return search.circuit(left, removed, alone, nodes, subsets, seed)
        removed += ranked[:most]


def _each_removed(model, clean, source, shared, metric, removed, left, progress):
    """The mean metric with `removed` replaced, and {node: metric [b]} with each one more."""
    heads_of = _heads_by_name(removed)

    def held(copies):
        def hold(name, array):
            values = source[name][:, -array.shape[1] :]
            values = np.broadcast_to(values, (len(clean.tokens), *values.shape[1:]))
            array = array.copy()
            patch(np.tile(values, (copies, *[1] * (values.ndim - 1))), heads_of[name])(array, name)
            return array

        hold.wants = heads_of.__contains__
        return hold

    stored = _Stored(model, clean, metric, ("z", "mlp_out"), _replacing(heads_of, source), held)
    alone = {}
    for what in ("z", "mlp_out"):
        index = {node: node[:1] if what == "mlp_out" else node
                 for node in left if (node[1] is None) == (what == "mlp_out")}
        sweep = stored.sweep(source, what, False, None, shared, progress and bool(index),
                             set(index.values()))
        alone |= {node: sweep.per_prompt[where] for node, where in index.items()}
    return stored.measured.mean(), alone


# --- 7. circuit search: edges ----------------------------------------------------------


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
    progress: bool = False,
    bos: bool | None = None,
) -> Circuit:
    """Prune edges to a small set that keeps the share `keep`: by attribution, checked exactly.

    Edges are ranked once by `edge_attribution`; the fewest of the strongest that suffice are found
    by bisection, then ever smaller blocks of the weakest are left out where an exact run allows
    it, with at most `checks` runs. The metric must know its gradient.

    Of E ≈ 1.5 (layers · heads)² edges it costs at most log₂ E + `checks` + 2 `subsets` + 4 passes
    of `patch_edges`, and one for each edge kept. At 124M, E is 32,491: 234 passes and those, of
    0.17 s for 4 prompts of 15 tokens (two cores of an AMD EPYC), where a plain one takes 0.09.
    """
    clean, corrupted = prompts(model, clean, bos), prompts(model, corrupted, bos)
    _check_pair(clean, corrupted, "corrupted")
    scores = edge_attribution(model, clean, corrupted, metric).mean(axis=-1)
    senders, receivers, exist = edge_names(model.config)
    written = _written(model, run(model, corrupted, _WRITERS, last_only=True))
    pairs = np.argwhere(exist)
    strongest = [tuple(pair) for pair in
                 pairs[np.argsort(-np.abs(scores[exist]), kind="stable")].tolist()]
    names = {(s, r): (senders[s], receivers[r]) for s, r in strongest}

    with _progress(None, progress) as bar:

        def measure(removed):
            patched = np.zeros_like(exist)
            patched[tuple(np.array(removed, int).reshape(-1, 2).T)] = True
            bar.update(1)
            return _checked(metric(_patch_edges(model, clean, written, patched)),
                            len(clean.tokens))

        def all_but(edges):
            edges = set(edges)
            return [edge for edge in strongest if edge not in edges]

        search = _Search(measure, strongest, keep, clean)
        kept = strongest[: len(strongest) - search.most([], strongest[::-1])]
        kept = _drop_blocks(_read_edges(kept, names),
                            lambda edges: search.fine(measure(all_but(edges))), checks)
        kept = _read_edges(kept, names)
        removed = all_but(kept)
        alone = {edge: measure([*removed, edge]) for edge in kept}
        return search.circuit(kept, removed, alone, names, subsets, seed, scores)


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


def _read_edges(kept, names):
    """Without the edges into nodes that no kept edge leads out of: nothing depends on them."""
    while True:
        read = {names[edge][0] for edge in kept} | {"logits"}
        used = [edge for edge in kept if names[edge][1].partition(".")[0] in read]
        if len(used) == len(kept):
            return kept
        kept = used


def edge_names(config: Config) -> tuple[list[str], list[str], np.ndarray]:
    """Senders, receivers, and which pairs [sender, receiver] are edges: sent before received.

    Senders are "embed", heads and MLPs; receivers "L1H2.q", ".k", ".v", "MLP1" and "logits".
    """
    h, senders, receivers, sent, received = config.n_head, ["embed"], [], [-1], []
    for layer in range(config.n_layer):
        names = [f"L{layer}H{head}" for head in range(h)]
        receivers += [f"{name}.{kind}" for kind in "qkv" for name in names] + [f"MLP{layer}"]
        received += [2 * layer] * 3 * h + [2 * layer + 1]
        senders += [*names, f"MLP{layer}"]
        sent += [2 * layer] * h + [2 * layer + 1]
    received.append(2 * config.n_layer)
    return senders, [*receivers, "logits"], np.array(sent)[:, None] < np.array(received)


_WRITERS = ("hook_embed", "blocks.*.attn.hook_z", "blocks.*.hook_mlp_out")


def _written(model, seen):
    """What every sender wrote, [sender, b, q, d]; heads without their layer's bias."""
    parts = [seen["hook_embed"][None]]
    for layer in range(model.config.n_layer):
        z, w = seen[activation_name("z", layer)], _attention_weights(model, layer).W_O
        parts += [einsum("bqhe,hed->hbqd", z, w), seen[activation_name("mlp_out", layer)][None]]
    return np.concatenate(parts)


def patch_edges(
    model: Model, base: Any, source: Any, patched: np.ndarray, *, bos: bool | None = None
) -> np.ndarray:
    """Logits [b, 1, v] of `base` where the edges in `patched` carry what `source` wrote.

    `patched` [sender, receiver] booleans as in `edge_names`. Every head's q, k and v, every MLP
    and the logits read a stream of their own: exact, no approximation. (Goldowsky-Dill et al.
    2023, "path patching"; Conmy et al. 2023.)
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    _check_pair(base, source, "source")
    wanted = edge_names(model.config)[2].shape
    if np.shape(patched) != wanted:
        raise Error(f"patched has shape {np.shape(patched)}, it must be {wanted}: see edge_names")
    written = _written(model, run(model, source, _WRITERS, last_only=True))
    return _patch_edges(model, base, written, np.asarray(patched))


def _patch_edges(model, base, written, patched):
    config, n, h = model.config, base.tokens.shape[1], model.config.n_head
    params, mask = model.params, patched.astype(written.dtype)
    x = _host(params["wte"])[base.tokens]
    # By how much each sender differs from what a patched edge carries, [sender, b, q, d].
    change = np.zeros((len(written), *x.shape), x.dtype)
    change[0] = written[0] - x
    x = x + _host(params["wpe"])[:n]
    at, column = 1, 0  # senders and receivers so far

    def read(count):
        """The streams that the next receivers read, [r, b, q, d]."""
        nonlocal column
        columns = mask[:at, column : column + count]
        column += count
        return x + einsum("sr,sbqd->rbqd", columns, change[:at])

    def normalized(streams, norm):
        rows = streams.reshape(-1, *streams.shape[2:])
        return gpt2_np.layer_norm(rows, **norm, tap=NO_TAP).reshape(streams.shape)

    later = np.triu(np.ones((n, n), bool), 1)
    for layer in range(config.n_layer):
        block, weights = _host(params["blocks"][layer]), _attention_weights(model, layer)
        streams = normalized(read(3 * h), block["ln_1"]).reshape(3, h, *x.shape)
        q, k, v = (einsum("hbqd,hde->hbqe", stream, w) + b[:, None, None]
                   for stream, w, b in zip(streams, weights.reading, weights.biases, strict=True))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        scores[..., later] = -np.inf
        out = einsum("hbqe,hed->hbqd", gpt2_np.softmax(scores) @ v, weights.W_O)
        change[at : at + h] = written[at : at + h] - out
        x = x + (out.sum(axis=0) + weights.b_O)
        at += h
        out = _mlp(block, read(1)[0])
        change[at] = written[at] - out
        x = x + out
        at += 1
    last = normalized(read(1)[:, :, -1:], _host(params["ln_f"]))[0]
    return to_host(gpt2_np.unembed(namespace(params["wte"]).asarray(last), params))


def edge_attribution(
    model: Model, base: Any, source: Any, metric: Metric, *, bos: bool | None = None
) -> np.ndarray:
    """Estimated change of the metric from patching single edges, [sender, receiver, b].

    First order: what the sender writes in `source` minus in `base`, times the metric's gradient at
    the receiver's input; names and the pairs that exist from `edge_names`. Holds a gradient
    [b, q, d] for each receiver: 1.4 MB a position at 124M's shape. (Syed et al. 2023,
    "Attribution Patching Outperforms Automated Circuit Discovery".)
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    _check_pair(base, source, "source")
    config = model.config
    seen = run(model, base, [*_WRITERS, "blocks.*.hook_resid_pre"], last_only=True)
    other = run(model, source, _WRITERS, last_only=True)
    change = _written(model, other) - _written(model, seen)
    known = gradients(model, base, metric)
    inputs = []  # [receiver, b, q, d]
    for layer in range(config.n_layer):
        block, weights = _host(model.params["blocks"][layer]), _attention_weights(model, layer)
        for kind, w in zip("qkv", weights.reading, strict=True):
            inside = einsum("bqhe,hde->hbqd", known[activation_name(kind, layer)], w)
            inputs.append(_layer_norm_gradient(inside, seen[activation_name("resid_pre", layer)],
                                               block["ln_1"]["g"]))
        # The MLP's input moves the stream through the MLP only: the skip connection is not its.
        mid, out = activation_name("resid_mid", layer), activation_name("mlp_out", layer)
        inputs.append((known[mid] - known[out])[None])
    inputs.append(known[activation_name("mlp_out", config.n_layer - 1)][None])
    scores = np.einsum("sbqd,rbqd->srb", change, np.concatenate(inputs), optimize=True)
    return np.where(edge_names(config)[2][..., None], scores, 0)


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
    _check_numbers("the logits", seen.logits, model)
    config, found = model.config, {}
    x = np.zeros_like(seen[activation_name("resid_pre", 0)])
    x[:, -1] = metric.gradient(seen.logits) @ _host(model.params["wte"])
    x = _layer_norm_gradient(x, seen[activation_name("resid_post", config.n_layer - 1)],
                             _host(model.params["ln_f"]["g"]))
    for layer in reversed(range(config.n_layer)):
        block, weights = _host(model.params["blocks"][layer]), _attention_weights(model, layer)
        here = {short: activation_name(short, layer) for short in _SHORT}
        found[here["mlp_out"]] = x
        inside = x @ block["mlp"]["c_proj"]["w"].T * _gelu_gradient(seen[here["pre"]])
        x = x + _layer_norm_gradient(inside @ block["mlp"]["c_fc"]["w"].T, seen[here["resid_mid"]],
                                     block["ln_2"]["g"])
        found[here["resid_mid"]] = found[here["attn_out"]] = x
        by_kind = _attention_gradients(x, *(seen[here[s]] for s in ("q", "k", "v", "pattern")),
                                       weights.W_O)
        found |= {here[kind]: array for kind, array in by_kind.items()}
        by_head = sum(einsum("bqhe,hde->bqd", by_kind[kind], w)
                      for kind, w in zip("qkv", weights.reading, strict=True))
        x = x + _layer_norm_gradient(by_head, seen[here["resid_pre"]], block["ln_1"]["g"])
        found[here["resid_pre"]] = x
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


def _attention_gradients(out, q, k, v, pattern, w_o):
    """Gradients of q, k, v and z [b, q, h, e] from that of the attention's output [b, q, d]."""
    of_z = einsum("bqd,hed->bqhe", out, w_o)
    weighted = pattern * einsum("bqhe,bkhe->bhqk", of_z, v)
    of_scores = weighted - pattern * weighted.sum(axis=-1, keepdims=True)
    of_scores /= math.sqrt(q.shape[-1])
    return {"q": einsum("bhqk,bkhe->bqhe", of_scores, k),
            "k": einsum("bhqk,bqhe->bkhe", of_scores, q),
            "v": einsum("bhqk,bqhe->bkhe", pattern, of_z), "z": of_z}  # fmt: skip


# --- 8. uncertainty --------------------------------------------------------------------


class Estimate(NamedTuple):
    """A value and its 95% bootstrap interval, from `low` to `high`; NaN where there is none."""

    value: float
    low: float
    high: float

    def __str__(self):
        if math.isnan(self.low):
            return f"{self.value:.4g} [no interval]"
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

    There is no interval (NaN) from one item, whose resamples are all the same, nor where a
    resample has no value, as a share of an effect that is 0. (Efron 1979.)
    """
    for what, count in (("n", n), ("resamples", resamples)):
        _check_count(what, count)
    rng, low, high = np.random.default_rng(seed), math.nan, math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(np.arange(n)))
        values = [float(statistic(rng.integers(0, n, n))) for _ in range(resamples if n > 1 else 0)]
    if values and np.isfinite(values).all():
        low, high = map(float, np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))
    return Estimate(value, low, high)


@dataclass(frozen=True, eq=False)
class Measures:
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
    _check_count("bins", bins)
    rows, n_bytes, firsts = [], [], []
    for text in texts:
        is_text = isinstance(text, str)
        ids = _tokenizer(model).encode(text, allowed_special="all") if is_text else list(text)
        if is_text if bos is None else bos:
            ids = [_end_of_text(model, needed=True), *ids]
        if len(ids) < 2:
            raise Error(f"{text!r:.40} has no token that follows another: nothing to measure")
        rows.append(_measure_text(model, ids, bins))
        firsts.append(ids[0] == _end_of_text(model))
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
    config, params, n, scored = model.config, model.params, vocabulary_size(model), 0
    result = {"n": len(ids) - 1, "loss": 0.0, "entropy": 0.0, "bins": np.zeros((bins, 3))}
    ids = _ids(model, [ids])[0]
    while scored < len(ids) - 1:
        start = 0 if scored == 0 else scored - config.n_ctx // 2
        stop = min(start + config.n_ctx, len(ids) - 1)
        x = gpt2_np.residual_stream(params, config, ids[None, start:stop])
        for block in range(scored, stop, 128):  # logits of 1,024 positions would be 200 MB
            targets = ids[block + 1 : min(block + 128, stop) + 1]
            logits = gpt2_np.unembed(x[:, block - start : block - start + len(targets)], params)
            _add_measures(result, to_host(logits)[0, :, :n].astype(float), targets)
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


# --- 9. tasks --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
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
    _check_count("batch", batch, MOST_PROMPTS)
    end = _end_of_text(model)
    bos = (end is not None) if bos is None else bos
    ordinary = np.array([i for i in range(vocabulary_size(model)) if i != end])
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
    _check_count("n", n, MOST_PROMPTS)
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
    _check_count("n", n, MOST_PROMPTS)
    tokenizer = _tokenizer(model)
    text_of = {i: tokenizer.decode([i]) for i in range(vocabulary_size(model))}
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


# --- command line ----------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: tables to stdout, all else to stderr; returns the exit status."""
    try:
        if __package__:
            from . import circuits_show
        else:
            import circuits_show
    except ImportError as error:
        print(f"circuits: the command line is in circuits_show.py, which is not beside "
              f"circuits.py ({error})", file=sys.stderr)
        return 1
    return circuits_show.main(argv)


if __name__ == "__main__":
    # Modules that import this one by name must get this very module, not a second.
    sys.modules.setdefault("circuits", sys.modules["__main__"])
    raise SystemExit(main())

"""The residual stream as a sum: embeddings, then the output of every head and MLP.

Every part of the model only adds to the stream, so its value at any point is a sum whose terms
are known. Attribution of logits to parts follows from this. (Elhage et al. 2021, "The Residual
Stream as a Communication Channel".)
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import einsum
from ..bpe import shown
from ..gpt2_np import Error, Model
from .activations import recorded
from .head_weights import attention_weights
from .inputs import PromptsLike, check_index, position_slice, prompts
from .interventions import Edits, EditsLike
from .names import activation_name, activation_names, kind_of, layer_of, matching_names, nearest
from .short_reprs import Result
from .weights import on_host

WRITTEN_BEFORE = {"resid_pre": (0, 0), "resid_mid": (1, 0), "resid_post": (1, 1)}
ADDED_BY_EDITS = {"resid_pre", "result", "attn_out", "resid_mid", "resid_post"}


@dataclass(frozen=True, eq=False, repr=False)
class Parts(Result):
    """The terms of the residual stream: `values` [p, b, q, d] over `labels` sum to the stream."""

    labels: list[str]
    values: np.ndarray
    tokens: np.ndarray
    bos: bool

    def __getitem__(self, label: str) -> np.ndarray:
        return labelled(self, label)


def labelled(parts, label):
    if label not in parts.labels:
        raise Error(f"unknown part {shown(label)}{nearest(label, parts.labels)}")
    return parts.values[parts.labels.index(label)]


def decompose(
    model: Model,
    text_or_tokens: PromptsLike,
    at: str | None = None,
    *,
    position: int | None = None,
    neurons: Sequence[int] = (),
    constants_apart: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Parts:
    """Return the stream at `at`, a layer's resid_pre, resid_mid or resid_post, as a sum of parts.

    The default is the end of the last layer. Labels: "embed", "pos_embed", heads "L5H1", each
    layer's attention bias "b_O5", MLPs "MLP5". In the layers that `neurons` lists, single neurons
    "L5N17" and the bias "b_out5" replace "MLP5". One `position` (an axis of length 1) or all.

    `constants_apart` counts (b_V + ln_1.b W_V) W_O, which a head writes regardless of attention,
    as attention bias. TransformerLens puts it there when it processes weights.

    With `edits`, as for `run`, the parts are the edited ones. The change that an edit makes to the
    stream itself or to attn_out is a part of its own, "edit_resid_mid5".
    """
    config = model.config
    given = prompts(model, text_or_tokens, bos)
    at = stream_name(at, config)
    n_attention, n_mlp = (layer_of(at) + n for n in WRITTEN_BEFORE[kind_of(at)])
    for layer in neurons:
        check_index("layer", layer, config.n_layer)
    names = {"hook_embed", "hook_pos_embed"}
    names |= {activation_name("z", layer) for layer in range(n_attention)}
    names |= {activation_name("post" if layer in neurons else "mlp_out", layer)
              for layer in range(n_mlp)}
    here = position_slice(position, given.tokens)
    edits = Edits(model, edits)
    added = names_of_added(edits, at, config, neurons)
    _, recorder = recorded(model, given, names, edits, last_only=True, change_names=added)
    seen = recorder.kept

    parts = {name: seen[f"hook_{name}"][:, here] for name in ("embed", "pos_embed")}
    for layer in range(n_attention):
        z = seen[activation_name("z", layer)][:, here]
        parts |= attention_parts(model, layer, z, constants_apart)
        if layer < n_mlp and layer in neurons:
            post = seen[activation_name("post", layer)][:, here]
            parts |= neuron_parts(model, layer, post)
        elif layer < n_mlp:
            parts[f"MLP{layer}"] = seen[activation_name("mlp_out", layer)][:, here]
    for name in added:
        change = recorder.changes[name]
        change = change.sum(axis=2) if kind_of(name) == "result" else change
        parts[f"edit_{kind_of(name)}{layer_of(name)}"] = change[:, here]
    shape = (*given.tokens[:, here].shape, config.n_embd)
    values = np.stack([np.broadcast_to(part, shape) for part in parts.values()])
    return Parts(list(parts), values, given.tokens, given.bos)


def attention_parts(model, layer, z, constants_apart):
    weights = attention_weights(model, layer)
    bias = weights.b_O
    if constants_apart:
        constant = weights.b_V + einsum("d,hde->he", weights.shift, weights.W_V)
        z = z - constant
        bias = bias + np.einsum("he,hed->d", constant, weights.W_O)
    result = einsum("bqhe,hed->hbqd", z, weights.W_O)
    heads = {f"L{layer}H{head}": part for head, part in enumerate(result)}
    return {**heads, f"b_O{layer}": bias}


def neuron_parts(model, layer, post):
    c_proj = on_host(model.params["blocks"][layer]["mlp"]["c_proj"])
    written = post.transpose(2, 0, 1)[..., None] * c_proj["w"][:, None, None]
    neurons = {f"L{layer}N{n}": part for n, part in enumerate(written)}
    return {**neurons, f"b_out{layer}": c_proj["b"]}


def names_of_added(edits, at, config, neurons):
    """Return the names, up to `at`, whose edits add to the stream what is no other part's."""
    known = activation_names(config)
    return [name for name in known[: known.index(at) + 1] if name in edits
            and (kind_of(name) in ADDED_BY_EDITS
                 or (kind_of(name) == "mlp_out" and layer_of(name) in neurons))]


def stream_name(at, config):
    """Return the full name of the stream that `at` means, by default the end of the last layer."""
    found = sorted(matching_names(at or activation_name("resid_post", config.n_layer - 1), config))
    if len(found) != 1:
        raise Error(f"at is {shown(at)}, which is {len(found)} activations: name one, such as "
                    "blocks.0.hook_resid_mid")
    if kind_of(found[0]) not in WRITTEN_BEFORE:
        raise Error(f"{shown(at)} is not the residual stream: choose a layer's "
                    f"{', '.join(WRITTEN_BEFORE)}")
    return found[0]

"""Gradients of a metric with respect to activations, by a backward pass written out.

A gradient says to first order how every small change of every activation moves the metric, all from
one pass. Attribution patching multiplies it by the change that a patch would make, and so estimates
thousands of patches at the price of two passes. (Nanda 2023, "Attribution Patching"; Syed et al.
2023, "Attribution Patching Outperforms Automated Circuit Discovery".)
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import einsum
from ..bpe import shown
from ..gpt2_np import LAYER_NORM_EPSILON, SQRT_2_OVER_PI, Error, Model
from ..inference.turns import turn
from .activations import Activations, run
from .head_weights import attention_weights
from .inputs import PromptsLike, check_numbers, prompts
from .interventions import WITHOUT_GRADIENT, Edits, EditsLike, Place
from .metrics import Differentiable, Metric, gradient_of_logits, reads_last
from .names import (
    SHORT_NAMES,
    activation_name,
    activation_names,
    kind_of,
    layer_of,
    matching_names,
    name_list,
)
from .weights import centred, on_host

NEEDED = re.compile(r"\.(hook_resid_(pre|mid|post)|attn\.hook_([qkvz]|pattern)|mlp\.hook_pre)$")
GRADIENTS = ("embed", "pos_embed", "resid_pre", "q", "k", "v", "attn_scores", "pattern", "z",
             "attn_out", "resid_mid", "pre", "post", "mlp_out", "resid_post")  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Gradients(Activations):
    """d metric / d activation by name: `g["z", 1]`, `g.stack("resid_pre")`, as of a Run."""


def gradients(
    model: Model,
    text_or_tokens: PromptsLike,
    metric: Metric,
    *,
    names: Sequence[str] | str | None = None,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Gradients:
    """Return d metric / d activation by name, in the activations' own shapes.

    Of every activation but hook_result and those inside layer norms, or of the `names`, as for
    `run`; the pass back ends at the lowest. The metric must know its gradient, as
    `logit_difference`, `log_probability` and `repeat_loss` do. Raises Error for a name that has no
    gradient here.

    With `edits`, as for `run`, gradients are the edited model's, with respect to activations after
    their edits. None goes back through values that were put in. Raises Error for edits of layer
    norms and of hook_result, and for functions, because their own gradients are not known.

    Text gets <|endoftext|> put before it, unlike in `complete` and `score`; `bos=False` leaves it
    out.
    """
    last_only = reads_last(metric)
    if not isinstance(metric, Differentiable):
        raise Error("this metric has no gradient: use logit_difference, log_probability or "
                    "repeat_loss, or give it a method gradient, logits [b, 1, v] -> [b, v]")
    given, wanted = prompts(model, text_or_tokens, bos), names_with_gradient(names, model.config)
    edits = Edits(model, edits)
    edits.refuse("gradients", WITHOUT_GRADIENT, "edit the stream, z, q, k, v, attention or MLPs")
    seen = run(model, given, lambda name: bool(NEEDED.search(name)), edits=edits,
               last_only=last_only)
    check_numbers("the logits", seen.logits, model)
    of_logits = gradient_of_logits(metric, seen.logits)
    with turn(model):
        found = backward_pass(model, seen, of_logits, edits, lowest_layer(wanted))
    in_order = {name: found[name] for name in activation_names(model.config) if name in wanted}
    return Gradients(in_order, given.tokens, given.bos, model.config)


def names_with_gradient(names, config):
    """Return the names with a gradient that the given ones mean, each at least one."""
    wanted = set()
    for one in name_list("*" if names is None else names) or [names]:
        found = {name for name in matching_names(one, config) if kind_of(name) in GRADIENTS}
        if not found:
            raise Error(f"there is no gradient of {shown(one)}: choose of {', '.join(GRADIENTS)}")
        wanted |= found
    return wanted


def lowest_layer(names):
    """Return the lowest layer of the names; the embeddings are below layer 0."""
    return min(layer_of(name) if name.startswith("blocks.") else 0 for name in names)


def backward_pass(model, seen, of_logits, edits, lowest=0):
    """Return the gradients by name down to a layer, from a run and that of its last logits."""
    config, found = model.config, {}
    place = Place.from_position(0, *seen.tokens.shape)
    x = np.zeros_like(seen[activation_name("resid_pre", 0)])
    x[:, -of_logits.shape[1] :] = of_logits @ on_host(model.params["wte"])
    x = layer_norm_gradient(x, seen[activation_name("resid_post", config.n_layer - 1)],
                            on_host(model.params["ln_f"]["g"]))
    for layer in reversed(range(lowest, config.n_layer)):
        block, weights = on_host(model.params["blocks"][layer]), attention_weights(model, layer)
        here = {short: activation_name(short, layer) for short in SHORT_NAMES}

        def before_edits(short, gradient, here=here):
            return edits.back(here[short], gradient, place)

        found[here["resid_post"]] = x
        found[here["mlp_out"]] = x = before_edits("resid_post", x)
        inside = before_edits("mlp_out", x) @ block["mlp"]["c_proj"]["w"].T
        found[here["post"]] = inside
        inside = before_edits("post", inside) * gelu_gradient(seen[here["pre"]])
        found[here["pre"]] = inside
        inside = before_edits("pre", inside)
        x = x + layer_norm_gradient(inside @ block["mlp"]["c_fc"]["w"].T, seen[here["resid_mid"]],
                                    block["ln_2"]["g"])
        found[here["resid_mid"]] = x
        found[here["attn_out"]] = x = before_edits("resid_mid", x)
        q, k, v, pattern = (seen[here[short]] for short in ("q", "k", "v", "pattern"))
        by_kind = attention_gradients(before_edits("attn_out", x), q, k, v, pattern, weights.W_O,
                                      before_edits)
        found |= {here[kind]: array for kind, array in by_kind.items()}
        by_head = sum(einsum("bqhe,hde->bqd", before_edits(kind, by_kind[kind]), w)
                      for kind, w in zip("qkv", weights.reading, strict=True))
        x = x + layer_norm_gradient(by_head, seen[here["resid_pre"]], block["ln_1"]["g"])
        found[here["resid_pre"]] = x
        x = before_edits("resid_pre", x)
    if not lowest:
        found["hook_embed"] = found["hook_pos_embed"] = x
    return found


def layer_norm_gradient(y, x, gain):
    """Return the gradient of a layer norm's input x [.., d] from that of its result, y."""
    x = centred(x)
    scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    x, y = x / scale, y * gain
    return (centred(y) - x * (x * y).mean(axis=-1, keepdims=True)) / scale


def gelu_gradient(x):
    tanh = np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))
    inner = SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner


def attention_gradients(out, q, k, v, pattern, w_o, before_edits):
    """Return the gradients inside attention from that of its output, [b, q, d].

    Gradients of q, k, v and z are [b, q, h, e], of attn_scores and pattern [b, h, q, k].
    """
    after = einsum("bqd,hed->bqhe", out, w_o)
    of_z = before_edits("z", after)
    of_pattern = einsum("bqhe,bkhe->bhqk", of_z, v)
    weighted = pattern * before_edits("pattern", of_pattern)
    of_scores = weighted - pattern * weighted.sum(axis=-1, keepdims=True)
    scaled = before_edits("attn_scores", of_scores) / math.sqrt(q.shape[-1])
    return {"q": einsum("bhqk,bkhe->bqhe", scaled, k),
            "k": einsum("bhqk,bqhe->bkhe", scaled, q),
            "v": einsum("bhqk,bqhe->bkhe", pattern, of_z),
            "z": after, "attn_scores": of_scores, "pattern": of_pattern}  # fmt: skip

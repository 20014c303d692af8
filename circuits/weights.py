"""Read weights through the vocabulary: embedding, unembedding, and each neuron in tokens.

Weights say what a part can do on any text. A neuron is a key that some inputs match, and a value
that it writes then; both are directions of the stream, which the embedding and the unembedding
translate into tokens. (Geva et al. 2021, "Transformer Feed-Forward Layers Are Key-Value
Memories"; Geva et al. 2022, "Transformer Feed-Forward Layers Build Predictions by Promoting
Concepts in the Vocabulary Space".)

Nothing is folded unless `folded=True`. Then the gain of the layer norm is part of the matrix that
reads its result, and means that no difference of logits sees are taken out, as
TransformerLens's default processing does.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import to_host
from ..gpt2_np import NO_TAP, Model, map_leaves, mlp_layer
from ..inference.turns import turn
from .inputs import check_numbers
from .names import parse_neuron


def neuron_tokens(
    model: Model, neuron: Any, top: int = 8, folded: bool = False
) -> dict[str, Any]:
    """Return the tokens that a neuron "L2N17" reads, and those whose logits it raises and lowers.

    "reads", "raises", "lowers": (token ids, scores) each, for the `top` tokens.
    """
    layer, neuron = parse_neuron(model.config, neuron)
    block = on_host(model.params["blocks"][layer])
    reading, writing = block["mlp"]["c_fc"]["w"][:, neuron], block["mlp"]["c_proj"]["w"][neuron]
    if folded:
        reading, writing = centred(reading * block["ln_2"]["g"]), centred(writing)
    logits = writing @ unembedding(model, folded)
    return {"reads": top_tokens(embedding(model, folded) @ reading, top),
            "raises": top_tokens(logits, top), "lowers": top_tokens(-logits, top)}


def top_tokens(scores, n):
    """Return the ids and scores of the n largest."""
    check_numbers("scores of tokens", scores)
    best = np.argsort(-scores, kind="stable")[:n]
    return best, scores[best]


def embedding(model, folded=False, extended=False):
    """Return W_E [v, d]; `extended` adds the first MLP's output for each token alone."""
    wte = on_host(model.params["wte"])[: model.n_vocab]
    if extended:
        with turn(model):
            wte = mlp_layer(wte[None], on_host(model.params["blocks"][0]), NO_TAP)[0]
    return centred(wte) if folded else wte


def unembedding(model, folded=False):
    """Return W_U [d, v]; `folded` with the final gain, centred over d and v."""
    w = on_host(model.params["wte"])[: model.n_vocab].T
    if not folded:
        return w
    return centred(centred(w * on_host(model.params["ln_f"]["g"])[:, None], axis=0))


def centred(array, axis=-1):
    return array - array.mean(axis=axis, keepdims=True)


def on_host(params):
    """Return nested parameters on the host; float16, which numpy.linalg refuses, as float32."""
    def convert(_, leaf):
        array = to_host(leaf)
        return array.astype(np.promote_types(array.dtype, np.float32), copy=False)

    return map_leaves(convert, params)

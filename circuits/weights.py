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

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import to_host
from ..bpe import shown
from ..gpt2_np import NO_TAP, Error, Model, map_leaves, mlp_layer
from ..gpt2_np import layer_norm as apply_layer_norm
from ..inference.turns import turn
from .inputs import check_count, check_numbers, token_texts
from .interventions import host_numbers
from .names import parse_neuron
from .short_reprs import Result


def neuron_tokens(
    model: Model, neuron: Any, top: int = 8, folded: bool = False
) -> dict[str, TopTokens]:
    """Return the tokens that a neuron "L2N17" reads, and those whose logits it raises and lowers.

    "reads", "raises", "lowers": the `top` tokens of each. Those of "lowers" come with the amount.
    """
    layer, neuron = parse_neuron(model.config, neuron)
    block = on_host(model.params["blocks"][layer])
    reading, writing = block["mlp"]["c_fc"]["w"][:, neuron], block["mlp"]["c_proj"]["w"][neuron]
    if folded:
        reading, writing = centred(reading * block["ln_2"]["g"]), centred(writing)
    logits = unembed(model, writing, folded=folded)
    found = {"reads": embedding(model, folded) @ reading, "raises": logits, "lowers": -logits}
    return {end: best_tokens(model.tokenizer, scores, top) for end, scores in found.items()}


def unembed(
    model: Model, vectors: Any, *, layer_norm: bool = False, folded: bool = False
) -> np.ndarray:
    """Return the logits [..., v] of vectors [..., d] that the unembedding reads as they are.

    They may be directions, parts of the stream, or a stream after the final layer norm, which is
    what TransformerLens's unembed expects. For the stream itself, such as resid_post, give
    `layer_norm=True`: each vector then goes through the final layer norm first, as in the model.
    """
    vectors = checked_vectors("vectors", vectors, on_host(model.params["ln_f"]["g"]))
    if layer_norm and folded:
        raise Error("layer_norm=True has the gain that folded=True folds in: give one of them")
    if layer_norm:
        flat = vectors.reshape(1, -1, vectors.shape[-1])
        flat = apply_layer_norm(flat, **on_host(model.params["ln_f"]), tap=NO_TAP)
        vectors = flat.reshape(vectors.shape)
    with turn(model):
        return vectors @ unembedding(model, folded)


@dataclass(frozen=True, eq=False, repr=False)
class TopTokens(Result):
    """The tokens with the highest logits, best first: `ids`, `logits` and `texts`, [..., top].

    Of tokens that a part reads, `logits` are its products with the embedding. `probabilities` are
    those of next tokens, else None.
    """

    ids: np.ndarray
    logits: np.ndarray
    texts: np.ndarray
    probabilities: np.ndarray | None = None

    def __repr__(self) -> str:
        lines = self.lines(4)
        if len(lines) == 1:
            return f"TopTokens({lines[0]})"
        return "\n".join([f"TopTokens of {len(lines)} vectors:", *lines[:8]])

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, most: int | None = None) -> list[str]:
        """Return a line for each vector, of so many tokens with their probabilities or logits."""
        top = self.ids.shape[-1]
        p = self.probabilities
        numbers, form = (self.logits, ".2f") if p is None else (p, ".3f")
        rows = zip(self.texts.reshape(-1, top), numbers.reshape(-1, top), strict=True)
        return ["  ".join(f"{shown(text)} {number:{form}}" for text, number in
                          zip(texts[:most], row[:most], strict=True))
                for texts, row in rows]


def top_tokens(
    model: Model, vectors: Any, top: int = 10, *, layer_norm: bool = False, folded: bool = False
) -> TopTokens:
    """Return the tokens whose logits vectors [..., d] raise most. The options are `unembed`'s.

    Printed, it is one line for each vector: `print(top_tokens(model, run["resid_post", 1][0],
    layer_norm=True))` shows the best tokens after each position.
    """
    logits = unembed(model, vectors, layer_norm=layer_norm, folded=folded)
    return best_tokens(model.tokenizer, logits, top)


def checked_vectors(name, vectors, like):
    """Return vectors [..., d] in the type of `like` [d], on the host."""
    found = host_numbers(vectors)
    if not found.ndim or found.shape[-1] != len(like):
        raise Error(f"{name} has shape {found.shape}: the last axis must be the model's width, "
                    f"{len(like)}")
    return found.astype(like.dtype, copy=False)


def best_tokens(tokenizer, logits, top):
    """Return the `top` tokens with the largest logits [..., v]."""
    check_count("top", top)
    check_numbers("scores of tokens", logits)
    ids = np.argsort(-logits, axis=-1, kind="stable")[..., :top]
    texts = np.array(token_texts(tokenizer, ids.ravel()), object).reshape(ids.shape)
    return TopTokens(ids, np.take_along_axis(logits, ids, axis=-1), texts)


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

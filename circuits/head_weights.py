"""Each head as two circuits of weights: QK for its attention, OV for its output.

QK scores a pair of positions, OV maps the position that is attended to into an output. Both are
the same on every text. With the embedding and the unembedding around them they map tokens to
tokens. The product of two heads' circuits tells if the second reads the output of the first.
(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".) weights.py explains
`folded`.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..bpe import shown
from ..gpt2_np import Error, Model, generator
from .inputs import check_count, check_index, check_numbers
from .low_rank import LowRank, triangle
from .names import node_name, parse_head
from .short_reprs import MOST_LINES, Result, short, table
from .weights import best_tokens, centred, embedding, on_host, unembed, unembedding


class AttentionWeights(NamedTuple):
    """One layer's attention, head by head: W_Q, W_K, W_V [h, d, e], W_O [h, e, d], biases.

    `shift` [d] is the bias of the layer norm before it.
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


def attention_weights(model, layer, folded=False):
    """Return views of one layer's weights; `folded` with the layer norm's gain and shift inside.

    Folded weights read normalised streams, which have mean 0. So the mean over d of W_Q, W_K, W_V
    can be taken out, and that of W_O because no difference of logits sees it.
    """
    check_index("layer", layer, model.config.n_layer)
    d, h = model.config.n_embd, model.config.n_head
    attn, norm = (on_host(model.params["blocks"][layer][part]) for part in ("attn", "ln_1"))
    reading = attn["c_attn"]["w"].reshape(d, 3, h, d // h).transpose(1, 2, 0, 3)
    biases = attn["c_attn"]["b"].reshape(3, h, d // h)
    writing, b_o, shift = attn["c_proj"]["w"].reshape(h, d // h, d), attn["c_proj"]["b"], norm["b"]
    if folded:
        biases = biases + np.einsum("d,chde->che", shift, reading)
        reading = centred(reading * norm["g"][:, None], axis=-2)
        writing, b_o, shift = centred(writing), centred(b_o), np.zeros_like(shift)
    return AttentionWeights._make([*reading, writing, *biases, b_o, shift])


# --- the circuits of one head ----------------------------------------------------------


def ov(model: Model, head: Any, folded: bool = False) -> LowRank:
    """Return W_V W_O [d, d]: the map from the position that a head attends to, to its output.

    A head is "L9H6", "9.6" or (9, 6), here and below.
    """
    layer, head = parse_head(model.config, head)
    weights = attention_weights(model, layer, folded)
    return LowRank(weights.W_V[head], weights.W_O[head])


def qk(model: Model, head: Any, folded: bool = False) -> LowRank:
    """Return W_Q W_Kᵀ [d, d]: the score of a query (row) and a key, before division by √e."""
    layer, head = parse_head(model.config, head)
    weights = attention_weights(model, layer, folded)
    return LowRank(weights.W_Q[head], weights.W_K[head].T)


def full_ov(
    model: Model, head: Any, folded: bool = False, extended: bool = False
) -> LowRank:
    """Return W_E W_V W_O W_U [v, v]: the change of each logit if a head attends to a token (row).

    `extended` takes W_E plus the first MLP's output for it, which later layers read.
    """
    into = embedding(model, folded, extended)
    return into @ ov(model, head, folded) @ unembedding(model, folded)


def full_qk(
    model: Model, head: Any, folded: bool = False, extended: bool = False
) -> LowRank:
    """Return W_E W_Q W_Kᵀ W_Eᵀ [v, v]: the score with which a token (row) attends to a token."""
    into = embedding(model, folded, extended)
    return into @ qk(model, head, folded) @ into.T


def singular_tokens(
    model: Model, head: Any, n: int = 3, top: int = 8, folded: bool = False
) -> list[dict[str, Any]]:
    """Return the largest singular directions of a head's OV circuit, with tokens at both ends.

    One dict each: "value"; "reads" and "writes", each TopTokens of `top` tokens: those whose
    embedding lies furthest along the input direction, and those whose logit the output raises
    most. Both signs of a singular vector are equivalent; the one that reads more strongly is given.
    """
    check_count("n", n)
    into = embedding(model, folded)
    u, values, vt = ov(model, head, folded).svd()
    written = unembed(model, vt[:n], folded=folded)
    found = []
    for i in range(min(n, len(values))):
        reads, writes = into @ u[:, i], written[i]
        sign = 1 if reads.max() >= -reads.min() else -1
        ends = {"reads": reads, "writes": writes}
        found.append({"value": float(values[i]), **{
            end: best_tokens(model.tokenizer, sign * scores, top) for end, scores in ends.items()}})
    return found


# --- all heads at once -----------------------------------------------------------------


def copying_scores(model: Model, folded: bool = False, extended: bool = False) -> np.ndarray:
    """Return Σ λ / Σ |λ| over the eigenvalues of each head's full OV circuit, [layer, head].

    1 means that attending to any token raises that token's own logit; -1 that it lowers it. NaN for
    a head that writes nothing, as one whose weights were set to 0.
    (Elhage et al. 2021, "Copying / primitive in-context learning".)
    """
    config = model.config
    # Eigenvalues of E W_V W_O U are those of W_O (U E) W_V: U E [d, d] serves every head.
    gram = unembedding(model, folded) @ embedding(model, folded, extended)
    scores = np.zeros((config.n_layer, config.n_head))
    for layer in range(config.n_layer):
        weights = attention_weights(model, layer, folded)
        inner = weights.W_O @ gram @ weights.W_V
        check_numbers(f"layer {layer}'s OV circuits", inner, model)
        eigenvalues = np.linalg.eigvals(inner)
        with np.errstate(invalid="ignore"):
            scores[layer] = (eigenvalues.sum(axis=-1) / np.abs(eigenvalues).sum(axis=-1)).real
    return scores


@dataclass(frozen=True, eq=False, repr=False)
class Composition(Result):
    """The composition of every pair of heads: `values` [layer, head, later layer, later head].

    0 unless the second head is in a later layer, NaN if a head's circuit is 0. `kind` is "Q", "K"
    or "V".
    """

    kind: str
    values: np.ndarray

    def __repr__(self) -> str:
        return table(f"Composition by {self.kind}, {short(self.values)}; the highest pairs:",
                     [[" → ".join(pair), f"{value:+.4g}"] for pair, value in self.top(MOST_LINES)])

    def top(self, n: int = 10) -> list[tuple[tuple[str, str], float]]:
        """Return the pairs of heads (first, second) with the highest scores, and these."""
        check_count("n", n)
        layers = np.arange(len(self.values))
        is_later = layers[:, None, None, None] < layers[:, None]  # [layer, 1, later layer, 1]
        pairs = np.argwhere(np.broadcast_to(is_later, self.values.shape))
        scores = self.values[tuple(pairs.T)]
        order = np.argsort(-scores, kind="stable")[: min(n, np.isfinite(scores).sum())]
        return [((node_name(*pair[:2]), node_name(*pair[2:])), value) for pair, value in
                zip(pairs[order].tolist(), scores[order].tolist(), strict=True)]


def composition(
    model: Model, kind: str, *, folded: bool = False, baseline: bool = True, seed: int = 0
) -> Composition:
    """Return the composition of every pair of heads.

    It is ‖A B‖ / (‖A‖ ‖B‖) (Frobenius), the share of the first one's output that the second reads.
    A is the OV circuit of the first head, B a circuit of the second: QK for `kind` "Q", QKᵀ for
    "K", OV for "V". `baseline` subtracts the mean for random matrices of the same shapes.
    (Elhage et al. 2021, "Composition".)
    """
    if kind not in ("Q", "K", "V"):
        raise Error(f"unknown composition {shown(kind)}: choose 'Q', 'K' or 'V'")
    config = model.config
    d, e = config.n_embd, config.n_embd // config.n_head
    chance = random_composition(d, e, seed) if baseline else 0.0
    layers = [attention_weights(model, n, folded) for n in range(config.n_layer)]

    def stack(field):  # [l h, ...]
        return np.concatenate([getattr(layer, field) for layer in layers])

    first = LowRank(stack("W_V"), stack("W_O"))
    q, k = stack("W_Q"), stack("W_K")
    second = {"Q": LowRank(q, k.swapaxes(1, 2)), "K": LowRank(k, q.swapaxes(1, 2)), "V": first}
    h = config.n_head
    scores = np.zeros((len(q), len(q)))
    for layer in range(config.n_layer - 1):
        rows, later = slice(layer * h, layer * h + h), slice(layer * h + h, None)
        scores[rows, later] = pairwise_composition(
            LowRank(first.left[rows], first.right[rows]),
            LowRank(second[kind].left[later], second[kind].right[later]),
        ) - chance
    return Composition(kind, scores.reshape(config.n_layer, h, config.n_layer, h))


def pairwise_composition(first, second):
    """Return ‖A B‖ / (‖A‖ ‖B‖) of every pair from two batches, [a, b], from r x r matrices."""
    outer = triangle(first.left) @ first.right  # [a, r, d]
    inner = second.left @ triangle(second.right.swapaxes(1, 2)).swapaxes(1, 2)  # [b, d, r]
    products = np.stack([np.linalg.norm(one @ inner, axis=(1, 2)) for one in outer])
    with np.errstate(invalid="ignore"):
        return products / first.norm()[:, None] / second.norm()


def random_composition(d, e, seed, n=16):
    """Return the mean composition of n pairs of Gaussian [d, e] @ [e, d]; it is near 1/√d."""
    rng = generator(seed)

    def random():
        return LowRank(rng.standard_normal((n, d, e)), rng.standard_normal((n, e, d)))

    return float(pairwise_composition(random(), random()).mean())

"""Circuits of edges: which part reads which, estimated by attribution and checked exactly.

An edge leads from a sender (the embedding, a head, an MLP) to a receiver (a head's q, k or v, an
MLP, the logits). A circuit of edges says not only which parts matter, but through which inputs.
124M has 32,491 of them, too many to patch one by one: gradients rank them all at once, and exact
runs decide which go. (Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit
Discovery"; Conmy et al. 2023; Goldowsky-Dill et al. 2023.)
"""
from __future__ import annotations

import numpy as np

from ..backend import einsum, namespace, to_host
from ..gpt2_np import (
    NO_TAP,
    Config,
    Error,
    Model,
    attend,
    layer_norm,
    mlp,
    unembed,
)
from ..inference.turns import turn
from .activations import run
from .backward import gradients, layer_norm_gradient
from .head_weights import attention_weights
from .inputs import PromptsLike, check_same_length, prompts
from .metrics import Metric, checked_values
from .names import activation_name
from .search import Circuit, Pruning
from .sweeps import progress_bar
from .weights import on_host

WRITERS = ("hook_embed", "blocks.*.attn.hook_z", "blocks.*.hook_mlp_out")


def find_edges(
    model: Model,
    keep: float = 0.9,
    *,
    base: PromptsLike,
    source: PromptsLike,
    metric: Metric,
    checks: int = 200,
    subsets: int = 8,
    seed: int = 0,
    progress: bool = False,
    bos: bool | None = None,
) -> Circuit:
    """Prune edges to a small set that keeps the share `keep` of the effect on the `base` prompts.

    A pruned edge carries its sender's output from `source`. `edge_attribution` ranks the edges
    once. Bisection finds the fewest of the strongest that suffice. Then ever smaller blocks of the
    weakest are left out if an exact run allows it, with at most `checks` runs. The metric must know
    its gradient.

    Of E ≈ 1.5 (layers · heads)² edges it costs at most log₂ E + `checks` + 2 `subsets` + 4 passes
    of `patch_edges`, and one for each edge kept. Such a pass takes about as long as two plain ones.
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    check_same_length(base, source, "source")
    scores = edge_attribution(model, base=base, source=source, metric=metric).mean(axis=-1)
    senders, receivers, exist = edge_names(model.config)
    written = written_by_senders(model, run(model, source, WRITERS, last_only=True))
    pairs = np.argwhere(exist)
    strongest = [tuple(pair) for pair in
                 pairs[np.argsort(-np.abs(scores[exist]), kind="stable")].tolist()]
    names = {(s, r): (senders[s], receivers[r]) for s, r in strongest}

    with progress_bar(None, progress) as bar:

        def measure(removed):
            patched = np.zeros_like(exist)
            patched[tuple(np.array(removed, int).reshape(-1, 2).T)] = True
            bar.update(1)
            return checked_values(metric(edge_patched_logits(model, base, written, patched)),
                                  len(base.tokens))

        def all_but(edges):
            edges = set(edges)
            return [edge for edge in strongest if edge not in edges]

        pruning = Pruning(measure, strongest, keep, base)
        kept = strongest[: len(strongest) - pruning.most_removable([], strongest[::-1])]
        kept = without_blocks(without_unread(kept, names),
                              lambda edges: pruning.suffices(measure(all_but(edges))), checks)
        kept = without_unread(kept, names)
        removed = all_but(kept)
        alone = {edge: measure([*removed, edge]) for edge in kept}
        scores = {edge: scores[edge] for edge in strongest}
        return pruning.circuit(kept, removed, alone, names, subsets, seed, scores)


def without_blocks(kept, suffice, checks):
    """Leave out blocks of the weakest edges, halving their size, while the others `suffice`."""
    size = max(1, len(kept) // 2)
    while kept and checks > 0:
        end, dropped = len(kept), False
        while end > 0 and checks > 0:
            trial = kept[: max(0, end - size)] + kept[end:]
            checks -= 1
            if suffice(trial):
                kept, dropped = trial, True
            end -= size
        if size == 1 and not dropped:
            break
        size = max(1, size // 2)
    return kept


def without_unread(kept, names):
    """Leave out edges into nodes that no kept edge leads out of: nothing depends on them."""
    while True:
        read = {names[edge][0] for edge in kept} | {"logits"}
        used = [edge for edge in kept if names[edge][1].partition(".")[0] in read]
        if len(used) == len(kept):
            return kept
        kept = used


def edge_names(config: Config) -> tuple[list[str], list[str], np.ndarray]:
    """Return senders, receivers, and the pairs that are edges, booleans [sender, receiver].

    Senders are "embed", heads and MLPs; receivers "L1H2.q", ".k", ".v", "MLP1" and "logits". A
    pair is an edge if the sender writes before the receiver reads.
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


def written_by_senders(model, seen):
    """Return the output of every sender, [sender, b, q, d]; heads without their layer's bias."""
    parts = [seen["hook_embed"][None]]
    for layer in range(model.config.n_layer):
        z, w = seen[activation_name("z", layer)], attention_weights(model, layer).W_O
        parts += [einsum("bqhe,hed->hbqd", z, w), seen[activation_name("mlp_out", layer)][None]]
    return np.concatenate(parts)


# --- exact: every receiver reads a stream of its own -----------------------------------


def patch_edges(
    model: Model, patched: np.ndarray, *, base: PromptsLike, source: PromptsLike,
    bos: bool | None = None,
) -> np.ndarray:
    """Return logits [b, 1, v] of `base` if the patched edges carry the outputs from `source`.

    `patched` holds booleans [sender, receiver] as in `edge_names`. Every head's q, k and v, every
    MLP and the logits read a stream of their own: no approximation is made.
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    check_same_length(base, source, "source")
    expected = edge_names(model.config)[2].shape
    if np.shape(patched) != expected:
        raise Error(f"patched has shape {np.shape(patched)}, it must be {expected}: see edge_names")
    written = written_by_senders(model, run(model, source, WRITERS, last_only=True))
    return edge_patched_logits(model, base, written, np.asarray(patched))


def edge_patched_logits(model, base, written, patched):
    with turn(model):
        config, params, h = model.config, model.params, model.config.n_head
        streams = ReceivedStreams(on_host(params["wte"])[base.tokens],
                                  on_host(params["wpe"])[: base.tokens.shape[1]], written, patched)
        positions = np.broadcast_to(np.arange(base.tokens.shape[1]), base.tokens.shape)
        for layer in range(config.n_layer):
            block, weights = on_host(params["blocks"][layer]), attention_weights(model, layer)
            read = normalized(streams.read(3 * h), block["ln_1"])
            q, k, v = (einsum("hbqd,hde->bqhe", stream, w) + b for stream, w, b in
                       zip(np.split(read, 3), weights.reading, weights.biases, strict=True))
            z = attend(q, k, v, positions, NO_TAP)
            streams.write(einsum("bqhe,hed->hbqd", z, weights.W_O), weights.b_O)
            normal = normalized(streams.read(1), block["ln_2"])[0]
            streams.write(mlp(normal, **block["mlp"], tap=NO_TAP)[None])
        last = normalized(streams.read(1)[:, :, -1:], on_host(params["ln_f"]))[0]
        return to_host(unembed(namespace(params["wte"]).asarray(last), params))


class ReceivedStreams:
    """The residual stream as each receiver reads it, when some edges carry other outputs.

    It is the stream of the patched run, plus the change [sender, b, q, d] of every sender whose
    edge to that receiver is patched. Senders write and receivers read in the order of `edge_names`.
    """

    def __init__(self, embedded, positions, written, patched):
        self.mask, self.written = patched.astype(written.dtype), written
        self.x = embedded + positions
        self.change = np.zeros((len(written), *embedded.shape), embedded.dtype)
        self.change[0] = written[0] - embedded
        self.n_senders, self.n_receivers = 1, 0

    def read(self, count):
        """Return the streams of the next receivers, [r, b, q, d]."""
        mask = self.mask[: self.n_senders, self.n_receivers : self.n_receivers + count]
        self.n_receivers += count
        return self.x + einsum("sr,sbqd->rbqd", mask, self.change[: self.n_senders])

    def write(self, outputs, bias=0):
        """Add the outputs of the next senders, [s, b, q, d]."""
        these = slice(self.n_senders, self.n_senders + len(outputs))
        self.change[these] = self.written[these] - outputs
        self.x = self.x + (outputs.sum(axis=0) + bias)
        self.n_senders = these.stop


def normalized(streams, norm):
    rows = streams.reshape(-1, *streams.shape[2:])
    return layer_norm(rows, **norm, tap=NO_TAP).reshape(streams.shape)


# --- estimated: change of the sender times gradient at the receiver --------------------


def edge_attribution(
    model: Model, *, base: PromptsLike, source: PromptsLike, metric: Metric,
    bos: bool | None = None,
) -> np.ndarray:
    """Return the estimated change of the metric from patching single edges, [sender, receiver, b].

    To first order it is the sender's output in `source` minus that in `base`, times the metric's
    gradient at the receiver's input. Names and the pairs that exist are those of `edge_names`;
    other pairs are 0. Holds a gradient [b, q, d] for each receiver: 1.4 MB a position at 124M.
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    check_same_length(base, source, "source")
    config = model.config
    seen = run(model, base, [*WRITERS, "blocks.*.hook_resid_pre"], last_only=True)
    other = run(model, source, WRITERS, last_only=True)
    change = written_by_senders(model, other) - written_by_senders(model, seen)
    known = gradients(model, base, metric, names=("q", "k", "v", "resid_mid", "mlp_out"))
    inputs = []  # [receiver, b, q, d]
    for layer in range(config.n_layer):
        block, weights = on_host(model.params["blocks"][layer]), attention_weights(model, layer)
        for kind, w in zip("qkv", weights.reading, strict=True):
            inside = einsum("bqhe,hde->hbqd", known[activation_name(kind, layer)], w)
            inputs.append(layer_norm_gradient(inside, seen[activation_name("resid_pre", layer)],
                                              block["ln_1"]["g"]))
        # The MLP's input moves the stream only through the MLP, not through the skip connection.
        mid, out = activation_name("resid_mid", layer), activation_name("mlp_out", layer)
        inputs.append((known[mid] - known[out])[None])
    inputs.append(known[activation_name("mlp_out", config.n_layer - 1)][None])
    scores = np.einsum("sbqd,rbqd->srb", change, np.concatenate(inputs), optimize=True)
    return np.where(edge_names(config)[2][..., None], scores, 0)

"""Circuits of edges: which part reads which, estimated by attribution and checked exactly.

An edge leads from a sender (the embedding, a head, an MLP) to a receiver (a head's q, k or v, an
MLP, the logits). A circuit of edges says not only which parts matter, but through which inputs.
124M has 32,491 of them, too many to patch one by one: gradients rank them all at once, and exact
runs decide which go. (Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit
Discovery"; Conmy et al. 2023; Goldowsky-Dill et al. 2023.)
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import einsum, namespace, to_host
from ..bpe import shown
from ..gpt2_np import (
    NO_TAP,
    Config,
    Error,
    Model,
    Tap,
    attend,
    layer_norm,
    mlp,
    unembed,
)
from ..inference.turns import turn
from .activations import run
from .backward import gradients, layer_norm_gradient
from .head_weights import attention_weights
from .inputs import PromptsLike, check_count, check_same_length, prompts
from .interventions import Edits, EditsLike, HeldEdits, Place
from .metrics import Metric, is_better_low, kind_of_patching, measured, reads_last
from .names import activation_name, nearest, node_list, node_name, parse_inputs, parse_node
from .paths import REFUSED
from .resumed_runs import progress_bar
from .search import Circuit, Pruning
from .short_reprs import MOST_LINES, Result, prompts_in, strongest, table
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
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Circuit:
    """Prune edges to a small set that keeps the share `keep` of the effect on the `base` prompts.

    A pruned edge carries its sender's output from `source`. `edge_attribution` ranks the edges
    once. Bisection finds the fewest of the strongest that suffice. Then ever smaller blocks of the
    weakest are left out if an exact run allows it, with at most `checks` runs. The metric must know
    its gradient.

    Of E ≈ 1.5 (layers · heads)² edges it costs at most log₂ E + `checks` + 2 `subsets` + 4 passes
    of `patch_edges`, and one for each edge kept. Such a pass takes about as long as two plain ones.

    `edits`, as for `patch_edges`, hold in every pass. Prompts the wrong way round are warned of, as
    by `find`, and `bos` means the same.
    """
    pair = EdgeRuns("find_edges", model, base, source, edits, bos, reads_last(metric))
    found = pair.attribution(metric)
    scores, n = found.values.mean(axis=-1), len(pair.base.tokens)
    senders, receivers, exist = edge_names(model.config)
    pairs = np.argwhere(exist)
    strongest = [tuple(pair) for pair in
                 pairs[np.argsort(-np.abs(scores[exist]), kind="stable")].tolist()]
    names = {(s, r): (senders[s], receivers[r]) for s, r in strongest}

    with progress_bar(None, progress) as bar:

        def measure(removed):
            patched = np.zeros_like(exist)
            patched[tuple(np.array(removed, int).reshape(-1, 2).T)] = True
            bar.update(1)
            return measured(metric, edge_patched_logits(pair, patched), n)

        def all_but(edges):
            edges = set(edges)
            return [edge for edge in strongest if edge not in edges]

        pruning = Pruning(measure, strongest, keep, pair.base, found.source, metric, subsets,
                          seed)
        kept = strongest[: len(strongest) - pruning.most_removable([], strongest[::-1])]
        kept = without_blocks(without_unread(kept, names),
                              lambda edges: pruning.suffices(measure(all_but(edges))), checks)
        kept = without_unread(kept, names)
        removed = all_but(kept)
        alone = {edge: measure([*removed, edge]) for edge in kept}
        scores = {edge: scores[edge] for edge in strongest}
        return pruning.circuit(kept, removed, alone, names, scores)


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
    model: Model,
    patched: Any,
    *,
    base: PromptsLike,
    source: PromptsLike,
    edits: EditsLike | None = None,
    last_only: bool = True,
    bos: bool | None = None,
) -> np.ndarray:
    """A run: the logits [b, 1, v] of `base` if the patched edges carry the outputs from `source`.

    `patched` is an edge such as ("L0H1", "L1H2.k"), a list of edges, or booleans [sender,
    receiver], as in `edge_names`. A receiver "L1H2" means all three inputs of the head. Every
    head's q, k and v, every MLP and the logits read a stream of their own: no approximation is
    made. `last_only=False` gives the logits of all positions.

    `edits`, as for `run`, hold in both prompts. Raises Error for edits of the stream, of
    attention's sum and of layer norms, since each receiver has its own. `bos`, as for `run`, puts
    <|endoftext|> first: by default before text and not before ids.
    """
    patched = edge_mask(model.config, patched)
    return edge_patched_logits(
        EdgeRuns("patch_edges", model, base, source, edits, bos, last_only), patched)


def edge_mask(config, patched):
    """Return the patched edges as booleans [sender, receiver]."""
    senders, receivers, exist = edge_names(config)
    if hasattr(patched, "dtype"):
        if np.shape(patched) != exist.shape or patched.dtype != bool:
            raise Error(f"patched is {patched.dtype} of shape {np.shape(patched)}, it must be "
                        f"booleans of shape {exist.shape}: see edge_names")
        return np.asarray(patched)
    mask, several = np.zeros_like(exist), patched
    if isinstance(patched, tuple) and len(patched) == 2 and len(node_list(patched[0])) == 1:
        several = [patched]
    for edge in several if isinstance(several, list | tuple) else [several]:
        sender, names = edge_ends(config, edge)
        for receiver in names:
            at = senders.index(sender) if sender in senders else -1, receivers.index(receiver)
            if at[0] < 0 or not exist[at]:
                raise Error(f"no edge leads from {sender} to {receiver}: a sender is 'embed', a "
                            "head or an MLP, and writes before its receiver reads")
            mask[at] = True
    return mask


def edge_ends(config, edge):
    """Return the names of an edge's sender and of its receivers: a whole head has three inputs."""
    if not isinstance(edge, list | tuple) or len(edge) != 2:
        raise Error(f"{shown(edge)} is not an edge: give (sender, receiver), such as ('L0H1', "
                    "'L1H2.k')")
    sender, inputs = edge
    if sender != "embed":
        sender = node_name(*parse_node(config, sender))
    return sender, ["logits"] if inputs == "logits" else [
        node_name(*one) for one in parse_inputs(config, inputs)]


class EdgeRuns:
    """A pair of prompts, and what every sender writes in a run of `source`, [sender, b, q, d]."""

    def __init__(self, tool, model, base, source, edits, bos, last_only):
        self.model, self.last_only = model, last_only
        self.base, source = prompts(model, base, bos), prompts(model, source, bos)
        check_same_length(self.base, source, "source")
        self.edits = Edits(model, edits)
        self.edits.refuse(tool, (*REFUSED, "ln1", "ln2", "ln_final"),
                          "edit embeddings, heads or MLPs")
        self.place = Place.from_position(0, *self.base.tokens.shape)
        self.source = run(model, source, WRITERS, edits=self.edits, last_only=last_only)
        self.written = written_by_senders(model, self.source)

    def attribution(self, metric):
        """Return `edge_attribution`."""
        model, config = self.model, self.model.config
        kinds = ("q", "k", "v", "resid_mid", "mlp_out")
        seen = run(model, self.base, [*WRITERS, "blocks.*.hook_resid_pre"], edits=self.edits,
                   last_only=self.last_only)
        change = self.written - written_by_senders(model, seen)
        known = gradients(model, self.base, metric, names=kinds, edits=self.edits)
        inputs = []  # [receiver, b, q, d]
        for layer in range(config.n_layer):
            block, weights = on_host(model.params["blocks"][layer]), attention_weights(model, layer)
            for kind, w in zip("qkv", weights.reading, strict=True):
                name = activation_name(kind, layer)
                before = self.edits.back(name, known[name], self.place)
                inside = einsum("bqhe,hde->hbqd", before, w)
                stream = seen[activation_name("resid_pre", layer)]
                inputs.append(layer_norm_gradient(inside, stream, block["ln_1"]["g"]))
            # The MLP's input moves the stream only through the MLP, not past it.
            mid, out = activation_name("resid_mid", layer), activation_name("mlp_out", layer)
            inputs.append((known[mid] - known[out])[None])
        inputs.append(known[activation_name("mlp_out", config.n_layer - 1)][None])
        scores = np.einsum("sbqd,rbqd->srb", change, np.concatenate(inputs), optimize=True)
        senders, receivers, exist = edge_names(config)
        n = len(self.base.tokens)
        return EdgeScores(
            senders, receivers, np.where(exist[..., None], scores, 0),
            measured(metric, seen.logits, n), measured(metric, self.source.logits, n),
            self.base.tokens, self.base.bos, is_better_low(metric))


def edge_patched_logits(pair, patched):
    model, base, tap = pair.model, pair.base, NO_TAP
    if pair.edits:
        tap = Tap(HeldEdits(pair.edits, pair.place))
    with turn(model, has_tap=bool(pair.edits)):
        config, params, h = model.config, model.params, model.config.n_head
        positions = np.broadcast_to(np.arange(base.tokens.shape[1]), base.tokens.shape)
        streams = ReceivedStreams(tap("hook_embed", on_host(params["wte"])[base.tokens]),
                                  tap("hook_pos_embed", on_host(params["wpe"])[positions]),
                                  pair.written, patched)
        for layer in range(config.n_layer):
            block, weights = on_host(params["blocks"][layer]), attention_weights(model, layer)
            here = tap.under(f"blocks.{layer}.")
            inside = here.under("attn.")
            read = normalized(streams.read(3 * h), block["ln_1"])
            q, k, v = (inside(f"hook_{kind}", einsum("hbqd,hde->bqhe", stream, w) + b)
                       for kind, stream, w, b in zip(
                           "qkv", np.split(read, 3), weights.reading, weights.biases, strict=True))
            z = inside("hook_z", attend(q, k, v, positions, inside))
            streams.write(einsum("bqhe,hed->hbqd", z, weights.W_O), weights.b_O)
            normal = normalized(streams.read(1), block["ln_2"])[0]
            out = here("hook_mlp_out", mlp(normal, **block["mlp"], tap=here.under("mlp.")))
            streams.write(out[None])
        last = streams.read(1)
        last = normalized(last[:, :, -1:] if pair.last_only else last, on_host(params["ln_f"]))[0]
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


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(Result):
    """Estimated changes of the metric by patching single edges: `values` [sender, receiver, b].

    `scores["L0H1", "L1H2.k"]` is that of one edge, [b], and `scores["L0H1", "L1H2"]` the sum over
    the head's three inputs. `base` and `source` [b] are the metric of
    the two runs, and `kind` says if patching was "denoising" or "noising". Pairs that are no edges
    have 0.
    """

    senders: list[str]
    receivers: list[str]
    values: np.ndarray
    base: np.ndarray
    source: np.ndarray
    tokens: np.ndarray
    bos: bool
    lower_is_better: bool = False

    @property
    def kind(self) -> str:
        """"denoising" if the source does better by the metric, or "noising"."""
        return kind_of_patching(self.base, self.source, self.lower_is_better)

    def __getitem__(self, edge: tuple[Any, Any]) -> np.ndarray:
        sender, receivers = edge_ends(None, edge)
        for end, names in ((sender, self.senders), *((one, self.receivers) for one in receivers)):
            if end not in names:
                raise Error(f"there is no {shown(end)} in these edges{nearest(end, names)}")
        index = [self.receivers.index(one) for one in receivers]
        return self.values[self.senders.index(sender), index].sum(axis=0)

    def __repr__(self) -> str:
        return table(f"EdgeScores of {len(self.senders)} senders and {len(self.receivers)} "
                     f"receivers ({self.kind}), {prompts_in(self.tokens)}: metric "
                     f"{self.base.mean():.4g}, source {self.source.mean():.4g};\n"
                     "the largest estimated changes:",
                     [[" → ".join(edge), f"{value:+.4g}"] for edge, value in self.top(MOST_LINES)])

    def top(self, n: int = 10) -> list[tuple[tuple[str, str], float]]:
        """Return the edges with the largest mean changes, and these, in either direction."""
        check_count("n", n)
        means = self.values.mean(axis=-1)
        return [((self.senders[s], self.receivers[r]), float(means[s, r]))
                for s, r in strongest(means, n)]


def edge_attribution(
    model: Model,
    *,
    base: PromptsLike,
    source: PromptsLike,
    metric: Metric,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> EdgeScores:
    """Return the estimated change of the metric from patching single edges, for all of them.

    To first order it is the sender's output in `source` minus that in `base`, times the metric's
    gradient at the receiver's input. Holds a gradient [b, q, d] for each receiver: 1.4 MB a
    position at 124M. `edits` and `bos` are those of `patch_edges`, but for functions of your own,
    whose gradient is not known.
    """
    runs = EdgeRuns("edge_attribution", model, base, source, edits, bos, reads_last(metric))
    return runs.attribution(metric)

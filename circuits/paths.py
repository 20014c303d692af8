"""Path patching: the direct effect of heads and MLPs on the logits, or on each other's inputs.

Activation patching counts every consequence of a change. Path patching lets only one edge carry
it: all other heads are held as they were, so that a direct influence is told from one that later
heads pass on. (Wang et al. 2022, section 3.1 and appendix B; Goldowsky-Dill et al. 2023,
"Localizing Model Behavior with Path Patching".)
"""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..backend import namespace, to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, Tap, layer_norm, mlp
from ..inference.turns import turn
from .activations import run
from .head_weights import attention_weights
from .inputs import PromptsLike, position_slice, shared_positions
from .interventions import Edits, EditsLike
from .metrics import Metric, is_better_low, reads_last
from .names import activation_name, node_list, node_name, parse_inputs, parse_node
from .resumed_runs import BaseRun, progress_bar
from .sweeps import Sweep, by_groups, prompt_groups

REFUSED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "result")


def path_patching(
    model: Model,
    senders: Any = "heads",
    receivers: Any = "logits",
    *,
    base: PromptsLike,
    source: PromptsLike,
    metric: Metric,
    through_mlps: bool = True,
    position: int | None = None,
    last_only: bool | None = None,
    progress: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Sweep:
    """A sweep: run `base` while one sender at a time sends its `source` output to the receivers.

    `base` is the run that is changed, `source` the one that activations come from; `kind` of the
    result says which does the task better. `senders` are "heads" (axes layer, head), "mlps" (axis
    layer), or one or several heads, MLPs and neurons by name (axis sender). `receivers` are
    "logits", or one or several of "L9H6.q", "L9H6" for all three inputs of a head, and "MLP3". A
    sender's output is that of `source` at one `position` or all. Every other head is held as in
    `base`, and only the receivers see the difference. MLPs between are computed anew, or held too
    if `through_mlps` is off.

    Pairs of prompts may differ in length, and `bos` and other options are those of `patching`.
    Raises Error for edits of the stream and of attention's sum, through which a path's change
    cannot be told from the rest, and for a sender that is named and writes after every receiver has
    read. Others that write later have the effect 0.
    """
    axes, names, sending = checked_senders(model.config, senders)
    readers = checked_receivers(model.config, receivers)
    edits, last_only = Edits(model, edits), reads_last(metric, last_only)
    edits.refuse("path_patching", REFUSED, "edit embeddings, heads or MLPs")
    kinds = sorted({sender.what for sender in sending})
    ends = {reader.start for reader in readers} or {2 * model.config.n_layer}
    for name, sender in zip(names, sending, strict=False):
        if sender.start > max(ends):
            raise Error(f"no path leads from {name} to {shown(receivers)}: a sender must write "
                        "before a receiver reads")

    def of_one_length(base, source, metric):
        at = None if position is None else position_slice(position, base.tokens).start
        stored = BaseRun(model, base, metric, kinds, edits, last_only)
        seen = run(model, source, kinds, edits=edits, last_only=last_only)
        n_shared = stored.first_changed(shared_positions(base, source))
        first = stored.first_changed(max(n_shared, at or 0))  # nothing differs before
        shape = [1 + max(sender.cell[axis] for sender in sending) for axis in range(len(axes))]
        per_prompt = np.tile(stored.measured, (*shape, 1))
        reaching = [one for one in sending if one.start <= max(ends) and first < stored.length]
        with progress_bar(len(reaching), progress) as bar:
            for start, chosen in batches(reaching, stored.copies_at_once(first)):
                sent = np.concatenate([
                    stored.change(seen.activations, one.what, n_shared, position=at, **one.unit)
                    for one in chosen])[:, first:]
                streams = direct_streams(stored, sent, start, ends, first, through_mlps)
                values = received_metric(stored, streams, readers, first)
                for sender, value in zip(chosen, values, strict=True):
                    per_prompt[sender.cell] = value
                bar.update(len(chosen))
        return Sweep("path", axes, per_prompt, stored.measured, stored.source_metric(seen.logits),
                     base.tokens, base.bos, names, lower_is_better=is_better_low(metric),
                     tokenizer=model.tokenizer)

    return by_groups(of_one_length, prompt_groups(model, base, source, bos=bos), metric, axes)


class Sender(NamedTuple):
    """A sender: its cell in the result, the activation that it sends, and which part of it.

    `start` is the first sub-layer that reads it. Sub-layer 2 l is the attention of layer l, 2 l + 1
    its MLP, and the last one is the logits.
    """

    cell: tuple[int, ...]
    what: str
    unit: dict[str, int]
    start: int


class Receiver(NamedTuple):
    """A head's q, k or v, or the input ("in") of an MLP, for which `head` is None."""

    layer: int
    head: int | None
    kind: str

    @property
    def start(self) -> int:
        """The sub-layer that reads it."""
        return 2 * self.layer + (self.head is None)


def checked_senders(config, senders):
    """Return the axes of the result, the names along an axis "sender", and every Sender."""
    if isinstance(senders, str) and senders in ("heads", "mlps"):
        axes = ("layer", "head") if senders == "heads" else ("layer",)
        sizes = (config.n_layer, config.n_head)[: len(axes)]
        indices = list(np.ndindex(sizes))
        nodes, names = [(*index, None)[:2] for index in indices], ()
    else:
        axes, nodes = ("sender",), [parse_node(config, node) for node in node_list(senders)]
        indices, names = [(i,) for i in range(len(nodes))], tuple(node_name(*n) for n in nodes)
    if not nodes:
        raise Error("there are no senders: give some, such as 'L5H1', or 'heads' or 'mlps' for all")
    sending = []
    for index, (layer, head, *neuron) in zip(indices, nodes, strict=True):
        what = "post" if neuron else "mlp_out" if head is None else "z"
        unit = {"layer": layer} | (
            {"neuron": neuron[0]} if neuron else {} if head is None else {"head": head})
        sending.append(Sender(index, what, unit, 2 * layer + 1 + (head is None)))
    return axes, names, sending


def checked_receivers(config, receivers):
    """Return [] for the logits, else every Receiver."""
    if isinstance(receivers, str) and receivers == "logits":
        return []
    several = node_list(receivers)
    if "logits" in several:
        raise Error("'logits' cannot be one of several receivers: sweep to the logits alone")
    if not several:
        raise Error("there are no receivers: give some, such as 'L9H6.q', or 'logits'")
    return [Receiver(*one) for node in several for one in parse_inputs(config, node)]


def batches(sending, at_once):
    """Yield sub-layers and up to `at_once` senders that start there."""
    for start in sorted({sender.start for sender in sending}):
        here = [sender for sender in sending if sender.start == start]
        for i in range(0, len(here), at_once):
            yield start, here[i : i + at_once]


def direct_streams(stored, sent, start, ends, first, through_mlps):
    """Return {sub-layer of `ends`: the stream before it}, with `sent` added, no other head moving.

    Streams and `sent`, a change of the output before sub-layer `start`, are [copies b, q, d] from
    position `first` on.
    """
    model, streams = stored.model, {}
    copies, xp = (len(sent) // stored.n_prompts, 1, 1), namespace(model.params["wte"])
    for at in range(start, max(ends) + 1):
        if at in ends:
            streams[at] = np.tile(stored.stream(at)[:, first:], copies) + sent
        if through_mlps and at % 2 and at < max(ends):
            mid, block = stored.stream(at)[:, first:], model.params["blocks"][at // 2]
            with turn(model, has_tap=bool(stored.edits)):
                moved, still = (
                    to_host(mlp_out(xp.asarray(x), block,
                                    Tap(stored.held(first, n), f"blocks.{at // 2}.")))
                    for x, n in ((np.tile(mid, copies) + sent, copies[0]), (mid, 1)))
            sent = sent + moved - np.tile(still, copies)
    return streams


def mlp_out(x, block, tap):
    """Return the output of a block's MLP alone. A sum with the larger stream would round it."""
    normalized = layer_norm(x, **block["ln_2"], tap=tap.under("ln2."))
    return tap("hook_mlp_out", mlp(normalized, **block["mlp"], tap=tap.under("mlp.")))


def received_metric(stored, streams, receivers, first):
    """Return the metric [copy, b] of the base run if only the receivers see the streams."""
    lowest = min(streams)
    if not receivers:
        return stored.measure(streams[lowest], lowest, first)
    copies = len(streams[lowest]) // stored.n_prompts
    held = Tap(stored.held(first, copies))
    with turn(stored.model, has_tap=bool(stored.edits)):
        receiving = ReceivingParts(stored.model, streams, receivers, held)
    x = np.tile(stored.stream(lowest)[:, first:], (copies, 1, 1))
    return stored.measure(x, lowest, first, before=receiving)


class ReceivingParts:
    """A tap that computes some heads' q, k or v, and MLPs, from other streams than the model's."""

    def __init__(self, model, streams, receivers, held):
        xp, self.arriving = namespace(model.params["wte"]), {}
        for reader in receivers:
            if reader.start not in streams:
                continue
            layer, head, kind = reader
            block, here = model.params["blocks"][layer], held.under(f"blocks.{layer}.")
            x = xp.asarray(streams[reader.start])
            if head is None:
                x = layer_norm(x, **block["ln_2"], tap=here.under("ln2."))
                name, new = "mlp_out", mlp(x, **block["mlp"], tap=here.under("mlp."))
            else:
                weights = attention_weights(model, layer)
                x = to_host(layer_norm(x, **block["ln_1"], tap=here.under("ln1.")))
                w, b = getattr(weights, f"W_{kind.upper()}"), getattr(weights, f"b_{kind.upper()}")
                name, new = kind, xp.asarray(x @ w[head] + b[head])
            self.arriving.setdefault(activation_name(name, layer), []).append((head, new))

    def wants(self, name):
        return name in self.arriving

    def __call__(self, name, array):
        array = array.copy()
        for head, new in self.arriving[name]:
            if head is None:  # the last MLP may be computed for the last position alone
                array = new[:, -array.shape[1] :]
            else:
                array[:, :, head] = new
        return array

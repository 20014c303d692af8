"""Path patching: the direct effect of a head on the logits, or on another head's q, k or v.

Activation patching counts every consequence of a change. Path patching lets only one edge carry
it: all other heads are held as they were, so that a direct influence is told from one that later
heads pass on. (Wang et al. 2022, section 3.1 and appendix B; Goldowsky-Dill et al. 2023,
"Localizing Model Behavior with Path Patching".)
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..backend import namespace, to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, Tap, layer_norm, mlp
from ..inference.turns import turn
from .activations import run
from .head_weights import attention_weights
from .inputs import PromptsLike, check_same_length, position_slice, prompts, shared_positions
from .interventions import Edits, EditsLike
from .metrics import Metric
from .names import activation_name, parse_node
from .sweeps import BaseRun, Sweep, progress_bar


def path_patching(
    model: Model,
    senders: str = "heads",
    receivers: str | Sequence[tuple[int, int, str]] = "logits",
    *,
    base: PromptsLike,
    source: PromptsLike,
    metric: Metric,
    through_mlps: bool = True,
    position: int | None = None,
    last_only: bool = True,
    progress: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Sweep:
    """Return the metric if one head sends its `source` output to the receivers, [layer, head].

    `receivers` are "logits", or heads' inputs as (layer, head, "q"), "k" or "v". One sender at a
    time gets its output from `source`, at one `position` or all. Every other head is held as in
    `base`, and only the receivers see the difference. MLPs between are computed anew, or held too
    if `through_mlps` is off. `edits`, as for `run`, hold in both prompts. Raises Error for edits of
    the stream and of attention's sum, through which a path's change cannot be told from the rest.
    """
    base, source = prompts(model, base, bos), prompts(model, source, bos)
    check_same_length(base, source, "source")
    receivers = checked_receivers(model.config, receivers)
    if position is not None:
        position = position_slice(position, base.tokens).start
    edits = Edits(model, edits)
    edits.refuse("path_patching", ("resid_pre", "resid_mid", "resid_post", "attn_out", "result"),
                 "edit embeddings, heads or MLPs")
    stored = BaseRun(model, base, metric, ("z",), edits, last_only)
    seen = run(model, source, "blocks.*.attn.hook_z", edits=edits, last_only=last_only)
    n_layer, n_head = model.config.n_layer, model.config.n_head
    per_prompt = np.tile(stored.measured, (n_layer, n_head, 1))
    n_shared = stored.first_changed(shared_positions(base, source))
    first = stored.first_changed(max(n_shared, position or 0))  # nothing differs before
    at_once = stored.copies_at_once(first)
    ends = {layer for layer, _, _ in receivers} or {n_layer}
    batches = [] if first == stored.length else [
        (layer, range(head, min(head + at_once, n_head)))
        for layer in range(max(ends)) for head in range(0, n_head, at_once)
    ]
    with progress_bar(len(batches), progress) as bar:
        for layer, chosen in batches:
            sent = np.concatenate([
                stored.change(seen.activations, "z", n_shared, layer, head, position)[:, first:]
                for head in chosen
            ])
            streams = direct_streams(stored, sent, layer, ends, first, through_mlps)
            per_prompt[layer, chosen] = received_metric(stored, streams, receivers, first)
            bar.update(1)
    return Sweep("path", ("layer", "head"), per_prompt, stored.measured,
                 stored.source_metric(seen), base.tokens, base.bos)


def checked_receivers(config, receivers):
    """Return [] for the logits, else checked (layer, head, "q" | "k" | "v")."""
    if isinstance(receivers, str):
        if receivers != "logits":
            raise Error(f"unknown receiver {shown(receivers)}: give 'logits' or a list such as "
                        "[(9, 6, 'q')]")
        return []
    for receiver in receivers:
        if not (isinstance(receiver, list | tuple) and len(receiver) == 3
                and receiver[1] is not None and receiver[2] in ("q", "k", "v")):
            raise Error(f"unknown receiver {shown(receiver)}: write (layer, head, 'q'), 'k' or 'v'")
        parse_node(config, tuple(receiver[:2]))
    if not receivers:
        raise Error("there are no receivers: give some, such as [(9, 6, 'q')], or 'logits'")
    return list(receivers)


def direct_streams(stored, sent, sender, ends, first, through_mlps):
    """Return {layer of `ends`: the stream before it}, with `sent` added and no other head moving.

    Streams and `sent`, a change of the sender's output, are [copy b, q, d] from `first` on.
    """
    model, streams = stored.model, {}
    copies, xp = (len(sent) // stored.n_prompts, 1, 1), namespace(model.params["wte"])
    for layer in range(sender, max(ends) + 1):
        if layer in ends and layer > sender:
            streams[layer] = np.tile(stored.stream(2 * layer)[:, first:], copies) + sent
        if through_mlps and layer < max(ends):
            mid, block = stored.stream(2 * layer + 1)[:, first:], model.params["blocks"][layer]
            with turn(model, has_tap=bool(stored.edits)):
                moved, still = (
                    to_host(mlp_out(xp.asarray(x), block,
                                    Tap(stored.held(first, n), f"blocks.{layer}.")))
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
        return stored.measure(streams[lowest], 2 * lowest, first)
    copies = len(streams[lowest]) // stored.n_prompts
    held = Tap(stored.held(first, copies))
    receiving = ReceivingHeads(stored.model, streams, receivers, held)
    x = np.tile(stored.stream(2 * lowest)[:, first:], (copies, 1, 1))
    return stored.measure(x, 2 * lowest, first, before=receiving)


class ReceivingHeads:
    """A tap that computes some heads' q, k or v from other streams than the model's."""

    def __init__(self, model, streams, receivers, held):
        xp, self.arriving = namespace(model.params["wte"]), {}
        for layer, head, kind in receivers:
            if layer not in streams:
                continue
            norm, weights = model.params["blocks"][layer]["ln_1"], attention_weights(model, layer)
            x = to_host(layer_norm(xp.asarray(streams[layer]), **norm,
                                   tap=held.under(f"blocks.{layer}.ln1.")))
            w, b = getattr(weights, f"W_{kind.upper()}"), getattr(weights, f"b_{kind.upper()}")
            new = xp.asarray(x @ w[head] + b[head])
            self.arriving.setdefault(activation_name(kind, layer), []).append((head, new))

    def wants(self, name):
        return name in self.arriving

    def __call__(self, name, array):
        array = array.copy()
        for head, new in self.arriving[name]:
            array[:, :, head] = new
        return array

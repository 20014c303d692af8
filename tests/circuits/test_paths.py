"""Path patching equals its definition, one whole pass after another."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, METRIC, MODEL, NOISING, close
from random_model import TINY

from gpt2_np import Error, circuits
from gpt2_np.gpt2_np import NO_TAP, mlp_layer


def frozen_path(sender, receivers, through_mlps, position=slice(None)):
    """Path patching by its definition, one whole pass after another."""
    layer, head = sender
    clean, other = (circuits.run(MODEL, tokens, "*") for tokens in (CLEAN, CORRUPTED))
    edits = {}
    for n in range(3):
        name = f"blocks.{n}.attn.hook_z"
        edits[name] = [circuits.patch(clean[name])]
        if not through_mlps:
            name = f"blocks.{n}.hook_mlp_out"
            edits[name] = clean[name]
    name = f"blocks.{layer}.attn.hook_z"

    def send(_, array):
        array[:] = clean[name]
        array[:, position, head] = other[name][:, position, head]

    edits = {key: edit[0] if isinstance(edit, list) else edit for key, edit in edits.items()}
    edits[name] = send
    first = circuits.run(MODEL, CLEAN, "*", edits=edits)
    if receivers == "logits":
        return METRIC(first.logits)
    edits = {circuits.activation_name(kind, n): circuits.patch(
        first[circuits.activation_name(kind, n)], h) for n, h, kind in receivers if n > layer}
    return METRIC(circuits.run(MODEL, CLEAN, edits=edits).logits)


@pytest.mark.parametrize("through_mlps", [True, False])
@pytest.mark.parametrize("receivers", ["logits", [(2, 1, "q"), (1, 3, "k"), (2, 0, "v")]])
def test_path_patching_equals_its_definition(receivers, through_mlps):
    sweep = circuits.path_patching(MODEL, **NOISING, receivers=receivers, through_mlps=through_mlps)
    for index in np.ndindex(3, 4):
        close(sweep.per_prompt[index], frozen_path(index, receivers, through_mlps))
    assert np.ptp(sweep.values) > 0.01


RECEIVERS = [(2, 1, "q"), (1, 3, "k"), (1, None, "in"), (2, None, "in")]


def frozen_node_path(sender, receivers, through_mlps):
    """The definition for any nodes: MLPs read what they would get from the changed stream."""
    layer, head, *neuron = circuits.parse_node(TINY, sender)
    clean, other = (circuits.run(MODEL, tokens, "*") for tokens in (CLEAN, CORRUPTED))
    held = {name: [circuits.patch(clean[name])] for name in clean.activations
            if name.endswith("hook_z") or (name.endswith("mlp_out") and not through_mlps)}
    name = circuits.activation_name("mlp_out" if head is None else "z", layer)
    sent = other[name]
    if neuron:
        post = circuits.activation_name("post", layer)
        change = (other[post] - clean[post])[..., neuron]
        sent = clean[name] + change * MODEL.params["blocks"][layer]["mlp"]["c_proj"]["w"][neuron]
    held.setdefault(name, []).append(circuits.patch(sent, head))
    first = circuits.run(MODEL, CLEAN, "*", edits=held)
    if receivers == "logits":
        return METRIC(first.logits)
    edits = {}
    for n, h, kind in receivers:
        if h is not None:
            here = circuits.activation_name(kind, n)
            edits.setdefault(here, []).append(circuits.patch(first[here], h))
        elif 2 * n + 1 >= 2 * layer + 1 + (head is None):
            mid = first[circuits.activation_name("resid_mid", n)]
            block = MODEL.params["blocks"][n]
            edits[circuits.activation_name("mlp_out", n)] = [
                circuits.patch(mlp_layer(mid, block, NO_TAP) - mid)]
    return METRIC(circuits.run(MODEL, CLEAN, edits=edits).logits)


@pytest.mark.parametrize("through_mlps", [True, False])
@pytest.mark.parametrize("receivers", ["logits", RECEIVERS])
def test_mlps_and_neurons_send_and_receive_as_heads_do(receivers, through_mlps):
    senders = ["L0H1", "MLP0", "L1N17", (1, 3), "MLP1", "MLP2"]
    options = {"receivers": receivers, "through_mlps": through_mlps}
    if receivers != "logits":
        options["receivers"] = ["L2H1.q", (1, 3, "k"), "MLP1", "MLP2"]
        senders = senders[:-1]  # no later part reads MLP2
    sweep = circuits.path_patching(MODEL, senders, **NOISING, **options)
    assert sweep.axes == ("sender",) and sweep.senders[3] == "L1H3"
    for i, sender in enumerate(senders):
        close(sweep.per_prompt[i], frozen_node_path(sender, receivers, through_mlps))
    best, effect = sweep.top(1)[0]
    assert effect == sweep.effect[sweep.senders.index(best)]
    mlps = circuits.path_patching(MODEL, "mlps", **NOISING, **options)
    assert mlps.axes == ("layer",)
    close(mlps.values[:2], sweep.values[[1, 4]])


def test_one_node_needs_no_list_and_a_head_has_three_inputs():
    one = circuits.path_patching(MODEL, "L0H1", "2.1", **NOISING)
    assert one.per_prompt.shape == (1, 3)
    three = circuits.path_patching(MODEL, receivers=["L2H1.q", "L2H1.k", (2, 1, "v")], **NOISING)
    close(one.per_prompt[0], three.per_prompt[0, 1])
    close(three.per_prompt[0, 2], circuits.path_patching(MODEL, (0, 2), "L2H1", **NOISING,
                                                         ).per_prompt[0])


def test_path_patching_of_one_position_equals_its_definition():
    for position, receivers in ((7, [(2, 1, "k")]), (-1, "logits")):
        sweep = circuits.path_patching(MODEL, **NOISING, receivers=receivers, position=position)
        for index in np.ndindex(3, 4):
            close(sweep.per_prompt[index], frozen_path(index, receivers, True, position))
    with pytest.raises(Error, match="position 12 does not exist"):
        circuits.path_patching(MODEL, **NOISING, position=12)


def test_a_later_sender_reaches_no_receiver():
    sweep = circuits.path_patching(MODEL, **NOISING, receivers=[(1, 0, "q")])
    close(sweep.effect[1:], np.zeros((2, 4)))
    with pytest.raises(Error, match=r"no path leads from L1H0 to 'L1H0.q': a sender must write"):
        circuits.path_patching(MODEL, ["L0H1", "L1H0"], "L1H0.q", **NOISING)

"""Path patching equals its definition, one whole pass after another."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, METRIC, MODEL, NOISING, close

from gpt2_np import Error, circuits


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

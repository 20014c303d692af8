"""Edits change what they name and nothing else."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, MODEL, close

from gpt2_np import Error, circuits
from gpt2_np.circuits.edits import MODES


def test_knocked_out_attention_is_gone_and_the_rest_shares_its_weight():
    scores, pattern = "blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern"
    cut = circuits.run(MODEL, CLEAN, [pattern], edits={scores: circuits.knock_out(-1, [2, 3], 1)})
    plain = circuits.run(MODEL, CLEAN, [pattern])[pattern]
    expected = plain.copy()
    expected[:, 1, -1, [2, 3]] = 0
    expected[:, 1, -1] /= expected[:, 1, -1].sum(axis=-1, keepdims=True)
    close(cut[pattern], expected)
    with pytest.raises(Error, match="without any key"):
        circuits.run(MODEL, CLEAN, edits={scores: circuits.knock_out(0, 0)})


@pytest.mark.parametrize("mode", MODES)
def test_ablating_a_set_of_nodes_replaces_each_of_them(mode):
    nodes = ["L0H1", "0.3", (1, 0), "MLP2"]
    edits = circuits.ablated(MODEL, nodes, mode, reference=CORRUPTED)
    seen = circuits.run(MODEL, CLEAN, "*", edits=edits)
    plain, other = (circuits.run(MODEL, t, "*") for t in (CLEAN, CORRUPTED))
    name = "blocks.0.attn.hook_z"
    expected = {"zero": 0 * other[name], "mean": other[name].mean(axis=0, keepdims=True),
                "resample": other[name]}[mode]
    close(seen[name][:, :, [1, 3]], np.broadcast_to(expected, seen[name].shape)[:, :, [1, 3]])
    close(seen[name][:, :, [0, 2]], plain[name][:, :, [0, 2]])
    if mode == "zero":
        assert not seen["blocks.2.hook_mlp_out"].any()

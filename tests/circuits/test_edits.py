"""Edits change what they name and nothing else."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, DENOISING, METRIC, MODEL, close

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


def test_pairs_are_knocked_out_and_not_their_outer_product():
    name, pairs = "blocks.1.attn.hook_pattern", [(5, 2), (7, 3), (-1, 0)]
    seen = circuits.run(MODEL, CLEAN, name, edits={
        "blocks.1.attn.hook_attn_scores": circuits.knock_out(pairs, head=[0, 2])})[name]
    cut = np.zeros(seen.shape, bool)
    for query, key in pairs:
        cut[:, [0, 2], query, key] = True
    future = ~np.tri(12, dtype=bool)
    np.testing.assert_array_equal(seen == 0, cut | future)
    for wrong in ([5, 2], [(1, 2, 3)], []):
        with pytest.raises(Error, match="or a list of pairs"):
            circuits.knock_out(wrong)


def test_neurons_are_units_as_heads_are():
    post = "blocks.1.mlp.hook_post"
    plain, other = (circuits.run(MODEL, tokens, post)[post] for tokens in (CLEAN, CORRUPTED))
    expected = plain.copy()
    expected[..., [3, 17]] = 0
    nodes = ["L1N17", "L1N3"]
    for edits in (circuits.ablated(MODEL, nodes), {post: circuits.zero(neuron=[3, 17])}):
        close(circuits.run(MODEL, CLEAN, post, edits=edits)[post], expected)
    expected[..., [3, 17]] = other[..., [3, 17]]
    for edits in (circuits.ablated(MODEL, nodes, "resample", source=CORRUPTED),
                  {post: circuits.patch(other, neuron=[3, 17])}):
        close(circuits.run(MODEL, CLEAN, post, edits=edits)[post], expected)
    assert circuits.parse_node(MODEL.config, "L1N17") == (1, None, 17)
    for name, message in (("L3N0", "layer 3 does not exist"), ("L1N80", "layer 1's neuron 80")):
        with pytest.raises(Error, match=message):
            circuits.ablated(MODEL, [name])


def test_one_node_needs_no_list():
    for node in ("L1H1", (1, 1)):
        edits = circuits.ablated(MODEL, node)
        assert list(edits) == ["blocks.1.attn.hook_z"]


def test_a_sweep_of_neurons_equals_a_pass_for_every_cell():
    for by_position in (None, True):
        sweep = circuits.patching(MODEL, "blocks.1.mlp.hook_post", **DENOISING,
                                  by_position=by_position)
        assert sweep.axes == ("layer", "neuron", "position")[: 3 if by_position else 2]
        source = circuits.run(MODEL, CLEAN, "post")["blocks.1.mlp.hook_post"]
        for index in ((1, 0, 5), (1, 17, 11), (1, 79, 7)):
            edit = circuits.patch(source, neuron=index[1], position=index[2] if by_position else
                                  None)
            expected = METRIC(circuits.run(
                MODEL, CORRUPTED, edits={"blocks.1.mlp.hook_post": edit}).logits)
            close(sweep.per_prompt[index if by_position else index[:2]], expected)
    assert np.isnan(sweep.values[[0, 2]]).all()


@pytest.mark.parametrize("mode", MODES)
def test_ablating_a_set_of_nodes_replaces_each_of_them(mode):
    nodes = ["L0H1", "0.3", (1, 0), "MLP2"]
    edits = circuits.ablated(MODEL, nodes, mode, source=None if mode == "zero" else CORRUPTED)
    seen = circuits.run(MODEL, CLEAN, "*", edits=edits)
    plain, other = (circuits.run(MODEL, t, "*") for t in (CLEAN, CORRUPTED))
    name = "blocks.0.attn.hook_z"
    expected = {"zero": 0 * other[name], "mean": other[name].mean(axis=0, keepdims=True),
                "resample": other[name]}[mode]
    close(seen[name][:, :, [1, 3]], np.broadcast_to(expected, seen[name].shape)[:, :, [1, 3]])
    close(seen[name][:, :, [0, 2]], plain[name][:, :, [0, 2]])
    if mode == "zero":
        assert not seen["blocks.2.hook_mlp_out"].any()

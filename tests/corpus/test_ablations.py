"""A model with zero rows of c_proj is the model with its heads, MLPs and neurons ablated."""
import numpy as np
import pytest
from random_model import TINY, random_model

import gpt2_np
from gpt2_np import Error, circuits
from gpt2_np.corpus.ablations import ablated_model, ablation_name
from gpt2_np.gpt2_np import map_leaves

MODEL = random_model()
TOKENS = np.random.default_rng(3).integers(0, TINY.n_vocab, (2, 17))
NODES = [["L1H2"], ["1.2"], [(1, 2)], ["MLP0"], ["L2N17"], ["L0H0", "L0H3", "MLP0", "MLP2"],
         ["L2N0", "L2N79", "L2H1"], "L0H1,MLP1", "L0H1, L1N3"]


@pytest.mark.parametrize("nodes", NODES, ids=str)
def test_the_ablated_model_equals_a_tap_that_ablates(nodes):
    listed = [node.strip() for node in nodes.split(",")] if isinstance(nodes, str) else nodes
    tap = circuits.as_tap(MODEL, circuits.ablated(MODEL, listed))
    expected = gpt2_np.forward(MODEL.params, TINY, TOKENS, tap=tap)
    found = gpt2_np.forward(ablated_model(MODEL, nodes).params, TINY, TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert abs(found - gpt2_np.forward(MODEL.params, TINY, TOKENS)).max() > 0.1


def leaves(params):
    """Return {path: array} of nested parameters."""
    found = {}
    map_leaves(lambda path, leaf: found.update({path: leaf}), params)
    return found


def test_all_other_arrays_are_the_models_own_and_it_does_not_change():
    before = {path: leaf.copy() for path, leaf in leaves(MODEL.params).items()}
    ablated = leaves(ablated_model(MODEL, ["L1H0", "MLP2", "L0N5"]).params)
    own = leaves(MODEL.params)
    for path, leaf in own.items():
        np.testing.assert_array_equal(leaf, before[path])
    assert [path for path in own if ablated[path] is not own[path]] == [
        ("blocks", 0, "mlp", "c_proj", "w"), ("blocks", 1, "attn", "c_proj", "w"),
        ("blocks", 2, "mlp", "c_proj", "w"), ("blocks", 2, "mlp", "c_proj", "b")]


def test_read_only_parameters_of_a_mapped_file_can_be_ablated():
    def frozen(path, leaf):
        leaf = leaf.copy()
        leaf.flags.writeable = False
        return leaf

    mapped = gpt2_np.Model(TINY, map_leaves(frozen, MODEL.params))
    assert not ablated_model(mapped, "MLP1").params["blocks"][1]["mlp"]["c_proj"]["w"].any()


def test_nodes_have_one_spelling():
    assert ablation_name(MODEL, ["1.2", (1, 2), "MLP0", "L2N17"]) == "L1H2, MLP0, L2N17"
    assert ablation_name(MODEL, (1, 2)) == ablation_name(MODEL, "1.2") == "L1H2"


@pytest.mark.parametrize("nodes, words", [
    ("L7H0", "layer 7 does not exist: there are 3"), ("L0H9", "layer 0's head 9 does not exist"),
    ("MLP3", "layer 3 does not exist"), ("L0N80", "neuron 80 does not exist: there are 80"),
    ("head 3", "is not a head or MLP: write 'L9H6'"), ("L1H2,", "'' is not a head or MLP"),
    ([], "give at least one"), (3, "3 is not a head or MLP"),
])  # fmt: skip
def test_a_node_that_does_not_exist_is_named(nodes, words):
    with pytest.raises(Error, match=words):
        ablated_model(MODEL, nodes)

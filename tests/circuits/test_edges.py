"""Patched edges agree with patched nodes and paths, and attribution with small patches."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, METRIC, MODEL, NOISING, close
from random_model import TINY, random_params

import gpt2_np
from gpt2_np import Error, Model, circuits
from gpt2_np.circuits import edges

EDITS = {
    "none": None,
    "heads": {**circuits.ablated(MODEL, ["L0H2", "L1H3"]),
              "blocks.1.attn.hook_attn_scores": circuits.knock_out([5, 9], [1, 2], 0)},
    "inputs": {"blocks.1.attn.hook_q": circuits.add(0.3, head=1), "hook_embed": circuits.add(0.1),
               "hook_pos_embed": circuits.zero(position=3)},
    "MLPs": {"post": circuits.zero(neuron=[3, 17]), "blocks.1.hook_mlp_out": circuits.add(0.2)},
    "a function": {"blocks.0.hook_mlp_out": lambda name, array: array * 0.5},
}  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_patching_no_edge_is_the_base_and_every_edge_the_source(case):
    options, edits = {"base": CLEAN, "source": CORRUPTED, "edits": EDITS[case]}, EDITS[case]
    _, _, exist = circuits.edge_names(TINY)
    for last_only in (True, False):
        base, source = (circuits.run(MODEL, t, last_only=last_only, edits=edits).logits
                        for t in (CLEAN, CORRUPTED))
        for patched, expected in ((~exist & exist, base), (exist, source)):
            close(circuits.patch_edges(MODEL, patched, last_only=last_only, **options), expected)


@pytest.mark.parametrize("case", EDITS)
def test_patching_a_senders_every_edge_is_patching_the_sender(case):
    senders, _, exist = circuits.edge_names(TINY)
    sweep = circuits.patching(MODEL, **NOISING, edits=EDITS[case])
    for label, index in (("L0H1", (0, 1)), ("L2H3", (2, 3))):
        patched = np.zeros_like(exist)
        patched[senders.index(label)] = exist[senders.index(label)]
        close(METRIC(circuits.patch_edges(MODEL, patched, base=CLEAN, source=CORRUPTED,
                                          edits=EDITS[case])), sweep.per_prompt[index])


def test_edges_have_names_and_a_head_has_three_inputs():
    senders, receivers, exist = circuits.edge_names(TINY)

    def patched(edges):
        return circuits.patch_edges(MODEL, edges, base=CLEAN, source=CORRUPTED)

    one = np.zeros_like(exist)
    one[senders.index("L0H1"), receivers.index("L2H2.k")] = True
    for edge in (("L0H1", "L2H2.k"), [((0, 1), (2, 2, "k"))], [("0.1", "2.2.k")]):
        close(patched(edge), patched(one))
    three = one.copy()
    three[senders.index("L0H1"), [receivers.index(f"L2H2.{kind}") for kind in "qkv"]] = True
    close(patched(("L0H1", "L2H2")), patched(three))
    three[senders.index("embed"), receivers.index("MLP1")] = True
    three[senders.index("MLP0"), receivers.index("logits")] = True
    close(patched([("L0H1", "L2H2"), ("embed", "MLP1"), ("MLP0", "logits")]), patched(three))
    for edge, message in ((("L2H0", "L1H0.q"), "no edge leads from L2H0 to L1H0.q"),
                          (("L0N3", "logits"), "no edge leads from L0N3 to logits"),
                          (["L0H1"], "'L0H1' is not an edge"),
                          (("L0H1", "L2H2.x"), "'L2H2.x' is no receiver")):
        with pytest.raises(Error, match=message):
            patched(edge)


def test_an_edit_of_the_stream_that_edges_read_apart_is_refused():
    for tool in (circuits.edge_attribution, circuits.find_edges):
        for name in ("resid_mid", "blocks.1.ln2.hook_scale"):
            with pytest.raises(Error, match=r"cannot honour the edit of blocks.*edit embeddings"):
                tool(MODEL, **NOISING, edits={name: circuits.zero()})


def test_patching_one_edge_is_path_patching_without_mlps():
    senders, receivers, exist = circuits.edge_names(TINY)
    for sender, receiver, target in (("L0H1", "L2H2.k", [(2, 2, "k")]),
                                     ("L1H0", "logits", "logits")):
        patched = np.zeros_like(exist)
        patched[senders.index(sender), receivers.index(receiver)] = True
        layer, head = circuits.parse_node(TINY, sender)
        sweep = circuits.path_patching(MODEL, **NOISING, receivers=target, through_mlps=False)
        close(METRIC(circuits.patch_edges(MODEL, patched, base=CLEAN, source=CORRUPTED)),
              sweep.per_prompt[layer, head])


@pytest.mark.parametrize("case", ["none", "heads", "inputs", "MLPs"])
def test_edge_attribution_is_exact_for_small_changes(case):
    """First order: with 'source' close to 'base' it is what patching one edge does."""
    params = random_params(TINY, 0, np.float64, scale=0.3)
    params["wte"][1] = params["wte"][0] + 1e-6 * np.random.default_rng(0).standard_normal(20)
    model, base, source = Model(TINY, params), [[2, 0, 5, 0, 9]], [[2, 1, 5, 0, 9]]
    metric = circuits.logit_difference(model, 3, 6)
    edits = EDITS[case] if case != "heads" else circuits.ablated(MODEL, ["L0H2", "L1H3"])
    options = {"base": base, "source": source, "edits": edits}
    scores = circuits.edge_attribution(model, metric=metric, **options)
    senders, receivers, exist = circuits.edge_names(TINY)
    before = metric(circuits.run(model, base, edits=edits).logits)
    assert scores.kind == circuits.patching(model, metric=metric, **options).kind
    for sender, receiver in (("embed", "L0H2.v"), ("embed", "MLP1"), ("L0H1", "L1H0.q"),
                             ("MLP0", "L2H1.k"), ("L1H3", "MLP1"), ("MLP1", "logits")):
        at = senders.index(sender), receivers.index(receiver)
        patched = np.zeros_like(exist)
        patched[at] = True
        change = metric(circuits.patch_edges(model, patched, **options)) - before
        np.testing.assert_allclose(scores[sender, receiver], change, rtol=1e-3, atol=1e-14)
    edge, mean = scores.top(1)[0]
    assert " → ".join(edge) in repr(scores) and f"{mean:+.4g}" in repr(scores)
    three = [scores["L0H1", f"L1H0.{kind}"] for kind in "qkv"]
    close(scores["0.1", (1, 0)], np.sum(three, axis=0))
    close(scores["0.1", "1.0.k"], three[1])
    for wrong, message in (("L0H1", "'L0H1' is not an edge: give"),
                           (("L9H1", "logits"), "there is no 'L9H1' in these edges")):
        with pytest.raises(Error, match=message):
            scores[wrong]
    assert mean == scores[edge].mean() == max(scores.values.mean(axis=-1).ravel(), key=abs)


@pytest.mark.filterwarnings("ignore:the metric is")  # a random model does no task
def test_the_search_for_edges_takes_no_more_passes_than_it_says(monkeypatch):
    passes, original = [], edges.edge_patched_logits
    monkeypatch.setattr(edges, "edge_patched_logits",
                        lambda *a: passes.append(1) or original(*a))
    found = circuits.find_edges(MODEL, **NOISING, keep=0.7, checks=12, subsets=3)
    assert found.kept
    assert len(passes) <= np.log2(found.n_all) + 12 + 2 * 3 + 4 + len(found.kept)
    assert circuits.edge_names(gpt2_np.SIZES["124M"])[2].sum() == 32491

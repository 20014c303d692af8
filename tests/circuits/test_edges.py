"""Patched edges agree with patched nodes and paths, and attribution with small patches."""
import numpy as np
from prompt_pair import CLEAN, CORRUPTED, METRIC, MODEL, NOISING, close
from random_model import TINY, random_params

import gpt2_np
from gpt2_np import Model, circuits
from gpt2_np.circuits import edges


def test_patching_no_edge_is_the_base_and_every_edge_the_source():
    _, _, exist = circuits.edge_names(TINY)
    base, source = (circuits.run(MODEL, t, last_only=True).logits for t in (CLEAN, CORRUPTED))
    close(circuits.patch_edges(MODEL, ~exist & exist, base=CLEAN, source=CORRUPTED), base)
    close(circuits.patch_edges(MODEL, exist, base=CLEAN, source=CORRUPTED), source)


def test_patching_a_senders_every_edge_is_patching_the_sender():
    senders, _, exist = circuits.edge_names(TINY)
    sweep = circuits.patching(MODEL, **NOISING)
    for label, index in (("L0H1", (0, 1)), ("L2H3", (2, 3))):
        patched = np.zeros_like(exist)
        patched[senders.index(label)] = exist[senders.index(label)]
        close(METRIC(circuits.patch_edges(MODEL, patched, base=CLEAN, source=CORRUPTED)),
              sweep.per_prompt[index])


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


def test_edge_attribution_is_exact_for_small_changes():
    """First order: with 'source' close to 'base' it is what patching one edge does."""
    params = random_params(TINY, 0, np.float64, scale=0.3)
    params["wte"][1] = params["wte"][0] + 1e-6 * np.random.default_rng(0).standard_normal(20)
    model, base, source = Model(TINY, params), [[2, 0, 5, 0, 9]], [[2, 1, 5, 0, 9]]
    metric = circuits.logit_difference(model, 3, 6)
    scores = circuits.edge_attribution(model, base=base, source=source, metric=metric)
    senders, receivers, exist = circuits.edge_names(TINY)
    before = metric(circuits.run(model, base).logits)
    for sender, receiver in (("embed", "L0H2.v"), ("embed", "MLP1"), ("L0H1", "L1H0.q"),
                             ("MLP0", "L2H1.k"), ("L1H3", "MLP1"), ("MLP1", "logits")):
        at = senders.index(sender), receivers.index(receiver)
        patched = np.zeros_like(exist)
        patched[at] = True
        change = metric(circuits.patch_edges(model, patched, base=base, source=source)) - before
        np.testing.assert_allclose(scores[at], change, rtol=1e-3, atol=1e-14)


def test_the_search_for_edges_takes_no_more_passes_than_it_says(monkeypatch):
    passes, original = [], edges.edge_patched_logits
    monkeypatch.setattr(edges, "edge_patched_logits",
                        lambda *a: passes.append(1) or original(*a))
    found = circuits.find_edges(MODEL, **NOISING, keep=0.7, checks=12, subsets=3)
    assert found.kept
    assert len(passes) <= np.log2(found.n_all) + 12 + 2 * 3 + 4 + len(found.kept)
    assert circuits.edge_names(gpt2_np.SIZES["124M"])[2].sum() == 32491

"""Every tool works on an edited model, and gives what whole passes with the edits give."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, METRIC, MODEL, close
from random_model import TINY

from gpt2_np import circuits

RNG = np.random.default_rng(2)
VECTOR = RNG.standard_normal(TINY.n_embd).astype(np.float32)
ONE_EACH = RNG.standard_normal((3, 12, TINY.n_embd)).astype(np.float32)


def half_from_the_start(name, array):
    """A function of the caller's that depends on the positions of a whole text."""
    array[:, 2:9] *= 0.5


def name(short, layer):
    return circuits.activation_name(short, layer)


EDITS = {
    "stream": {"resid_pre": circuits.add(VECTOR, 0.5, slice(3, None)),
               name("resid_mid", 1): circuits.zero(position=6),
               name("resid_post", 0): circuits.patch(ONE_EACH, position=[5, -2])},
    "parts": {**circuits.ablated(MODEL, ["L1H2", "MLP0", "L2N17"]),
              "attn_out": circuits.add(VECTOR, 0.2, -1), name("mlp_out", 1): circuits.zero()},
    "attention": {name("attn_scores", 1): circuits.knock_out([5, 8], [2, 3], 1),
                  name("pattern", 2): circuits.zero(1, 9), name("result", 0): circuits.zero(3),
                  name("v", 1): circuits.zero(0, slice(2, 5))},
    "norms": {"ln_final.hook_normalized": circuits.add(VECTOR, position=-1),
              "blocks.1.ln2.hook_normalized": circuits.zero(position=7),
              "post": circuits.patch(0.3, neuron=[4, 9])},
    "functions": {"resid_mid": half_from_the_start, name("mlp_out", 2): half_from_the_start,
                  name("z", 1): [half_from_the_start, circuits.zero(1)]},
}  # fmt: skip


def metric_of(edits, tokens=CLEAN):
    return METRIC(circuits.run(MODEL, tokens, edits=edits).logits)


@pytest.mark.parametrize("what", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",
                                  "q", "k", "v", "z", "pattern", "z by position", "post"])
@pytest.mark.parametrize("case", EDITS)
def test_a_sweep_of_an_edited_model_equals_a_pass_for_every_cell(case, what):
    edits = EDITS[case]
    what, _, by_position = what.partition(" ")
    layers = [1] if what == "post" else None
    sweep = circuits.patching(MODEL, CORRUPTED, CLEAN, METRIC, what, layers=layers, edits=edits,
                              by_position=bool(by_position) or None)
    source = circuits.run(MODEL, CLEAN, what, edits=edits)
    close(sweep.base, metric_of(edits, CORRUPTED))
    close(sweep.source, metric_of(edits))
    assert np.abs(sweep.base - metric_of(None, CORRUPTED)).max() > 0.01
    cells = list(np.ndindex(sweep.values.shape))
    for index in [cells[i] for i in RNG.choice(len(cells), min(len(cells), 12), replace=False)]:
        at = dict(zip(sweep.axes, index, strict=True))
        here = name(what, at.pop("layer"))
        if np.isnan(sweep.values[index]):
            assert layers and int(here.split(".")[1]) not in layers
            continue
        cell = {here: circuits.patch(source[here], **at)}
        close(sweep.per_prompt[index], metric_of([edits, cell], CORRUPTED))


@pytest.mark.parametrize("case", EDITS)
def test_ablation_of_an_edited_model_equals_a_pass_for_every_cell(case):
    edits = EDITS[case]
    for mode, reference in (("zero", None), ("mean", CORRUPTED)):
        sweep = circuits.ablation(MODEL, CLEAN, METRIC, "mlp_out", mode, reference, edits=edits,
                                  by_position=False)
        for layer in range(3):
            here = name("mlp_out", layer)
            values = 0.0 if mode == "zero" else circuits.run(
                MODEL, CORRUPTED, here, edits=edits)[here].mean(axis=0, keepdims=True)
            close(sweep.per_prompt[layer], metric_of([edits, {here: circuits.patch(values)}]))


@pytest.mark.parametrize("case", ["parts", "functions"])
def test_a_circuit_of_an_edited_model_is_measured_by_passes_with_the_edits(case):
    edits = EDITS[case]
    found = circuits.find(MODEL, CLEAN, CORRUPTED, METRIC, 0.6, edits=edits, subsets=2)
    removed = [n for n in circuits.node_names(TINY) if n not in found.kept]
    other = circuits.run(MODEL, CORRUPTED, ["z", "mlp_out"], edits=edits)
    replaced = {}
    for node in removed:
        layer, head = circuits.parse_node(TINY, node)
        here = name("mlp_out" if head is None else "z", layer)
        replaced.setdefault(here, []).append(circuits.patch(other[here], head))
    close(found.whole, metric_of(edits).mean())
    share = (metric_of([edits, replaced]).mean() - found.none) / (found.whole - found.none)
    close(found.share.value, share, 1e-4)

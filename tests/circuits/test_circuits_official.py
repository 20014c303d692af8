"""The published analysis of the indirect-object task in GPT-2 small: `pytest -m official`.

Figures: TransformerLens's demos/Exploratory_Analysis_Demo.ipynb, and Wang et al. 2022,
"Interpretability in the Wild". Both put <|endoftext|> before every prompt.

None of this has been run with the real weights yet. The figures are the published ones. The
tolerances are guesses until the first run: 0.002 for logits and shares, 0.06 for scores on other
random tokens, and 14 of the paper's 26 heads for the search. The search takes minutes: each round
is a sweep over every head and MLP.
"""
import json
from pathlib import Path

import numpy as np
import pytest

from gpt2_np import circuits

pytestmark = pytest.mark.official
PUBLISHED = json.loads((Path(__file__).parent / "ioi_published.json").read_text())

TEMPLATES = [
    ("When John and Mary went to the shops,{} gave the bag to", " Mary", " John"),
    ("When Tom and James went to the park,{} gave the ball to", " Tom", " James"),
    ("When Dan and Sid went to the shops,{} gave an apple to", " Dan", " Sid"),
    ("After Martin and Amy went to the park,{} gave a drink to", " Martin", " Amy"),
]
PAIRS = [(text, a, b) for text, *names in TEMPLATES for a, b in (names, names[::-1])]
TEXTS = [text.format(wrong) for text, _, wrong in PAIRS]
ANSWERS, WRONG = [right for _, right, _ in PAIRS], [wrong for _, _, wrong in PAIRS]
PER_PROMPT = [3.3368, 3.2018, 2.7098, 3.7976, 1.7206, 5.2815, 2.601, 5.7676]

INDUCTION = {"5.1": 0.9306, "6.9": 0.9258, "5.5": 0.9256, "7.10": 0.9038, "7.2": 0.851}
PREVIOUS = {"4.11": 0.9921, "3.7": 0.5286, "6.8": 0.4993, "2.2": 0.4818}
DUPLICATE = {"0.5": 0.7035, "3.0": 0.6776, "0.1": 0.1324}
CIRCUIT = (
    "9.9 9.6 10.0  10.7 11.10  7.3 7.9 8.6 8.10  5.5 5.8 5.9 6.9  0.1 0.10 3.0  2.2 4.11  "
    "9.0 9.7 10.1 10.2 10.6 10.10 11.2 11.9"
)


@pytest.fixture(scope="module")
def model(load_official):
    return load_official("124M")


@pytest.fixture(scope="module")
def metric(model):
    return circuits.logit_difference(model, ANSWERS, WRONG)


@pytest.fixture(scope="module")
def clean(model):
    return circuits.prompts(model, TEXTS)


@pytest.fixture(scope="module")
def corrupted(model):
    """Every prompt's neighbour, in which the other person gives."""
    return circuits.prompts(model, [TEXTS[i ^ 1] for i in range(8)])


def agrees(ours, published, tolerance=2e-3):
    np.testing.assert_allclose(ours, np.array(PUBLISHED[published]), atol=tolerance)


def test_logit_differences(model, metric, clean):
    values = metric(circuits.run(model, clean).logits)
    np.testing.assert_allclose(values, PER_PROMPT, atol=2e-3)
    assert values.mean() == pytest.approx(3.552, abs=1e-3)


def test_probabilities_of_the_next_token(model):
    text = "After John and Mary went to the store, John gave a bottle of milk to"
    published = {" Mary": 0.7007, " the": 0.0467, " John": 0.0454, " them": 0.0411}
    found = circuits.lens(model, text, position=-1, top=4)
    assert [model.tokenizer.decode([t]) for t in found.top[-1, 0, 0]] == list(published)
    np.testing.assert_allclose(found.top_probability[-1, 0, 0], [*published.values()], atol=2e-4)


def test_attribution_by_point_layer_and_head(model, clean):
    found = circuits.attribution(model, clean, ANSWERS, WRONG, constants_apart=True)
    agrees(found.accumulated()[1].mean(axis=-1), "accumulated")
    agrees(found.layers()[1].mean(axis=-1), "by layer")
    agrees(found.heads().mean(axis=-1), "by head")


@pytest.mark.parametrize(
    ("what", "published"),
    [("resid_pre", "patched residual stream"), ("attn_out", "patched attention"),
     ("mlp_out", "patched MLP"), ("z", "patched head output"), ("v", "patched head value"),
     ("pattern", "patched head pattern")],
)  # fmt: skip
def test_patching_maps(model, metric, clean, corrupted, what, published):
    sweep = circuits.patching(model, what, base=corrupted, source=clean, metric=metric)
    agrees(sweep.normalized, published)


def test_zero_ablation_of_a_name_mover_at_the_end(model, metric, clean):
    sweep = circuits.ablation(model, base=clean, metric=metric, by_position=True, layers=[9])
    assert sweep.values[9, 9, -1] == pytest.approx(2.9173, abs=2e-3)


def test_head_scores(model):
    """The published ones are of other random tokens, hence the tolerance."""
    scores = circuits.heads(model, length=100, batch=4, bos=False)
    for kind, published in (("induction", INDUCTION), ("previous_token", PREVIOUS),
                            ("duplicate_token", DUPLICATE)):
        for name, value in published.items():
            node = circuits.parse_node(model.config, name)
            assert getattr(scores, kind)[node] == pytest.approx(value, abs=0.06), name


def test_the_search_recovers_most_of_the_papers_heads(model):
    task = circuits.indirect_object(model, 16)
    found = circuits.find(model, base=task.clean, source=task.corrupted, metric=task.metric(model),
                          keep=0.95)
    heads = {node for node in found.kept if not node.startswith("MLP")}
    paper = {f"L{name.replace('.', 'H')}" for name in CIRCUIT.split()}
    print(f"{len(heads & paper)} of the paper's {len(paper)} heads among {len(heads)}: {found}")
    assert len(paper) == 26
    assert len(heads & paper) >= 14
    assert 0.9 < found.share.value < 1.1

"""The table for users of TransformerLens: both sides of each line give the same numbers."""
import numpy as np
import phrasebook
import pytest
import torch
from hooked import hooked
from transformer_lens import FactoredMatrix, patching
from transformer_lens.head_detector import detect_head
from transformer_lens.utilities import get_act_name
from transformers import GPT2TokenizerFast

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
]

@pytest.fixture(scope="module")
def ours():
    return phrasebook.our_names()


@pytest.fixture(scope="module")
def theirs(ours):
    """Return what the lines on the left know."""
    peers = {"model": hooked(ours["model"]), "folded": hooked(ours["model"], processed=True)}
    torch.set_num_threads(1)
    for peer in peers.values():
        peer.set_tokenizer(GPT2TokenizerFast.from_pretrained(phrasebook.EMBEDDED))
    names = {name: torch.tensor(ours[name]) for name in ("tokens", "clean", "corrupted", "vector")}
    metric, kept = ours["metric"], []

    def without_head_1(z, hook):
        z[:, :, 1] = 0
        return z

    def kept_gradient(gradient, hook):
        kept.append(gradient)

    def scalar(logits):
        rows, last = torch.arange(len(logits)), logits[:, -1]
        return (last[rows, metric.answer] - last[rows, metric.wrong]).mean()

    return {
        **names, **peers, "text": ours["text"], "patching": patching, "get_act_name": get_act_name,
        "detect_head": detect_head, "FactoredMatrix": FactoredMatrix, "metric": scalar,
        "half": lambda array, hook: array / 2, "without_head_1": without_head_1,
        "steer": lambda stream, hook: stream + names["vector"], "keep": kept_gradient,
        "kept": kept,
        "cache": peers["model"].run_with_cache(ours["text"])[1],
        "folded_cache": peers["folded"].run_with_cache(ours["text"])[1],
        "clean_cache": peers["model"].run_with_cache(names["clean"])[1],
    }  # fmt: skip


def error(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    masked = np.isneginf(ours) & np.isneginf(theirs)  # attention scores
    ours, theirs = np.where(masked, 0, ours), np.where(masked, 0, theirs)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def by_component(result):
    """Put the heads of [layer, b, q, head, d] first, as [layer head, b, q, d]."""
    return np.moveaxis(result, 3, 1).reshape(-1, *np.delete(result.shape, [0, 3]))


# Results of ours as they are there: axes in another order, averages over other queries.
AS_THERE = {
    'seen.stack("result")': by_component,
    "constants_apart=True).heads()": lambda heads: heads.reshape(-1, 1),
    "previous_token": lambda scores: scores / scores.max(),
    "by_position=True).values": lambda values: values.transpose(0, 2, 1),
    "eigenvalues()": lambda values: np.sort(np.abs(values)),
}


def as_here(left, value, names):
    """Return a result of theirs as text, a list, an array or a dict of arrays."""
    if "backward" in left:
        return names["kept"].pop().numpy()
    if "generate" in left:
        return value[0, -8:].tolist()
    if hasattr(value, "items"):
        return {name: array.numpy() for name, array in value.items()}
    if "detect_head" in left:  # averages over all queries, ours over those with a previous token
        value = value / value.max()
    if "eigenvalues" in left:
        return np.sort(np.abs(value.numpy()))
    return value.numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(("left", "right"), phrasebook.ROWS)
def test_both_sides_of_a_line_agree(left, right, ours, theirs):
    with torch.set_grad_enabled("backward" in left):
        there = as_here(left, phrasebook.result(left, theirs), theirs)
    here = phrasebook.result(right, ours)
    here = next((change for end, change in AS_THERE.items() if end in right), lambda x: x)(here)
    if isinstance(there, str | list | int):
        assert here == there
    elif isinstance(there, dict):
        assert {name: error(here[name], there[name]) < 1e-4 for name in there} == dict.fromkeys(
            here, True)
    else:
        assert error(np.squeeze(here), np.squeeze(there)) < 1e-4

"""Every result says how its prompts began, and lists no token that does not exist."""
import inspect
from pathlib import Path

import pytest
from prompt_pair import CLEAN, DENOISING, METRIC, MODEL, TEXT, close

from gpt2_np import Error, circuits

RESULTS = [
    lambda: circuits.prompts(MODEL, CLEAN), lambda: circuits.run(MODEL, CLEAN, "z"),
    lambda: circuits.decompose(MODEL, CLEAN), lambda: circuits.attribution(MODEL, CLEAN, 1),
    lambda: circuits.lens(MODEL, CLEAN), lambda: circuits.heads(MODEL, CLEAN),
    lambda: circuits.ablation(MODEL, base=CLEAN, metric=METRIC), lambda: circuits.ov(MODEL, "L0H0"),
    lambda: circuits.composition(MODEL, "K"),
    lambda: circuits.find(MODEL, **DENOISING, keep=0.5),
    lambda: circuits.measure(MODEL, list(CLEAN), resamples=2),
    lambda: circuits.survey(MODEL, list(CLEAN)),
    lambda: circuits.survey(MODEL, list(CLEAN)).profiles[0],
    lambda: circuits.repeated_tokens(MODEL, 5), lambda: circuits.gradients(MODEL, CLEAN, METRIC),
    lambda: circuits.attribution(MODEL, CLEAN, 1, neurons="all", by_source=True),
    lambda: circuits.top_tokens(MODEL, MODEL.params["wte"]),
]  # fmt: skip


@pytest.mark.parametrize("make", RESULTS)
def test_results_that_hold_arrays_can_be_compared_and_kept_in_sets(make):
    first, second = make(), make()
    assert first == first
    assert first != second  # who means the arrays compares them
    assert len({first, second}) == 2


SHORT = [
    *RESULTS, lambda: METRIC, lambda: circuits.repeat_loss(CLEAN, 4),
    lambda: circuits.run(MODEL, CLEAN, "*"), lambda: circuits.log_probability(MODEL, [1, 2, 3]),
    lambda: circuits.max_activating(MODEL, list(CLEAN), "L1N3"),
    lambda: circuits.max_activating(MODEL, list(CLEAN), "L1N3")[0],
    lambda: circuits.histogram(MODEL, list(CLEAN), "L1N3"), lambda: MODEL,
]  # fmt: skip


@pytest.mark.parametrize("make", SHORT)
def test_a_notebooks_cell_may_end_in_a_result(make):
    """Its repr is at most ten lines: names, sizes and shapes."""
    result = make()
    lines = repr(result).splitlines()
    assert len(lines) <= 10 and max(map(len, lines)) <= 160
    assert type(result).__name__ in lines[0]
    assert "array(" not in repr(result)


def test_a_repr_names_types_shapes_and_the_ends_of_long_lists():
    text = repr(circuits.run(MODEL, CLEAN, "*")).replace("\n   ", "")
    assert "logits=float32[3,12,61]" in text
    assert "{58 items: 'hook_embed': float32[3,12,20], 'hook_pos_embed': " in text
    assert "..., 'ln_final.hook_normalized': float32[3,12,20]}" in text
    first, *_ = repr(circuits.run(MODEL, CLEAN)).splitlines()
    assert first.startswith("Run(the logits alone: names='z', or '*' for all, keeps activations")
    assert repr(METRIC) == "LogitDifference(answer=int64[3,1], wrong=int64[3,1])"


def test_every_result_says_whether_the_text_began_with_end_of_text(speaking):
    assert circuits.run(speaking, "The cat").bos
    assert circuits.run(speaking, "The cat").tokens[0, 0] == speaking.tokenizer.end_of_text
    assert not circuits.run(speaking, "The cat", bos=False).bos
    ids = speaking.tokenizer.encode("The cat")
    assert not circuits.run(speaking, ids).bos
    assert circuits.run(speaking, ids, bos=True).tokens.tolist() == \
        circuits.run(speaking, "The cat").tokens.tolist()
    assert circuits.lens(speaking, "The cat").bos
    assert circuits.attribution(speaking, "The cat", " the").bos
    assert not circuits.heads(speaking, "The cat", bos=False).bos
    assert circuits.decompose(speaking, "The cat").bos


def ends(found):
    return found.ids, found.logits


TOKEN_LISTS = {
    "lens": lambda m: list(vars(circuits.lens(m, TEXT[:40], keep_logits=True)).values())[1:-3],
    "copying": lambda m: [circuits.copying_scores(m), circuits.copying_scores(m, folded=True)],
    "full circuit": lambda m: [circuits.full_ov(m, "L1H1", folded=True).full(),
                               circuits.full_qk(m, "L1H1", extended=True).full()],
    "singular": lambda m: ends(circuits.singular_tokens(m, "L1H1")[0]["writes"]),
    "neuron": lambda m: [*ends(circuits.neuron_tokens(m, "L1N1")["reads"]),
                         *ends(circuits.neuron_tokens(m, "L1N1")["lowers"])],
    "measure": lambda m: [circuits.measure(m, [TEXT[:40], TEXT[:9]]).reliability],
    "task": lambda m: [circuits.repeated_tokens(m, 15).corrupted.tokens],
    "metric": lambda m: [circuits.log_probability(m, " the")(
        circuits.run(m, TEXT[:40], last_only=True).logits)],
}  # fmt: skip


@pytest.mark.parametrize("tool", TOKEN_LISTS)
def test_rows_that_pad_the_embedding_are_in_no_distribution_and_no_list(tool, speaking, padded):
    for found, expected in zip(TOKEN_LISTS[tool](padded), TOKEN_LISTS[tool](speaking), strict=True):
        close(found, expected, 1e-4)


def test_an_id_that_only_pads_the_embedding_is_no_token(speaking, padded):
    n = speaking.config.n_vocab
    for wrong in (lambda: circuits.run(padded, [1, n]), lambda: circuits.lens(padded, [1, 2], n)):
        with pytest.raises(Error, match=f"token {n} is outside the vocabulary of {n}"):
            wrong()
    assert circuits.labels_of(padded, [0, n]) == [speaking.tokenizer.decode([0]), str(n)]


def test_the_labels_of_a_text_are_those_of_the_tokens_that_tools_see(speaking):
    labels = circuits.labels_of(speaking, "The cat sat")
    assert labels[0] == "<|endoftext|>" and "".join(labels[1:]) == "The cat sat"
    assert labels == circuits.labels_of(speaking, circuits.run(speaking, "The cat sat").tokens[0])


def test_nothing_is_folded_unless_it_is_asked_for():
    defaults = {name: inspect.signature(getattr(circuits, name)).parameters.get("folded")
                for name in circuits.__all__ if inspect.isfunction(getattr(circuits, name))}
    folding = {name for name, default in defaults.items() if default}
    assert {"ov", "copying_scores", "singular_tokens", "neuron_tokens"} < folding
    assert all(defaults[name].default is False for name in folding)


def test_every_public_name_is_there_and_no_file_is_named_as_one():
    """A file named as a function would take the function's place in the package."""
    assert all(hasattr(circuits, name) for name in circuits.__all__)
    files = {path.stem for path in Path(circuits.__file__).parent.glob("*.py")}
    assert not files & set(circuits.__all__)
    assert callable(circuits.gradients) and callable(circuits.lens)

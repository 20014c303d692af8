"""Prompts of several lengths give what each gives alone, in the order given; so do long texts."""
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_pair import MODEL, close
from random_model import TINY

from gpt2_np import Error, Model, circuits, score
from gpt2_np.circuits import logit_lens
from gpt2_np.circuits.inputs import by_length, in_order, pairs_by_length

N_CTX = TINY.n_ctx
ids = st.integers(0, TINY.n_vocab - 1)
ragged = st.lists(st.lists(ids, min_size=1, max_size=7), min_size=1, max_size=6)


def same(a, b, tolerance=1e-5):
    """Two results agree in every field, and in the results that they hold."""
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(x):
            same(x, y, tolerance)
        elif isinstance(x, np.ndarray) and x.dtype.kind == "f":
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)
        elif isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y)
        else:
            assert x == y


def several_lengths(rows):
    return len({len(row) for row in rows}) > 1


@settings(max_examples=15)
@given(rows=ragged)
def test_head_scores_of_prompts_of_several_lengths_are_those_of_each_alone(rows):
    found = circuits.heads(MODEL, rows)
    if several_lengths(rows):
        for one, row in zip(found, rows, strict=True):
            same(one, circuits.heads(MODEL, [row]))
    else:
        same(found, circuits.heads(MODEL, np.array(rows)))


@settings(max_examples=15)
@given(rows=ragged, data=st.data())
def test_the_lens_of_prompts_of_several_lengths_is_that_of_each_alone(rows, data):
    answers = data.draw(st.one_of(st.none(), ids, st.lists(ids, min_size=len(rows),
                                                           max_size=len(rows))))
    options = {"position": data.draw(st.sampled_from([None, -1, 0])), "top": 3,
               "frozen": data.draw(st.booleans()), "keep_logits": data.draw(st.booleans())}
    found = circuits.lens(MODEL, rows, answers, **options)
    if several_lengths(rows):
        each = answers if isinstance(answers, list) else [answers] * len(rows)
        for one, row, answer in zip(found, rows, each, strict=True):
            same(one, circuits.lens(MODEL, row, answer, **options))
    else:
        same(found, circuits.lens(MODEL, np.array(rows), answers, **options))


@settings(max_examples=15)
@given(rows=ragged, data=st.data())
def test_the_attribution_of_prompts_of_several_lengths_is_that_of_each_alone(rows, data):
    options = {"position": data.draw(st.sampled_from([None, -1, 0])), "neurons": [1],
               "by_source": data.draw(st.booleans())}
    asked = data.draw(st.sampled_from(["one", "each", "direction", "directions"]))
    n = len(rows)
    vectors = np.random.default_rng(n).standard_normal((n, TINY.n_embd)).astype(np.float32)
    given = {"one": ({"answer": 3, "wrong": 7}, lambda i: {"answer": 3, "wrong": 7}),
             "each": ({"answer": [*range(n)], "wrong": 50}, lambda i: {"answer": i, "wrong": 50}),
             "direction": ({"direction": vectors[0]}, lambda i: {"direction": vectors[0]}),
             "directions": ({"direction": vectors}, lambda i: {"direction": vectors[i]})}
    together, alone = given[asked]
    found = circuits.attribution(MODEL, rows, **together, **options)
    if several_lengths(rows):
        for i, (one, row) in enumerate(zip(found, rows, strict=True)):
            same(one, circuits.attribution(MODEL, row, **alone(i), **options), 1e-4)
    else:
        same(found, circuits.attribution(MODEL, np.array(rows), **together, **options))


def test_texts_of_several_lengths_give_results_in_the_order_given(speaking):
    texts = ["The cat sat on the mat", "The dog", "", "The cat", "and the dog sat on the cat."]
    for tool in (circuits.heads, circuits.lens, circuits.attribution):
        for one, text in zip(tool(speaking, texts), texts, strict=True):
            same(one, tool(speaking, text))
            assert one.bos
        for one, text in zip(tool(speaking, texts[:2], bos=False), texts[:2], strict=True):
            same(one, tool(speaking, text, bos=False))
            assert not one.bos


def test_the_result_of_each_prompt_says_if_it_begins_with_the_end_of_a_text(speaking):
    end = speaking.tokenizer.end_of_text
    rows = [[end, 5], [7, 8], [9, 8, 7]]
    for tool in (circuits.heads, circuits.lens, circuits.attribution):
        assert [one.bos for one in tool(speaking, rows)] == [True, False, False]


def test_the_result_of_one_prompt_of_a_batch_is_that_prompts():
    tokens = np.random.default_rng(0).integers(0, TINY.n_vocab, (3, 9))
    found = circuits.lens(MODEL, tokens, [4, 5, 6], keep_logits=True)
    same(found.of_prompt(1), circuits.lens(MODEL, tokens[1], 5, keep_logits=True))


def test_edits_are_made_in_prompts_of_every_length():
    edits = circuits.ablated(MODEL, "L0H1")
    rows = [[1, 2, 3, 1], [4, 5], [6, 7, 8, 9]]
    for tool in (circuits.heads, circuits.lens, circuits.attribution):
        for one, row in zip(tool(MODEL, rows, edits=edits), rows, strict=True):
            same(one, tool(MODEL, row, edits=edits))


@settings(max_examples=15)
@given(rows=ragged)
def test_groups_hold_every_prompt_once_and_order_is_restored(rows):
    groups = by_length(MODEL, rows)
    assert sorted(np.concatenate([group.rows for group in groups])) == list(range(len(rows)))
    lengths = [group.prompts.tokens.shape[1] for group in groups]
    assert len(set(lengths)) == len(lengths)
    firsts = [group.prompts.tokens[:, 0] for group in groups]
    order = [group.rows for group in groups]
    np.testing.assert_array_equal(in_order(order, firsts), [row[0] for row in rows])
    twice = [np.stack([own, -own]) for own in firsts]
    np.testing.assert_array_equal(in_order(order, twice, axis=-1)[1], [-row[0] for row in rows])


@settings(max_examples=20)
@given(rows=ragged)
def test_pairs_keep_together(rows):
    source = [[(token + 1) % TINY.n_vocab for token in row] for row in rows]
    seen = []
    for own, base, other in pairs_by_length(MODEL, rows, source):
        seen += own.tolist()
        np.testing.assert_array_equal(base.tokens, [rows[i] for i in own])
        np.testing.assert_array_equal(other.tokens, [source[i] for i in own])
    assert sorted(seen) == list(range(len(rows)))


@pytest.mark.parametrize(("base", "source", "message"), [
    ([[1, 2], [3]], [[1, 2], [3, 4]], "prompt 1 has 1 tokens and its source 2: .* reword one"),
    ([[1, 2], [3]], [[1, 2]], "1 source prompts for 2 prompts of several lengths: give one for"),
    ([[1, 2]], [[3]], "the prompts have 2 tokens and the source prompts 1"),
])  # fmt: skip
def test_pairs_that_do_not_fit_are_a_clear_error(base, source, message):
    with pytest.raises(Error, match=message):
        list(pairs_by_length(MODEL, base, source))


# --- long texts ------------------------------------------------------------------------

LONG = np.random.default_rng(7).integers(0, 9, 65)  # of few tokens, so that they repeat
STARTS = range(0, 65 - N_CTX // 2, N_CTX // 2)  # n_ctx is 24: windows from 0, 12, 24, 36, 48


def windows():
    """Yield each window, and the place in it from which its positions are counted."""
    for start in STARTS:
        yield start, LONG[start : start + N_CTX], 0 if start == 0 else N_CTX // 2


def test_the_lens_of_a_long_text_has_every_position_from_the_first_window_that_has_it():
    found = circuits.lens(MODEL, LONG, keep_logits=False, top=2)
    assert found.probability.shape == (7, 1, 65) and found.tokens.shape == (1, 65)
    np.testing.assert_array_equal(found.targets[0, :-1], LONG[1:])
    for start, window, first in windows():
        alone = circuits.lens(MODEL, window, keep_logits=False, top=2)
        here = slice(start + first, start + len(window))
        for name in ("entropy", "top_probability", "top"):
            close(getattr(found, name)[:, :, here], getattr(alone, name)[:, :, first:])
        inner = slice(start + first, start + len(window) - 1)
        close(found.probability[:, :, inner], alone.probability[:, :, first:-1])
        close(found.rank[:, :, inner], alone.rank[:, :, first:-1])
    assert found.targets[0, -1] == found.top[-1, 0, -1, 0]


def test_one_position_of_a_long_text_is_that_of_the_whole():
    whole = circuits.lens(MODEL, LONG, 5)
    for position in (0, 11, 23, 24, 35, 36, 64, -1, -20):
        one = circuits.lens(MODEL, LONG, 5, position=position, keep_logits=True)
        close(one.probability[:, :, 0], whole.probability[:, :, position])
        assert one.logits.shape == (7, 1, 1, TINY.n_vocab)


def test_the_lens_of_a_long_text_has_the_probabilities_of_its_score():
    found = circuits.lens(MODEL, LONG)
    close(np.log(found.probability[-1, 0, :-1]), score(MODEL, LONG), 1e-5)


def test_head_scores_of_a_long_text_average_the_queries_of_its_windows():
    found = circuits.heads(MODEL, LONG)
    names = "blocks.1.attn.hook_pattern"
    shares = {"previous_token": [], "current_token": [], "beginning": [], "distance": [],
              "induction": [], "duplicate_token": []}
    for _, window, first in windows():
        p = circuits.run(MODEL, window, names)[names][0]
        for q in range(max(1, first), len(window)):
            copies = [k for k in range(q) if window[k] == window[q]]
            shares["previous_token"].append(p[:, q, q - 1])
            shares["current_token"].append(p[:, q, q])
            shares["beginning"].append(p[:, q, 0])
            shares["distance"].append(p[:, q, :q] @ np.arange(q, 0, -1))
            if copies:
                shares["duplicate_token"].append(p[:, q, copies].sum(axis=-1))
                after = [k + 1 for k in copies]
                shares["induction"].append(p[:, q, after].sum(axis=-1))
    assert len(shares["previous_token"]) == 64  # every position but the first
    for kind, values in shares.items():
        close(getattr(found, kind)[1], np.mean(values, axis=0))


def test_long_and_short_texts_go_together():
    rows = [LONG, LONG[:5], LONG[:30], LONG[1:6]]
    for tool in (circuits.heads, circuits.lens):
        for one, row in zip(tool(MODEL, rows), rows, strict=True):
            same(one, tool(MODEL, row))


def test_long_texts_of_one_length_are_a_batch():
    both = np.stack([LONG[:40], LONG[20:60]])
    found = circuits.lens(MODEL, both)
    for i in range(2):
        same(found.of_prompt(i), circuits.lens(MODEL, both[i]))
    assert circuits.heads(MODEL, both).induction.shape == (3, 4)


def test_edits_see_one_window_of_a_long_text_after_another():
    shapes = []

    def look(name, z):
        shapes.append(z.shape[:2])

    circuits.heads(MODEL, LONG, edits={"blocks.0.attn.hook_z": look})
    assert shapes == [(1, 24), (1, 24), (1, 24), (1, 24), (1, 17)]


def test_the_lens_of_a_long_text_holds_the_logits_of_few_positions(monkeypatch):
    n_positions, read = [], logit_lens.read_logits

    def counted(logits, targets, top):
        n_positions.append(logits.shape[1])
        return read(logits, targets, top)

    monkeypatch.setattr(logit_lens, "read_logits", counted)
    monkeypatch.setattr(logit_lens, "POSITIONS_AT_ONCE", 5)
    found = circuits.lens(MODEL, LONG)
    assert max(n_positions) == 5
    monkeypatch.undo()
    same(found, circuits.lens(MODEL, LONG))


@pytest.mark.parametrize(("tool", "options"), [
    (circuits.run, {}), (circuits.decompose, {}), (circuits.attribution, {"answer": 3}),
    (circuits.gradients, {"metric": circuits.logit_difference(MODEL, 1, 2)}),
])  # fmt: skip
def test_tools_whose_arrays_hold_positions_refuse_long_texts_and_several_lengths(tool, options):
    with pytest.raises(Error, match=r"65 positions do not fit: n_ctx is 24\. Give fewer tokens"):
        tool(MODEL, LONG, **options)
    if tool is not circuits.attribution:
        with pytest.raises(Error, match=r"the prompts have 1, 2 tokens.* run each length alone"):
            tool(MODEL, [[1, 2], [3]], **options)


def test_the_logits_of_a_long_text_are_not_kept_at_all_positions():
    with pytest.raises(Error, match="keep those of 65 positions, more than n_ctx = 24: give one"):
        circuits.lens(MODEL, LONG, keep_logits=True)


def test_a_wrong_number_of_answers_is_a_clear_error():
    for tool in (circuits.lens, circuits.attribution):
        with pytest.raises(Error, match="2 answers were given for 3 prompts"):
            tool(MODEL, [[1, 2], [3], [4, 5]], [6, 7])
    with pytest.raises(Error, match=r"shape \(2, 20\): .* each of 3 prompts, \[3, 20\]"):
        circuits.attribution(MODEL, [[1, 2], [3], [4, 5]], direction=np.ones((2, 20)))


def test_head_scores_of_one_token_are_not_numbers():
    scores = circuits.heads(MODEL, [[5]])
    assert all(np.isnan(getattr(scores, kind)).all()
               for kind in ("beginning", "current_token", "entropy", "distance"))


def test_a_model_that_holds_nan_is_an_error_with_several_lengths_too():
    params = {**MODEL.params, "wte": MODEL.params["wte"] * np.float32("nan")}
    for tool in (circuits.heads, circuits.lens):
        with pytest.raises(Error, match="NaN or infinity, as the model's wte does"):
            tool(Model(TINY, params), [[1, 2], [3]])

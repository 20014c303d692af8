"""Beam search beside exhaustive search, greedy generation and the rules by which it ends."""
import itertools
import math
import typing
import warnings
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import TINY, map_params, random_model

import gpt2_np
from gpt2_np import beam_search, beam_search_batch, circuits, forward, generate
from gpt2_np.inference import beams, options
from gpt2_np.inference.decoders import GrowingText
from gpt2_np.inference.text_stream import StopWatcher

MODEL = random_model()
PROMPT = [3, 1, 4, 1, 5]
FIVE = gpt2_np.Config(n_vocab=5, n_ctx=8, n_embd=8, n_head=2, n_layer=1)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def repeats(text, n, n_prompt):
    """Return True if n tokens in a row, the last of them new, occurred before."""
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    return any(grams[i] in grams[:i] for i in range(max(0, n_prompt - n + 1), len(grams)))


def exhaustive(model, prompt, n_tokens, stop, ngram):
    """Return {tokens: (log_p, number of tokens with the stop token)} of all continuations."""
    every = list(itertools.product(range(FIVE.n_vocab), repeat=n_tokens))
    logits = forward(model.params, FIVE, [[*prompt, *row[:-1]] for row in every])
    log_p = log_softmax(logits[:, len(prompt) - 1 :])
    found = {}
    for row, of_each in zip(every, log_p, strict=True):
        end = next((i for i, token in enumerate(row) if token in stop), n_tokens - 1) + 1
        tokens = row[: end - 1] if row[end - 1] in stop else row
        if not (ngram and repeats([*prompt, *row[:end]], ngram, len(prompt))):
            found[tokens] = sum(of_each[i, row[i]] for i in range(end)), end
    return found


@settings(max_examples=20)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.sets(st.integers(0, 4), max_size=1),
    st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
    st.sampled_from([True, False, "never"]),
    st.sampled_from([None, 2, 3]),
)
def test_with_enough_beams_the_search_is_exhaustive(seed, prompt, stop, penalty, early, ngram):
    model = random_model(FIVE, seed)
    rules = {"length_penalty": penalty, "early_stopping": early, "no_repeat_ngram": ngram}
    expected = exhaustive(model, prompt, 4, stop, ngram)
    found = beam_search(model, prompt, 4, n_beams=5**4, n_results=5**4, stop=stop, **rules)
    assert {tuple(beam.tokens) for beam in found} == set(expected)
    assert len(found) == len(expected)
    for beam in found:
        log_p, n = expected[tuple(beam.tokens)]
        assert beam.log_p == pytest.approx(log_p, abs=1e-5)
        assert beam.score == pytest.approx(log_p / n**penalty, abs=1e-4)
        assert beam.ended_by == ("stop" if len(beam.tokens) < n else "length")
    assert [b.score for b in found] == sorted((b.score for b in found), reverse=True)
    if not stop:  # 5 ** 3 beams hold every text but for its last token
        assert beam_search(model, prompt, 4, n_beams=5**3, **rules)[0].tokens == found[0].tokens


@settings(max_examples=20)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=24), st.integers(0, 30),
       st.sets(st.integers(0, 60), max_size=9))
def test_one_beam_is_greedy(prompt, n_tokens, stop):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some texts reach n_ctx
        [beam] = beam_search(MODEL, prompt, n_tokens, n_beams=1, early_stopping=True, stop=stop)
        assert beam.tokens == list(generate(MODEL, prompt, n_tokens, stop=stop))


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=20), min_size=1, max_size=4),
    st.sampled_from([
        {},
        {"n_beams": 2, "stop": range(0, 60, 4), "early_stopping": True, "n_results": 2},
        {"n_beams": 3, "stop": range(0, 60, 3), "early_stopping": "never", "n_results": 3},
        {"no_repeat_ngram": 1, "length_penalty": 0, "stop": 7, "n_results": 5},
    ]),
)
def test_each_prompt_of_a_batch_gets_the_beams_that_it_gets_alone(prompts, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = beam_search_batch(MODEL, prompts, 6, **options)
        for prompt, together in zip(prompts, found, strict=True):
            alone = beam_search(MODEL, prompt, 6, **options)
            assert [beam.tokens for beam in together] == [beam.tokens for beam in alone]
            assert [b.log_p for b in together] == pytest.approx([b.log_p for b in alone], rel=1e-5)
            assert [b.ended_by for b in together] == [b.ended_by for b in alone]


def test_a_shared_prefix_changes_no_beam():
    prompts = [[*range(20), 1], [*range(20), 2], [*range(20), 3]]
    assert [[beam.tokens for beam in found] for found in beam_search_batch(MODEL, prompts, 3)] == [
        [beam.tokens for beam in beam_search(MODEL, prompt, 3)] for prompt in prompts]


def test_log_p_is_the_score_of_the_tokens():
    for beam in beam_search(MODEL, PROMPT, 9, n_results=5):
        log_p = gpt2_np.score(MODEL, [*PROMPT, *beam.tokens])[-9:]
        assert beam.log_p == pytest.approx(log_p.sum(), rel=1e-5)
        assert beam.score == pytest.approx(beam.log_p / 9)


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "n_steps"),
    [(True, 1.0, 2), (False, 1.0, 3), ("never", 1.0, 6), ("never", -1.0, 3)],
)
def test_the_search_ends_by_its_rule(early_stopping, length_penalty, n_steps):
    """Two texts have ended after 2 steps, and the worse one scores log(0.18) / 2 = -0.86.

    The best growing one scores log(0.36) / 2 = -0.51 then, log(0.036) / 3 = -1.11 a step later.
    If it grew to all 10 tokens, log(0.00036) / 10 = -0.79 after 5 steps could still be better.
    """
    rules = beams.Rules(2, 1, length_penalty, early_stopping)
    text = GrowingText([1], 10, 99, StopWatcher([0], None), None)
    search, n = beams.Search(text, rules), 0
    while not search.is_over:
        p = [0.3, 0.6, 0.1] if n < 2 else [0.8, 0.1, 0.1]
        search.step(np.log([p] * len(search.growing)))
        n += 1
    assert n == n_steps


@pytest.mark.parametrize("penalty", [-1, 0, 2, 20])
def test_an_integer_of_numpy_is_a_length_penalty(penalty):
    assert beams.Rules(length_penalty=np.int64(penalty)).score(-3.0, 40) == -3.0 / 40**penalty


def test_a_stop_token_below_the_best_beams_ends_no_text():
    """It is the third of three candidates, and there are two beams."""
    search = beams.Search(GrowingText([1], 10, 99, StopWatcher([0], None), None), beams.Rules(2))
    search.step(np.log([[0.2, 0.5, 0.3]]))
    assert not search.ended
    assert [beam.tokens for beam in search.growing] == [[1], [2]]


def test_among_equals_the_lowest_ids_come_first():
    model = gpt2_np.Model(TINY, map_params(np.zeros_like, MODEL.params))
    found = beam_search(model, PROMPT, 2, n_beams=3, n_results=3)
    assert [beam.tokens for beam in found] == [[0, 0], [0, 1], [0, 2]]


def test_a_text_at_n_ctx_ends_with_a_warning():
    with pytest.warns(gpt2_np.ContextWarning, match="n_ctx = 24") as caught:
        [found, short] = beam_search_batch(MODEL, [[1] * 23, [2]], 5)
    assert [(len(b.tokens), b.ended_by) for b in found + short] == [(2, "context"), (5, "length")]
    assert caught[0].filename == __file__ and caught[0].message.result == [found, short]
    with pytest.warns(gpt2_np.ContextWarning) as caught:
        assert len(beam_search(MODEL, [1] * 24, 5)[0].tokens) == 1
    assert caught[0].filename == __file__


def test_texts_that_no_token_may_continue_end_as_they_are():
    model = random_model(FIVE)
    found = beam_search(model, [0, 1, 2], 4, n_beams=9, n_results=9, no_repeat_ngram=1)
    assert sorted(beam.tokens for beam in found) == [[3, 4], [4, 3]]
    assert {beam.ended_by for beam in found} == {"repeat"}
    [nothing] = beam_search(model, [0, 1, 2, 3, 4], 3, no_repeat_ngram=1)
    assert (nothing.tokens, nothing.log_p, nothing.ended_by) == ([], 0, "repeat")


def test_stop_strings_end_a_beam_with_the_token_that_completes_them():
    model = gpt2_np.load("shakespeare", "cpu")
    decode, prompt = model.tokenizer.decode, model.tokenizer.encode("ROMEO.\nBut so\n")
    found = beam_search(model, prompt, 30, n_results=5, stop=["e,", "\n"])
    assert {beam.ended_by for beam in found} == {"stop"}
    for beam in found:
        assert any(stop in decode(beam.tokens) for stop in ("e,", "\n"))
        assert not any(stop in decode(beam.tokens[:-1]) for stop in ("e,", "\n"))


def test_the_example_of_the_page_prints_what_stands_there(capsys):
    page = (Path(beams.__file__).parent / "README.md").read_text(encoding="utf-8")
    _, program, _, printed, _ = page.partition("## Beam search")[2].split("```", 4)
    exec(program.removeprefix("python"), {})
    assert capsys.readouterr().out == printed.removeprefix("\n")


def test_padding_ids_are_never_drawn():
    best = max(beam_search(MODEL, PROMPT, 6)[0].tokens)
    padded = gpt2_np.Model(TINY, MODEL.params, SimpleNamespace(n_vocab=best))
    for prompt in PROMPT, [best, 1]:  # a prompt may hold them
        found = beam_search(padded, prompt, 6, n_results=5, no_repeat_ngram=1)
        assert max(token for beam in found for token in beam.tokens) < best


def without_head_2(name, array):
    if name == "blocks.1.attn.hook_z":
        array = array.copy()
        array[:, :, 2] = 0
    return array


def test_a_tap_changes_the_beams_as_changed_weights_do():
    params = map_params(np.copy, MODEL.params)
    params["blocks"][1]["attn"]["c_proj"]["w"].reshape(4, 5, 20)[2] = 0
    expected = beam_search(gpt2_np.Model(TINY, params), PROMPT, 8, n_results=5)
    found = beam_search(MODEL, PROMPT, 8, n_results=5, tap=without_head_2)
    assert [beam.tokens for beam in found] == [beam.tokens for beam in expected]
    assert found != beam_search(MODEL, PROMPT, 8, n_results=5)


def test_a_tap_sees_the_prompt_once_and_is_told_whose_each_beam_is():
    seen = []

    class Tap:
        def begin(self, positions, rows, lengths, n_rows):
            seen.append((positions.tolist(), rows.tolist(), lengths.tolist(), n_rows))

        def __call__(self, name, array):
            if name == "hook_embed":
                assert array.shape[:2] == np.shape(seen[-1][0])

    beam_search_batch(MODEL, [[1, 2], [3]], 2, n_beams=3, tap=Tap())
    assert seen == [([[0, 1]] * 2, [0, 1], [2, 1], 2),
                    ([[2]] * 3 + [[1]] * 3, [0] * 3 + [1] * 3, [2] * 3 + [1] * 3, 2)]


def test_edits_of_each_prompt_reach_its_beams():
    vectors = np.random.default_rng(0).standard_normal((2, 1, TINY.n_embd)) * 3
    prompts = [PROMPT, [9, 8, 7]]
    tap = circuits.as_tap(MODEL, {"blocks.1.hook_resid_pre": circuits.add(vectors)})
    found = beam_search_batch(MODEL, prompts, 5, tap=tap)
    for prompt, vector, beam in zip(prompts, vectors, found, strict=True):
        tap = circuits.as_tap(MODEL, {"blocks.1.hook_resid_pre": circuits.add(vector[0])})
        assert beam_search(MODEL, prompt, 5, tap=tap)[0].tokens == beam[0].tokens


def test_nothing_asked_for_gives_nothing():
    assert beam_search_batch(MODEL, [], 5) == []
    assert beam_search(MODEL, PROMPT, 0) == [beams.Beam([], 0.0, 0.0, "length")]


def test_a_beam_is_shown_in_a_line():
    beam = beams.Beam([5, 6, 7], -1.23456, -0.41152, "stop")
    assert repr(beam) == "Beam(3 tokens, log_p -1.235, score -0.412, ended by stop)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_beams": 0}, "n_beams is 0: it must be an integer from 1 up"),
        ({"n_beams": "five"}, "n_beams is 'five'"),
        ({"n_beams": 2.5}, "n_beams is 2.5"),
        ({"n_beams": math.inf}, "n_beams is inf"),
        ({"n_beams": 10**12}, "n_beams is 1000000000000: their keys and values .* choose at most"),
        ({"n_beams": 2, "n_results": 3}, "n_results is 3: it must be at most n_beams = 2"),
        ({"length_penalty": math.nan}, "length_penalty is nan: .* from -20 to 20"),
        ({"length_penalty": None}, "length_penalty is None"),
        ({"early_stopping": "always"}, "early_stopping is 'always': .* True, False or \"never\""),
        ({"early_stopping": 1}, "early_stopping is 1"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram is 0"),
        ({"stop": "x"}, "need a tokenizer"),
        ({"tap": "z"}, "tap is 'z'"),
    ],
)
def test_bad_options_are_rejected(options, message):
    for search in (lambda: beam_search(MODEL, PROMPT, 5, **options),
                   lambda: beam_search_batch(MODEL, [PROMPT], 5, **options)):
        with pytest.raises(gpt2_np.Error, match=message):
            search()


@pytest.mark.parametrize(("tokens", "message"), [([], "no tokens"), ([1] * 25, "25 tokens"),
                                                 ([61], "outside the vocabulary")])
def test_bad_prompts_are_rejected(tokens, message):
    with pytest.raises(gpt2_np.Error, match=message):
        beam_search(MODEL, tokens, 5)


def test_weights_that_are_not_finite_are_reported():
    params = map_params(lambda array: array * np.float32(np.nan), MODEL.params)
    with pytest.raises(gpt2_np.Error, match="the model computed nan"):
        beam_search(gpt2_np.Model(TINY, params), PROMPT, 5)


def test_the_shared_options_are_those_of_beam_search():
    given = typing.get_type_hints(beam_search)
    names = list(signature(beam_search).parameters)[3:]
    assert typing.get_type_hints(options.BeamOptions) == {name: given[name] for name in names}
    for name, field in beams.Rules.__dataclass_fields__.items():
        assert signature(beam_search).parameters[name].default == field.default
    with pytest.raises(TypeError, match="temperature"):
        beam_search_batch(MODEL, [PROMPT], 5, temperature=1.0)

"""Generation beside the reference: one text, batches, and text with stop strings."""
import dataclasses
import inspect
import pickle
import typing
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import TINY, random_model

import gpt2_np
from gpt2_np import bpe, complete, forward, generate, generate_batch, stream
from gpt2_np import gpt2_np as reference
from gpt2_np.inference import generation, options, text_stream

MODEL = random_model()
PROMPT = [3, 1, 4, 1, 5]


def greedy_without_cache(model, prompt, n_tokens):
    tokens = list(prompt)
    for _ in range(n_tokens):
        tokens.append(int(forward(model.params, model.config, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def return_value(generator):
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def text_model():
    """Random weights with a vocabulary whose tokens often end inside a character."""
    tokenizer = bpe.train("the cat sat on the mat, naïve café — 猫と犬 🐈🐕 " * 20, 290)
    config = gpt2_np.Config(tokenizer.n_vocab, n_ctx=64, n_embd=16, n_head=2, n_layer=2)
    return random_model(config, scale=0.5, tokenizer=tokenizer)


# --- generate --------------------------------------------------------------------------


def test_greedy_generation_equals_the_argmax_of_forward():
    assert list(generate(MODEL, PROMPT, 12)) == greedy_without_cache(MODEL, PROMPT, 12)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=TINY.n_ctx),
    st.integers(0, 30),
    st.sampled_from([
        {},
        {"stop": [3, 17, 40]},
        {"temperature": 1.0, "top_p": 0.9, "seed": 7},
        {"temperature": 0.7, "top_k": 5, "min_p": 0.05, "repetition_penalty": 1.3, "seed": 2},
    ]),
)
def test_generation_gives_the_tokens_of_the_reference(prompt, n_tokens, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some texts reach n_ctx
        tokens = list(generate(MODEL, prompt, n_tokens, **options))
    assert tokens == list(reference.generate(MODEL, prompt, n_tokens, **options))


def test_with_a_tap_generation_gives_the_tokens_of_the_reference():
    changed = list(reference.generate(MODEL, PROMPT, 10, tap=without_head_2))
    assert changed == list(generate(MODEL, PROMPT, 10, tap=without_head_2))


def test_tokens_come_one_by_one():
    passes = []

    class Counting(dict):
        def __getitem__(self, key):
            passes.append(key)
            return super().__getitem__(key)

    model = gpt2_np.Model(TINY, Counting(MODEL.params))
    stream_of_tokens = generate(model, PROMPT, 10)
    del passes[:]  # generate has checked the shapes
    next(stream_of_tokens)
    assert passes.count("blocks") == 1


def without_head_2(name, array):
    if name == "blocks.1.attn.hook_z":
        array = array.copy()
        array[:, :, 2] = 0
        return array
    return None


def test_a_tap_changes_the_generated_tokens():
    tokens = list(PROMPT)
    for _ in range(10):
        logits = forward(MODEL.params, TINY, tokens, tap=without_head_2)
        tokens.append(int(logits[-1].argmax()))
    changed = list(generate(MODEL, PROMPT, 10, tap=without_head_2))
    assert changed == tokens[len(PROMPT) :]
    assert changed != list(generate(MODEL, PROMPT, 10))


def test_a_tap_sees_the_prompt_and_then_every_token_once():
    shapes = []

    def tap(name, array):
        if name == "hook_embed":
            shapes.append(array.shape)

    list(generate(MODEL, [7, 8] * 6, 5, tap=tap))  # this text would be drafted without the tap
    assert shapes == [(1, 12, TINY.n_embd)] + [(1, 1, TINY.n_embd)] * 4


def test_the_return_value_is_the_reason_for_ending():
    assert return_value(generate(MODEL, PROMPT, 3)) == "length"
    assert return_value(generate(MODEL, PROMPT, 0)) == "length"
    third = list(generate(MODEL, PROMPT, 3))[2]
    assert return_value(generate(MODEL, PROMPT, 9, stop=[third])) == "stop"


def test_generation_stops_at_n_ctx_with_a_warning():
    room = TINY.n_ctx - len(PROMPT)
    with pytest.warns(UserWarning, match="n_ctx = 24"):
        tokens = list(generate(MODEL, PROMPT, 100))
    assert len(tokens) == room + 1  # the last token is predicted from the last position
    assert tokens == greedy_without_cache(MODEL, PROMPT, room + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(generate(MODEL, PROMPT, room + 1)) == tokens


def test_a_prompt_of_n_ctx_tokens_gives_one_more_token():
    prompt = [1] * TINY.n_ctx
    assert list(generate(MODEL, prompt, 1)) == greedy_without_cache(MODEL, prompt, 1)


def test_a_stop_token_ends_the_text_before_it():
    tokens = list(generate(MODEL, PROMPT, 10))
    stop = tokens[4]
    assert list(generate(MODEL, PROMPT, 10, stop=[stop])) == tokens[: tokens.index(stop)]
    assert list(generate(MODEL, PROMPT, 10, stop=stop)) == tokens[: tokens.index(stop)]


def test_sampled_generation_repeats_with_its_seed():
    options = {"temperature": 1.0, "seed": 3}
    first = list(generate(MODEL, PROMPT, 15, **options))
    assert first == list(generate(MODEL, PROMPT, 15, **options))
    assert first != list(generate(MODEL, PROMPT, 15, temperature=1.0, seed=4))


def test_each_token_is_drawn_from_the_restricted_distribution():
    options = {"temperature": 1.3, "top_k": 7, "top_p": 0.8, "repetition_penalty": 1.4}
    rng, tokens = np.random.default_rng(9), list(PROMPT)
    for _ in range(10):
        logits = forward(MODEL.params, TINY, tokens)[-1]
        tokens.append(gpt2_np.sample(logits, **options, previous=tokens, seed=rng))
    assert list(generate(MODEL, PROMPT, 10, **options, seed=9)) == tokens[len(PROMPT) :]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 5), "no tokens"),
        (([1] * 25, 5), "prompt has 25 tokens and this model's n_ctx is 24"),
        (([61], 5), "outside the vocabulary"),
        (([1], -1), "n_tokens is -1"),
        (([1], 2.5), "n_tokens is 2.5"),
    ],
)
def test_bad_prompts_are_rejected_at_once(arguments, message):
    with pytest.raises(gpt2_np.Error, match=message):
        generate(MODEL, *arguments)


@pytest.mark.parametrize("stop", ["", ["a", ""], [None], [1.5], None, 1.5, b"x", [b"x"]])
def test_bad_stops_are_rejected_at_once(stop):
    with pytest.raises(gpt2_np.Error, match="stop holds"):
        generate(MODEL, PROMPT, 5, stop=stop)


def test_one_stop_needs_no_list():
    third = list(generate(MODEL, PROMPT, 3))[2]
    for stop in (third, np.int64(third)):
        assert list(generate(MODEL, PROMPT, 9, stop=stop)) == list(
            generate(MODEL, PROMPT, 9, stop=[third])
        )


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(gpt2_np.Error, match="need a tokenizer"):
        generate(MODEL, PROMPT, 5, stop="x")


# --- batches ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.lists(st.integers(0, TINY.n_vocab - 1), min_size=1, max_size=TINY.n_ctx),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 30),
    st.sampled_from([{}, {"temperature": 1.0, "top_p": 0.9, "seed": 7}, {"stop": [3, 17, 40]}]),
)
def test_each_row_of_a_batch_equals_its_prompt_alone(prompts, n_tokens, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = generate_batch(MODEL, prompts, n_tokens, **options)
        for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            alone = dict(options)
            if "seed" in alone:
                alone["seed"] = (alone["seed"], index) if index else alone["seed"]
            assert row == list(generate(MODEL, prompt, n_tokens, **alone))


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(0, TINY.n_vocab - 1), min_size=1, max_size=12),
    st.lists(st.lists(st.integers(0, 3), max_size=7), min_size=2, max_size=5),
    st.booleans(),
)
def test_a_shared_prefix_changes_no_row(prefix, endings, shared):
    prompts = [prefix + ending for ending in endings]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "LEAST_SHARED", 0 if shared else 10**6)
        rows = generate_batch(MODEL, prompts, 5)
    assert rows == [list(generate(MODEL, prompt, 5)) for prompt in prompts]


def test_a_prefix_that_all_prompts_share_is_computed_once(monkeypatch):
    shapes = []
    original = generation.transformer

    def spy(params, config, tokens, *rest):
        shapes.append(tokens.shape)
        return original(params, config, tokens, *rest)

    monkeypatch.setattr(generation, "transformer", spy)
    monkeypatch.setattr(generation, "LEAST_SHARED", 30)
    prefix = list(range(20))
    generate_batch(MODEL, [[*prefix, 1, 2], [*prefix, 3], [*prefix, 4, 5]], 1)
    assert shapes == [(1, 20), (3, 2)]
    del shapes[:]
    generate_batch(MODEL, [prefix] * 3, 1)
    assert shapes == [(1, 19), (3, 1)]
    del shapes[:]
    generate_batch(MODEL, [[1, 2, 3], [1, 5], [7]], 1)  # the prefix is too short: one packed row
    assert shapes == [(1, 6)]


def test_row_0_draws_as_generate_does_with_that_seed():
    [row] = generate_batch(MODEL, [PROMPT], 10, temperature=1.0, seed=21)
    assert row == list(generate(MODEL, PROMPT, 10, temperature=1.0, seed=21))


def test_a_generator_seeds_every_row():
    def rows():
        seed = np.random.default_rng(4)
        return generate_batch(MODEL, [PROMPT] * 3, 12, temperature=1.0, seed=seed)

    first, *others = rows()
    assert first == list(generate(MODEL, PROMPT, 12, temperature=1.0, seed=4))
    assert rows() == [first, *others] and len(set(map(tuple, rows()))) == 3


@pytest.mark.parametrize("n_tokens", [2**63 - 1, 10**23])
def test_a_huge_n_tokens_gives_as_many_as_fit(n_tokens):
    with pytest.warns(UserWarning, match="n_ctx = 24"):
        tokens = list(generate(MODEL, PROMPT, n_tokens))
    with pytest.warns(UserWarning, match="n_ctx = 24"):
        assert list(generate(MODEL, PROMPT, 100)) == tokens


def test_a_seed_may_be_any_large_integer():
    seed = 2**200 + 1
    [row] = generate_batch(MODEL, [PROMPT], 10, temperature=1.0, seed=seed)
    assert row == list(generate(MODEL, PROMPT, 10, temperature=1.0, seed=seed))


def test_rows_with_the_same_prompt_draw_differently():
    rows = generate_batch(MODEL, [PROMPT] * 3, 12, temperature=1.0, seed=1)
    assert len(set(map(tuple, rows))) == 3


def test_an_empty_batch_gives_no_rows():
    assert generate_batch(MODEL, [], 5) == []


def test_a_batch_stops_at_n_ctx_row_by_row_with_one_warning():
    with pytest.warns(UserWarning, match="n_ctx = 24") as caught:
        rows = generate_batch(MODEL, [[1] * 23, [2, 3]], 10)
    assert [len(row) for row in rows] == [2, 10]
    assert len(caught) == 1


def test_a_batch_tells_why_each_row_ended():
    prompts = [[1] * 23, [2, 3], [5, 6]]
    with pytest.warns(gpt2_np.ContextWarning):
        *others, last = generate_batch(MODEL, prompts, 10)
    [*_, stop] = set(last) - {token for row in others for token in row}
    with pytest.warns(gpt2_np.ContextWarning):
        rows = generate_batch(MODEL, prompts, 10, stop=stop)
    assert rows.reasons == ["context", "length", "stop"]
    assert rows == [list(row) for row in rows] and isinstance(rows, list)
    copy = pickle.loads(pickle.dumps(rows))
    assert (copy, copy.reasons) == (rows, rows.reasons)
    assert generate_batch(MODEL, prompts, 0).reasons == ["length"] * 3


@pytest.mark.parametrize("kind", [np.random.SeedSequence, np.random.PCG64])
def test_every_seed_of_numpy_seeds_a_batch(kind):
    rows = generate_batch(MODEL, [PROMPT] * 2, 12, temperature=1.0, seed=kind(4))
    assert rows[0] == list(generate(MODEL, PROMPT, 12, temperature=1.0, seed=kind(4))) != rows[1]


def test_the_shared_options_are_those_of_generate():
    """With the same types: the list is written twice, so that `help(generate)` shows it."""
    given = typing.get_type_hints(generate)
    names = list(inspect.signature(generate).parameters)[3:]
    assert typing.get_type_hints(options.GenerationOptions) == {name: given[name] for name in names}


@pytest.mark.parametrize("together", [
    lambda prompts: generate_batch(MODEL, prompts, 2),
    lambda prompts: gpt2_np.beam_search_batch(MODEL, prompts, 2),
    lambda prompts: [row.tolist() for row in gpt2_np.score_batch(MODEL, prompts)],
])  # fmt: skip
def test_several_texts_come_in_any_iterable_and_a_number_is_none(together):
    rows = [[1, 2], [3]]
    assert together(iter(rows)) == together(rows)
    with pytest.raises(gpt2_np.Error, match="are 5: give a list of them"):
        together(5)


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="topk"):
        generate_batch(MODEL, [PROMPT], 5, topk=3)
    with pytest.raises(TypeError, match=r"no option 'edits': give tap=circuits.as_tap"):
        generate_batch(MODEL, [PROMPT], 5, edits={})


# --- text ------------------------------------------------------------------------------


def test_streamed_pieces_join_to_the_decoded_tokens(text_model):
    tokenizer = text_model.tokenizer
    for seed in range(20):
        options = {"n_tokens": 30, "temperature": 1.5, "seed": seed}
        pieces = list(stream(text_model, "the 猫", **options))
        tokens = list(generate(text_model, tokenizer.encode("the 猫"), **options))
        assert "".join(pieces) == tokenizer.decode(tokens)
        assert all(pieces)
        assert complete(text_model, "the 猫", **options) == "".join(pieces)


def test_a_piece_never_ends_within_a_character(text_model):
    """U+FFFD would stand for half a character."""
    tokenizer, cats = text_model.tokenizer, "🐈" * 3
    tokens = iter(tokenizer.encode(cats))

    def chosen():
        yield from tokens
        return "length"

    pieces = list(text_stream.text_pieces(chosen(), tokenizer.decoder(), []))
    assert "".join(pieces) == cats
    assert "\ufffd" not in "".join(pieces)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string_however_it_is_split(parts, stops):
    class Decoder:
        push = staticmethod(lambda part: part)
        flush = staticmethod(lambda: "")

    def chosen():
        yield from parts
        return "length"

    text = "".join(parts)
    streamed, reason = "", None
    pieces = text_stream.text_pieces(chosen(), Decoder, stops)
    while reason is None:
        try:
            streamed += next(pieces)
        except StopIteration as end:
            reason = end.value
    ends = [text.index(s) for s in stops if s in text]
    if ends:
        assert reason == "stop"
        # A stop that is complete wins over one that begins earlier but is not complete yet.
        assert any(text[len(streamed) :].startswith(s) for s in stops)
        assert not any(s in streamed for s in stops)
    else:
        assert (streamed, reason) == (text, "length")


def test_generation_ends_with_the_token_that_completes_a_stop_string(text_model):
    tokenizer = text_model.tokenizer
    prompt = tokenizer.encode("the cat")
    tokens = list(generate(text_model, prompt, 30))
    text = tokenizer.decode(tokens)
    stop = text[8:11]
    stopped = list(generate(text_model, prompt, 30, stop=[stop]))
    assert stop in tokenizer.decode(stopped)
    assert stop not in tokenizer.decode(stopped[:-1])
    assert stopped == tokens[: len(stopped)]
    assert complete(text_model, "the cat", 30, stop=stop) == text[: text.index(stop)]


def test_end_of_text_comes_before_a_text_only_if_it_is_asked_for(text_model):
    end, ids = text_model.tokenizer.end_of_text, text_model.tokenizer.encode("the cat")
    options = {"temperature": 1.0, "seed": 3}
    begun = complete(text_model, [end, *ids], 12, **options)
    assert complete(text_model, "the cat", 12, bos=True, **options) == begun
    assert "".join(stream(text_model, ids, 12, bos=True, **options)) == begun
    assert complete(text_model, "the cat", 12, **options) == complete(
        text_model, ids, 12, **options) != begun
    with pytest.raises(gpt2_np.Error, match=r"bos=True needs a vocabulary that has <.endoftext.>"):
        gpt2_np.score(MODEL, PROMPT, bos=True)


def test_a_special_token_in_a_text_prompt_is_ordinary_text(text_model):
    seen = []

    class Spy:
        end_of_text = text_model.tokenizer.end_of_text

        def encode(self, text, **options):
            tokens = text_model.tokenizer.encode(text, **options)
            seen.append(tokens)
            return tokens

        decoder = text_model.tokenizer.decoder

    model = gpt2_np.Model(text_model.config, text_model.params, Spy())
    complete(model, "<|endoftext|>", 1)
    assert Spy.end_of_text not in seen[0]


def test_the_warning_points_at_the_line_of_the_caller(text_model):
    for call in (
        lambda: complete(text_model, "the cat", 100),
        lambda: list(generate(text_model, [1, 2], 100)),
        lambda: generate_batch(text_model, [[1, 2], [3]], 100),
    ):
        with pytest.warns(UserWarning, match="n_ctx = 64") as warned:
            call()
        assert {warning.filename for warning in warned} == {__file__}


def test_a_warning_that_is_an_error_carries_the_result(text_model):
    calls = [lambda: complete(text_model, "the cat", 100),
             lambda: generate_batch(text_model, [[1, 2], [3]], 100)]
    for call in calls:
        with pytest.warns(gpt2_np.ContextWarning):
            expected = call()
        with warnings.catch_warnings():
            warnings.simplefilter("error", gpt2_np.ContextWarning)
            with pytest.raises(gpt2_np.ContextWarning, match="n_ctx = 64") as full:
                call()
        assert full.value.result == expected


@pytest.mark.parametrize("call", [lambda model: stream(model, "the cat", 100),
                                  lambda model: generate(model, [1, 2], 100)])
def test_a_warning_that_is_an_error_comes_after_the_last_item_of_a_stream(call, text_model):
    items = []
    with pytest.warns(gpt2_np.ContextWarning):
        expected = list(call(text_model))
    with warnings.catch_warnings():
        warnings.simplefilter("error", gpt2_np.ContextWarning)
        with pytest.raises(gpt2_np.ContextWarning) as full:
            for item in call(text_model):
                items.append(item)
    assert items == expected
    assert full.value.result == "context"


@pytest.mark.parametrize("prompt", [None, 5, 1.5, b"the cat", object()])
@pytest.mark.parametrize("function", [complete, stream])
def test_a_prompt_that_is_neither_text_nor_tokens_is_named(function, prompt, text_model):
    with pytest.raises(gpt2_np.Error, match=r"^the prompt is .*: give text, or token ids$"):
        function(text_model, prompt)


def test_a_model_has_a_short_repr(text_model):
    assert repr(text_model.config) in repr(text_model)
    assert len(repr(text_model)) < 300


def test_padding_ids_are_never_drawn(text_model):
    tokenizer, config = text_model.tokenizer, text_model.config
    padded = dataclasses.replace(config, n_vocab=config.n_vocab + 400)
    model = random_model(padded, scale=0.5, tokenizer=tokenizer)
    prompts = [tokenizer.encode("the cat"), tokenizer.encode("mat")]
    rows = generate_batch(model, prompts, 30, temperature=5.0, seed=1)
    assert max(map(max, rows)) < tokenizer.n_vocab
    complete(model, "the cat", 30, temperature=5.0, seed=1)


def test_text_needs_a_tokenizer():
    with pytest.raises(gpt2_np.Error, match="no tokenizer"):
        complete(MODEL, "hello")


def test_the_library_prints_nothing(text_model, capfd):
    complete(text_model, "the cat", 5, temperature=1.0)
    gpt2_np.score(text_model, [1, 2, 3])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tokens", [[[1, 2], [3, 4]], [[1, 2, 3]], np.array([[1, 2], [3, 4]]), 5])
def test_one_text_is_one_row_of_tokens(tokens, text_model):
    with pytest.raises(gpt2_np.Error, match="tokens"):
        gpt2_np.generate(MODEL, tokens, 1)
    with pytest.raises(gpt2_np.Error, match="tokens"):
        gpt2_np.score(MODEL, tokens)
    with pytest.raises(gpt2_np.Error, match="token"):
        complete(text_model, tokens, 1, bos=True)


def test_a_flat_list_is_not_a_batch():
    with pytest.raises(gpt2_np.Error, match="tokens must be integers of shape"):
        gpt2_np.generate_batch(MODEL, [1, 2, 3], 1)
    with pytest.raises(gpt2_np.Error, match="tokens must be integers of shape"):
        gpt2_np.score_batch(MODEL, [1, 2, 3])


def test_a_seed_sequence_gives_the_same_batch_again():
    seed = np.random.SeedSequence(1)
    rows = [gpt2_np.generate_batch(MODEL, [[1], [2], [3]], 4, temperature=1.0, seed=seed)
            for _ in range(2)]
    assert rows[0] == rows[1]

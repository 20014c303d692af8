"""Scoring beside the log-probabilities of whole logits: windows, batches and padding."""
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import TINY, random_model

import gpt2_np
from gpt2_np import bpe, forward, score, score_batch
from gpt2_np import gpt2_np as reference
from gpt2_np.inference import scoring

MODEL = random_model()
TEXT = np.random.default_rng(3).integers(0, TINY.n_vocab, 100)


def log_probabilities(tokens):
    """Return log p(tokens[i + 1] | tokens[: i + 1]) from whole logits, in float64."""
    logits = forward(MODEL.params, TINY, tokens[:-1]).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return log_p[np.arange(len(tokens) - 1), tokens[1:]]


def test_scores_are_the_log_probabilities_of_forward():
    for n in (2, 3, TINY.n_ctx, TINY.n_ctx + 1):
        scores = score(MODEL, TEXT[:n])
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, log_probabilities(TEXT[:n]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_tokens", [2, 9, TINY.n_ctx + 1])
def test_scores_equal_those_of_the_reference(n_tokens):
    class Tokenizer:
        n_vocab = TINY.n_vocab - 11

    padded = gpt2_np.Model(TINY, MODEL.params, Tokenizer)
    for model, text in (MODEL, TEXT), (padded, TEXT % Tokenizer.n_vocab):
        scores = reference.score(model, text[:n_tokens])
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, score(model, text[:n_tokens]), rtol=1e-5, atol=1e-6)


def test_the_reference_has_no_score_of_padding_nor_of_damaged_weights():
    class Tokenizer:
        n_vocab = TINY.n_vocab - 11

    with pytest.raises(gpt2_np.Error, match="outside the vocabulary of 50"):
        reference.score(gpt2_np.Model(TINY, MODEL.params, Tokenizer), [0, 50])
    params = {**MODEL.params, "wpe": np.full_like(MODEL.params["wpe"], np.nan)}
    with pytest.raises(gpt2_np.Error, match="not all finite"):
        reference.score(gpt2_np.Model(TINY, params), TEXT[:5])


def test_a_tap_changes_the_scores():
    def tap(name, array):
        return array * 2 if name == "blocks.0.hook_mlp_out" else None

    logits = forward(MODEL.params, TINY, TEXT[: TINY.n_ctx], tap=tap).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = log_p[np.arange(TINY.n_ctx), TEXT[1 : TINY.n_ctx + 1]]
    scores = score(MODEL, TEXT, tap=tap)
    np.testing.assert_allclose(scores[: TINY.n_ctx], expected, rtol=1e-5, atol=1e-5)
    assert abs(scores - score(MODEL, TEXT)).max() > 0.1


def test_a_single_token_has_no_scores():
    assert score(MODEL, [5]).shape == (0,)


def test_behind_end_of_text_the_first_token_has_a_score_too():
    tokenizer = bpe.train("the cat sat on the mat. " * 9, 265)
    config = gpt2_np.Config(tokenizer.n_vocab, n_ctx=16, n_embd=16, n_head=2, n_layer=1)
    model = random_model(config, tokenizer=tokenizer)
    texts = [tokenizer.encode("the cat sat"), [5]]
    expected = [score(model, [tokenizer.end_of_text, *text]) for text in texts]
    found = score_batch(model, texts, bos=True)
    for ours, own, text in zip(found, expected, texts, strict=True):
        np.testing.assert_array_equal(ours, own)
        np.testing.assert_array_equal(score(model, text, bos=True), own)
        assert len(own) == len(text)
    with pytest.raises(gpt2_np.Error, match="tokens are the text 'the cat': give its ids"):
        score(model, "the cat")


@pytest.mark.parametrize("stride", [1, 5, 12, 23, 24])
def test_long_texts_are_scored_in_overlapping_windows(stride):
    scores = score(MODEL, TEXT, stride)
    n_ctx = TINY.n_ctx
    assert scores.shape == (len(TEXT) - 1,)
    for i in range(1, len(TEXT)):
        # The first window that reaches token i starts at the first multiple of stride that is at
        # most n_ctx inputs before it.
        start = max(0, -(-(i - n_ctx) // stride) * stride)
        context = TEXT[start : i + 1]
        assert i - start >= min(i, n_ctx - stride + 1)
        np.testing.assert_allclose(scores[i - 1], log_probabilities(context)[-1], rtol=1e-4)


def test_the_default_stride_is_half_of_n_ctx():
    np.testing.assert_array_equal(score(MODEL, TEXT), score(MODEL, TEXT, TINY.n_ctx // 2))


def test_logits_of_the_whole_text_are_never_held_at_once(monkeypatch):
    sizes = []
    original = scoring.einsum

    def spy(specification, *operands):
        result = original(specification, *operands)
        if "v" in specification:
            sizes.append(result.size)
        return result

    expected = log_probabilities(TEXT[:20])
    monkeypatch.setattr(scoring, "einsum", spy)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 320)
    np.testing.assert_allclose(score(MODEL, TEXT[:20]), expected, rtol=1e-5, atol=1e-6)
    assert len(sizes) > 1
    assert max(sizes) <= 320 < 19 * TINY.n_vocab


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.lists(st.integers(0, TINY.n_vocab - 1), min_size=1, max_size=60), max_size=6),
    st.integers(1, TINY.n_ctx),
)
def test_texts_scored_together_equal_texts_scored_alone(texts, stride):
    together = score_batch(MODEL, texts, stride)
    assert [len(row) for row in together] == [len(text) - 1 for text in texts]
    for text, scores in zip(texts, together, strict=True):
        np.testing.assert_allclose(scores, score(MODEL, text, stride), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint64"])
def test_ids_of_any_integer_type_give_the_same_scores(dtype, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 16 * 200)  # blocks of the vocabulary
    model = random_model(replace(TINY, n_vocab=40_000))
    ids = TEXT[:9].astype(dtype)
    expected, beside = score_batch(model, [TEXT[:9].tolist(), ids])
    np.testing.assert_allclose(beside, expected, rtol=1e-5)
    np.testing.assert_allclose(score(model, ids), expected, rtol=1e-5)


def test_texts_of_any_lengths_are_scored_without_padding(monkeypatch):
    shapes = []
    original = scoring.transformer

    def spy(params, config, tokens, *rest):
        shapes.append(tokens.shape)
        return original(params, config, tokens, *rest)

    monkeypatch.setattr(scoring, "transformer", spy)
    texts = [TEXT[:n] for n in (24, 2, 9, 17, 1, 5)]
    score_batch(MODEL, texts)
    assert sum(batch * n for batch, n in shapes) == sum(len(text) - 1 for text in texts)
    assert shapes == [(1, 24), (1, 24), (1, 4)]  # 23 + 1, 16 + 8, 4


@given(st.lists(st.integers(1, 24), max_size=40))
def test_every_window_is_packed_into_one_row_that_has_room_for_it(lengths):
    windows = [scoring.Window(text, 0, length, 0) for text, length in enumerate(lengths)]
    rows = scoring.pack_windows(windows, 24)
    assert sorted(window for row in rows for window in row) == windows
    filled = [sum(window.end for window in row) for row in rows]
    assert max(filled, default=0) <= 24
    assert sum(n <= 12 for n in filled) <= 1  # two such rows would have become one


def test_a_query_may_have_several_targets_at_one_position():
    """A repeated position stands for itself, also behind another text in the row."""
    at, targets = np.array([1, 4, 4, 4, 0]), np.array([7, 1, 2, 60, 5])
    queries = [scoring.Query(0, TEXT[n : n + 5], at, targets) for n in (0, 30, 60)]
    for number, found in scoring.query_scores(MODEL, queries):
        logits = forward(MODEL.params, TINY, queries[number].inputs).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        np.testing.assert_allclose(found.log_probabilities, log_p[at, targets], atol=1e-5)
        np.testing.assert_array_equal(found.is_greedy, logits.argmax(axis=-1)[at] == targets)


@pytest.mark.parametrize("stride", [0, -1, 25])
def test_a_stride_that_skips_tokens_is_rejected(stride):
    with pytest.raises(gpt2_np.Error, match="from 1 to n_ctx = 24"):
        score(MODEL, TEXT, stride)


def test_an_empty_text_is_rejected():
    with pytest.raises(gpt2_np.Error, match=r"^there are no tokens"):
        score(MODEL, [])


def test_of_several_texts_the_error_says_which_is_wrong():
    with pytest.raises(gpt2_np.Error, match=r"^texts\[1\]: there are no tokens"):
        gpt2_np.score_batch(MODEL, [TEXT, [], TEXT])
    for function in gpt2_np.generate_batch, gpt2_np.beam_search_batch:
        with pytest.raises(gpt2_np.Error, match=r"^prompts\[1\]: there are no tokens"):
            function(MODEL, [TEXT, [], TEXT], 3)


def test_padding_rows_of_the_embedding_have_no_probability():
    class Tokenizer:
        n_vocab = TINY.n_vocab - 11

    n = Tokenizer.n_vocab
    padded = gpt2_np.Model(TINY, MODEL.params, Tokenizer)
    cut = {**MODEL.params, "wte": MODEL.params["wte"][:n]}
    whole = gpt2_np.Model(replace(TINY, n_vocab=n), cut)
    np.testing.assert_array_equal(score(padded, TEXT % n), score(whole, TEXT % n))
    with pytest.raises(gpt2_np.Error, match=f"outside the vocabulary of {n}"):
        score(padded, [0, n])


def test_weights_that_are_not_finite_are_rejected():
    params = {**MODEL.params, "ln_f": {"g": np.full(TINY.n_embd, np.nan, np.float32),
                                       "b": MODEL.params["ln_f"]["b"]}}
    with pytest.raises(gpt2_np.Error, match="not all finite"):
        score(gpt2_np.Model(TINY, params), TEXT)

"""Drafts make text that repeats itself quicker and never change the chosen tokens."""
import warnings
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import planted_model
from random_model import TINY, random_model

from gpt2_np import forward, generate
from gpt2_np.inference import decoders, generation
from gpt2_np.inference.drafts import Drafts, Repeats

COPIER = planted_model()  # its induction head continues a repeated pattern
PATTERN = [3, 1, 4, 15, 9, 2, 6]


@pytest.fixture
def passes(monkeypatch):
    """A list that records the number of tokens in each pass of the model."""
    widths = []
    original = generation.transformer

    def spy(params, config, tokens, *rest):
        widths.append(tokens.shape[1])
        return original(params, config, tokens, *rest)

    monkeypatch.setattr(generation, "transformer", spy)
    monkeypatch.setattr(decoders, "transformer", spy)
    return widths


def assert_the_same_or_a_tie(model, prompt, tokens, expected):
    """Check that greedy texts differ only from a tie of two logits within float32 rounding."""
    for i, (a, b) in enumerate(zip(tokens, expected, strict=True)):
        if a != b:
            logits = forward(model.params, model.config, [*prompt, *expected[:i]])[-1]
            assert abs(logits[a] - logits[b]) < 1e-5 * abs(logits).max()
            return


# --- the same tokens -------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
    st.integers(0, 30),
    st.sampled_from([
        {},
        {"temperature": 1.0, "top_p": 0.9, "seed": 7},
        {"temperature": 0.3, "repetition_penalty": 1.2, "seed": 3},
        {"stop": [0, 3]},
    ]),
    st.randoms(use_true_random=False),
)
def test_drafts_never_change_a_token(prompt, n_tokens, options, random):
    """Drafts may have any length and be right up to any point."""
    model = random_model(seed=len(prompt))
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # some texts reach n_ctx
        plain = list(generate(model, prompt, n_tokens, draft=False, **options))

        def propose(drafts, room):
            n_done = len(drafts.repeats.items) - len(prompt)
            n = random.randint(0, max(0, room))
            guess = [*plain[n_done : n_done + n], *[0] * n][:n]
            return [random.randrange(TINY.n_vocab) if random.random() < 0.1 else token
                    for token in guess]

        patch.setattr(Drafts, "propose", propose)
        tokens = list(generate(model, prompt, n_tokens, **options))
    if options.get("temperature"):
        assert tokens == plain
    else:
        assert_the_same_or_a_tie(model, prompt, tokens, plain)


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_draws_the_same_text_with_drafts(seed, passes):
    prompt = PATTERN * 2
    options = {"temperature": 0.8, "seed": seed}
    plain = list(generate(COPIER, prompt, 10, draft=False, **options))
    n_plain = len(passes)
    assert list(generate(COPIER, prompt, 10, **options)) == plain
    assert len(passes) - n_plain <= n_plain


def test_a_stop_within_a_draft_ends_the_text_there(passes):
    prompt = [3, 1, 4, 15, 9] * 3
    plain = list(generate(COPIER, prompt, 9, stop=[9], draft=False))
    assert plain == [3, 1, 4, 15]
    del passes[:]
    assert list(generate(COPIER, prompt, 9, stop=[9])) == plain
    assert passes == [15, 1, 6]  # the draft went past the stop


def test_drafts_keep_to_n_tokens_and_n_ctx(passes):
    room = COPIER.config.n_ctx - 14
    for n_tokens in range(1, room + 2):
        tokens = list(generate(COPIER, PATTERN * 2, n_tokens))
        assert tokens == (PATTERN * 3)[:n_tokens]
    with pytest.warns(UserWarning, match="n_ctx = 24"):
        assert list(generate(COPIER, PATTERN * 2, 100)) == (PATTERN * 3)[: room + 1]


# --- fewer passes ----------------------------------------------------------------------


def test_repeating_text_takes_few_passes(passes):
    pattern = [3, 1, 4, 15]
    assert list(generate(COPIER, pattern * 4, 8)) == pattern * 2
    assert len(passes) <= 4
    del passes[:]
    list(generate(COPIER, pattern * 4, 8, draft=False))
    assert passes == [16] + [1] * 7


def cost_of(drafts, text, n_prompt):
    """Return the cost of generating this text with drafts, in passes of one token."""
    drafts.push(text[n_prompt])  # the prompt's own pass gives the first token
    cost, n_done = 1.0, n_prompt + 1
    while n_done < len(text):
        draft = drafts.propose(len(text) - n_done - 1)
        drafts.learn_time(1 + drafts.expected_cost(len(draft)))
        cost += drafts.cost(len(draft))
        for token in [*draft, None]:
            chosen = text[n_done]
            drafts.push(chosen)
            n_done += 1
            if chosen != token:
                break
    return cost


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 6), st.integers(2, 30), st.integers(0, 2**32))
def test_drafts_never_cost_much(n_kinds, n_before_a_change, seed):
    """The text starts to repeat itself and breaks off, again and again."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, n_kinds, 16).tolist()
    while len(text) < 400:
        start = rng.integers(0, len(text) - 8)
        text += text[start : start + rng.integers(1, n_before_a_change)]
        text.append(int(rng.integers(0, n_kinds)))
    assert cost_of(Drafts(text[:10]), text, 10) <= 1.02 * (len(text) - 10) + 2


def test_repeating_text_is_drafted_in_long_passes():
    text = PATTERN * 40
    assert cost_of(Drafts(text[:14]), text, 14) < len(text) / 4


def test_the_measured_time_of_passes_decides_their_width():
    text = PATTERN * 20

    def draft_lengths(seconds_of):
        drafts, lengths, n_done = Drafts(text[:21]), [], 22
        drafts.push(text[21])
        while n_done < len(text):
            draft = drafts.propose(len(text) - n_done - 1)
            drafts.learn_time(seconds_of(len(draft)))
            lengths.append(len(draft))
            for token in text[n_done : n_done + len(draft) + 1]:
                drafts.push(token)
            n_done += len(draft) + 1
        return lengths

    cheap, costly = draft_lengths(lambda n: 1.0), draft_lengths(lambda n: 1.0 + 3.0 * n)
    assert len(cheap) < len(costly)
    assert sum(costly[len(costly) // 2 :]) == 0  # drafting has stopped


# --- repeats ---------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=40))
def test_the_longest_suffix_that_occurred_before_is_found(items):
    repeats = Repeats(items)
    length, end = repeats.match()
    n = len(items)
    lengths = [
        size for size in range(n)
        if size and any(items[i : i + size] == items[n - size :] for i in range(n - size))
    ]  # fmt: skip
    assert length == max(lengths, default=0)
    if length:
        first = next(i for i in range(n) if items[i : i + length] == items[n - length :])
        assert end == first + length
        continued = list(items)
        for _ in range(10):
            continued.append(continued[len(continued) - (n - end)])
        ahead = list(islice(repeats.continuation(), 10))
        assert [item for item, _ in ahead] == continued[n:]
        followers = {items[i + length] for i in range(n - length)
                     if items[i : i + length] == items[n - length :]}
        assert ahead[0][1] == (len(followers) == 1)
    else:
        assert list(repeats.continuation()) == []

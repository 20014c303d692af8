"""Sampling: each restriction beside its definition, and draws beside their distribution."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2_np
from gpt2_np import Sampling, sample
from gpt2_np.gpt2_np import probabilities

RNG = np.random.default_rng(5)
LOGITS = (RNG.standard_normal(200) * 3).astype(np.float32)


def softmax(logits, temperature=1.0):
    p = np.exp(np.asarray(logits, float) / temperature)
    return p / p.sum()


def distribution(logits, temperature=1.0, **options):
    return probabilities(np.asarray(logits, np.float32), Sampling(temperature, **options))


def renormalised(p, kept):
    p = np.where(kept, p, 0)
    return p / p.sum()


# --- each restriction beside its definition --------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
def test_temperature_divides_the_logits(temperature):
    expected = softmax(LOGITS, temperature)
    np.testing.assert_allclose(distribution(LOGITS, temperature), expected, rtol=1e-6)


def test_temperature_0_takes_the_most_probable_token():
    assert sample(LOGITS) == sample(LOGITS, temperature=0) == LOGITS.argmax()


def test_temperature_0_takes_the_lowest_id_among_equals():
    assert sample(np.array([1, 4, 4, 4], np.float32)) == 1


def test_tiny_temperature_neither_overflows_nor_divides_by_zero():
    assert distribution(LOGITS, 1e-30)[LOGITS.argmax()] == 1


@pytest.mark.parametrize("k", [1, 2, 17, 199, 200, 1000])
def test_top_k_keeps_the_k_most_probable_tokens(k):
    kept = np.argsort(np.argsort(-LOGITS)) < k
    expected = renormalised(softmax(LOGITS), kept)
    np.testing.assert_allclose(distribution(LOGITS, top_k=k), expected, rtol=1e-6)


def test_top_k_keeps_ties_with_the_last_token():
    p = distribution([3, 2, 2, 2, 1], top_k=2)
    assert (p > 0).tolist() == [True, True, True, True, False]


@settings(deadline=None)
@given(
    st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=30),
    st.sampled_from([0.01, 0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.3, 1.0, 3.0]),
)
def test_top_p_keeps_the_smallest_set_of_probable_tokens_that_reaches_p(logits, top_p, temperature):
    p = softmax(logits, temperature)
    kept, total = np.zeros(len(p), bool), 0.0
    for token in sorted(range(len(p)), key=lambda t: (-logits[t], t)):
        if top_p < 1 and total >= top_p:
            break
        kept[token] = True
        total += p[token]
    result = distribution(logits, temperature, top_p=top_p)
    if abs(total - top_p) > 1e-9 or top_p == 1:  # otherwise rounding decides
        np.testing.assert_allclose(result, renormalised(p, kept), rtol=1e-6, atol=1e-15)


def test_top_p_keeps_lower_ids_first_among_equals():
    assert (distribution([1, 1, 1, 1], top_p=0.5) > 0).tolist() == [True, True, False, False]


def test_top_p_applies_after_top_k():
    p = distribution(np.log([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.5)
    assert (p > 0).tolist() == [True, False, False, False]  # 0.4 of 0.7 is over a half


@pytest.mark.parametrize("min_p", [0, 0.05, 0.3, 1])
def test_min_p_is_a_fraction_of_the_highest_probability(min_p):
    p = softmax(LOGITS)
    expected = renormalised(p, p >= min_p * p.max())
    np.testing.assert_allclose(distribution(LOGITS, min_p=min_p), expected, rtol=1e-6)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.array([2.0, 1.5, -1.0, -0.9], np.float32)
    assert sample(logits, repetition_penalty=2.0, previous=[0]) == 1
    assert sample(logits, repetition_penalty=2.0, previous=[0, 0, 1]) == 0  # applied once a token
    assert sample(-logits, repetition_penalty=0.5, previous=[0, 1]) == 2
    assert sample(np.array([-1.0, -1.5], np.float32), repetition_penalty=2, previous=[0]) == 1


def test_sampling_leaves_the_logits_unchanged():
    before = LOGITS.copy()
    sample(LOGITS, 0.7, 5, 0.5, 0.1, 1.5, previous=[1, 2, 3], seed=0)
    np.testing.assert_array_equal(LOGITS, before)


# --- drawing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"temperature": 2.0}]
)
def test_draws_follow_the_distribution(options):
    logits = np.array([2.0, 1.0, 0.5, 0.4, -1.0, -3.0], np.float32)
    options = {"temperature": 1.0, **options}
    rng = np.random.default_rng(11)
    n = 5_000
    draws = [sample(logits, **options, seed=rng) for _ in range(n)]
    counts = np.bincount(draws, minlength=6)
    p = probabilities(logits, Sampling(**options))
    assert (counts[p == 0] == 0).all()
    expected = n * p[p > 0]
    chi_squared = ((counts[p > 0] - expected) ** 2 / expected).sum()
    assert chi_squared < 20.5  # 5 degrees of freedom: one in a thousand


def test_a_seed_repeats_a_draw_and_seeds_differ():
    draws = [sample(LOGITS, temperature=3.0, seed=seed) for seed in range(20)]
    assert draws == [sample(LOGITS, temperature=3.0, seed=seed) for seed in range(20)]
    assert len(set(draws)) > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1: it must be 0, or from 1e-99 to 1e99"),
        ({"temperature": 1e-320}, "temperature is 1e-320: it must be 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": None}, "temperature is None"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": 0}, "top_k is 0: .* a positive integer"),
        ({"top_k": np.inf}, "top_k is inf"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0}, "top_p is 0: .* above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1: .* from 0 to 1"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0: .* from 1e-6 to 1e6"),
        ({"repetition_penalty": 1e-38}, "repetition_penalty is 1e-38"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "x"}, "seed is 'x'"),
    ],
)
def test_bad_options_are_rejected(options, message):
    with pytest.raises(gpt2_np.Error, match=message):
        sample(LOGITS, **options)


@pytest.mark.parametrize("logits", [[np.nan, 2.0], [2.0, np.nan], [-np.inf] * 3, [1.0, np.inf]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_are_rejected(logits, temperature):
    with pytest.raises(gpt2_np.Error, match="not all finite"):
        sample(np.array(logits, np.float32), temperature)


def test_some_logits_may_be_minus_infinity():
    logits = np.array([-np.inf, 0.5, -np.inf], np.float32)
    assert {sample(logits, temperature, seed=0) for temperature in (0, 1)} == {1}


def test_logits_may_be_an_array_of_another_library():
    class Tensor:  # like torch.Tensor, it has argmax, but not CuPy's get
        def __init__(self, values):
            self.values = values

        def argmax(self):
            raise AssertionError("the other library computes")

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.values, dtype)

    for temperature in 0, 1:
        tokens = [sample(logits, temperature, seed=3) for logits in (LOGITS, Tensor(LOGITS))]
        assert tokens[0] == tokens[1]


def test_logits_may_be_a_list_and_must_be_of_one_position():
    assert sample([1.0, 3.0, 2.0]) == 1
    for shape in ((0,), (2, 5), ()):
        with pytest.raises(gpt2_np.Error, match="give those of one position"):
            sample(np.ones(shape, np.float32))


def test_logits_of_another_device_are_an_error():
    class Tensor:  # as torch.Tensor on a GPU
        __cuda_array_interface__ = None

        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with pytest.raises(gpt2_np.Error, match="cannot become a NumPy array: can't convert"):
        sample(Tensor(), 1.0)


def test_previous_tokens_outside_the_vocabulary_are_an_error_if_they_are_used():
    with pytest.raises(gpt2_np.Error, match="outside the vocabulary of 200"):
        sample(LOGITS, repetition_penalty=1.2, previous=[200])
    assert sample(LOGITS, previous=[200]) == LOGITS.argmax()

"""Loss, bits per byte, entropy and calibration are means over tokens."""
import numpy as np
import pytest
from prompt_pair import MODEL
from random_model import TINY, random_params

import gpt2_np
from gpt2_np import Model, circuits


def test_measures_are_means_over_tokens_with_intervals_over_texts(speaking):
    texts = ["The cat sat on the mat", "the dog sat", "on the cat the dog and the cat"]
    found = circuits.measure(speaking, texts)
    losses, n_bytes, p = [], 0, []
    for text in texts:
        ids = [speaking.tokenizer.end_of_text, *speaking.tokenizer.encode(text)]
        losses += (-gpt2_np.score(speaking, ids).astype(float)).tolist()
        n_bytes += len(text.encode())
        logits = gpt2_np.forward(speaking.params, speaking.config, ids).astype(float)[:-1]
        p.append(np.exp(logits - logits.max(-1, keepdims=True)))
    loss = np.mean(losses)
    assert found.loss.value == pytest.approx(loss, rel=1e-5)
    assert found.perplexity.value == pytest.approx(np.exp(loss), rel=1e-4)
    bits = np.sum(losses) / np.log(2) / n_bytes
    assert found.bits_per_byte.value == pytest.approx(bits, rel=1e-5)
    p = np.concatenate([rows / rows.sum(-1, keepdims=True) for rows in p])
    assert found.entropy.value == pytest.approx(-(p * np.log(p)).sum(-1).mean(), rel=1e-4)
    assert found.loss.low < found.loss.value < found.loss.high
    assert found.bos and found.n_tokens == len(losses) == found.reliability[:, 2].sum()


def test_calibration_is_the_distance_of_accuracy_from_confidence():
    """A model that gives 61 tokens the same probability is right by chance, and says so."""
    params = random_params(TINY, scale=0.0)
    rng = np.random.default_rng(1)
    flat = circuits.measure(Model(TINY, params), list(rng.integers(0, 61, (4, 20))))
    assert flat.loss.value == pytest.approx(np.log(61), rel=1e-5)
    assert flat.entropy.value == pytest.approx(np.log(61), rel=1e-5)
    confidence, accuracy, n = flat.reliability[0]
    assert confidence == pytest.approx(1 / 61, rel=1e-5)
    assert n == 4 * 19
    assert flat.calibration_error.value == pytest.approx(abs(confidence - accuracy))
    assert flat.bits_per_byte is None


def test_a_text_longer_than_the_context_is_measured_in_overlapping_windows():
    tokens = np.random.default_rng(3).integers(0, TINY.n_vocab, 70)
    found = circuits.measure(MODEL, [tokens])
    assert found.loss.value == pytest.approx(-gpt2_np.score(MODEL, tokens).mean(), rel=1e-5)
    assert found.n_tokens == 69


def test_texts_measured_together_give_what_each_gives_alone():
    rng = np.random.default_rng(5)
    texts = [rng.integers(0, TINY.n_vocab, n) for n in (70, 5, 24, 31, 9, 9)]
    alone = [circuits.measure(MODEL, [text], resamples=1) for text in texts]
    together = circuits.measure(MODEL, texts, resamples=1)
    n = np.array([one.n_tokens for one in alone])
    for name in ("loss", "entropy"):
        values = np.array([getattr(one, name).value for one in alone])
        mean = (values * n).sum() / n.sum()
        assert getattr(together, name).value == pytest.approx(mean, rel=1e-5)
    tokens = sum(one.reliability[:, 2] for one in alone)
    np.testing.assert_array_equal(together.reliability[:, 2], tokens)

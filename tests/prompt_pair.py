"""A random model, prompts that differ from their corruption in two places, and a metric."""
import numpy as np
from random_model import TINY, random_model

from gpt2_np import circuits

MODEL = random_model()
CLEAN = np.random.default_rng(3).integers(0, TINY.n_vocab, (3, 12))
CORRUPTED = CLEAN.copy()
CORRUPTED[:, [4, 7]] = (CLEAN[:, [4, 7]] + 5) % TINY.n_vocab
ANSWERS, WRONG = [3, 4, 5], [6, 7, 8]
METRIC = circuits.logit_difference(MODEL, ANSWERS, WRONG)
NOISING = {"base": CLEAN, "source": CORRUPTED, "metric": METRIC}
DENOISING = {"base": CORRUPTED, "source": CLEAN, "metric": METRIC}
TEXT = "The cat sat on the mat and the dog sat on the cat. " * 3


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())

"""Texts packed into one row do not attend to each other."""
import numpy as np
import pytest
from random_model import TINY, random_model

from gpt2_np import Error, KVCache, forward
from gpt2_np.inference.packing import Packed

MODEL = random_model()
TEXTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2]]
ROW = [[token for text in TEXTS for token in text]]


def test_packed_texts_have_the_logits_that_each_has_alone():
    logits = forward(MODEL.params, TINY, ROW, Packed([len(text) for text in TEXTS]))[0]
    alone = np.concatenate([forward(MODEL.params, TINY, text) for text in TEXTS])
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)


def test_a_packed_pass_fills_a_cache_that_each_text_continues():
    cache = KVCache(TINY, batch=len(TEXTS))
    forward(MODEL.params, TINY, ROW, Packed([len(text) for text in TEXTS], cache))
    assert cache.lengths.tolist() == [len(text) for text in TEXTS]
    logits = forward(MODEL.params, TINY, [[7]] * len(TEXTS), cache)[:, 0]
    alone = [forward(MODEL.params, TINY, [*text, 7])[-1] for text in TEXTS]
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)


def test_patterns_of_packed_texts_are_an_error():
    packed = Packed([len(text) for text in TEXTS])
    with pytest.raises(Error, match="run one text at a time"):
        forward(MODEL.params, TINY, ROW, packed, tap=lambda name, array: None)

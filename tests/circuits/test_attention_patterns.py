"""Head scores are averages of the attention on the keys that they name."""
import numpy as np
import pytest
from prompt_pair import MODEL, close
from random_model import TINY

from gpt2_np import Error, circuits


def test_head_scores_are_the_attention_on_the_keys_they_name():
    tokens = np.array([[1, 2, 3, 1, 2, 5]])
    name = "blocks.1.attn.hook_pattern"
    p = circuits.run(MODEL, tokens, name)[name][0]
    scores = circuits.heads(MODEL, tokens)
    close(scores.previous_token[1], np.mean([p[:, q, q - 1] for q in range(1, 6)], axis=0))
    close(scores.duplicate_token[1], (p[:, 3, 0] + p[:, 4, 1]) / 2)
    close(scores.induction[1], (p[:, 3, 1] + p[:, 4, 2]) / 2)
    close(scores.beginning[1], p[:, 1:, 0].mean(axis=1))
    back = np.arange(6)[:, None] - np.arange(6)
    close(scores.distance[1], (p * back).sum(axis=2)[:, 1:].mean(axis=1))
    close(scores.current_token[1], np.mean([p[:, q, q] for q in range(1, 6)], axis=0))
    safe = np.where(p > 0, p, 1)
    close(scores.entropy[1], -(p * np.log(safe)).sum(axis=2)[:, 1:].mean(axis=1))


def test_the_top_heads_are_those_with_the_highest_scores():
    scores = circuits.heads(MODEL)
    assert [name for name, _ in scores.top("induction", 20)] == sorted(
        circuits.head_names(TINY), key=lambda name: -scores.induction[int(name[1]), int(name[3])])
    name, value = scores.top("entropy", 1)[0]
    assert value == scores.entropy.max() == scores.entropy[int(name[1]), int(name[3])]
    assert circuits.heads(MODEL, [1, 2, 3]).top("induction") == []
    with pytest.raises(Error, match="unknown score 'inductoin'; did you mean induction"):
        scores.top("inductoin")
    with pytest.raises(Error, match="n is 0"):
        scores.top("induction", 0)


def test_what_no_position_could_show_is_nan_not_zero():
    scores = circuits.heads(MODEL, [1, 2, 3])
    assert np.isnan(scores.induction).all()
    assert not np.isnan(scores.previous_token).any()

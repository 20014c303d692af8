"""Head scores are averages of the attention on the keys that they name."""
import numpy as np
from prompt_pair import MODEL, close

from gpt2_np import circuits


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


def test_what_no_position_could_show_is_nan_not_zero():
    scores = circuits.heads(MODEL, [1, 2, 3])
    assert np.isnan(scores.induction).all()
    assert not np.isnan(scores.previous_token).any()

"""Taps in batches: what they see, and where they are told that it is."""
import numpy as np
import pytest
from random_model import TINY, random_model

import gpt2_np
from gpt2_np import generate, generate_batch, score, score_batch

MODEL = random_model()
PROMPTS = [[5, 9, 2], [7], [11, 4, 4, 8, 30, 2, 1], [11, 4, 4, 8, 30, 2, 1]]


def without_head_2(name, array):
    return array * (np.arange(4) != 2)[:, None] if name == "blocks.1.attn.hook_z" else None


class Watch:
    """A tap that notes the place of every pass and the shape of its embeddings."""

    def __init__(self):
        self.places, self.shapes = [], []

    def begin(self, positions, rows, lengths, n_rows):
        self.places.append((positions.tolist(), rows.tolist(), lengths.tolist(), n_rows))

    def wants(self, name):
        return name == "hook_embed"

    def __call__(self, name, array):
        self.shapes.append(array.shape[:2])


def test_a_tap_of_a_batch_gives_each_row_what_it_gives_the_row_alone():
    rows = generate_batch(MODEL, PROMPTS, 9, tap=without_head_2, temperature=0.7, seed=4)
    assert rows[:1] == [list(generate(MODEL, PROMPTS[0], 9, tap=without_head_2, temperature=0.7,
                                      seed=4))]
    greedy = generate_batch(MODEL, PROMPTS, 9, tap=without_head_2)
    assert greedy == [list(generate(MODEL, prompt, 9, tap=without_head_2)) for prompt in PROMPTS]
    assert greedy != generate_batch(MODEL, PROMPTS, 9)


def test_a_tap_of_scores_sees_one_text_after_another():
    texts, watch = [[1, 2, 3], list(range(40)), [4, 5]], Watch()
    found = score_batch(MODEL, texts, tap=without_head_2)
    for text, scores in zip(texts, found, strict=True):
        np.testing.assert_array_equal(scores, score(MODEL, text, tap=without_head_2))
        assert np.abs(scores - score(MODEL, text)).max() > 0.01
    score_batch(MODEL, texts, tap=watch)
    assert watch.shapes == [(1, 2), (1, 24), (1, 24), (1, 15), (1, 1)]
    assert watch.places[0] == ([[0, 1]], [0], [2], 3)
    assert watch.places[1] == ([list(range(24))], [1], [24], 3)
    assert watch.places[-1] == ([[0]], [2], [1], 3)


def test_a_tap_is_told_the_positions_and_rows_of_every_pass():
    watch = Watch()
    rows = generate_batch(MODEL, PROMPTS[:3], 4, tap=watch)
    assert watch.shapes == [(3, 7), (3, 1), (3, 1), (3, 1)]
    assert watch.places[0] == ([list(range(7))] * 3, [0, 1, 2], [3, 1, 7], 3)
    assert watch.places[2] == ([[4], [2], [8]], [0, 1, 2], [3, 1, 7], 3)
    [stop, *_] = {rows[1][1]} - {*rows[0], *rows[2]}
    watch = Watch()
    stopped = generate_batch(MODEL, PROMPTS[:3], 4, tap=watch, stop=stop)
    assert stopped.reasons == ["length", "stop", "length"]
    assert watch.places[-1] == ([[5], [9]], [0, 2], [3, 7], 3)


@pytest.mark.parametrize("n", [1, 2])
def test_a_prompt_that_fills_the_context_has_a_pass_with_a_tap(n):
    with pytest.warns(gpt2_np.ContextWarning):
        rows = generate_batch(MODEL, [[1] * TINY.n_ctx, [2]][:n], 3, tap=without_head_2)
    assert [len(row) for row in rows] == [1, 3][:n]

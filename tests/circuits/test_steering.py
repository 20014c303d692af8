"""Edits while text is generated and scored, steering vectors, and means over texts."""
import numpy as np
import pytest
from prompt_pair import CLEAN, MODEL, close
from random_model import TINY

import gpt2_np
from gpt2_np import Error, circuits
from gpt2_np import gpt2_np as reference

MID, Z = "blocks.1.hook_resid_mid", "blocks.0.attn.hook_z"
VECTOR = 3 * np.random.default_rng(4).standard_normal(TINY.n_embd).astype(np.float32)
PROMPTS = [[5, 9, 2], [7], [11, 4, 4, 8, 30, 2, 1], [3, 3]]
EDITS = {
    "from there on": {MID: circuits.add(VECTOR, position=slice(4, None))},
    "everywhere": {"mlp_out": circuits.patch(VECTOR), Z: circuits.zero(2)},
    "one later position": {MID: circuits.add(np.roll(VECTOR, 3), 9.0, position=6)},
    "the prompt's end": {MID: [circuits.add(VECTOR, position=-1), circuits.zero(position=0)]},
    "from the prompt's end on": {"blocks.2.hook_resid_pre": circuits.add(VECTOR,
                                                                         position=slice(-1, None))},
    "attention": {"attn_scores": circuits.knock_out([(5, 1), (5, 2), (7, 3), (7, 0)])},
}  # fmt: skip


def slow_generate(prompt, n_tokens, edits):
    """Greedy tokens from one whole pass after another, with positions counted from 0."""
    tokens = list(prompt)
    for _ in range(n_tokens):
        tokens.append(int(circuits.run(MODEL, tokens, edits=edits).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def in_whole_text(case, n_prompt, length):
    """Return the edits of a case for a pass over a whole text of that length."""
    if case == "the prompt's end":
        return {MID: [circuits.add(VECTOR, position=n_prompt - 1), circuits.zero(position=0)]}
    if case == "from the prompt's end on":
        return {"blocks.2.hook_resid_pre": circuits.add(VECTOR, position=slice(n_prompt - 1, None))}
    if case == "one later position" and length <= 6:
        return None
    if case == "attention":
        pairs = [(q, k) for q, k in ((5, 1), (5, 2), (7, 3), (7, 0)) if q < length]
        return {"attn_scores": circuits.knock_out(pairs)} if pairs else None
    return EDITS[case]


def by_whole_passes(case, prompt, n_tokens):
    tokens = list(prompt)
    for _ in range(n_tokens):
        edits = in_whole_text(case, len(prompt), len(tokens))
        tokens += slow_generate(tokens, 1, edits)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("case", EDITS)
def test_cached_generation_with_edits_gives_the_tokens_of_whole_passes(case):
    tap = circuits.as_tap(MODEL, EDITS[case])
    expected = [by_whole_passes(case, prompt, 8) for prompt in PROMPTS]
    assert [list(gpt2_np.generate(MODEL, prompt, 8, tap=tap)) for prompt in PROMPTS] == expected
    assert [list(reference.generate(MODEL, prompt, 8, tap=tap)) for prompt in PROMPTS] == expected
    assert list(gpt2_np.generate_batch(MODEL, PROMPTS, 8, tap=tap)) == expected
    plain = list(gpt2_np.generate_batch(MODEL, PROMPTS, 8))
    assert plain != expected


def test_rows_that_end_early_leave_the_others_their_places():
    tap = circuits.as_tap(MODEL, EDITS["from the prompt's end on"])
    rows = list(gpt2_np.generate_batch(MODEL, PROMPTS, 8, tap=tap))
    [stop, *_] = set(rows[1]) - set(rows[2])
    stopped = gpt2_np.generate_batch(MODEL, PROMPTS, 8, tap=tap, stop=stop)
    assert "stop" in stopped.reasons and "length" in stopped.reasons
    expected = [row[: row.index(stop)] if stop in row else row for row in rows]
    assert list(stopped) == expected


def test_values_of_several_prompts_go_to_the_prompt_that_they_belong_to():
    values = np.random.default_rng(1).standard_normal((4, 1, TINY.n_embd)).astype(np.float32)
    together = gpt2_np.generate_batch(MODEL, PROMPTS, 6, tap=circuits.as_tap(
        MODEL, {MID: circuits.add(3 * values)}))
    assert list(together) == [
        list(gpt2_np.generate(MODEL, prompt, 6, tap=circuits.as_tap(
            MODEL, {MID: circuits.add(3 * value)})))
        for prompt, value in zip(PROMPTS, values, strict=True)]


@pytest.mark.parametrize("case", ["from there on", "everywhere", "from the prompt's end on"])
def test_scores_with_edits_are_those_of_a_pass_for_each_text(case):
    texts = [*CLEAN.tolist(), [1, 2, 3, 4, 5, 6, 7], [8, 9]]
    tap = circuits.as_tap(MODEL, EDITS[case])
    for text, scores in zip(texts, gpt2_np.score_batch(MODEL, texts, tap=tap), strict=True):
        np.testing.assert_array_equal(gpt2_np.score(MODEL, text, tap=tap), scores)
        logits = circuits.run(MODEL, text[:-1], edits=EDITS[case]).logits[0].astype(float)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        close(scores, log_p[np.arange(len(text) - 1), text[1:]], 1e-5)


def test_text_is_completed_and_streamed_with_edits(speaking):
    tap = circuits.as_tap(speaking, {"blocks.1.hook_resid_pre": circuits.add(
        9.0 * (np.arange(24) % 7 - 3), position=slice(3, None))})
    text = gpt2_np.complete(speaking, "The cat", 8, tap=tap)
    assert "".join(gpt2_np.stream(speaking, "The cat", 8, tap=tap)) == text
    assert text != gpt2_np.complete(speaking, "The cat", 8)


@pytest.mark.parametrize("case", EDITS)
def test_run_generate_gives_the_tokens_and_what_a_pass_over_the_text_shows(case):
    prompt, names = PROMPTS[2], ["resid_post", "pattern", "z"]
    seen = circuits.run_generate(MODEL, prompt, 8, names, edits=EDITS[case])
    assert seen.tokens[0, 7:].tolist() == by_whole_passes(case, prompt, 8)
    whole = circuits.run(MODEL, seen.tokens, names, edits=in_whole_text(case, 7, 15))
    close(seen.logits, whole.logits)
    for name, array in whole.activations.items():
        close(seen[name], array)


def test_run_generate_shows_what_the_cached_passes_computed():
    class Recorder:
        def __init__(self):
            self.tap, self.seen = circuits.as_tap(MODEL, EDITS["from there on"]), []

        begin = property(lambda self: self.tap.begin)
        wants = property(lambda self: lambda name: self.tap.wants(name) or name == MID)

        def __call__(self, name, array):
            result = self.tap(name, array)
            if name == MID:
                self.seen.append(array if result is None else result)
            return result

    recorder = Recorder()
    tokens = list(gpt2_np.generate(MODEL, PROMPTS[2], 8, tap=recorder))
    seen = circuits.run_generate(MODEL, PROMPTS[2], 8, MID, edits=EDITS["from there on"])
    assert seen.tokens[0, 7:].tolist() == tokens
    close(np.concatenate(recorder.seen, axis=1), seen[MID][:, :-1])


def test_options_of_generation_and_text_reach_run_generate(speaking):
    seen = circuits.run_generate(speaking, "The cat", 5, temperature=1.0, seed=3)
    prompt = circuits.prompts(speaking, "The cat").tokens[0]
    assert seen.bos and seen.tokens[0].tolist() == [
        *prompt, *gpt2_np.generate(speaking, prompt, 5, temperature=1.0, seed=3)]


def test_a_steering_vector_is_the_mean_difference_at_the_ends():
    pairs = [(CLEAN[0], CLEAN[1, :7]), (CLEAN[2], CLEAN[1])]
    ends = [[circuits.run(MODEL, text, MID)[MID][0, -1] for text in pair] for pair in pairs]
    expected = (ends[0][0] - ends[0][1] + ends[1][0] - ends[1][1]) / 2
    vector = circuits.steering_vector(MODEL, pairs, MID)
    close(vector, expected)
    assert vector.dtype == np.float32
    steered = circuits.run(MODEL, pairs[0][1], MID, edits={MID: circuits.add(
        circuits.steering_vector(MODEL, pairs[:1], MID), position=-1)})
    close(steered[MID][0, -1], ends[0][0])


def test_a_mean_activation_is_over_all_positions_but_the_first_end_of_text(speaking):
    texts = ["The cat sat", "The dog sat on the mat"]
    seen = [circuits.run(speaking, text, Z)[Z][0, 1:] for text in texts]
    mean = circuits.mean_activation(speaking, texts, Z)
    close(mean, np.concatenate(seen).mean(axis=0))
    close(circuits.mean_activation(speaking, (text for text in texts), Z), mean)
    edited = circuits.run(speaking, texts[0], Z, edits={Z: circuits.patch(mean, head=1)})[Z]
    close(edited[0, :, 1], np.broadcast_to(mean[1], edited[0, :, 1].shape))


@pytest.mark.parametrize(("work", "message"), [
    (lambda: circuits.run_generate(MODEL, CLEAN, 3), "continues one prompt, 3 were given"),
    (lambda: circuits.run_generate(MODEL, CLEAN[0], 13), "there is room for 12, as n_ctx is 24"),
    (lambda: circuits.run_generate(MODEL, CLEAN[0], 0), "n_tokens is 0"),
    (lambda: circuits.run_generate(MODEL, CLEAN[0], 2, tap=print), "takes a tap as edits="),
    (lambda: circuits.run_generate(MODEL, CLEAN[0], 2, "resid"), "unknown activation 'resid'"),
    (lambda: circuits.steering_vector(MODEL, ["ab"], MID), "'ab' is not a pair"),
    (lambda: circuits.steering_vector(MODEL, [], MID), "there are no pairs"),
    (lambda: circuits.steering_vector(MODEL, [([1], [2])], "z"), "'z' is in 3 layers: name one"),
    (lambda: circuits.mean_activation(MODEL, "text", MID), "give a list of texts"),
    (lambda: circuits.mean_activation(MODEL, [[1]], "blocks.0.attn.hook_pattern"), "as wide as"),
    (lambda: gpt2_np.generate_batch(MODEL, PROMPTS, 8, tap=circuits.as_tap(
        MODEL, {MID: circuits.zero(position=-9)})), "position -9 does not exist"),
])  # fmt: skip
def test_bad_input_is_one_clear_error(work, message):
    with pytest.raises(Error, match=message):
        work()

"""Tasks have one right answer, and their corrupted prompts do not have it."""
import numpy as np
import pytest
from prompt_pair import MODEL

from gpt2_np import Config, Model, circuits


def test_repeated_tokens_repeat_and_their_corruption_does_not():
    task = circuits.repeated_tokens(MODEL, 8, 5, seed=1)
    clean, corrupted = task.clean.tokens, task.corrupted.tokens
    np.testing.assert_array_equal(clean[:, :8], clean[:, 8:])
    np.testing.assert_array_equal(task.answers, clean[:, 0])
    np.testing.assert_array_equal(corrupted[:, 9:], clean[:, 9:])
    np.testing.assert_array_equal(corrupted[:, 8], task.wrong)
    assert all(len(set(row)) == 16 for row in corrupted.tolist())
    assert not task.clean.bos
    assert (circuits.repeated_tokens(MODEL, 8, 5, seed=1).clean.tokens == clean).all()


@pytest.mark.parametrize("corruption", ["abc", "swap"])
def test_indirect_object_prompts_have_one_answer_in_both_orders(official, corruption):
    task = circuits.indirect_object(official, 20, corruption=corruption)
    texts, changed = ([official.tokenizer.decode(row[1:]) for row in prompts.tokens]
                      for prompts in (task.clean, task.corrupted))
    assert task.clean.bos and task.corrupted.bos
    giver_first = 0
    for text, other, right, wrong in zip(texts, changed, task.answers, task.wrong, strict=True):
        right, wrong = (official.tokenizer.decode([token]) for token in (right, wrong))
        assert text.count(right) == 1
        assert text.count(wrong) == 2
        giver_first += text.index(wrong) < text.index(right)
        if corruption == "abc":
            assert right not in other and wrong not in other
        else:
            assert other.count(right) == 2 and other.count(wrong) == 1
    assert giver_first == 10
    assert len(set(texts)) > 15


def test_name_repetition_works_with_any_vocabulary(official):
    task = circuits.name_repetition(official, 6)
    for row, answer, wrong in zip(task.clean.tokens, task.answers, task.wrong, strict=True):
        first = row[-1]
        follows = [row[i + 1] for i in np.flatnonzero(row[:-1] == first)]
        assert follows == [answer, answer]
        assert wrong not in row


def test_names_are_made_from_tokens_where_the_embedding_is_padded(official):
    config = Config(50304, *list(vars(official.config).values())[1:])
    wte = np.pad(official.params["wte"], ((0, 47), (0, 0)))
    padded = Model(config, {**official.params, "wte": wte}, official.tokenizer)
    np.testing.assert_array_equal(circuits.name_repetition(padded, 3).clean.tokens,
                                  circuits.name_repetition(official, 3).clean.tokens)


def test_a_task_knows_its_metric(official):
    task = circuits.indirect_object(official, 4)
    logits = circuits.run(official, task.clean, last_only=True).logits
    rows = np.arange(4)
    expected = logits[rows, 0, task.answers] - logits[rows, 0, task.wrong]
    np.testing.assert_array_equal(task.metric(official)(logits), expected)
    there, back = task.noising(official), task.denoising(official)
    assert there["base"] is back["source"] is task.clean
    assert there["source"] is back["base"] is task.corrupted
    np.testing.assert_array_equal(there["metric"](logits), expected)
    np.testing.assert_array_equal(back["metric"](logits), expected)

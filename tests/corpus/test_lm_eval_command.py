"""The parts of the lm-eval adapter that need no lm-eval, and its absence."""
import math
import sys
from types import ModuleType

import numpy as np
import pytest
from random_model import TINY, random_model

import gpt2_np
from gpt2_np.corpus import lm_eval_adapter
from gpt2_np.corpus.__main__ import main
from gpt2_np.corpus.lm_eval_adapter import (
    Continuation,
    continuations,
    log_likelihoods,
    prompts_at_once,
    sampling_options,
    size_of_batch,
)

MODEL, N_CTX = random_model(), TINY.n_ctx


def answers(requests, max_length=N_CTX, **options):
    """Return (log p, is_greedy) by the number of the request."""
    found = {number: answer for number, *answer in
             log_likelihoods(MODEL, [Continuation(*r) for r in requests], max_length, **options)}
    assert sorted(found) == list(range(len(requests)))
    return [found[number] for number in range(len(requests))]


def by_definition(context, continuation, max_length=N_CTX):
    ids = [*context, *continuation][-max_length - 1 :]
    logits = gpt2_np.forward(MODEL.params, MODEL.config, ids[:-1])[-len(continuation) :]
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    greedy = bool((logits.argmax(axis=-1) == continuation).all())
    return [log_p[np.arange(len(continuation)), continuation].sum(), greedy]


def random_requests(n, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 61, rng.integers(1, 40)).tolist(),
             rng.integers(0, 61, rng.integers(1, 12)).tolist()) for _ in range(n)]


def check(requests, **options):
    for (context, continuation), found in zip(requests, answers(requests, **options), strict=True):
        expected = by_definition(context, continuation, options.get("max_length", N_CTX))
        assert found[0] == pytest.approx(expected[0], abs=1e-4)
        assert found[1] is expected[1]


@pytest.mark.parametrize("max_length", [12, N_CTX])
def test_log_likelihoods_are_those_of_the_definition_in_the_last_positions(max_length):
    check(random_requests(40), max_length=max_length)


def test_requests_of_the_same_tokens_may_be_divided_differently():
    ids = [5, 9, 3, 7, 1]
    check([(ids[:n], [*ids[n:], last]) for n in (1, 2, 4, 5) for last in (0, 7, 7, 60)])


def test_a_greedy_continuation_is_known_to_be_greedy():
    made = list(gpt2_np.generate(MODEL, [5, 9], 4))
    other = [*made[:-1], (made[-1] + 1) % 61]
    assert [greedy for _, greedy in answers([([5, 9], made), ([5, 9], other)])] == [True, False]


def test_equal_requests_share_a_pass():
    passes = []

    def tap(name, array):
        if name == "hook_embed":
            passes.append(array.shape[1])

    answers([([5, 9, 3], [4])] * 3 + [([5, 9], [3, 4])], tap=tap)
    assert sorted(passes) == [3, 3]


def test_answers_come_before_the_last_pass():
    passes = []
    requests = [Continuation(*one) for one in random_requests(5)]
    for n, _ in enumerate(log_likelihoods(
            MODEL, requests, N_CTX, lambda name, _: passes.append(1) if name == "hook_embed"
            else None), 1):
        assert len(passes) == n


@pytest.mark.parametrize("context, continuation", [([], [1]), ([1], []), ([1], [2] * 25)])
def test_a_request_that_cannot_be_scored_is_refused_before_any_pass(context, continuation):
    requests = [Continuation([1], [2]), Continuation(context, continuation)]
    with pytest.raises(gpt2_np.Error, match="request 1 has"):
        next(log_likelihoods(MODEL, requests, N_CTX))


def test_continuations_are_those_of_generate_whatever_the_batch():
    prompts = [[5], [9, 3, 7], [5], [1, 2], [44, 8, 8, 8]]
    expected = [list(gpt2_np.generate(MODEL, prompt, 6, stop=[9])) for prompt in prompts]
    for size in (None, 1, 2):
        found = {}
        for numbers, ids in continuations(MODEL, prompts, 6, [9], {}, size):
            found.update(dict.fromkeys(numbers, ids))
        assert [found[number] for number in range(5)] == expected


def test_drawn_tokens_depend_on_the_seed_and_the_request_alone():
    prompts, options = [[5], [9, 3], [5]], {"temperature": 1.0}
    expected = [list(gpt2_np.generate(MODEL, prompt, 6, seed=(7, number), **options))
                for number, prompt in enumerate(prompts)]
    for size in (None, 1, 2):
        found = continuations(MODEL, prompts, 6, [], options, size, seed=7)
        assert sorted(found) == [([number], ids) for number, ids in enumerate(expected)]


def test_a_batch_of_long_texts_is_smaller():
    one = 2 * 4 * TINY.n_layer * TINY.n_embd  # bytes of a position
    assert prompts_at_once(MODEL, 10) == 32
    assert prompts_at_once(MODEL, (1 << 30) // one // 3) == 3
    assert prompts_at_once(MODEL, 1 << 40) == 1


# --- options of tasks ------------------------------------------------------------------


@pytest.mark.parametrize("given, expected", [
    ({}, {}),
    ({"do_sample": False, "temperature": 0.0, "top_p": 0.5, "num_beams": 1}, {}),
    ({"do_sample": True, "temperature": 0.8, "top_k": 4}, {"temperature": 0.8, "top_k": 4}),
    ({"do_sample": True}, {}),
    ({"do_sample": False, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
])
def test_sampling_options_of_a_task(given, expected):
    assert sampling_options(given) == expected


def test_an_option_that_would_be_ignored_is_refused():
    with pytest.raises(gpt2_np.Error, match=r"generates with num_beams=10, typical_p=0\.9: "):
        sampling_options({"num_beams": 10, "typical_p": 0.9})


@pytest.mark.parametrize("given, expected",
                         [("auto", None), ("auto:4", None), (1, None), ("1", None), ("8", 8)])
def test_batch_sizes_of_lm_eval(given, expected):
    assert size_of_batch(given) == expected


@pytest.mark.parametrize("given", [0, -1, "many", 2.5, None])
def test_other_batch_sizes_are_refused(given):
    with pytest.raises(gpt2_np.Error, match="batch_size is"):
        size_of_batch(given)


# --- the command -----------------------------------------------------------------------


def command(*arguments):
    return main(["lm-eval", *arguments])


def test_without_lm_eval_the_command_names_the_package(monkeypatch, capsys):
    lm_eval_adapter.model_class.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert command("run", "--tasks", "lambada_openai") == 1
    assert 'pip install "lm-eval>=0.4.13"' in capsys.readouterr().err


@pytest.mark.parametrize("given, handed_over", [
    (["run", "--tasks", "a,b", "--limit", "3"],
     ["run", "--model", "gpt2_np", "--tasks", "a,b", "--limit", "3"]),
    (["run", "--help"], ["run", "--model", "gpt2_np", "--help"]),
    (["run"], ["run"]),
    (["ls", "tasks"], ["ls", "tasks"]),
    (["validate", "--tasks", "a"], ["validate", "--tasks", "a"]),
    ([], []),
])
def test_arguments_go_to_lm_eval_with_the_models_name(monkeypatch, given, handed_over):
    seen = []
    lm_eval = ModuleType("lm_eval.__main__")
    lm_eval.cli_evaluate = lambda: seen.append(list(sys.argv))
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", lm_eval)
    monkeypatch.setattr(lm_eval_adapter, "model_class", lambda: None)
    before = list(sys.argv)
    assert command(*given) == 0
    assert seen == [["lm-eval", *handed_over]] and sys.argv == before


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(gpt2_np.Error, match="no tokenizer"):
        lm_eval_adapter.loaded(MODEL, "cpu", "float32")


def test_the_model_is_loaded_by_name_and_lm_evals_default_device_is_auto():
    model = lm_eval_adapter.loaded("shakespeare", "cuda:0", "float32")
    found = continuations(model, [model.tokenizer.encode("ROMEO.")], 5, [], {})
    (numbers, ids), = found
    assert numbers == [0] and len(ids) == 5
    with pytest.raises(gpt2_np.Error, match="unknown device 'cuda:7'"):
        lm_eval_adapter.loaded("shakespeare", "cuda:7", "float32")
    assert math.isfinite(next(log_likelihoods(model, [Continuation([5], [6])], 256))[1])

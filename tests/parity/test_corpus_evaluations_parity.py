"""Evaluations give what lm-eval and the loop of transformers' documentation give on local files."""
import json

import lm_eval
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_model import save_small_model

import gpt2_np
from gpt2_np.corpus import evaluate
from gpt2_np.corpus.evaluation_data import detokenized, joined_rows, pages
from gpt2_np.corpus.evaluation_protocols import rolling

pytestmark = pytest.mark.parity

WORDS = ["the", "café", "street", "remember", "naïve", "corner", "N", "1", "°", "@-@", "@,@", "@.@",
         "'s", "'", '"', "(", ")", "[", "]", "{", "}", ":", ";", ".", "!", "?", ",", "=", "= =",
         "= = =", "= = = =", "\n", " \n", "\n ", "  ", "s '", "s ' s", "…", "\u00a0", "\t"]
PASSAGES = ["the café at the corner", "they remember naïve", "at  the café  that", "a b",
            "the naïve café at the corner of the street is the café that they remember " * 4 + "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def peer(folder):
    """lm-eval's own class on the same weights."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=folder, device="cpu", batch_size=1, dtype="float32", backend="causal")


def articles():
    rng = np.random.default_rng(5)
    return "".join(f" = {title} = \n \n " + " ".join(rng.choice(WORDS[:31], n)) + " \n \n"
                   for title, n in (("The café", 150), ("Street", 9), ("Corner", 400)))


def lm_eval_results(peer, task, records, tmp_path, **config):
    file = tmp_path / f"{task}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {"task": task, "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(file)}}, **config}
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    found = lm_eval.simple_evaluate(peer, tasks=[task], task_manager=manager, bootstrap_iters=0)
    [results] = found["results"].values()
    return {name.removesuffix(",none"): value for name, value in results.items()}


@given(st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)
       | st.text(st.sampled_from("ab '\"()[]{}.,=\n°Ns1@-"), max_size=40))
def test_detokenized_articles_are_those_of_lm_eval(text):
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    assert detokenized(text) == wikitext_detokenizer({"page": text})


@given(st.integers(1, 60), st.integers(1, 12))
def test_windows_are_those_of_lm_eval(n, n_ctx):
    theirs = lm_eval.utils.get_rolling_token_windows(list(range(n)), -1, n_ctx, 1)
    assert [([*piece.tokens], piece.n_scored) for piece in rolling([-1, *range(n)], n_ctx)] == [
        ([*inputs, targets[-1]], len(targets)) for inputs, targets in theirs]


def test_lambada_is_that_of_lm_eval(folder, peer, tmp_path):
    theirs = lm_eval_results(
        peer, "lambada_here", [{"text": text} for text in PASSAGES], tmp_path,
        output_type="loglikelihood", doc_to_text="{{text.split(' ')[:-1]|join(' ')}}",
        doc_to_target="{{' '+text.split(' ')[-1]}}",
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
    )  # fmt: skip
    file = tmp_path / "lambada_here.jsonl"
    ours = evaluate("lambada", folder, data=file)
    assert ours["last_word_perplexity"].value == pytest.approx(theirs["perplexity"], rel=1e-5)
    assert ours["last_word_accuracy"].value == pytest.approx(theirs["acc"])


def test_wikitext_is_that_of_lm_eval(folder, peer, tmp_path):
    from lm_eval.tasks.wikitext import preprocess_wikitext

    text = tmp_path / "wiki.test.raw"
    text.write_text(articles(), encoding="utf-8")
    names = ["word_perplexity", "bits_per_byte", "byte_perplexity"]
    theirs = lm_eval_results(
        peer, "wikitext_here", [{"page": page} for page in pages(articles())], tmp_path,
        output_type="loglikelihood_rolling", doc_to_text="",
        doc_to_target=preprocess_wikitext.wikitext_detokenizer,
        process_results=preprocess_wikitext.process_results,
        metric_list=[{"metric": name} for name in names],
    )  # fmt: skip
    ours = evaluate("wikitext2", folder, data=text)
    for name in names[:2]:
        assert ours[name].value == pytest.approx(theirs[name], rel=1e-5), name


@pytest.mark.parametrize("stride", [64, 32, 10])
def test_raw_text_is_that_of_the_documentation_of_transformers(folder, tmp_path, stride):
    """The loop of its page on perplexity, but for windows without a target: their loss is NaN."""
    from transformers import GPT2LMHeadModel

    text = tmp_path / "wiki.test.raw"
    text.write_text(articles(), encoding="utf-8")
    tokenizer = gpt2_np.load(folder, "cpu").tokenizer
    tokens = torch.tensor([tokenizer.encode(joined_rows(articles()))])
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    total = count = before = 0
    for begin in range(0, tokens.shape[1], stride):
        end = min(begin + 64, tokens.shape[1])
        labels = tokens[:, begin:end].clone()
        labels[:, : before - begin] = -100
        n_scored = int((labels[:, 1:] != -100).sum())
        if n_scored:
            with torch.no_grad():
                loss = model(tokens[:, begin:end], labels=labels).loss
            total, count = total + float(loss) * n_scored, count + n_scored
        before = end
        if end == tokens.shape[1]:
            break
    ours = evaluate("wikitext2", folder, data=text, stride=stride)
    assert ours["raw_token_perplexity"].value == pytest.approx(np.exp(total / count), rel=1e-5)
    assert ours.n_tokens == count

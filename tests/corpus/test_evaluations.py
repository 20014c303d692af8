"""Evaluations equal a float64 calculation by the definition of each protocol."""
import dataclasses
import functools
import itertools
import json
import math
import sys

import numpy as np
import pytest
import reference
import strict_arrays
from random_model import map_params, random_model

import gpt2_np
from gpt2_np import SIZES, Config, Error, Model, backend, bpe, circuits
from gpt2_np.corpus import evaluation_data, evaluation_protocols
from gpt2_np.corpus.__main__ import main
from gpt2_np.corpus.evaluations import evaluate
from gpt2_np.corpus.published_figures import FIGURES

TEXT = "the naïve café at the corner of the street is the café that they remember"
WIKITEXT = """ \n = The café = \n \n The café , at the corner , is " the " café ( 1 @,@ 500 ) .
 \n = = Street = = \n \n They remember the street 's corner @-@ café . \n = The street = \n
 \n The street is the street that they remember . It is naïve . \n"""
PASSAGES = ["the café at the corner", "they remember naïve", "at  the café  that", "a b",
            f"{TEXT} café", "remember the naïve street is the corner of the café"]
TOKENIZER = bpe.train(TEXT * 4, 275)
N_CTX = 16
MODEL = random_model(Config(TOKENIZER.n_vocab, N_CTX, n_embd=16, n_head=2, n_layer=2),
                     tokenizer=TOKENIZER)
END = TOKENIZER.end_of_text


class Exact:
    """The model in float64: log-probabilities of tokens 1, 2, ... after those before them."""

    def __init__(self, model=MODEL):
        self.config, self.params = model.config, map_params(np.float64, model.params)
        self.known = {}

    def __call__(self, tokens):
        key = tuple(tokens)
        if key not in self.known:
            self.known[key] = self.of(tokens)
        return self.known[key]

    def of(self, tokens):
        logits = reference.logits(self.params, self.config, tokens[:-1])
        own = logits[np.arange(len(logits)), tokens[1:]]
        log_p = own - np.log(np.exp(logits).sum(axis=1))
        return log_p, own == logits.max(axis=1)


EXACT = Exact()


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals have tests of their own, which undo this: they cost more than the model."""
    monkeypatch.setattr(evaluation_protocols, "bootstrap",
                        functools.partial(circuits.bootstrap, resamples=20))


@pytest.fixture(scope="module")
def passages(tmp_path_factory):
    return lines(tmp_path_factory.mktemp("texts") / "passages.jsonl", PASSAGES)


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "wiki.test.raw"
    file.write_text(WIKITEXT, encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def of_lambada(passages):
    return evaluate("lambada", MODEL, data=passages)


@pytest.fixture(scope="module")
def of_wikitext(wikitext):
    return evaluate("wikitext2", MODEL, data=wikitext)


def lines(file, texts):
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file)


def values(evaluation):
    return {measure.name: measure.estimate.value for measure in evaluation.measures}


def same(found, expected):
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([*found.values()], [expected[name] for name in found], rtol=2e-6)


# --- each protocol by its definition ---------------------------------------------------


def by_lambada(exact, passages=PASSAGES):
    words = []  # log-probabilities and hits of the tokens of each last word
    for passage in passages:
        context = passage[: passage.rindex(" ")].rstrip()
        tokens = TOKENIZER.encode(passage)
        n_word = len(tokens) - len(TOKENIZER.encode(context))
        log_p, hits = exact(tokens[-(N_CTX + 1) :])
        words.append((log_p[-n_word:], hits[-n_word:]))
    n_tokens = sum(len(log_p) for log_p, _ in words)
    total = sum(log_p.sum() for log_p, _ in words)
    return {
        "last_token_accuracy": sum(hits[-1] for _, hits in words) / len(words),
        "last_word_accuracy": sum(all(hits) for _, hits in words) / len(words),
        "last_token_perplexity": math.exp(-sum(log_p[-1] for log_p, _ in words) / len(words)),
        "last_word_perplexity": math.exp(-total / len(words)),
        "last_word_token_perplexity": math.exp(-total / n_tokens),
    }


def of_raw_text(exact, text, stride):
    """Return exp of the mean loss as transformers' documentation computes it, window by window."""
    total, count, end_before = 0.0, 0, 0
    tokens = TOKENIZER.encode("\n\n".join(
        line + "\n" if line.strip() else "" for line in text.split("\n")[:-1]))
    for begin in range(0, len(tokens), stride):
        end = min(begin + N_CTX, len(tokens))
        labels = [None] * (end_before - begin) + tokens[max(begin, end_before) : end]
        log_p, _ = exact(tokens[begin:end])
        kept = [p for p, label in zip(log_p, labels[1:], strict=True) if label is not None]
        total, count, end_before = total - sum(kept), count + len(kept), end
        if end == len(tokens):
            break
    return math.exp(total / count)


def of_articles(exact, text, start=(END,)):
    """Return the loss of all articles, each in windows as lm-eval rolls them."""
    total = 0.0
    for article in evaluation_data.pages(text):
        tokens, done = TOKENIZER.encode(evaluation_data.detokenized(article)), 0
        if not start:
            start, tokens = tokens[:1], tokens[1:]
        while done < len(tokens):
            n = min(N_CTX, len(tokens) - done)
            context = [*start, *tokens][max(0, done + n - N_CTX) : done + n]
            total -= exact([*context, tokens[done + n - 1]])[0][-n:].sum()
            done += n
    return total


def by_wikitext(exact, text=WIKITEXT, stride=None, start=(END,)):
    loss, articles = of_articles(exact, text, start), evaluation_data.pages(text)
    n_lines = sum(len(article.removesuffix("\n").split("\n")) for article in articles)
    n_words = sum(len(article.split()) for article in articles)
    n_bytes = sum(len(article.encode()) for article in articles)
    return {
        "raw_token_perplexity": of_raw_text(exact, text, stride or N_CTX),
        "word_perplexity": math.exp(loss / (n_words + 2 * len(articles))),
        "word_token_perplexity": math.exp(loss / (n_words + n_lines)),
        "bits_per_byte": loss / math.log(2) / n_bytes,
    }


def by_text(exact, texts, stride):
    """Return loss, perplexity and bits per byte of texts after <|endoftext|>, in windows."""
    losses = []
    for text in texts:
        tokens = [END, *TOKENIZER.encode(text)]
        for i in range(1, len(tokens)):  # the first window that holds the token as a target
            start = next(s for s in range(0, i, stride) if i <= s + N_CTX)
            losses.append(-exact(tokens[start : start + N_CTX + 1])[0][i - start - 1])
    n_bytes = sum(len(text.encode()) for text in texts)
    return {"loss": np.mean(losses), "perplexity": math.exp(np.mean(losses)),
            "bits_per_byte": sum(losses) / math.log(2) / n_bytes}


def test_lambada_equals_its_definition(of_lambada):
    """One passage is longer than n_ctx, and last words have one token or several."""
    same(values(of_lambada), by_lambada(EXACT))
    assert of_lambada.n_resampled == len(PASSAGES) and of_lambada.n_tokens > len(PASSAGES)


def test_last_token_and_last_word_are_told_apart(tmp_path):
    """The last token is the most probable one after the word's true beginning, which is not."""
    passages = []
    for n, first in itertools.product(range(3, 40, 2), "bdfgijklmpqsuvwxz"):
        tokens = TOKENIZER.encode(f"{TEXT[:n].rstrip()} {first}")
        logits = gpt2_np.forward(MODEL.params, MODEL.config, tokens[-N_CTX:], last_only=True)
        word = [*tokens, int(logits[-1].argmax())]
        passage = TOKENIZER.decode(word)
        if passage[-1].isalpha() and TOKENIZER.encode(passage) == word:
            passages.append(passage)
    found = evaluate("lambada", MODEL, data=lines(tmp_path / "x.jsonl", passages))
    same(values(found), by_lambada(EXACT, passages))
    assert found["last_token_accuracy"].value > 0.9 and found["last_word_accuracy"].value < 0.5


@pytest.mark.parametrize("stride", [None, 16, 8, 5])
def test_wikitext_equals_its_definitions(wikitext, stride):
    found = evaluate("wikitext2", MODEL, data=wikitext, stride=stride)
    same(values(found), by_wikitext(EXACT, stride=stride))
    assert found.n_resampled == 2


@pytest.mark.parametrize("stride", [None, 5])
def test_texts_equal_their_definition(tmp_path, stride):
    file = lines(tmp_path / "texts.jsonl", PASSAGES)
    found = evaluate(file, MODEL, stride=stride)
    same(values(found), by_text(EXACT, PASSAGES, stride or 8))
    assert found.n_tokens == sum(len(TOKENIZER.encode(text)) for text in PASSAGES)


def test_an_ablated_model_gives_the_figures_of_its_edited_forward_pass(passages, wikitext):
    params = map_params(np.copy, MODEL.params)
    params["blocks"][1]["attn"]["c_proj"]["w"][8:] = 0
    for array in params["blocks"][0]["mlp"]["c_proj"].values():
        array[:] = 0
    exact = Exact(Model(MODEL.config, params))
    found = evaluate("lambada", MODEL, data=passages, ablate="L1H1,MLP0")
    same(values(found), by_lambada(exact))
    same(values(evaluate("wikitext2", MODEL, data=wikitext, ablate=[(1, 1), "MLP0"])),
         by_wikitext(exact))
    assert found["last_word_perplexity"].value != by_lambada(EXACT)["last_word_perplexity"]


def test_a_vocabulary_without_end_of_text_leaves_first_tokens_unscored(wikitext):
    tokenizer = bpe.train(TEXT * 4, 275)
    tokenizer.end_of_text = None
    found = evaluate("wikitext2", Model(MODEL.config, MODEL.params, tokenizer), data=wikitext)
    expected = of_articles(EXACT, evaluation_data.pages(WIKITEXT)[0], ())
    expected += of_articles(EXACT, evaluation_data.pages(WIKITEXT)[1], ())
    n_bytes = sum(len(article.encode()) for article in evaluation_data.pages(WIKITEXT))
    assert found["bits_per_byte"].value == pytest.approx(expected / math.log(2) / n_bytes, 1e-6)
    assert "<|endoftext|>" not in found.protocol


@pytest.mark.parametrize("device", ["strict", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_model_on_a_gpu_gives_the_same_figures(passages, wikitext, device):
    xp = strict_arrays if device == "strict" else backend.pick("cuda")
    model = Model(MODEL.config, map_params(xp.asarray, MODEL.params), TOKENIZER)
    for name, data in ("lambada", passages), ("wikitext2", wikitext):
        found, expected = (values(evaluate(name, one, data=data, ablate="L1H1,MLP0,L0N3"))
                           for one in (model, MODEL))
        assert found == pytest.approx(expected, rel=1e-5)


# --- intervals -------------------------------------------------------------------------


def test_intervals_are_those_of_a_bootstrap_over_passages(passages, monkeypatch):
    monkeypatch.undo()
    found = evaluate("lambada", MODEL, data=passages)
    one_by_one = [by_lambada(EXACT, [passage])["last_word_perplexity"] for passage in PASSAGES]
    expected = circuits.bootstrap(lambda rows: np.exp(np.log(one_by_one)[rows].mean(axis=-1)),
                                  len(PASSAGES))
    np.testing.assert_allclose(found["last_word_perplexity"], expected, rtol=1e-5)
    assert "95%, bootstrap over the 6 passages" in str(found)


def test_one_long_text_is_resampled_by_its_parts(tmp_path):
    text = tmp_path / "one.txt"
    text.write_text("\n".join(PASSAGES), encoding="utf-8")
    found = evaluate(str(text), MODEL, documents="files")
    same(values(found), by_text(EXACT, ["\n".join(PASSAGES)], 8))
    n_parts = -(-found.n_tokens // 8)
    assert found.n_resampled == n_parts > 2
    assert f"over the {n_parts} parts of 8 tokens of the one text" in str(found).replace("\n", " ")
    low, high = found["loss"].low, found["loss"].high
    assert low < found["loss"].value < high
    alone = evaluate(lines(tmp_path / "short.jsonl", ["a b"]), MODEL)
    assert math.isnan(alone["loss"].low) and "needs more than one" in str(alone)
    assert alone.as_dict()["measures"]["loss"]["low"] is None


# --- words around the figures ----------------------------------------------------------


@pytest.fixture
def small_124m(monkeypatch):
    """The sizes of the test's model are those of 124M."""
    monkeypatch.setitem(SIZES, "124M", MODEL.config)


def test_published_figures_stand_beside_those_of_the_same_size(small_124m, passages):
    found = evaluate("lambada", MODEL, data=passages)
    text = str(found)
    assert text.startswith(f"lambada: 124M, {found.n_tokens} tokens scored of {passages}\n")
    assert "published for 124M: 0.3256 ± 0.0065 (lm-evaluation-harness issue 2159)" in text
    assert "0.4599 (Radford et al. 2019, table 3); 0.4667 (transformers issue 13761)" in text
    assert "0.5548" not in text and "stop-word filter" in text
    assert "Not as in the published runs: other data." in text


def test_figures_of_an_edited_model_are_not_passed_off_as_published(small_124m, passages):
    found = evaluate("lambada", MODEL, data=passages, ablate=["0.1", "L0N3"], limit=4)
    text = str(found)
    assert text.startswith("lambada: 124M without L0H1, L0N3, ")
    assert text.count("published for unedited 124M: ") == 4 and "published for 124M" not in text
    assert found.differs == ("L0H1, L0N3 set to zero", "other data", "the first 4 of 6 passages")
    assert "Not as in the published runs: L0H1, L0N3 set to zero; other data; the first" in text


def test_a_model_of_no_official_size_has_no_published_figures(of_lambada, of_wikitext):
    for found in of_lambada, of_wikitext:
        assert "published for" not in str(found) and "Radford" not in str(found)
        assert not found.notes and not any(measure.published for measure in found.measures)


def test_limits_read_the_first_ones_only(passages, wikitext):
    found = evaluate("lambada", MODEL, data=passages, limit=3)
    same(values(found), by_lambada(EXACT, PASSAGES[:3]))
    first = evaluation_data.pages(WIKITEXT)[0]
    found = evaluate("wikitext2", MODEL, data=wikitext, limit=1)
    assert found["word_perplexity"].value == pytest.approx(
        math.exp(of_articles(EXACT, first) / evaluation_data.n_words(first)), rel=1e-6)
    assert found.differs[1:] == ("the first 1 of 2 articles",)
    assert "95%" in str(found) and "needs more than one unit" not in str(found)  # of windows
    found = evaluate(passages, MODEL, limit=2)
    same(values(found), by_text(EXACT, PASSAGES[:2], 8))
    assert found.notes == ("Read: the first 2 texts.",)
    assert evaluate("lambada", MODEL, data=passages, limit=6).differs == ("other data",)


def test_another_type_than_float32_is_told(passages):
    params = map_params(lambda array: array.astype("float64"), MODEL.params)
    found = evaluate("lambada", dataclasses.replace(MODEL, params=params), data=passages, limit=1)
    assert found.differs[:2] == ("other data", "computed in float64")


def test_texts_that_are_skipped_are_counted(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "the café"}\n{"text": ""}\n{"text": 3}\n{"text": ""}\nno\n')
    found = evaluate(str(file), MODEL)
    assert found.notes == ("Skipped: 2 empty, 1 not JSON, 1 not a text.",)
    assert found.n_resampled == 1


def test_the_result_as_a_dict_is_json(small_124m, passages):
    found = evaluate("lambada", MODEL, data=passages)
    read = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert read["measures"]["last_word_perplexity"] == {
        **found["last_word_perplexity"]._asdict(), "published": [
            {"size": "124M", "value": 40.0554, "stderr": 1.4787,
             "source": "lm-evaluation-harness issue 2159"}]}
    assert read["model"] == "124M" and read["ablated"] is None


def test_every_published_figure_belongs_to_a_measure(of_lambada, of_wikitext):
    names = {measure.name for found in (of_lambada, of_wikitext)
             for measure in found.measures}
    assert FIGURES.keys() <= names
    sizes = [figure.size for figures in FIGURES.values() for figure in figures]
    assert set(sizes) == set(SIZES)


# --- wrong use -------------------------------------------------------------------------


@pytest.mark.parametrize("options, words", [
    ({"stride": 3}, "stride does not go with lambada: leave it out"),
    ({"limit": 0}, "limit is 0: it must be an integer from 1 up"),
    ({"ablate": "L9H0"}, "layer 9 does not exist: there are 2"),
    ({"ablate": "MLP0,café"}, r"'caf\\xe9' is not a head or MLP"),
    ({"model": random_model()}, "has no vocabulary files"),
    ({"name": "wikitext2", "field": "page"}, "field does not go with wikitext2: leave it out"),
    ({"input_format": "jsonl"}, "input_format does not go with lambada: leave it out"),
    ({"name": "wikitext2", "stride": 17}, "stride is 17: it must be at most 16"),
    ({"name": "wikitext3"}, "data goes with lambada and wikitext2"),
    ({"name": "wikitext3", "data": None}, "'wikitext3' is neither an evaluation"),
])  # fmt: skip
def test_wrong_options_are_one_sentence(passages, options, words):
    arguments = {"name": "lambada", "model": MODEL, "data": passages, **options}
    with pytest.raises(Error, match=words):
        evaluate(**arguments)


def test_a_file_without_a_text_to_score(tmp_path):
    file = tmp_path / "texts.jsonl"
    for content, words in (("", "it is empty"), ('{"text": ""}\n{"a": 1}', "1 empty, 1 no such")):
        file.write_text(content)
        with pytest.raises(Error, match=f"has no text to score: {words}"):
            evaluate(str(file), MODEL)


def test_a_measure_that_was_not_made_is_named(of_lambada):
    with pytest.raises(Error, match="lambada has no measure 'loss': choose one of last_token_ac"):
        of_lambada["loss"]


# --- the command -----------------------------------------------------------------------


@pytest.fixture
def command(capsys):
    def run(*arguments):
        status = main(["evaluate", *arguments, "-m", "shakespeare"])
        return (status, *capsys.readouterr())

    return run


def test_the_command_prints_what_the_function_returns(command, passages):
    model = gpt2_np.load("shakespeare")
    status, out, err = command("lambada", "--data", passages, "--ablate", "L1H2", "--quiet")
    expected = str(evaluate("lambada", model, data=passages, ablate="L1H2"))
    assert (status, out, err) == (0, expected.replace("a model", "shakespeare") + "\n", "")
    status, out, err = command(passages, "--json")
    assert json.loads(out)["measures"] == json.loads(json.dumps(
        evaluate(passages, model).as_dict()["measures"]))
    assert err == ""  # which is no terminal


def test_a_terminal_shows_a_bar_unless_it_is_told_not_to(command, passages, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)
    assert "token/s" in command("lambada", "--data", passages)[2]
    assert command("lambada", "--data", passages, "--quiet")[2] == ""


def test_wrong_usage_ends_with_status_2_and_bad_input_with_1(command, passages):
    assert command("lambada", "--limit", "0")[0] == 2
    status, out, err = command("nothing.jsonl")
    assert (status, out) == (1, "") and err.endswith("check the spelling\n")
    assert err.count("\n") == 1


def test_the_data_are_asked_for_before_the_model(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_NP_OFFLINE", "1")
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path))
    assert main(["evaluate", "wikitext2", "-m", "1558M"]) == 1
    assert "wikitext-2-raw-v1.zip is not in the cache" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_an_error(passages):
    params = {**MODEL.params, "wpe": np.full_like(MODEL.params["wpe"], np.nan)}
    with pytest.raises(Error, match="not all finite"):
        evaluate("lambada", Model(MODEL.config, params, TOKENIZER), data=passages)

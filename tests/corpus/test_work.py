"""A document gets what the library gives it alone, or the reason why it was skipped."""
import math
import pickle

import numpy as np
import pytest
import regex
import strict_arrays
from random_model import map_params
from small_model import TEXT, save_small_model

import gpt2_np
from gpt2_np import Model, backend, bpe, checkpoint, corpus
from gpt2_np.corpus import fingerprints, work
from gpt2_np.corpus.formats import Document
from gpt2_np.corpus.shard_files import json_bytes
from gpt2_np.cuda import products
from gpt2_np.inference import generation

# The fourth and the fifth are longer than the context.
TEXTS = ["The café", "", "T", TEXT, "🦙 naïve " * 30, TEXT[5:90], "remember", "\0\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return gpt2_np.load(folder, "cpu")


def documents(texts=TEXTS):
    return [Document(f"id {n}", text) for n, text in enumerate(texts)]


def with_tokenizer(model, tokenizer):
    return Model(model.config, model.params, tokenizer)


# --- scores ----------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [None, 1, 64])
def test_a_document_has_the_score_that_the_library_gives_it_alone(model, stride):
    records = corpus.Scorer(model, stride=stride, per_token=True).records(documents())
    assert [record["id"] for record in records] == [f"id {n}" for n in range(len(TEXTS))]
    for text, record in zip(TEXTS, records, strict=True):
        if not text:
            assert record == {"id": record["id"], "skipped": "empty"}
            continue
        tokens = model.tokenizer.encode(text)
        log_p = gpt2_np.score(model, tokens, stride, bos=True)
        np.testing.assert_array_equal(record["tokens"], tokens)
        np.testing.assert_allclose(record["log_probabilities"], log_p, rtol=1e-5, atol=1e-5)
        assert record["log_probabilities"].dtype == np.float32
        assert (record["n_tokens"], record["n_bytes"]) == (len(tokens), len(text.encode()))
        total = record["log_probabilities"].astype(float).sum()
        assert record["log_probability"] == pytest.approx(total, rel=1e-12)
        assert record["nats_per_token"] == pytest.approx(-total / len(tokens), rel=1e-12)
        assert record["bits_per_byte"] == pytest.approx(
            -total / math.log(2) / len(text.encode()), rel=1e-12)


def test_scores_equal_a_float64_calculation_by_definition(model):
    params = map_params(lambda x: x.astype(float), model.params)
    for record in corpus.Scorer(model).records(documents(["The café", "T", TEXT[5:90]])):
        text = {"id 0": "The café", "id 1": "T", "id 2": TEXT[5:90]}[record["id"]]
        tokens = [model.tokenizer.end_of_text, *model.tokenizer.encode(text)]
        logits = gpt2_np.forward(params, model.config, tokens[:-1])
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        log_p = np.log(p[np.arange(len(tokens) - 1), tokens[1:]])
        assert logits.dtype == float
        assert record["log_probability"] == pytest.approx(log_p.sum(), rel=1e-5)


@pytest.mark.parametrize("bos", [False, True])
def test_without_a_start_the_first_token_and_its_bytes_do_not_count(model, bos):
    lacks = with_tokenizer(model, bpe.train(TEXT, 300))
    lacks.tokenizer.end_of_text = None
    scorer = corpus.Scorer(lacks if bos else model, bos=bos, per_token=True)
    long, one = scorer.records(documents(["é café", "T"]))
    tokens = model.tokenizer.encode("é café")
    first = len(model.tokenizer.token_bytes(tokens[0]))
    np.testing.assert_allclose(long["log_probabilities"], gpt2_np.score(model, tokens), rtol=1e-5)
    assert (long["n_tokens"], long["n_bytes"]) == (len(tokens) - 1, len("é café".encode()) - first)
    assert (one["n_tokens"], one["n_bytes"]) == (0, 0)
    assert one["log_probability"] is one["nats_per_token"] is one["bits_per_byte"] is None
    assert one["tokens"].size == one["log_probabilities"].size == 0


@pytest.mark.parametrize("bos, start", [(True, [299]), (False, [7, 8])])
def test_the_ids_that_a_tokenizer_puts_before_a_text_are_not_scored(model, bos, start):
    plain = model.tokenizer
    own = bpe.Tokenizer.from_parts(plain.merges_text().splitlines()[1:], None, plain.added_tokens,
                                   start_ids=(7, 8))
    [record] = corpus.Scorer(with_tokenizer(model, own), bos=bos, per_token=True).records(
        documents(["The café"]))
    tokens = plain.encode("The café")
    assert plain.end_of_text == 299 and own.encode("The café") == [7, 8, *tokens]
    log_p = gpt2_np.score(model, [*start, *tokens])[len(start) - 1 :]
    np.testing.assert_array_equal(record["tokens"], tokens)
    np.testing.assert_allclose(record["log_probabilities"], log_p, rtol=1e-5)


@pytest.mark.parametrize("kind", [corpus.Scorer, corpus.Generator])
def test_documents_have_the_same_records_to_the_last_bit_whatever_came_before(model, kind):
    fresh, used = kind(model, per_token=True), kind(model, per_token=True)
    used.records(documents([TEXT, "other documents", "é" * 40]))
    assert pickle.dumps(used.records(documents())) == pickle.dumps(fresh.records(documents()))


def test_a_space_that_the_tokenizer_adds_is_no_byte_of_the_text(model):
    plain = model.tokenizer
    own = bpe.Tokenizer.from_parts(plain.merges_text().splitlines()[1:], None, plain.added_tokens,
                                   add_prefix_space=True)
    assert own.encode("The café") == plain.encode(" The café")
    for bos, n_bytes in (True, 9), (False, 9 + 1 - len(plain.token_bytes(own.encode("The")[0]))):
        [record] = corpus.Scorer(with_tokenizer(model, own), bos=bos).records(
            documents(["The café"]))
        assert record["n_bytes"] == n_bytes
        assert record["bits_per_byte"] == pytest.approx(
            -record["log_probability"] / math.log(2) / n_bytes)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind, options", [
    (corpus.Scorer, {"per_token": True}), (corpus.Scorer, {"bos": False}),
    (corpus.Generator, {"n_tokens": 4}), (corpus.Generator, {"n_tokens": 4, "temperature": 1.0})])
def test_a_result_that_is_not_finite_costs_its_document_alone(model, kind, options):
    wpe = model.params["wpe"].copy()
    wpe[20] = np.nan
    broken = Model(model.config, {**model.params, "wpe": wpe}, model.tokenizer)
    texts = ["The café", "\0" * 28, "remember", "", "\0" * 32]  # a token each
    found, whole = (kind(one, **options).records(documents(texts)) for one in (broken, model))
    for number in 1, 4:
        assert found[number] == {"id": f"id {number}", "skipped": "not finite"}
        assert "skipped" not in whole[number]
        found[number] = whole[number]
    assert pickle.dumps(found) == pickle.dumps(whole)


def test_another_error_while_texts_are_continued_costs_more_than_a_document(model, monkeypatch):
    def fail(*_):
        raise gpt2_np.Error("a bug")

    monkeypatch.setattr(generation, "transformer", fail)
    with pytest.raises(gpt2_np.Error, match="a bug"):
        corpus.Generator(model).records(documents(["The café"]))


def test_a_document_with_a_reason_or_without_a_text_is_skipped(model):
    given = [Document("a", None, "not JSON"), Document(2, None), Document("c", math.nan),
             Document("d", 5), Document("e", b"bytes"), Document("f", ""), Document("g", "\ud800"),
             Document("h", "x", "over the limit")]
    for doer in corpus.Scorer(model), corpus.Generator(model):
        assert [(r["id"], r["skipped"]) for r in doer.records(given)] == [
            ("a", "not JSON"), (2, "not a text"), ("c", "not a text"), ("d", "not a text"),
            ("e", "not a text"), ("f", "empty"), ("g", "not UTF-8"), ("h", "over the limit")]


def test_tf32_holds_for_the_work_alone(model, monkeypatch):
    seen, score_windows = [], work.score_windows

    def spy(*arguments):
        seen.append(products._tf32.get())
        return score_windows(*arguments)

    monkeypatch.setattr(work, "score_windows", spy)
    for tf32 in True, False:
        corpus.Scorer(model, tf32=tf32).records(documents(["a"]))
        assert products._tf32.get() is False
    assert seen == [True, False]


# --- continuations ---------------------------------------------------------------------

OPTIONS = [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.2},
           {"temperature": 1.0, "top_p": 0.8, "min_p": 0.01, "stop": ["e", 3]}]


@pytest.mark.parametrize("options, batch", [
    *((options, 3) for options in OPTIONS), (OPTIONS[1], 1), (OPTIONS[1], 32)])
def test_a_document_has_the_tokens_that_the_library_gives_it_alone(model, options, batch):
    prompts = ["The café", "T", "remember the street", "at the corner", "é", "The ", "T"]
    generator = corpus.Generator(model, n_tokens=12, seed=5, batch=batch, per_token=True, **options)
    reasons = set()
    for document, record in zip(documents(prompts), generator.records(documents(prompts)),
                                strict=True):
        prompt = model.tokenizer.encode(document.text)
        alone = gpt2_np.generate_batch(
            model, [prompt], 12, seed=corpus.work.document_seed(5, document.id), draft=False,
            **options)
        np.testing.assert_array_equal(record["tokens"], alone[0])
        text = model.tokenizer.decode(alone[0])
        if "stop" in options:  # a text ends before it, within a token
            text = gpt2_np.complete(model, document.text, 12, draft=False, **options,
                                    seed=corpus.work.document_seed(5, document.id))
        assert record == {"id": document.id, "n_prompt_tokens": len(prompt),
                          "n_tokens": len(alone[0]), "text": text, "reason": alone.reasons[0],
                          "tokens": record["tokens"]}
        reasons.add(record["reason"])
    assert ("stop" in reasons) == ("stop" in options)


def test_no_draft_is_made_since_its_length_depends_on_time(model, monkeypatch):
    monkeypatch.setattr(generation, "DraftingDecoder", lambda *_: pytest.fail("a draft"))
    text = "remember " * 5
    [record] = corpus.Generator(model, n_tokens=9, batch=1).records(documents([text]))
    assert record["n_tokens"] == 9
    with pytest.raises(pytest.fail.Exception):  # the library itself would make one
        gpt2_np.complete(model, text, 9)


def test_prompts_of_like_lengths_are_continued_together(model, monkeypatch):
    lengths = []

    class Spy(work.Generation):
        def __init__(self, model, prompts, *rest, **options):
            lengths.append([len(prompt) for prompt in prompts])
            super().__init__(model, prompts, *rest, **options)

    monkeypatch.setattr(work, "Generation", Spy)
    texts = ["\0" * n for n in (9, 2, 5, 1, 7)]  # a token each
    corpus.Generator(model, n_tokens=1, batch=2).records(documents(texts))
    assert lengths == [[1, 2], [5, 7], [9]]


def test_a_draw_depends_on_the_seed_and_the_id_and_on_nothing_else(model):
    def drawn(ids, seed=0, **options):
        generator = corpus.Generator(model, temperature=1.0, n_tokens=20, seed=seed, **options)
        return [r["text"] for r in generator.records([Document(id, "The ") for id in ids])]

    one, two, number = drawn(["1", "2", 1])
    assert len({one, two, number}) == 3
    assert drawn([1, "2", "1"], batch=2) == [number, two, one]
    assert drawn(["2"]) == [two]
    assert drawn(["2"], seed=1) != [two]


def test_the_seed_of_a_document_is_its_hash_beside_the_seed_of_the_run():
    def state(*key):
        return tuple(work.document_seed(*key).generate_state(4))

    assert len({state(0, "a"), state(1, "a"), state(2**40, "a"), state(0, "b"), state(0, 7),
                state(0, "7"), state(0, "\ud800")}) == 7
    assert state(0, np.int64(7)) != state(0, 7)  # so columns are made plain first


def test_bos_stands_before_a_prompt_and_counts(model):
    [record] = corpus.Generator(model, bos=True, n_tokens=8).records(documents(["The"]))
    tokens = model.tokenizer.encode("The")
    assert record["n_prompt_tokens"] == len(tokens) + 1
    assert record["text"] == gpt2_np.complete(model, "The", 8, bos=True, draft=False)


def test_a_prompt_that_does_not_fit_is_skipped_and_one_that_just_fits_is_not(model):
    n_ctx = model.config.n_ctx
    text = "\0" * n_ctx  # a token each
    assert len(model.tokenizer.encode(text)) == n_ctx
    fits, longer, short = corpus.Generator(model, n_tokens=9).records(
        documents([text, text + "\0", "The"]))
    assert (fits["n_tokens"], fits["reason"]) == (1, "context")
    assert longer == {"id": "id 1", "skipped": "longer than the context"}
    assert short["n_tokens"] == 9


@pytest.mark.parametrize("kind, options, message", [
    (corpus.Scorer, {"stride": 0}, "stride is 0"),
    (corpus.Scorer, {"stride": 2.5}, "stride is 2.5"),
    (corpus.Scorer, {"dtype": "int8"}, "dtype is 'int8'"),
    (corpus.Generator, {"n_tokens": 0}, "n_tokens is 0"),
    (corpus.Generator, {"batch": True}, "batch is True"),
    (corpus.Generator, {"seed": -1}, "seed is -1"),
    (corpus.Generator, {"seed": None}, "seed is None"),
    (corpus.Generator, {"temperature": -1}, "temperature is -1"),
    (corpus.Generator, {"top_k": 0}, "top_k is 0"),
    (corpus.Generator, {"stop": [""]}, "stop holds ''"),
])
def test_a_bad_option_is_refused_before_a_model_is_loaded(kind, options, message):
    with pytest.raises(gpt2_np.Error, match=message):
        kind("no such model", **options)


def test_preparing_refuses_what_does_not_fit_the_model(model):
    lacks = with_tokenizer(model, bpe.train(TEXT, 300))
    lacks.tokenizer.end_of_text = None
    for made, message in (
        (corpus.Scorer(model, stride=65), "stride is 65: it must be at most 64"),
        (corpus.Generator(lacks, bos=True), "needs a vocabulary that has"),
        (corpus.Scorer(with_tokenizer(model, None)), "has no tokenizer"),
    ):
        with pytest.raises(gpt2_np.Error, match=message):
            made.prepare()


def test_the_driver_refuses_a_stride_longer_than_the_context(folder):
    with pytest.raises(gpt2_np.Error, match="stride is 65: it must be at most 64"):
        corpus.Scorer(folder, device="cpu", stride=65).fingerprint()


def test_the_driver_refuses_a_type_that_no_worker_could_load(folder):
    with pytest.raises(gpt2_np.Error, match="float16"):
        corpus.Scorer(folder, device="cpu", dtype="float16").fingerprint()


@pytest.fixture(params=["strict", pytest.param("cuda", marks=pytest.mark.gpu)])
def on_device(request, model):
    xp = backend.pick("cuda") if request.param == "cuda" else strict_arrays
    params = map_params(lambda array: backend.to_device(array, xp), model.params)
    return Model(model.config, params, model.tokenizer)


def test_a_device_gives_the_records_of_the_host(model, on_device):
    for kind in corpus.Scorer, corpus.Generator:
        for found, expected in zip(kind(on_device).records(documents()),
                                   kind(model).records(documents()), strict=True):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float)
                                       else value)
        found, expected = kind(on_device).fingerprint(), kind(model).fingerprint()
        assert (found["device"], expected["device"]) == ("cuda", "cpu")
        assert {**found, "device": "cpu"} == expected


# --- pickles and fingerprints ----------------------------------------------------------


def test_a_pickle_has_no_weights_of_a_model_that_was_given_by_name(folder, model):
    for kind in corpus.Scorer, corpus.Generator:
        named = kind(str(folder))
        expected = named.records(documents())  # the model is loaded now
        pickled = pickle.dumps(named)
        assert len(pickled) < 2000
        assert pickle.loads(pickled).records(documents()) == expected
        assert named.loaded is not None
        assert pickle.loads(pickle.dumps(kind(model))).records(documents()) == expected


def test_a_fingerprint_of_a_name_loads_nothing(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("loaded"))
    about = corpus.Scorer(folder, device="cpu").fingerprint()
    assert (about["device"], about["dtype"], about["stride"]) == ("cpu", "float32", 32)
    assert (about["gpt2_np"], about["numpy"]) == (gpt2_np.__version__, np.__version__)
    assert about["regex"] == regex.__version__


@pytest.mark.parametrize("kind, changes", [
    (corpus.Scorer, [{"stride": 7}, {"bos": False}, {"per_token": True}, {"dtype": "float64"},
                     {"tf32": True}]),
    (corpus.Generator, [{"n_tokens": 7}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.5},
                        {"min_p": 0.5}, {"repetition_penalty": 2.0}, {"stop": "x"}, {"seed": 7},
                        {"batch": 7}, {"bos": True}, {"per_token": True}]),
])
def test_every_option_changes_the_fingerprint(folder, kind, changes):
    first = kind(folder, device="cpu").fingerprint()
    for change in changes:
        other = kind(folder, device="cpu", **change).fingerprint()
        [name] = change
        assert {key for key in first if first[key] != other[key]} == {name}
    assert kind(folder, device="cpu", field="other").fingerprint() == first


def test_one_changed_number_of_an_edited_model_changes_the_fingerprint(model):
    params = map_params(np.copy, model.params)
    same = corpus.Scorer(Model(model.config, params, model.tokenizer)).fingerprint()
    assert same == corpus.Scorer(model).fingerprint()
    params["blocks"][1]["mlp"]["c_fc"]["w"][3, 5] += 1e-6
    other = corpus.Scorer(Model(model.config, params, model.tokenizer)).fingerprint()
    assert other["model"]["weights"] != same["model"]["weights"]
    assert {**other, "model": None} == {**same, "model": None}


def test_other_files_change_the_fingerprint(folder, tmp_path):
    first = corpus.Scorer(folder).fingerprint()["model"]
    other = corpus.Scorer(save_small_model(tmp_path, seed=1)).fingerprint()["model"]
    assert {key for key in first if first[key] != other[key]} == {"sample of weights"}
    bpe.train(TEXT[1:], 300).save(tmp_path, names=("merges.txt", "vocab.json"))
    changed = corpus.Scorer(tmp_path).fingerprint()["model"]
    assert {key for key in other if other[key] != changed[key]} == {"vocabulary"}
    (tmp_path / "README.md").write_text("no part of the model")
    assert corpus.Scorer(tmp_path).fingerprint()["model"] == changed


def test_what_a_tokenizer_adds_to_a_text_changes_the_fingerprint(model):
    plain = model.tokenizer
    own = [bpe.Tokenizer.from_parts(plain.merges_text().splitlines()[1:], None, plain.added_tokens,
                                    **options)
           for options in ({}, {"start_ids": (7,)}, {"add_prefix_space": True})]
    found = [corpus.Scorer(with_tokenizer(model, one)).fingerprint()["model"] for one in own]
    assert len({about["vocabulary"] for about in found}) == 3
    assert len({about["weights"] for about in found}) == 1


def test_a_file_that_appears_beside_an_official_size_does_not_change_its_fingerprint(
        tmp_path, monkeypatch):
    folder = save_small_model(tmp_path)
    monkeypatch.setattr(checkpoint, "official_size", lambda name: "124M")
    first = fingerprints.checkpoint_fingerprint(folder)
    bpe.train(TEXT, 300).save(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    assert fingerprints.checkpoint_fingerprint(folder) == first
    monkeypatch.undo()
    assert fingerprints.checkpoint_fingerprint(folder)["vocabulary"] != first["vocabulary"]


def test_numbers_of_numpy_are_options_as_those_of_python_are(folder):
    for kind, given in (
        (corpus.Scorer, {"stride": np.int64(7)}),
        (corpus.Generator, {"top_k": np.int64(7), "n_tokens": np.int32(3), "seed": np.uint8(4),
                            "batch": np.int64(2), "stop": [np.int64(9), "x"],
                            "top_p": np.float32(0.7)}),
    ):
        plain = {name: 0.7 if name == "top_p" else [9, "x"] if name == "stop" else int(value)
                 for name, value in given.items()}
        found, expected = (json_bytes(kind(folder, device="cpu", **options).fingerprint())
                           for options in (given, plain))
        assert found == expected


@pytest.mark.parametrize("n_bytes", [0, 1, 65_536, 65_537, 10**9 + 3])
def test_the_sample_of_a_tensor_has_both_its_ends_and_at_most_64_kib(n_bytes):
    pieces = list(fingerprints.pieces(n_bytes))
    assert pieces[0][0] == 0 and pieces[-1][1] == n_bytes
    assert all(start <= end for start, end in pieces)
    assert pieces == sorted(pieces)
    assert sum(end - start for start, end in pieces) == min(n_bytes, 65_536)


# --- columns ---------------------------------------------------------------------------


def test_a_call_returns_the_columns_of_the_batch_and_new_ones(model):
    batch = {"text": np.array(["The café", "T", ""], object), "n": [1, 2, 3]}
    found = corpus.Scorer(model, per_token=True)(batch)
    records = corpus.Scorer(model, per_token=True).records(documents(["The café", "T", ""]))
    assert list(found) == ["text", "n", "n_tokens", "n_bytes", "log_probability", "nats_per_token",
                           "bits_per_byte", "tokens", "log_probabilities", "skipped"]
    assert found["text"] is batch["text"] and found["n"] == [1, 2, 3]
    assert {len(column) for column in found.values()} == {3}
    assert found["skipped"] == ["", "", "empty"]
    for name in "n_tokens", "n_bytes", "log_probability", "nats_per_token", "bits_per_byte":
        np.testing.assert_array_equal(found[name][:2], [record[name] for record in records[:2]])
    assert found["n_tokens"][2] == 0 and np.isnan(found["log_probability"][2])
    np.testing.assert_array_equal(found["tokens"][0], records[0]["tokens"])
    assert found["tokens"][2].shape == (0,)


@pytest.mark.parametrize("kind", [corpus.Scorer, corpus.Generator])
def test_types_of_columns_do_not_depend_on_what_was_skipped(model, kind):
    def types(texts):
        found = kind(model, per_token=True)({"text": texts})
        return {name: column.dtype if isinstance(column, np.ndarray) else
                {getattr(value, "dtype", type(value)) for value in column}
                for name, column in found.items() if name != "text"}

    assert types(["The", "café"]) == types([None, ""]) == types(["The", 3])


def test_ids_of_a_call_are_those_of_the_engines(model):
    generator = corpus.Generator(model, n_tokens=9, temperature=1.0, id="key")
    prompts = ["The", "The", "The"]
    records = generator.records([Document(id, "The") for id in (1, "1", 2)])
    expected = [record["text"] for record in records]
    keys = [1, np.str_("1"), np.int64(2)]
    found = generator({"text": prompts, "key": np.array(keys, object)})
    assert found["continuation"] == expected and found["text"] == prompts
    assert generator({"text": ["The"], "key": np.array([2])})["continuation"] == expected[2:]


def test_without_ids_a_text_is_its_own_id(model):
    generator = corpus.Generator(model, n_tokens=9, temperature=1.0)
    first, second, other = generator({"text": ["The", "The", "T"]})["continuation"]
    assert first == second == generator.records([Document("The", "The")])[0]["text"] != other


@pytest.mark.parametrize("batch, sentence", [
    ("text", "the batch is 'text': give a mapping of columns, such as "),
    (["To be"], r"the batch is \['To be'\]: give a mapping"),
    (None, "the batch is None: give a mapping"),
    ({"text": "To be"}, "the column 'text' is 'To be': give a list or an array"),
    ({"text": 3}, "the column 'text' is 3: give a list"),
])
def test_a_batch_that_is_no_columns_is_one_sentence(model, batch, sentence):
    with pytest.raises(gpt2_np.Error, match=sentence):
        corpus.Scorer(model)(batch)


def test_a_missing_column_and_one_that_would_be_lost_are_refused(model):
    with pytest.raises(gpt2_np.Error, match=r"no column 'text' among \['prompt'\]: name it by fie"):
        corpus.Scorer(model)({"prompt": ["a"]})
    with pytest.raises(gpt2_np.Error, match=r"no column 'key' among .*: name it by id="):
        corpus.Generator(model, id="key")({"text": ["a"]})
    with pytest.raises(gpt2_np.Error, match="has a column 'n_tokens' already"):
        corpus.Scorer(model)({"text": ["a"], "n_tokens": [3]})
    found = corpus.Scorer(model, field="prompt")({"prompt": ["The"], "text": [None]})
    assert found["n_tokens"][0] > 0


def test_the_embedded_model_is_scored_by_its_name():
    [score] = corpus.Scorer("shakespeare")({"text": ["ROMEO. But soft"]})["nats_per_token"]
    model = gpt2_np.load("shakespeare", "cpu")
    log_p = gpt2_np.score(model, model.tokenizer.encode("ROMEO. But soft"), bos=True)
    assert score == pytest.approx(-log_p.mean(), rel=1e-5)

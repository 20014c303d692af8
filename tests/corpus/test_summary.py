"""The summary of the shards' files: sums, intervals, what was skipped and what is missing."""
import json
import math
import tracemalloc

import numpy as np
import pytest
from given_scores import Documents, Scores, job, shard

import gpt2_np
from gpt2_np import circuits, corpus
from gpt2_np.corpus import summary
from gpt2_np.corpus.formats import Document
from gpt2_np.corpus.shard_files import Job, write_shard
from gpt2_np.corpus.summary import write_summary


def random_scores(n, seed=0):
    """Return the scores of n documents: longer ones have a higher loss a token."""
    rng = np.random.default_rng(seed)
    n_tokens = rng.integers(1, 200, n)
    losses = n_tokens * (3 + n_tokens / 200 + rng.standard_normal(n))
    rows = zip(n_tokens.tolist(), (4 * n_tokens).tolist(), (-losses).tolist(), strict=True)
    return dict(enumerate(rows))


def run(folder, shards, scores, order=None):
    given = job(folder, shards, scores)
    for number in order if order is not None else range(len(shards)):
        write_shard(given, shard(number))
    return given


def test_figures_are_those_of_the_whole_corpus(tmp_path):
    scores = {"a": (3, 12, -6.0), "b": (0, 0, None), "c": (1, 4, -2.0)}
    found = write_summary(run(tmp_path, [["a", "no", "b"], ["c"]], scores), 2)
    assert found == json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert found["complete"] is True
    assert (found["n_documents"], found["n_scored"], found["n_tokens"], found["n_bytes"]) == (
        4, 2, 4, 16)
    assert found["log_probability"] == -8
    assert found["nats_per_token"]["value"] == 2
    assert found["perplexity"]["value"] == pytest.approx(math.exp(2))
    assert found["bits_per_byte"]["value"] == pytest.approx(8 / math.log(2) / 16)
    assert found["skipped"] == {
        "n_documents": 1, "reasons": {"empty": {"n_documents": 1, "first_20_ids": ["no"]}}}
    assert found["missing_shards"] == {"n_shards": 0, "of": 2, "first_20": []}


def test_the_interval_is_that_of_the_ordinary_bootstrap(tmp_path):
    scores = random_scores(300)
    ids = list(scores)
    found = write_summary(run(tmp_path, [ids[:120], ids[120:]], scores), 2)
    n_tokens, n_bytes, log_p = np.array(list(scores.values())).T
    for name, weights in ("nats_per_token", n_tokens), ("bits_per_byte", n_bytes * math.log(2)):
        def mean(rows, weights=weights):
            return -log_p[rows].sum(axis=-1) / weights[rows].sum(axis=-1)

        expected = circuits.bootstrap(mean, len(scores), resamples=4000)
        width = expected.high - expected.low
        assert found[name]["value"] == pytest.approx(expected.value, rel=1e-12)
        for end in "low", "high":
            assert abs(found[name][end] - getattr(expected, end)) < 0.12 * width
    for end in "value", "low", "high":
        expected = math.exp(found["nats_per_token"][end])
        assert found["perplexity"][end] == pytest.approx(expected, rel=1e-12)


def test_weights_of_documents_have_the_mean_and_variance_of_a_poisson_distribution():
    assert summary.POISSON.mean() == pytest.approx(1, abs=1e-4)
    assert summary.POISSON.var() == pytest.approx(1, abs=1e-3)
    assert (summary.POISSON == 0).mean() == pytest.approx(math.exp(-1), abs=1e-4)


def test_equal_shards_are_resampled_with_different_draws(tmp_path):
    scores = random_scores(40)
    once = write_summary(run(tmp_path, [list(scores)], scores), 1)["nats_per_token"]
    four = write_summary(run(tmp_path, [list(scores)] * 4, scores), 4)["nats_per_token"]
    assert four["value"] == pytest.approx(once["value"])
    ratio = (four["high"] - four["low"]) / (once["high"] - once["low"])
    assert 0.4 < ratio < 0.6  # the same draws would give 1


@pytest.mark.parametrize("scores", [{}, {"a": (3, 4, -1.0)},
                                    {"a": (3, 4, -1.0), "b": (0, 0, None)}])
def test_fewer_than_two_documents_have_no_interval(tmp_path, scores):
    found = write_summary(run(tmp_path, [["a", "b"]], scores), 1)
    assert found["nats_per_token"]["low"] is found["bits_per_byte"]["high"] is None
    assert (found["nats_per_token"]["value"] is None) == (not scores)


def test_two_documents_have_one_whatever_is_drawn(tmp_path):
    found = write_summary(run(tmp_path, [["a", "b"]], {"a": (1, 1, -1.0), "b": (1, 1, -3.0)}), 1)
    assert found["nats_per_token"] == {"value": 2, "low": 1, "high": 3}


def test_a_perplexity_that_overflows_is_null(tmp_path):
    found = write_summary(run(tmp_path, [["a"]], {"a": (1, 1, -1e4)}), 1)
    assert found["perplexity"]["value"] is None and found["nats_per_token"]["value"] == 1e4


def test_skipped_documents_are_counted_by_reason_and_the_first_are_listed(tmp_path):
    many = [Document(n, None, "over the limit") for n in range(50)]
    long = [Document("i" * 1000, None, "not JSON")]
    given = Job(Documents([*many, *long], many), Scores({}), str(tmp_path))
    for number in 0, 1:
        write_shard(given, shard(number))
    found = write_summary(given, 2)["skipped"]
    assert found == {"n_documents": 101, "reasons": {
        "not JSON": {"n_documents": 1, "first_20_ids": ["i" * 200]},
        "over the limit": {"n_documents": 100, "first_20_ids": list(range(20))}}}  # fmt: skip


def test_missing_shards_are_counted_and_the_first_are_listed_with_reasons(tmp_path):
    scores = random_scores(3)
    found = write_summary(run(tmp_path, [[0], [1], [2]], scores, [0, 2]), 30, {1: "no memory"})
    assert found["complete"] is False and found["n_documents"] == 2
    assert found["missing_shards"] == {"n_shards": 28, "of": 30, "first_20": [
        {"shard": 1, "reason": "no memory"},
        *({"shard": n, "reason": "not done"} for n in range(3, 22))]}  # fmt: skip


@pytest.mark.parametrize("content", ['{"id": 0, "n_tokens": 1}\n', '{"id": 0, "n_tokens": "1", '
                                     '"n_bytes": 1, "log_probability": -1}\n', "{}\n", '{"id": 0'])
def test_a_damaged_file_is_named_and_no_summary_is_written(tmp_path, content):
    given = run(tmp_path, [[0], [1]], random_scores(2))
    (tmp_path / "part-0000001.jsonl").write_text(content)
    with pytest.raises(gpt2_np.Error, match=r"part-0000001\.jsonl is damaged"):
        write_summary(given, 2)
    assert not (tmp_path / "summary.json").exists()


def test_continuations_are_counted_by_the_reason_why_they_ended(tmp_path):
    work = corpus.Generator("shakespeare", n_tokens=5, stop="e")
    texts = [Document(n, text) for n, text in enumerate(["ROMEO", "", "To be", "x" * 999])]
    given = Job(Documents(texts), work, str(tmp_path))
    write_shard(given, shard())
    records = [json.loads(line) for line in
               (tmp_path / "part-0000000.jsonl").read_bytes().splitlines()]
    found = write_summary(given, 1)
    assert found["n_generated"] == 2 and found["n_documents"] == 4
    assert found["n_tokens"] == sum(record.get("n_tokens", 0) for record in records)
    assert found["n_prompt_tokens"] == sum(r.get("n_prompt_tokens", 0) for r in records)
    assert sum(found["reasons"].values()) == 2 and set(found["reasons"]) <= {"length", "stop"}
    assert set(found["skipped"]["reasons"]) == {"empty", "longer than the context"}


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    def peak(n_shards):
        tracemalloc.start()
        try:
            write_summary(given, n_shards)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    scores = random_scores(1000)
    given = run(tmp_path, [list(scores)] * 8, scores)
    peak(1)
    assert peak(8) < 1.1 * peak(1)

"""Inputs and work that need no files and no model, for tests of what happens around them."""
import numpy as np

from gpt2_np.corpus.documents import Shard
from gpt2_np.corpus.formats import Document
from gpt2_np.corpus.shard_files import Job


class Documents:
    """Inputs of one list of documents for each shard."""

    def __init__(self, *shards):
        self.shards = shards

    def read(self, shard):
        yield from self.shards[shard.number]


class Scores:
    """Work whose scores are given: {id: (n_tokens, n_bytes, log_probability)}."""

    columns = {"n_tokens": "int64", "n_bytes": "int64", "log_probability": "float64"}  # noqa: RUF012

    def __init__(self, scores, per_token=False):
        self.scores, self.per_token = scores, per_token
        self.seen = []
        if per_token:
            self.columns = {**self.columns, "tokens": "list int32",
                            "log_probabilities": "list float32"}

    def records(self, documents):
        self.seen.append([document.id for document in documents])
        return [{"id": d.id, "skipped": d.skipped} if d.skipped else {"id": d.id, **self.score(d)}
                for d in documents]

    def score(self, document):
        values = self.scores[document.id]
        record = dict(zip(("n_tokens", "n_bytes", "log_probability"), values, strict=True))
        if self.per_token:
            record["tokens"] = np.arange(values[0], dtype=np.int32)
            record["log_probabilities"] = np.float32(0.1) - np.arange(values[0], dtype=np.float32)
        return record


def shard(number=0):
    return Shard(number, (), 100)


def job(folder, shards, scores, format="jsonl", per_token=False):
    """Return the job of scoring documents that have these scores, and no text."""
    documents = [[Document(id, "x") if id in scores else Document(id, None, "empty") for id in ids]
                 for ids in shards]
    return Job(Documents(*documents), Scores(scores, per_token), str(folder), format)

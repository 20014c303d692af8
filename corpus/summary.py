"""The summary of a run: the corpus's loss with its interval, and what was skipped and why.

The shards' files are read one at a time, so memory does not grow with the corpus.
"""
from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .shard_files import Job, naming_damage, read_records, shard_file, write_json
from .work import Record

RESAMPLES = 1000
MOST_LISTED, ID_CHARACTERS = 20, 200  # of ids and shards; the shards' files have all
DOCUMENTS_AT_ONCE = 128  # 1 MiB of weights

# How often a document counts in a resample, by 16 random bits: a Poisson distribution of mean 1.
POISSON = np.searchsorted(
    np.round(2**16 * np.cumsum([math.exp(-1) / math.factorial(n) for n in range(12)])),
    np.arange(2**16), side="right",
).astype(float)  # fmt: skip


def write_summary(
    job: Job, n_shards: int, failures: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Write summary.json from the files of shards 0 to n_shards - 1, and return its content.

    `failures` are the sentences of shards that failed, by number. Raises Error that names a file
    if it is damaged.
    """
    totals = ScoredTotals() if "log_probability" in job.work.columns else GeneratedTotals()
    skipped, missing, n_documents = Skipped(), [], 0
    for number in range(n_shards):
        path = shard_file(job.folder, number, job.format)
        if not os.path.exists(path):
            missing.append({"shard": number, "reason": (failures or {}).get(number, "not done")})
            continue
        totals.begin(number)
        with naming_damage(path):
            for records in read_records(path, job.format, totals.names):
                n_documents += len(records)
                totals.add(skipped.rest(records))
    found = {
        "complete": not missing, "n_documents": n_documents, **totals.figures(),
        "skipped": skipped.figures(),
        "missing_shards": {"n_shards": len(missing), "of": n_shards,
                           f"first_{MOST_LISTED}": missing[:MOST_LISTED]},
    }
    write_json(os.path.join(job.folder, "summary.json"), found)
    return found


class Skipped:
    """Counts documents that were skipped, and lists the first, by reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[Any]] = {}

    def rest(self, records: Sequence[Record]) -> list[Record]:
        """Take the records of skipped documents and return the others."""
        for record in records:
            if reason := record.get("skipped"):
                self.counts[reason] += 1
                first = self.first.setdefault(reason, [])
                if len(first) < MOST_LISTED:
                    id = record["id"]
                    first.append(id[:ID_CHARACTERS] if isinstance(id, str) else id)
        return [record for record in records if not record.get("skipped")]

    def figures(self) -> dict[str, Any]:
        return {"n_documents": self.counts.total(), "reasons": {
            reason: {"n_documents": count, f"first_{MOST_LISTED}_ids": self.first[reason]}
            for reason, count in sorted(self.counts.items())}}  # fmt: skip


def reasons_of(skipped: Mapping[str, Any]) -> str:
    """Return the reasons in the figures of skipped documents: "2 empty, 1 not JSON"."""
    return ", ".join(f"{about['n_documents']:,} {reason}"
                     for reason, about in skipped["reasons"].items())


class ScoredTotals:
    """Sums over the documents that were scored, and over resamples of them.

    The bootstrap needs one pass: in each resample, each document counts as often as a number says
    that is drawn for it from a Poisson distribution of mean 1. For many documents that is the same
    as drawing with replacement (Chamandy et al. 2012, "Estimating Uncertainty for Massive Data
    Streams"). The numbers depend on the shard and on the document's place in it.
    """

    names = ("n_tokens", "n_bytes", "log_probability")

    def __init__(self) -> None:
        self.n_scored = self.n_tokens = self.n_bytes = 0
        self.log_probability = 0.0
        self.resampled = np.zeros((RESAMPLES, len(self.names)))

    def begin(self, shard: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence([0, shard]))

    def add(self, records: Sequence[Record]) -> None:
        rows = [[record[name] for name in self.names] for record in records if record["n_tokens"]]
        if not rows:
            return
        n_tokens, n_bytes, log_p = zip(*rows, strict=True)
        self.n_scored += len(rows)
        self.n_tokens += sum(n_tokens)
        self.n_bytes += sum(n_bytes)
        self.log_probability = math.fsum([self.log_probability, *log_p])
        values = np.array(rows, float)
        for start in range(0, len(values), DOCUMENTS_AT_ONCE):
            some = values[start : start + DOCUMENTS_AT_ONCE]
            bits = self.bits.random_raw(len(some) * RESAMPLES // 4).view(np.uint16)
            self.resampled += POISSON[bits.reshape(len(some), RESAMPLES)].T @ some

    def figures(self) -> dict[str, Any]:
        n_tokens, n_bytes, log_p = self.resampled.T
        with np.errstate(divide="ignore", invalid="ignore"):  # resamples without a document
            loss = self.estimate(-self.log_probability, self.n_tokens, -log_p / n_tokens)
            bits = self.estimate(-self.log_probability / math.log(2), self.n_bytes,
                                 -log_p / math.log(2) / n_bytes)
        return {
            "n_scored": self.n_scored, "n_tokens": self.n_tokens, "n_bytes": self.n_bytes,
            "log_probability": self.log_probability, "nats_per_token": loss,
            "perplexity": {name: None if x is None or x > 700 else math.exp(x)
                           for name, x in loss.items()},
            "bits_per_byte": bits,
            "intervals": f"95%, Poisson bootstrap over documents, {RESAMPLES} resamples",
        }  # fmt: skip

    def estimate(self, total: float, count: int, resamples: np.ndarray) -> dict[str, float | None]:
        """Return a mean and its 95% interval, to 6 digits: the order of sums changes the last ones.

        There is no interval (None) for fewer than two documents.
        """
        low = high = None
        if self.n_scored > 1:
            ends = np.quantile(resamples[np.isfinite(resamples)], [0.025, 0.975])
            low, high = (float(f"{end:.6g}") for end in ends)
        return {"value": total / count if count else None, "low": low, "high": high}


class GeneratedTotals:
    """Sums over the documents that were continued."""

    names = ("n_prompt_tokens", "n_tokens", "reason")

    def __init__(self) -> None:
        self.n_generated = self.n_prompt_tokens = self.n_tokens = 0
        self.reasons: Counter[str] = Counter()

    def begin(self, shard: int) -> None:
        pass

    def add(self, records: Sequence[Record]) -> None:
        self.n_generated += len(records)
        self.n_prompt_tokens += sum(record["n_prompt_tokens"] for record in records)
        self.n_tokens += sum(record["n_tokens"] for record in records)
        self.reasons.update(record["reason"] for record in records)

    def figures(self) -> dict[str, Any]:
        return {"n_generated": self.n_generated, "n_prompt_tokens": self.n_prompt_tokens,
                "n_tokens": self.n_tokens, "reasons": dict(sorted(self.reasons.items()))}

"""One shard's file of results: written beside its place, synced and renamed."""
from __future__ import annotations

from typing import Any, NamedTuple

from .documents import Inputs, Shard
from .work import Work


class Job(NamedTuple):
    """All that a worker is told once. It can be pickled."""

    inputs: Inputs
    work: Work
    folder: str
    format: str = "jsonl"  # or "parquet"


class Done(NamedTuple):
    """A shard whose file is in its place."""

    number: int
    n_bytes: int  # of the shard, as `Shard.n_bytes`
    n_documents: int
    n_tokens: int
    n_skipped: int


def shard_file(folder: str, number: int, format: str) -> Any:
    """Return the path of a shard's results: part-00000.jsonl."""
    raise NotImplementedError


def write_shard(job: Job, shard: Shard) -> Done:
    """Read a shard, do the work and commit the results."""
    raise NotImplementedError

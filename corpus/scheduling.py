"""Hand shards to workers, count failures, try again: the same loop for processes and Ray."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .documents import Shard
from .shard_files import Done


class Outcome(NamedTuple):
    """The end of a worker's shard: done, or a failure in a sentence."""

    worker: int
    done: Done | None
    failure: str = ""
    died: bool = False  # the worker is gone: the engine has to start it again
    fatal: bool = False  # the same would happen to every shard: a full disk, no such model


class Engine(Protocol):
    """Workers, each with one shard at a time."""

    n_workers: int

    def start(self, worker: int) -> None:
        """Start a worker, or another in place of a dead one. It loads its model meanwhile."""

    def submit(self, worker: int, shard: Shard) -> None:
        """Give a worker that has no shard its next one."""

    def wait(self, seconds: float) -> Sequence[Outcome]:
        """Return the ends of shards that have come within some seconds, perhaps none."""

    def close(self) -> None:
        """End all workers at once, whatever they are doing."""

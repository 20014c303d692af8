"""Hand shards to workers, count failures, try again: the same loop for processes and Ray.

A shard goes to one worker at a time. If it fails, or its worker dies, another worker tries it
again; after three failures it is left out and the rest goes on. Of the shards to come, the loop
holds at most one for each worker: those of a compressed file become known as it is unpacked.
"""
from __future__ import annotations

import errno
import os
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from .. import backend
from ..gpt2_np import Error
from .documents import Shard
from .shard_files import Done, Job, write_shard

MOST_TRIES = 3  # of a shard
MOST_STARTS = 3, 10  # of a worker in a row: before any has done a shard, and then
MOST_DEATHS = 30  # of workers at work, in a row, without a shard done between them


class Outcome(NamedTuple):
    """The end of a worker's shard: done, or a failure in a sentence."""

    worker: int
    done: Done | None = None
    failure: str = ""
    died: bool = False  # the worker is gone: it must be started before its next shard
    ready: bool = True  # False: the worker failed before it had its model; no fault of the shard
    fatal: bool = False  # to try again is useless: a full disk, or (not ready) no such model


class Engine(Protocol):
    """Workers, each with one shard at a time. Methods return at once, but for `wait`."""

    n_workers: int

    def start(self, worker: int) -> None:
        """Start worker 0 to n_workers - 1, or another in place of a dead one.

        It calls `prepare` and then `attempt` for each of its shards. The loop starts a worker
        when it has a first shard for it.
        """

    def submit(self, worker: int, shard: Shard) -> None:
        """Give a started worker that has no shard its next one, even if it is dead by now."""

    def wait(self, seconds: float) -> Sequence[Outcome]:
        """Return the outcomes that have come within some seconds, perhaps none.

        There is exactly one for each submitted shard. A worker that dies without a shard needs
        none, if `submit` or `wait` notices it later.
        """

    def close(self) -> None:
        """End all workers at once, whatever they are doing. May be called twice."""


# --- in the worker ---------------------------------------------------------------------


def prepare(worker: int, job: Job) -> Outcome | None:
    """Load the model. Returns the outcome of the worker's first shard if that fails, else None."""
    try:
        job.work.prepare()
    except Exception as error:
        return failed(worker, job, error)._replace(ready=False, died=True,
                                                   fatal=isinstance(error, Error))
    return None


def attempt(worker: int, job: Job, shard: Shard) -> Outcome:
    """Do a shard. A worker whose outcome says that it died must end then."""
    try:
        with np.errstate(all="ignore"):  # NaN results become errors
            return Outcome(worker, write_shard(job, shard))
    except Exception as error:
        return failed(worker, job, error)


def failed(worker: int, job: Job, error: Exception) -> Outcome:
    if isinstance(error, Error):
        return Outcome(worker, failure=str(error))
    if isinstance(error, MemoryError):
        return Outcome(worker, failure=backend.memory_advice(error))
    if isinstance(error, OSError):
        is_lost = output_is_lost(error, job.folder)
        place = f"writing to {job.folder}" if is_lost else "reading or writing"
        return Outcome(worker, failure=f"{place} failed: {error}", fatal=is_lost)
    if backend.is_cuda_error(error):  # after some of them every call fails in this process
        return Outcome(worker, failure=str(error), died=True)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}, line {last.lineno}"
    return Outcome(worker, failure=f"{type(error).__name__} in {place}: {error}")


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def output_is_lost(error: OSError, folder: str) -> bool:
    """Return True if no shard can be written any more, whatever its input is."""
    inside = os.path.dirname(os.fsdecode(error.filename or "")) == folder
    return error.errno in FULL or inside or not os.path.isdir(folder)


# --- in the driver ---------------------------------------------------------------------


def run_shards(
    engine: Engine, shards: Iterable[Shard], on_done: Callable[[Done], None],
    say: Callable[[str], None],
) -> dict[int, str]:  # fmt: skip
    """Do all shards and return the numbers of those that failed three times, and the last reasons.

    `on_done` gets each shard as it is done, `say` a sentence about each death and each lost shard.
    Raises Error if nothing can go on: the disk is full, or no worker can start.
    """
    return Loop(engine, shards, on_done, say).run()


class Loop:
    """The state of `run_shards`."""

    def __init__(self, engine, shards, on_done, say):
        self.engine, self.on_done, self.say = engine, on_done, say
        self.shards = iter(shards)
        self.ahead: deque[Shard] = deque()
        self.again: list[tuple[Shard, int]] = []  # with the worker that failed last
        self.busy: dict[int, Shard] = {}
        self.started: set[int] = set()
        self.usable = set(range(engine.n_workers))
        self.tries: Counter[int] = Counter()  # by number of the shard
        self.false_starts: Counter[int] = Counter()  # by worker
        self.most_starts = MOST_STARTS[0]
        self.n_deaths = 0  # since a shard was done
        self.lost: dict[int, str] = {}  # the last reason, by number of the shard

    def run(self) -> dict[int, str]:
        while True:
            for worker in sorted(self.usable - self.busy.keys()):
                if shard := self.next_shard(worker):
                    self.busy[worker] = shard
                    if worker not in self.started:
                        self.started.add(worker)
                        self.engine.start(worker)
                    self.engine.submit(worker, shard)
            if not self.busy:
                return self.lost
            looking = len(self.ahead) < self.engine.n_workers and self.look_ahead()
            for outcome in self.engine.wait(0 if looking else 1):
                self.handle(outcome)

    def next_shard(self, worker: int) -> Shard | None:
        for i, (shard, failed_on) in enumerate(self.again):
            if failed_on != worker or len(self.usable) == 1:
                del self.again[i]
                return shard
        return self.ahead.popleft() if self.ahead or self.look_ahead() else None

    def look_ahead(self) -> bool:
        shard = next(self.shards, None)
        if shard is not None:
            self.ahead.append(shard)
        return shard is not None

    def handle(self, outcome: Outcome) -> None:
        worker, reason = outcome.worker, outcome.failure
        shard = self.busy.pop(worker, None)
        if outcome.died:
            self.started.discard(worker)
        if outcome.done is not None:
            self.false_starts[worker] = self.n_deaths = 0
            self.most_starts = MOST_STARTS[1]
            self.on_done(outcome.done)
        elif not outcome.ready:
            self.handle_false_start(outcome, shard)
        elif outcome.fatal:
            raise Error(reason)
        elif shard is not None:
            self.tries[shard.number] += 1
            self.n_deaths += outcome.died
            if self.n_deaths >= MOST_DEATHS:
                raise Error(f"workers die one after another: {reason}")
            if self.tries[shard.number] < MOST_TRIES:
                self.again.append((shard, worker))
                self.say(f"shard {shard.number} failed and is tried again: {reason}")
            else:
                self.lost[shard.number] = reason
                self.say(f"shard {shard.number} failed {MOST_TRIES} times and is missing: {reason}")

    def handle_false_start(self, outcome: Outcome, shard: Shard | None) -> None:
        worker, reason = outcome.worker, outcome.failure
        if shard is not None:
            self.again.insert(0, (shard, worker))
        self.false_starts[worker] += 1
        if outcome.fatal or self.false_starts[worker] >= self.most_starts:
            self.usable.discard(worker)
            if not self.usable:
                raise Error(reason if outcome.fatal else f"no worker can start: {reason}")
            self.say(f"worker {worker} cannot start and is left out: {reason}")

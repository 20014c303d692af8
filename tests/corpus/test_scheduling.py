"""Each shard is done or has failed three times, whatever workers do, and no run goes on forever."""
import errno
import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_np import Error
from gpt2_np.corpus import scheduling
from gpt2_np.corpus.documents import Shard
from gpt2_np.corpus.scheduling import MOST_DEATHS, MOST_STARTS, MOST_TRIES, Outcome, run_shards
from gpt2_np.corpus.shard_files import Done, Job

SHARD_LISTS = st.integers(0, 12).map(lambda n: [Shard(i, (), 1) for i in range(n)])


class ScriptedEngine:
    """Workers whose outcomes a function chooses. It checks what an engine may rely on."""

    def __init__(self, n_workers, choose, pick=lambda n: 0):
        self.n_workers, self.choose, self.pick = n_workers, choose, pick
        self.alive, self.busy, self.given = set(), {}, []

    def start(self, worker):
        assert 0 <= worker < self.n_workers and worker not in self.alive
        self.alive.add(worker)

    def submit(self, worker, shard):
        assert worker in self.alive and worker not in self.busy
        self.busy[worker] = shard
        self.given.append((worker, shard.number))

    def wait(self, seconds):
        if not self.busy:
            return []
        worker = sorted(self.busy)[self.pick(len(self.busy))]
        shard = self.busy.pop(worker)
        outcome = self.choose(worker, shard)
        if outcome.died:
            self.alive.discard(worker)
        return [outcome]

    def close(self):
        pass


def done(worker, shard):
    return Outcome(worker, Done(shard.number, 1, 1, 1))


def run(engine, shards):
    finished, said = [], []
    lost = run_shards(engine, shards, lambda done: finished.append(done.number), said.append)
    return finished, lost, said


FAILURES = {
    "done": {},
    "failed": {"failure": "reason"},
    "died": {"failure": "reason", "died": True},
    "not ready": {"failure": "reason", "died": True, "ready": False},
}


@given(st.integers(1, 4), SHARD_LISTS, st.data())
def test_each_shard_is_done_or_has_failed_three_times(n_workers, shards, data):
    failures, false_starts = Counter(), Counter()

    def choose(worker, shard):
        kind = data.draw(st.sampled_from(list(FAILURES)))
        if kind == "not ready" and false_starts[worker] == MOST_STARTS[0] - 1:
            kind = "failed"
        if kind == "done":
            false_starts[worker] = 0
            return done(worker, shard)
        false_starts[worker] += kind == "not ready"
        failures[shard.number] += kind in ("failed", "died")
        return Outcome(worker, **FAILURES[kind])

    engine = ScriptedEngine(n_workers, choose, lambda n: data.draw(st.integers(0, n - 1)))
    finished, lost, _ = run(engine, shards)
    assert sorted([*finished, *lost]) == [s.number for s in shards]
    assert lost.keys() == {n for n in failures if failures[n] == MOST_TRIES}
    assert max(failures.values(), default=0) <= MOST_TRIES
    first = list(dict.fromkeys(number for _, number in engine.given))
    assert first == sorted(first)
    if n_workers > 1:  # nobody gave up, so the next try was elsewhere
        assert all(len({w for w, n in engine.given if n == number}) > 1
                   for number, count in failures.items() if count == MOST_TRIES)


@given(st.integers(1, 4))
def test_few_shards_are_known_ahead(n_workers):
    taken = []
    shards = (taken.append(i) or Shard(i, (), 1) for i in range(50))
    finished = []

    def choose(worker, shard):
        assert len(taken) <= len(finished) + 2 * n_workers + 1
        return done(worker, shard)

    run_shards(ScriptedEngine(n_workers, choose), shards, finished.append, print)
    assert len(finished) == 50


def test_no_more_workers_are_started_than_there_are_shards():
    engine = ScriptedEngine(8, done)
    run(engine, [Shard(0, (), 1), Shard(1, (), 1)])
    assert engine.alive == {0, 1}


def test_a_full_disk_ends_the_run():
    engine = ScriptedEngine(2, lambda worker, _: Outcome(worker, failure="it is full", fatal=True))
    with pytest.raises(Error, match="it is full"):
        run(engine, [Shard(0, (), 1)])


def test_a_worker_without_its_model_is_left_out_and_the_others_go_on():
    def choose(worker, shard):
        no_model = Outcome(worker, failure="no model", died=True, ready=False, fatal=True)
        return done(worker, shard) if worker else no_model

    shards = [Shard(i, (), 1) for i in range(5)]
    finished, lost, said = run(ScriptedEngine(2, choose), shards)
    assert sorted(finished) == list(range(5)) and not lost
    assert said == ["worker 0 cannot start and is left out: no model"]


@pytest.mark.parametrize("fatal", [True, False])
def test_workers_that_cannot_start_end_the_run(fatal):
    def choose(worker, shard):
        starts[worker] += 1
        return Outcome(worker, failure="no memory", died=True, ready=False, fatal=fatal)

    starts = Counter()
    with pytest.raises(Error, match="no memory"):
        run(ScriptedEngine(3, choose), (Shard(i, (), 1) for i in range(1000)))
    assert starts == dict.fromkeys(range(3), 1 if fatal else MOST_STARTS[0])


def test_workers_that_have_worked_get_more_starts():
    """Somebody kills them; the model can be loaded."""
    def choose(worker, shard):
        starts.append(worker)
        if len(starts) == 1:
            return done(worker, shard)
        return Outcome(worker, failure="killed", died=True, ready=False)

    starts = []
    with pytest.raises(Error, match="no worker can start: killed"):
        run(ScriptedEngine(1, choose), (Shard(i, (), 1) for i in range(1000)))
    assert len(starts) == 1 + MOST_STARTS[1]


def test_workers_that_die_at_every_shard_end_the_run():
    engine = ScriptedEngine(2, lambda worker, _: Outcome(worker, failure="killed", died=True))
    with pytest.raises(Error, match="die one after another: killed"):
        run(engine, (Shard(i, (), 1) for i in range(1000)))
    assert len(engine.given) <= MOST_DEATHS + 1


# --- which failures are whose ----------------------------------------------------------


@pytest.mark.parametrize("error, words, fatal", [
    (Error("the input has changed"), "the input has changed", False),
    (OSError(errno.EIO, "I/O error", "/in/a.jsonl"), "I/O error", False),
    (OSError(errno.ENOSPC, "No space left"), "No space left", True),
    (OSError(errno.EDQUOT, "Quota exceeded", "/in"), "Quota exceeded", True),
    (MemoryError(), "not enough memory", False),
    (KeyError("x"), "KeyError in test_scheduling.py, line", False),
])
def test_a_failure_is_one_sentence_and_costs_a_shard_or_the_run(
        monkeypatch, tmp_path, error, words, fatal):
    def write_shard(job, shard):
        raise error

    monkeypatch.setattr(scheduling, "write_shard", write_shard)
    outcome = scheduling.attempt(3, Job(None, None, str(tmp_path)), Shard(0, (), 1))
    assert (outcome.worker, outcome.done, outcome.died, outcome.ready) == (3, None, False, True)
    assert words in outcome.failure and "\n" not in outcome.failure
    assert outcome.fatal == fatal


def test_an_output_folder_that_is_gone_costs_the_run(tmp_path):
    folder = str(tmp_path / "gone")
    outcome = scheduling.attempt(0, Job(NoDocuments(), None, folder), Shard(0, (), 1))
    assert outcome.fatal and os.path.join(folder, "part-0000000.jsonl") in outcome.failure


class NoDocuments:
    def read(self, shard):
        return iter(())

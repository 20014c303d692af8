"""Workers that are processes of this machine, each with its own model and BLAS threads.

They are spawned: a fork would copy the driver's locks and BLAS threads. A worker ignores Ctrl-C,
which is the driver's to handle, and ends by itself as soon as the driver is gone.
"""
from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..gpt2_np import Error
from .documents import Shard
from .scheduling import Outcome, attempt, prepare
from .shard_files import Job

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
                "VECLIB_MAXIMUM_THREADS")
UNGUARDED = 77  # the exit status of a worker whose main program starts workers when imported


def thread_variables(threads: int) -> dict[str, str]:
    """Return the environment in which BLAS uses that many threads."""
    return dict.fromkeys(BLAS_THREADS, str(threads))


def card_variables(gpus: int, worker: int) -> dict[str, str]:
    """Return the environment in which a worker sees one GPU, of those that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = [str(number) for number in range(gpus)] if visible is None else visible.split(",")
    if gpus > len(cards) or cards == [""]:
        raise Error(f"gpus is {gpus}, but CUDA_VISIBLE_DEVICES is {visible!r}: ask for as many "
                    "as it names")
    return {"CUDA_VISIBLE_DEVICES": cards[worker].strip()}


class WorkerProcess:
    """The driver's end of a process."""

    def __init__(self, context: Any, number: int, job: Job):
        self.connection, self.far_end = context.Pipe()
        self.shard: Shard | None = None
        self.is_ready = False
        self.process = context.Process(target=run_worker, args=(number, job, self.far_end),
                                       daemon=True, name=f"gpt2_np worker {number}")
        self.problem = ""

    def start(self) -> None:
        try:
            self.process.start()
        except OSError as error:
            self.problem = f"it cannot be started: {error}"
        finally:
            self.far_end.close()  # then the pipe ends with the process

    def end(self) -> None:
        if self.process.pid is not None:
            self.process.kill()
            self.process.join(5)
        self.connection.close()

    def epitaph(self) -> str:
        """Say how the process ended, once its pipe has."""
        if self.problem:
            return self.problem
        self.process.join(5)  # the pipe ends a moment earlier
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"it ended with status {code}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"it was killed by {name}" + (
                ", as a system does that runs out of memory" if name == "SIGKILL" else "")
        return f"it was killed by signal {-code}"


class ProcessEngine:
    """The engine that `scheduling.Engine` describes, with a process and a pipe for each worker."""

    def __init__(self, job: Job, n_workers: int, threads: int = 1, gpus: int = 0):
        import multiprocessing

        if getattr(sys.modules["__main__"], "__file__", None) == "<stdin>":
            raise Error("workers import the main program, which standard input gives only once: "
                        "save it as a file")
        self.job, self.n_workers = job, n_workers
        self.variables = [thread_variables(threads) | (card_variables(gpus, i) if gpus else {})
                          for i in range(n_workers)]
        self.context = multiprocessing.get_context("spawn")
        self.workers: dict[int, WorkerProcess] = {}

    def start(self, worker: int) -> None:
        process = self.workers[worker] = WorkerProcess(self.context, worker, self.job)
        with inherited(self.variables[worker]):
            process.start()

    def submit(self, worker: int, shard: Shard) -> None:
        process = self.workers[worker]
        process.shard = shard
        if process.is_ready:
            self.hand_over(process)

    def hand_over(self, process: WorkerProcess) -> None:
        """Send a worker its shard. One that still loads its model might not read it for long."""
        with contextlib.suppress(OSError):  # it is dead: `wait` says so
            process.connection.send(process.shard)

    def wait(self, seconds: float) -> Sequence[Outcome]:
        from multiprocessing.connection import wait

        numbers = {process.connection: number for number, process in self.workers.items()}
        outcomes = (self.receive(numbers[pipe]) for pipe in wait(list(numbers), seconds))  # type: ignore
        return [outcome for outcome in outcomes if outcome is not None]

    def receive(self, number: int) -> Outcome | None:
        process = self.workers[number]
        try:
            outcome = process.connection.recv()
        except (EOFError, OSError):
            outcome = self.death(number)
        if outcome is None:  # it has loaded its model
            process.is_ready = True
            if process.shard is not None:
                self.hand_over(process)
        elif outcome.died:
            self.workers.pop(number).end()
        else:
            process.shard = None
        return outcome

    def death(self, number: int) -> Outcome:
        process = self.workers[number]
        epitaph = process.epitaph()
        if process.process.exitcode == UNGUARDED:
            return Outcome(number, died=True, ready=False, fatal=True, failure=(
                "workers import the main program, and this one does its work when it is imported: "
                'put that under if __name__ == "__main__":'))
        too_early = "" if process.is_ready else " before it was ready"
        return Outcome(number, failure=f"worker {number} died{too_early}: {epitaph}", died=True,
                       ready=process.is_ready)

    def close(self) -> None:
        for process in self.workers.values():
            process.end()
        self.workers.clear()


def refuse_to_start_again() -> None:
    """End a worker that runs its main program instead of importing it. The driver says why."""
    import multiprocessing

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(UNGUARDED)


@contextlib.contextmanager
def inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Set what a process that is started here has from its first instruction on.

    It is the environment, which BLAS reads as NumPy loads, and that Ctrl-C does not reach it.
    """
    before = {name: os.environ.get(name) for name in variables}
    if sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # when it starts, it unblocks what is blocked here
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        os.environ.update(variables)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# --- in the worker ---------------------------------------------------------------------


def run_worker(number: int, job: Job, driver: Connection) -> None:
    """Load the model and do one shard after another, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_driver, daemon=True).start()
    # An error of the pipe: the driver is gone, and so is this process in a moment.
    with warnings.catch_warnings(), contextlib.suppress(EOFError, OSError):
        if number:  # one worker's warnings are enough
            warnings.simplefilter("ignore")
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
        outcome = prepare(number, job)
        driver.send(outcome)
        while outcome is None or not outcome.died:
            outcome = attempt(number, job, driver.recv())
            driver.send(outcome)


def end_with_driver() -> None:
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None, "a worker is started by the driver"
    connection.wait([parent.sentinel])
    os._exit(1)

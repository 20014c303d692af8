"""Workers that are Ray actors, on this machine or on all nodes of a cluster.

Ray decides where an actor lives, and when. So the shard of a worker waits in a queue for the next
actor that is free, and none waits for an actor that the cluster has no room for. Ray restarts
none: an actor that dies, or whose node is lost, is replaced by the loop in `scheduling`.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import sysconfig
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..bpe import shown
from ..gpt2_np import Error
from .documents import Shard
from .processes import thread_variables
from .runs import RUN, read_run
from .scheduling import Outcome, attempt, prepare
from .shard_files import Job, json_bytes

PATIENCE = 30  # seconds, then a sentence says that workers wait for the cluster
SHARED = "inputs and output must lie on a file system that every node sees under the same name"


# --- in the actor ----------------------------------------------------------------------


class Actor:
    """A worker: it checks its node, loads its model and does one shard after another."""

    def __init__(self, job: Job, directory: str, fingerprint: dict[str, Any]):
        self.job, self.fingerprint = job, fingerprint
        self.node = socket.gethostname()
        with contextlib.suppress(OSError):
            os.chdir(directory)  # paths of inputs may be relative

    def arrive(self) -> Outcome | None:
        """Return an outcome if this node cannot do the work that the driver has in mind."""
        try:
            seen = read_run(self.job.folder)["fingerprint"]
        except Error:
            seen = None
        if seen != self.fingerprint:
            return self.refusal(f"does not see {os.path.join(self.job.folder, RUN)}: {SHARED}")
        try:
            own = json.loads(json_bytes(self.job.work.fingerprint()))
        except Error as error:
            return self.refusal(f"cannot work: {error}")
        others = [name for name, value in own.items() if value != seen.get(name)]
        if others:
            return self.refusal(f"differs in {', '.join(others)}: every node needs the same "
                                "packages and the same model")
        return None

    def refusal(self, reason: str) -> Outcome:
        return Outcome(0, failure=f"{self.node} {reason}", died=True, ready=False, fatal=True)

    def prepare(self) -> Outcome | None:
        return prepare(0, self.job)

    def attempt(self, shard: Shard) -> Outcome:
        missing = [span.path for span in shard.spans if not os.path.exists(span.path)]
        if missing:
            return Outcome(0, failure=f"{self.node} does not see {missing[0]}: {SHARED}")
        return attempt(0, self.job, shard)


# --- in the driver ---------------------------------------------------------------------


class Call(NamedTuple):
    """A method of an actor that is running."""

    actor: Any
    step: str  # the method's name
    since: float
    worker: int | None = None  # whose shard it does


class RayEngine:
    """The engine that `scheduling.Engine` describes, by actors with a GPU or some cores each.

    Args:
        job: what the actors are told. A Model in it travels once to each node.
        n_workers: by default as many as the cluster has room for.
        threads: of BLAS in each actor, and the CPUs that it asks the cluster for.
        gpus: ask for this many actors with a GPU each.
        address: "auto" or "HOST:PORT" of a cluster. "local", the default, starts one on this
            machine, which `close` ends. Has no effect in a program that has called `ray.init`.

    Raises Error if Ray is not installed, or the cluster cannot be used.
    """

    def __init__(self, job: Job, n_workers: int | None = None, *, threads: int = 1, gpus: int = 0,
                 address: str | None = None):  # fmt: skip
        self.ray = import_ray()
        self.threads, self.gpus = threads, gpus
        self.queue: deque[tuple[int, Shard]] = deque()
        self.started: set[int] = set()
        self.calls: dict[Any, Call] = {}  # by the reference of the result to come
        self.idle: deque[Any] = deque()
        self.has_warned = False
        self.is_ours = not self.ray.is_initialized()
        try:
            if self.is_ours:
                connect(self.ray, address or "local", (n_workers or gpus) * threads
                        if n_workers or gpus else None)
            self.n_workers = n_workers or gpus or self.room()
            self.arguments = (self.ray.put(job), os.getcwd(),
                              self.ray.put(read_run(job.folder)["fingerprint"]))
            self.Actor = self.ray.remote(
                num_cpus=threads, num_gpus=1 if gpus else None, max_restarts=0,
                runtime_env={"env_vars": thread_variables(threads) | import_variables()},
            )(Actor)
            if self.is_ours and address in (None, "local"):
                have = self.ray.cluster_resources()
                for name, count, kind in (("gpus", gpus, "GPU"), ("threads", threads, "CPU")):
                    if count > have.get(kind, 0):
                        raise Error(f"{name} is {count}, but Ray finds {have.get(kind, 0):g} "
                                    f"{kind}s on this machine")
        except BaseException:
            self.close()
            raise

    def room(self) -> int:
        """Return how many workers the cluster has cores for, at least one."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return max(1, sum(int(have.get("CPU", 0) // self.threads) for have in nodes))

    def start(self, worker: int) -> None:
        self.started.add(worker)
        self.fill()

    def fill(self) -> None:
        """Have an actor for each worker that was started."""
        while len(self.calls) + len(self.idle) < len(self.started):
            self.call(self.Actor.remote(*self.arguments), "arrive")

    def call(self, actor: Any, step: str, *arguments: Any, worker: int | None = None) -> None:
        reference = getattr(actor, step).remote(*arguments)
        self.calls[reference] = Call(actor, step, time.monotonic(), worker)

    def submit(self, worker: int, shard: Shard) -> None:
        self.queue.append((worker, shard))
        self.fill()
        self.hand_over()

    def hand_over(self) -> None:
        while self.queue and self.idle:
            worker, shard = self.queue.popleft()
            self.call(self.idle.popleft(), "attempt", shard, worker=worker)

    def wait(self, seconds: float) -> Sequence[Outcome]:
        wait = self.ray.wait
        ready, _ = wait(list(self.calls), timeout=seconds)
        if ready:  # and perhaps others beside the first
            ready, _ = wait(list(self.calls), num_returns=len(self.calls), timeout=0)
        outcomes = [self.receive(reference) for reference in ready]
        self.hand_over()
        self.warn_of_waiting()
        return [outcome for outcome in outcomes if outcome is not None]

    def receive(self, reference: Any) -> Outcome | None:
        """Take the result of a call, and return the outcome of a shard if there is one."""
        actor, step, _, worker = self.calls.pop(reference)
        try:
            outcome = self.ray.get(reference)
        except Exception as error:
            outcome = Outcome(0, failure=self.epitaph(error), died=True, ready=step == "attempt",
                              fatal="failed to import" in str(error))
        if outcome is None and step == "arrive":
            self.call(actor, "prepare")
        elif outcome is None or not outcome.died:
            self.idle.append(actor)
        else:
            self.end(actor)  # perhaps it only cannot be reached
        if outcome is None:
            return None
        if worker is None:  # it failed before its first shard: the next in the queue tells the loop
            if not self.queue:
                return None
            worker, _ = self.queue.popleft()
        if outcome.died:
            self.started.discard(worker)
        return outcome._replace(worker=worker)

    def epitaph(self, error: Exception) -> str:
        """Say in a sentence how an actor ended."""
        where = re.search(r"\bip[:=] ?([\w.:]+)", str(error))
        who = "a worker" + (f" on {where[1]}" if where else "")
        if isinstance(error, self.ray.exceptions.OutOfMemoryError):
            return f"{who} was ended by Ray: its node has no memory left"
        if "node has died" in str(error) or "node was terminated" in str(error):
            return f"{who} is gone: its node was lost"
        if isinstance(error, self.ray.exceptions.ActorUnavailableError):
            return f"{who} is gone: the connection to it has ended"
        if "process has died" in str(error):
            return f"{who} died: its process was killed, as a system does that runs out of memory"
        remedy = ": install the same packages on every node" * ("failed to import" in str(error))
        return f"{who} failed: {str(error).strip().rpartition(chr(10))[2]}{remedy}"

    def warn_of_waiting(self) -> None:
        """Say once that the cluster has no room, if actors wait for it."""
        old = time.monotonic() - PATIENCE
        n = sum(call.step == "arrive" and call.since < old for call in self.calls.values())
        if n and not self.has_warned:
            self.has_warned = True
            kind = "GPU" if self.gpus else "CPU"
            have, free = self.ray.cluster_resources(), self.ray.available_resources()
            each = f"{self.threads} CPUs" + " and a GPU" * bool(self.gpus)
            warnings.warn(
                f"{n} of {self.n_workers} workers have waited {PATIENCE} seconds for a place in "
                f"the cluster: each needs {each}, and of {have.get(kind, 0):g} {kind}s "
                f"{free.get(kind, 0):g} are free", RuntimeWarning, stacklevel=2)

    def end(self, actor: Any) -> None:
        with contextlib.suppress(Exception):  # the cluster may be gone
            self.ray.kill(actor)

    def close(self) -> None:
        for actor in [*self.idle, *(call.actor for call in self.calls.values())]:
            self.end(actor)
        self.calls.clear()
        self.idle.clear()
        self.queue.clear()
        if self.is_ours:
            self.ray.shutdown()


# --- Ray itself ------------------------------------------------------------------------


def import_ray() -> Any:
    """Return the module, set to print none of its messages if it is not loaded yet."""
    skip = "RAY_DEDUP_LOGS_SKIP_REGEX"
    before = os.environ.setdefault(skip, ".")  # messages of the cluster go to standard output
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise Error("engine ray needs the package ray, which is not installed: pip install ray"
                    ) from None
    finally:
        if before == ".":
            del os.environ[skip]
    return ray


def connect(ray: Any, address: str, n_cpus: int | None) -> None:
    """Connect to a cluster, or start one of this machine if the address is "local"."""
    local: dict[str, Any] = {}
    if address == "local":
        local = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
        if n_cpus is not None:
            local["num_cpus"] = n_cpus
    else:
        check_address(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    try:
        with as_before():
            ray.init(address=address, log_to_driver=False, logging_level="CRITICAL", **local)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = ("; if it asks for a token, set RAY_AUTH_MODE=token and copy ~/.ray/auth_token "
                  "from its first machine") * (not local)
        raise Error(f"Ray cannot be used at address {shown(address)}: {reason}{remedy}") from None


def check_address(address: str) -> None:
    """Raise Error if nothing answers at an address. Ray would wait for a quarter of an hour."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        raise Error(f"address is {shown(address)}: give auto, local, or HOST:PORT as "
                    "`ray start --head` prints it, on a machine of the cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise Error(f"no Ray cluster answers at {address} ({error}): start one with `ray start "
                    "--head`, or leave address out") from None


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Keep the program's own handler of SIGTERM, which `ray.init` would replace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def import_variables() -> dict[str, str]:
    """Return the environment in which an actor of this machine imports what this process does.

    A node of another machine needs the package installed.
    """
    python = {os.path.realpath(path) for path in sysconfig.get_paths().values()}
    paths = [os.path.abspath(path) for path in sys.path if os.path.isdir(path or ".")]
    own = [path for path in paths if os.path.dirname(os.path.realpath(path)) not in python
           and os.path.realpath(path) not in python]  # lib-dynload lies in one of them
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(own))}

"""The output folder: what a run is of, which shards are done, and who is at work on them.

    run.json            the fingerprint: everything that the results depend on
    part-0000000.jsonl  a shard's results, whole as soon as it has this name
    summary.json        written at the end; if shards are missing, it says which and why
    run.lock            held by the run at work; the lock ends with its process, even a killed one
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TextIO

from ..bpe import PART, shown
from ..checkpoint.cache import try_lock
from ..gpt2_np import Error
from .shard_files import json_bytes, shard_file, write_json

RUN, LOCK, SUMMARY = "run.json", "run.lock", "summary.json"
PROGRAM = "gpt2_np.corpus"  # whose run.json it is


class Status(NamedTuple):
    """The state of the output folder of `score` or `generate`."""

    n_done: int  # shards
    n_shards: int | None  # None: unknown until gzip and Parquet have been read once
    summary: dict[str, Any] | None  # the content of summary.json, written at the end
    at_work: str | None  # the process that is at work on it, or None
    command: str | None  # that goes on with the run, if a command began it

    @property
    def is_complete(self) -> bool:
        return self.n_done == self.n_shards and bool(self.summary and self.summary["complete"])


class Run:
    """An output folder that this process holds. `open_run` makes one."""

    def __init__(self, folder: str, about: dict[str, Any]):
        self.folder, self.about = folder, about
        self.done = done_shards(folder, about)

    @property
    def n_shards(self) -> int | None:
        return self.about["n_shards"]

    @property
    def is_complete(self) -> bool:
        return len(self.done) == self.n_shards

    def note_shards(self, n_shards: int) -> None:
        """Write down how many shards there are, for `status`."""
        if self.n_shards != n_shards:
            self.about["n_shards"] = n_shards
            write_json(os.path.join(self.folder, RUN), self.about)

    def look_again(self) -> str:
        """Find also the done shards of which nobody was told. Returns words about all of them."""
        with contextlib.suppress(OSError):  # the folder may be gone
            self.done = done_shards(self.folder, self.about)
        return progress_words(len(self.done), self.n_shards)

    def forget(self) -> None:
        """Leave the folder as a new one. For a run whose results are of no use."""
        self.look_again()
        shards = [shard_file("", number, self.about["format"]) for number in self.done]
        for name in (*shards, SUMMARY, RUN):  # the last one is what makes the folder a run's
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.folder, name))


def progress_words(n_done: int, n_shards: int | None) -> str:
    if n_shards is None:
        return f"shards done: {n_done}, of a number that is not known yet"
    return f"{n_done} of {n_shards} shards are done"


@contextlib.contextmanager
def open_run(
    folder: str, fingerprint: Mapping[str, Any], format: str, command: str | None = None
) -> Iterator[Run]:
    """Make or go on with the run of an output folder, and hold its lock until the block ends.

    Raises Error if the folder is in use, is not a run's, or is that of another fingerprint.
    """
    about = {"program": PROGRAM, "format": format, "n_shards": None, "command": command,
             "fingerprint": json.loads(json_bytes(fingerprint))}
    path = os.path.join(folder, RUN)
    try:
        check_folder(folder)
        os.makedirs(folder, exist_ok=True)
        with take_lock(folder):
            remove_unfinished(folder)
            if os.path.exists(path):
                known = read_run(folder)
                refuse_changes(folder, known["fingerprint"], about["fingerprint"])
                about["n_shards"] = known["n_shards"]
            else:
                write_json(path, about)
            try:
                yield Run(folder, about)
            finally:
                with contextlib.suppress(OSError):
                    remove_unfinished(folder)
    except BrokenPipeError:  # standard error is closed
        raise
    except OSError as error:
        raise Error(f"{folder} cannot be written to: {error.strerror or error}; choose another "
                    "output folder, or make room or rights for this one") from None


def check_folder(folder: str) -> None:
    """Raise Error if an output folder exists that no run has made."""
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        raise Error(f"{folder} is a file: the output is a folder, with a file for each shard")
    names = os.listdir(folder)
    others = [name for name in names if name != LOCK and not name.endswith(PART)]
    if others and RUN not in names:
        raise Error(f"{folder} has files that are not of a run, such as {shown(min(others))}: "
                    "choose a new folder for the output")


def remove_unfinished(folder: str) -> None:
    for name in os.listdir(folder):
        if name.startswith(("part-", RUN, SUMMARY)) and name.endswith(PART):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def done_shards(folder: str, about: Mapping[str, Any]) -> set[int]:
    """Return the numbers of the shards of a run that have a file."""
    numbers = {int(match[1]) for name in os.listdir(folder)
               if (match := re.match(r"part-(\d+)\.", name)) and not name.endswith(PART)}
    n_shards = about["n_shards"]
    return {number for number in numbers if (n_shards is None or number < n_shards)
            and os.path.exists(shard_file(folder, number, about["format"]))}


def read_run(folder: str) -> dict[str, Any]:
    """Return run.json. Raises Error if the folder has none."""
    path = os.path.join(folder, RUN)
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        raise Error(f"{folder} is not the output of a run: it has no {RUN}") from None
    except OSError as error:
        raise Error(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        about = {}
    wanted = {"program", "format", "n_shards", "command", "fingerprint"}
    if isinstance(about, dict) and wanted <= about.keys() and about["program"] == PROGRAM:
        return about
    raise Error(f"{path} is damaged, or of another program: choose a new folder for the output")


def read_summary(folder: str) -> dict[str, Any] | None:
    """Return summary.json, or None if there is none that is whole."""
    with contextlib.suppress(OSError, ValueError), open(
            os.path.join(folder, SUMMARY), encoding="utf-8") as file:
        summary = json.load(file)
        whole = isinstance(summary, dict) and {"complete", "n_documents", "skipped"} <= set(summary)
        return summary if whole else None
    return None


# --- the lock --------------------------------------------------------------------------


def take_lock(folder: str) -> TextIO:
    """Return the open file that holds the lock. Raises Error if another process has it."""
    import socket

    file = open(os.path.join(folder, LOCK), "a", encoding="utf-8")  # noqa: SIM115 (closed later)
    for _ in range(5):
        if try_lock(file.fileno()):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        time.sleep(0.05)  # perhaps `status` has it, for a moment
    file.close()
    raise Error(f"{folder} is in use by another run, {holder(folder)}: wait for its end, or stop "
                "it, or choose another output folder")


def holder(folder: str) -> str:
    """Return the words about itself that the holder of a lock has written."""
    with contextlib.suppress(OSError), open(os.path.join(folder, LOCK), encoding="utf-8") as file:
        return file.read(200) or "a process that has just begun"
    return "another process"


def at_work(folder: str) -> str | None:
    """Return the process that holds the lock of a folder, or None if there is none to be seen."""
    with contextlib.suppress(OSError), open(
            os.path.join(folder, LOCK), "r+", encoding="utf-8") as file:  # as NFS wants it to lock
        return None if try_lock(file.fileno()) else holder(folder)
    return None


# --- status ----------------------------------------------------------------------------


def status(folder: str) -> Status:
    """Return how far the run has come whose output folder this is. Raises Error if it is none."""
    about = read_run(folder)
    n_done = len(done_shards(folder, about))
    return Status(n_done, about["n_shards"], read_summary(folder), at_work(folder),
                  about["command"])


# --- what has changed ------------------------------------------------------------------


def refuse_changes(folder: str, first: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise Error that says what has changed since a run was started, if anything has."""
    if first.get("work") != now.get("work"):
        work = {"Scorer": "score", "Generator": "generate"}.get(first.get("work", ""), "other work")
        raise Error(f"{folder} is the output of {work}: choose another output folder")
    differences = list(changes(first, now))
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise Error(f"{folder} is of a run in which {'; '.join(differences[:3])}{more}. Start "
                    "it as it was, or choose another output folder")


def changes(first: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Yield a few words about each difference of two fingerprints."""
    for name in [*first, *(name for name in now if name not in first)]:
        before, after = first.get(name), now.get(name)
        if before == after:
            continue
        if name == "inputs" and not where:
            yield from changed_files(before or [], after or [])
        elif isinstance(before, dict) and isinstance(after, dict):
            yield from changes(before, after, "" if name == "options" else f"{name} ")
        else:
            yield f"{where}{name} was {shown(before)}, and now it is {shown(after)}"


def changed_files(before: list[Any], after: list[Any]) -> Iterator[str]:
    old, new = ({about["path"]: about for about in files} for files in (before, after))
    for path in [*old, *(path for path in new if path not in old)]:
        if path not in new:
            yield f"{shown(path)} was an input, which it is not now"
        elif path not in old:
            yield f"{shown(path)} was no input, which it is now"
        elif old[path] != new[path]:
            yield f"the input {shown(path)} {what_changed(old[path], new[path])}"
    if old == new:
        yield "the inputs were in another order"


def what_changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    time = before.get("mtime_ns")
    if time is None or {**before, "mtime_ns": 0} != {**after, "mtime_ns": 0}:
        return "has changed"
    words = "had another time, but the same size and the same first bytes"
    if sys.platform != "linux":
        return words
    touch = f"touch -d @{time // 10**9}.{time % 10**9:09d} {shlex.quote(before['path'])}"
    return f"{words} (if it was only copied or touched, `{touch}` gives it that time again)"

"""Folders of downloads: their place, the note of verified files, and the lock for filling one."""
from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from .files import CheckpointError, read_json

if TYPE_CHECKING:
    from pathlib import Path

VERIFIED, LOCK = "verified.json", ".lock"
PART, TAG = ".part", ".part.tag"  # endings of an unfinished file, and of the tag of its version


def cache_folder() -> Path:
    """Return the folder for downloads: GPT2_NP_CACHE, else the platform's folder for caches."""
    from pathlib import Path

    if named := os.environ.get("GPT2_NP_CACHE"):
        return Path(os.path.expanduser(named))
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "gpt2_np"
    if os.path.isabs(xdg := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(xdg) / "gpt2_np"
    caches = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(os.path.expanduser(caches)) / "gpt2_np"


# --- verified files --------------------------------------------------------------------


def is_verified(folder: Path) -> bool:
    """Return True if the files in a folder have the lengths and times of the verified ones."""
    files = verified_files(folder)
    with contextlib.suppress(OSError, ValueError):
        return bool(files) and all(stamp(folder / name) == files[name] for name in files)
    return False


def verified_files(folder: Path) -> dict[str, Any]:
    """Return the stamps of the files in a folder when they were last verified, by name."""
    try:
        return read_json(folder / VERIFIED)
    except CheckpointError:
        return {}


def note_verified(folder: Path) -> None:
    import json

    others = (VERIFIED, LOCK, PART, TAG)
    files = sorted(file for file in folder.iterdir() if not file.name.endswith(others))
    (folder / VERIFIED).write_text(json.dumps({file.name: stamp(file) for file in files}))


def stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


# --- the lock --------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time fill a folder. The lock ends with its process, even a killed one.

    If nothing was downloaded, the folders that were made for it are removed.
    """
    made = [folder, *(above for above in folder.parents if not above.exists())]
    with hold_lock(folder, note):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file
                if os.listdir(folder) == [LOCK]:
                    (folder / LOCK).unlink()
                    for path in made:
                        path.rmdir()


def hold_lock(folder: Path, note: Callable[[str], None]) -> TextIO:
    """Wait for the lock of a folder, and return the open file that holds it."""
    path, waiting = folder / LOCK, False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 (closed by the caller)
        while not try_lock(file.fileno()):
            if not waiting:
                note(f"waiting for another process that fills {folder}")
            waiting = True
            time.sleep(0.2)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()  # its last holder has removed it since, with the folder


def try_lock(file: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True

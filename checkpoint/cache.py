"""Folders of downloads: their place, the note of verified files, and the lock for filling one.

The folders are made for their owner only. What other people could have written is verified again.
"""
from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from ..bpe import PART, whole_file
from .files import CheckpointError, read_json

if TYPE_CHECKING:
    from pathlib import Path

VERIFIED, LOCK = "verified.json", ".lock"
TAG = PART + ".tag"  # the ending of a file that says of which version an unfinished one is


def cache_folder() -> Path:
    """Return the folder for downloads: GPT2_NP_CACHE, else the platform's folder for caches."""
    from pathlib import Path

    if named := os.environ.get("GPT2_NP_CACHE"):
        return Path(at_home(named))
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "gpt2_np"
    if os.path.isabs(xdg := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(xdg) / "gpt2_np"
    return Path(at_home("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")) / "gpt2_np"


def at_home(path: str) -> str:
    """Expand ~ in a path. An empty HOME counts as none: then the system's list of users decides."""
    own = path == "~" or path.startswith("~/")
    if own and os.environ.get("HOME") == "" and os.name != "nt":
        import pwd

        with contextlib.suppress(KeyError):  # a user without an entry, as in some containers
            path = path.replace("~", pwd.getpwuid(os.getuid()).pw_dir, 1)
    else:
        path = os.path.expanduser(path)
    if path.startswith("~"):
        who = "this user" if own else path.partition("/")[0]
        raise CheckpointError(
            f"there is no folder for downloads, because {who} has no home: set HOME, or "
            "GPT2_NP_CACHE to a folder"
        )
    return path


def make_folder(folder: Path) -> None:
    """Make a folder, and the missing ones above it, for their owner only."""
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(0o700, exist_ok=True)
    elif not folder.is_dir():
        folder.mkdir()  # raises the error that says so


# --- verified files --------------------------------------------------------------------


def is_verified(folder: Path) -> bool:
    """Return True if the files in a folder have the lengths and times of the verified ones."""
    files = verified_files(folder)
    with contextlib.suppress(OSError, ValueError, TypeError):
        return bool(files) and all(stamp(folder / name) == files[name][:2] for name in files)
    return False


def verified_files(folder: Path) -> dict[str, Any]:
    """Return the stamps of the files in a folder when they were last verified, by name."""
    with contextlib.suppress(CheckpointError):
        files = read_json(folder / VERIFIED)
        if all(isinstance(about, list) for about in files.values()):
            return files
    return {}


def note_verified(folder: Path, files: Mapping[str, list[Any]]) -> None:
    """Write the note of a folder: stamps of files by name, each with more about it or not.

    From now on, only the owner can write into the folder. A folder that this user may not write
    into keeps the note that it has.
    """
    import json

    if not os.access(folder, os.W_OK):
        return
    for path in (folder.parent, folder):
        if os.name != "nt" and path.stat().st_uid == os.geteuid():
            path.chmod(path.stat().st_mode & ~OTHERS_WRITE)
    # For the owner only, from its first moment on, whatever the umask is.
    with whole_file(str(folder / VERIFIED), 0o600) as file:
        file.write(json.dumps(files).encode())


def stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


OTHERS_WRITE = 0o022


def is_private(folder: Path) -> bool:
    """Return True if nobody but this user, or root, can have written the note of a folder.

    It and the two folders around it belong to one of these, and no one else may write into them. On
    Windows, nothing is looked up and the answer is always True. The default folder is private to
    its user there, and GPT2_NP_CACHE must name a folder of that kind.
    """
    if os.name == "nt":
        return True
    try:
        found = [path.stat() for path in (folder / VERIFIED, folder, folder.parent)]
    except OSError:
        return False
    owners = (os.geteuid(), 0)
    return all(one.st_uid in owners and not one.st_mode & OTHERS_WRITE for one in found)


# --- the lock --------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time fill a folder. The lock ends with its process, even a killed one.

    If nothing was downloaded, the folders that were made for it are removed. A folder that this
    user may not write into needs no lock.
    """
    made = [folder, *(above for above in folder.parents if not above.exists())]
    if folder.is_dir() and not os.access(folder, os.W_OK):
        yield
        return
    with hold_lock(folder, say):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file
                if os.listdir(folder) == [LOCK]:
                    (folder / LOCK).unlink()
                    for path in made:
                        path.rmdir()


def hold_lock(folder: Path, say: Callable[[str], None]) -> TextIO:
    """Wait for the lock of a folder, and return the open file that holds it."""
    path, waiting = folder / LOCK, False
    while True:
        make_folder(folder)
        file = open(path, "a")  # noqa: SIM115 (closed by the caller)
        while not try_lock(file.fileno()):
            if not waiting:
                say(f"waiting for another process that fills {folder}")
            waiting = True
            time.sleep(0.2)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()  # its last holder has removed it since, with the folder


def try_lock(file: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True

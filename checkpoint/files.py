"""Read files that strangers wrote, and name the file in every error.

A parser raises Malformed for a fault that it finds. The function that opened the file turns that
into a CheckpointError with `reading`. In this folder, functions import the modules that only
loading or downloading needs (pathlib, json, hashlib, email, requests): `import gpt2_np` stays fast.
"""
from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from ..bpe import shown
from ..gpt2_np import Error

if TYPE_CHECKING:
    from pathlib import Path

# Above anything a GPT-2 needs, and too small to hurt: the header of the largest has 0.1 MB.
MAX_SMALL_FILE = 4 * 2**20


class CheckpointError(Error):
    """A file is damaged, hostile, or not a GPT-2's. The message names the file."""


class CheckpointWarning(UserWarning):
    """A checkpoint was loaded without a part of it. The message says which part, and why."""


def warn(message: str) -> None:
    """Warn of a part that was left out, or of a guess."""
    import warnings

    warnings.warn(message, CheckpointWarning, stacklevel=8)  # about where `load` was called


class Malformed(ValueError):
    """A parser found a fault. The caller knows in which file."""


@contextlib.contextmanager
def reading(file: Path, kind: str) -> Iterator[None]:
    """Turn any failure inside into a CheckpointError: the file is not `kind`, or not readable."""
    try:
        yield
    except Malformed as error:
        raise CheckpointError(f"{file} is not {kind}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from error


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def exists(path: str | os.PathLike[str]) -> bool:
    """Return True for a folder or a regular file.

    Raises CheckpointError if the path may not be looked up, and for a pipe or a device, because
    opening one can block forever.
    """
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return False
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path} is neither a folder nor a regular file")
    return True


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, sorted."""
    with reading(folder, "a folder"):
        return sorted(os.listdir(folder))


LFS_POINTERS = b"version https://git-lfs", b"version https://hawser"


def refuse_pointer(start: bytes) -> None:
    """Refuse the text that git-lfs leaves in place of a large file that it did not fetch."""
    if start.startswith(LFS_POINTERS):
        raise Malformed("it is a git-lfs pointer; run `git lfs pull` in its folder to fetch it")


def open_file(file: Path) -> BinaryIO:
    exists(file)  # refuses a pipe; if nothing is there, `open` gives the best reason
    return open(file, "rb")


def read_small(file: Path, limit: int = MAX_SMALL_FILE) -> bytes:
    with open_file(file) as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise Malformed(f"it has over {limit} bytes")
    refuse_pointer(content)
    return content


def read_json(file: Path, limit: int = MAX_SMALL_FILE) -> dict[str, Any]:
    with reading(file, "a valid JSON object"):
        return parse_json(read_small(file, limit))


def parse_json(content: bytes) -> dict[str, Any]:
    """Parse a JSON object, and refuse repeated keys, NaN and nesting that Python cannot follow.

    A byte-order mark before it is skipped.
    """
    import json

    def unique(pairs):
        found = {}
        for key, value in pairs:
            if key in found:
                raise Malformed(f"the key {shown(key)} appears twice")
            found[key] = value
        return found

    def refuse(constant):
        raise Malformed(f"it has {constant}, which JSON does not allow")

    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error
    if not isinstance(value, dict):
        raise Malformed(f"it holds a {type(value).__name__}")
    return value

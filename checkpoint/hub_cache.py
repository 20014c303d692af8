"""Models in the cache of Hugging Face's own libraries, which are used where they lie.

A snapshot is a folder models--owner--name/snapshots/COMMIT of links into models--owner--name/blobs,
and refs/main has the commit of the branch main. Nothing is ever written there.
"""
from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from .cache import (
    at_home,
    cache_folder,
    is_private,
    make_folder,
    note_verified,
    stamp,
    verified_files,
)
from .files import CheckpointError, read_small, reading, warn
from .layouts import CONFIG, HUGGING_FACE
from .official import HUB, OTHER_NAMES, OWNER, Pins
from .safetensors import SAFETENSORS, SHARDS, read_safetensors, read_shards
from .sources import Repository, official_size, repository
from .transfer import hash_of, offline
from .vocabulary import tokenizer_files

if TYPE_CHECKING:
    from pathlib import Path


def find_snapshot(name: str, again: bool = False) -> Path | None:
    """Return the folder of a whole snapshot of that name, or None if there is none.

    The files of OpenAI's models must have their SHA-256. It is computed once and noted in the cache
    of downloads; `again` computes it again. Of another model, a snapshot may lack files of the
    tokenizer that nobody has asked for. It is used only if the network is forbidden, with a
    warning.
    """
    with contextlib.suppress(CheckpointError, OSError):  # there is no home, or it is not readable
        if size := official_size(name):
            short, revision, pins = HUB[size]
            folder = snapshot(Repository(f"{OWNER}/{short}", revision), [short])
            return folder if folder and has_pinned(folder, pins, size, again) else None
        if found := repository(name):
            older = [old for old, new in OTHER_NAMES.items() if new == found.name]
            folder = snapshot(found, older)
            if folder is None or not has_weights(folder):
                return None
            unknown = unknown_files(folder)
            if unknown and offline():
                warn(
                    f"{folder} has no {', '.join(unknown)}, and no note that the repository has "
                    "none: token ids may differ; load the model once with a network"
                )
            return folder if offline() or not unknown else None
    return None


def hub_cache() -> Path:
    """Return the folder that the hub's own libraries download into."""
    from pathlib import Path

    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(at_home(named))
    if home := os.environ.get("HF_HOME"):
        return Path(at_home(home)) / "hub"
    return Path(at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "huggingface" / "hub"


def snapshot(found: Repository, older_names: list[str]) -> Path | None:
    """Return the folder of a repository's revision, whole or not, or None if there is none."""
    for name in (found.name, *older_names):
        folder = hub_cache() / f"models--{name.replace('/', '--')}"
        commit = found.revision
        if not re.fullmatch("[0-9a-f]{40}", commit):
            try:
                with reading(folder / "refs" / commit, "the name of a commit"):
                    commit = read_small(folder / "refs" / commit).decode("ascii", "replace").strip()
            except CheckpointError:
                continue
        path = folder / "snapshots" / commit
        if re.fullmatch("[0-9a-f]{40}", commit) and path.is_dir():
            return path
    return None


def unknown_files(folder: Path) -> list[str]:
    """Return the files of a tokenizer that are not in a snapshot, but may be in the repository.

    The hub's libraries note in .no_exist/COMMIT which files they have asked for in vain.
    """
    absent = folder.parents[1] / ".no_exist" / folder.name
    return [name for name in tokenizer_files(HUGGING_FACE)
            if not (folder / name).exists() and not (absent / name).exists()]  # fmt: skip


def has_weights(folder: Path) -> bool:
    """Return True if a snapshot has its sizes, and files of weights of the right lengths.

    One that the hub's libraries have not filled may lack any of them.
    """
    if not (folder / CONFIG).exists():
        return False
    try:
        one = folder / SAFETENSORS
        return bool(read_safetensors(one) if one.exists() else read_shards(folder / SHARDS))
    except CheckpointError:
        return False


def has_pinned(folder: Path, pins: Pins, size: str, again: bool) -> bool:
    """Return True if the pinned files are in a snapshot, with their bytes and SHA-256."""
    files = [folder / name for name in pins]
    if not all(file.exists() for file in files):
        return False
    found = {str(file): stamp(file) for file in files}
    note = cache_folder() / size / "snapshot"  # holds only the note of these files
    if not again and verified_files(note) == found and is_private(note):
        return True
    for file, (n_bytes, sha256) in zip(files, pins.values(), strict=True):
        if n_bytes not in (None, file.stat().st_size) or hash_of(file).hexdigest() != sha256:
            return False
    with contextlib.suppress(OSError):  # without the note it is computed again
        make_folder(note)
        note_verified(note, found)
    return True

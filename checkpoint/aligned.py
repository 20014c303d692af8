"""A copy of a download's weights that can be memory-mapped: float32 at aligned bytes.

Processes share the weights that they map from one file. Weights of another type are converted, and
so are those at an odd byte, as in Hugging Face's official files. Each process then has a copy of
its own. So a download keeps a converted copy in its folder, from which `load` maps float32.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bpe import PART
from ..gpt2_np import map_leaves
from .cache import cache_folder, is_private, is_verified, stamp, verified_files
from .files import CheckpointError, reason
from .layouts import CONFIG, HUGGING_FACE, Checkpoint
from .names import match_hugging_face
from .safetensors import read_safetensors
from .saving import safetensors_file, shard_bytes, split_tensors, write_file
from .settings import read_settings
from .tensors import Tensor, as_array, read_bytes
from .transfer import hash_of

if TYPE_CHECKING:
    from pathlib import Path

ALIGNED = ".float32.safetensors"  # no file of a server: those begin with a letter or a digit


def mappable(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the tensors of its aligned copy, if it has one to be trusted.

    Only a download has one. It is a copy of the files of weights that the note lists, and of no
    others that lie in the folder.
    """
    folder = checkpoint.folder
    noted = verified_files(folder)
    if ALIGNED not in noted or not names_of_files(checkpoint) <= noted.keys():
        return checkpoint
    if not (is_verified(folder) and is_private(folder)):
        return checkpoint
    try:
        cache = os.path.realpath(cache_folder())
        if os.path.commonpath([cache, os.path.realpath(folder)]) == cache:
            return checkpoint._replace(tensors=copied_tensors(folder))
    except (CheckpointError, ValueError):  # another process makes it anew; another drive
        pass
    return checkpoint


def names_of_files(checkpoint: Checkpoint) -> set[str]:
    """Return the names of the files that hold the tensors."""
    names = set()
    map_leaves(lambda _, tensor: names.add(tensor.file.name), checkpoint.tensors)
    return names


def copied_tensors(folder: Path) -> dict[str, Any]:
    """Return the tensors of the copy. It leaves out the lm_head that config.json may ask for.

    That is the embedding again, or the original would not have opened.
    """
    settings = read_settings(folder / CONFIG)._replace(tied=True)
    copy = folder / ALIGNED
    return match_hugging_face(settings, read_safetensors(copy), copy)


def keep_aligned(
    checkpoint: Checkpoint, was_verified: bool, say: Callable[[str], None]
) -> dict[str, list[Any]]:
    """Make the aligned copy if it is of use, and return its stamp and SHA-256 by its name.

    A copy that the note of verified files vouches for is kept if it still has its SHA-256. At most
    half of the free space is used: without a copy everything works, in more memory.
    """
    folder, copy = checkpoint.folder, checkpoint.folder / ALIGNED
    noted, part = verified_files(folder).get(ALIGNED), copy.with_name(ALIGNED + PART)
    if not os.access(folder, os.W_OK):
        return {}
    try:
        trusted = was_verified and is_private(folder) and noted
        if trusted and noted == [*stamp(copy), hash_of(copy).hexdigest()]:
            return {ALIGNED: noted}
        for old in (copy, part):
            old.unlink(missing_ok=True)
        if checkpoint.layout is not HUGGING_FACE or maps_as_float32(checkpoint.tensors):
            return {}
        write_aligned(checkpoint, part)
        sha256 = hash_of(part).hexdigest()
        os.replace(part, copy)
        copied_tensors(folder)
        return {ALIGNED: [*stamp(copy), sha256]}
    except (OSError, CheckpointError) as error:
        say(f"processes will not share the weights in {folder}: {reason(error)}")
        with contextlib.suppress(OSError):
            for old in (copy, part):
                old.unlink(missing_ok=True)
        return {}


def maps_as_float32(tensors: dict[str, Any]) -> bool:
    """Return True if each tensor is float32 at a multiple of four bytes."""
    found = []
    map_leaves(lambda _, tensor: found.append(tensor), tensors)
    return all(tensor.dtype == "F32" and tensor.start % 4 == 0 for tensor in found)


def write_aligned(checkpoint: Checkpoint, part: Path) -> None:
    """Write the weights as one safetensors file, a block of rows in memory at a time."""
    import shutil

    shards = split_tensors(checkpoint.config, "float32")
    whole = {name: entry for shard in shards for name, entry in shard.items()}
    n_bytes = shard_bytes(whole, "float32")
    free = shutil.disk_usage(part.parent).free
    if 2 * n_bytes > free:
        raise CheckpointError(
            f"an aligned copy needs {n_bytes:,} bytes, and {free:,} are free, of which it may take "
            "half"
        )
    # The copy has the stored numbers: config.json scales them again when the copy is opened.
    rows = map_leaves(
        lambda _, tensor: StoredRows(tensor._replace(query_scale=1.0)), checkpoint.tensors
    )
    write_file(part, safetensors_file(rows, whole, "float32"))


class StoredRows:
    """A tensor that is read when it is sliced, as float32."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.shape = tensor, tensor.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        row_bytes = self.tensor.size // len(self)
        block = self.tensor._replace(
            shape=(last - first, *self.shape[1:]),
            start=self.tensor.start + first * row_bytes,
            size=(last - first) * row_bytes,
        )
        return as_array(block._replace(start=0), read_bytes(block), "float32")

"""A copy of a download's weights that can be memory-mapped: float32 at aligned bytes.

Processes share the weights that they map from one file. Weights in another type, or at an odd byte
as in Hugging Face's official files, have to be converted, and each process keeps the result for
itself. So a download keeps a converted copy in its folder, from which `load` maps float32.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..gpt2_np import map_leaves
from .cache import PART, is_private, is_verified, stamp, verified_files
from .files import CheckpointError, reason
from .layouts import HUGGING_FACE, Checkpoint, open_checkpoint
from .saving import safetensors_file, shard_bytes, split_tensors, write_file
from .tensors import Tensor, as_array, read_bytes
from .transfer import hash_of

if TYPE_CHECKING:
    from pathlib import Path

ALIGNED = "float32.safetensors"


def mappable(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the tensors of its aligned copy, if it has one to be trusted."""
    folder = checkpoint.folder
    if ALIGNED not in verified_files(folder) or not (is_verified(folder) and is_private(folder)):
        return checkpoint
    return checkpoint._replace(tensors=open_checkpoint(folder / ALIGNED).tensors)


def keep_aligned(
    checkpoint: Checkpoint, was_verified: bool, note: Callable[[str], None]
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
        open_checkpoint(copy)
        return {ALIGNED: [*stamp(copy), sha256]}
    except (OSError, CheckpointError) as error:
        note(f"processes will not share the weights in {folder}: {reason(error)}")
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

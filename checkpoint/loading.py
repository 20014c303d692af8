"""From a name, a path or a URL to a model that is ready to run."""
from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from .. import backend
from ..bpe import Tokenizer, shown
from ..gpt2_np import Model, map_leaves
from .aligned import mappable
from .downloading import check_crc, download
from .files import CheckpointError
from .hub_cache import find_snapshot
from .layouts import open_checkpoint
from .official import ROOT, SHAKESPEARE, SIZE_BY_NAME
from .sources import (
    is_path,
    is_url,
    known_names,
    official_size,
    redacted,
    repository,
    sources_of,
)
from .tensors import MappedFiles, as_array, read_bytes
from .vocabulary import tokenizer_or_warning

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

DtypeName = Literal["float32", "float64", "float16"]
DTYPES: tuple[str, ...] = get_args(DtypeName)


def load(
    name_or_path: str | os.PathLike[str],
    device: backend.DeviceName = "auto",
    dtype: DtypeName | type[np.floating[Any]] | np.dtype[Any] = "float32",
    *,
    mmap: bool = True,
    progress: bool = True,
) -> Model:
    """Return the model of that name, path or URL, ready to run.

    `name_or_path` is one of these:
    - a size ("124M", "355M", "774M", "1558M"), another name of it ("gpt2-xl"), or "shakespeare"
    - the path or http(s) URL of a folder in OpenAI's or Hugging Face's layout
    - the path of a .safetensors file
    - a repository of the hub ("owner/name", "owner/name@revision")
    An existing path wins over every name but sizes and "shakespeare". Files that are not on this
    machine are downloaded into `cache_folder()` on first use. `progress` shows that on stderr.

    `device` is "auto" (GPT2_NP_DEVICE, else a GPU if one works), "cpu" or "cuda". On the GPU, the
    tensors are copied one after another. float16 is for the GPU. On the CPU all arrays are
    read-only.

    On the CPU, weights that are float32 at aligned bytes stay in the file, memory-mapped, and
    processes share them. Other weights are converted, and each process has a copy of its own. These
    are weights of other types, and Hugging Face's official files, which begin at an odd byte. But a
    download keeps an aligned float32 copy of them, which is mapped. Overwriting a mapped file in
    place ends the process that uses it: rename another file onto it. With `mmap` False, every byte
    is read into private memory, and checked if the layout has checksums.

    A tokenizer unlike GPT-2's costs the tokenizer: a CheckpointWarning says why. Raises
    CheckpointError or DownloadError, and Error if the device is not available or has too little
    memory.
    """
    dtype = dtype_name(dtype)
    xp = pick_device(device)
    backend.check_dtype(dtype, xp)
    with naming_the_size(name_or_path):
        checkpoint = open_checkpoint(locate(name_or_path, progress))
    backend.check_room(weight_bytes(checkpoint.tensors, dtype), xp)
    if mmap and dtype == "float32" and xp is np:
        checkpoint = mappable(checkpoint)
    files = MappedFiles()

    def array(path, tensor):
        if mmap:
            return backend.to_device(as_array(tensor, files[tensor.file], dtype), xp)
        content = read_bytes(tensor)
        check_crc(content, tensor, checkpoint.layout.tensor_name(path))
        return backend.to_device(as_array(tensor._replace(start=0), content, dtype), xp)

    params = map_leaves(array, checkpoint.tensors)
    if official_size(name_or_path):  # only its pinned files: a snapshot may hold others
        layout = checkpoint.layout
        files_of_pins = (checkpoint.folder / name for name in (layout.merges, layout.vocab))
        tokenizer = Tokenizer.from_files(*files_of_pins)
    else:
        tokenizer = tokenizer_or_warning(checkpoint)
    return Model(checkpoint.config, params, tokenizer)


def pick_device(device: str) -> ModuleType:
    """Return the array module of a device. "auto" is what GPT2_NP_DEVICE names, if anything."""
    asked = os.environ.get("GPT2_NP_DEVICE") if device == "auto" else None
    return backend.pick(asked or device)


def dtype_name(dtype: object) -> str:
    """Return "float32" for "float32", np.float32 and np.dtype("float32"), and so on."""
    name = dtype
    if isinstance(dtype, np.dtype | type):
        name = np.dtype(dtype).name
    if not isinstance(name, str) or name not in DTYPES:
        raise CheckpointError(f"dtype is {shown(dtype)}, expected {' or '.join(DTYPES)}")
    return name


def weight_bytes(tensors: dict[str, Any], dtype: str) -> int:
    """Return the bytes of all weights once they have that type."""
    counts = []
    map_leaves(lambda path, tensor: counts.append(math.prod(tensor.shape)), tensors)
    return sum(counts) * np.dtype(dtype).itemsize


def locate(name_or_path: str | os.PathLike[str], progress: bool = True) -> Path:
    """Return the folder or file of a name, path or URL, after downloading it if necessary."""
    from pathlib import Path

    name = name_or_path
    if name == "shakespeare":
        return Path(embedded_model())
    if isinstance(name, str) and (official_size(name) or is_url(name)):
        return locate_download(name, progress)
    if isinstance(name, str | os.PathLike):
        if is_path(name):
            return Path(name)
        if isinstance(name, str) and repository(name):
            return locate_download(name, progress)
        name = redacted(os.fspath(name))
    raise CheckpointError(
        f"{shown(name)} is neither {known_names()} nor an existing path: give one of these, or the "
        "http(s) URL of a checkpoint's folder"
    )


@contextlib.contextmanager
def naming_the_size(name: object) -> Iterator[None]:
    """Add the name of the official model to an error about a path that hides one of its names."""
    try:
        yield
    except CheckpointError as error:
        size = SIZE_BY_NAME.get(name.lower()) if isinstance(name, str) else None
        if size is None or official_size(name):
            raise
        raise CheckpointError(
            f'{error}; or load("{size}") for the official model: {name} is a path here'
        ) from error


def locate_download(name: str, progress: bool) -> Path:
    """Return the folder of a name or URL: of a verified download, a snapshot, or a new download."""
    for source in sources_of(name, progress):
        if source.is_verified():
            return source.folder
    return find_snapshot(name) or download(name, progress)


def embedded_model() -> str:
    if os.path.isdir(SHAKESPEARE):
        return SHAKESPEARE
    if os.path.isdir(ROOT):
        raise CheckpointError(
            f"{SHAKESPEARE} does not exist: copy the folder models/ beside gpt2_np.py"
        )
    raise CheckpointError(
        f"{SHAKESPEARE} cannot be read: this copy runs from inside an archive or a frozen program, "
        "and weights are memory-mapped from files; unpack it, build it with PyInstaller's option "
        "--collect-data gpt2_np, or give the path of a model's folder"
    )

"""From a name, a path or a URL to a model that is ready to run."""
from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend
from ..bpe import shown
from ..gpt2_np import SIZES, Model, map_leaves
from .cache import is_verified
from .downloading import download, is_url, sources_of
from .files import CheckpointError, exists
from .layouts import open_checkpoint
from .official import SHAKESPEARE
from .tensors import MappedFiles, as_array
from .vocabulary import open_tokenizer, tokenizer_or_warning

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = ("float32", "float64", "float16")


def load(
    name_or_path: str | os.PathLike[str], device: str = "auto", dtype: str = "float32"
) -> Model:
    """Return the model of that name, path or URL, ready to run.

    `name_or_path` is a size ("124M", "355M", "774M", "1558M"), "shakespeare", the path or http(s)
    URL of a folder in OpenAI's or Hugging Face's layout, or the path of a .safetensors file. Files
    that are not on this machine are downloaded into `cache_folder()` on first use.

    `device` is "auto" (GPT2_NP_DEVICE, else a GPU if one works), "cpu" or "cuda". On the CPU,
    float32 weights stay in the file, memory-mapped, and all arrays are read-only. On the GPU, the
    tensors are copied one after another. float16 is for the GPU. A tokenizer unlike GPT-2's costs
    the tokenizer: a CheckpointWarning says why. Raises CheckpointError or DownloadError, and Error
    if the device is not available or has too little memory.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {shown(dtype)}, expected {' or '.join(DTYPES)}")
    if device == "auto":
        device = os.environ.get("GPT2_NP_DEVICE") or "auto"
    xp = backend.pick(device)
    backend.check_dtype(dtype, xp)
    checkpoint = open_checkpoint(locate(name_or_path))
    backend.check_room(weight_bytes(checkpoint.tensors, dtype), xp)
    files = MappedFiles()

    def array(path, tensor):
        return backend.to_device(as_array(tensor, files[tensor.file], dtype), xp)

    params = map_leaves(array, checkpoint.tensors)
    official = isinstance(name_or_path, str) and name_or_path in SIZES
    tokenizer = (open_tokenizer if official else tokenizer_or_warning)(checkpoint)
    return Model(checkpoint.config, params, tokenizer)


def weight_bytes(tensors: dict[str, Any], dtype: str) -> int:
    """Return the bytes of all weights once they have that type."""
    counts = []
    map_leaves(lambda path, tensor: counts.append(math.prod(tensor.shape)), tensors)
    return sum(counts) * np.dtype(dtype).itemsize


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the folder or file of a name, path or URL, after downloading it if necessary."""
    from pathlib import Path

    if name_or_path == "shakespeare":
        return Path(embedded_model())
    if isinstance(name_or_path, str) and (name_or_path in SIZES or is_url(name_or_path)):
        for source in sources_of(name_or_path):
            if is_verified(source.folder):
                return source.folder
        return download(name_or_path)
    if isinstance(name_or_path, (str, os.PathLike)):
        path = os.fspath(name_or_path)
        if exists(path) or exists(f"{path}.index"):  # the prefix of a TensorFlow bundle
            return Path(name_or_path)
    raise CheckpointError(
        f"{shown(name_or_path)} is neither a known model ({', '.join(SIZES)}, shakespeare) nor an "
        "existing path: give one of these, or the http(s) URL of a checkpoint's folder"
    )


def embedded_model() -> str:
    if not os.path.exists(__file__):
        raise CheckpointError(
            f"{SHAKESPEARE} cannot be read: this copy runs from inside an archive, and weights are "
            "memory-mapped from files; unpack it, or give the path of a model's folder"
        )
    if not os.path.exists(SHAKESPEARE):
        raise CheckpointError(
            f"{SHAKESPEARE} does not exist: copy the folder models/ beside gpt2_np.py"
        )
    return SHAKESPEARE

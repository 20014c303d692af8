"""Folders of a checkpoint: OpenAI's layout and Hugging Face's, which hold the same tensors.

`open_checkpoint` recognises the layout, finds the files, checks the sizes, and finds the tensor of
each parameter.
"""
from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bpe import shown
from ..gpt2_np import SIZES, Config
from .bundle import LATEST, find_index, index_of, read_bundle
from .files import CheckpointError, exists, listing, warn
from .names import (
    HUGGING_FACE,
    TENSORFLOW,
    Layout,
    match_hugging_face,
    match_tensors,
)
from .safetensors import SAFETENSORS, SHARDS, read_safetensors, read_shards
from .settings import CONFIG, HPARAMS, read_hparams, read_settings
from .tensors import Tensor

if TYPE_CHECKING:
    from pathlib import Path

SHARD_INDEX = re.compile(r".+\.safetensors\.index(\.[\w-]+)?\.json")  # a variant before .json
ADAPTER = "adapter_config.json"
MERGE_ADAPTER = "merge it into its model with peft's merge_and_unload(), and save that"
ONE_OF_SEVERAL = re.compile(r".+-\d+-of-\d+(\.[\w-]+)?\.safetensors")


class Checkpoint(NamedTuple):
    """An opened checkpoint. `tensors` is nested as `Model.params` is, with Tensor leaves."""

    folder: Path
    layout: Layout
    config: Config
    tensors: dict[str, Any]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint in a folder, or one of which `path` is the file of the weights.

    That is a .safetensors file or the index of several, with config.json beside it, or the prefix
    or the .index of a TensorFlow bundle.
    """
    if path.is_dir():
        return open_folder(path)
    if path.suffix == ".safetensors" or SHARD_INDEX.fullmatch(path.name):
        return open_hugging_face(path)
    if path.suffix == ".index" or exists(index_of(path)):
        return open_bundle(index_of(path))
    remedy = f"; {conversion(path.parent, path.name)}" if is_pickled(path.name) else ""
    raise CheckpointError(
        f"{path} is not a checkpoint: expected a folder, a .safetensors file with {CONFIG} beside "
        f"it, or the prefix of a TensorFlow bundle{remedy}"
    )


def open_folder(folder: Path) -> Checkpoint:
    if exists(folder / HPARAMS):
        return open_bundle(find_index(folder))
    if exists(folder / CONFIG):
        if exists(folder / ADAPTER):
            raise CheckpointError(
                f"{folder} holds {ADAPTER}, so it means another function than its weights alone: "
                f"{MERGE_ADAPTER}, or give the path of the file of weights to leave the adapter out"
            )
        return open_hugging_face(find_weights(folder))
    if os.path.isfile(folder / LATEST) or any(name.endswith(".index") for name in listing(folder)):
        return open_bundle(find_index(folder))
    remedy = "give the folder of a checkpoint, which holds one of them"
    if exists(folder / ADAPTER):
        remedy = f"an adapter: {MERGE_ADAPTER}"
    elif inside := checkpoints_inside(folder):
        remedy = f"give the folder inside it, {shown(inside[0] if len(inside) == 1 else inside)}"
    raise CheckpointError(
        f"{folder} holds neither {HPARAMS} (OpenAI's layout) nor {CONFIG} (Hugging Face's): "
        + remedy
    )


def checkpoints_inside(folder: Path) -> list[str]:
    """Return the folders in which a trainer has left checkpoints, of the first hundred names."""
    marks = (HPARAMS, CONFIG, LATEST)
    return [name for name in listing(folder)[:100]
            if any(os.path.isfile(folder / name / mark) for mark in marks)]  # fmt: skip


# --- OpenAI's layout -------------------------------------------------------------------


def open_bundle(index: Path) -> Checkpoint:
    hparams = index.with_name(HPARAMS)
    config = read_hparams(hparams) if exists(hparams) else None  # before the larger files
    found = read_bundle(index)
    config = config or official_config(found, index)
    return Checkpoint(index.parent, TENSORFLOW, config,
                      match_tensors(config, found, TENSORFLOW, index))  # fmt: skip


def official_config(found: dict[str, Tensor], index: Path) -> Config:
    """Return the sizes of the official model that a bundle without hparams.json has come from.

    A trainer may write none. The tensors give all sizes but the number of heads.
    """
    for size, config in SIZES.items():
        layers = {name.split("/")[1] for name in found if re.match(r"model/h\d+/", name)}
        shapes = [getattr(found.get(f"model/{name}"), "shape", None) for name in ("wte", "wpe")]
        expected = [(config.n_vocab, config.n_embd), (config.n_ctx, config.n_embd)]
        if shapes == expected and len(layers) == config.n_layer:
            warn(f"{index}: no {HPARAMS} beside it, so its {config.n_head} heads are those of the "
                 f"official {size}, which has the same tensors")  # fmt: skip
            return config
    raise CheckpointError(
        f"{index.parent} has no {HPARAMS}, which gives the number of heads: copy it from the "
        "folder of the model that was trained, with its vocab.bpe and encoder.json"
    )


# --- Hugging Face's layout -------------------------------------------------------------


def open_hugging_face(file: Path) -> Checkpoint:
    if not exists(file.with_name(CONFIG)):
        raise CheckpointError(f"{file} has no {CONFIG} beside it: copy it from the same checkpoint")
    settings = read_settings(file.with_name(CONFIG))
    found = read_shards(file) if file.suffix == ".json" else read_safetensors(file)
    tensors = match_hugging_face(settings, found, file)
    return Checkpoint(file.parent, HUGGING_FACE, settings.config, tensors)


def find_weights(folder: Path) -> Path:
    """Return the safetensors file of a folder, or the index of several, under any name."""
    for name in (SAFETENSORS, SHARDS):
        if exists(folder / name):
            return folder / name
    names = listing(folder)
    shards = [name for name in names if ONE_OF_SEVERAL.fullmatch(name)]
    whole = [name for name in names if name.endswith(".safetensors") and name not in shards]
    found = [name for name in names if SHARD_INDEX.fullmatch(name)] + whole
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise CheckpointError(
            f"{folder} holds several files of weights ({shown(found)}) and no {SAFETENSORS}: give "
            "the path of one of them"
        )
    if shards:
        raise CheckpointError(
            f"{folder} holds {shown(shards[0])} and no index of such files: copy {SHARDS} from "
            "the same checkpoint"
        )
    for name in sorted(filter(is_pickled, names), key=other_name):
        raise CheckpointError(
            f"{folder} has no {SAFETENSORS}, only {shown(name)}: {conversion(folder, name)}"
        )
    raise CheckpointError(
        f"{folder} has {CONFIG} but no weights: copy {SAFETENSORS} from the same checkpoint"
    )


# --- weights that are never read -------------------------------------------------------

PICKLED = re.compile(r".+\.(bin|pt|pth|ckpt|pkl|h5|msgpack)(\.index\.json)?")
OF_TRANSFORMERS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?")
OF_TRAINER = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state).*")


def is_pickled(name: str) -> bool:
    """Return True for a file of weights that are pickled, in HDF5 or in Flax's MessagePack."""
    return PICKLED.fullmatch(name) is not None and not OF_TRAINER.fullmatch(name)


def other_name(name: str) -> bool:
    """Return False for a file that transformers finds by itself, which comes first in order."""
    return not OF_TRANSFORMERS.fullmatch(name)


def conversion(folder: Any, name: str) -> str:
    """Return why a file of weights is not read, and the two lines of Python that convert it."""
    target = repr(str(folder))
    options = {".h5": ", from_tf=True", ".msgpack": ", from_flax=True"}
    suffix = os.path.splitext(name.removesuffix(".index.json"))[1]
    lines = (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained({target}{options.get(suffix, '')}).save_pretrained({target})"
    )
    if suffix in options:
        return f"that format is not read; convert it to safetensors with transformers 4: {lines}"
    if not OF_TRANSFORMERS.fullmatch(name):
        file = repr(os.path.join(str(folder), name))
        target = repr(os.path.join(str(folder), SAFETENSORS))
        lines = (
            "import torch, safetensors.torch as st; st.save_file({k: v.clone() for k, v in "
            f"torch.load({file}, 'cpu', weights_only=True).items()}}, {target})"
        )
    return (
        "pickled weights are never read, because they run code; convert them to safetensors: "
        + lines
    )

"""Folders of a checkpoint: OpenAI's layout and Hugging Face's, which hold the same tensors.

`open_checkpoint` recognises the layout, checks the sizes, and finds the tensor of each parameter.
No tensor may be missing, have another shape, or be left over.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bpe import shown
from ..gpt2_np import Config, map_leaves, parameter_shapes
from .bundle import INDEX, read_bundle
from .files import CheckpointError, exists, read_json
from .safetensors import SAFETENSORS, SHARDS, read_safetensors, read_shards
from .tensors import WEIGHT_TYPES, Tensor, same_bytes

if TYPE_CHECKING:
    from pathlib import Path


class Layout(NamedTuple):
    """Names of the files of a checkpoint, and of its tensors."""

    config: str
    merges: str
    vocab: str
    tensor_name: Callable[[tuple], str]


class Checkpoint(NamedTuple):
    """An opened checkpoint. `tensors` is nested as `Model.params` is, with Tensor leaves."""

    folder: Path
    layout: Layout
    config: Config
    tensors: dict[str, Any]


def tensorflow_name(path: tuple) -> str:
    """Return model/h3/attn/c_attn/w for ("blocks", 3, "attn", "c_attn", "w")."""
    return "model/" + "/".join(map(str, path)).replace("blocks/", "h")


def hugging_face_name(path: tuple) -> str:
    """Return h.3.ln_1.weight for ("blocks", 3, "ln_1", "g")."""
    leaves = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    return ".".join(map(str, (*path[:-1], leaves[path[-1]]))).replace("blocks.", "h.")


HPARAMS, CONFIG = "hparams.json", "config.json"
TENSORFLOW = Layout(HPARAMS, "vocab.bpe", "encoder.json", tensorflow_name)
HUGGING_FACE = Layout(CONFIG, "merges.txt", "vocab.json", hugging_face_name)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint in a folder, or a .safetensors file with its config.json beside it."""
    folder = path if path.is_dir() else path.parent
    if folder is not path and path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a checkpoint: expected a folder, or a .safetensors file with "
            "config.json beside it (pickled weights are never read; convert them to safetensors)"
        )
    if folder is path and exists(folder / HPARAMS):
        config, file = read_hparams(folder / HPARAMS), folder / INDEX
        tensors = match_tensors(config, read_bundle(file), TENSORFLOW, file)
        return Checkpoint(folder, TENSORFLOW, config, tensors)
    if exists(folder / CONFIG):
        config = read_config(folder / CONFIG)
        file = path if folder is not path else folder / SAFETENSORS
        if not exists(file) and exists(folder / SHARDS):
            file = folder / SHARDS
        found = read_shards(file) if file.name == SHARDS else read_safetensors(file)
        tensors = match_tensors(config, plain_names(found, file), HUGGING_FACE, file)
        return Checkpoint(folder, HUGGING_FACE, config, tensors)
    raise CheckpointError(
        f"{folder} holds neither {HPARAMS} (OpenAI's layout) nor {CONFIG} (Hugging Face's): give "
        "the folder of a checkpoint, which holds one of them"
    )


# --- tensors for parameters ------------------------------------------------------------


def match_tensors(
    config: Config, found: Mapping[str, Tensor], layout: Layout, file: Path
) -> dict[str, Any]:
    """Return the tensor of each parameter of `config`. `file` is the one to name in errors."""
    unused = dict(found)

    def take(path, shape):
        name = layout.tensor_name(path)
        # TensorFlow has the weights as convolutions one token wide.
        stored = (1, *shape) if path[-1] == "w" and layout is TENSORFLOW else shape
        if name not in unused:
            raise CheckpointError(f"{file} has no tensor {name!r}, expected one of shape {stored}")
        tensor = unused.pop(name)
        if tensor.shape != stored or tensor.dtype not in WEIGHT_TYPES:
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} is {tensor.dtype} of shape {shown(tensor.shape)}, "
                f"expected {', '.join(WEIGHT_TYPES)} of shape {stored}"
            )
        return tensor._replace(shape=shape)

    tensors = map_leaves(take, parameter_shapes(config))
    head = unused.pop("lm_head.weight", None)
    if head and not same_bytes(head, tensors["wte"]):
        raise CheckpointError(
            f"{head.file}: tensor 'lm_head.weight' differs from 'wte.weight', expected the same "
            "values: the unembedding of a GPT-2 is its embedding"
        )
    for name in unused:
        raise CheckpointError(
            f"{file}: tensor {shown(name)} does not belong to a GPT-2 with {config}"
        )
    return tensors


def plain_names(found: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Drop the prefix that newer files have, and the causal masks that older files have."""
    plain = {}
    for full_name, tensor in found.items():
        name = full_name.removeprefix("transformer.")
        if name in plain:
            raise CheckpointError(
                f"{file}: tensor {shown(name)} appears with and without the prefix 'transformer.'"
            )
        if not re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", name):
            plain[name] = tensor
    return plain


# --- sizes -----------------------------------------------------------------------------

MAX_LAYERS, MAX_SIZE = 10_000, 2**24  # above any GPT-2, and small enough to compute with

# The function that the forward pass computes. With any other value the weights mean another one.
EXPECTED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def read_hparams(file: Path) -> Config:
    """Return the sizes in OpenAI's hparams.json."""
    return checked_config(file, read_json(file), {})


def read_config(file: Path) -> Config:
    """Return the sizes in Hugging Face's config.json, which must describe a GPT-2."""
    found = read_json(file)
    config = checked_config(file, found, {"n_vocab": "vocab_size", "n_ctx": "n_positions"})
    sizes = {"n_ctx": (config.n_ctx,), "n_inner": (None, 4 * config.n_embd)}
    for key, expected in (EXPECTED | sizes).items():
        if key in found and found[key] not in expected:
            wanted = " or ".join(map(repr, expected))
            raise CheckpointError(f"{file}: {key} is {shown(found[key])}, expected {wanted}")
    return config


def checked_config(file: Path, found: Mapping[str, Any], keys: Mapping[str, str]) -> Config:
    sizes = {}
    for name in Config.__annotations__:
        sizes[name] = value = found.get(key := keys.get(name, name))
        limit = MAX_LAYERS if name == "n_layer" else MAX_SIZE
        if type(value) is not int or not 1 <= value <= limit:
            raise CheckpointError(
                f"{file}: {key} is {shown(value)}, expected a whole number from 1 to {limit}"
            )
    config = Config(**sizes)
    if config.n_embd % config.n_head:
        raise CheckpointError(
            f"{file}: n_embd is {config.n_embd}, expected a multiple of n_head, {config.n_head}"
        )
    return config

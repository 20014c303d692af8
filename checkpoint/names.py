"""Names of tensors in each layout, and the tensor that each parameter has.

No tensor of the model may be missing, have another shape, or be left over. Tensors beside the model
(heads for other tasks, the state of an optimizer) are left out, heads with a warning.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bpe import shown
from ..gpt2_np import Config, map_leaves, parameter_shapes
from .files import CheckpointError, warn
from .settings import CONFIG, HPARAMS, Settings
from .tensors import WEIGHT_TYPES, Tensor, same_values

if TYPE_CHECKING:
    from pathlib import Path


class Layout(NamedTuple):
    """Names of the files of a checkpoint, and of its tensors."""

    config: str
    merges: str
    vocab: str
    tensor_name: Callable[[tuple], str]


def tensorflow_name(path: tuple) -> str:
    """Return model/h3/attn/c_attn/w for ("blocks", 3, "attn", "c_attn", "w")."""
    return "model/" + "/".join(map(str, path)).replace("blocks/", "h")


def hugging_face_name(path: tuple) -> str:
    """Return h.3.ln_1.weight for ("blocks", 3, "ln_1", "g")."""
    leaves = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    return ".".join(map(str, (*path[:-1], leaves[path[-1]]))).replace("blocks.", "h.")


TENSORFLOW = Layout(HPARAMS, "vocab.bpe", "encoder.json", tensorflow_name)
HUGGING_FACE = Layout(CONFIG, "merges.txt", "vocab.json", hugging_face_name)


# --- a tensor for each parameter -------------------------------------------------------


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
            zeros = "; a model without biases needs zeros there" if path[-1] == "b" else ""
            raise CheckpointError(
                f"{file} has no tensor {name!r}, expected one of shape {stored}{zeros}"
            )
        tensor = unused.pop(name)
        if tensor.shape == stored[::-1] != stored and path[-1] == "w":
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} has shape {shown(tensor.shape)}, expected "
                f"{stored}: it is transposed, as torch.nn.Linear stores it (nanoGPT); transpose "
                "attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj of every block"
            )
        if tensor.shape != stored or tensor.dtype not in WEIGHT_TYPES:
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} is {tensor.dtype} of shape {shown(tensor.shape)}, "
                f"expected {', '.join(WEIGHT_TYPES)} of shape {stored}"
            )
        return tensor._replace(shape=shape)

    tensors = map_leaves(take, parameter_shapes(config))
    left_out = list(unused)
    if layout is TENSORFLOW:
        left_out = [name for name in unused if not is_optimizer_state(name, found)]
    parts = TENSORFLOW_PARTS if layout is TENSORFLOW else HUGGING_FACE_PARTS
    for name in filter(parts.fullmatch, left_out):
        raise CheckpointError(
            f"{file}: tensor {shown(name)} does not belong to a GPT-2 with {config}: give the "
            "settings that the model was saved with, or run it with transformers"
        )
    if left_out:
        some = ", ".join(map(shown, left_out[:3])) + (", …" if len(left_out) > 3 else "")
        n = "1 tensor" if len(left_out) == 1 else f"{len(left_out)} tensors"
        warn(f"{file}: left out {n} that the language model does not use: {some}")
    return tensors


# --- OpenAI's layout -------------------------------------------------------------------

TENSORFLOW_PARTS = re.compile(r"model/.*", re.DOTALL)
# Of tf.train.Saver without a list of variables: the optimizer's slots, its powers, the step.
COUNTERS = re.compile(r"(.*/)?(beta\d_power|global_step|learning_rate)(_\d+)?")


def is_optimizer_state(name: str, found: Container[str]) -> bool:
    """Return True for a counter, and for a slot: a tensor whose name continues another's."""
    return COUNTERS.fullmatch(name) is not None or name.rpartition("/")[0] in found


# --- Hugging Face's layout -------------------------------------------------------------

# Wrappers add their name before the module, or to every module inside (torch.compile, FSDP).
WRAPPERS = {"_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module",
            "_checkpoint_wrapped_module"}  # fmt: skip
ROOTS = {"transformer", "model", "base_model", "pretrained_model"}
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
HUGGING_FACE_PARTS = re.compile(r"(h|wte|wpe|ln_f|lm_head)(\..*)?", re.DOTALL)

# Tensors that change the function of the model they lie in: what they are, and the remedy.
CHANGES = {
    r".*(\.lora_|\.base_layer\.)": (
        "a LoRA adapter", "merge it with peft's merge_and_unload() and save the model again"),
    r"h\..*(crossattention|ln_cross_attn)": (
        "cross-attention, which reads an encoder", "run it with transformers"),
    r"h\..*adapter|(prompt|prefix)_": (
        "an adapter or a trained prompt", "run it with the library that made it"),
    r"(h|wte|wpe|lm_head)\..*\.(absmax|quant|SCB|qweight|qzeros|g_idx|(\w*_)?scale|zero_point)": (
        "quantized weights", "save the model again without quantization"),
}  # fmt: skip


def match_hugging_face(
    settings: Settings, found: Mapping[str, Tensor], file: Path
) -> dict[str, Any]:
    """Return the tensor of each parameter, with the settings of config.json applied to it."""
    plain = plain_names(found, file)
    for name in plain:
        for pattern, (kind, remedy) in CHANGES.items():
            if re.match(pattern, name):
                raise CheckpointError(f"{file}: tensor {shown(name)} is of {kind}: {remedy}")
    head = plain.pop("lm_head.weight", None)
    if head and settings.tied:  # of tied weights, safetensors.torch.save_model keeps one
        plain.setdefault("wte.weight", head)
    tensors = match_tensors(settings.config, plain, HUGGING_FACE, file)
    if head:
        check_head(head, tensors["wte"])
    elif not settings.tied:
        raise CheckpointError(
            f"{file} has no tensor 'lm_head.weight', but tie_word_embeddings is False: make it "
            f"true in {CONFIG} if the embedding is the unembedding"
        )
    for block, scale in zip(tensors["blocks"], settings.query_scales, strict=True):
        c_attn = block["attn"]["c_attn"]
        block["attn"]["c_attn"] = {
            leaf: tensor._replace(query_scale=scale) for leaf, tensor in c_attn.items()
        }
    return tensors


def plain_names(found: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Drop the names of wrappers, and the causal masks that older files have."""
    plain, full_names = {}, {}
    for full_name, tensor in found.items():
        name = plain_name(full_name)
        if name in plain and not same_values(plain[name], tensor):
            raise CheckpointError(
                f"{file}: tensors {shown(full_names[name])} and {shown(full_name)} differ, "
                f"expected the same values: both are {shown(name)}"
            )
        if not MASKS.fullmatch(name):
            plain.setdefault(name, tensor)
            full_names.setdefault(name, full_name)
    return plain


def plain_name(full_name: str) -> str:
    """Return h.0.ln_1.weight for _orig_mod.transformer.h.0.ln_1.weight."""
    parts = [part for part in full_name.split(".") if part not in WRAPPERS]
    first = next((i for i, part in enumerate(parts) if part not in ROOTS), 0)
    return ".".join(parts[first:])


def check_head(head: Tensor, wte: Tensor) -> None:
    """Refuse an unembedding that is not the embedding, and warn if it is rounded."""
    if same_values(head, wte):
        return
    if any(same_values(head, wte, dtype) for dtype in {head.dtype, wte.dtype}):
        warn(
            f"{head.file}: tensor 'lm_head.weight' is 'wte.weight' in another precision "
            f"({head.dtype} and {wte.dtype}): 'wte.weight' is used for both"
        )
        return
    raise CheckpointError(
        f"{head.file}: tensor 'lm_head.weight' differs from 'wte.weight', expected the same "
        "values: the unembedding of a GPT-2 is its embedding; run this model with transformers"
    )

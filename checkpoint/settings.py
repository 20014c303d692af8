"""hparams.json and config.json: the sizes of a model, and the settings that change its function.

transformers is the measure. A key that is absent has its default there. A key that changes nothing
in float32 is ignored. One that changes the function is refused by name, or folded into the weights.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bpe import shown
from ..gpt2_np import LAYER_NORM_EPSILON, SIZES, Config
from .files import CheckpointError, read_json

if TYPE_CHECKING:
    from pathlib import Path

HPARAMS, CONFIG = "hparams.json", "config.json"
MAX_LAYERS, MAX_SIZE = 10_000, 2**24  # above any GPT-2, and small enough to compute with


class Settings(NamedTuple):
    """The sizes of a model, and what config.json says about its weights."""

    config: Config
    query_scales: tuple[float, ...]  # of each layer, see `query_scales`
    tied: bool = True  # the unembedding is the embedding


# --- sizes -----------------------------------------------------------------------------


def read_hparams(file: Path) -> Config:
    """Return the sizes in OpenAI's hparams.json."""
    return checked_config(file, read_json(file), {})


def read_config(file: Path) -> Config:
    """Return the sizes in Hugging Face's config.json, which must describe a GPT-2."""
    return read_settings(file).config


def checked_config(file: Path, found: Mapping[str, Any], keys: Mapping[str, str]) -> Config:
    sizes: dict[str, int] = {}
    for name in Config.__annotations__:
        value = found.get(key := keys.get(name, name))
        limit = MAX_LAYERS if name == "n_layer" else MAX_SIZE
        if type(value) is not int or not 1 <= value <= limit:
            raise CheckpointError(
                f"{file}: {key} is {shown(value)}, expected a whole number from 1 to {limit}"
            )
        sizes[name] = value
    config = Config(**sizes)
    if config.n_embd % config.n_head:
        raise CheckpointError(
            f"{file}: n_embd is {config.n_embd}, expected a multiple of n_head, {config.n_head}"
        )
    return config


# --- config.json -----------------------------------------------------------------------

# Names that transformers reads too. Where both are given, it takes the value of the first.
ALIASES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
           "max_position_embeddings": "n_positions"}  # fmt: skip
HUGGING_FACE_KEYS = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
DEFAULT_SIZES = {HUGGING_FACE_KEYS.get(name, name): size
                 for name, size in vars(SIZES["124M"]).items()}  # fmt: skip

# The function that the forward pass computes. With any other value the weights mean another one.
TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
EXPECTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": TANH_GELUS,  # five programs for one formula
    "layer_norm_epsilon": (LAYER_NORM_EPSILON,),
    "scale_attn_weights": (True, False),
    "scale_attn_by_inverse_layer_idx": (False, True),
    "add_cross_attention": (False,),
    "is_causal": (True,),  # transformers 5 looks at later positions with false
    "tie_word_embeddings": (True, False),
    "quantization_config": (),
    "pruned_heads": ({},),
    "transformers_weights": (),  # another file than model.safetensors
}


def read_settings(file: Path) -> Settings:
    """Return the sizes and settings in Hugging Face's config.json, which must be of a GPT-2.

    null stands for the default. Settings that change nothing in float32 are not looked at:
    dropout rates, reorder_and_upcast_attn, n_ctx beside n_positions, the type of the weights.
    """
    found = read_json(file)
    named = {ALIASES[key]: found[key] for key in ALIASES if key in found}
    config = checked_config(file, DEFAULT_SIZES | found | named, HUGGING_FACE_KEYS)
    for key, expected in (EXPECTED | {"n_inner": (4 * config.n_embd,)}).items():
        value = found.get(key)
        if value is not None and value not in expected:
            wanted = " or ".join(map(repr, expected or (None,)))
            raise CheckpointError(
                f"{file}: {key} is {shown(value)}, expected {wanted}: its weights are of another "
                "function than this GPT-2; run them with transformers"
            )
    tied = found.get("tie_word_embeddings") in (None, True)
    return Settings(config, query_scales(config, found), tied)


def query_scales(config: Config, found: Mapping[str, Any]) -> tuple[float, ...]:
    """Return a factor for the queries of each layer, which makes other scales of attention ours.

    Scores are q·k / √e. With `scale_attn_weights: false` a model has trained with q·k, and with
    `scale_attn_by_inverse_layer_idx: true` (Stanford's Mistral) layer l divides by l + 1.
    """
    scale = 1.0
    if found.get("scale_attn_weights") not in (None, True):
        scale = math.sqrt(config.n_embd // config.n_head)
    if found.get("scale_attn_by_inverse_layer_idx") in (None, False):
        return (scale,) * config.n_layer
    return tuple(scale / (layer + 1) for layer in range(config.n_layer))

"""Beside transformers 4 and 5: settings folded into weights, and the lines that convert pickles."""
import contextlib
import os
import re

import numpy as np
import pytest
import torch
import transformers

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import CheckpointError
from gpt2_np.checkpoint.settings import TANH_GELUS

pytestmark = pytest.mark.parity
SIZES = {"vocab_size": 61, "n_positions": 24, "n_embd": 20, "n_head": 4, "n_layer": 3}
TOKENS = np.random.default_rng(0).integers(61, size=24)


def saved(folder, **settings):
    """Let transformers write a model whose attention and activations are far from linear."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SIZES, initializer_range=0.4, **settings)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def their_logits(folder, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).float().eval()
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)[None])[0][0].numpy()


def our_logits(folder):
    model = checkpoint.load(folder)
    return gpt2_np.forward(model.params, model.config, TOKENS)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},  # Mistral's
    ],
    ids=str,
)
def test_scales_of_attention_give_the_logits_of_transformers(tmp_path, settings):
    saved(tmp_path, **settings)
    # By default, transformers 4 ignores both settings: its sdpa attention has one scale.
    expected = their_logits(tmp_path, attn_implementation="eager")
    assert relative_error(our_logits(tmp_path), expected) <= 1e-5
    saved(tmp_path / "plain")
    assert relative_error(our_logits(tmp_path / "plain"), expected) > 0.05


@pytest.mark.parametrize("name", TANH_GELUS)
def test_all_programs_of_the_tanh_gelu_are_ours(tmp_path, name):
    saved(tmp_path, activation_function=name)
    assert relative_error(our_logits(tmp_path), their_logits(tmp_path)) <= 1e-5


@pytest.mark.parametrize("name", ["gelu", "gelu_python", "quick_gelu", "relu", "silu"])
def test_other_activations_compute_another_function_and_are_refused(tmp_path, name):
    saved(tmp_path / "plain")
    saved(tmp_path / "other", activation_function=name)
    error = relative_error(our_logits(tmp_path / "plain"), their_logits(tmp_path / "other"))
    assert error > 1e-5
    with pytest.raises(CheckpointError, match=f"activation_function is {name!r}"):
        checkpoint.load(tmp_path / "other")


def lines_of(folder):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    return re.search(r"convert them to safetensors: (.*)$", str(caught.value))[1]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt", "model.ckpt", "pytorch_model.pt"])
@pytest.mark.parametrize("given", ["folder", "file"])
def test_the_lines_that_the_refusal_of_a_pickle_gives_convert_it(tmp_path, name, given):
    theirs = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / name)
    lines = lines_of(tmp_path if given == "folder" else tmp_path / name)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        exec(lines, {})
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)[None])[0][0].numpy()
    assert relative_error(our_logits(tmp_path), expected) <= 1e-5

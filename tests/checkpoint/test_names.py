"""Names of tensors: wrappers are taken off, heads left out aloud, another function refused."""
import warnings

import make_checkpoints as make
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_checkpoints import SMALL, assert_same_params, write_hugging_face

from gpt2_np import checkpoint
from gpt2_np.checkpoint import CheckpointError, CheckpointWarning

WTE = make.random_params(SMALL)["wte"]
SHAPE = WTE.shape


def head(array, dtype="F32"):
    return {"lm_head.weight": (dtype, array.shape, make.encode(array, dtype))}


def write_tensors(folder, change=lambda tensors: tensors, dtype="F32", **settings):
    """Write a checkpoint whose dict of float32 arrays was changed. Return the parameters."""
    params = write_hugging_face(folder, tokenizer=False, **settings)
    tensors = change(make.hugging_face_tensors(params))
    make.write_safetensors(folder / "model.safetensors", {
        name: (dtype, array.shape, make.encode(array, dtype)) for name, array in tensors.items()
    })  # fmt: skip
    return params


@pytest.fixture(autouse=True)
def no_other_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- wrappers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "module._orig_mod.transformer.", "_orig_mod.module.transformer.",
     "transformer._orig_mod.", "model.", "base_model.model.transformer.", "model.module.module.",
     "pretrained_model.transformer.", "_forward_module.transformer."],
)  # fmt: skip
def test_prefixes_of_wrappers_are_taken_off_in_any_order(tmp_path, prefix):
    params = write_hugging_face(tmp_path, tokenizer=False, prefix=prefix)
    assert_same_params(checkpoint.load(tmp_path).params, params)


def test_wrappers_inside_a_name_are_taken_off_too(tmp_path):
    def wrap(tensors):
        return {name.replace("attn.", "_orig_mod.attn.", 1): a for name, a in tensors.items()}

    params = write_tensors(tmp_path, wrap)
    assert_same_params(checkpoint.load(tmp_path).params, params)


def test_a_tensor_under_two_names_must_have_the_same_values(tmp_path):
    wpe = make.random_params(SMALL)["wpe"]
    twice = {"transformer.wpe.weight": ("F32", (8, 8), wpe.tobytes())}
    params = write_hugging_face(tmp_path, tokenizer=False, extra=twice)
    assert_same_params(checkpoint.load(tmp_path).params, params)
    for other in ("F32", (8, 8), bytes(256)), ("U8", (1,), b"1"), ("F64", (8, 8), bytes(512)):
        twice["transformer.wpe.weight"] = other
        write_hugging_face(tmp_path, tokenizer=False, extra=twice)
        message = r"tensors 'wpe\.weight' and 'transformer\.wpe\.weight' differ, expected"
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(tmp_path)


# --- the unembedding -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lm_head.weight", "module.lm_head.weight"])
def test_a_head_without_an_embedding_is_the_embedding(tmp_path, name):
    def only_head(tensors):
        return {name if key == "wte.weight" else key: a for key, a in tensors.items()}

    params = write_tensors(tmp_path, only_head)
    assert_same_params(checkpoint.load(tmp_path).params, params)


def test_a_head_that_is_the_embedding_in_a_wider_type_is_no_difference(tmp_path):
    rounded = make.decoded(WTE, "F16")
    for dtype in "F32", "F64":
        write_hugging_face(tmp_path, tokenizer=False, dtype="F16", extra=head(rounded, dtype))
        np.testing.assert_array_equal(checkpoint.load(tmp_path).params["wte"], rounded)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_head_that_is_the_embedding_rounded_is_left_out_with_a_warning(tmp_path, dtype):
    if dtype == "BF16":  # rounded to nearest, where `encode` cuts off
        bits = WTE.view(np.uint32)
        content = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
        extra = {"lm_head.weight": (dtype, SHAPE, content)}
    else:
        extra = head(WTE, dtype)
    params = write_hugging_face(tmp_path, tokenizer=False, extra=extra)
    with pytest.warns(CheckpointWarning, match="'wte.weight' in another precision"):
        assert_same_params(checkpoint.load(tmp_path).params, params)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("tie", [True, False, None])
def test_an_untied_head_is_refused_for_every_value_of_the_setting(tmp_path, dtype, tie):
    other = WTE.copy()
    other[-1, -1] += 1
    extra = head(other, dtype)
    write_hugging_face(tmp_path, tokenizer=False, extra=extra, tie_word_embeddings=tie)
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' differs from 'wte\.weight'"):
        checkpoint.load(tmp_path)


def test_untied_in_the_config_and_equal_in_the_file_is_a_gpt2(tmp_path):
    options = {"tokenizer": False, "tie_word_embeddings": False}
    params = write_hugging_face(tmp_path, extra=head(WTE), **options)
    assert_same_params(checkpoint.load(tmp_path).params, params)


def test_untied_in_the_config_needs_both_in_the_file(tmp_path):
    write_hugging_face(tmp_path, tokenizer=False, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head\.weight', but tie_word"):
        checkpoint.load(tmp_path)
    write_tensors(tmp_path, lambda tensors: {
        "lm_head.weight" if key == "wte.weight" else key: a for key, a in tensors.items()
    }, tie_word_embeddings=False)  # fmt: skip
    with pytest.raises(CheckpointError, match=r"no tensor 'wte\.weight'"):
        checkpoint.load(tmp_path)


# --- beside the model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [["v_head.summary.weight", "v_head.summary.bias"], ["score.weight"], ["classifier.bias"],
     ["multiple_choice_head.summary.weight"], ["transformer.value_head.weight"],
     ["qa_outputs.weight", "qa_outputs.bias", "a.x", "ref_model.transformer.h.0.ln_1.weight"]],
    ids=lambda names: names[0],
)  # fmt: skip
def test_a_head_is_left_out_with_a_warning_that_names_it(tmp_path, names):
    extra = {name: ("F32", (8,), bytes(32)) for name in names}
    params = write_hugging_face(tmp_path, tokenizer=False, extra=extra, prefix="transformer.")
    named = names[0].removeprefix("transformer.")
    with pytest.warns(CheckpointWarning, match=f"left out {len(names)} tensors? .*{named}") as seen:
        assert_same_params(checkpoint.load(tmp_path).params, params)
    assert len(seen) == 1 and ("…" in str(seen[0].message)) == (len(names) > 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h.2.ln_1.weight", "does not belong to a GPT-2 with .*n_layer=2"),
        ("h.0.attn.rotary.inv_freq", "does not belong"),
        ("h.0.attn.c_attn.weight_v", "does not belong"),
        ("lm_head.bias", "does not belong"),
        ("wte.weight.extra", "does not belong"),
        ("transformer.ln_f.scale", "does not belong"),
        ("h.0.attn.c_attn.lora_A.default.weight", "LoRA adapter: merge it with peft"),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_B.weight", "LoRA adapter"),
        ("h.0.crossattention.c_attn.weight", "cross-attention"),
        ("transformer.h.1.ln_cross_attn.weight", "cross-attention"),
        ("h.0.mlp.adapters.x.adapter_down.0.weight", "an adapter"),
        ("prompt_encoder.default.embedding.weight", "a trained prompt"),
        ("h.0.attn.c_attn.SCB", "quantized weights: save the model again"),
        ("h.0.attn.c_attn.weight_scale", "quantized weights"),
        ("h.0.mlp.c_fc.qweight", "quantized weights"),
        ("h.0.mlp.c_fc.weight.absmax", "quantized weights"),
    ],
)
def test_a_tensor_that_changes_the_function_is_refused_by_name(tmp_path, name, message):
    write_hugging_face(tmp_path, tokenizer=False, extra={name: ("F32", (8,), bytes(32))})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor .*{message}"):
        checkpoint.load(tmp_path)


def transposed(tensors):
    """Return the weights as torch.nn.Linear stores them, which is how nanoGPT writes a GPT-2."""
    return {name: a.T.copy() if a.ndim == 2 and name.startswith("h.") else a
            for name, a in tensors.items()}  # fmt: skip


def test_weights_of_linear_layers_are_refused_with_the_four_to_transpose(tmp_path):
    write_tensors(tmp_path, transposed, prefix="_orig_mod.transformer.")
    message = r"c_attn\.weight' has shape \(24, 8\), expected \(8, 24\): it is transposed, .*nanoG"
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(tmp_path)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        assert name in str(caught.value)


def test_a_missing_bias_is_refused_with_the_remedy_for_models_without(tmp_path):
    write_tensors(tmp_path, lambda tensors: {
        name: a for name, a in tensors.items() if not name.endswith(".bias")
    })  # fmt: skip
    with pytest.raises(CheckpointError, match=r"no tensor .*bias', .*without biases needs zeros"):
        checkpoint.load(tmp_path)


words = st.sampled_from(
    ["transformer", "module", "h", "0", "attn", "bias", "weight", "wte", "x", "lm_head", "lora_A",
     "model", "_orig_mod", "c_attn", "", "score"]
)  # fmt: skip


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.lists(words, min_size=1, max_size=5).map(".".join) | st.text(max_size=8),
                       st.integers(0, 3), max_size=3))  # fmt: skip
def test_any_tensors_beside_the_model_leave_it_right_or_are_refused(tmp_path, names):
    extra = {name: ("F32", (n,), bytes(4 * n)) for name, n in names.items()
             if name != "__metadata__"}  # fmt: skip
    params = write_hugging_face(tmp_path, tokenizer=False, extra=extra)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        try:
            model = checkpoint.load(tmp_path)
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
        else:
            assert_same_params(model.params, params)


def test_a_name_of_very_many_parts_is_handled_in_time(tmp_path):
    name = "model." * 300_000 + "x"
    write_hugging_face(tmp_path, tokenizer=False, extra={name: ("F32", (1,), bytes(4))})
    with pytest.warns(CheckpointWarning, match="left out 1 tensor"):
        checkpoint.load(tmp_path)

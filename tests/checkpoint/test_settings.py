"""config.json: what changes nothing loads, a scale of attention is folded, the rest is refused."""
import contextlib
import json
import math

import make_checkpoints as make
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_checkpoints import SMALL, assert_same_params

from gpt2_np import Config, checkpoint, forward
from gpt2_np.checkpoint import CheckpointError
from gpt2_np.checkpoint.settings import EXPECTED, read_settings

D = SMALL.n_embd


def rewrite(folder, change=(), drop=()):
    file = folder / "config.json"
    found = {key: value for key, value in json.loads(file.read_text()).items() if key not in drop}
    file.write_text(json.dumps({**found, **dict(change)}))


@pytest.mark.parametrize(
    "settings",
    [
        {"n_ctx": 9}, {"n_ctx": None}, {"reorder_and_upcast_attn": True}, {"n_inner": 4 * D},
        {"activation_function": "gelu_pytorch_tanh"}, {"activation_function": "gelu_fast"},
        {"activation_function": "gelu_accurate"}, {"activation_function": "gelu_python_tanh"},
        {"resid_pdrop": 0.5, "embd_pdrop": 0.0, "attn_pdrop": None, "torch_dtype": "float16"},
        {"tie_word_embeddings": True, "torch_dtype": "bfloat16", "architectures": ["GPT2Model"]},
        {"n_vocab": 7, "use_cache": False, "task_specific_params": {"text-generation": {}}},
        dict.fromkeys([*EXPECTED, "n_inner", "reorder_and_upcast_attn"]),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_change_nothing_are_accepted(tmp_path, settings):
    params = make.write_hugging_face(tmp_path, tokenizer=False, **settings)
    model = checkpoint.load(tmp_path)
    assert model.config == SMALL
    assert_same_params(model.params, params)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gpt_neo"), ("activation_function", "gelu"), ("activation_function", "relu"),
        ("activation_function", {}), ("layer_norm_epsilon", 1e-6), ("layer_norm_epsilon", [1e-5]),
        ("add_cross_attention", True), ("n_inner", 31), ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"load_in_8bit": True}), ("scale_attn_weights", "yes"),
        ("tie_word_embeddings", "no"), ("is_causal", False), ("transformers_weights", "x"),
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_of_another_function_is_refused_by_name(tmp_path, key, value):
    make.write_hugging_face(tmp_path, tokenizer=False, **{key: value})
    message = rf"config\.json: {key} is .*, expected .*run them with transformers"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path)


def test_absent_keys_have_the_defaults_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    expected = Config(n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12)
    assert read_settings(tmp_path / "config.json").config == expected


def test_the_other_names_of_the_sizes_are_read_and_come_first(tmp_path):
    params = make.write_hugging_face(tmp_path, tokenizer=False)
    names = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2,
             "max_position_embeddings": 8}  # fmt: skip
    rewrite(tmp_path, names, drop=["n_embd", "n_layer", "n_head", "n_positions"])
    assert_same_params(checkpoint.load(tmp_path).params, params)
    rewrite(tmp_path, {"n_head": 4})  # transformers sets the other name last
    assert checkpoint.load(tmp_path).config.n_head == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"scale_attn_weights": False}, [math.sqrt(D // 2)] * 2),
        ({"scale_attn_by_inverse_layer_idx": True}, [1, 1 / 2]),
        ({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, [2, 1]),
    ],
    ids=str,
)
def test_other_scales_of_attention_are_folded_into_the_queries(tmp_path, settings, scales, dtype):
    plain = make.write_hugging_face(tmp_path, tokenizer=False, **settings)
    model = checkpoint.load(tmp_path, dtype=dtype)
    for block, before, scale in zip(model.params["blocks"], plain["blocks"], scales, strict=True):
        for leaf in "wb":
            found, expected = block["attn"]["c_attn"][leaf], before["attn"]["c_attn"][leaf]
            np.testing.assert_allclose(found[..., :D], expected[..., :D] * scale, rtol=1e-6)
            np.testing.assert_array_equal(found[..., D:], expected[..., D:])
            assert found.dtype == dtype and not found.flags.writeable
    q, tokens = {}, [1, 2, 3]
    forward(model.params, SMALL, tokens, tap=lambda name, array: q.update({name: array}))
    assert np.isfinite(q["blocks.1.attn.hook_q"]).all()


def test_a_byte_order_mark_before_json_is_skipped(tmp_path):
    params = make.write_hugging_face(tmp_path, tokenizer=False, shards=2)
    for name in ("config.json", "model.safetensors.index.json"):
        file = tmp_path / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert_same_params(checkpoint.load(tmp_path).params, params)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 40) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["gpt2", "gelu_new", 10**30, 1e-5]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)  # fmt: skip
KEYS = [*EXPECTED, "n_inner", "n_ctx", "vocab_size", "n_positions", "n_embd", "n_head", "n_layer",
        "hidden_size", "num_hidden_layers", "torch_dtype"]  # fmt: skip


@pytest.fixture
def sound(tmp_path):
    make.write_hugging_face(tmp_path, tokenizer=False)
    return tmp_path, json.loads((tmp_path / "config.json").read_text())


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
def test_any_values_of_the_settings_are_read_or_refused_in_a_sentence(sound, change):
    folder, found = sound
    (folder / "config.json").write_text(json.dumps({**found, **change}))
    with contextlib.suppress(CheckpointError):
        try:
            model = checkpoint.load(folder)
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            raise
        assert np.isfinite(forward(model.params, model.config, [1, 2])).all()

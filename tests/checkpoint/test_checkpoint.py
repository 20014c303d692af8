"""Loading from the disk: names, layouts, element types, and every refusal."""
import ast
import json
import mmap
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import make_checkpoints as make
import numpy as np
import pytest
from make_checkpoints import SMALL, assert_same_params, write_hugging_face, write_tensorflow

import gpt2_np
from gpt2_np import backend, checkpoint
from gpt2_np.checkpoint import CheckpointError, files, loading, tensors
from gpt2_np.gpt2_np import map_leaves

WRITERS = [write_tensorflow, write_hugging_face]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GPT2_NP_OFFLINE", "1")
    monkeypatch.delenv("GPT2_NP_DEVICE", raising=False)


# --- sound checkpoints -----------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITERS)
def test_load_gives_the_config_the_arrays_and_the_tokenizer(tmp_path, write):
    params = write(tmp_path)
    model = gpt2_np.load(tmp_path)
    assert model.config == SMALL
    assert_same_params(model.params, params)
    assert model.tokenizer.n_vocab == SMALL.n_vocab
    assert model.tokenizer.decode(model.tokenizer.encode("to be or not")) == "to be or not"


@pytest.mark.parametrize("write", WRITERS)
def test_the_loaded_model_runs(tmp_path, write):
    params = write(tmp_path)
    model = checkpoint.load(tmp_path)
    expected = gpt2_np.forward(params, SMALL, [1, 2, 3])
    np.testing.assert_allclose(
        gpt2_np.forward(model.params, model.config, [1, 2, 3]), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": "transformer."},
        {"shards": 3},
        {"shards": 2, "prefix": "transformer."},
        {"activation_function": "gelu_pytorch_tanh", "n_inner": 4 * SMALL.n_embd, "n_ctx": 8},
        {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "resid_pdrop": 0.3},
    ],
    ids=str,
)
def test_every_form_of_hugging_faces_layout_is_read(tmp_path, options):
    params = write_hugging_face(tmp_path, **options)
    assert_same_params(checkpoint.load(tmp_path).params, params)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_every_float_type_becomes_float32(tmp_path, dtype):
    params = write_hugging_face(tmp_path, dtype=dtype)
    expected = map_leaves(lambda path, array: make.decoded(array, dtype), params)
    assert_same_params(checkpoint.load(tmp_path).params, expected)


def test_bfloat16_specials_are_kept(tmp_path):
    bits = np.array([0x7F80, 0xFF80, 0x8000, 0x0001, 0x3F80], "<u2")
    expected = np.array([np.inf, -np.inf, -0.0, 2.0**-133, 1.0], np.float32)
    tensor = checkpoint.Tensor(tmp_path, "BF16", (5,), 0, 10)
    found = tensors.as_array(tensor, bits.tobytes(), "float32")
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_masks_of_older_files_are_ignored_in_any_type(tmp_path):
    masks = {
        "h.0.attn.bias": ("F32", (1, 1, 8, 8), bytes(256)),
        "h.1.attn.bias": ("BOOL", (1, 1, 8, 8), bytes(64)),
        "h.0.attn.masked_bias": ("F32", (), bytes(4)),
        "h.1.attn.masked_bias": ("U8", (), bytes(1)),
    }
    params = write_hugging_face(tmp_path, extra=masks)
    assert_same_params(checkpoint.load(tmp_path).params, params)


def test_a_head_equal_to_the_embedding_is_accepted(tmp_path):
    content = make.random_params(SMALL)["wte"].tobytes()
    head = {"lm_head.weight": ("F32", (280, 8), content)}
    params = write_hugging_face(tmp_path, extra=head, prefix="transformer.")
    assert_same_params(checkpoint.load(tmp_path).params, params)


def test_the_path_of_a_safetensors_file_is_enough(tmp_path):
    params = write_hugging_face(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "mine.safetensors")
    model = checkpoint.load(tmp_path / "mine.safetensors")
    assert_same_params(model.params, params)
    assert model.tokenizer is not None


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_path_is_a_string_or_a_path(tmp_path, kind):
    write_tensorflow(tmp_path / "a folder")
    assert checkpoint.load(kind(tmp_path / "a folder")).config == SMALL


def test_a_relative_path_is_one_from_the_working_folder(tmp_path, monkeypatch):
    write_tensorflow(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    assert checkpoint.load("folder").config == SMALL


def test_without_the_embedded_model_the_error_says_what_to_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SHAKESPEARE", str(tmp_path / "models" / "shakespeare"))
    with pytest.raises(CheckpointError, match="does not exist: copy the folder models/"):
        checkpoint.load("shakespeare")


def test_the_embedded_model_is_found_by_its_folder_and_not_by_our_file(monkeypatch):
    """A frozen program has the folder, and no file of ours: PyInstaller keeps these inside."""
    monkeypatch.setattr(loading, "__file__", "/nowhere/gpt2_np/checkpoint/loading.pyc")
    assert checkpoint.load("shakespeare", "cpu").config.n_layer


def test_a_frozen_program_without_the_folder_says_how_to_bundle_it(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "ROOT", str(tmp_path / "gpt2_np"))
    monkeypatch.setattr(loading, "SHAKESPEARE", str(tmp_path / "gpt2_np/models/shakespeare"))
    with pytest.raises(CheckpointError, match="PyInstaller's option --collect-data gpt2_np"):
        checkpoint.load("shakespeare")


def test_shakespeare_is_the_folder_beside_the_module(tmp_path, monkeypatch):
    beside = pathlib.Path(gpt2_np.__file__).parent / "models" / "shakespeare"
    assert pathlib.Path(checkpoint.SHAKESPEARE) == checkpoint.download("shakespeare") == beside
    monkeypatch.setattr(loading, "SHAKESPEARE", str(tmp_path))
    params = write_hugging_face(tmp_path)
    assert_same_params(checkpoint.load("shakespeare").params, params)


@pytest.mark.parametrize("write", WRITERS)
def test_without_tokenizer_files_the_tokenizer_is_none(tmp_path, write):
    write(tmp_path, tokenizer=False)
    assert checkpoint.load(tmp_path).tokenizer is None


@pytest.mark.parametrize("write", WRITERS)
def test_the_merges_alone_give_the_tokenizer(tmp_path, write):
    write(tmp_path)
    (tmp_path / ("encoder.json" if write is write_tensorflow else "vocab.json")).unlink()
    assert checkpoint.load(tmp_path).tokenizer.n_vocab == SMALL.n_vocab


# --- arrays in memory ------------------------------------------------------------------------


def leaves(params):
    return [array for _, array in make.walk(params)]


@pytest.mark.parametrize("write", WRITERS)
def test_float32_weights_stay_in_the_mapped_file(tmp_path, write):
    write(tmp_path)
    if write is write_hugging_face:
        align(tmp_path / "model.safetensors")
    for array in leaves(checkpoint.load(tmp_path).params):
        assert type(array) is np.ndarray and array.flags.aligned
        base = array
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(getattr(base, "obj", base), mmap.mmap)


def align(file):
    """Shift the data to a multiple of eight bytes, with blanks after the header."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    blanks = b" " * (-end % 8)
    length = (end - 8 + len(blanks)).to_bytes(8, "little")
    file.write_bytes(length + content[8:end] + blanks + content[end:])


def test_unaligned_weights_are_copied_into_aligned_arrays(tmp_path):
    params = write_hugging_face(tmp_path)
    align(tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    longer = (end - 7).to_bytes(8, "little") + content[8:end] + b" " + content[end:]
    (tmp_path / "model.safetensors").write_bytes(longer)
    model = checkpoint.load(tmp_path)
    assert all(array.flags.aligned for array in leaves(model.params))
    assert_same_params(model.params, params)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_arrays_are_read_only_and_have_the_requested_dtype(tmp_path, dtype, stored):
    write_hugging_face(tmp_path, dtype=stored)
    model = checkpoint.load(tmp_path, dtype=dtype)
    for array in leaves(model.params):
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_float64_has_the_values_of_the_file(tmp_path):
    params = write_tensorflow(tmp_path)
    expected = map_leaves(lambda path, array: array.astype(np.float64), params)
    assert_same_params(checkpoint.load(tmp_path, dtype="float64").params, expected)


def test_two_models_of_one_folder_do_not_share_state(tmp_path):
    write_tensorflow(tmp_path)
    first, second = checkpoint.load(tmp_path), checkpoint.load(tmp_path)
    first.params["blocks"].clear()
    assert len(second.params["blocks"]) == SMALL.n_layer


# --- device and dtype ------------------------------------------------------------------------


def test_the_device_comes_from_the_environment_only_if_none_is_given(tmp_path, monkeypatch):
    write_tensorflow(tmp_path)
    asked = []
    monkeypatch.setattr(backend, "pick", lambda device: asked.append(device) or np)
    checkpoint.load(tmp_path)
    monkeypatch.setenv("GPT2_NP_DEVICE", "cuda")
    checkpoint.load(tmp_path)
    checkpoint.load(tmp_path, device="cpu")
    assert asked == ["auto", "cuda", "cpu"]


def test_an_unavailable_device_is_an_error_of_the_family(tmp_path, monkeypatch):
    write_tensorflow(tmp_path)

    def pick(device):
        raise backend.DeviceError("no GPU here")

    monkeypatch.setattr(backend, "pick", pick)
    with pytest.raises(gpt2_np.Error, match="no GPU here"):
        checkpoint.load(tmp_path, device="cuda")


def test_arrays_go_to_the_device_one_by_one(tmp_path, monkeypatch):
    params = write_tensorflow(tmp_path)
    moved = []
    monkeypatch.setattr(backend, "pick", lambda device: "module")
    monkeypatch.setattr(backend, "check_room", lambda n_bytes, xp: None)
    monkeypatch.setattr(backend, "to_device", lambda array, xp: moved.append((xp, array)) or array)
    checkpoint.load(tmp_path, device="cuda")
    assert [xp for xp, _ in moved] == ["module"] * len(leaves(params))


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_that_is_cut_off_while_it_is_loaded_is_called_so(tmp_path, monkeypatch, mmap):
    write_hugging_face(tmp_path, tokenizer=False)
    file = tmp_path / "model.safetensors"
    check = loading.backend.check_room

    def cut_off(*given):
        os.truncate(file, file.stat().st_size - 5000)
        return check(*given)

    monkeypatch.setattr(loading.backend, "check_room", cut_off)
    with pytest.raises(CheckpointError, match=r"ends at byte \d+, .* been cut off since"):
        checkpoint.load(tmp_path, "cpu", mmap=mmap)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "F32", "", None, 32])
def test_an_unknown_dtype_is_refused_with_the_choices(tmp_path, dtype):
    with pytest.raises(CheckpointError, match="expected float32 or float64 or float16"):
        checkpoint.load(tmp_path, dtype=dtype)


# --- refused checkpoints ---------------------------------------------------------------------


NAMES = ["gpt2 medium", "gpt3", "125M", "../x", "a/b/c", "", "x" * 5000, "a\0b", "\ud800",
         "ftp://host/folder", "no--such/name", "owner/name@", "./owner/name", "owner/..",
         pathlib.Path("owner/name"), None, 3, b"x", ["124M"]]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_an_unknown_name_is_answered_with_the_choices(name):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(name)
    message = str(caught.value)
    for part in ("124M, 355M, 774M, 1558M, shakespeare", "path", "URL"):
        assert part in message
    assert len(message) < 400 and message.isprintable()


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither hparams\.json .* nor config\.json"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.h5", "x"])
def test_a_file_that_is_not_safetensors_is_refused_unread(tmp_path, name):
    write_hugging_face(tmp_path)
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(CheckpointError, match=f"{name} is not a checkpoint: expected a folder, a"):
        checkpoint.load(tmp_path / name)


def test_a_safetensors_file_without_its_config_is_refused(tmp_path):
    write_hugging_face(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_vocab", 0), ("n_ctx", -1), ("n_embd", 2**60), ("n_layer", 10**9), ("n_head", "2"),
        ("n_head", True), ("n_head", None), ("n_head", 2.0), ("n_layer", 10**3000),
        ("n_head", 3), ("n_embd", 9), ("n_vocab", [1] * 10**5),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
@pytest.mark.parametrize("write", WRITERS)
def test_sizes_that_make_no_sense_are_refused_before_anything_is_allocated(
    tmp_path, write, key, value
):
    write(tmp_path)
    file = tmp_path / ("hparams.json" if write is write_tensorflow else "config.json")
    if write is write_hugging_face:
        key = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}.get(key, key)
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path)
    message = str(caught.value)
    assert str(file) in message and "expected" in message and len(message) < 600


BOMBS = [
    b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"n_embd": NaN}', b'{"a": 1, "a": 2}', b"[" * 10**6,
    b'{"a":' * 10**5, b'{"n_embd": ' + b"1" * 10**5 + b"}", b" " * (5 * 2**20), b"<html></html>",
]  # fmt: skip


@pytest.mark.parametrize("content", BOMBS, ids=lambda content: content[:12].decode("latin1"))
@pytest.mark.parametrize("name", ["hparams.json", "config.json", "model.safetensors.index.json"])
def test_json_that_is_not_a_plain_object_is_refused(tmp_path, name, content):
    if name == "hparams.json":
        write_tensorflow(tmp_path)
    else:
        write_hugging_face(tmp_path, shards=2)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        checkpoint.load(tmp_path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["hparams.json", "model.ckpt.index"])
def test_a_file_that_may_not_be_read_is_named(tmp_path, name, monkeypatch):
    write_tensorflow(tmp_path)

    def refuse(file, *arguments):
        if os.path.basename(file) == name:
            raise PermissionError(13, "Permission denied", file)
        return open(file, *arguments)

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: Permission denied"):
        checkpoint.load(tmp_path)


@pytest.fixture
def as_nobody():
    """Give up the rights of root, if the test has them: root may enter every folder."""
    if os.name != "posix":
        pytest.skip("Windows has other rights")
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_folder_that_may_not_be_entered_is_named(tmp_path, name, as_nobody):
    outer = pathlib.Path(tempfile.mkdtemp())
    try:
        write_hugging_face(outer / "inner")
        path = outer / "inner" / name
        for folder in outer / "inner", outer:
            folder.chmod(0o000)
            with pytest.raises(CheckpointError, match=r"inner.* cannot be read: Permission denied"):
                checkpoint.load(path)
    finally:
        outer.chmod(0o700)
        (outer / "inner").chmod(0o700)
        shutil.rmtree(outer)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors",
     "model.safetensors.index.json", "model-00001.safetensors", "hparams.json",
     "model.ckpt.index", "model.ckpt.data-00000-of-00001"],
)  # fmt: skip
def test_a_pipe_in_place_of_a_file_is_refused_and_not_opened(tmp_path, name):
    if name in ("hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        write_tensorflow(tmp_path)
    else:
        write_hugging_face(tmp_path, shards=2 if "-0" in name or "index" in name else 1)
    found = next(tmp_path.glob(name.replace("-00001.", "-00001*.")), tmp_path / name)
    found.unlink(missing_ok=True)
    os.mkfifo(found)
    for path in tmp_path, found:
        if path.suffix == ".safetensors" or path is tmp_path:
            with pytest.raises(CheckpointError, match=found.name):
                checkpoint.load(path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"h.2.ln_1.weight": ("F32", (8,), bytes(32))}, r"h\.2\.ln_1\.weight.*not belong to a GPT"),
        ({"h.0.attn.bias.x": ("F32", (1,), bytes(4))}, r"h\.0\.attn\.bias\.x.*does not belong"),
        ({"lm_head.weight": ("F32", (280, 8), bytes(8960))}, r"lm_head\.weight.*differs from 'wte"),
        ({"lm_head.weight": ("F16", (280, 8), bytes(4480))}, r"lm_head\.weight.*differs from 'wte"),
        ({"h.0.attn.c_attn.weight": ("I8", (8, 24), bytes(192))}, r"weight' is I8 of shape"),
        ({"h.0.attn.c_attn.weight": ("F8_E4M3", (8, 24), bytes(192))}, r"weight' is F8_E4M3 of"),
        ({"wpe.weight": ("F32", (8, 9), bytes(288))}, r"'wpe\.weight' is .*\(8, 9\).*\(8, 8\)"),
        ({"wpe.weight": ("I32", (8, 8), bytes(256))}, r"'wpe\.weight' is I32.*expected F32, F16"),
        ({"wpe.weight": ("U8", (8, 8), bytes(64))}, r"'wpe\.weight' is U8"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_the_config_are_refused_by_name(tmp_path, extra, message):
    write_hugging_face(tmp_path, extra=extra)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{message}"):
        checkpoint.load(tmp_path)


def test_a_model_with_fewer_layers_than_its_config_is_refused(tmp_path):
    write_hugging_face(tmp_path, n_layer=3)
    with pytest.raises(CheckpointError, match=r"has no tensor 'h\.2\.ln_1\.weight'"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "..", "",
     "C:x.safetensors", ".safetensors", "model.bin", "x\n.safetensors", "x.safetensors\n", 3, None,
     "é.safetensors", "x\0.safetensors"],
    ids=ascii,
)  # fmt: skip
def test_a_shard_outside_the_folder_is_refused(tmp_path, shard):
    write_hugging_face(tmp_path, shards=2)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["wte.weight"] = shard
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'wte\.weight' is in .*expected the plain name"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", 1])
def test_an_index_without_a_weight_map_is_refused(tmp_path, weight_map):
    write_hugging_face(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"weight_map is .*, expected names to files"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("change", ["moved", "dropped", "added", "gone"])
def test_shards_must_hold_just_what_their_index_says(tmp_path, change):
    write_hugging_face(tmp_path, shards=2)
    file = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(file.read_text())["weight_map"]
    first, second = sorted(set(weight_map.values()))
    if change == "moved":
        weight_map["wte.weight"] = second if weight_map["wte.weight"] == first else first
    elif change == "dropped":
        del weight_map["wte.weight"]
    elif change == "added":
        weight_map["h.9.ln_1.weight"] = first
    else:
        (tmp_path / second).unlink()
    file.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=second if change == "gone" else r"wte|h\.9\.ln_1"):
        checkpoint.load(tmp_path)


# --- the module ------------------------------------------------------------------------------


def test_importing_the_module_loads_numpy_and_the_standard_library_only():
    root = pathlib.Path(gpt2_np.__file__).parent
    program = (
        "import gpt2_np.checkpoint, sys; "
        "print([m for m in ('requests', 'urllib3', 'tqdm', 'regex', 'cupy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Modules that are loaded by then: by Python itself, by NumPy, or by the reference.
LOADED_ANYWAY = {"__future__", "collections", "contextlib", "functools", "math", "numpy",
                 "operator", "os", "re", "stat", "struct", "sys", "time", "typing",
                 "warnings"}  # fmt: skip


@pytest.mark.parametrize(
    "file", sorted(pathlib.Path(checkpoint.__file__).parent.glob("*.py")), ids=lambda f: f.name
)
def test_no_file_imports_a_module_before_it_is_needed(file):
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            assert {name.name.partition(".")[0] for name in node.names} <= LOADED_ANYWAY
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.partition(".")[0] in LOADED_ANYWAY


def test_errors_are_of_the_projects_family():
    for error in (checkpoint.CheckpointError, checkpoint.DownloadError):
        assert issubclass(error, gpt2_np.Error) and issubclass(error, ValueError)

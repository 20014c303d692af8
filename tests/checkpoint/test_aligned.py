"""Weights in memory: shared by mapping a file, an aligned copy of it, or private."""
import mmap
import os
import shutil

import numpy as np
import pytest
from downloads import DATA, cached, damage
from make_checkpoints import (
    SMALL,
    assert_same_params,
    walk,
    write_hugging_face,
    write_safetensors,
    write_tensorflow,
)

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import CheckpointError, aligned, cache, loading, safetensors, saving

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")


def is_mapped(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return isinstance(getattr(array.base, "obj", array.base), mmap.mmap)


def all_mapped(model):
    return all(is_mapped(array) for _, array in walk(model.params))


def none_mapped(model):
    return not any(is_mapped(array) for _, array in walk(model.params))


def shift(folder):
    """Make the data of a safetensors file begin at an odd byte, as the official ones do."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    pad = 1 + length % 2
    head = content[8 : 8 + length] + b" " * pad
    file.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
    assert (8 + len(head)) % 2 == 1


@pytest.fixture
def odd(server):
    """The URL of a safetensors file whose data begin at an odd byte, and its parameters."""
    params = write_hugging_face(server.folder / "odd")
    shift(server.folder / "odd")
    return server.url + "/odd", params


# --- the aligned copy --------------------------------------------------------------------------


def test_a_download_at_an_odd_byte_is_mapped_from_an_aligned_copy(odd):
    url, params = odd
    model = gpt2_np.load(url, "cpu")
    assert all_mapped(model)
    assert_same_params(model.params, params)
    (copy,) = cached(aligned.ALIGNED)
    starts = [tensor.start for tensor in safetensors.read_safetensors(copy).values()]
    assert min(starts) % 64 == 0
    without = gpt2_np.load(copy.with_name("model.safetensors"), "cpu", mmap=False)
    assert_same_params(without.params, params)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_download_of_another_type_is_mapped_from_a_float32_copy(server, dtype, shards):
    write_hugging_face(server.folder, dtype=dtype, shards=shards, scale_attn_weights=False)
    model = gpt2_np.load(server.url, "cpu")
    c_attn = ("attn", "c_attn")
    for path, array in walk(model.params):  # c_attn is scaled, which no file can hold
        assert is_mapped(array) == (path[2:4] != c_attn), path
    own = gpt2_np.load(server.folder, "cpu")  # a folder of one's own gets no copy
    assert none_mapped(own)
    assert_same_params(model.params, own.params)
    assert len(cached(aligned.ALIGNED)) == 1
    assert not (server.folder / aligned.ALIGNED).exists()


def test_a_file_that_already_maps_gets_no_copy(server, bundle):
    write_hugging_face(server.folder / "even")
    file = server.folder / "even/model.safetensors"
    tensors = safetensors.read_safetensors(file)
    content = file.read_bytes()
    parts = {name: (t.dtype, t.shape, content[t.start : t.start + t.size])
             for name, t in tensors.items()}  # fmt: skip
    for pad in range(4):
        write_safetensors(file, parts, pad=pad)
        if min(tensor.start for tensor in safetensors.read_safetensors(file).values()) % 4 == 0:
            break
    for url in (server.url + "/even", bundle[0]):
        assert all_mapped(gpt2_np.load(url, "cpu"))
    assert cached(aligned.ALIGNED) == []


def test_other_types_are_converted_from_the_original(odd):
    url, params = odd
    gpt2_np.load(url, "cpu")
    cached(aligned.ALIGNED)[0].unlink()  # nothing reads it
    found = gpt2_np.load(cached("model.safetensors")[0].parent, "cpu", "float64")
    np.testing.assert_array_equal(found.params["wte"], params["wte"].astype(np.float64))


def test_the_copy_is_made_once(odd):
    gpt2_np.load(odd[0], "cpu")
    (copy,) = cached(aligned.ALIGNED)
    before = copy.stat()
    checkpoint.download(odd[0])
    gpt2_np.load(odd[0], "cpu")
    assert (copy.stat().st_mtime_ns, copy.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("how", ["damaged", "cut", "gone"])
def test_a_copy_that_is_not_as_it_was_made_is_made_again(odd, how):
    url, params = odd
    gpt2_np.load(url, "cpu")
    (copy,) = cached(aligned.ALIGNED)
    if how == "damaged":
        times = copy.stat()
        damage(copy)
        os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
        checkpoint.download(url)  # the one that reads every byte
    elif how == "cut":
        os.truncate(copy, copy.stat().st_size - 4)
    else:
        copy.unlink()
    model = gpt2_np.load(url, "cpu")
    assert all_mapped(model)
    assert_same_params(model.params, params)


def test_new_weights_get_a_new_copy(server, odd):
    url, _ = odd
    folder = checkpoint.download(url)
    (folder / "model.safetensors").unlink()
    params = write_hugging_face(server.folder / "odd", seed=4)
    shift(server.folder / "odd")
    assert_same_params(gpt2_np.load(url, "cpu").params, params)


@posix
def test_a_copy_that_others_can_write_is_not_used(odd):
    url, params = odd
    folder = checkpoint.download(url)
    folder.chmod(0o777)
    model = gpt2_np.load(url, "cpu")
    assert none_mapped(model)
    assert_same_params(model.params, params)


def test_without_enough_space_there_is_no_copy_and_a_note(odd, monkeypatch, capsys):
    url, params = odd
    usage = shutil.disk_usage("/")
    copy_bytes = 4 * sum(array.size for _, array in walk(params))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * copy_bytes - 1))
    model = gpt2_np.load(url, "cpu")
    assert none_mapped(model)
    assert_same_params(model.params, params)
    assert f"an aligned copy needs {copy_bytes:,} bytes" in capsys.readouterr().err
    assert cached(aligned.ALIGNED) == cached(".part") == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * copy_bytes))
    checkpoint.download(url)
    assert all_mapped(gpt2_np.load(url, "cpu"))


def test_a_disk_that_fills_up_while_copying_costs_only_the_copy(odd, monkeypatch, capsys):
    def write(file, pieces):
        file.write_bytes(next(iter(pieces)))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aligned, "write_file", write)
    model = gpt2_np.load(odd[0], "cpu")
    assert none_mapped(model)
    assert "will not share the weights" in capsys.readouterr().err
    assert cached(aligned.ALIGNED) == cached(".part") == []


def test_a_head_that_is_the_embedding_does_not_prevent_a_copy(server, capsys):
    """The copy has no lm_head.weight, which this config.json asks for."""
    wte = write_hugging_face(server.folder)["wte"].astype(np.float16)
    head = {"lm_head.weight": ("F16", wte.shape, wte.tobytes())}
    write_hugging_face(server.folder, dtype="F16", extra=head, tie_word_embeddings=False)
    own = gpt2_np.load(server.folder, "cpu")
    for _ in range(2):
        model = gpt2_np.load(server.url, "cpu")
        assert all_mapped(model)
        assert_same_params(model.params, own.params)
    assert "will not share" not in capsys.readouterr().err


def test_a_copy_that_would_not_open_is_not_kept(odd, monkeypatch, capsys):
    monkeypatch.setattr(aligned, "write_file", lambda file, _: file.write_bytes(b"{}" * 8))
    assert none_mapped(gpt2_np.load(odd[0], "cpu"))
    assert "is not a whole safetensors file" in capsys.readouterr().err
    assert cached(aligned.ALIGNED) == []


# --- weights that are not those of the download ------------------------------------------------


def test_a_file_that_was_put_beside_a_download_is_loaded_itself(server):
    write_hugging_face(server.folder / "served", dtype="F16")
    folder = checkpoint.download(server.url + "/served")
    tuned = write_hugging_face(server.folder / "tuned", seed=5)
    shutil.copy(server.folder / "tuned/model.safetensors", folder / "finetuned.safetensors")
    assert_same_params(gpt2_np.load(folder / "finetuned.safetensors", "cpu").params, tuned)
    os.utime(folder / "model.safetensors")
    checkpoint.download(server.url + "/served")  # verifies its own files again, and no others
    assert_same_params(gpt2_np.load(folder / "finetuned.safetensors", "cpu").params, tuned)
    assert all_mapped(gpt2_np.load(server.url + "/served", "cpu"))


def test_the_note_of_a_folder_that_is_no_download_is_not_believed(tmp_path):
    own = write_hugging_face(tmp_path / "own")
    write_hugging_face(tmp_path / "other", seed=5)
    names = ["config.json", "merges.txt", "model.safetensors", aligned.ALIGNED, "vocab.json"]
    shutil.copy(tmp_path / "other/model.safetensors", tmp_path / "own" / aligned.ALIGNED)
    cache.note_verified(tmp_path / "own", {n: cache.stamp(tmp_path / "own" / n) for n in names})
    assert_same_params(gpt2_np.load(tmp_path / "own", "cpu").params, own)


def test_a_shard_of_any_name_is_kept(server):
    params = write_hugging_face(server.folder, shards=2, dtype="F16")
    index = server.folder / "model.safetensors.index.json"
    name = "float32.safetensors"
    (server.folder / "model-00002-of-00002.safetensors").rename(server.folder / name)
    index.write_text(index.read_text().replace("model-00002-of-00002.safetensors", name))
    for _ in range(2):
        model = gpt2_np.load(server.url, "cpu")
        assert all_mapped(model)
        assert model.params["wte"].shape == params["wte"].shape


def test_a_copy_that_another_process_removes_is_done_without(odd, monkeypatch):
    gpt2_np.load(odd[0], "cpu")
    found = aligned.is_private

    def remove(folder):
        answer = found(folder)
        (folder / aligned.ALIGNED).unlink()
        return answer

    monkeypatch.setattr(aligned, "is_private", remove)
    folder = checkpoint.locate(odd[0])
    assert_same_params(gpt2_np.load(folder, "cpu").params, odd[1])


def test_a_block_of_rows_is_in_memory_at_a_time(server, monkeypatch):
    write_hugging_face(server.folder, dtype="F16")
    sizes, read_bytes = [], aligned.read_bytes

    def record(tensor):
        sizes.append(tensor.size)
        return read_bytes(tensor)

    monkeypatch.setattr(aligned, "read_bytes", record)
    monkeypatch.setattr(saving, "BLOCK", 256)  # numbers of two bytes
    model = gpt2_np.load(server.url, "cpu")
    assert all_mapped(model) and max(sizes) <= 512 < SMALL.n_vocab * SMALL.n_embd * 2
    assert_same_params(model.params, gpt2_np.load(server.folder, "cpu").params)


# --- private memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_tensorflow, write_hugging_face])
def test_without_mapping_a_file_may_be_overwritten_under_a_model(tmp_path, write):
    params = write(tmp_path)
    model = gpt2_np.load(tmp_path, "cpu", mmap=False)
    assert none_mapped(model)
    for file in tmp_path.iterdir():
        os.truncate(file, 0)
    assert_same_params(model.params, params)
    assert not model.params["wte"].flags.writeable


@pytest.mark.parametrize("write", [write_tensorflow, write_hugging_face])
def test_a_file_that_is_cut_off_while_it_is_read_is_one_sentence(tmp_path, write, monkeypatch):
    write(tmp_path)

    def open_then_cut(path):
        opened = open_checkpoint(path)
        file = opened.tensors["ln_f"]["b"].file
        os.truncate(file, 1000)
        return opened

    open_checkpoint = loading.open_checkpoint
    monkeypatch.setattr(loading, "open_checkpoint", open_then_cut)
    with pytest.raises(CheckpointError, match=r"ends at byte \d+, expected a tensor up to \d+"):
        gpt2_np.load(tmp_path, "cpu", mmap=False)


def test_without_mapping_the_tensors_of_a_bundle_have_their_crc(tmp_path):
    write_tensorflow(tmp_path)
    damage(tmp_path / DATA)
    gpt2_np.load(tmp_path, "cpu")  # the structure is right
    with pytest.raises(CheckpointError, match=r"tensor 'model/wte' has CRC-32C"):
        gpt2_np.load(tmp_path, "cpu", mmap=False)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_reading_gives_the_arrays_that_mapping_gives(tmp_path, dtype):
    write_hugging_face(tmp_path, dtype=dtype, scale_attn_by_inverse_layer_idx=True)
    mapped, read = (gpt2_np.load(tmp_path, "cpu", mmap=on).params for on in (True, False))
    assert_same_params(read, mapped)


# --- types -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, "float64", np.dtype("float64"), float])
def test_a_type_may_be_given_as_numpy_has_it(tmp_path, dtype):
    params = write_hugging_face(tmp_path)
    wte = gpt2_np.load(tmp_path, "cpu", dtype).params["wte"]
    np.testing.assert_array_equal(wte, params["wte"].astype(np.float64), strict=True)


@pytest.mark.parametrize("dtype", [np.int32, np.dtype("V8"), object, "f8", None, 32, np.zeros(3)])
def test_any_other_type_is_one_sentence(tmp_path, dtype):
    with pytest.raises(CheckpointError, match="expected float32 or float64 or float16"):
        gpt2_np.load(tmp_path, "cpu", dtype)

"""Whole checkpoints from a real server on 127.0.0.1 that lies and fails."""
import contextlib
import hashlib
import json
import math
import os
import shutil
import sys

import pytest
from downloads import DATA, INDEX, LARGER, NOWHERE, cached, damage
from make_checkpoints import SMALL, assert_same_params, write_hugging_face, write_tensorflow

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import CheckpointError, DownloadError, official, transfer
from gpt2_np.gpt2_np import map_leaves

# --- from a URL ------------------------------------------------------------------------------


def test_a_url_is_downloaded_once_and_then_needs_no_network(server, bundle):
    url, params = bundle
    model = gpt2_np.load(url)
    assert_same_params(model.params, params)
    assert model.tokenizer.n_vocab == SMALL.n_vocab
    names = ["hparams.json", "vocab.bpe", "encoder.json", INDEX, DATA]
    assert server.paths() == [f"/models/124M/{name}" for name in names]
    server.log.clear()
    assert_same_params(checkpoint.load(url + "/").params, params)
    assert server.log == []


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tokenizer", [True, False])
def test_hugging_faces_layout_is_recognised(server, shards, tokenizer):
    params = write_hugging_face(server.folder, shards=shards, tokenizer=tokenizer)
    model = checkpoint.load(server.url)
    assert_same_params(model.params, params)
    assert (model.tokenizer is not None) == tokenizer
    server.log.clear()
    checkpoint.load(server.url)
    assert checkpoint.download(server.url) == cached("verified.json")[0].parent
    assert server.log == []


def test_a_tokenizer_json_is_fetched_if_there_are_no_merges(server):
    write_hugging_face(server.folder)
    lines = (server.folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    ids = json.loads((server.folder / "vocab.json").read_text(encoding="utf-8"))
    parts = {"model": {"type": "BPE", "merges": lines, "vocab": ids}, "pre_tokenizer":
             {"type": "ByteLevel", "add_prefix_space": False}}
    for name in ("merges.txt", "vocab.json"):
        (server.folder / name).unlink()
    (server.folder / "tokenizer.json").write_text(json.dumps(parts))
    assert checkpoint.load(server.url).tokenizer.n_vocab == SMALL.n_vocab
    server.log.clear()
    assert checkpoint.load(server.url).tokenizer.n_vocab == SMALL.n_vocab
    assert server.log == []


def test_two_urls_do_not_share_a_folder(server):
    first = write_tensorflow(server.folder / "a", seed=1)
    second = write_tensorflow(server.folder / "b", seed=2)
    assert_same_params(checkpoint.load(server.url + "/a").params, first)
    assert_same_params(checkpoint.load(server.url + "/b").params, second)


@pytest.mark.parametrize("soft", [True, False])
def test_a_missing_folder_is_not_taken_for_a_checkpoint(server, soft):
    server.soft_404 = soft
    with pytest.raises(DownloadError, match=r"hparams\.json answered .*config\.json answered"):
        checkpoint.load(server.url + "/nothing")
    assert not [file for file in cached("") if file.is_file() and file.name != ".lock"]


@pytest.mark.parametrize("kind", ["text/html", "text/plain", None])
def test_a_web_page_in_place_of_a_file_is_never_kept(server, bundle, kind):
    server.headers = {"Content-Type": kind}
    for name in ("hparams.json", INDEX, DATA):
        page = b"<html>Please log in</html>" * 300
        server.instead = {f"/models/124M/{name}": page}
        with pytest.raises((DownloadError, CheckpointError)):
            checkpoint.load(bundle[0])
        assert page not in [file.read_bytes() for file in cached("") if file.is_file()]


def test_without_an_announced_length_small_files_are_read_and_large_ones_refused(server, larger):
    server.headers = {"Content-Length": None}
    checkpoint.load(larger)  # the index says how long the data are
    content = b'{"model_type": "gpt2"}' + b" " * 5 * 2**20
    server.instead = {"/x/config.json": content}
    with pytest.raises(DownloadError, match="sends more than 4194304 bytes"):
        checkpoint.load(server.url + "/x")


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "many", "1e9"])
def test_a_length_that_is_not_a_number_is_ignored(server, bundle, length, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT", (1, 0.05))
    server.headers = {"Content-Length": length}
    with contextlib.suppress(DownloadError, CheckpointError):
        checkpoint.load(bundle[0])


def test_a_small_file_that_announces_to_be_huge_is_not_fetched(server, bundle):
    server.headers = {"Content-Length": str(10**12)}
    with pytest.raises(DownloadError, match="1000000000000 bytes, expected at most 4194304"):
        checkpoint.load(bundle[0])


@pytest.mark.parametrize(
    "url", ["http://h/a?b=c", "https://h/a#b", "http://me:secret@h/a", "ftp://h/a", "a", "124 M"]
)
def test_download_refuses_a_name_that_is_neither_a_size_nor_a_plain_url(url):
    with pytest.raises(DownloadError, match=r"neither a model .124M, .* nor the http"):
        checkpoint.download(url)


def test_a_url_may_have_an_at_sign_in_its_path(server):
    params = write_hugging_face(server.folder / "npm/pkg@1.0/data")
    assert_same_params(checkpoint.load(server.url + "/npm/pkg@1.0/data").params, params)


@pytest.mark.parametrize("url", ["http://", "https:///x", "http://[", "http://a b/", "http://é..x/"])
def test_a_url_without_a_valid_host_is_one_sentence(url):
    with pytest.raises(DownloadError, match="cannot be"):
        checkpoint.download(url, progress=False)


# --- damage ----------------------------------------------------------------------------------


def test_a_flipped_byte_on_the_server_is_found_and_the_data_not_kept(server, bundle):
    url, params = bundle
    damage(server.folder / "models/124M" / DATA)
    with pytest.raises(CheckpointError, match=rf"{DATA}: tensor 'model/wte' has CRC-32C .*again"):
        checkpoint.load(url)
    damage(server.folder / "models/124M" / DATA)
    server.log.clear()
    assert_same_params(checkpoint.load(url).params, params)
    assert server.paths().count(f"/models/124M/{DATA}") == 1


@pytest.mark.parametrize("write", [write_tensorflow, write_hugging_face])
def test_a_flipped_byte_in_the_cache_is_found_and_the_file_fetched_anew(server, write, capsys):
    params = write(server.folder)
    checkpoint.download(server.url)
    for name in [file.name for file in server.folder.iterdir()]:
        damage(cached(name)[0], at=-3)
        assert_same_params(checkpoint.load(server.url).params, params)
        assert f"{name} is damaged: downloading it again" in capsys.readouterr().err
        assert cached(name)[0].read_bytes() == (server.folder / name).read_bytes()


def test_files_that_the_server_did_not_have_are_not_requested_again(server, larger, monkeypatch):
    checkpoint.load(larger)  # has no tokenizer
    os.utime(cached(DATA)[0])
    monkeypatch.setenv("GPT2_NP_OFFLINE", "1")
    assert checkpoint.load(larger).tokenizer is None


def test_offline_a_damaged_file_is_refused_and_kept(server, bundle, monkeypatch):
    folder = checkpoint.download(bundle[0])
    damage(folder / "hparams.json", at=-3)
    content = (folder / "hparams.json").read_bytes()
    monkeypatch.setenv("GPT2_NP_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"hparams\.json is damaged, and GPT2_NP_OFFLINE"):
        checkpoint.load(bundle[0])
    assert (folder / "hparams.json").read_bytes() == content


@pytest.mark.parametrize("package", ["requests", "tqdm"])
def test_a_package_that_downloads_need_is_asked_for_by_name(server, bundle, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DownloadError, match=f"{package}.*: pip install requests tqdm"):
        checkpoint.download(bundle[0])


@pytest.mark.parametrize("write", [write_tensorflow, write_hugging_face])
def test_download_verifies_again_files_that_load_takes_for_verified(server, write):
    write(server.folder)
    folder = checkpoint.download(server.url)
    file = next(folder / name for name in (DATA, "model.safetensors") if (folder / name).exists())
    status = file.stat()
    damage(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert checkpoint.download(server.url) == folder
    assert file.read_bytes() == (server.folder / file.name).read_bytes()


def test_a_note_without_hashes_still_counts(server, bundle):
    folder = checkpoint.download(bundle[0])
    files = json.loads((folder / "verified.json").read_text())
    (folder / "verified.json").write_text(json.dumps({n: about[:2] for n, about in files.items()}))
    server.log.clear()
    assert checkpoint.locate(bundle[0]) == checkpoint.download(bundle[0]) == folder
    assert server.log == []
    assert json.loads((folder / "verified.json").read_text()) == files


def test_an_index_that_does_not_fit_is_found_before_the_data_are_fetched(server, bundle):
    damage(server.folder / "models/124M" / INDEX, at=60)
    with pytest.raises(CheckpointError, match=INDEX):
        checkpoint.load(bundle[0])
    sizes = json.loads((server.folder / "models/124M/hparams.json").read_text())
    write_tensorflow(server.folder / "models/124M")
    changed = json.dumps(sizes | {"n_layer": 3}).encode()
    server.instead = {"/models/124M/hparams.json": changed}
    with pytest.raises(CheckpointError, match="no tensor 'model/h2/ln_1/g'"):
        checkpoint.load(bundle[0])
    assert f"/models/124M/{DATA}" not in server.paths()
    server.instead = {}
    assert checkpoint.load(bundle[0]).config == SMALL


def test_a_broken_safetensors_file_is_not_kept(server):
    params = write_hugging_face(server.folder)
    content = (server.folder / "model.safetensors").read_bytes()
    server.instead = {"/model.safetensors": content[:-1]}
    with pytest.raises(CheckpointError, match=r"safetensors.*bytes, expected.*run again"):
        checkpoint.load(server.url)
    server.instead = {}
    assert_same_params(checkpoint.load(server.url).params, params)


def test_a_broken_tokenizer_costs_only_the_tokenizer(server, bundle):
    server.instead = {"/models/124M/vocab.bpe": b"#version: 0.2\na b c\n"}
    with pytest.warns(checkpoint.CheckpointWarning, match=r"vocab\.bpe"):
        model = checkpoint.load(bundle[0])
    assert model.tokenizer is None
    assert_same_params(model.params, bundle[1])


def test_shards_with_hostile_names_are_not_fetched(server):
    write_hugging_face(server.folder, shards=2)
    weight_map = {"wte.weight": "../../up.safetensors"}
    hostile = json.dumps({"weight_map": weight_map}).encode()
    server.instead = {"/model.safetensors.index.json": hostile}
    with pytest.raises(CheckpointError, match="expected the plain name"):
        checkpoint.load(server.url)
    assert not [path for path in server.paths() if "up.safetensors" in path]


# --- the official sizes ----------------------------------------------------------------------


def test_an_official_size_comes_from_openai_first(server, mirror):
    model = checkpoint.load("124M")
    assert_same_params(model.params, mirror)
    assert model.tokenizer is not None
    assert {path.split("/")[1] for path in server.paths()} == {"124M"}
    server.log.clear()
    checkpoint.load("124M")
    assert server.log == []


def test_hugging_face_is_the_second_source(server, mirror, capsys, monkeypatch):
    shutil.rmtree(server.folder / "124M")
    assert_same_params(checkpoint.load("124M").params, mirror)
    assert "answered 404 Not Found; trying the next source" in capsys.readouterr().err
    shutil.rmtree(checkpoint.cache_folder())
    monkeypatch.setenv("GPT2_NP_URL", NOWHERE)
    assert_same_params(checkpoint.load("124M").params, mirror)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    server.log.clear()
    checkpoint.load("124M")  # from the cache, whichever source filled it
    capsys.readouterr()
    checkpoint.download("124M")
    assert server.log == [] and "cannot be reached" not in capsys.readouterr().err


def test_of_an_official_model_only_pinned_files_are_fetched(server, mirror):
    shutil.rmtree(server.folder / "124M")
    hub = server.folder / "openai-community/gpt2/resolve/main"
    (hub / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    folder = checkpoint.download("124M")
    found = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    assert found - {"verified.json"} == official.HUB["124M"][2].keys()


def test_both_sources_failing_gives_both_reasons_in_one_sentence(server, mirror, monkeypatch):
    shutil.rmtree(server.folder / "124M")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with pytest.raises(DownloadError) as caught:
        checkpoint.load("124M")
    message = str(caught.value)
    for part in ("answered 404", "Connection refused", "--model shakespeare"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["hparams.json", "vocab.bpe", "encoder.json", INDEX, DATA])
def test_a_mirror_with_other_bytes_is_refused_by_hash(server, mirror, name):
    damage(server.folder / "124M" / name, at=-3)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load("124M")
    message = str(caught.value)
    right = official.OPENAI["124M"][name][1]
    wrong = hashlib.sha256((server.folder / "124M" / name).read_bytes()).hexdigest()
    assert name in message and f"SHA-256 {wrong}, expected {right}" in message
    assert not any("openai-community" in path for path in server.paths())
    assert cached(name) == cached(name + ".part") == []


def test_a_mirror_with_another_length_is_refused_before_the_bytes_are_fetched(server, mirror):
    file = server.folder / "124M" / DATA
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=rf"{DATA} has \d+ bytes, expected \d+"):
        checkpoint.load("124M")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_pinned_hash_covers_a_part_of_an_earlier_run(server, mirror, damaged):
    server.etag = False
    checkpoint.load("124M")
    content = cached(DATA)[0].read_bytes()
    part = cached(DATA)[0].rename(cached(DATA)[0].with_suffix(".data-00000-of-00001.part"))
    part.write_bytes(b"x" * damaged + content[damaged:3000])
    server.log.clear()
    if damaged:
        with pytest.raises(CheckpointError, match=f"{DATA} has SHA-256"):
            checkpoint.load("124M")
        assert not part.exists()
    assert_same_params(checkpoint.load("124M").params, mirror)
    assert server.log[0] == (f"/124M/{DATA}", "bytes=3000-", 206)


def test_an_official_file_damaged_in_the_cache_is_fetched_anew(server, mirror, capsys):
    checkpoint.load("124M")
    damage(cached(DATA)[0])
    server.log.clear()
    assert_same_params(checkpoint.load("124M").params, mirror)
    assert server.paths() == [f"/124M/{DATA}"]
    assert "is damaged" in capsys.readouterr().err


def test_a_size_without_published_hashes_must_still_be_that_size(server, mirror, monkeypatch):
    monkeypatch.setitem(official.OPENAI, "124M", {"hparams.json": (None, None)})
    monkeypatch.setitem(gpt2_np.SIZES, "124M", LARGER)
    with pytest.raises(CheckpointError, match=r"hparams\.json has Config.*expected Config"):
        checkpoint.load("124M")


def test_the_table_has_the_published_figures():
    for size, config in gpt2_np.SIZES.items():
        shapes = []
        map_leaves(lambda path, shape: shapes.append(shape), gpt2_np.parameter_shapes(config))  # noqa: B023
        assert official.OPENAI[size][DATA][0] == 4 * sum(map(math.prod, shapes))
        _, revision, files = official.HUB[size]
        hashes = [sha256 for _, sha256 in [*files.values(), *official.OPENAI[size].values()]]
        assert all(sha256 is None or len(bytes.fromhex(sha256)) == 32 for sha256 in hashes)
        assert len(bytes.fromhex(revision)) == 20
        assert files["model.safetensors"][1] and files["config.json"][1]
    assert None not in [value for pin in official.OPENAI["124M"].values() for value in pin]



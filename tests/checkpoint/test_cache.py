"""The folder of downloads: its place, its note of verified files, and who may write there."""
import os
import pathlib
import shutil
import sys

import pytest
from downloads import DATA, cached
from make_checkpoints import assert_same_params

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import DownloadError


@pytest.mark.parametrize("variable", ["GPT2_NP_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_forbids_the_network_and_not_the_cache(server, bundle, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError) as caught:
        checkpoint.load(bundle[0])
    for part in ("GPT2_NP_OFFLINE", "HF_HUB_OFFLINE", "--model shakespeare", "path of a"):
        assert part in str(caught.value)
    with pytest.raises(DownloadError, match=variable):
        checkpoint.load("124M")
    assert server.log == []
    monkeypatch.setenv(variable, "0")
    checkpoint.load(bundle[0])
    monkeypatch.setenv(variable, "true")
    assert_same_params(checkpoint.load(bundle[0]).params, bundle[1])
    os.utime(cached(DATA)[0])  # must be verified again, which needs no network
    assert_same_params(checkpoint.load(bundle[0]).params, bundle[1])


def test_too_little_disk_space_is_found_before_the_data_are_fetched(server, bundle, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5000))
    with pytest.raises(DownloadError, match=r"needs \d+,\d{3} bytes in .* and 5,000 are free"):
        checkpoint.load(bundle[0])
    assert cached(DATA + ".part") == []


def test_a_disk_that_fills_up_is_one_sentence_and_the_part_is_kept(server, larger, monkeypatch):
    def flush(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", flush)
    with pytest.raises(DownloadError, match=r"No space left on device; .*GPT2_NP_CACHE"):
        checkpoint.load(larger)
    assert cached(DATA + ".part") or cached("hparams.json.part")


def test_a_cache_that_cannot_be_made_is_one_sentence(bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match=r"file.* cannot be used: .*GPT2_NP_CACHE"):
        checkpoint.load(bundle[0])


def test_the_environment_or_the_platform_gives_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_NP_CACHE", "~/here")
    assert checkpoint.cache_folder() == pathlib.Path.home() / "here"
    monkeypatch.delenv("GPT2_NP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert checkpoint.cache_folder() == tmp_path / "gpt2_np"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(sys, "platform", "linux")
    assert checkpoint.cache_folder() == pathlib.Path.home() / ".cache" / "gpt2_np"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert checkpoint.cache_folder() == pathlib.Path.home() / "Library" / "Caches" / "gpt2_np"


def test_progress_is_on_stderr_with_size_and_speed_or_not_at_all(larger, capsys):
    checkpoint.download(larger)
    out, err = capsys.readouterr()
    assert out == ""
    assert DATA in err and "B/s" in err and "100%" in err
    shutil.rmtree(checkpoint.cache_folder())
    checkpoint.download(larger, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"x": [1, 2]}', '{"hparams.json": 3}'])
def test_a_damaged_note_of_verified_files_only_costs_verifying_again(bundle, content):
    checkpoint.load(bundle[0])
    cached("verified.json")[0].write_text(content)
    assert_same_params(checkpoint.load(bundle[0]).params, bundle[1])


def test_a_verified_cache_may_be_read_only(bundle):
    folder = checkpoint.download(bundle[0])
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    checkpoint.load(bundle[0])
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


@pytest.mark.official
def test_the_official_124m_loads_from_its_servers(monkeypatch):
    monkeypatch.delenv("GPT2_NP_CACHE")
    model = checkpoint.load("124M")
    assert model.config == gpt2_np.SIZES["124M"]
    assert model.tokenizer.encode("Hello world") == [15496, 995]

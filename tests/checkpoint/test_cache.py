"""The folder of downloads: its place, its note of verified files, and who may write there."""
import json
import os
import pathlib
import shutil
import sys

import pytest
from downloads import DATA, cached, damage
from make_checkpoints import assert_same_params

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import DownloadError, cache, downloading, sources


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


def test_load_shows_progress_or_not(bundle, capsys):
    gpt2_np.load(bundle[0], "cpu", progress=False)
    assert capsys.readouterr() == ("", "")
    shutil.rmtree(checkpoint.cache_folder())
    gpt2_np.load(bundle[0], "cpu")
    assert f"downloading {bundle[0]}" in capsys.readouterr().err


def test_progress_is_on_stderr_with_size_and_speed_or_not_at_all(larger, capsys):
    checkpoint.download(larger)
    out, err = capsys.readouterr()
    assert out == ""
    assert DATA in err and "B/s" in err and "100%" in err
    shutil.rmtree(checkpoint.cache_folder())
    checkpoint.download(larger, progress=False)
    assert capsys.readouterr() == ("", "")


def test_without_a_standard_error_nothing_is_shown(larger, monkeypatch, capsys):
    """A program without a console has none."""
    monkeypatch.setattr(sys, "stderr", None)
    checkpoint.download(larger)
    assert capsys.readouterr().out == ""


def test_a_note_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cache.note_verified(tmp_path, {"file": [1, 2]})
    assert os.listdir(tmp_path) == []


def test_a_file_that_windows_does_not_give_up_names_the_remedy(bundle, monkeypatch):
    def refuse(*_):
        error = PermissionError(13, "Access is denied", "file")
        error.winerror = winerror
        raise error

    monkeypatch.setattr(downloading, "fetch_checkpoint", refuse)
    for winerror in (5, None):  # None: not of Windows
        with pytest.raises(DownloadError) as caught:
            checkpoint.download(bundle[0])
        assert ("or close the program that uses the file" in str(caught.value)) == bool(winerror)


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


# --- who may write there ---------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")


def modes(root):
    return {path.stat().st_mode & 0o777 for path in [root, *root.rglob("*")] if path.is_dir()}


@posix
def test_the_cache_is_made_for_its_owner_only(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path / "new/cache"))
    umask = os.umask(0)
    try:
        checkpoint.download(bundle[0])
    finally:
        os.umask(umask)
    assert modes(tmp_path / "new") == {0o700}
    assert cached("verified.json")[0].stat().st_mode & 0o777 == 0o600


@posix
def test_a_folder_that_exists_keeps_its_readers(bundle, tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o775)
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path / "shared"))
    folder = checkpoint.download(bundle[0])
    folder.chmod(0o755)
    checkpoint.download(bundle[0])
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o775
    assert folder.stat().st_mode & 0o777 == 0o755


def forge(folder, file):
    """Change a file and write the note that it was verified."""
    damage(file)
    note = folder / "verified.json"
    files = json.loads(note.read_text())
    files[file.name] = cache.stamp(file)
    note.write_text(json.dumps(files))


def by_mode(path, monkeypatch):
    path.chmod(path.stat().st_mode | 0o020)


def by_owner(path, monkeypatch):
    """Let this user be another one than the owner of everything."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    os.chown(path, 54321, -1)


@posix
@pytest.mark.parametrize("where", ["verified.json", ".", ".."])
@pytest.mark.parametrize("how", [by_mode, by_owner])
def test_a_note_that_others_can_write_does_not_replace_the_hash(
    server, mirror, monkeypatch, where, how
):
    if how is by_owner and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    folder = checkpoint.download("124M")
    forge(folder, folder / DATA)
    assert checkpoint.locate("124M") == folder  # it is ours
    how(folder / where, monkeypatch)
    server.log.clear()
    assert_same_params(gpt2_np.load("124M").params, mirror)
    assert server.paths() == [f"/124M/{DATA}"]


@posix
def test_a_folder_from_before_is_verified_once_and_then_private(server, mirror, monkeypatch):
    folder = checkpoint.download("124M")
    for path in (folder / "verified.json", folder, folder.parent):
        path.chmod(path.stat().st_mode | 0o020)
    counted, fetch_checkpoint = [], downloading.fetch_checkpoint

    def count(source):
        counted.append(source.folder)
        fetch_checkpoint(source)

    monkeypatch.setattr(downloading, "fetch_checkpoint", count)
    gpt2_np.load("124M")
    gpt2_np.load("124M")
    assert counted == [folder]
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o700)


@posix
def test_what_root_has_written_counts_as_ones_own(mirror, monkeypatch):
    folder = checkpoint.download("124M")
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert cache.is_private(folder) == (owner == 0)


@posix
def test_an_official_model_in_a_cache_of_somebody_else_is_verified_each_time(
    server, mirror, monkeypatch, capsys
):
    folder = checkpoint.download("124M")
    monkeypatch.setattr(cache, "is_private", lambda folder: False)
    monkeypatch.setattr(sources, "is_private", lambda folder: False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    server.log.clear()
    capsys.readouterr()
    for _ in range(2):
        assert_same_params(gpt2_np.load("124M").params, mirror)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert server.log == []
    assert capsys.readouterr().err == f"verifying {folder} again\n" * 2
    damage(folder / DATA)
    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    with pytest.raises(DownloadError, match="set GPT2_NP_CACHE to another folder"):
        gpt2_np.load("124M")


def refuse(path, missing_ok=False):
    raise PermissionError(13, "Permission denied", str(path))


# --- no home ---------------------------------------------------------------------------------


@posix
def test_an_empty_home_is_no_home(monkeypatch):
    import pwd

    for name in ("GPT2_NP_CACHE", "XDG_CACHE_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    expected = pathlib.Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache/gpt2_np"
    monkeypatch.setenv("HOME", "")
    assert checkpoint.cache_folder() == expected
    monkeypatch.setenv("GPT2_NP_CACHE", "~/here")
    assert checkpoint.cache_folder() == expected.parents[1] / "here"
    assert cache.at_home("~root/x") == pwd.getpwnam("root").pw_dir + "/x"
    monkeypatch.delenv("GPT2_NP_CACHE")
    monkeypatch.delenv("HOME")
    assert checkpoint.cache_folder() == expected


@posix
@pytest.mark.parametrize("home", ["", None])
def test_a_user_without_a_home_is_one_sentence(monkeypatch, home):
    import pwd

    def unknown(uid):
        raise KeyError(uid)

    for name in ("GPT2_NP_CACHE", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(gpt2_np.Error, match="has no home: set HOME, or GPT2_NP_CACHE"):
        gpt2_np.load("124M")
    assert gpt2_np.load("shakespeare", "cpu").config.n_layer  # needs none


@pytest.mark.official
def test_the_official_124m_loads_from_its_servers(monkeypatch):
    monkeypatch.delenv("GPT2_NP_CACHE")
    model = checkpoint.load("124M")
    assert model.config == gpt2_np.SIZES["124M"]
    assert model.tokenizer.encode("Hello world") == [15496, 995]

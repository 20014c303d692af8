"""Snapshots in the cache of Hugging Face's own libraries, which are used where they lie."""
import os
import shutil

import pytest
from downloads import cached, damage
from make_checkpoints import assert_same_params, write_hugging_face

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import CheckpointWarning, hub_cache, official, tokenizer_files
from gpt2_np.checkpoint.layouts import HUGGING_FACE

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
BOTH = pytest.mark.parametrize("name", ["124M", "owner/name"])


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write_snapshot(repository, commit=COMMIT, ref="main", **options):
    """Write a snapshot as huggingface_hub does, links to blobs, and return it with its weights.

    Files of the tokenizer that are not written are noted as not in the repository.
    """
    root = hub_cache.hub_cache() / f"models--{repository.replace('/', '--')}"
    folder = root / "snapshots" / commit
    params = write_hugging_face(folder, **options)
    (root / "blobs").mkdir(exist_ok=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        blob = root / "blobs" / f"{i}{commit}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, folder))
    absent = root / ".no_exist" / commit
    absent.mkdir(parents=True)
    for name in tokenizer_files(HUGGING_FACE):
        if not (folder / name).exists():
            (absent / name).touch()
    if ref:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    return folder, params


@pytest.fixture
def snapshot(mirror, monkeypatch):
    """The snapshots of owner/name and of the official 124M, at its pinned revision."""
    _, _, pins = official.HUB["124M"]
    monkeypatch.setitem(official.HUB, "124M", ("gpt2", COMMIT, pins))
    folders = {"owner/name": write_snapshot("owner/name", seed=3)}
    folders["124M"] = write_snapshot("openai-community/gpt2")
    return folders


def contents(folder):
    """Return what is in a folder, with the times of files and of the folders around them."""
    return {path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in folder.rglob("*")}


@BOTH
def test_a_snapshot_is_used_where_it_lies_and_nothing_is_written_there(snapshot, name, server):
    folder, params = snapshot[name]
    before = contents(hub_cache.hub_cache())
    for _ in range(2):
        assert_same_params(gpt2_np.load(name).params, params)
    assert checkpoint.locate(name) == checkpoint.download(name) == folder
    assert contents(hub_cache.hub_cache()) == before
    assert server.log == [] and not cached(".safetensors")


def test_a_read_only_cache_of_the_hub_is_used(snapshot):
    folders = [path for path in hub_cache.hub_cache().rglob("*") if path.is_dir()]
    for path in folders:
        path.chmod(0o500)
    try:
        assert_same_params(gpt2_np.load("124M").params, snapshot["124M"][1])
    finally:
        for path in folders:
            path.chmod(0o700)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "a blob"])
@BOTH
def test_an_incomplete_snapshot_is_downloaded_instead(snapshot, server, monkeypatch, name, missing):
    folder, _ = snapshot[name]
    if missing == "a blob":
        os.remove(os.path.realpath(folder / "model.safetensors"))  # the link stays
    else:
        (folder / missing).unlink()
    with pytest.raises(checkpoint.DownloadError, match="HF_HUB_OFFLINE"):
        gpt2_np.load(name)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    params = write_hugging_face(server.folder / "owner/name/resolve/main", seed=3)
    before = contents(hub_cache.hub_cache())
    gpt2_np.load(name)
    assert checkpoint.locate(name).is_relative_to(checkpoint.cache_folder())
    assert contents(hub_cache.hub_cache()) == before
    if name == "owner/name":
        assert_same_params(gpt2_np.load(name).params, params)


def test_a_snapshot_that_may_lack_tokens_is_downloaded_instead(server, monkeypatch):
    """Another program has fetched the snapshot, and did not ask for added_tokens.json."""
    folder, params = write_snapshot("owner/name")
    (folder.parents[1] / ".no_exist" / COMMIT / "added_tokens.json").unlink()
    write_hugging_face(server.folder / "owner/name/resolve/main")
    added = server.folder / "owner/name/resolve/main/added_tokens.json"
    added.write_text('{"<|user|>": 280}')
    with pytest.warns(CheckpointWarning, match=r"no added_tokens\.json, .*token ids may differ"):
        assert_same_params(gpt2_np.load("owner/name").params, params)
    assert server.log == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    ids = gpt2_np.load("owner/name").tokenizer.encode("<|user|>", allowed_special="all")
    assert ids == [280]


def test_a_repository_without_a_tokenizer_has_a_whole_snapshot(server, monkeypatch):
    folder, params = write_snapshot("owner/name", tokenizer=False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    model = gpt2_np.load("owner/name")
    assert model.tokenizer is None and server.log == []
    shutil.rmtree(folder.parents[1] / ".no_exist")  # another program has fetched only the weights
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.warns(CheckpointWarning, match=r"has no merges\.txt, vocab\.json, tokenizer\.json"):
        assert_same_params(gpt2_np.load("owner/name").params, params)


def test_a_snapshot_cut_short_is_not_whole(snapshot):
    blob = os.path.realpath(snapshot["owner/name"][0] / "model.safetensors")
    os.truncate(blob, os.path.getsize(blob) - 1)
    with pytest.raises(checkpoint.DownloadError, match="HF_HUB_OFFLINE"):
        gpt2_np.load("owner/name")


def test_shards_make_a_whole_snapshot_if_all_are_there():
    folder, params = write_snapshot("owner/shards", shards=3)
    assert_same_params(gpt2_np.load("owner/shards").params, params)
    next(folder.glob("*00002-of-*")).unlink()
    assert hub_cache.find_snapshot("owner/shards") is None


def test_a_revision_is_looked_up_by_its_name_or_its_commit():
    main = write_snapshot("owner/name", COMMIT, seed=1)[0]
    tagged = write_snapshot("owner/name", OTHER, ref="v1", seed=2)[0]
    find = hub_cache.find_snapshot
    assert find("owner/name") == find("owner/name@main") == find(f"owner/name@{COMMIT}") == main
    assert find("owner/name@v1") == find(f"owner/name@{OTHER}") == tagged
    assert find("owner/name@v2") is find("owner/name@" + "0" * 40) is None


@pytest.mark.parametrize("ref", ["", "main", f"../snapshots/{COMMIT}", "0" * 39, "\xff"])
def test_a_reference_that_is_no_commit_is_not_followed(ref):
    folder, _ = write_snapshot("owner/name")
    (folder.parents[1] / "refs/main").write_text(ref, encoding="latin-1")
    assert hub_cache.find_snapshot("owner/name") is None


@pytest.mark.parametrize(("name", "repository"), [("124M", "gpt2"), ("distilgpt2", "distilgpt2"),
                                                  ("distilgpt2", "distilbert/distilgpt2")])
def test_a_model_that_had_no_owner_is_found_under_either_name(snapshot, name, repository):
    shutil.rmtree(snapshot["124M"][0].parents[1])
    folder, _ = write_snapshot(repository)
    assert checkpoint.locate(name) == folder


@pytest.mark.parametrize(
    "variables", [{"HF_HUB_CACHE": "{}/hub"}, {"HUGGINGFACE_HUB_CACHE": "{}/hub"},
                  {"HF_HOME": "{}"}, {"HF_HOME": "~"}, {"HOME": "{}"}, {"XDG_CACHE_HOME": "{}"}]
)  # fmt: skip
def test_the_variables_of_the_hubs_libraries_give_its_folder(monkeypatch, tmp_path, variables):
    for name in ("HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    expected = {"HOME": ".cache/huggingface/hub", "XDG_CACHE_HOME": "huggingface/hub"}
    assert hub_cache.hub_cache() == tmp_path / expected.get(*variables, "hub")


def test_only_the_verified_files_of_an_official_snapshot_are_read(snapshot):
    expected = gpt2_np.load("124M").tokenizer.encode("some text")
    folder, _ = snapshot["124M"]
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    (folder / "added_tokens.json").write_text('{"some": 3}')
    assert gpt2_np.load("124M").tokenizer.encode("some text") == expected


def test_a_download_of_ours_is_used_before_a_snapshot(server, snapshot, monkeypatch):
    shutil.move(snapshot["124M"][0], snapshot["124M"][0].with_name("away"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = checkpoint.download("124M")
    shutil.move(snapshot["124M"][0].with_name("away"), snapshot["124M"][0])
    assert checkpoint.locate("124M") == checkpoint.download("124M") == folder


# --- the hashes of the official models -------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose SHA-256 is computed."""
    names, hash_of = [], hub_cache.hash_of

    def record(file):
        names.append(file.name)
        return hash_of(file)

    monkeypatch.setattr(hub_cache, "hash_of", record)
    return names


def test_the_hash_of_a_snapshot_is_computed_once_and_remembered(snapshot, hashed):
    gpt2_np.load("124M")
    assert sorted(hashed) == ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    hashed.clear()
    gpt2_np.load("124M")
    assert hashed == []
    checkpoint.download("124M")
    assert len(hashed) == 4


@pytest.mark.parametrize("name", ["config.json", "merges.txt", "vocab.json", "model.safetensors"])
def test_a_snapshot_with_other_bytes_is_not_the_official_model(snapshot, name):
    gpt2_np.load("124M")
    damage(snapshot["124M"][0] / name, at=-3)
    with pytest.raises(checkpoint.DownloadError, match="HF_HUB_OFFLINE"):
        gpt2_np.load("124M")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_a_note_of_hashes_that_others_can_write_does_not_count(snapshot, hashed):
    gpt2_np.load("124M")
    (note,) = cached("snapshot/verified.json")
    note.chmod(0o666)
    hashed.clear()
    gpt2_np.load("124M")
    assert len(hashed) == 4


def test_without_a_place_for_the_note_the_hash_is_computed_each_time(
    snapshot, hashed, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert_same_params(gpt2_np.load("124M").params, snapshot["124M"][1])
    assert len(hashed) == 8


def test_the_snapshot_of_another_revision_is_not_the_official_model(snapshot, monkeypatch):
    _, _, pins = official.HUB["124M"]
    monkeypatch.setitem(official.HUB, "124M", ("gpt2", OTHER, pins))
    assert hub_cache.find_snapshot("124M") is None

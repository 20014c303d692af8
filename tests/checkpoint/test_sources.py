"""The names of models: OpenAI's sizes as people call them, and repositories of the hub."""
import json
import shutil

import pytest
from downloads import cached
from make_checkpoints import SMALL, assert_same_params, write_hugging_face, write_tensorflow

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import DownloadError, official, sources, transfer

NAMES = {
    "124M": ["124m", "117M", "gpt2", "GPT2", "openai-community/gpt2"],
    "355M": ["345M", "gpt2-medium", "openai-community/gpt2-medium"],
    "774M": ["762M", "gpt2-large", "OpenAI-community/GPT2-large"],
    "1558M": ["1542M", "1.5B", "1.5b", "gpt2-xl", "openai-community/gpt2-xl"],
}


@pytest.fixture
def hub(server, monkeypatch):
    """The server as the hub, with the repository owner/name, and the parameters of that."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return write_hugging_face(server.folder / "owner/name/resolve/main")


# --- OpenAI's sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", NAMES)
def test_an_official_model_has_the_names_that_people_use(size):
    for name in (size, *NAMES[size]):
        assert checkpoint.official_size(name) == size
        assert checkpoint.sources_of(name) == checkpoint.sources_of(size)
        assert all(source.pinned for source in checkpoint.sources_of(name))


@pytest.mark.parametrize("name", ["125M", "gpt2-", "gpt", "owner/gpt2", "gpt2@main", "", None, 3])
def test_no_other_name_is_taken_for_an_official_one(name):
    assert checkpoint.official_size(name) is None


def test_every_size_has_its_name_on_the_hub():
    names = {size: official.HUB[size][0] for size in gpt2_np.SIZES}
    assert {official.SIZE_BY_NAME[name]: name for name in names.values()} == names
    assert all(name == name.lower() for name in official.SIZE_BY_NAME)


@pytest.mark.parametrize("name", ["gpt2", "117M", "openai-community/gpt2"])
def test_another_name_loads_the_same_verified_files(server, mirror, name):
    assert_same_params(gpt2_np.load(name, "cpu").params, mirror)
    folder = checkpoint.locate("124M")
    n_requests = len(server.log)
    assert checkpoint.locate(name) == checkpoint.download(name) == folder
    assert len(server.log) == n_requests


def test_an_existing_path_wins_over_every_name_but_the_sizes(tmp_path, monkeypatch, mirror):
    monkeypatch.chdir(tmp_path)
    for folder in ("gpt2", "owner/name", "124M"):
        own = write_hugging_face(folder, seed=5)
    assert_same_params(gpt2_np.load("gpt2").params, own)
    assert_same_params(gpt2_np.load("owner/name").params, own)
    assert_same_params(gpt2_np.load("124M").params, mirror)
    assert checkpoint.official_size("gpt2") is None


def test_the_prefix_of_a_bundle_is_an_existing_path_too(tmp_path, monkeypatch, mirror):
    monkeypatch.chdir(tmp_path)
    write_tensorflow(".", seed=5)
    for file in tmp_path.glob("model.ckpt.*"):
        file.rename(file.name.replace("model.ckpt", "gpt2"))
    assert checkpoint.official_size("gpt2") is None
    assert checkpoint.locate("gpt2").name == "gpt2"


def test_a_folder_that_hides_an_official_name_is_told_with_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(checkpoint.CheckpointError, match=r'or load\("124M"\) .*gpt2 is a path'):
        gpt2_np.load("gpt2")
    with pytest.raises(checkpoint.CheckpointError) as caught:
        gpt2_np.load(tmp_path / "gpt2")
    assert "124M" not in str(caught.value)


def test_another_revision_of_an_official_repository_is_not_the_pinned_one(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    (source,) = checkpoint.sources_of("openai-community/gpt2@main")
    assert not source.pinned
    assert source.url == f"{server.url}/openai-community/gpt2/resolve/main"


# --- the hub -----------------------------------------------------------------------------------


def test_a_repository_of_the_hub_is_downloaded_once(server, hub):
    assert_same_params(gpt2_np.load("owner/name").params, hub)
    asked = [path.removeprefix("/owner/name/resolve/main/") for path in server.paths()]
    assert asked[0] == "config.json" and asked[-1] == "model.safetensors"
    assert not [path for path in asked if path in ("hparams.json", "vocab.bpe")]
    server.log.clear()
    model = gpt2_np.load("owner/name")
    assert model.config == SMALL and model.tokenizer.n_vocab == SMALL.n_vocab
    assert server.log == []


def test_all_files_that_a_tokenizer_may_need_are_fetched(server, hub):
    folder = server.folder / "owner/name/resolve/main"
    (folder / "added_tokens.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    found = {file.name for file in checkpoint.download("owner/name").iterdir()}
    assert {"merges.txt", "vocab.json", "added_tokens.json", "tokenizer_config.json"} <= found


def test_a_tokenizer_too_large_to_read_is_refused_and_not_left_out(server, hub, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_TOKENIZER_JSON", 10_000)
    path = "/owner/name/resolve/main/tokenizer.json"
    server.instead = {path: b"{}" + b" " * 10_000}
    with pytest.raises(DownloadError, match=r"tokenizer\.json has 10002 bytes, expected at most"):
        gpt2_np.load("owner/name")


def test_a_tokenizer_may_be_larger_than_other_small_files(server, hub):
    path = "/owner/name/resolve/main/added_tokens.json"
    server.instead = {path: b"{}" + b" " * 5 * 2**20}
    folder = checkpoint.download("owner/name")
    assert (folder / "added_tokens.json").stat().st_size > 5 * 2**20


def test_a_tokenizer_that_is_not_understood_costs_only_the_tokenizer(server, hub):
    path = "/owner/name/resolve/main/tokenizer_config.json"
    server.instead = {path: b'{"tokenizer_class": "BertTokenizer"}'}
    with pytest.warns(checkpoint.CheckpointWarning, match="BertTokenizer"):
        model = gpt2_np.load("owner/name")
    assert model.tokenizer is None
    assert_same_params(model.params, hub)


def test_all_files_are_of_the_commit_of_the_first(server, hub):
    commit = "0123456789abcdef" * 2 + "01234567"
    server.headers = {"X-Repo-Commit": commit}
    params = write_hugging_face(server.folder / f"owner/name/resolve/{commit}", seed=9)
    assert_same_params(gpt2_np.load("owner/name").params, params)
    first, *others = server.paths()
    assert first == "/owner/name/resolve/main/config.json"
    assert {path.rpartition("/")[0] for path in others} == {f"/owner/name/resolve/{commit}"}


@pytest.mark.parametrize("commit", ["", "main", "../main", "0" * 39])
def test_a_commit_that_is_none_is_not_asked_for(server, hub, commit):
    server.headers = {"X-Repo-Commit": commit}
    assert_same_params(gpt2_np.load("owner/name").params, hub)
    assert {path.rpartition("/")[0] for path in server.paths()} == {"/owner/name/resolve/main"}


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", "0123456789abcdef" * 2 + "01234567"])
def test_a_revision_is_another_model(server, hub, revision):
    path = "owner/name/resolve/" + revision.replace("/", "%2F")
    other = write_hugging_face(server.folder / path, seed=9)
    assert_same_params(gpt2_np.load("owner/name").params, hub)
    assert_same_params(gpt2_np.load(f"owner/name@{revision}").params, other)
    assert_same_params(gpt2_np.load("owner/name").params, hub)


def test_distilgpt2_is_known_without_its_owner(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    params = write_hugging_face(server.folder / "distilbert/distilgpt2/resolve/main")
    assert_same_params(gpt2_np.load("distilgpt2").params, params)
    server.log.clear()
    assert_same_params(gpt2_np.load("DistilGPT2").params, params)
    assert server.log == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_repository_that_is_private_or_missing_is_one_sentence(server, hub, status):
    server.first = [status]
    with pytest.raises(DownloadError) as caught:
        gpt2_np.load("owner/name")
    message = str(caught.value)
    for part in ("owner/name is not a folder here and cannot be downloaded", "gated", "HF_TOKEN",
                 f"answered {status}", "spelling of owner/name"):
        assert part in message
    assert "\n" not in message
    assert len(server.log) == 1


def test_a_name_and_a_url_on_the_command_line_tell_of_the_same_model(hub, capsys):
    assert gpt2_np.main(["--info", "-m", "owner/name", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["model"] == "owner/name" and about["config"]["n_embd"] == SMALL.n_embd
    assert gpt2_np.main(["--info", "-m", "gpt2-xl", "--json"]) == 0  # without a download
    assert json.loads(capsys.readouterr().out)["config"]["n_embd"] == 1600


def test_offline_a_repository_comes_from_the_cache_only(server, hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids"):
        gpt2_np.load("owner/name")
    assert server.log == [] and cached("") == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    checkpoint.download("owner/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_same_params(gpt2_np.load("owner/name").params, hub)


def test_each_revision_has_a_folder_of_its_own():
    names = ["a/b@x/y", "a/b@x--y", "a/b@x-y", "a/b"]
    assert len({checkpoint.sources_of(name)[0].folder for name in names}) == len(names)


@pytest.mark.parametrize("name", ["a/b", "a1/b.c-d_e", "a/b@main", "a/b@refs/pr/1", "a/b@x--y"])
def test_a_repository_is_an_owner_and_a_name(name):
    assert sources.repository(name)


@pytest.mark.parametrize(
    "name", ["gpt2", "a/", "/a", "a/b/c", "../b", "a/..", "a/.", ".a/b", "a--b/c", "a/b@", "a/b@..",
             "a/b@x/../y", "a/b@/x", "a b/c", "a/b\n", "a/b?c", "é/b", "~/b", "a/" + "b" * 97]
)  # fmt: skip
def test_a_path_is_not_taken_for_a_repository(name):
    assert sources.repository(name) is None


# --- pickles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_server_that_has_only_pickles_gets_the_lines_that_convert_them(server, hub, pickled):
    folder = server.folder / "owner/name/resolve/main"
    shutil.move(folder / "model.safetensors", folder / pickled)
    for name in ("owner/name", f"{server.url}/owner/name/resolve/main"):
        with pytest.raises(DownloadError) as caught:
            gpt2_np.load(name)
        message = str(caught.value)
        for part in (f"only {pickled}: pickled weights are never read", ".save_pretrained("):
            assert part in message
        assert "\n" not in message
    assert not cached(pickled) and not cached(pickled + ".part")

import hashlib
import os

import pytest
from downloads import LARGER
from make_checkpoints import SMALL, write_hugging_face, write_tensorflow
from server import Server

import gpt2_np
from gpt2_np.checkpoint import official, transfer

VARIABLES = ("GPT2_NP_OFFLINE", "HF_HUB_OFFLINE", "GPT2_NP_URL", "HF_ENDPOINT", "GPT2_NP_DEVICE",
             "HF_TOKEN", "HF_HOME", "HUGGINGFACE_HUB_CACHE")  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(os, "fsync", fsync)


def fsync(file):
    """Leave out the wait for the disk: no test takes the power away."""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as server:
        yield server


@pytest.fixture
def bundle(server):
    """The URL of a small checkpoint in TensorFlow's layout, and its parameters."""
    return server.url + "/models/124M", write_tensorflow(server.folder / "models/124M")


@pytest.fixture
def larger(server):
    """The URL of a bundle of 2.4 MB."""
    write_tensorflow(server.folder / "larger", LARGER, tokenizer=False)
    return server.url + "/larger"


@pytest.fixture
def mirror(server, monkeypatch):
    """Replace the official 124M by small files, and make the server the mirror of both sources."""
    tensorflow, hub = server.folder / "124M", server.folder / "openai-community/gpt2/resolve/main"
    params = write_tensorflow(tensorflow)
    write_hugging_face(hub)

    def pin(folder, names):
        contents = {name: (folder / name).read_bytes() for name in names}
        return {name: (len(c), hashlib.sha256(c).hexdigest()) for name, c in contents.items()}

    monkeypatch.setitem(gpt2_np.SIZES, "124M", SMALL)
    monkeypatch.setitem(official.OPENAI, "124M", pin(tensorflow, official.OPENAI["124M"]))
    repository, _, names = official.HUB["124M"]
    monkeypatch.setitem(official.HUB, "124M", (repository, "main", pin(hub, names)))
    monkeypatch.setenv("GPT2_NP_URL", server.url + "/")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return params

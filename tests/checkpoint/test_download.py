"""Downloading from a real server on 127.0.0.1 that cuts, lies, stalls and fails."""
import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from make_checkpoints import SMALL, assert_same_params, write_hugging_face, write_tensorflow
from server import Server

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import CheckpointError, DownloadError, cache, official, transfer
from gpt2_np.gpt2_np import map_leaves

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
LARGER = gpt2_np.Config(n_vocab=1500, n_ctx=64, n_embd=128, n_head=2, n_layer=2)  # 2.4 MB
VARIABLES = ("GPT2_NP_OFFLINE", "HF_HUB_OFFLINE", "GPT2_NP_URL", "HF_ENDPOINT", "GPT2_NP_DEVICE")
NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.001)


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


def cached(ending):
    """Return the files in the cache with that ending."""
    return sorted(checkpoint.cache_folder().rglob("*" + ending))


def damage(file, at=-100):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


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
    "url", ["http://h/a?b=c", "https://h/a#b", "http://me:secret@h/a", "ftp://h/a", "a", "124m"]
)
def test_download_refuses_a_name_that_is_neither_a_size_nor_a_plain_url(url):
    with pytest.raises(DownloadError, match="expected 124M, 355M, 774M, 1558M or the http"):
        checkpoint.download(url)


@pytest.mark.parametrize("url", ["http://", "https:///x", "http://[", "http://a b/", "http://é..x/"])
def test_a_url_without_a_valid_host_is_one_sentence(url):
    with pytest.raises(DownloadError, match="cannot be"):
        checkpoint.download(url, progress=False)


# --- breaks and resumption -------------------------------------------------------------------


def test_a_cut_connection_is_resumed_where_it_was_cut(server, larger):
    server.cut = 300_000
    checkpoint.load(larger)
    asked = [(asked, status) for path, asked, status in server.log if path.endswith(DATA)]
    assert asked[0] == (None, 200)
    assert {status for _, status in asked[1:]} == {206}
    assert len(asked) > transfer.ATTEMPTS  # attempts count only if nothing new has come
    starts = [int(one.removeprefix("bytes=").removesuffix("-")) for one, _ in asked[1:]]
    assert starts == sorted(set(starts)) and starts[0] > 0
    assert cached(".part") == cached(".tag") == []


def test_a_body_that_ends_early_without_a_length_is_resumed(server, larger):
    server.headers = {"Content-Length": None}
    server.cut = 2_000_000
    checkpoint.load(larger)
    assert [status for path, _, status in server.log if path.endswith(DATA)] == [200, 206]


def test_a_server_that_ignores_ranges_starts_from_zero(server, larger):
    server.cut, server.ranges = 600_000, False
    with pytest.raises(DownloadError, match="broke off after"):
        checkpoint.load(larger)
    server.cut = None
    checkpoint.load(larger)
    last = [entry for entry in server.log if entry[0].endswith(DATA)][-1]
    assert last[1].startswith("bytes=") and last[2] == 200


def test_a_file_that_changed_meanwhile_starts_from_zero(server, larger):
    server.cut, server.ranges = 600_000, True
    stop_after(server, larger, bytes_of_data=1_200_000)
    params = write_tensorflow(server.folder / "larger", LARGER, seed=7, tokenizer=False)
    for name in ("hparams.json", INDEX):  # as the server has them now
        shutil.copy(server.folder / "larger" / name, cached(name)[0])
    server.cut = None
    server.log.clear()
    assert_same_params(checkpoint.load(larger).params, params)
    last = [entry for entry in server.log if entry[0].endswith(DATA)][-1]
    assert last[1].startswith("bytes=") and last[2] == 200


def stop_after(server, url, bytes_of_data):
    """Download that many bytes of the data, then let the server fail."""
    server.cut = bytes_of_data
    server.first = []
    original = server.send

    def send(request, status, body, headers):
        if request.path.endswith(DATA):
            server.first = [403]  # for the next request, which may come before this one has ended
        original(request, status, body, headers)

    server.send = send
    with pytest.raises(DownloadError, match="403"):
        checkpoint.load(url)
    server.send = original
    server.first = []
    assert cached(DATA + ".part")[0].stat().st_size > bytes_of_data // 2


def test_without_a_tag_or_a_hash_nothing_is_resumed(server, larger):
    server.etag = False
    stop_after(server, larger, 1_000_000)
    server.cut = None
    server.log.clear()
    checkpoint.load(larger)
    assert [asked for path, asked, _ in server.log if path.endswith(DATA)] == [None]


def test_a_date_is_as_good_as_a_tag(server, larger):
    server.etag = False
    server.headers = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    stop_after(server, larger, 1_000_000)
    server.cut = None
    checkpoint.load(larger)
    assert server.log[-1][2] == 206


def test_a_weak_tag_does_not_show_that_a_file_is_the_same(server, larger):
    server.headers = {"ETag": 'W/"weak"'}
    stop_after(server, larger, 1_000_000)
    server.cut = None
    checkpoint.load(larger)
    assert server.log[-1] == (f"/larger/{DATA}", None, 200)


@pytest.mark.parametrize("answer", ["other start", "no span", "longer part"])
def test_an_answer_that_does_not_continue_the_part_starts_anew(server, larger, answer):
    stop_after(server, larger, 1_000_000)
    server.cut = None
    if answer == "longer part":
        part = cached(".part")[0]
        part.write_bytes(bytes(10**7))
    else:
        original = server.send

        def send(request, status, body, headers):
            if status == 206:
                span = {"other start": "bytes 7-2999999/3000000", "no span": "bytes */*"}[answer]
                headers["Content-Range"] = span
            original(request, status, body, headers)

        server.send = send
    checkpoint.load(larger)
    statuses = [status for path, _, status in server.log if path.endswith(DATA)]
    assert statuses[-1] == 200
    assert statuses[-2] == (416 if answer == "longer part" else 206)


def test_a_whole_part_is_not_fetched_again(server, larger):
    stop_after(server, larger, 1_000_000)
    shutil.copy(server.folder / "larger" / DATA, cached(".part")[0])
    server.log.clear()
    checkpoint.load(larger)
    assert not [path for path in server.paths() if path.endswith(DATA)]


def run_download(url, **options):
    """Start another process that downloads."""
    code = "import sys, gpt2_np.checkpoint as c; print(c.download(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, url],
        cwd=pathlib.Path(gpt2_np.__file__).parent,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_resumed_by_the_next(server, larger, how):
    server.slow = 0.05
    process = run_download(larger)
    wait_for(lambda: any(file.stat().st_size > 300_000 for file in cached(DATA + ".part")))
    process.send_signal(how)
    process.communicate()
    assert process.returncode != 0 and cached("verified.json") == []
    server.slow = 0.0
    have = cached(DATA + ".part")[0].stat().st_size
    server.log.clear()
    checkpoint.load(larger)
    assert server.log[-1] == (f"/larger/{DATA}", f"bytes={have}-", 206)
    assert server.paths().count("/larger/hparams.json") == 0


def test_two_processes_at_once_both_succeed_and_fetch_once(server, larger):
    server.slow = 0.03
    processes = [run_download(larger) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results[0][0] == results[1][0] != ""
    assert sum("waiting for another process" in err for _, err in results) == 1
    assert server.paths().count(f"/larger/{DATA}") == 1


def test_two_threads_at_once_both_succeed_and_fetch_once(server, larger):
    server.slow = 0.01
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(checkpoint.download(larger, False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(folders) == 2 and folders[0] == folders[1]
    assert server.paths().count(f"/larger/{DATA}") == 1


def test_a_process_that_waited_for_a_removed_lock_takes_a_new_one(tmp_path, monkeypatch):
    """A download that brings nothing removes its folder, while another may wait for it."""
    source = transfer.Source("http://nowhere", tmp_path / "cache" / "a", False, {}, None)
    waiting, held = threading.Event(), []

    def download():
        with cache.locked(source.folder, source.note):
            held.append(os.listdir(source.folder))
            (source.folder / "file").touch()

    monkeypatch.setattr(cache.time, "sleep", lambda seconds: waiting.set())
    other = threading.Thread(target=download)
    with cache.locked(source.folder, source.note):
        other.start()
        assert waiting.wait(60)
    other.join(60)
    assert held == [[".lock"]]
    assert sorted(os.listdir(source.folder)) == [".lock", "file"]


# --- retries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("statuses", [[500], [503, 502, 500, 429], [408]])
def test_passing_failures_are_tried_again(server, bundle, statuses):
    server.first = list(statuses)
    assert_same_params(checkpoint.load(bundle[0]).params, bundle[1])
    assert [status for _, _, status in server.log[: len(statuses) + 1]] == [*statuses, 200]


def test_failures_that_do_not_pass_end_in_one_sentence(server, bundle):
    server.first = [500] * 100
    with pytest.raises(DownloadError, match=r"answered 500 .*without a network, run the embedded"):
        checkpoint.load(bundle[0])
    assert len(server.log) == transfer.ATTEMPTS


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refusals_are_not_tried_again(server, bundle, status):
    server.first = [status] * 2  # one for each layout
    with pytest.raises(DownloadError, match=f"hparams.json answered {status}"):
        checkpoint.load(bundle[0])
    assert len(server.log) == 2


def test_waits_double_and_respect_retry_after(server, bundle, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds))
    monkeypatch.setattr(transfer, "FIRST_WAIT", 1.0)
    server.first = [500] * 4
    checkpoint.download(bundle[0], progress=False)
    assert [wait for wait in waits if wait >= 1] == [1, 2, 4, 8]
    shutil.rmtree(checkpoint.cache_folder())
    waits.clear()
    server.first, server.headers = [429, 503], {"Retry-After": "7"}
    checkpoint.download(bundle[0], progress=False)
    assert [wait for wait in waits if wait >= 1] == [7, 7]
    shutil.rmtree(checkpoint.cache_folder())
    waits.clear()
    server.first, server.headers = [429], {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}
    checkpoint.download(bundle[0], progress=False)
    assert max(waits) == transfer.LONGEST_WAIT


@pytest.mark.parametrize("value", ["soon", "", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", "1e9", "²"])
def test_a_meaningless_wait_is_ignored(value):
    assert transfer.retry_after({"Retry-After": value}) <= 0


def test_a_server_that_stalls_is_given_up(server, bundle, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT", (1, 0.05))
    server.slow = 0.5
    with pytest.raises(DownloadError, match=r"broke off after|timed out"):
        checkpoint.load(bundle[0])


def test_without_a_network_the_error_names_the_ways_out():
    with pytest.raises(DownloadError) as caught:
        checkpoint.load(NOWHERE + "/folder")
    message = str(caught.value)
    for part in ("127.0.0.1:9 cannot be reached", "Connection refused", "--model shakespeare"):
        assert part in message
    assert "\n" not in message


# --- damage ----------------------------------------------------------------------------------


def test_a_flipped_byte_on_the_server_is_found_and_the_data_not_kept(server, bundle):
    url, params = bundle
    damage(server.folder / "models/124M" / DATA)
    with pytest.raises(CheckpointError, match=rf"{DATA}: tensor 'model/wte' has CRC-32C .*again"):
        checkpoint.load(url)
    damage(server.folder / "models/124M" / DATA)
    server.log.clear()
    assert_same_params(checkpoint.load(url).params, params)
    assert server.paths() == [f"/models/124M/{DATA}"]


def test_a_flipped_byte_in_the_cache_is_found(server, bundle):
    checkpoint.load(bundle[0])
    damage(cached(DATA)[0])
    with pytest.raises(CheckpointError, match="tensor 'model/wte' has CRC-32C"):
        checkpoint.load(bundle[0])
    assert_same_params(checkpoint.load(bundle[0]).params, bundle[1])


def test_files_that_the_server_did_not_have_are_not_requested_again(server, larger, monkeypatch):
    checkpoint.load(larger)  # has no tokenizer
    os.utime(cached(DATA)[0])
    monkeypatch.setenv("GPT2_NP_OFFLINE", "1")
    assert checkpoint.load(larger).tokenizer is None


def test_download_verifies_again_files_that_load_takes_for_verified(server, bundle):
    folder = checkpoint.download(bundle[0])
    status = (folder / DATA).stat()
    damage(folder / DATA)
    os.utime(folder / DATA, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match="tensor 'model/wte' has CRC-32C"):
        checkpoint.download(bundle[0])


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


def test_a_broken_tokenizer_is_not_kept(server, bundle):
    server.instead = {"/models/124M/vocab.bpe": b"#version: 0.2\na b c\n"}
    with pytest.raises(CheckpointError, match=r"vocab\.bpe"):
        checkpoint.load(bundle[0])
    server.instead = {}
    assert checkpoint.load(bundle[0]).tokenizer is not None


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


# --- offline, disk, cache, notes -------------------------------------------------------------


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

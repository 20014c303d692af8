"""Transfers from a real server on 127.0.0.1 that cuts, stalls and fails."""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from downloads import DATA, INDEX, LARGER, NOWHERE, cached
from make_checkpoints import assert_same_params, write_hugging_face, write_tensorflow
from waiting import wait_for

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import DownloadError, cache, transfer
from gpt2_np.checkpoint.sources import Source

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


@pytest.mark.parametrize("etag", [True, False])
def test_an_interrupted_download_goes_on_with_files_of_one_version(server, etag):
    """The shard that came whole is of the old version, as are the small files."""
    server.etag = etag
    write_hugging_face(server.folder, shards=2)
    second = server.folder / "model-00002-of-00002.safetensors"
    second.rename(server.folder / "away")
    with pytest.raises(DownloadError, match="404"):
        checkpoint.load(server.url)
    (server.folder / "away").unlink()
    params = write_hugging_face(server.folder, shards=2, seed=5)
    (server.folder / "added_tokens.json").write_text('{"<|user|>": 280}')
    model = checkpoint.load(server.url)
    assert_same_params(model.params, params)
    assert model.tokenizer.added_tokens[0].name == "<|user|>"
    assert cached(".part") == cached(".tag") == []


def test_an_interrupted_download_does_not_fetch_a_whole_shard_again(server):
    params = write_hugging_face(server.folder, shards=2)
    first, second = (server.folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    second.rename(server.folder / "away")
    with pytest.raises(DownloadError, match="404"):
        checkpoint.load(server.url)
    (server.folder / "away").rename(second)
    server.log.clear()
    assert_same_params(checkpoint.load(server.url).params, params)
    asked = [entry[1:] for entry in server.log if entry[0] == f"/{first.name}"]
    assert asked == [(f"bytes={first.stat().st_size - 1}-", 206)]


def test_a_lost_file_is_not_replaced_by_one_of_another_version(server, capsys):
    write_hugging_face(server.folder)
    folder = checkpoint.download(server.url)
    params = write_hugging_face(server.folder, seed=5)
    (server.folder / "added_tokens.json").write_text('{"<|user|>": 280}')
    (folder / "model.safetensors").unlink()
    model = checkpoint.load(server.url)
    assert_same_params(model.params, params)
    assert model.tokenizer.added_tokens[0].name == "<|user|>"
    assert "is another file than before: downloading the new version" in capsys.readouterr().err


def test_weights_without_a_length_may_fill_the_free_space(server, monkeypatch):
    server.headers = {"Content-Length": None}
    monkeypatch.setattr(transfer, "MAX_SMALL_FILE", 10_000)
    params = write_hugging_face(server.folder / "w", LARGER, tokenizer=False)
    free, usage = 2**21, shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(DownloadError, match=r"model\.safetensors needs .* and 2,097,152 are free"):
        checkpoint.load(server.url + "/w")
    free *= 10
    assert_same_params(checkpoint.load(server.url + "/w").params, params)


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
    source = Source("http://nowhere", tmp_path / "cache" / "a", False, {}, None)
    waiting, held = threading.Event(), []

    def download():
        with cache.locked(source.folder, source.say):
            held.append(os.listdir(source.folder))
            (source.folder / "file").touch()

    monkeypatch.setattr(cache.time, "sleep", lambda seconds: waiting.set())
    other = threading.Thread(target=download)
    with cache.locked(source.folder, source.say):
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



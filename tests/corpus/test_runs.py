"""A run's folder: made once, in use once, gone on with only as it was begun, and never damaged."""
import gzip
import io
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest
from fake_works import CountLetters
from own_process import OwnProcess

from gpt2_np import Error
from gpt2_np.corpus import driver, progress, runs
from gpt2_np.corpus.documents import Inputs
from gpt2_np.corpus.runs import changes, open_run, status

FINGERPRINT = {"options": {"stride": None, "threads": 1}, "model": {"weights": "a1"},
               "numpy": "2.4",
               "inputs": [{"path": "a.jsonl", "size": 5, "sha256": "00"},
                          {"path": "b.jsonl", "size": 6, "sha256": "11"}]}


def start(folder, fingerprint=FINGERPRINT):
    """Begin and end a run that does nothing."""
    with open_run(str(folder), fingerprint, "jsonl") as run:
        return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != runs.LOCK}


# --- the folder ------------------------------------------------------------------------


def test_a_file_is_no_output(tmp_path):
    path = tmp_path / "scores.txt"
    path.write_text("mine")
    with pytest.raises(Error, match="is a file: the output is a folder"):
        start(path)
    assert path.read_text() == "mine"


def test_a_folder_with_other_files_is_no_output_and_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Error, match="has files that are not of a run, such as 'thesis"):
        start(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Error, match="cannot be written to: Not a directory"):
        start(tmp_path / "file" / "scores")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_without_rights_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(Error, match="cannot be written to: Permission denied"):
        start(tmp_path / "scores")


def test_a_new_run_is_written_down_at_once(tmp_path):
    with open_run(str(tmp_path / "deep" / "er"), FINGERPRINT, "jsonl", "the command"):
        about = json.loads((tmp_path / "deep" / "er" / "run.json").read_text())
    assert about["fingerprint"] == FINGERPRINT and about["command"] == "the command"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"program": "another"}', b"\xff"])
def test_a_damaged_run_json_is_refused(tmp_path, damage):
    start(tmp_path)
    (tmp_path / "run.json").write_bytes(damage)
    for function in start, lambda folder: status(str(folder)):
        with pytest.raises(Error, match="is damaged, or of another program"):
            function(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == damage


def test_unfinished_files_of_dead_runs_are_removed_and_no_others(tmp_path):
    start(tmp_path)
    for name in ("part-0000001.jsonl.77-ab.part", "run.json.77-cd.part", "part-0000002.jsonl",
                 "a.part"):
        (tmp_path / name).touch()
    assert start(tmp_path).done == {2}
    assert sorted(os.listdir(tmp_path)) == ["a.part", "part-0000002.jsonl", "run.json", "run.lock"]


# --- the lock --------------------------------------------------------------------------


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    with ExitStack() as stack:
        stack.enter_context(open_run(str(tmp_path), FINGERPRINT, "jsonl"))
        mine = f"process {os.getpid()} on {socket.gethostname()}"
        assert status(str(tmp_path)).at_work == mine
        with pytest.raises(Error, match=f"is in use by another run, {mine}: wait for its end"):
            start(tmp_path)
    assert status(str(tmp_path)).at_work is None
    start(tmp_path)


# --- what has changed ------------------------------------------------------------------

A, B = FINGERPRINT["inputs"]


def test_numbers_of_numpy_in_a_fingerprint_are_those_of_python(tmp_path):
    start(tmp_path, {"options": {"stride": np.int64(8)}})
    start(tmp_path, {"options": {"stride": 8}})


@pytest.mark.parametrize("change, words", [
    ({"options": {"stride": 8, "threads": 1}}, "stride was None, and now it is 8"),
    ({"options": {"stride": None}}, "threads was 1, and now it is None"),
    ({"model": {"weights": "b2"}}, "model weights was 'a1', and now it is 'b2'"),
    ({"numpy": "2.5"}, "numpy was '2.4', and now it is '2.5'"),
    ({"inputs": [A]}, "'b.jsonl' was an input, which it is not now"),
    ({"inputs": [A, B, {"path": "c"}]}, "'c' was no input, which it is now"),
    ({"inputs": [A | {"size": 4}, B]},
     "the input 'a.jsonl' has changed"),
    ({"inputs": [B, A]}, "the inputs were in another order"),
    ({"new": 1}, "new was None, and now it is 1"),
])
def test_a_run_with_something_changed_says_what(tmp_path, change, words):
    start(tmp_path)
    before = contents(tmp_path)
    assert list(changes(FINGERPRINT, FINGERPRINT | change)) == [words]
    with pytest.raises(Error, match="is of a run in which "):
        start(tmp_path, FINGERPRINT | change)
    assert contents(tmp_path) == before
    assert not list(changes(FINGERPRINT, FINGERPRINT))


def test_of_another_kind_of_work_no_more_is_told(tmp_path):
    start(tmp_path, FINGERPRINT | {"work": "Scorer"})
    with pytest.raises(Error, match="is the output of score: choose another output folder"):
        start(tmp_path, {"work": "Generator"})


def test_of_many_changes_three_are_told(tmp_path):
    start(tmp_path)
    with pytest.raises(Error, match=r"; numpy was .*, and now it is 3, and 2 more"):
        start(tmp_path, {"model": {"weights": 1}, "inputs": [], "numpy": 3})


# --- a run by the driver ---------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs the driver on files of the given texts, a shard each."""
    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    given = tmp_path / "in"
    given.mkdir()

    def run(*texts, **options):
        paths = [given / f"{number}.txt" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
        inputs = Inputs(tuple(paths), documents="files", shard_bytes=1)
        return driver.run(CountLetters(), inputs, tmp_path / "out", workers=1, **options)

    return run


def test_a_run_that_is_started_again_does_what_is_missing_and_no_more(tmp_path, run):
    out = tmp_path / "out"
    first = run("a", "bb", "ccc")
    before = contents(out)
    assert first["n_tokens"] == 6 and status(str(out))[:3] == (3, 3, first)
    (out / "part-0000001.jsonl").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert status(str(out))[:2] == (2, 3) and not status(str(out)).is_complete
    assert run("a", "bb", "ccc") == first and contents(out) == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.json*")}
    assert run("a", "bb", "ccc") == first
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_counts_bytes_documents_and_tokens(tmp_path, run, monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    run("aaa", "bb", "c", progress=True)
    assert "100%" in terminal.getvalue() and "6.00/6.00" in terminal.getvalue()
    assert "3 documents, " in terminal.getvalue()
    (tmp_path / "out" / "part-0000002.jsonl").unlink()
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    run("aaa", "bb", "c", progress=True)
    assert "83%" in terminal.getvalue().split("\r")[1] and "6.00/6.00" in terminal.getvalue()
    assert "1 documents, " in terminal.getvalue()


@pytest.mark.parametrize("seconds, n_lines", [(60, 0), (-1, 3)])
def test_a_log_gets_a_line_a_minute(run, monkeypatch, capsys, seconds, n_lines):
    monkeypatch.setattr(progress, "SECONDS", seconds)
    run("aaa", "bb", "c", progress=True)
    err = capsys.readouterr().err.splitlines()
    assert len(err) == n_lines
    if n_lines:
        assert err[1].startswith("83% of 0.0 MB, 2 documents, ")


def test_a_log_of_a_run_that_goes_on_begins_with_what_is_done(tmp_path, run, capsys):
    run("aaa", "bb", "c")
    (tmp_path / "out" / "part-0000001.jsonl").unlink()
    run("aaa", "bb", "c", progress=True)
    assert capsys.readouterr().err == "50% of 6 bytes are done; a line will follow each minute\n"


@pytest.mark.parametrize("content", [None, b"", b"{}", b"null", b"\xff", b'{"complete": false}'])
def test_a_summary_that_is_not_whole_is_missing_and_made_again(tmp_path, run, content):
    first, path = run("a", "bb"), tmp_path / "out" / "summary.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = status(str(tmp_path / "out"))
    assert found[:2] == (2, 2) and not found.is_complete
    assert run("a", "bb") == first and json.loads(path.read_text()) == first
    assert status(str(tmp_path / "out")).is_complete


def test_a_file_that_is_no_shard_of_the_run_does_not_count(tmp_path, run):
    first = run("a", "bb")
    (tmp_path / "out" / "part-0000000.jsonl").rename(tmp_path / "out" / "part-0000009.jsonl")
    assert status(str(tmp_path / "out")).n_done == 1
    assert run("a", "bb") == first


def remove_before_shards(path, monkeypatch):
    """Remove a file whenever a shard is about to be done."""
    def remove(job, shard):
        path.unlink(missing_ok=True)
        return write(job, shard)

    write = driver.run_shards.__globals__["write_shard"]
    monkeypatch.setitem(driver.run_shards.__globals__, "write_shard", remove)


def test_a_shard_that_is_removed_under_way_is_missing(tmp_path, run, monkeypatch):
    remove_before_shards(tmp_path / "out" / "part-0000000.jsonl", monkeypatch)
    with pytest.raises(driver.Incomplete, match=r"1 of 2 shards are missing \(shard 0: not done"):
        run("a", "bb")


def test_an_input_that_vanishes_costs_its_shard_alone(tmp_path, run, monkeypatch):
    remove_before_shards(tmp_path / "in" / "1.txt", monkeypatch)
    with pytest.raises(driver.Incomplete, match=r"1 of 3 .* \(shard 1: .*1.txt cannot be read"):
        run("a", "bb", "ccc")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["n_tokens"] == 4


def test_a_run_that_fails_before_its_first_shard_leaves_the_folder_to_another(
        tmp_path, run, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Error, match="no card"):
        patch.setattr(OwnProcess, "__init__", lambda *_: raise_error("no card"))
        run("a", threads=1)
    assert os.listdir(tmp_path / "out") == ["run.lock"]
    assert run("a", threads=2)["complete"]


def raise_error(sentence):
    raise Error(sentence)


def test_an_output_without_a_name_is_refused():
    with pytest.raises(Error, match="output is ''"):
        driver.run(CountLetters(), Inputs((__file__,), input_format="text"), "")


def test_shards_that_fail_are_named_and_tried_again_the_next_time(tmp_path, run):
    with pytest.raises(driver.Incomplete, match=r"1 of 3 shards are missing \(shard 1: ZeroDiv"):
        run("a", "raises", "ccc")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not summary["complete"] and summary["n_documents"] == 2
    with pytest.raises(driver.Incomplete, match="shard 1: ZeroDiv"):
        run("a", "raises", "ccc")


def test_a_full_disk_keeps_what_is_done(tmp_path, run, monkeypatch):
    write = driver.run_shards.__globals__["write_shard"]

    def fill(job, shard):
        if shard.number == 2:
            raise OSError(28, "No space left on device")
        return write(job, shard)

    monkeypatch.setitem(driver.run_shards.__globals__, "write_shard", fill)
    with pytest.raises(Error, match=r"No space left on device. 2 of 4 shards are done: the same "):
        run("a", "bb", "ccc", "dddd")
    monkeypatch.undo()
    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    assert run("a", "bb", "ccc", "dddd")["n_tokens"] == 10


def test_an_input_that_changes_under_way_is_noticed(tmp_path, run, monkeypatch):
    def change(job, shard):
        (tmp_path / "in" / "0.txt").write_text("longer")
        return write(job, shard)

    write = driver.run_shards.__globals__["write_shard"]
    monkeypatch.setitem(driver.run_shards.__globals__, "write_shard", change)
    with pytest.raises(Error, match=r"the input '.* has changed"):
        run("a", "bb")
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the touch of GNU")
@pytest.mark.parametrize("time", [1_700_000_000_012_345_678, 5])
def test_an_input_that_was_touched_is_refused_with_the_command_that_undoes_it(tmp_path, run, time):
    path = tmp_path / "in" / "0.txt"
    path.write_text("a")
    os.utime(path, ns=(0, time))
    first = run("a", "bb")
    path.touch()
    with pytest.raises(Error, match="had another time, but the same size") as error:
        run("a", "bb")
    subprocess.run(re.findall("`(.*)`", str(error.value))[0], shell=True, check=True)
    assert path.stat().st_mtime_ns == time and run("a", "bb") == first
    path.write_text("b")
    with pytest.raises(Error, match=r"has changed\. Start it as it was"):
        run("b", "bb")


def test_the_readable_part_of_a_damaged_file_is_done_and_the_rest_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    path, out = tmp_path / "a.txt.gz", tmp_path / "out"
    text = "".join(f"{i} {i * i}\n" for i in range(2000))
    path.write_bytes(gzip.compress(text.encode())[:-1000])
    for _ in range(2):
        with pytest.raises(driver.Incomplete, match=r"^[^;]*a\.txt\.gz is damaged"):
            driver.run(CountLetters(), Inputs((str(path),), shard_bytes=2000), out, workers=1)
        found = status(str(out))
        assert found.n_done > 2 and found.n_shards is None and not found.is_complete
    assert not json.loads((out / "summary.json").read_text())["complete"]
    lines = b"".join(file.read_bytes() for file in sorted(out.glob("part-*"))).splitlines()
    assert text.startswith("".join(f"{i} {i * i}\n" for i in range(len(lines))))

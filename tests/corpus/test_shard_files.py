"""A shard's file is whole or not there, and has a record for each document in order."""
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from copies import ROOT
from given_scores import Documents, Scores, job, shard

import gpt2_np
from gpt2_np.corpus import shard_files
from gpt2_np.corpus.formats import Document
from gpt2_np.corpus.shard_files import Done, Job, committed, json_bytes, write_shard

SCORES = {"a": (3, 4, -1.5), "é🦙": (1, 2, -0.25), 7: (0, 0, None)}


def test_a_file_has_a_line_for_each_document_in_order(tmp_path):
    done = write_shard(job(tmp_path, [["a", "no", 7, "é🦙"]], SCORES), shard())
    assert done == Done(number=0, n_bytes=100, n_documents=4, n_tokens=4)
    assert os.listdir(tmp_path) == ["part-0000000.jsonl"]
    assert (tmp_path / "part-0000000.jsonl").read_text("utf-8") == (
        '{"id": "a", "n_tokens": 3, "n_bytes": 4, "log_probability": -1.5}\n'
        '{"id": "no", "skipped": "empty"}\n'
        '{"id": 7, "n_tokens": 0, "n_bytes": 0, "log_probability": null}\n'
        '{"id": "é🦙", "n_tokens": 1, "n_bytes": 2, "log_probability": -0.25}\n')


def test_a_shard_without_documents_has_an_empty_file(tmp_path):
    assert write_shard(job(tmp_path, [[]], {}), shard()).n_documents == 0
    assert (tmp_path / "part-0000000.jsonl").read_bytes() == b""


def test_names_sort_as_the_shards_do():
    names = [shard_files.shard_file("", number, "parquet")
             for number in (0, 9, 10, 99_999, 100_000, 9_999_999)]
    assert names == sorted(names) and names[0] == "part-0000000.parquet"


def test_the_digits_of_float32_are_the_fewest_that_tell_it():
    values = np.array([0.1, -1 / 3, 1e-30, -87.5, 0, 3e38], np.float32)
    line = json_bytes({"x": values, "n": np.arange(2)})
    assert line == (b'{"x": [0.1, -0.33333334, 1e-30, -87.5, 0.0, 3e+38], "n": [0, 1]}\n')
    random = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    back = np.array(json.loads(json_bytes(random)), np.float32)
    np.testing.assert_array_equal(back, random)


def test_numbers_of_numpy_are_written_as_those_of_python():
    value = {"a": np.int64(7), "b": np.float32(0.1), "c": np.float64(0.1), "d": np.bool_(True)}
    assert json_bytes(value) == b'{"a": 7, "b": 0.1, "c": 0.1, "d": true}\n'


def test_a_number_that_json_lacks_is_refused_and_half_a_pair_is_spelled():
    with pytest.raises(ValueError):
        json_bytes({"x": float("nan")})
    assert json.loads(json_bytes({"id": "\ud800é"})) == {"id": "\ud800é"}


def test_a_worker_holds_a_bounded_part_of_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "MOST_CHARACTERS", 10)
    monkeypatch.setattr(shard_files, "MOST_DOCUMENTS", 3)
    lengths = [4, 6, 1, 30, 0, 0, 0, 0, 9, 2]
    ids = [*range(7), "seven", "eighth", 9]  # of 1, 5 and 6 characters
    texts = [Document(id, "x" * length or None) for id, length in zip(ids, lengths, strict=True)]
    work = Scores(dict.fromkeys(ids, (1, 1, -1.0)))
    write_shard(Job(Documents(texts), work, str(tmp_path)), shard())
    assert work.seen == [[0], [1, 2], [3], [4, 5, 6], ["seven"], ["eighth"], [9]]


# --- committing ------------------------------------------------------------------------


def test_a_file_is_synced_then_renamed_and_then_its_folder_is_synced(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def spy_fsync(number):
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else
                     f"{os.fstat(number).st_size} bytes")
        fsync(number)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("rename"), replace(*paths)))
    with committed(str(tmp_path / "file")) as file:
        file.write(b"abc")
        [name] = os.listdir(tmp_path)
        assert name.startswith("file.") and name.endswith(".part")
    folder = ["folder"] if os.path.exists("/proc/self/fd") else []
    assert steps[:2] == ["3 bytes", "rename"] and (steps[2:] == folder or not folder)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"),
                                     KeyboardInterrupt(), gpt2_np.Error("bad")])
def test_after_a_failure_the_old_file_is_there_and_nothing_else(tmp_path, failure):
    (tmp_path / "part-0000000.jsonl").write_text("old")
    given = job(tmp_path, [["a"]], SCORES)

    def fail(documents):
        raise failure

    given.work.records = fail
    with pytest.raises(type(failure)) as found:
        write_shard(given, shard())
    assert found.value is failure  # as it was: the driver looks at its number
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_killed_writer_leaves_a_part_that_hurts_nobody(tmp_path):
    program = f"""
import os, signal
from gpt2_np.corpus.shard_files import committed
with committed({str(tmp_path / "part-0000000.jsonl")!r}) as file:
    file.write(b"half a li")
    file.flush()
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, cwd=ROOT)
    assert done.returncode != 0
    [left] = os.listdir(tmp_path)
    assert left.endswith(".part")
    write_shard(job(tmp_path, [["a"]], SCORES), shard())
    assert sorted(os.listdir(tmp_path)) == ["part-0000000.jsonl", left]
    assert (tmp_path / "part-0000000.jsonl").read_text().count("\n") == 1


def test_an_output_folder_that_is_gone_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError) as found:
        write_shard(job(tmp_path / "gone", [["a"]], SCORES), shard())
    assert str(tmp_path / "gone") in found.value.filename


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(gpt2_np.Error, match=r"needs pyarrow.*: pip install pyarrow"):
        write_shard(job(tmp_path, [["a"]], SCORES, "parquet"), shard())
    assert os.listdir(tmp_path) == []


# --- reading ---------------------------------------------------------------------------


def read(path, format="jsonl", names=()):
    with shard_files.naming_damage(str(path)):
        return [record for records in shard_files.read_records(str(path), format, names)
                for record in records]


def test_what_is_read_lacks_only_the_values_of_tokens(tmp_path):
    scores = {**SCORES, ', "tokens": [': (2, 2, -1.0), "tokens": (1, 1, -1.0)}
    write_shard(job(tmp_path, [[*scores, "no"]], scores, per_token=True), shard())
    path = tmp_path / "part-0000000.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(lines[3]["tokens"]) == len(lines[3]["log_probabilities"]) == 2
    for line in lines:
        line.pop("tokens", None)
        line.pop("log_probabilities", None)
    assert read(path) == lines


@pytest.mark.parametrize("content", [
    b'{"id": 1, "n_tokens": 1}', b'{"id": 1\n', b"[1]\n", b'{"n_tokens": 1}\n', b'{"id": "\xff"}\n',
    b"\0" * 20 + b"\n",
])
def test_a_damaged_file_is_named_with_a_remedy(tmp_path, content):
    path = tmp_path / "part-0000003.jsonl"
    path.write_bytes(b'{"id": 0}\n' + content)
    with pytest.raises(gpt2_np.Error, match=r"part-0000003\.jsonl is damaged .*: remove it and"):
        read(path)


def test_a_disk_that_fails_is_not_called_a_damaged_file(tmp_path):
    with pytest.raises(OSError, match="Input/output error"), shard_files.naming_damage("a.jsonl"):
        raise OSError(errno.EIO, "Input/output error", "a.jsonl")

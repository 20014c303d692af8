"""The commands score, generate and status: what they print and write, and how they end."""
import functools
import gzip
import json
import os
import re
import signal
import sys
from subprocess import PIPE

import numpy as np
import pytest
from copies import ROOT
from own_process import NotingScorer, OwnProcess
from small_model import TEXT, save_small_model
from waiting import started, wait_for

import gpt2_np
from gpt2_np import corpus
from gpt2_np.corpus import driver
from gpt2_np.corpus.__main__ import main

RECORDS = [{"n": i, "text": TEXT[i : i + i * 7 % 90]} for i in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def results(folder):
    """Return the bytes of all results, which are in the order of the input."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("part-*.jsonl")))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()
            if path.name.startswith(("part-", "summary"))}


def records(folder):
    return [json.loads(line) for line in results(folder).splitlines()]


@pytest.fixture(scope="module")
def scored(model, texts, tmp_path_factory):
    """The output of one worker, which is this process."""
    output = tmp_path_factory.mktemp("scored") / "scores"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "ProcessEngine", OwnProcess)
        corpus.score(texts, output, str(model), shard_bytes=400, id="n", per_token=True)
    return output


def test_scores_are_those_of_the_library(model, scored):
    loaded, found = gpt2_np.load(model, "cpu"), records(scored)
    assert [record["id"] for record in found] == list(range(40))
    assert [record["id"] for record in found if record.get("skipped") == "empty"] == [0]
    for record, given in zip(found[1:], RECORDS[1:], strict=True):
        tokens = loaded.tokenizer.encode(given["text"])
        expected = gpt2_np.score(loaded, [loaded.tokenizer.end_of_text, *tokens])
        assert record["tokens"] == tokens
        np.testing.assert_allclose(record["log_probabilities"], expected, rtol=2e-4, atol=1e-5)
        assert record["log_probability"] == pytest.approx(sum(record["log_probabilities"]))


def test_a_model_has_its_own_device_and_type(model, texts, tmp_path):
    loaded = gpt2_np.load(model, "cpu")
    for options in {"gpus": 1}, {"device": "cpu"}, {"dtype": "float16"}:
        with pytest.raises(gpt2_np.Error, match="is given beside a Model, which has its own"):
            corpus.score(texts, tmp_path / "out", loaded, **options)
    assert not (tmp_path / "out").exists()


def test_the_number_of_workers_changes_no_byte(model, texts, scored, tmp_path):
    corpus.score(texts, tmp_path, str(model), workers=2, shard_bytes=400, id="n", per_token=True)
    assert files(tmp_path) == files(scored) and len(files(scored)) > 4


def test_the_number_of_cards_changes_no_byte(model, texts, tmp_path, monkeypatch):
    """The stand-in for CuPy computes what a GPU does. Each worker has a card of its own.

    A worker has its threads and its card from the start. The driver's environment stays as it was.
    """
    monkeypatch.syspath_prepend(ROOT / "tests" / "stand_in")  # of the workers, too
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, GPU-5")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "64")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    for gpus, expected in (1, ["3,3,7"]), (2, ["3,3,7", "3,3,GPU-5"]):
        notes = tmp_path / f"notes {gpus}"
        notes.mkdir()
        monkeypatch.setattr(driver, "Scorer", functools.partial(NotingScorer, str(notes)))
        corpus.score(texts, tmp_path / str(gpus), str(model), gpus=gpus, threads=3, shard_bytes=400)
        assert sorted(note.read_text() for note in notes.iterdir()) == expected
    assert files(tmp_path / "1") == files(tmp_path / "2")
    about = json.loads((tmp_path / "1" / "run.json").read_text())
    assert about["fingerprint"]["device"] == "cuda" and "cupy" not in sys.modules
    assert dict(os.environ) == before


def test_drawn_texts_depend_on_the_seed_and_the_id_alone(model, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    options = {"id": "n", "n_tokens": 8, "temperature": 1.5}
    backwards = tmp_path / "backwards.jsonl.gz"
    backwards.write_bytes(gzip.compress(b"".join(texts.read_bytes().splitlines(True)[::-1])))
    for name, path, more in (("a", texts, {"seed": 1, "shard_bytes": 400}),
                             ("b", backwards, {"seed": 1, "batch": 5}), ("c", texts, {"seed": 2})):
        corpus.generate(path, tmp_path / name, str(model), **options, **more)
    a, b, c = (records(tmp_path / name) for name in "abc")
    assert a == b[::-1]
    assert [record["id"] for record in a] == [record["id"] for record in c] and a != c


# --- the command -----------------------------------------------------------------------


def test_a_command_ends_with_a_summary_and_its_status_is_0(
        model, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    command = ["score", str(texts), "-o", str(tmp_path / "out"), "-m", str(model), "--quiet",
               "--workers", "1"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    first, *rows, last = out.splitlines()
    assert first == f"40 documents, {summary['n_tokens']:,} tokens; skipped 1 (1 empty)"
    assert rows[0].split()[3] == f"{summary['nats_per_token']['value']:.4f}"
    assert [row[:14].rstrip() for row in rows] == ["nats a token", "perplexity", "bits a byte"]
    assert last == f"results and summary.json are in {tmp_path / 'out'}" and err == ""
    assert main(["status", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "1 of 1 shards are done\n"
    (tmp_path / "out" / "part-0000000.jsonl").unlink()
    assert main(["status", str(tmp_path / "out")]) == 3
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "0 of 1 shards are done"
    assert out[1].startswith("to go on: ") and out[1].endswith(" ".join(command))


USAGE = [
    (["score", "a.jsonl"], "required: -o/--output"),
    (["score", "-o", "out"], "required: INPUT"),
    (["score", "a", "-o", "out", "--workers", "0"], "--workers is 0: it must be at least 1"),
    (["score", "a", "-o", "out", "--gpus", "2", "--device", "cpu"],
     "--gpus is 2, which does not go with device cpu"),
    (["score", "a", "-o", "out", "--gpus", "2", "--workers", "3"],
     "--workers is 3, but each of 2 GPUs has one: leave it out"),
    (["score", "a", "-o", "out", "--gpus", "-1"], "--gpus is -1"),
    (["score", "a", "-o", "out", "--address", "auto"],
     "--address is 'auto', that of a Ray cluster: it needs engine ray"),
    (["score", "a", "-o", "out", "--stride", "0"], "--stride is 0"),
    (["score", "a", "-o", "out", "--temperature", "1"], "unrecognized arguments"),
    (["generate", "a", "-o", "out", "-n", "-3"], "--tokens is -3: it must be at least 1"),
    (["generate", "a", "-o", "out", "--top-k", "4"], "needs --temperature above 0"),
    (["generate", "a", "-o", "out", "--temperature", "-1"], "--temperature is -1.0"),
    (["generate", "a", "-o", "out", "--seed", "-1"], "--seed is -1"),
    (["statistics"], "invalid choice"),
]


@pytest.mark.parametrize("arguments, words", USAGE, ids=[" ".join(u[0]) for u in USAGE])
def test_wrong_usage_is_status_2_and_makes_nothing(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").touch()
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("arguments, words", [
    (["score", "gone.jsonl", "-o", "out", "-m", "shakespeare"], "gone.jsonl cannot be read"),
    (["score", "field", "-o", "out", "-m", "shakespeare"], ": field cannot be read"),  # no option
    (["score", "a.txt", "-o", "a.txt", "-m", "shakespeare"], "a.txt is a file"),
    (["score", "a.txt", "-o", "out", "-m", "nothing"], "'nothing' is neither a model"),
    (["status", "."], "is not the output of a run"),
    (["status", "gone"], "is not the output of a run"),
])
def test_an_error_is_status_1_and_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a text")
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert os.listdir(tmp_path) == ["a.txt"]


def test_inputs_of_which_every_document_is_skipped_are_an_error_each_time(
        model, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    for _ in range(2):
        assert main(["score", str(texts), "-o", str(tmp_path / "out"), "-m", str(model), "--field",
                     "nope", "--quiet"]) == 1
        assert capsys.readouterr() == ("", (
            "python -m gpt2_np.corpus: nothing could be done: 40 of 40 documents were skipped "
            "(40 no such field): field is 'nope', name another\n"))


def test_after_a_run_that_skipped_everything_the_right_command_works_in_the_same_folder(
        model, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    command = ["score", str(texts), "-o", str(tmp_path / "out"), "-m", str(model), "--quiet"]
    assert main([*command, "--field", "nope", "--shard-bytes", "400"]) == 1
    assert os.listdir(tmp_path / "out") == ["run.lock"]
    assert main(command) == 0
    assert len(records(tmp_path / "out")) == 40


def test_the_device_that_the_environment_names_is_meant_by_auto(model, texts, tmp_path, capsys,
                                                                 monkeypatch):
    monkeypatch.setenv("GPT2_NP_DEVICE", "tpu")
    command = ["score", str(texts), "-o", str(tmp_path / "out"), "-m", str(model), "--quiet"]
    assert main(command) == 1
    assert "unknown device 'tpu'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_sentence_about_an_option_names_it_as_it_is_typed(model, texts, tmp_path, capsys):
    command = ["score", str(texts), "-o", str(tmp_path / "out"), "-m", str(model), "--quiet"]
    assert main([*command, "--max-bytes", str(2**41)]) == 1
    assert "corpus: --max-bytes is 2199023255552: it must be" in capsys.readouterr().err


def test_something_missing_is_status_3(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(999).hex().encode() + b"\n")[:-9])
    command = ["score", str(path), "-o", str(tmp_path / "out"), "-m", str(model), "--quiet"]
    assert main(command) == 3 and main(["status", str(tmp_path / "out")]) == 3
    out, err = capsys.readouterr()
    assert "a.txt.gz is damaged" in err and "same command" not in err and err.count("\n") == 1
    assert out.startswith("shards done: 1, of a number that is not known yet")
    assert "an input is damaged" in out and "to go on" not in out


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_disk_that_fills_up_ends_the_run_with_a_sentence(
        model, texts, tmp_path, capsys, monkeypatch):
    """A limit on the size of files stands in for the disk: one shard's file is too large."""
    import resource

    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        status = main(["score", str(texts), "-o", str(tmp_path), "-m", str(model), "--quiet"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert status == 1 and err.count("\n") == 1 and "File too large" in err
    assert sorted(os.listdir(tmp_path)) == ["run.lock"]


# --- the command as a process ----------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_stops_a_run_with_a_sentence_and_the_same_command_goes_on(
        model, texts, scored, tmp_path, monkeypatch):
    """Ctrl-C goes to all processes of a terminal. The workers say nothing about it."""
    arguments = ["score", texts, "-o", tmp_path, "-m", model, "--workers", "1", "--shard-bytes",
                 "400", "--id", "n", "--per-token"]
    n_done, first = 0, ""
    for number, status in (signal.SIGINT, 130), (signal.SIGTERM, 143):
        with started([sys.executable, "-m", "gpt2_np.corpus", *map(str, arguments)], cwd=ROOT,
                     text=True, stdout=PIPE, stderr=PIPE, start_new_session=True) as run:
            wait_for(lambda n=n_done: len(list(tmp_path.glob("part-*.jsonl"))) > n)
            os.killpg(run.pid, number)
            said = run.communicate(timeout=60)[1].splitlines()
        n_done = len(list(tmp_path.glob("part-*.jsonl")))
        assert run.returncode == status and said[-2:] == [
            "", f"python -m gpt2_np.corpus: stopped: {n_done} of {len(files(scored)) - 1} shards "
            "are done; the same command goes on"]
        assert re.fullmatch(first, "\n".join(said[:-2]))
        first = r"\d+% of [\d,]+ bytes are done; a line will follow each minute"
        assert not list(tmp_path.glob("*.part"))
    monkeypatch.setattr(driver, "ProcessEngine", OwnProcess)
    assert main(list(map(str, arguments))) == 0
    assert files(tmp_path) == files(scored)

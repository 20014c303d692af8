"""Processes as workers: their environment, their deaths, and their end with the driver."""
import json
import os
import subprocess
import sys

import pytest
from copies import ROOT, copy_repository
from fake_works import CountLetters
from waiting import started, wait_for

from gpt2_np import Error
from gpt2_np.corpus import scheduling
from gpt2_np.corpus.documents import Inputs
from gpt2_np.corpus.processes import ProcessEngine, card_variables
from gpt2_np.corpus.scheduling import run_shards
from gpt2_np.corpus.shard_files import Job

PROGRAM = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from fake_works import CountLetters
from {package}.corpus import driver
from {package}.corpus.documents import Inputs

def main():
    output, notes, *texts = sys.argv[1:]
    inputs = Inputs(texts, documents="files", shard_bytes=1)
    driver.run(CountLetters(notes), inputs, output, workers=1)

"""
GUARD = 'if __name__ == "__main__":\n    main()\n'


def program(folder, end=GUARD, root=ROOT, package="gpt2_np"):
    path = folder / "program.py"
    path.write_text(PROGRAM.format(root=str(root), tests=str(ROOT / "tests"), package=package)
                    + end)
    return path


def write_texts(folder, texts):
    """Write a file for each text, which will be a shard, and return their paths."""
    (folder / "notes").mkdir()
    paths = [folder / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return list(map(str, paths))


def arguments(folder, texts, end=GUARD, **options):
    """Return the command that does the work on some texts."""
    return [sys.executable, str(program(folder, end, **options)), str(folder / "out"),
            str(folder / "notes"), *write_texts(folder, texts)]


def job(folder, texts, **options):
    (folder / "out").mkdir()
    inputs = Inputs(write_texts(folder, texts), documents="files", shard_bytes=1)
    work = CountLetters(str(folder / "notes"), **options)
    return Job(inputs, work, str(folder / "out")), inputs.shards()


def run(job, shards, n_workers=1, **options):
    """Return the numbers of shards that are done, those that are lost, and what was said."""
    finished, said = [], []
    engine = ProcessEngine(job, n_workers, **options)
    try:
        lost = run_shards(engine, shards, lambda done: finished.append(done.number), said.append)
    finally:
        engine.close()
    assert not engine.workers
    return sorted(finished), lost, said


def notes(folder):
    """Return what each worker has written, by its process id."""
    return {int(path.name): path.read_text() for path in (folder / "notes").iterdir()}


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_as_many_cards_as_are_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert card_variables(3, 2) == {"CUDA_VISIBLE_DEVICES": "2"}
    for visible in "", "0,1":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(Error, match="ask for as many"):
            card_variables(3, 0)


def test_deaths_cost_only_the_shard_that_dies_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduling, "MOST_TRIES", 2)
    given, shards = job(tmp_path, ["a", f"killed once {tmp_path}", "raises", "b", "killed"])
    finished, lost, said = run(given, shards)
    assert finished == [0, 1, 3]
    assert lost.keys() == {2, 4}
    assert lost[4] == ("worker 0 died: it was killed by SIGKILL, as a system does that runs out "
                       "of memory")
    assert lost[2].startswith("ZeroDivisionError in fake_works.py, line ")
    assert said[0].startswith("shard 1 failed and is tried again: worker 0 died: ")


@pytest.mark.parametrize("at_start, words", [
    (Error("there is no such model"), "^there is no such model"),
    ("die", "no worker can start: worker 0 died before it was ready: it ended with status 5"),
])
def test_workers_that_cannot_start_end_the_run_with_a_sentence(
        tmp_path, monkeypatch, at_start, words):
    monkeypatch.setattr(scheduling, "MOST_STARTS", (1, 1))
    given, shards = job(tmp_path, "a", at_start=at_start)
    with pytest.raises(Error, match=words):
        run(given, shards)


def test_workers_of_a_vendored_copy_are_its_own_and_end_with_a_driver_that_is_killed(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").touch()
    copy_repository(tmp_path / "theirs" / "language")
    command = arguments(tmp_path, ["a", "sleeps"], root=tmp_path, package="theirs.language")
    with started(command) as driver:
        wait_for(lambda: "asleep" in notes(tmp_path).values() or driver.poll() is not None)
        (worker,) = notes(tmp_path)
        (file,) = (tmp_path / "out").glob("part-*.jsonl")
        assert json.loads(file.read_text())["n_tokens"] == 1
        assert is_running(worker)
    wait_for(lambda: not is_running(worker))


def test_a_program_without_its_guard_gets_one_sentence(tmp_path):
    end = "try:\n    main()\nexcept Exception:\n    raise\n"
    done = subprocess.run(arguments(tmp_path, ["a"], end=end), capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert 'put that under if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_a_program_on_standard_input_gets_a_sentence_instead_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(Error, match="save it as a file"):
        ProcessEngine(job(tmp_path, "a")[0], 1)

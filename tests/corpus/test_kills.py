"""kill -9 at random moments, of the driver or of a worker, changes no byte of the output."""
import json
import os
import random
import signal
import sys
import time
from contextlib import ExitStack
from subprocess import DEVNULL, PIPE

import pytest
from copies import ROOT
from own_process import OwnProcess
from small_model import TEXT, save_small_model
from waiting import started, wait_for

from gpt2_np import corpus
from gpt2_np.corpus import driver

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads Linux's /proc")
SHARD_BYTES = 2000


def start(model, texts, output, workers):
    return started(
        [sys.executable, "-m", "gpt2_np.corpus", "score", str(texts), "-o", str(output), "-m",
         str(model), "--shard-bytes", str(SHARD_BYTES), "--quiet", "--workers", str(workers)],
        cwd=ROOT, stdout=DEVNULL, stderr=PIPE, text=True)


def processes_below(pid):
    """Return the ids of a process's children: workers, and multiprocessing's resource tracker."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:
        return []


def is_worker(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"spawn_main" in file.read()
    except OSError:
        return False


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.lock"}


def without_time(folder):
    """Return the files without what two runs may differ in: the command that started them."""
    found = files(folder)
    about = json.loads(found.pop("run.json"))
    return found, about["fingerprint"], about["n_shards"]


def score_here(model, texts, output):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "ProcessEngine", OwnProcess)
        corpus.score(texts, output, str(model), shard_bytes=SHARD_BYTES)


def kill_and_go_on(model, texts, output, n_kills, seconds):
    """Kill the driver or a worker at random moments; start the driver again whenever it is gone."""
    rng = random.Random(n_kills)
    killed = {"driver": 0, "worker": 0}
    with ExitStack() as stack:
        orphans, run = [], stack.enter_context(start(model, texts, output, 2))
        while sum(killed.values()) < n_kills:
            if rng.random() < 0.8:  # else perhaps before there is a worker
                wait_for(lambda pid=run.pid: any(map(is_worker, processes_below(pid))))
            time.sleep(rng.uniform(0, seconds))
            if run.poll() is not None:
                assert run.returncode == 0, run.stderr.read()
                break
            workers = [pid for pid in processes_below(run.pid) if is_worker(pid)]
            if workers and (killed["driver"] > killed["worker"] or rng.random() < 0.3):
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed["worker"] += 1
            else:
                run.kill()
                run.communicate()
                killed["driver"] += 1
                orphans += workers
                run = stack.enter_context(start(model, texts, output, 2))
        err = run.communicate(timeout=600)[1]
        wait_for(lambda: not any(map(is_worker, orphans)))
    print(killed)
    return run.returncode, err, killed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model"))


def write_texts(folder, n):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT[i % 97 : i % 97 + i * 7 % 190]}) + "\n"
                            for i in range(n)))
    return path


def test_a_killed_worker_and_a_killed_driver_change_no_byte(model, tmp_path):
    """Both are killed at work. Another worker goes on, and then another run, in this process."""
    texts, output = write_texts(tmp_path, 400), tmp_path / "b"
    with start(model, texts, output, 1) as run:
        for kill_the_driver in False, True:
            before = set(output.glob("part-*.jsonl"))
            wait_for(lambda before=before: set(output.glob("part-*.jsonl")) > before
                     and any(map(is_worker, processes_below(run.pid))))
            time.sleep(random.uniform(0, 0.02))
            (worker,) = filter(is_worker, processes_below(run.pid))
            os.kill(run.pid if kill_the_driver else worker, signal.SIGKILL)
        run.communicate(timeout=60)
    wait_for(lambda: not is_worker(worker))
    assert not (output / "summary.json").exists()
    for folder in tmp_path / "a", output:
        score_here(model, texts, folder)
    assert without_time(tmp_path / "b") == without_time(tmp_path / "a")


@pytest.mark.slow
def test_fifty_kills_change_no_byte(model, tmp_path):
    texts = write_texts(tmp_path, 20_000)
    score_here(model, texts, tmp_path / "a")
    status, err, killed = kill_and_go_on(model, texts, tmp_path / "b", 50, 0.5)
    assert status == 0, err
    assert without_time(tmp_path / "b") == without_time(tmp_path / "a")
    assert sum(killed.values()) == 50 and min(killed.values()) > 10

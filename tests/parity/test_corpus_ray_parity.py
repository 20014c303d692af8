"""Ray: the bytes of an undisturbed run on processes, whatever dies, on a cluster of two nodes."""
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from copies import ROOT
from fake_works import CountLetters
from ray.cluster_utils import Cluster
from small_model import save_small_model
from waiting import wait_for

from gpt2_np import Error
from gpt2_np.corpus import ray_actors
from gpt2_np.corpus.documents import Inputs
from gpt2_np.corpus.ray_actors import RayEngine
from gpt2_np.corpus.runs import open_run
from gpt2_np.corpus.scheduling import run_shards
from gpt2_np.corpus.shard_files import Job

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]  # Ray's own warnings
MEMORY = 80 * 2**20  # for objects, in each node
SOON = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}  # for lost nodes
WORDS = ("the", "café", "at", "corner", "of", "street", "is", "naïve", "llama", "🦙", "remember")


@pytest.fixture(scope="module")
def cluster(ray_settings):
    """Two nodes: the head with two CPUs and GPUs (that nobody opens), the other with one CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.delenv("OPENBLAS_NUM_THREADS", raising=False)  # the engine's to set
        found = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 2, "num_gpus": 2, "object_store_memory": MEMORY,
            "include_dashboard": False, "_system_config": SOON})
        try:
            found.other = found.add_node(num_cpus=1, object_store_memory=MEMORY)
            yield found
        finally:
            ray.shutdown()
            found.shutdown()


# --- runs by the command line ----------------------------------------------------------


def write_texts(path, n_texts):
    draw = random.Random(7)
    path.write_text("".join(" ".join(draw.choices(WORDS, k=draw.randint(0, 60))) + "\n"
                            for _ in range(n_texts)))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Texts, a model, and the results of a run on processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("corpus")
    model = save_small_model(folder / "model")
    found = SimpleNamespace(folder=folder, model=model, texts=write_texts(folder / "a.txt", 1000))
    assert end(command(found, folder / "processes", "--workers", "1")) == (0, "")
    found.expected = results(folder / "processes")
    assert len(found.expected) > 30
    return found


def command(corpus, output, *options):
    """Start the command that scores the texts."""
    STARTED.append(subprocess.Popen(
        [sys.executable, "-m", "gpt2_np.corpus", "score", "a.txt", "-o", str(output), "-m",
         str(corpus.model), "--shard-bytes", "5000", "--per-token", "--quiet", *options],
        cwd=corpus.folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    return STARTED[-1]


STARTED = []


@pytest.fixture(autouse=True)
def none_outlives_its_test():
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def end(process):
    """Wait for a command and return its exit status and its sentences, which are all our own."""
    said = process.communicate()[1]
    print(said)
    assert "raylet" not in said and "Traceback" not in said
    return process.returncode, said


def results(folder):
    """Return the content of the shards' files and of summary.json. No other files may be there."""
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    assert files.pop("run.json") and not any(name.endswith(".part") for name in files)
    files.pop("run.lock", None)
    return files


def n_done(folder):
    return len(list(Path(folder).glob("part-*.jsonl")))


def actors(cluster):
    """Return the process ids of our actors in this cluster."""
    raylets = {each.process.pid for node in cluster.list_all_nodes()
               for each in node.all_processes.get("raylet", ())}
    return [pid for pid, parent, name in processes()
            if parent in raylets and name.startswith("ray::Actor")]


def processes():
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    name = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    yield int(entry.name), int(parent), name


def signal_all(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def survive(cluster, corpus, output, n_kills, draw):
    """Kill actors and the driver at random moments, and go on until all is done."""
    options = ["--engine", "ray", "--address", cluster.address, "--workers", "5"]  # 3 find room
    driver = command(corpus, output, *options)
    for kill in range(n_kills):
        time.sleep(draw.uniform(0, 6))
        victims = actors(cluster)
        if victims and kill % 2 == 0:
            signal_all([draw.choice(victims)], signal.SIGKILL)
        else:
            driver.kill()
        if kill % 2 or driver.poll() is not None:
            status, said = end(driver)
            assert status in (0, -signal.SIGKILL), said
            if status == 0:  # it was quick: make more work
                for path in draw.sample(sorted(output.glob("part-*.jsonl")), 20):
                    path.unlink()
            driver = command(corpus, output, *options)
    return driver, options


def test_kills_and_ctrl_c_change_no_byte(cluster, corpus, tmp_path):
    driver, options = survive(cluster, corpus, tmp_path / "out", 2, random.Random(1))
    wait_for(lambda: actors(cluster))
    driver.send_signal(signal.SIGINT)
    status, said = end(driver)
    assert status == 130 and "the same command goes on" in said
    wait_for(lambda: not actors(cluster))
    assert end(command(corpus, tmp_path / "out", *options))[0] == 0
    assert results(tmp_path / "out") == corpus.expected


@pytest.mark.slow
def test_fifty_kills_change_no_byte(cluster, corpus, tmp_path):
    driver, _ = survive(cluster, corpus, tmp_path / "out", 50, random.Random(2))
    assert end(driver)[0] == 0
    assert results(tmp_path / "out") == corpus.expected
    wait_for(lambda: not actors(cluster))


def test_without_an_address_a_cluster_of_this_machine_comes_and_goes(corpus, tmp_path):
    output = tmp_path / "out"
    driver = command(corpus, output, "--engine", "ray", "--workers", "1")
    wait_for(lambda: n_done(output) or driver.poll() is not None)
    ours = descendants(driver.pid)
    assert end(driver) == (0, "")
    assert any(name.startswith("ray::Actor") for name in ours.values())
    assert results(output) == corpus.expected
    wait_for(lambda: not {pid for pid, _, _ in processes()} & ours.keys())


def descendants(pid):
    known, found = list(processes()), {pid: ""}
    while new := {each: name for each, parent, name in known
                  if parent in found and each not in found}:
        found |= new
    del found[pid]
    return found


# --- the engine itself -----------------------------------------------------------------


@contextlib.contextmanager
def engine(cluster, folder, texts=("one", "two", "three"), **options):
    """Yield an engine with a shard for each text, and the shards."""
    (folder / "notes").mkdir()
    paths = [folder / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    inputs = Inputs(list(map(str, paths)), documents="files", shard_bytes=1)
    job = Job(inputs.for_worker(), CountLetters(str(folder / "notes")), str(folder / "out"))
    with open_run(job.folder, job.work.fingerprint(), "jsonl"), contextlib.closing(
            RayEngine(job, address=cluster.address, **options)) as found:
        yield found, inputs.shards()
    assert not ray.is_initialized()


def run(engine, shards):
    """Return the numbers of shards that are done, those that are lost, and what was said."""
    finished, said = [], []
    lost = run_shards(engine, shards, lambda done: finished.append(done.number), said.append)
    return sorted(finished), list(lost), said


def test_each_gpu_has_one_worker(cluster, tmp_path):
    with engine(cluster, tmp_path, gpus=2) as (workers, shards):
        assert workers.n_workers == 2
        assert run(workers, shards) == ([0, 1, 2], [], [])
        wait_for(lambda: workers.wait(0.1) or len(list((tmp_path / "notes").iterdir())) == 2)
    notes = {path.read_text() for path in (tmp_path / "notes").iterdir()}
    assert notes == {"1,1,0", "1,1,1"}  # threads of OpenBLAS and OpenMP, and the GPU


def test_a_shard_whose_worker_was_killed_is_tried_again(cluster, tmp_path):
    texts = ["one", f"killed once {tmp_path}", "three"]
    with engine(cluster, tmp_path, texts, n_workers=1) as (workers, shards):
        finished, lost, said = run(workers, shards)
    assert (finished, lost) == ([0, 1, 2], [])
    assert "shard 1" in said[0] and "its process was killed" in said[0] and len(said) == 1


def test_an_input_that_is_gone_costs_its_shard_alone(cluster, tmp_path):
    with engine(cluster, tmp_path) as (workers, shards):
        shards = list(shards)
        (tmp_path / "1.txt").unlink()
        assert run(workers, shards)[:2] == ([0, 2], [1])


def test_a_worker_that_this_machine_has_no_cores_for_is_an_error(tmp_path):
    with pytest.raises(Error, match=r"threads is 1000, but Ray finds \d+ CPUs on this machine"), \
            engine(SimpleNamespace(address=None), tmp_path, threads=1000):
        pass


def test_a_wait_for_a_cluster_without_room_is_not_silent(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_actors, "PATIENCE", 0.5)
    with engine(cluster, tmp_path, threads=3) as (workers, shards):
        assert workers.n_workers == 1
        workers.start(0)
        workers.submit(0, next(shards))
        with pytest.warns(RuntimeWarning, match="each needs 3 CPUs, and of 3 CPUs 3 are free"):
            assert not workers.wait(1)


def test_nodes_that_do_not_see_the_folder_are_left_out(cluster, tmp_path):
    with engine(cluster, tmp_path, threads=2) as (workers, shards):
        assert workers.n_workers == 1  # of the two cores of one node; the other has one
        (tmp_path / "out" / "run.json").unlink()
        with pytest.raises(Error, match=r"does not see .* must lie on a file system"):
            run(workers, shards)


# --- last, as a node is lost in it -----------------------------------------------------


def test_a_lost_node_changes_no_byte(cluster, corpus, tmp_path):
    output = tmp_path / "out"
    driver = command(corpus, output, "--engine", "ray", "--address", cluster.address)
    wait_for(lambda: len(actors(cluster)) == 3 and n_done(output) > 2)
    at_work = actors(cluster)
    signal_all(at_work, signal.SIGSTOP)  # else the rest might be done meanwhile
    assert n_done(output) < len(corpus.expected) - 1
    cluster.remove_node(cluster.other, allow_graceful=False)
    assert len(actors(cluster)) == 2
    signal_all(at_work, signal.SIGCONT)
    assert end(driver)[0] == 0
    assert results(output) == corpus.expected
    wait_for(lambda: not {pid for pid, _, _ in processes()} & set(at_work))

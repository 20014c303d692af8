"""The Ray engine's parts that need no Ray: what an actor checks, and addresses."""
import socket
import sys
from types import SimpleNamespace

import pytest
from fake_works import CountLetters

from gpt2_np import Error
from gpt2_np.corpus.documents import Inputs, Shard
from gpt2_np.corpus.formats import Span
from gpt2_np.corpus.ray_actors import Actor, check_address, import_ray, import_variables
from gpt2_np.corpus.runs import open_run
from gpt2_np.corpus.shard_files import Job


def test_without_ray_a_sentence_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Error, match=r'^engine ray needs the package ray.*pip install ray$'):
        import_ray()


@pytest.mark.parametrize("address", ["", "here", "127.0.0.1", "ray://127.0.0.1:1", "here:there"])
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(Error, match="give auto, local, or HOST:PORT"):
        check_address(address)


def test_an_address_at_which_nothing_answers_is_an_error_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_address(f"127.0.0.1:{port}")
    with pytest.raises(Error, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        check_address(f"127.0.0.1:{port}")
    with pytest.raises(Error, match="no Ray cluster answers"):
        check_address("127.0.0.1:65536")


def test_actors_import_from_the_folders_that_the_user_has_added(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path.parent)
    paths = import_variables()["PYTHONPATH"].split(":")
    assert paths[:2] == [str(tmp_path.parent), str(tmp_path)]
    assert not any(path.endswith(("site-packages", "lib-dynload")) for path in paths)


# --- what an actor checks first --------------------------------------------------------


def actor_of(tmp_path, work=None, **changes):
    """Return an actor's object, and the folder of the run that it is to work on."""
    (tmp_path / "a.txt").write_text("one\ntwo")
    work, folder = work or CountLetters(), str(tmp_path / "out")
    fingerprint = {**work.fingerprint(), "inputs": []}
    with open_run(folder, fingerprint, "jsonl"):
        pass
    inputs = Inputs(str(tmp_path / "a.txt")).for_worker()
    return Actor(Job(inputs, work, folder), str(tmp_path), fingerprint | changes)


def test_a_worker_that_sees_the_run_works(tmp_path):
    actor = actor_of(tmp_path)
    assert actor.arrive() is None and actor.prepare() is None
    outcome = actor.attempt(Shard(0, (Span(str(tmp_path / "a.txt"), 0, 7),), 7))
    assert outcome.done.n_documents == 2


def test_a_worker_that_does_not_see_the_run_says_so(tmp_path):
    actor = actor_of(tmp_path, inputs=["of another run in a folder of this name"])
    for _ in range(2):
        outcome = actor.arrive()
        assert outcome.died and outcome.fatal and not outcome.ready
        assert outcome.failure.startswith(f"{socket.gethostname()} does not see {tmp_path}")
        (tmp_path / "out" / "run.json").unlink(missing_ok=True)


def test_a_worker_with_another_model_or_version_says_so(tmp_path):
    actor = actor_of(tmp_path)
    actor.job = actor.job._replace(work=SimpleNamespace(fingerprint=lambda: {"numpy": "9.9"}))
    outcome = actor.arrive()
    assert outcome.fatal and not outcome.ready and "differs in numpy" in outcome.failure


def test_a_worker_that_cannot_find_the_model_says_so(tmp_path):
    def fingerprint():
        raise Error("there is no such model")

    actor = actor_of(tmp_path)
    actor.job = actor.job._replace(work=SimpleNamespace(fingerprint=fingerprint))
    outcome = actor.arrive()
    assert outcome.fatal and not outcome.ready and "no such model" in outcome.failure


def test_an_input_that_is_gone_fails_its_shard_and_no_worker(tmp_path):
    actor = actor_of(tmp_path)
    outcome = actor.attempt(Shard(0, (Span("/no such/a.txt", 0, 7),), 7))
    assert outcome.ready and not outcome.died and not outcome.fatal
    assert "does not see /no such/a.txt" in outcome.failure

"""examples/service.py as a real server: several clients at once, some of which hang up."""
import asyncio
import contextlib
import importlib.util
import itertools
import json
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from service_client import PATH, answer, events, program, request_all, texts_of, usage, wait_for

import gpt2_np


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("service_example", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    return gpt2_np.load("shakespeare", "cpu")


@contextlib.contextmanager
def served(app):
    """Serve an application from a thread of this process; yield its port."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


# --- load ------------------------------------------------------------------------------


def check(results, numbers, texts):
    assert sorted(results) == sorted(numbers)
    for number, (text, reason, _) in results.items():
        if reason == "left":
            assert number % 3 == 2
        else:
            assert (text, reason) == (texts[number], "length")


def test_several_clients_get_their_texts_though_others_hang_up(model):
    numbers = range(18)
    with program() as (port, _):
        check(request_all(port, numbers, 6), numbers, texts_of(model, numbers))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc here")
def test_200_requests_from_16_clients_lose_none_and_leave_nothing_behind(model):
    numbers = range(200)
    texts = texts_of(model, numbers)
    with program() as (port, pid):
        request_all(port, range(48), 16)  # threads and buffers that stay
        wait_for(lambda: usage(pid)[1] < 30)
        memory, files = usage(pid)
        check(request_all(port, numbers, 16), numbers, texts)
        wait_for(lambda: usage(pid)[1] <= files)
        assert usage(pid)[0] < memory + 16 * 2**20
        check(request_all(port, numbers[:3], 1), numbers[:3], texts)


# --- one request -----------------------------------------------------------------------


class Pieces:
    """Endless pieces of text that know if they were closed."""

    def __init__(self):
        self.closed = threading.Event()

    def __call__(self, *_, **__):
        try:
            for number in itertools.count():
                time.sleep(0.005)
                yield f"{number} "
        finally:
            self.closed.set()


def test_a_client_that_leaves_ends_its_generation(example, monkeypatch):
    pieces = Pieces()
    monkeypatch.setattr(example.gpt2_np, "stream", pieces)
    with served(example.service(None, deadline=3600)) as port:
        with answer(port, {"prompt": "x"}) as response:
            assert next(events(response)) == {"text": "0 "}
            assert not pieces.closed.is_set()
        assert pieces.closed.wait(20)


def test_a_completion_ends_at_its_deadline(example, monkeypatch):
    pieces = Pieces()
    monkeypatch.setattr(example.gpt2_np, "stream", pieces)
    app = example.service(None, deadline=0.05)
    with served(app) as port, answer(port, {"prompt": "x"}) as response:
        *texts, end = events(response)
    assert end == {"ended_by": "deadline"} and "text" in texts[0]
    assert pieces.closed.is_set()


def test_a_failure_within_a_stream_is_its_last_event(example):
    def pieces():
        yield "one"
        raise gpt2_np.Error("the weights are not finite")

    async def collect():
        return [text async for text in example.events(pieces(), time.monotonic() + 60)]

    assert asyncio.run(collect()) == [
        'data: {"text": "one"}\n\n', 'data: {"error": "the weights are not finite"}\n\n'
    ]


def test_an_unexpected_failure_is_logged_and_the_client_told(example, monkeypatch, caplog):
    def pieces(*_, **__):
        yield "one"
        raise OverflowError("the cause")

    monkeypatch.setattr(example.gpt2_np, "stream", pieces)
    with served(example.service(None)) as port, answer(port, {"prompt": "x"}) as response:
        assert [*events(response)] == [{"text": "one"}, {"error": example.FAILURE}]
    assert "the cause" in caplog.text
    caplog.clear()
    monkeypatch.setattr(example.gpt2_np, "stream", None)
    with served(example.service(None)) as port, answer(port, {"prompt": "x"}) as response:
        assert (response.status, json.load(response)) == (500, {"error": example.FAILURE})
    assert "TypeError" in caplog.text


def test_a_task_that_is_cancelled_while_a_piece_is_made_closes_its_generator(example):
    """As uvicorn cancels it at a second Ctrl-C, without a wait for the thread."""
    making, closed = threading.Event(), threading.Event()
    go_on = threading.Event()

    def pieces():
        try:
            while True:
                making.set()
                go_on.wait(60)
                yield "x"
        finally:
            closed.set()

    async def consume(found):
        async for _ in example.events(found, time.monotonic() + 60):
            pass

    async def cancel():
        task = asyncio.create_task(consume(pieces()))
        await asyncio.to_thread(making.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not closed.is_set()
        go_on.set()
        assert await asyncio.to_thread(closed.wait, 20)

    asyncio.run(cancel())


def test_a_request_that_does_not_arrive_gets_408_and_frees_its_connection(example, monkeypatch):
    monkeypatch.setattr(example, "BODY_SECONDS", 0.1)
    with (served(example.service(None)) as port,
          socket.create_connection(("127.0.0.1", port), 20) as client):
        client.sendall(b"POST /completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        head, body = b"".join(iter(lambda: client.recv(4096), b"")).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and "not complete" in json.loads(body)["error"]


def test_bad_requests_get_one_sentence(example, model):
    with served(example.service(model)) as port:
        for status, body, words in [
            (400, b"", "not JSON"), (400, b"[1", "not JSON"), (400, b"[" * 9000, "not JSON"),
            (400, b"\xff", "not JSON"), (400, [1], '"prompt"'), (400, {"prompt": 5}, '"prompt"'),
            (400, {"prompt": ""}, "no tokens"), (400, {"prompt": "x", "n_token": 5}, "'n_token'"),
            (400, {"prompt": "x", "n_tokens": 1001}, "from 0 to 1000"),
            (400, {"prompt": "x", "n_tokens": True}, "from 0 to 1000"),
            (400, {"prompt": "x", "temperature": "hot"}, "temperature is 'hot'"),
            (400, {"prompt": "x", "temperature": float("nan")}, "temperature is nan"),
            (400, {"prompt": "x", "seed": -1}, "seed is -1"),
            (400, {"prompt": "x", "stop": [""]}, "stop holds ''"),
            (400, {"prompt": "x", "stop": ["a"] * 5}, "at most 4"),
            (400, {"prompt": "x", "stop": "a" * 33}, "at most 32"),
            (400, {"prompt": "thou " * 300}, "n_ctx is 256"),
            (413, {"prompt": "x" * 70_000}, "over 65536 bytes"),
        ]:
            with answer(port, body) as response:
                assert (response.status, body) == (status, body)
                [(key, sentence)] = json.load(response).items()
                assert key == "error" and words in sentence
        for status, method, path in (405, "GET", "/completions"), (404, "POST", "/"):
            with answer(port, b"", method, path) as response:
                assert response.status == status
                assert list(json.load(response)) == ["error"]


def test_a_request_that_breaks_off_is_no_failure_of_the_server(example, model, caplog):
    with served(example.service(model)) as port:
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"POST /completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        time.sleep(0.1)
        with answer(port, {"prompt": "x", "n_tokens": 1}) as response:
            assert [*events(response)][-1] == {"ended_by": "length"}
    assert not caplog.records


def test_the_program_serves_on_this_machine_only(example, monkeypatch):
    seen = {}
    monkeypatch.setattr(example.uvicorn, "run", lambda app, **options: seen.update(options))
    monkeypatch.setattr(example, "gpt2_np", SimpleNamespace(
        load=lambda name: name, ContextWarning=UserWarning, Error=gpt2_np.Error))
    monkeypatch.setattr(example.warnings, "simplefilter", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["service.py", "124M", "--port", "9"])
    example.main()
    assert (seen["host"], seen["port"]) == ("127.0.0.1", 9)
    assert seen["limit_concurrency"] == example.MAX_CONNECTIONS
    monkeypatch.setattr(sys, "argv", ["service.py", "--port", "65536"])
    with pytest.raises(SystemExit, match="2"):
        example.main()

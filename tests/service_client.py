"""Clients of examples/service.py, a third of which hang up, and the state of its process.

`PYTHONPATH=. python tests/service_client.py SECONDS CLIENTS` keeps it busy and prints figures.
"""
import contextlib
import http.client
import itertools
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from waiting import wait_for

import gpt2_np

PATH = Path(gpt2_np.__file__).parent / "examples" / "service.py"
PROMPT = "ROMEO:\nBut soft, what light"
OPTIONS = {"n_tokens": 12, "temperature": 0.8, "top_p": 0.95}
N_TEXTS = 300  # requests of higher numbers repeat them


@contextlib.contextmanager
def program(*arguments):
    """Run the example as a process of its own; yield its port and its id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, PATH, *arguments, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: connects(port))
            yield port, process.pid
        finally:
            process.terminate()
            log = process.communicate(timeout=60)[1].splitlines()
            assert all(line.startswith("INFO:") for line in log), log  # no traceback


def connects(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def answer(port, body, method="POST", path="/completions"):
    """Yield the response to a request, and hang up at the end of the block."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body))
        yield connection.getresponse()
    finally:
        connection.close()


def events(response):
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    for line in response:
        if line.strip():
            assert line.startswith(b"data: ")
            yield json.loads(line.removeprefix(b"data: "))


def request_all(port, numbers, n_clients):
    """Make a request for each number from several clients; every third hangs up early.

    Returns {number: (text or None, the reason or "left", seconds to the first event)}.
    """
    waiting, results, failures = iter(numbers), {}, queue.SimpleQueue()
    lock = threading.Lock()

    def client():
        try:
            while True:
                with lock:
                    number = next(waiting, None)
                if number is None:
                    return
                results[number] = one_request(port, number)
        except BaseException as error:
            failures.put(error)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    if not failures.empty():
        raise failures.get()
    return results


def one_request(port, number):
    started, first, text = time.perf_counter(), None, ""
    body = {"prompt": PROMPT, "seed": number % N_TEXTS, **OPTIONS}
    with answer(port, body) as response:
        for found in events(response):
            first = first or time.perf_counter() - started
            if number % 3 == 2:
                return None, "left", first
            text += found.get("text", "")
        return text, found["ended_by"], first


def texts_of(model, numbers):
    """Return {number: the text that its request gets} for those that do not hang up."""
    return {n: gpt2_np.complete(model, PROMPT, seed=n, **OPTIONS) for n in numbers if n % 3 != 2}


def usage(pid):
    """Return the bytes of memory and the number of open files of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    [memory] = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(memory) * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def keep_busy(seconds, n_clients):
    """Print requests, errors, times to the first token, and memory before and after."""
    texts = texts_of(gpt2_np.load("shakespeare", "cpu"), range(N_TEXTS))
    with program() as (port, pid):
        request_all(port, range(3 * n_clients), n_clients)  # threads and buffers that stay
        end, before = time.monotonic() + seconds, usage(pid)
        numbers = itertools.takewhile(lambda _: time.monotonic() < end, itertools.count())
        results = request_all(port, numbers, n_clients)
        wait_for(lambda: usage(pid)[1] <= before[1])
        after = usage(pid)
    left = sum(reason == "left" for _, reason, _ in results.values())
    right = sum((text, reason) == (texts.get(number % N_TEXTS), "length")
                for number, (text, reason, _) in results.items())
    first = np.percentile([first for _, _, first in results.values()], [50, 99]) * 1e3
    print(f"{len(results)} requests of {n_clients} clients in {seconds:.0f} s: {right} right, "
          f"{left} left early, {len(results) - right - left} wrong")
    print(f"first token: median {first[0]:.0f} ms, 99% within {first[1]:.0f} ms")
    print(f"memory {before[0] / 2**20:.1f} MiB before, {after[0] / 2**20:.1f} after; open files "
          f"{before[1]} and {after[1]}")


if __name__ == "__main__":
    keep_busy(float(sys.argv[1]), int(sys.argv[2]))

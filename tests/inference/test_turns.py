"""Turns: one pass at a time on the CPU, in order, without a hang whatever a tap does."""
import contextlib
import os
import threading
import time
import types

import numpy as np
import pytest
from random_model import random_model

import gpt2_np
from gpt2_np import circuits, complete, generate, generate_batch, score
from gpt2_np.inference import turns

MODEL = random_model()
PROMPT = [3, 1, 4, 1, 5]


def forks(test):
    test = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")(test)
    return pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")(test)


def together(*jobs):
    """Run each job in a thread of its own; return their results, or raise the first failure."""
    results = [None] * len(jobs)

    def run(index, job):
        try:
            results[index] = job()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class Watch:
    """Counts passes that run at the same time. Its `pass_of(name)` is a tap."""

    def __init__(self):
        self.running, self.most, self.order = 0, 0, []

    def pass_of(self, stream):
        def tap(name, array):
            if name == "hook_embed":
                self.running += 1
                self.most = max(self.most, self.running)
                self.order.append(stream)
                time.sleep(0.001)  # another thread would begin its pass now
            elif name == "ln_final.hook_normalized":
                self.running -= 1
        return tap


@contextlib.contextmanager
def turn_held():
    """Hold the turn, so that threads come to wait for it."""
    with turns.turn(MODEL):
        yield


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def test_passes_of_several_threads_never_overlap():
    watch = Watch()
    jobs = []
    for stream in range(4):
        tap = watch.pass_of(stream)
        jobs += [lambda tap=tap: list(generate(MODEL, PROMPT, 6, tap=tap)),
                 lambda tap=tap: score(MODEL, PROMPT, tap=tap),
                 lambda tap=tap: circuits.run(
                     MODEL, PROMPT, edits=tap)]
    results = together(*jobs)
    assert watch.most == 1
    assert results[0] == list(generate(MODEL, PROMPT, 6))
    np.testing.assert_allclose(results[1], score(MODEL, PROMPT), atol=1e-6)


@pytest.mark.parametrize("job", [
    lambda: list(generate(MODEL, PROMPT, 3)),
    lambda: list(generate(MODEL, PROMPT, 3, draft=False)),
    lambda: generate_batch(MODEL, [PROMPT, [1]], 3),
    lambda: score(MODEL, PROMPT),
    lambda: circuits.run(MODEL, PROMPT),
    lambda: circuits.lens(MODEL, PROMPT),
    lambda: circuits.heads(MODEL, PROMPT),
    lambda: circuits.measure(MODEL, [PROMPT], resamples=10),
    lambda: circuits.ablation(MODEL, PROMPT, circuits.log_probability(MODEL, 3)),
    lambda: circuits.gradients(MODEL, PROMPT, circuits.log_probability(MODEL, 3)),
])  # fmt: skip
def test_every_pass_takes_a_turn(job, monkeypatch):
    taken, passes = [], []
    enter = turns.Queue.enter

    def counted(queue, turn):
        taken.append(turn)
        enter(queue, turn)

    def outside(module, name):
        original = getattr(module, name)

        def checked(*args, **options):
            passes.append(name)
            assert turns.QUEUE.holder is not None, f"{name} runs outside a turn"
            return original(*args, **options)

        monkeypatch.setattr(module, name, checked)

    monkeypatch.setattr(turns.Queue, "enter", counted)
    for module in vars(gpt2_np.inference).values(), vars(circuits).values():
        for file in module:
            for name in ("transformer", "forward", "unembed", "attention_layer", "mlp_layer"):
                if isinstance(file, types.ModuleType) and hasattr(file, name):
                    outside(file, name)
    job()
    assert taken and passes
    assert turns.QUEUE.holder is None


def test_streams_advance_in_turn(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 60)
    n, left, order = 8, [8, 8, 8], []

    def job(stream):
        def tap(name, array):
            if name == "hook_embed":
                order.append(stream)
                others = sum(left) - left[stream]
                left[stream] -= 1
                wait_for(lambda: len(turns.QUEUE.waiting) == min(others, 2))

        return lambda: list(generate(MODEL, PROMPT, n, tap=tap))

    together(*map(job, range(3)))
    assert len(set(order[:3])) == 3
    assert order == order[:3] * n


def test_turns_are_given_in_the_order_of_asking():
    order = []

    def take(number):
        with turns.turn(MODEL):
            order.append(number)

    with turn_held():
        threads = []
        for number in range(6):
            threads.append(threading.Thread(target=take, args=[number], daemon=True))
            threads[-1].start()
            wait_for(lambda n=number: len(turns.QUEUE.waiting) == n + 1)
    for thread in threads:
        thread.join(60)
    assert order == list(range(6))


def test_a_tap_may_call_the_model():
    inner = []

    def tap(name, array):
        if name == "blocks.1.hook_resid_pre":
            inner.append(score(MODEL, PROMPT))

    def job():
        return list(generate(MODEL, PROMPT, 3, tap=tap))

    expected = list(generate(MODEL, PROMPT, 3))
    assert together(job, job) == [expected, expected]
    assert len(inner) == 6
    assert turns.QUEUE.holder is None


def test_a_tap_may_wait_for_another_thread_that_calls_the_model(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.02)
    results = []

    def tap(name, array):
        if name == "blocks.1.hook_resid_pre":
            results.extend(together(lambda: score(MODEL, PROMPT)))

    [tokens] = together(lambda: list(generate(MODEL, PROMPT, 2, tap=tap)))
    assert tokens == list(generate(MODEL, PROMPT, 2))
    assert len(results) == 2
    assert turns.QUEUE.holder is None and not turns.QUEUE.waiting


def test_nobody_goes_ahead_of_a_pass_without_a_tap(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.001)
    thread = threading.Thread(target=score, args=[MODEL, PROMPT], daemon=True)
    with turn_held():
        thread.start()
        wait_for(lambda: turns.QUEUE.waiting)
        time.sleep(0.05)
        assert thread.is_alive() and len(turns.QUEUE.waiting) == 1
    thread.join(60)
    assert not thread.is_alive()


class Failure(Exception):
    pass


def failing(name, array):
    if name == "blocks.2.hook_mlp_out":
        raise Failure


@pytest.mark.parametrize("job", [
    lambda: next(generate(MODEL, PROMPT, 3, tap=failing)),
    lambda: score(MODEL, PROMPT, tap=failing),
    lambda: circuits.run(MODEL, PROMPT, edits={"mlp_out": failing}),
])  # fmt: skip
def test_a_pass_that_fails_ends_its_turn(job):
    with pytest.raises(Failure):
        job()
    assert turns.QUEUE.holder is None
    together(lambda: score(MODEL, PROMPT))


def test_an_abandoned_stream_holds_no_turn():
    stream = generate(MODEL, PROMPT, 9)
    next(stream)
    assert turns.QUEUE.holder is None
    together(lambda: score(MODEL, PROMPT))
    stream.close()
    together(lambda: score(MODEL, PROMPT))


def test_a_wait_that_is_interrupted_leaves_the_queue(monkeypatch):
    """As Ctrl-C does, which arrives while a lock is waited for."""

    class Interrupted:
        def acquire(self, timeout=None):
            if timeout is not None:
                raise KeyboardInterrupt

    with turn_held():
        with monkeypatch.context() as patch:
            ours = types.SimpleNamespace(Lock=Interrupted, get_ident=threading.get_ident)
            patch.setattr(turns, "threading", ours)
            with pytest.raises(KeyboardInterrupt):
                together(lambda: score(MODEL, PROMPT))
        assert not turns.QUEUE.waiting
    assert turns.QUEUE.holder is None


@forks
def test_a_child_process_takes_turns_though_a_thread_of_its_parent_held_one():
    held, done = threading.Event(), threading.Event()

    def hold():
        with turn_held():
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert held.wait(60)
    waiter = threading.Thread(target=score, args=[MODEL, PROMPT], daemon=True)
    waiter.start()
    wait_for(lambda: turns.QUEUE.waiting)
    child = os.fork()
    if not child:  # no clean-up of the parent's tests here
        scored = score(MODEL, PROMPT)
        os._exit(0 if len(scored) == 4 and turns.QUEUE.holder is None else 1)
    wait_for(lambda: os.waitpid(child, os.WNOHANG)[0] == child)
    done.set()
    holder.join(60)
    waiter.join(60)
    assert turns.QUEUE.holder is None


@forks
def test_a_tap_may_fork():
    statuses = []

    def tap(name, array):
        if name == "hook_embed" and not statuses:
            child = os.fork()
            if not child:
                os._exit(score(MODEL, PROMPT).shape != (4,))
            statuses.append(os.waitpid(child, 0)[1])

    score(MODEL, PROMPT, tap=tap)
    assert statuses == [0]


def test_a_gpu_keeps_the_order_itself():
    class Array:
        pass

    Array.__module__ = "fractions"  # a module that is loaded, in place of CuPy
    model = types.SimpleNamespace(params={"wte": Array()})
    assert isinstance(turns.turn(model), contextlib.nullcontext)


def test_threads_get_the_texts_of_one_thread():
    model = gpt2_np.load("shakespeare", "cpu")
    options = {"n_tokens": 8, "temperature": 0.8}
    jobs = [lambda seed=seed: complete(model, "ROMEO:", seed=seed, **options) for seed in range(6)]
    assert together(*jobs) == [job() for job in jobs]

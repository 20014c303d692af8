"""Turns: one pass at a time on the CPU, in order, without a hang whatever a tap does."""
import _thread
import contextlib
import os
import signal
import threading
import time
import types

import numpy as np
import pytest
from random_model import random_model
from waiting import wait_for

import gpt2_np
from gpt2_np import beam_search, circuits, complete, generate, generate_batch, score
from gpt2_np.inference import turns

MODEL = random_model()
PROMPT, OTHER = [3, 1, 4, 1, 5], [2, 7, 1, 8, 2]
METRIC = circuits.log_probability(MODEL, 3)
PAIR = {"base": OTHER, "source": PROMPT, "metric": METRIC}
EDGES = circuits.edge_names(MODEL.config)[2]


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Let nobody go ahead unless a test says so: a machine may stall."""
    monkeypatch.setattr(turns, "PATIENCE", 600)


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


class CountingLock:
    """The lock of the queue. `count` is the number of turns that threads have asked for."""

    def __init__(self):
        self.lock, self.count = threading.Lock(), 0

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *_):
        self.count += 1
        self.lock.release()


@pytest.fixture
def asked(monkeypatch):
    lock = CountingLock()
    monkeypatch.setattr(turns.QUEUE, "lock", lock)
    return lock


@contextlib.contextmanager
def turn_of_another_thread():
    """Let a thread hold the turn until the end of the block."""
    held, done = threading.Event(), threading.Event()

    def hold():
        with turns.turn(MODEL):
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert held.wait(60)
    try:
        yield
    finally:
        done.set()
        holder.join(60)


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
    lambda: beam_search(MODEL, PROMPT, 3),
    lambda: score(MODEL, PROMPT),
    lambda: circuits.run(MODEL, PROMPT),
    lambda: circuits.lens(MODEL, PROMPT),
    lambda: circuits.heads(MODEL, PROMPT),
    lambda: circuits.measure(MODEL, [PROMPT], resamples=10),
    lambda: circuits.ablation(MODEL, base=PROMPT, metric=METRIC),
    lambda: circuits.gradients(MODEL, PROMPT, METRIC),
    lambda: circuits.patch_edges(MODEL, np.zeros_like(EDGES), base=PROMPT, source=OTHER),
    lambda: circuits.find_edges(MODEL, **PAIR, keep=0.5, checks=1, subsets=1),
    lambda: circuits.path_patching(MODEL, **PAIR, through_mlps=True),
    lambda: circuits.full_ov(MODEL, "L1H0", extended=True),
])  # fmt: skip
def test_every_pass_takes_a_turn(job, monkeypatch):
    passes = []

    def watch(module, name):
        original = getattr(module, name)

        def checked(*args, **options):
            passes.append(name)
            assert turns.QUEUE.own(), f"{name} runs outside a turn"
            return original(*args, **options)

        monkeypatch.setattr(module, name, checked)

    for module in vars(gpt2_np.inference).values(), vars(circuits).values():
        for file in module:
            for name in "transformer", "forward", "unembed", "attention_layer", "mlp_layer", "mlp":
                if isinstance(file, types.ModuleType) and hasattr(file, name):
                    watch(file, name)
    job()
    assert passes
    assert not turns.QUEUE.own()


def test_streams_advance_in_turn(asked):
    n, left, order = 8, [8, 8, 8], []

    def job(stream):
        def tap(name, array):
            if name == "hook_embed":
                order.append(stream)
                others = sum(left) - left[stream]
                left[stream] -= 1
                wait_for(lambda: asked.count - len(order) == min(others, 2))

        return lambda: list(generate(MODEL, PROMPT, n, tap=tap))

    together(*map(job, range(3)))
    assert len(set(order[:3])) == 3
    assert order == order[:3] * n


def test_turns_are_given_in_the_order_of_asking(asked):
    order = []

    def take(number):
        with turns.turn(MODEL):
            order.append(number)

    threads = [threading.Thread(target=take, args=[n], daemon=True) for n in range(6)]
    with turns.turn(MODEL):
        for count, thread in enumerate(threads, 2):
            thread.start()
            wait_for(lambda count=count: asked.count == count)
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


def test_a_tap_may_wait_for_other_threads_that_call_the_model(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.02)
    results = []

    def tap(name, array):
        if name == "blocks.1.hook_resid_pre":
            results.extend(together(*[lambda: list(generate(MODEL, PROMPT, 9, tap=noop))] * 3))

    def noop(name, array):
        pass

    expected = list(generate(MODEL, PROMPT, 9))
    assert together(lambda: list(generate(MODEL, PROMPT, 2, tap=tap))) == [expected[:2]]
    assert results == [expected] * 6


def test_a_thread_that_a_tap_waits_for_waits_once_and_not_for_every_pass(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.5)

    def tap(name, array):
        if name == "hook_embed":
            together(lambda: list(generate(MODEL, [1], 20, draft=False)))

    started = time.monotonic()
    score(MODEL, PROMPT, tap=tap)
    assert time.monotonic() - started < 20 / 2 * 0.5


def test_nobody_goes_ahead_of_a_pass_without_a_tap(monkeypatch, asked):
    monkeypatch.setattr(turns, "PATIENCE", 0.001)
    thread = threading.Thread(target=score, args=[MODEL, PROMPT], daemon=True)
    with turns.turn(MODEL):
        thread.start()
        wait_for(lambda: asked.count == 2)
        time.sleep(0.05)
        assert thread.is_alive()
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
    assert not turns.QUEUE.own()
    together(lambda: score(MODEL, PROMPT))


def test_an_abandoned_stream_holds_no_turn():
    stream = generate(MODEL, PROMPT, 9)
    next(stream)
    assert not turns.QUEUE.own()
    together(lambda: score(MODEL, PROMPT))
    stream.close()
    together(lambda: score(MODEL, PROMPT))


class CtrlC:
    """`CtrlC[signal.SIGINT]` is handled by the next function call, not by the line itself."""

    __class_getitem__ = _thread.interrupt_main


@pytest.fixture
def interrupts():
    """Make Ctrl-C raise KeyboardInterrupt, as in a program that runs in the foreground."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_at_the_end_of_a_pass_ends_its_turn(interrupts):
    with pytest.raises(KeyboardInterrupt), turns.turn(MODEL):
        CtrlC[signal.SIGINT]
    together(lambda: score(MODEL, PROMPT))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="Windows cannot end a wait so")
def test_ctrl_c_while_a_thread_waits_leaves_its_place_to_the_next(interrupts, asked):
    main = threading.get_ident()

    def interrupt():
        wait_for(lambda: asked.count == 2)
        signal.pthread_kill(main, signal.SIGINT)

    with turn_of_another_thread():
        thread = threading.Thread(target=interrupt, daemon=True)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            score(MODEL, PROMPT)
        thread.join(60)
    together(lambda: score(MODEL, PROMPT))


def test_ctrl_c_at_the_end_of_a_wait_leaves_the_thread_before_as_it_is():
    score(MODEL, PROMPT)
    before = turns.QUEUE.last

    class Interrupted:
        def acquire(self, timeout):
            assert before.lock.acquire(timeout=timeout)
            raise KeyboardInterrupt

    turns.QUEUE.last = types.SimpleNamespace(lock=Interrupted(), has_tap=False, has_begun=True)
    with pytest.raises(KeyboardInterrupt):
        together(lambda: score(MODEL, PROMPT))
    assert turns.QUEUE.of_thread.turn is before and not turns.QUEUE.own()
    together(lambda: score(MODEL, PROMPT))


@forks
def test_a_child_process_takes_turns_though_a_thread_of_its_parent_held_one(asked):
    with turn_of_another_thread():
        waiter = threading.Thread(target=score, args=[MODEL, PROMPT], daemon=True)
        waiter.start()
        wait_for(lambda: asked.count == 2)
        child = os.fork()
        if not child:  # no clean-up of the parent's tests here
            signal.alarm(60)
            os._exit(len(score(MODEL, PROMPT)) != 4)
        assert os.waitpid(child, 0)[1] == 0
    waiter.join(60)
    assert not waiter.is_alive()


@forks
def test_a_tap_may_fork():
    children, right = [], False

    def tap(name, array):
        if name == "hook_embed" and not children:
            children.append(os.fork())
            score(MODEL, PROMPT)

    try:
        score(MODEL, PROMPT, tap=tap)
        together(lambda: score(MODEL, PROMPT))
        right = True
    finally:
        if 0 in children:
            os._exit(not right)
    assert os.waitpid(children[0], 0)[1] == 0


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

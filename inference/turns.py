"""Turns: on the CPU one pass of the model runs at a time, and threads are served in order.

A BLAS spreads every product over all cores. If several threads multiply at once, its workers wait
for each other, and the passes together take many times as long as one after another. So a pass
waits until the one that was asked for before it has ended. Between two passes of a stream every
other stream has its turn. A GPU keeps the order itself.

A turn is a matter of speed only: results do not depend on it.
"""
from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import numpy as np

from ..gpt2_np import Model, namespace

# A tap may wait for another thread that waits for its own turn. So the next thread goes ahead of
# a pass with a tap once it has seen that pass run for this many seconds.
PATIENCE = 1.0


def turn(model: Model, has_tap: bool = False) -> contextlib.AbstractContextManager[object]:
    """Return a context for one pass of the model. `has_tap`: a caller's function runs within it.

    A thread that is within a turn takes another one at once: a tap may call the model.
    """
    on_cpu = namespace(model.params["wte"]) is np
    return Turn(QUEUE, has_tap) if on_cpu else contextlib.nullcontext()


class Turn:
    """One thread's place in the queue, from `with` until the end of its block."""

    def __init__(self, queue: Queue, has_tap: bool):
        self.queue, self.has_tap, self.has_begun = queue, has_tap, False
        self.lock: Any = threading.RLock()  # this thread's until the turn ends

    def __enter__(self) -> None:
        self.lock.acquire()
        try:
            self.queue.wait(self)
        except BaseException:  # Ctrl-C: the next thread goes ahead, which costs only speed
            self.lock.release()
            raise

    @property
    def __exit__(self) -> Any:
        """The lock's own: Ctrl-C is never handled between a block's end and a function in C."""
        return self.lock.__exit__


class Queue:
    """Turns in the order of asking. Each waits for the one before it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last: Turn | None = None
        self.of_thread = threading.local()  # its `turn` is the last outermost one of the thread

    def own(self) -> Turn | None:
        """Return the turn that this thread is within, or waits for."""
        turn = getattr(self.of_thread, "turn", None)
        if turn and turn.lock._is_owned():  # threading.Condition asks a lock the same
            return turn
        return None

    def wait(self, turn: Turn) -> None:
        """Return when it is the turn's time."""
        if self.own():
            return
        self.of_thread.turn = turn  # first, for a signal handler that calls the model
        with self.lock:
            before, self.last = self.last, turn
        seen = before and before.has_begun
        # Nobody else waits for that lock, so it need not be released.
        while before and not before.lock.acquire(timeout=PATIENCE):
            if seen and before.has_tap:
                break
            seen = before.has_begun
        turn.has_begun = True

    def after_fork(self) -> None:
        """Forget the threads that a child process does not have."""
        self.lock, self.last = threading.Lock(), self.own()


QUEUE = Queue()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=QUEUE.after_fork)

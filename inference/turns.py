"""Turns: on the CPU one pass of the model runs at a time, and threads are served in order.

A BLAS spreads every product over all cores. If several threads multiply at once, its workers wait
for each other, and the passes together take many times as long as one after another. So a pass
waits until those that came before it are done. Between two passes of a stream every other stream
has its turn. A GPU keeps the order itself.

A turn is a matter of speed only: results do not depend on it.
"""
from __future__ import annotations

import contextlib
import os
import threading
from collections import deque

import numpy as np

from ..gpt2_np import Model, namespace

# A tap may wait for another thread that waits for its own turn. So a thread that has waited for
# this many seconds for one and the same pass with a tap goes ahead without a turn.
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
        self.queue, self.has_tap, self.thread = queue, has_tap, threading.get_ident()
        self.called = threading.Lock()  # held until the turn comes

    def __enter__(self) -> None:
        try:
            self.queue.enter(self)
        except BaseException:  # Ctrl-C, while it waits
            self.queue.leave(self)
            raise

    def __exit__(self, *_: object) -> None:
        self.queue.leave(self)


class Queue:
    """Threads that wait for the one whose turn it is, first come, first served."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holder: Turn | None = None
        self.waiting: deque[Turn] = deque()

    def enter(self, turn: Turn) -> None:
        with self.lock:
            before = self.holder
            if before is None:
                self.holder = turn
                return
            if before.thread == turn.thread:
                return
            turn.called.acquire()
            self.waiting.append(turn)
        while not turn.called.acquire(timeout=PATIENCE):
            before, seen = self.holder, before
            if before is seen and before is not None and before.has_tap:
                self.leave(turn)
                return

    def leave(self, turn: Turn) -> None:
        """End the turn, or the wait for it, and call the next thread."""
        with self.lock:
            if self.holder is turn:
                self.holder = self.waiting.popleft() if self.waiting else None
                if self.holder is not None:
                    self.holder.called.release()
            elif turn in self.waiting:
                self.waiting.remove(turn)

    def after_fork(self) -> None:
        """Forget the threads that a child process does not have."""
        self.lock = threading.Lock()
        self.waiting.clear()
        if self.holder is not None and self.holder.thread != threading.get_ident():
            self.holder = None


QUEUE = Queue()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=QUEUE.after_fork)

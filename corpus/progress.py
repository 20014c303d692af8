"""The bar of a run: bytes of the inputs, documents, tokens a second and the time left."""
from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from .shard_files import Done

SECONDS = 60  # between two lines of a log


class Progress:
    """A bar on standard error, or a line a minute if that is no terminal or there is no tqdm."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.n_bytes = self.n_before = self.n_documents = self.n_tokens = self.n_read = 0
        self.begin = self.last = time.monotonic()
        self.bar: Any = None

    def start(self, n_bytes: int) -> None:
        """Begin with the bytes of all inputs."""
        self.n_bytes, self.begin = n_bytes, time.monotonic()
        if not self.quiet and sys.stderr is not None and sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=n_bytes, initial=self.n_before, unit="B", unit_scale=True,
                                file=sys.stderr, dynamic_ncols=True, smoothing=0.05)
        if self.bar is None and self.n_before:
            self.say(f"{self.n_before / max(n_bytes, 1):.0%} of {n_bytes:,} bytes are done; a line "
                     "will follow each minute")

    def skip(self, n_bytes: int) -> None:
        """Count bytes that an earlier run has done. They are not part of the rate."""
        self.n_before += n_bytes
        if self.bar is not None:
            self.bar.initial += n_bytes
            self.bar.update(n_bytes)

    def add(self, done: Done) -> None:
        """Count a shard that is done."""
        self.n_read += done.n_bytes
        self.n_documents += done.n_documents
        self.n_tokens += done.n_tokens
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(self.rates(now), refresh=False)
            self.bar.update(done.n_bytes)
        elif now - self.last >= SECONDS:
            self.last = now
            self.say(self.line(now))

    def rates(self, now: float) -> str:
        return (f"{self.n_documents:,} documents, "
                f"{self.n_tokens / max(now - self.begin, 1e-9):,.0f} tokens a second")

    def line(self, now: float) -> str:
        read = self.n_before + self.n_read
        left = (self.n_bytes - read) * (now - self.begin) / max(self.n_read, 1)
        return (f"{read / max(self.n_bytes, 1):.0%} of {self.n_bytes / 1e6:,.1f} MB, "
                f"{self.rates(now)}, about {left / 60:,.0f} minutes left")

    def say(self, text: str) -> None:
        """Print a line on standard error, above the bar."""
        if self.quiet or sys.stderr is None:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

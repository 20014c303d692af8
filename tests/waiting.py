"""Waiting for what another thread or process does, and ending it."""
import contextlib
import subprocess
import time


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


@contextlib.contextmanager
def started(command, **options):
    """Start a process that is killed at the end, also if a test fails before."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()

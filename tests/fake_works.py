"""Runs without a model or without processes. Some texts do to a worker what real ones do."""
import os
import signal
import time
from pathlib import Path

from gpt2_np import Error
from gpt2_np.corpus.scheduling import attempt, prepare


class CountLetters:
    """The number of letters of each text, and whatever the text says that should happen."""

    def __init__(self, note=None, at_start=""):
        self.columns = {"n_prompt_tokens": "int64", "n_tokens": "int64", "reason": "string"}
        self.note = note  # a folder, where each worker leaves a file about itself
        self.at_start = at_start  # "raise" or "die"

    def prepare(self):
        if self.note:
            names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
            values = ",".join(os.environ.get(name, "-") for name in names)
            (Path(self.note) / str(os.getpid())).write_text(values)
        if self.at_start == "raise":
            raise Error("there is no such model")
        if self.at_start == "die":
            os._exit(5)

    def fingerprint(self):
        return {"work": "count letters"}

    def records(self, documents):
        for document in documents:
            self.act(document.text or "")
        return [{"id": document.id, "n_prompt_tokens": 0, "n_tokens": len(document.text or ""),
                 "reason": "length"} for document in documents]

    def act(self, text):
        match text.split():
            case ["killed"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["killed", "once", folder]:
                if not (flag := Path(folder) / "flag").exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case ["raises"]:
                raise ZeroDivisionError("a bug")
            case ["sleeps"]:
                time.sleep(600)


class OwnProcess:
    """An engine with one worker: this process."""

    n_workers = 1

    def __init__(self, job, *_):
        self.job = job

    def start(self, worker):
        prepare(worker, self.job)

    def submit(self, worker, shard):
        self.shard = shard

    def wait(self, seconds):
        return [attempt(0, self.job, self.shard)]

    def close(self):
        pass

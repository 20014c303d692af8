"""Work without a model, and without the package: some texts do to a worker what real ones do."""
import os
import signal
import time
from pathlib import Path


class CountLetters:
    """The number of letters of each text, and whatever the text says that should happen."""

    def __init__(self, note=None, at_start=None):
        self.columns = {"n_prompt_tokens": "int64", "n_tokens": "int64", "reason": "string"}
        self.note = note  # a folder, where each worker leaves a file about itself
        self.at_start = at_start  # an exception, or "die"

    def prepare(self):
        if self.note:
            note_environment(self.note)
        if self.at_start == "die":
            os._exit(5)
        if self.at_start:
            raise self.at_start

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
                leave_note(self.note, "asleep")
                time.sleep(600)


def note_environment(folder):
    names = "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"
    leave_note(folder, ",".join(os.environ.get(name, "-") for name in names))


def leave_note(folder, text):
    (Path(folder) / str(os.getpid())).write_text(text)

"""An engine without processes, and workers that tell what environment they have."""
from fake_works import note_environment

from gpt2_np.corpus import Scorer
from gpt2_np.corpus.scheduling import attempt, prepare


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


class NotingScorer(Scorer):
    """A scorer that leaves a file about each worker in a folder."""

    def __init__(self, folder, *arguments, **options):
        super().__init__(*arguments, **options)
        self.note = folder

    def prepare(self):
        note_environment(self.note)
        super().prepare()

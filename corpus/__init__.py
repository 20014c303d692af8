"""Many texts: score or continue every text of a corpus, and repeat published evaluations.

`python -m gpt2_np.corpus --help` lists the commands; README.md in this folder begins with them.
"""
from .driver import Incomplete, RunOptions, Stopped, generate, score
from .runs import Status, status
from .work import Generator, Scorer

__all__ = ["Generator", "Incomplete", "RunOptions", "Scorer", "Status", "Stopped", "generate",
           "score", "status"]  # fmt: skip

"""Many texts: score or continue every text of a corpus, and repeat published evaluations.

`python -m gpt2_np.corpus --help` lists the commands; README.md in this folder begins with them.
"""
from .work import Generator, Scorer

__all__ = ["Generator", "Scorer"]

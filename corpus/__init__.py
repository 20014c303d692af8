"""Many texts: score or continue every text of a corpus, and repeat published evaluations.

`python -m gpt2_np.corpus --help` lists the commands; README.md in this folder begins with them.
"""
from .ablations import ablated_model
from .driver import GenerateOptions, Incomplete, RunOptions, Stopped, generate, score
from .evaluations import Evaluation, evaluate
from .lm_eval_adapter import lm_eval_model
from .runs import Status, status
from .work import Generator, Scorer

__all__ = ["Evaluation", "GenerateOptions", "Generator", "Incomplete", "RunOptions", "Scorer",
           "Status", "Stopped", "ablated_model", "evaluate", "generate", "lm_eval_model", "score",
           "status"]  # fmt: skip

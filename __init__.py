"""GPT-2 in NumPy: run it, read it, copy it."""
from typing import TYPE_CHECKING

from .gpt2_np import *  # noqa: F403
from .gpt2_np import __version__ as __version__

if TYPE_CHECKING:
    from . import backend, bpe, checkpoint, circuits, circuits_show, cuda_step, drafts  # noqa: F401
    from .checkpoint import CheckpointError as CheckpointError
    from .checkpoint import DownloadError as DownloadError
else:  # what the file has besides, the modules beside it, and those two errors
    from .gpt2_np import __getattr__ as __getattr__

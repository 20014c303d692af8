"""GPT-2 in NumPy: run it, read it, copy it."""
from .gpt2_np import *  # noqa: F403
from .gpt2_np import __version__ as __version__

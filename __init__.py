"""GPT-2 in NumPy: run it, read it, copy it."""
import os
import signal
import sys

PROGRAMS = ("gpt2-np", "gpt2-np-circuits", "gpt2-np-corpus")
run_as_program = (
    sys.orig_argv[1:3] in [["-m", __name__ + name] for name in ("", ".circuits", ".corpus")]
    or os.path.basename(*sys.argv[:1] or [""]).removesuffix(".exe") in PROGRAMS
)
if run_as_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback on Ctrl-C while NumPy loads

from . import backend, bpe, checkpoint
from .checkpoint import CheckpointError, CheckpointWarning, DownloadError, load, save
from .command_line import main
from .gpt2_np import (
    SIZES,
    Config,
    Error,
    KVCache,
    Model,
    Sampling,
    TapFunction,
    Tokens,
    __version__,
    forward,
    parameter_shapes,
    sample,
)
from .inference.architectures import DECODERS, Decoder
from .inference.beams import Beam, beam_search, beam_search_batch
from .inference.costs import describe
from .inference.generation import (
    ContextWarning,
    Continuations,
    complete,
    generate,
    generate_batch,
    stream,
)
from .inference.options import BeamOptions, GenerationOptions
from .inference.scoring import score, score_batch

__all__ = [
    "DECODERS", "SIZES", "Beam", "BeamOptions", "CheckpointError", "CheckpointWarning", "Config",
    "ContextWarning", "Continuations", "Decoder", "DownloadError", "Error", "GenerationOptions",
    "KVCache", "Model", "Sampling", "TapFunction", "Tokens", "__version__", "backend",
    "beam_search", "beam_search_batch", "bpe", "checkpoint", "complete", "describe", "forward",
    "generate", "generate_batch", "load", "main", "parameter_shapes", "sample", "save", "score",
    "score_batch", "stream",
]  # fmt: skip

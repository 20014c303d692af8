"""GPT-2 checkpoints: from the official files to plain arrays, with NumPy and the standard library.

In both layouts, OpenAI's and Hugging Face's, weights lie on disk as the rows of the array in
memory. So `load` maps float32 weights at aligned addresses and copies nothing. Other types, other
addresses and scaled queries are converted once.
"""
from .cache import cache_folder
from .downloading import download
from .files import CheckpointError, CheckpointWarning
from .layouts import Checkpoint, open_checkpoint
from .loading import DTYPES, load, locate
from .official import SHAKESPEARE
from .saving import SAVED_DTYPES, check_new, save, write_tokenizer
from .sources import DownloadError, official_size, sources_of
from .tensors import Tensor
from .vocabulary import open_tokenizer, tokenizer_files

__all__ = ["DTYPES", "SAVED_DTYPES", "SHAKESPEARE", "Checkpoint", "CheckpointError",
           "CheckpointWarning", "DownloadError", "Tensor", "cache_folder", "check_new", "download",
           "load", "locate", "official_size", "open_checkpoint", "open_tokenizer", "save",
           "sources_of", "tokenizer_files", "write_tokenizer"]

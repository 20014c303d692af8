"""The tokenizer beside the weights, from the files that each layout has for it."""
from __future__ import annotations

from .. import bpe
from .files import CheckpointError, exists
from .layouts import HUGGING_FACE, Checkpoint, Layout

TOKENIZER_JSON = "tokenizer.json"  # merges and vocab in one: transformers 5 writes no other
SETTINGS = "tokenizer_config.json"
ADDED = "added_tokens.json"  # transformers 3 and 4
SPECIAL = "special_tokens_map.json"  # the same


def tokenizer_files(layout: Layout) -> tuple[str, ...]:
    """Return the names of all files that `open_tokenizer` may read. A folder may have none."""
    more = (TOKENIZER_JSON, SETTINGS, ADDED, SPECIAL) if layout is HUGGING_FACE else ()
    return (layout.merges, layout.vocab, *more)


def open_tokenizer(checkpoint: Checkpoint) -> bpe.Tokenizer | None:
    """Return the tokenizer beside the weights, or None if there is none."""
    merges = checkpoint.folder / checkpoint.layout.merges
    vocab = checkpoint.folder / checkpoint.layout.vocab
    both = checkpoint.folder / TOKENIZER_JSON
    try:
        if exists(merges):
            tokenizer = bpe.Tokenizer.from_files(merges, vocab if exists(vocab) else None)
        elif checkpoint.layout is HUGGING_FACE and exists(both):
            merges = both
            tokenizer = bpe.Tokenizer.from_json(both)
        else:
            return None
    except (bpe.TokenizerError, OSError) as error:
        raise CheckpointError(f"{merges} is not a tokenizer of GPT-2: {error}") from error
    if tokenizer.n_vocab > checkpoint.config.n_vocab:
        raise CheckpointError(
            f"{merges} has {tokenizer.n_vocab} tokens, expected at most the "
            f"{checkpoint.config.n_vocab} of {checkpoint.layout.config}"
        )
    return tokenizer

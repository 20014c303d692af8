"""Prompts and answers, as text or token ids, checked before a pass is spent on them.

Tools compare activations position by position, so the prompts of one call must be of one length.
An answer is one token. Text gets <|endoftext|> put before it unless `bos=False`; ids are taken as
they are unless `bos=True`. Results say which it was in `bos`, beside the `tokens` [b, q].
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, Tokens, map_leaves, token_batch
from .short_reprs import Result


@dataclass(frozen=True, eq=False, repr=False)
class Prompts(Result):
    """Prompts of one length: ids [b, q]. `bos` is True if each begins with <|endoftext|>."""

    tokens: np.ndarray
    bos: bool


PromptsLike = Prompts | str | Sequence[str] | Tokens | Sequence[Tokens]  # what `prompts` reads
Answers = str | int | np.integer | Sequence[str | int] | np.ndarray  # one, or one a prompt


def prompts(model: Model, text_or_tokens: PromptsLike, bos: bool | None = None) -> Prompts:
    """Return a text, a list of texts, ids [q] or [b, q], or Prompts, as Prompts.

    `bos` puts <|endoftext|> first: by default before text and not before ids. Raises Error if
    the prompts differ in length, because their activations would not fit into one array.
    """
    if isinstance(text_or_tokens, Prompts):
        if bos not in (None, text_or_tokens.bos):
            raise Error(f"bos={bos} was given with Prompts that were made with "
                        f"bos={text_or_tokens.bos}: leave it out")
        return text_or_tokens
    texts = [text_or_tokens] if isinstance(text_or_tokens, str) else text_or_tokens
    if isinstance(texts, list | tuple) and texts and all(isinstance(t, str) for t in texts):
        bos = True if bos is None else bos
        tokens = encoded_texts(model, texts, bos)
    else:
        check_one_length(text_or_tokens)
        tokens = checked_ids(model, text_or_tokens)
    end = end_of_text(model, needed=bool(bos))
    if bos:
        tokens = np.insert(tokens, 0, end, axis=1)
    if tokens.shape[1] > model.config.n_ctx:
        raise Error(f"{tokens.shape[1]} positions do not fit: n_ctx is {model.config.n_ctx}")
    return Prompts(tokens, end is not None and bool((tokens[:, 0] == end).all()))


def encoded(model, text):
    """Return the ids of a text without those that its tokenizer puts before every text."""
    tokenizer = tokenizer_of(model)
    return tokenizer.encode(text, allowed_special="all")[len(tokenizer.start_ids) :]


def encoded_texts(model, texts, bos):
    rows = [encoded(model, text) for text in texts]
    check_one_length(rows)
    if not rows[0] and not bos:
        raise Error("the text is empty: give a text, or leave bos on")
    return np.array(rows, int).reshape(len(rows), len(rows[0]))


def check_one_length(rows):
    if not isinstance(rows, list | tuple) or not all(hasattr(row, "__len__") for row in rows):
        return
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise Error(f"the prompts have {', '.join(map(str, lengths))} tokens, but positions are "
                    "compared: reword them to one length, or run each length alone")


def checked_ids(model, tokens):
    """Return ids [b, q]. Rows that pad the embedding are no tokens."""
    return token_batch(tokens, replace(model.config, n_vocab=model.n_vocab))


def tokenizer_of(model):
    if model.tokenizer is None:
        raise Error("this model has no vocabulary files, so it cannot read text: give token ids")
    return model.tokenizer


def end_of_text(model, needed=False):
    """Return the id of <|endoftext|>, or None if the model has no such token."""
    end = getattr(model.tokenizer, "end_of_text", None)
    if needed and end is None:
        raise Error("bos=True needs a vocabulary that has <|endoftext|>: use bos=False")
    return end


def token_id(model: Model, text_or_id: str | int | np.integer) -> int:
    """Return the id of a text that is exactly one token, or an id, checked.

    Raises Error for a text of several tokens and for an id outside the vocabulary.
    """
    if not isinstance(text_or_id, str):
        return int(checked_ids(model, [[text_or_id]])[0, 0])
    tokenizer, ids = tokenizer_of(model), encoded(model, text_or_id)
    if len(ids) != 1:
        pieces = [tokenizer.decode([i]) for i in ids]
        hint = "" if text_or_id[:1] == " " else "; words inside a text begin with a space"
        raise Error(f"{shown(text_or_id)} is {len(ids)} tokens {shown(pieces)}: "
                    f"it must be one{hint}")
    return ids[0]


def answer_ids(model, answers):
    """Return ids [1 or b] from a text, an id, or a sequence of either."""
    several = isinstance(answers, list | tuple | np.ndarray)
    return np.array([token_id(model, answer) for answer in (answers if several else [answers])])


def one_each(values, n):
    """Return values [1 or n, ...] as one for each of n prompts."""
    if len(values) not in (1, n):
        raise Error(f"{len(values)} answers were given for {n} prompts: give one, or one for each")
    return np.broadcast_to(values, (n, *values.shape[1:]))


def labels_of(model: Model | Result, tokens: Tokens) -> list[str]:
    """Return the text of each token, for tables and plots; its id if the vocabulary has none.

    In place of the model a result will do that has its `tokenizer`.
    """
    tokenizer: Any = getattr(model, "tokenizer", None)
    n = getattr(model, "n_vocab", getattr(tokenizer, "n_vocab", 0))
    return [tokenizer.decode([i]) if tokenizer and i < n else str(i) for i in map(int, tokens)]


def check_same_length(given, other, kind, any_number=False):
    """Raise Error unless the other prompts are as long, and one for all or one for each."""
    (n, length), (n_other, other_length) = given.tokens.shape, other.tokens.shape
    if length != other_length:
        raise Error(f"the prompts have {length} tokens and the {kind} prompts {other_length}: "
                    "positions are compared, so reword one until both have as many")
    if n_other not in (1, n) and not any_number:
        raise Error(f"{n_other} {kind} prompts for {n} prompts: give one for each, or one for all")


def shared_positions(a, b):
    """Count the first positions that hold the same token in every pair of prompts."""
    differ = (a.tokens != b.tokens).any(axis=0)
    return int(differ.argmax()) if differ.any() else a.tokens.shape[1]


def position_slice(position, tokens):
    """Return a slice of one position, or of all if it is None."""
    if position is None:
        return slice(None)
    n = tokens.shape[1]
    check_index("position", position, n, negative=True)
    return slice(position % n, position % n + 1)


def check_index(name, index, n, negative=False):
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise Error(f"{name} is {shown(index)}: it must be an integer")
    if not (-n if negative else 0) <= index < n:
        raise Error(f"{name} {index} does not exist: there are {n}, counted from 0")


def check_count(name, count, most=None):
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise Error(f"{name} is {shown(count)}: it must be an integer of at least 1")
    if most and count > most:
        raise Error(f"{name} is {count}: a task makes at most {most} prompts")


def check_numbers(things, array, model=None):
    """Raise Error for NaN or infinity, with the first parameter of the model that holds it."""
    if np.isfinite(array).all():
        return
    name = first_undefined(model.params) if model else None
    cause = f"{name} does" if name else "weights do or are far too large"
    raise Error(f"{things} hold NaN or infinity, as the model's {cause}: download or copy it again")


def first_undefined(params):
    """Return the name of the first parameter with NaN or infinity, or None."""
    found = []

    def look(path, leaf):
        if not found and not np.isfinite(to_host(leaf)).all():
            found.append(".".join(map(str, path)))

    map_leaves(look, params)
    return found[0] if found else None

"""Prompts and answers, as text or token ids, checked before a pass is spent on them.

Tools compare activations position by position, so an array holds prompts of one length. Tools that
take prompts of several lengths make a group of each. An answer is one token. Text gets
<|endoftext|> put before it unless `bos=False`; ids are taken as they are unless `bos=True`. Results
say which it was in `bos`, beside the `tokens` [b, q].
"""
from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from ..backend import to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, Tokens, map_leaves, token_batch
from ..inference.options import PromptWarning as PromptWarning
from ..inference.options import check_count as check_count
from ..inference.options import start_of_text
from ..inference.scoring import Window, text_windows
from .short_reprs import Result


@dataclass(frozen=True, eq=False, repr=False)
class Prompts(Result):
    """Prompts of one length: ids [b, q]. `bos` is True if each begins with <|endoftext|>."""

    tokens: np.ndarray
    bos: bool


OnePrompt = str | Tokens
PromptsLike = Prompts | OnePrompt | Sequence[str] | Sequence[Tokens]  # what `prompts` reads
Answers = str | int | np.integer | Sequence[str | int] | np.ndarray  # one, or one a prompt
AnswerSets = Answers | Set[str | int] | Sequence[Collection[str | int]]  # or a set a prompt


def prompts(model: Model, text_or_tokens: PromptsLike, bos: bool | None = None) -> Prompts:
    """Return a text, a list of texts, ids [q] or [b, q], or Prompts, as Prompts.

    `bos` puts <|endoftext|> first: by default before text and not before ids. Raises Error if
    the prompts differ in length, because their activations would not fit into one array.
    """
    groups = by_length(model, text_or_tokens, bos)
    if len(groups) > 1:
        lengths = sorted(group.prompts.tokens.shape[1] for group in groups)
        raise Error(f"the prompts have {', '.join(map(str, lengths))} tokens, but positions are "
                    "compared: reword them to one length, or run each length alone")
    return groups[0].prompts


class Group(NamedTuple):
    """Prompts of one length, and their rows [b] in the list that was given."""

    rows: np.ndarray
    prompts: Prompts


def by_length(
    model: Model, text_or_tokens: PromptsLike, bos: bool | None = None, *, long: bool = False
) -> list[Group]:
    """Return prompts in groups of one length, in the order in which the lengths come first.

    `long` allows more tokens than n_ctx, for tools that read them in windows.
    """
    if not hasattr(model, "tokenizer"):
        raise Error(f"the model is {shown(model)}: give the model first, then the prompts")
    if isinstance(text_or_tokens, Prompts):
        if bos not in (None, text_or_tokens.bos):
            raise Error(f"bos={bos} was given with Prompts that were made with "
                        f"bos={text_or_tokens.bos}: leave it out")
        tokens = text_or_tokens.tokens
        check_length(model, tokens, long)
        return [Group(np.arange(len(tokens)), text_or_tokens)]
    rows, is_text = prompt_rows(model, text_or_tokens)
    bos = is_text if bos is None else bos
    if not bos and not all(map(len, rows)):
        raise Error("the text is empty: give a text, or leave bos on")
    start = start_of_text(model, bos, rows)
    rows = [[*start, *row] for row in rows]
    lengths, groups = np.array([len(row) for row in rows]), []
    for length in dict.fromkeys(lengths.tolist()):
        own = np.flatnonzero(lengths == length)
        tokens = np.array([rows[i] for i in own], int).reshape(len(own), length)
        check_length(model, tokens, long)
        groups.append(Group(own, Prompts(tokens, begins_with_end(model, tokens))))
    return groups


def prompt_rows(model, given):
    """Return the ids of every prompt, without <|endoftext|>, and True if they were text."""
    rows = [given] if isinstance(given, str) else given
    if isinstance(rows, list | tuple) and rows:
        kinds = {"texts" if isinstance(row, str) else "lists of ids" if is_several(row) else "ids"
                 for row in rows}
        if len(kinds) > 1:
            raise Error(f"{shown(given)} mixes {' and '.join(sorted(kinds))}: give a list of "
                        "texts, or of lists of ids")
        if kinds == {"texts"}:
            return [encoded(model, text) for text in rows], True
        if kinds == {"lists of ids"}:
            return [checked_ids(model, [row])[0] for row in rows], False
    if not hasattr(given, "dtype") and not isinstance(given, list | tuple):
        raise Error(f"the prompt is {shown(given)}: give a text, a list of texts, or token ids")
    return checked_ids(model, given), False


def is_several(value):
    return bool(getattr(value, "ndim", False)) or (
        isinstance(value, Sequence | Set) and not isinstance(value, str | bytes))


def check_length(model, tokens, long):
    n_ctx = model.config.n_ctx
    if tokens.shape[1] > n_ctx and not long:
        raise Error(f"{tokens.shape[1]} positions do not fit: n_ctx is {n_ctx}. Give fewer tokens; "
                    "measure, heads, lens and max_activating read longer texts in windows")


class Batched(Result):
    """A result of several prompts. `prompt_axes` has the axis of the prompts of each array."""

    prompt_axes: ClassVar[dict[str, int]]

    def of_prompt(self: Batch, row: int) -> Batch:
        """Return the result of one prompt, an array in which that axis has length 1."""
        own: Any = self
        arrays = {name: getattr(self, name) for name in self.prompt_axes}
        return replace(own, **{
            name: array.of_prompt(row) if isinstance(array, Batched)
            else array.take([row], self.prompt_axes[name])
            for name, array in arrays.items() if array is not None})


Batch = TypeVar("Batch", bound=Batched)


def for_each_length(model, text_or_tokens, bos, work, long=False):
    """Return work(prompts, rows, n), a Batched of the prompts `rows` of n.

    For prompts of several lengths it is a list of single prompts' results, in the order given.
    """
    groups, found = by_length(model, text_or_tokens, bos, long=long), {}
    n = sum(len(rows) for rows, _ in groups)
    for rows, given in groups:
        result = work(given, rows, n)
        if len(groups) == 1:
            return result
        for i, row in enumerate(rows.tolist()):
            own = result.of_prompt(i)
            found[row] = replace(own, bos=begins_with_end(model, own.tokens))
    return [found[row] for row in range(n)]


def pairs_by_length(
    model: Model, base: PromptsLike, source: PromptsLike, bos: bool | None = None
) -> Iterator[tuple[np.ndarray, Prompts, Prompts]]:
    """Yield rows [b], base and source of each length, as of `by_length`.

    Raises Error unless both of a pair are of one length. One source for all will do if all prompts
    are of one length.
    """
    ours, theirs = by_length(model, base, bos), by_length(model, source, bos)
    if len(ours) == len(theirs) == 1:
        check_same_length(ours[0].prompts, theirs[0].prompts, "source")
    else:
        lengths, others = row_lengths(ours), row_lengths(theirs)
        if len(lengths) != len(others):
            raise Error(f"{len(others)} source prompts for {len(lengths)} prompts of several "
                        "lengths: give one for each")
        if (lengths != others).any():
            i = int((lengths != others).argmax())
            raise Error(f"prompt {i} has {lengths[i]} tokens and its source {others[i]}: positions "
                        "are compared, so reword one until both have as many")
    for own, other in zip(ours, theirs, strict=True):
        yield own.rows, own.prompts, other.prompts


def row_lengths(groups):
    """Return the length of every prompt, [row], in the order given."""
    lengths = [np.full(len(group.rows), group.prompts.tokens.shape[1]) for group in groups]
    return in_order([group.rows for group in groups], lengths)


def in_order(rows: Sequence[np.ndarray], arrays: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
    """Return the arrays [..., b, ...] of groups as one, its prompts in the order given."""
    return np.concatenate(arrays, axis).take(np.argsort(np.concatenate(rows)), axis)


def windows_of(lengths: Sequence[int], n_ctx: int) -> list[Window]:
    """Return windows, overlapping by half, that count every position of texts once."""
    # text_windows leaves out the last token, which predicts nothing: here it has its turn.
    return text_windows([range(n + 1) for n in lengths], n_ctx, max(1, n_ctx // 2))


def encoded(model, text):
    """Return the ids of a text without those that its tokenizer puts before every text."""
    tokenizer = tokenizer_of(model)
    return tokenizer.encode(text, allowed_special="all")[len(tokenizer.start_ids) :]


def checked_ids(model, tokens):
    """Return ids [b, q]. Rows that pad the embedding are no tokens."""
    return token_batch(tokens, replace(model.config, n_vocab=model.n_vocab))


def tokenizer_of(model):
    if model.tokenizer is None:
        raise Error("this model has no vocabulary files, so it cannot read text: give token ids")
    return model.tokenizer


def end_of_text(model):
    """Return the id of <|endoftext|>, or None if the model has no such token."""
    return getattr(model.tokenizer, "end_of_text", None)


def begins_with_end(model, tokens):
    end = end_of_text(model)
    return end is not None and bool((tokens[:, 0] == end).all())


def token_id(model: Model, text_or_id: str | int | np.integer) -> int:
    """Return the id of a text that is exactly one token, or an id, checked.

    Raises Error for a text of several tokens and for an id outside the vocabulary.
    """
    if not isinstance(text_or_id, str):
        if is_several(text_or_id):
            raise Error(f"{shown(text_or_id)} is a set of answers, expected one token: "
                        "logit_difference and log_probability take sets")
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
    several = is_several(answers) and not isinstance(answers, Set)
    if several and not len(answers):
        raise Error(f"the answers are {shown(answers)}: give one, or one for each prompt")
    return np.array([token_id(model, one) for one in (answers if several else [answers])], int)


def answer_sets(model, answers):
    """Return ids [1 or b, s] of a token, one a prompt or a set a prompt; -1 fills short sets."""
    if isinstance(answers, Set):
        answers = [answers]
    if not is_several(answers) or not any(map(is_several, answers)):
        return answer_ids(model, answers)[:, None]
    if not all(len(one) for one in answers if is_several(one)):
        raise Error(f"{shown(answers)} has an empty set of answers: give each at least one token")
    sets = [np.unique(answer_ids(model, [*one] if is_several(one) else one)) for one in answers]
    size = max(map(len, sets))
    return np.stack([np.pad(ids, (0, size - len(ids)), constant_values=-1) for ids in sets])


def one_each(values, n):
    """Return values [1 or n, ...] as one for each of n prompts."""
    if len(values) not in (1, n):
        raise Error(f"{len(values)} answers were given for {n} prompts: give one, or one for each")
    return np.broadcast_to(values, (n, *values.shape[1:]))


def labels_of(model: Model, tokens: Tokens | str) -> list[str]:
    """Return the text of each token, for tables and plots; its id if the vocabulary has none.

    Of a text it returns those of its tokens as tools see them, <|endoftext|> first.
    """
    if isinstance(tokens, str):
        tokens = prompts(model, tokens).tokens[0]
    if (not isinstance(tokens, list | tuple | np.ndarray)
            or not all(isinstance(i, int | np.integer) for i in tokens)):
        raise Error(f"labels_of takes a text or the ids of one prompt, not {shown(tokens)}: give a "
                    "list of ids, such as result.tokens[0]")
    return token_texts(model.tokenizer, tokens)


def token_texts(tokenizer, ids):
    n = getattr(tokenizer, "n_vocab", 0)
    return [tokenizer.decode([i]) if i < n else str(i) for i in map(int, ids)]


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
        hint = ", as np.flatnonzero makes of a mask" * isinstance(index, bool)
        raise Error(f"{name} is {shown(index)}: it must be an integer{hint}")
    if not (-n if negative else 0) <= index < n:
        raise Error(f"{name} {index} does not exist: there are {n}, counted from 0")


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

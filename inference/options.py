"""Types of the options of generation and scoring, and checks of the ids of a text and of counts."""
from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from ..bpe import shown
from ..gpt2_np import (
    Config,
    Error,
    Model,
    Sampling,
    TapFunction,
    Tokens,
    token_batch,
)

Stop = str | int | np.integer | Iterable[str | int]  # one or several: stop strings, token ids
if TYPE_CHECKING:
    Seed = (int | np.integer | Sequence[int] | np.ndarray | np.random.SeedSequence
            | np.random.BitGenerator | np.random.Generator)
else:
    Seed = Any  # numpy.random is not loaded before it is needed


class SamplingOptions(TypedDict, total=False):
    """Options of `sample`, all of them optional."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None


class GenerationOptions(SamplingOptions, total=False):
    """Options of `generate`, all of them optional."""

    stop: Stop
    seed: Seed | None
    draft: bool
    tap: TapFunction | None


class BeamOptions(TypedDict, total=False):
    """Options of `beam_search`, all of them optional."""

    n_beams: int
    n_results: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    no_repeat_ngram: int | None
    stop: Stop
    tap: TapFunction | None


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise Error(f"{name} is {shown(value)}: it must be an integer from {least} up")
    if most is not None and value > most:
        raise Error(f"{name} is {value}: it must be at most {most}")


def one_text(tokens: Tokens, config: Config) -> np.ndarray:
    """Check the token ids of one text and return them as int64 [position] on the host."""
    if isinstance(tokens, str):
        raise Error(f"tokens are the text {shown(tokens)}: give its ids, as "
                    "model.tokenizer.encode(text) does")
    ids = token_batch(tokens, config)
    if len(ids) > 1 or ids.size != len(tokens):
        raise Error(f"tokens have shape {ids.shape}, expected those of one text, [position]: "
                    "generate_batch and score_batch take several")
    return ids[0].astype(np.int64)  # smaller types cannot hold every id, uint64 turns to float


def text_list(name: str, texts: Any, config: Config) -> list[np.ndarray]:
    """Return `one_text` of each text of an iterable. Raises Error that says which is wrong."""
    try:
        given = list(iter(texts))
    except TypeError:
        raise Error(f"{name} are {shown(texts)}: give a list of them, each a list of token "
                    "ids") from None
    rows = []
    for number, tokens in enumerate(given):
        try:
            rows.append(one_text(tokens, config))
        except Error as error:
            which = f"{name}[{number}]: " if len(given) > 1 else ""
            raise Error(f"{which}{error}") from None
    return rows


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """Return options of `sample`, checked. Raises TypeError for others."""
    known = GenerationOptions.__optional_keys__
    for name in options.keys() - known:
        hint = "tap=circuits.as_tap(model, edits)" if name == "edits" else ", ".join(sorted(known))
        raise TypeError(f"there is no option {name!r}: give {hint}")
    return Sampling(**options)


class PromptWarning(UserWarning):
    """Prompts give numbers that look right, but are probably not meant as they were given."""


def start_of_text(model: Model, bos: bool, rows: Iterable[Any] = ()) -> list[int]:
    """Return the id of <|endoftext|>, with which a text begins if `bos`, in a list.

    Warns if one of the rows of ids begins with it already.
    """
    end: int | None = getattr(model.tokenizer, "end_of_text", None)
    if not bos:
        return []
    if end is None:
        raise Error("bos=True needs a vocabulary that has <|endoftext|>: use bos=False")
    if any(np.array_equal(row[:1], [end]) for row in rows):
        warn("the prompt begins with <|endoftext|> and gets another before it: leave it out, or "
             "give bos=False", PromptWarning)
    return [end]


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line outside this package that led here."""
    package, level = f"{__name__.removesuffix('.inference.options')}.", 1
    frame: FrameType | None = inspect.currentframe()
    while frame and f"{frame.f_globals.get('__name__')}.".startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)

"""Types of the options of generation and scoring, and the check of the token ids of one text."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    is_number,
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


def check_integer(name: str, value: Any, least: int) -> None:
    if not is_number(value) or value % 1 or value < least:
        raise Error(f"{name} is {shown(value)}: it must be an integer from {least} up")


def one_text(tokens: Tokens, config: Config) -> np.ndarray:
    """Check the token ids of one text and return them as an array [position] on the host."""
    if isinstance(tokens, str):
        raise Error(f"tokens are the text {shown(tokens)}: give its ids, as "
                    "model.tokenizer.encode(text) does")
    ids = token_batch(tokens, config)
    if len(ids) > 1 or ids.size != len(tokens):
        raise Error(f"tokens have shape {ids.shape}, expected those of one text, [position]: "
                    "generate_batch and score_batch take several")
    return ids[0]


def text_list(name: str, texts: Any) -> list[Tokens]:
    """Return the texts, given in any iterable. Raises Error for what is none."""
    try:
        return list(iter(texts))
    except TypeError:
        raise Error(f"{name} are {shown(texts)}: give a list of them, each a list of token "
                    "ids") from None


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """Return options of `sample`, checked. Raises TypeError for others."""
    known = GenerationOptions.__optional_keys__
    for name in options.keys() - known:
        hint = "tap=circuits.as_tap(model, edits)" if name == "edits" else ", ".join(sorted(known))
        raise TypeError(f"there is no option {name!r}: give {hint}")
    return Sampling(**options)


def start_of_text(model: Model, bos: bool) -> list[int]:
    """Return the id of <|endoftext|>, with which a text begins if `bos`, in a list."""
    end: int | None = getattr(model.tokenizer, "end_of_text", None)
    if not bos:
        return []
    if end is None:
        raise Error("bos=True needs a vocabulary that has <|endoftext|>: leave it out")
    return [end]

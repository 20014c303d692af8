"""The options that the functions of generation share, written once."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from ..gpt2_np import SelectiveTap, TapFunction

Stop = str | int | np.integer | Iterable[str | int]  # one or several: stop strings, token ids
if TYPE_CHECKING:
    Seed = (int | np.integer | Sequence[int] | np.ndarray | np.random.SeedSequence
            | np.random.BitGenerator | np.random.Generator)
else:
    Seed = Any  # numpy.random is not loaded before it is needed


class SamplingOptions(TypedDict, total=False):
    """Those of `sample`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None


class GenerationOptions(SamplingOptions, total=False):
    """Those of `generate`."""

    stop: Stop
    seed: Seed | None
    draft: bool
    tap: TapFunction | SelectiveTap | None

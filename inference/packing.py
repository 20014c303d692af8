"""Several texts in one row of tokens, one behind another, so that nothing is padded."""
from __future__ import annotations

from typing import Any

import numpy as np

from ..gpt2_np import Cache, KVCache, Tokens, namespace


class Packed(Cache):
    """The cache of a pass over one row that holds several texts of the given lengths.

    Positions start again at 0 with each text, and no text sees another. A `cache` with one row
    for each text is filled with their keys and values.
    """

    def __init__(self, lengths: Tokens, cache: KVCache | None = None):
        self.lengths, self.cache = np.asarray(lengths), cache
        self.rows = np.repeat(np.arange(len(lengths)), lengths)
        self.positions = np.concatenate([np.arange(length) for length in lengths])

    def reserve(self, shape: tuple[int, int]) -> np.ndarray:
        return self.positions[None]

    def append(self, layer: int, keys: Any, values: Any) -> tuple[Any, Any]:
        if self.cache:
            xp = namespace(keys)
            rows, positions = xp.asarray(self.rows), xp.asarray(self.positions)
            buffers = self.cache.buffers(layer, keys)
            for stored, array in zip(buffers, (keys, values), strict=True):
                stored[rows, :, positions] = array[0]
        return keys, values

    def advance(self, n_new: int) -> None:
        if self.cache:
            self.cache.lengths[:] = self.lengths

"""Taps that are told, before each pass, which positions of which texts it holds.

A pass of cached generation holds one position of every text that still grows. The reference's tap
sees only the array. One that has to know where in the texts it is has a method `begin`.
"""
from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..bpe import shown
from ..gpt2_np import Error, SelectiveTap, Tap


class PlacedTap(SelectiveTap, Protocol):
    """A tap that is told its place."""

    def begin(self, positions: np.ndarray, rows: np.ndarray, lengths: np.ndarray, n_rows: int,
              ) -> None:
        """Take the place of the next pass.

        Its positions [b, q], the texts [b] of `n_rows` that they belong to, and the lengths [b] of
        those texts as they were given: positions from a length on are generated, or padding.
        """


def checked_tap(tap: Any) -> Tap:
    """Return a caller's tap, or none. Raises Error if it cannot be called."""
    if tap is not None and not callable(tap):
        raise Error(f"tap is {shown(tap)}: give a function (name, array), or "
                    "circuits.as_tap(model, edits)")
    return Tap(tap)


def announce(tap: Tap, positions: Any, rows: Any, lengths: Any, n_rows: int) -> None:
    """Tell the caller's tap, if it wants to know, the place of the next pass."""
    begin = getattr(tap.function, "begin", None)
    if begin is not None:
        positions, rows, lengths = map(np.asarray, (positions, rows, lengths))
        begin(np.broadcast_to(positions, (len(rows), positions.shape[-1])), rows, lengths, n_rows)

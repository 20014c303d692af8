"""Text from token ids as they come: pieces of whole characters, and strings that end a text."""
from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from ..gpt2_np import Error


class TextDecoder(Protocol):
    """A decoder of token ids that holds back the bytes of a character until it is whole."""

    def push(self, token: int) -> str:
        """Return the characters that this token completes."""

    def flush(self) -> str:
        """Return U+FFFD if the last bytes are no whole character, else nothing."""


def stop_list(stop: Any) -> list[str | int]:
    """Return one stop or several as a list. Raises Error unless each is a string or a token id."""
    one = isinstance(stop, str | bytes) or not isinstance(stop, Iterable)
    stop = [stop] if one else list(stop)
    for item in stop:
        if item == "" or not isinstance(item, str | int | np.integer):
            raise Error(f"stop holds {item!r}: give strings that are not empty, or token ids")
    return stop


def stop_strings(stop: Iterable[str | int]) -> list[str]:
    return [item for item in stop if isinstance(item, str)]


class StopWatcher:
    """Tells when a growing text has come to a stop string or a stop token."""

    def __init__(self, stop: Sequence[str | int], tokenizer: Any):
        self.strings = stop_strings(stop)
        self.ids = {int(item) for item in stop if not isinstance(item, str)}
        if self.strings and tokenizer is None:
            raise Error("stop strings need a tokenizer and this model has none: give token ids")
        self.tokenizer = tokenizer
        self.decoder: TextDecoder | None = tokenizer.decoder() if self.strings else None
        self.tail = ""  # the last characters, with which a stop string may begin

    def ends_before(self, token: int) -> bool:
        return token in self.ids

    def ends_after(self, token: int) -> bool:
        if self.decoder is None:
            return False
        text = self.tail + self.decoder.push(token)
        longest = max(map(len, self.strings))
        self.tail = text[max(0, len(text) - longest + 1) :]
        return any(string in text for string in self.strings)

    def completed_by(self, tokens: Sequence[int]) -> bool:
        """Return True if the last of these tokens completes a stop string.

        Nothing is remembered between calls, so texts may branch.
        """
        longest = 4 * max(map(len, self.strings), default=0)  # bytes: a token has at least one
        text = self.tokenizer.decode(tokens[-longest:]) if longest else ""
        return any(string in text for string in self.strings)


def text_pieces(
    tokens: Generator[int, None, str], decoder: TextDecoder, stops: Sequence[str]
) -> Generator[str, None, str]:
    """Yield the text of `tokens` in pieces of whole characters, and return the reason it ended.

    The text ends before the first string in `stops`. Characters that may turn out to be the
    beginning of one are held back.
    """
    held, reason = "", None
    while reason is None:
        try:
            held += decoder.push(next(tokens))
        except StopIteration as end:
            reason, held = end.value, held + decoder.flush()
        text = cut_at_stop(held, stops)
        if len(text) < len(held):
            yield text
            return "stop"
        n_safe = len(held) if reason else len(held) - overlap(held, stops)
        if n_safe:
            yield held[:n_safe]
            held = held[n_safe:]
    return reason


def cut_at_stop(text: str, stops: Iterable[str]) -> str:
    """Return the text before the first of the stop strings in it."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def overlap(text: str, stops: Sequence[str]) -> int:
    r"""Return how many last characters may begin a stop string: "so\n" and "\n\n" give 1."""
    return max(
        (n for stop in stops for n in range(1, min(len(stop), len(text) + 1))
         if text.endswith(stop[:n])),
        default=0,
    )

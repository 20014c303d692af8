"""From input files to documents: JSON lines, plain text and Parquet, cut into shards.

A file is cut at byte offsets (Parquet: at row groups), which needs neither an index nor memory. A
line belongs to the span in which it begins.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Document(NamedTuple):
    """A text and its id. Without a text, `skipped` is the reason: it is counted and listed."""

    id: str | int
    text: str | None
    skipped: str | None = None


class Span(NamedTuple):
    """A part of a file: bytes [start, end) of its text once unpacked, or row groups of Parquet."""

    path: str
    start: int
    end: int


class Shard(NamedTuple):
    """The unit of work and of the output: what one worker reads, and one file of results."""

    number: int
    spans: tuple[Span, ...]
    n_bytes: int  # of the inputs as they lie on the disk, for the bar


@dataclass(frozen=True)
class Inputs:
    """The input files, and how documents are found in them."""

    paths: tuple[str, ...]
    field: str = "text"
    id: str | None = None  # the field of ids; without one they are "path:offset"
    documents: str = "lines"  # of plain text: "lines" or "files"
    max_bytes: int = 2**24  # longer documents are skipped
    shard_bytes: int | None = None

    def shards(self) -> Iterator[Shard]:
        """Yield the shards in the order of the input, as they become known."""
        raise NotImplementedError

    def n_bytes(self) -> int:
        """Return the bytes of all files on the disk."""
        raise NotImplementedError

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return path, size, time and hash of the first bytes of each file."""
        raise NotImplementedError

    def read(self, shard: Shard) -> Iterator[Document]:
        """Yield the documents of a shard in their order."""
        raise NotImplementedError

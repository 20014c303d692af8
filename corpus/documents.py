"""The inputs of a run: files, checked before anything starts, and cut into shards.

A shard is some spans of files. Their documents are read by formats.py and parquet_files.py.
"""
from __future__ import annotations

import copy
import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..bpe import shown
from ..gpt2_np import Error
from ..inference.options import check_count
from .formats import (
    BOM,
    PIECE,
    Document,
    Piece,
    Span,
    Unpacked,
    file_document,
    is_gzip,
    line_documents,
    reading,
)
from .parquet_files import check_columns, parquet_documents, parquet_pieces

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".text": "text",
            ".parquet": "parquet"}
INPUT_FORMATS = sorted(set(SUFFIXES.values()))
# About as many, unless shard_bytes is given: files about as long as a shard can give twice as many.
MOST_SHARDS = 10_000
LEAST_SPAN = 256  # bytes that a span counts for, so that a shard does not get a million
MOST_PRINTS = 1000  # entries of a fingerprint
HEAD = 2**16  # bytes of each file in its fingerprint


class Shard(NamedTuple):
    """The unit of work and of the output: what one worker reads, and one file of results."""

    number: int
    spans: tuple[Span, ...]
    n_bytes: int  # of the inputs as they lie on the disk, for the bar


def checked_name(path: Any) -> str:
    try:
        name = os.fspath(path)
        name.encode()
        if "\0" not in name:
            return name
    except (TypeError, AttributeError, UnicodeEncodeError):  # not a path, bytes, not UTF-8
        pass
    raise Error(f"{shown(path)} cannot be the name of an input: give a path in UTF-8")


def file_stat(path: str) -> os.stat_result:
    with reading(path):
        return os.stat(path)


def read_head(path: str) -> bytes:
    with reading(path), open(path, "rb") as file:
        return file.read(HEAD)


def fingerprint(paths: Sequence[str]) -> dict[str, Any]:
    entries = []
    for path in paths:
        about = file_stat(path)
        entries.append({"path": path, "size": about.st_size, "mtime_ns": about.st_mtime_ns,
                        "sha256": hashlib.sha256(read_head(path)).hexdigest()})
    return entries[0] if len(paths) == 1 else {
        "path": f"{paths[0]} to {paths[-1]}",
        "sha256": hashlib.sha256(repr(entries).encode()).hexdigest(),
    }


@dataclass
class Inputs:
    """The input files, and how documents are found in them.

    A file's format is known by its suffix, or is `input_format`: "jsonl", "text" or "parquet".
    Raises Error if a file is missing, cannot be read, is given twice or has another format, or if
    a Parquet file lacks a column. `max_bytes` limits a line (a whole record of JSON), a file that
    is one document, or a cell of Parquet. A file must not change while a run reads it: growing is
    not noticed here, but by a comparison of fingerprints.
    """

    paths: tuple[str, ...]
    field: str = "text"
    id: str | None = None  # the field of ids; without one they are "path:offset"
    documents: str = "lines"  # of plain text: "lines" or "files"
    input_format: str | None = None
    max_bytes: int = 2**24  # longer documents are skipped
    shard_bytes: int | None = None  # by default `least_shard_bytes`, or more for large inputs
    least_shard_bytes: int = 2**18

    def __post_init__(self) -> None:
        paths = [self.paths] if isinstance(self.paths, str | os.PathLike) else self.paths
        self.paths = tuple(map(checked_name, paths))
        if self.input_format not in (None, *INPUT_FORMATS):
            raise Error(f"input_format is {shown(self.input_format)}, expected one of "
                        f"{', '.join(INPUT_FORMATS)}")
        if self.documents not in ("lines", "files"):
            raise Error(f"documents is {shown(self.documents)}, expected lines or files")
        check_count("max_bytes", self.max_bytes, most=2**40)
        if self.shard_bytes is not None:
            check_count("shard_bytes", self.shard_bytes, most=2**40)
        if not self.paths:
            raise Error("there are no input files: name at least one")
        files = np.empty((len(self.paths), 2), np.uint64)  # a dict would be large
        for row, path in zip(files, self.paths, strict=True):
            about = self.check(path)
            row[:] = about.st_dev, about.st_ino % 2**64
        order = np.lexsort(files.T)
        for first in np.flatnonzero((files[order[1:]] == files[order[:-1]]).all(axis=1)):
            one, other = (self.paths[i] for i in sorted(order[first:first + 2]))
            raise Error(f"{one} and {other} are the same file: name it once")

    def check(self, path: str) -> os.stat_result:
        """Raise Error unless a path is a readable file whose format is known and fits."""
        about = file_stat(path)
        if stat.S_ISDIR(about.st_mode):
            raise Error(f"{path} is a folder: name the files in it")
        if not stat.S_ISREG(about.st_mode):
            raise Error(f"{path} is not a regular file but a pipe or a device: write its content "
                        "to a file first")
        if not os.access(path, os.R_OK):
            raise Error(f"{path} cannot be read: permission denied")
        kind = self.format(path)
        if kind == "parquet":
            check_columns(path, self.field, self.id)
        elif kind == "text" and self.id is not None:
            raise Error(f"{path} is plain text, which has no field {self.id!r}: leave out id")
        if kind != "text" and self.documents == "files":
            raise Error(f"{path} is {kind}, but only a file of plain text can be one document: "
                        "leave out documents=files")
        if is_gzip(path) and about.st_size and read_head(path)[:2] != b"\x1f\x8b":
            raise Error(f"{path} is not a gzip file, though its name says so: rename it")
        return about

    def format(self, path: str) -> str:
        """Return "jsonl", "text" or "parquet". Raises Error if name and option do not agree."""
        name = path.lower().removesuffix(".gz")
        by_name = SUFFIXES.get(os.path.splitext(name)[1])
        kind = self.input_format or by_name
        if kind is None:
            raise Error(f"{path} has none of the suffixes {', '.join(SUFFIXES)} (.gz may follow): "
                        "give input_format, which is jsonl, text or parquet")
        if by_name == "parquet" != kind:
            raise Error(f"{path} is Parquet by its name, but input_format is {kind}: leave it out")
        if kind == "parquet" and is_gzip(path):
            raise Error(f"{path} is Parquet in gzip: unpack it first")
        return kind

    def shards(self) -> Iterator[Shard]:
        """Yield the shards in the order of the input, as they become known.

        Only gzip files have to be unpacked for it. The text of one that is damaged ends where it
        cannot be unpacked; a line that is cut there is left out, unless it is over the limit. All
        other documents are in some shard. Raises Error at the very end if a file was damaged: the
        run is not whole.
        """
        left = self.n_bytes()
        shard_bytes = self.shard_bytes or max(self.least_shard_bytes, -(-left // MOST_SHARDS))
        damage: dict[str, str] = {}
        number = size = n_bytes = 0
        spans: list[Span] = []
        for piece in self.pieces(shard_bytes, damage):
            counted = max(piece.size, LEAST_SPAN)
            if spans and size + counted > shard_bytes:
                yield Shard(number, tuple(spans), n_bytes)
                left -= n_bytes
                number, size, n_bytes, spans = number + 1, 0, 0, []
            spans.append(piece.span)
            size += counted
            n_bytes += piece.n_bytes
        if spans:
            yield Shard(number, tuple(spans), left)  # with the bytes of files that have no text
        if damage:
            (path, sentence), *others = damage.items()
            more = f"; damaged too: {', '.join(other for other, _ in others[:3])}" if others else ""
            more += f" and {len(others) - 3} more" if len(others) > 3 else ""
            raise Error(f"{path} {sentence}{more}. Fetch what is damaged again and give another "
                        "output folder")

    def pieces(self, shard_bytes: int, damage: dict[str, str]) -> Iterator[Piece]:
        for path in self.paths:
            with reading(path):
                if self.format(path) == "parquet":
                    yield from parquet_pieces(path, shard_bytes, self.field, self.id)
                elif is_gzip(path):
                    yield from self.gzip_pieces(path, shard_bytes, damage)
                else:
                    size = file_stat(path).st_size
                    step = size or 1 if self.documents == "files" else shard_bytes
                    for start in range(0, size or self.documents == "files", step):
                        end = min(start + step, size)
                        yield Piece(Span(path, start, end), end - start, end - start)

    def gzip_pieces(self, path: str, shard_bytes: int, damage: dict[str, str]) -> Iterator[Piece]:
        """Unpack a file and yield its pieces; add a sentence to `damage` if it is damaged."""
        is_one = self.documents == "files"
        most = self.max_bytes + len(BOM) + 1 if is_one else float("inf")
        start = end = read = 0
        with Unpacked(io.FileIO(path)) as raw:
            while end < most and (data := raw.read(PIECE)):
                end += len(data)
                while end - start > shard_bytes and not is_one:
                    now = raw.packed.tell()
                    yield Piece(Span(path, start, start + shard_bytes), shard_bytes, now - read)
                    start, read = start + shard_bytes, now
            if raw.damage is not None:
                rest = "it is left out" if is_one else "whole lines before were read, no others"
                damage[path] = f"is damaged after {end:,} bytes of text ({raw.damage}): {rest}"
            if raw.damage is None if is_one else end > start:
                size = file_stat(path).st_size
                yield Piece(Span(path, start, int(min(end, most))), end - start, size - read)

    def n_shards(self) -> int | None:
        """Return the number of shards, or None if only reading the files can tell.

        Files in gzip would have to be unpacked, and the row groups of Parquet to be read twice.
        """
        if any(is_gzip(path) or self.format(path) == "parquet" for path in self.paths):
            return None
        return sum(1 for _ in self.shards())

    def n_bytes(self) -> int:
        """Return the bytes of all files on the disk."""
        return sum(file_stat(path).st_size for path in self.paths)

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return path, size, time and hash of the first bytes of each file.

        Of more than a thousand files, an entry is of several: from the first path to the last one,
        and a hash of the entries that each would have.
        """
        step = -(-len(self.paths) // MOST_PRINTS)
        return [fingerprint(self.paths[start:start + step])
                for start in range(0, len(self.paths), step)]

    def for_worker(self) -> Inputs:
        """Return inputs that can only `read`, and that hold no list of perhaps a million paths."""
        inputs = copy.copy(self)
        inputs.paths = ()
        return inputs

    def read(self, shard: Shard) -> Iterator[Document]:
        """Yield the documents of a shard in their order.

        Raises Error if a file cannot be read, or ends earlier than when it was cut into shards.
        """
        for span in shard.spans:
            kind = self.format(span.path)
            with reading(span.path):
                if self.documents == "files":
                    yield file_document(span, self.max_bytes)
                elif kind == "parquet":
                    yield from parquet_documents(span, self.field, self.id, self.max_bytes)
                else:
                    is_json = kind == "jsonl"
                    yield from line_documents(span, is_json, self.field, self.id, self.max_bytes)

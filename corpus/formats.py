"""From a span of a file to its documents: JSON lines, plain text, and gzip of both.

A file is cut at byte offsets, which needs neither an index nor memory. A line belongs to the span
in which its first byte lies, so that any cut gives the same documents. A span of a gzip file is one
of its unpacked text. parquet_files.py reads the rows of Parquet.
"""
from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import threading
import weakref
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..gpt2_np import Error

BOM = b"\xef\xbb\xbf"  # the byte-order mark: no text
PIECE = 2**16  # bytes read at a time where a line is not kept
MOST_NESTED = 200  # levels of a JSON record


class Document(NamedTuple):
    """A text and its id. Without a text, `skipped` is the reason: it is counted and listed."""

    id: str | int
    text: str | None
    skipped: str | None = None


class Span(NamedTuple):
    """A part of a file: bytes [start, end) of its text once unpacked, or rows of Parquet."""

    path: str
    start: int
    end: int


class Piece(NamedTuple):
    """A span, the bytes of its text, and its part of the file's bytes on the disk."""

    span: Span
    size: int
    n_bytes: int


def unreadable(path: str, error: OSError) -> Error:
    return Error(f"{path} cannot be read: {os.strerror(error.errno) if error.errno else error}")


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn an error of the system into one that names the file."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from None


def is_gzip(path: str) -> bool:
    return path.lower().endswith(".gz")


# --- one document ----------------------------------------------------------------------

MISSING = object()


def make_document(default_id: str, text: Any, id: Any) -> Document:
    """Return a document, skipped if its text or its id is not valid."""
    if reason_to_skip(id, str | int):
        return Document(default_id, None, "no id")
    return Document(id, None, reason) if (reason := why_not(text)) else Document(id, text)


def why_not(text: Any) -> str | None:
    """Return the reason why this is no text to work on, or None."""
    return reason_to_skip(text, str) or (None if text else "empty")


def reason_to_skip(value: Any, kind: Any) -> str | None:
    if value is MISSING:
        return "no such field"
    if isinstance(value, bool) or not isinstance(value, kind):
        return "not a text"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate
            return "not UTF-8"
    return None


def lenient(data: Any) -> Any:
    """Decode bytes. Those that are not UTF-8 become lone surrogates, which are found later."""
    return data.decode(errors="surrogateescape") if isinstance(data, bytes) else data


def json_document(default_id: str, line: bytes, field: str, id: str | None) -> Document:
    """Return the document of a line of JSON: an object with the field, and that of the id."""
    if not line.strip(b" \t\r"):
        return Document(default_id, None, "empty")
    try:
        record = parse(line.decode())
    except UnicodeDecodeError:
        return Document(default_id, None, "not UTF-8")
    except (ValueError, RecursionError):  # ValueError also: an integer of thousands of digits
        return Document(default_id, None, "not JSON")
    if not isinstance(record, dict):
        return Document(default_id, None, "no such field")
    return make_document(default_id, record.get(field, MISSING),
                         default_id if id is None else record.get(id, MISSING))


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


DECODER = json.JSONDecoder(parse_constant=refuse)
STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)


def parse(text: str) -> Any:
    """Return the value of JSON. Raises ValueError if it is not JSON, has NaN, or is nested deeply.

    Python's own limit of nesting depends on who calls, so that one worker would take a record
    that another refuses.
    """
    if text.count("[") + text.count("{") > MOST_NESTED:
        depth = 0
        for match in STRINGS_AND_BRACKETS.finditer(text):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            if depth > MOST_NESTED:
                raise ValueError("nested deeply")
    return DECODER.decode(text)


# --- lines -----------------------------------------------------------------------------


class Unpacked(io.RawIOBase):
    """The text of a gzip file. It ends early at damage, and then `damage` says which.

    Two readers of one file always find the same end: both unpack it in the same steps.
    """

    def __init__(self, packed: io.FileIO):
        self.packed = packed
        self.file = gzip.GzipFile(fileobj=packed)
        self.piece = b""
        self.damage: str | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.piece and self.damage is None:
            try:
                self.piece = self.file.read1(PIECE)  # read() would lose what comes before damage
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self.damage = str(error)
        count = min(len(buffer), len(self.piece))
        buffer[:count], self.piece = self.piece[:count], self.piece[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self.file.close()
            self.packed.close()
        super().close()


def open_text(path: str) -> io.BufferedReader:
    file = io.FileIO(path)
    return io.BufferedReader(Unpacked(file) if is_gzip(path) else file, PIECE)


class LineReader:
    """The lines of a file, packed or not. A packed one can only be read forwards."""

    def __init__(self, path: str):
        self.path = path
        self.stream = open_text(path)
        weakref.finalize(self, self.stream.close)  # also of a reader that is kept until the end
        self.offset = 0  # of the next byte
        self.begun = -1  # no line that has been read begins after this offset
        self.inside = False  # the next byte is not the first of a line

    def reaches(self, start: int) -> bool:
        return self.begun < start

    def between(self, start: int, end: int, limit: int) -> Iterator[tuple[int, bytes | None]]:
        """Yield offset and content of each line that begins in [start, end).

        The content is None if it has more bytes than the limit: such a line is never held. Another
        line that damage of the file cuts short is left out.
        """
        if self.offset < start:
            self.skip_to(start - 1)
            self.begun, self.inside = start - 1, True
        self.skip_line(end)
        while self.offset < end:
            self.begun = self.offset
            line = self.readline(limit + len(BOM + b"\r\n") + 1)
            content = line.removeprefix(BOM) if self.begun == 0 else line
            if content.endswith(b"\n"):
                content = content[:-1].removesuffix(b"\r")
            if len(content) > limit:
                yield self.begun, None
                self.skip_line(end)
            elif not (self.inside and getattr(self.stream.raw, "damage", None)):
                yield self.begun, content

    def readline(self, most: int) -> bytes:
        line = self.stream.readline(most)
        if not line:
            raise changed(self.path)
        self.offset += len(line)
        self.inside = not line.endswith(b"\n")
        return line

    def skip_line(self, end: int) -> None:
        """Go to the end of the line that the next byte is in. Stop early if that is past `end`."""
        while self.inside and self.offset < end:
            self.readline(PIECE)

    def skip_to(self, offset: int) -> None:
        if self.stream.seekable():
            self.offset = self.stream.seek(offset)
        while self.offset < offset:
            data = self.stream.read(min(PIECE, offset - self.offset))
            if not data:
                raise changed(self.path)
            self.offset += len(data)

    def close(self) -> None:
        self.stream.close()


def line_documents(
    span: Span, is_json: bool, field: str, id: str | None, limit: int
) -> Iterator[Document]:
    """Yield the document of each line that begins in a span."""
    with reader_of(span, LineReader) as lines:
        for offset, line in lines.between(span.start, span.end, limit):
            place = f"{span.path}:{offset}"
            if line is None:
                yield Document(place, None, "over the limit")
            elif is_json:
                yield json_document(place, line, field, id)
            else:
                yield make_document(place, lenient(line), place)


def changed(path: str) -> Error:
    return Error(f"{path} has changed while it is read: it ends earlier than before. Start again "
                 "with another output folder once nothing writes to it")


def file_document(span: Span, limit: int) -> Document:
    """Return a file as one document. Its id is the path."""
    with open_text(span.path) as stream:
        most = min(span.end, limit + len(BOM) + 1)
        data = stream.read(most)
    if len(data) < most:
        raise changed(span.path)
    data = data.removeprefix(BOM)
    if len(data) > limit:
        return Document(span.path, None, "over the limit")
    return make_document(span.path, lenient(data), span.path)


# --- places in files -------------------------------------------------------------------

_last = threading.local()  # its reader: of a thread's last span


@contextlib.contextmanager
def reader_of(span: Span, kind: Any, *arguments: Any) -> Iterator[Any]:
    """Give a reader of a file. The next span of the same file goes on with it.

    A gzip file is so unpacked once by each worker and not once for each span. A process that was
    forked does not share the reader of its parent.
    """
    about = os.stat(span.path)
    key = (os.getpid(), kind, span.path, about.st_size, about.st_mtime_ns, about.st_ino, *arguments)
    old_key, reader = _last.__dict__.pop("kept", (None, None))
    if reader is not None and (old_key != key or not reader.reaches(span.start)):
        reader.close()
        reader = None
    if reader is None:
        reader = kind(span.path, *arguments)
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    _last.kept = key, reader

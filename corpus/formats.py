"""From a span of a file to its documents: JSON lines, plain text, gzip of both, Parquet.

A file is cut at byte offsets (Parquet: at rows), which needs neither an index nor memory. A line
belongs to the span in which its first byte lies, so that any cut gives the same documents. A span
of a gzip file is one of its unpacked text.
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
BATCH = 16  # rows of Parquet read at a time: a cell can have many megabytes


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


def changed(path: str) -> Error:
    return Error(f"{path} has changed while it is read: it ends earlier than before. Start again "
                 "with another output folder once nothing writes to it")


def whole_file(span: Span, limit: int) -> Document:
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


# --- Parquet ---------------------------------------------------------------------------


def import_pyarrow(path: str) -> Any:
    """Return pyarrow, with `pyarrow.parquet`. Raises Error if it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Error(f"{path} needs pyarrow, which is not installed: "
                    'pip install "gpt2_np[parquet]"') from None
    return pyarrow


def parquet_file(path: str) -> Any:
    """Open a Parquet file. Raises Error if the file is not Parquet."""
    pyarrow = import_pyarrow(path)
    with parquet_errors(path):
        return pyarrow.parquet.ParquetFile(path, buffer_size=PIECE, pre_buffer=False)


@contextlib.contextmanager
def parquet_errors(path: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except pyarrow.ArrowMemoryError as error:
        raise MemoryError(str(error)) from None
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # of the system, not of the file
            raise unreadable(path, error) from None
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Error(f"{path} is not a whole Parquet file: {reason}") from None


def check_columns(path: str, field: str, id: str | None) -> None:
    """Raise Error if a Parquet file has no such columns, or they hold neither text nor ids."""
    with parquet_file(path) as file:
        schema = file.schema_arrow
    from pyarrow import types

    for name in (field,) if id is None else (field, id):
        if schema.names.count(name) != 1:
            found = "several columns" if name in schema.names else "no column"
            raise Error(f"{path} has {found} named {name!r}: its columns are "
                        f"{', '.join(map(repr, schema.names))}")
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not is_text(kind) and not (name == id and types.is_integer(kind)):
            expected = "texts or integers" if name == id else "texts"
            raise Error(f"{path}: column {name!r} holds {kind}, expected {expected}")


def is_text(kind: Any) -> bool:
    from pyarrow import types

    return any(test(kind) for test in (
        types.is_string, types.is_large_string, types.is_string_view, types.is_null,
        types.is_binary, types.is_large_binary, types.is_binary_view))


def parquet_pieces(path: str, shard_bytes: int, columns: tuple[str, ...]) -> Iterator[Piece]:
    """Yield a piece for each row group, or several for a group with more text than a shard."""
    n_bytes = os.stat(path).st_size
    with parquet_file(path) as file:
        about = file.metadata
    row = read = 0
    for number in range(about.num_row_groups):
        group = about.row_group(number)
        size = sum(column.total_uncompressed_size for column in map(
            group.column, range(group.num_columns)) if column.path_in_schema in columns)
        count = min(group.num_rows, -(-size // shard_bytes) or 1)
        for piece in range(count):
            start, end = (group.num_rows * edge // count for edge in (piece, piece + 1))
            until = n_bytes * (row + end) // max(about.num_rows, 1)
            yield Piece(Span(path, row + start, row + end), size // count, until - read)
            read = until
        row += group.num_rows


class ParquetReader:
    """The rows of a Parquet file, of some columns. It keeps its place in a row group."""

    def __init__(self, path: str, columns: tuple[str, ...]):
        self.path, self.columns = path, columns
        self.file = parquet_file(path)
        self.row = self.group_end = 0
        self.cells: Iterator[tuple[Any, ...]] = iter(())

    def reaches(self, start: int) -> bool:
        return True

    def between(self, start: int, end: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield number and cells of each row in [start, end); text as bytes."""
        while start < end:
            if not self.row <= start < self.group_end:
                self.open_group(start)
            row, self.row = self.row, self.row + 1
            with parquet_errors(self.path):
                cells = next(self.cells, None)
            if cells is None:
                raise changed(self.path)
            if row == start:
                yield row, cells
                start += 1

    def open_group(self, row: int) -> None:
        about, first = self.file.metadata, 0
        for number in range(about.num_row_groups):
            end = first + about.row_group(number).num_rows
            if row < end:
                self.row, self.group_end, self.cells = first, end, self.group_cells(number)
                return
            first = end
        raise changed(self.path)

    def group_cells(self, number: int) -> Iterator[tuple[Any, ...]]:
        for batch in self.file.iter_batches(BATCH, [number], list(self.columns),
                                            use_threads=False):
            yield from zip(*(cell_values(batch.column(name)) for name in self.columns),
                           strict=True)

    def close(self) -> None:
        self.file.close()


def cell_values(array: Any) -> list[Any]:
    """Return the cells of a column, text as bytes: pyarrow raises at text that is not UTF-8."""
    import pyarrow

    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_text(array.type):
        array = array.cast(pyarrow.large_binary())
    return array.to_pylist()


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

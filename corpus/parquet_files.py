"""From a span of a Parquet file, which is cut at rows, to its documents."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ..gpt2_np import Error
from .formats import (
    PIECE,
    Document,
    Piece,
    Span,
    changed,
    lenient,
    make_document,
    reader_of,
    unreadable,
)

BATCH = 16  # rows that are read at a time: a cell can have many megabytes


def import_pyarrow(path: str) -> Any:
    """Return pyarrow, with `pyarrow.parquet`. Raises Error if it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Error(f"{path} needs pyarrow, which is not installed: pip install pyarrow") from None
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


def parquet_pieces(path: str, shard_bytes: int, field: str, id: str | None) -> Iterator[Piece]:
    """Yield a piece for each row group, or several for a group with more text than a shard."""
    n_bytes = os.stat(path).st_size
    with parquet_file(path) as file:
        about = file.metadata
    row = read = 0
    for number in range(about.num_row_groups):
        group = about.row_group(number)
        size = sum(column.total_uncompressed_size for column in map(
            group.column, range(group.num_columns)) if column.path_in_schema in (field, id))
        count = min(group.num_rows, -(-size // shard_bytes) or 1)
        for piece in range(count):
            start, end = (group.num_rows * edge // count for edge in (piece, piece + 1))
            until = n_bytes * (row + end) // max(about.num_rows, 1)
            yield Piece(Span(path, row + start, row + end), size // count, until - read)
            read = until
        row += group.num_rows


def parquet_documents(
    span: Span, field: str, id: str | None, limit: int
) -> Iterator[Document]:
    """Yield the document of each row of a span."""
    columns = (field,) if id in (None, field) else (field, id)
    with reader_of(span, ParquetReader, columns) as rows:
        for row, cells in rows.between(span.start, span.end):
            place = f"{span.path}:{row}"
            found = make_document(place, lenient(cells[0]),
                                  place if id is None else lenient(cells[-1]))
            if found.text is not None and len(cells[0]) > limit:
                found = Document(found.id, None, "over the limit")
            yield found


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

"""One shard's file of results: written beside its place, synced and renamed.

So a file with a shard's name is whole, whatever was killed and when.
"""
from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..bpe import whole_file
from ..checkpoint.saving import sync_folder
from ..gpt2_np import Error
from .documents import Inputs, Shard
from .formats import Document
from .parquet_files import import_pyarrow
from .work import Record, Work

# A worker holds this many characters of texts and ids, or documents, at a time; or one document
# that is longer.
MOST_CHARACTERS, MOST_DOCUMENTS = 1 << 18, 1 << 12
FORMATS = ("jsonl", "parquet")


class Job(NamedTuple):
    """All that a worker is told once. It can be pickled."""

    inputs: Inputs
    work: Work
    folder: str
    format: str = "jsonl"  # or "parquet"


class Done(NamedTuple):
    """A shard whose file is in its place."""

    number: int
    n_bytes: int  # of the shard, as `Shard.n_bytes`
    n_documents: int
    n_tokens: int


def shard_file(folder: str, number: int, format: str) -> str:
    """Return the path of a shard's results: part-0000000.jsonl."""
    return os.path.join(folder, f"part-{number:07d}.{format}")


def write_shard(job: Job, shard: Shard) -> Done:
    """Read a shard, do the work and commit the results, a record for each document in order."""
    n_documents = n_tokens = 0
    with committed(shard_file(job.folder, shard.number, job.format)) as file, \
            writer(file, job.work, job.format) as write:
        for documents in batches(job.inputs.read(shard)):
            records = job.work.records(documents)
            write(records)
            n_documents += len(records)
            n_tokens += sum(record.get("n_tokens", 0) for record in records)
    return Done(shard.number, shard.n_bytes, n_documents, n_tokens)


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents in lists that are small enough to hold."""
    batch, n_characters = [], 0
    for document in documents:
        length = len(document.text or "") + len(str(document.id))
        if batch and (n_characters + length > MOST_CHARACTERS or len(batch) == MOST_DOCUMENTS):
            yield batch
            batch, n_characters = [], 0
        batch.append(document)
        n_characters += length
    if batch:
        yield batch


@contextlib.contextmanager
def committed(path: str) -> Iterator[BinaryIO]:
    """Give a new file to write, as `whole_file` does. Its name, too, is on the disk at the end."""
    with whole_file(path) as file:
        yield file
    sync_folder(os.path.dirname(path) or ".")


# --- formats ---------------------------------------------------------------------------


@contextlib.contextmanager
def writer(file: BinaryIO, work: Work, format: str) -> Iterator[Any]:
    """Give a function that writes records into a file."""
    if format == "jsonl":
        yield lambda records: file.writelines(map(json_bytes, records))
        return
    pyarrow = import_pyarrow(file.name)
    types = {"id": "string", **work.columns, "skipped": "string"}
    schema = pyarrow.schema([(name, arrow_type(pyarrow, type)) for name, type in types.items()])
    with pyarrow.parquet.ParquetWriter(file, schema) as parquet:
        yield lambda records: parquet.write_table(table(pyarrow, records, schema))


def write_json(path: str, value: Any) -> None:
    with committed(path) as file:
        file.write(json_bytes(value, indent=1))


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """Return JSON in UTF-8 with the end of a line. float32 has the fewest digits that tell it."""
    text = json.dumps(value, indent=indent, default=plain_values, ensure_ascii=False,
                      allow_nan=False)
    return text.encode(errors="backslashreplace") + b"\n"  # JSON's own escape of a lone surrogate


def plain_values(array: np.ndarray | np.generic) -> Any:
    """Return the values of an array, or of a number of NumPy's, as Python's own."""
    return (array.astype(str).astype(float) if array.dtype == np.float32 else array).tolist()


def table(pyarrow: Any, records: Sequence[Record], schema: Any) -> Any:
    """Return records as a table. Ids become strings, so that all shards have the same types."""
    columns = {name: [record.get(name) for record in records] for name in schema.names}
    columns["id"] = list(map(str, columns["id"]))
    return pyarrow.table(columns, schema)


def arrow_type(pyarrow: Any, type: str) -> Any:
    kind = type.removeprefix("list ")
    found = pyarrow.type_for_alias(kind)
    return found if kind == type else pyarrow.list_(found)


# --- reading the results ---------------------------------------------------------------


@contextlib.contextmanager
def naming_damage(path: str) -> Iterator[None]:
    """Turn any failure to understand a shard's file into an Error that names it."""
    try:
        yield
    except (ValueError, LookupError, TypeError, OSError) as error:
        if isinstance(error, Error) or getattr(error, "errno", None):  # not pyarrow's
            raise
        raise Error(f"{path} is damaged ({error}): remove it and start the run again, which makes "
                    "no other shard anew") from None


def read_records(path: str, format: str, names: Sequence[str]) -> Iterator[list[Record]]:
    """Yield the records of a shard's file, some at a time, with at least these values."""
    return json_records(path) if format == "jsonl" else parquet_records(path, names)


def json_records(path: str) -> Iterator[list[Record]]:
    with open(path, "rb") as file:
        while lines := file.readlines(MOST_CHARACTERS):
            if not lines[-1].endswith(b"\n"):
                raise ValueError("its last line is cut off")
            records = json.loads(b"[%s]" % b",".join(map(without_tokens, lines)))
            if not all(isinstance(record, dict) and "id" in record for record in records):
                raise ValueError("a line is no record")
            yield records


def without_tokens(line: bytes) -> bytes:
    """Return a record's line without the values of its tokens, which take most time to parse."""
    end = line.find(b', "tokens": [')  # no string holds these: its quotes would be escaped
    return line if end < 0 else line[:end] + b"}"


def parquet_records(path: str, names: Sequence[str]) -> Iterator[list[Record]]:
    file = import_pyarrow(path).parquet.ParquetFile(path)
    for batch in file.iter_batches(MOST_DOCUMENTS, columns=["id", *names, "skipped"]):
        yield [{name: value for name, value in row.items() if value is not None}
               for row in batch.to_pylist()]

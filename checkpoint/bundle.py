"""The TensorFlow bundle: an index of tensors, and one file with their bytes.

A bundle has a prefix: model.ckpt in OpenAI's folders, model-1000 and so on in those of trainers.
Beside them the small text `checkpoint` names the prefix of the latest.

The index is a LevelDB table (leveldb/doc/table_format.md) from names to protocol buffers
(tensorflow/core/protobuf/tensor_bundle.proto). The data file is the tensors one after another.
"""
from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..bpe import shown
from .crc32c import crc32c
from .files import (
    CheckpointError,
    Malformed,
    exists,
    listing,
    open_file,
    read_small,
    reading,
    refuse_pointer,
)
from .tensors import Tensor, check_contiguous, check_size

if TYPE_CHECKING:
    from pathlib import Path

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
LATEST = "checkpoint"
DTYPES = {
    1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 8: "C64", 9: "I64", 10: "BOOL",
    14: "BF16", 17: "U16", 19: "F16", 22: "U32", 23: "U64",
}  # fmt: skip


def find_index(folder: Path) -> Path:
    """Return the index of the latest bundle in a folder: `checkpoint` names it, or it is alone."""
    if os.path.isfile(folder / LATEST):
        return latest_index(folder / LATEST)
    if exists(folder / INDEX):
        return folder / INDEX
    names = [name for name in listing(folder) if name.endswith(".index")]
    if len(names) > 1:
        raise CheckpointError(
            f"{folder} holds several bundles ({shown(names)}) and no file {LATEST} that names the "
            "latest: give the path of one of them"
        )
    return folder / (names[0] if names else INDEX)


def latest_index(file: Path) -> Path:
    """Return the index that TensorFlow's file `checkpoint` names, always in the same folder."""
    with reading(file, "TensorFlow's note of its latest checkpoint"):
        text = read_small(file).decode(errors="replace")
        found = re.search(r'^\s*model_checkpoint_path:\s*"([^"\n]*)"', text, re.MULTILINE)
        if not found:
            raise Malformed("it has no line model_checkpoint_path")
        prefix = re.split(r"[/\\]", found[1])[-1]  # of an absolute path too: folders are moved
        if not re.fullmatch(r"[^:\x00-\x1f]+", prefix) or prefix in (".", ".."):
            raise Malformed(f"it names {shown(found[1])}, expected the prefix of a checkpoint")
    index = file.with_name(prefix + ".index")
    if not exists(index):
        raise CheckpointError(
            f"{file} names {shown(prefix)} as the latest, but {index.name} does not exist: copy it "
            "here, or give the path of another bundle"
        )
    return index


def index_of(path: Path) -> Path:
    """Return the index of a bundle, of which `path` is the prefix or one of its files."""
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    return path.with_name(prefix + ".index")


def data_of(index: Path) -> Path:
    return index.with_name(index.name.removesuffix(".index") + ".data-00000-of-00001")


def read_bundle(index: Path) -> dict[str, Tensor]:
    """Return the tensors of a bundle by name, with the length of the data file checked."""
    tensors = read_index(index)
    data = data_of(index)
    with reading(data, "the data of its index"):
        with open_file(data) as opened:
            refuse_pointer(opened.read(32))
        found, expected = data.stat().st_size, data_size(tensors)
        if found != expected:
            raise Malformed(f"it has {found} bytes, expected {expected}")
    return tensors


def data_size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.size for tensor in tensors.values())


def read_index(file: Path) -> dict[str, Tensor]:
    """Return the tensors that the index of a bundle describes, by name."""
    with reading(file, "a whole TensorFlow bundle index"):
        entries = table_entries(read_small(file))
        check_header(*next(entries, (None, b"")))
        data = data_of(file)
        tensors = {name: bundle_tensor(name, entry, data) for name, entry in entries}
        check_contiguous(tensors, 0)
    return tensors


# --- entries: names to tensors ---------------------------------------------------------


def check_header(key: str | None, header: bytes) -> None:
    """Check BundleHeaderProto, under the empty key: one shard, little-endian, a known version."""
    if key != "":
        raise Malformed("it does not begin with a header")
    fields = message(header)
    checks = {
        "number of shards": (field(fields, 1, 0), 1),
        "byte order": (field(fields, 2, 0), 0),
        "minimum version of a reader": (field(message(field(fields, 3, b"")), 2, 0), 0),
    }
    for name, (found, expected) in checks.items():
        if found != expected:
            raise Malformed(f"its {name} is {found}, expected {expected}")


def bundle_tensor(name: str, entry: bytes, data: Path) -> Tensor:
    """Parse BundleEntryProto: type, shape, position and checksum of a tensor."""
    try:
        fields = message(entry)
        if 7 in fields or field(fields, 3, 0) != 0:
            raise Malformed("it is in slices or in another shard, expected whole and in the first")
        dtype = DTYPES.get(number := field(fields, 1, 0))
        if dtype is None:
            raise Malformed(f"its data type is {number}, expected one of {DTYPES}")
        dims = message(field(fields, 2, b"")).get(2, [])
        shape = tuple(field(message(dim), 1, 0) for dim in dims)
        crc = unmask(field(fields, 6, 0))
        tensor = Tensor(data, dtype, shape, field(fields, 4, 0), field(fields, 5, 0), crc)
        check_size(tensor)
    except Malformed as error:
        raise Malformed(f"tensor {shown(name)}: {error}") from error
    return tensor


# --- the LevelDB table -----------------------------------------------------------------

FOOTER = 48  # bytes
TRAILER = 5  # bytes after a block: its compression, and a CRC over both
MAGIC = bytes.fromhex("57fb808b247547db")
MAX_KEY = 256  # bytes; with shared beginnings, a small file could hold very many long keys


def table_entries(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the (key, value) pairs of a LevelDB table, in the order of their keys."""
    if len(content) < FOOTER or content[-8:] != MAGIC:
        raise Malformed(f"it has {len(content)} bytes and does not end as a LevelDB table does")
    footer = content[-FOOTER:-8]
    metaindex_start, metaindex_size, at = handle(footer, 0)
    index_start, index_size, _ = handle(footer, at)
    for _ in block_entries(block(content, metaindex_start, metaindex_size)):
        pass  # checked only: TensorFlow writes no entries there
    end, before = 0, None
    for _, value in block_entries(block(content, index_start, index_size)):
        start, size, _ = handle(value, 0)
        if start < end:
            raise Malformed(f"a block begins at {start}, inside the one before it")
        end = start + size
        for key, entry in block_entries(block(content, start, size)):
            if before is not None and key <= before:
                raise Malformed(f"the key {shown(key)} comes after {shown(before)}")
            before = key
            yield key.decode(errors="backslashreplace"), entry


def block(content: bytes, start: int, size: int) -> bytes:
    """Return one block of a table, uncompressed and with the right CRC."""
    end = start + size
    if end + TRAILER > len(content) - FOOTER:
        raise Malformed(f"a block of {size} bytes at {start} lies outside the file")
    if content[end]:
        raise Malformed(f"the block at {start} has compression {content[end]}, expected 0 (none)")
    found, expected = crc32c(content[start : end + 1]), unmask(fixed32(content, end + 1))
    if found != expected:
        raise Malformed(f"the block at {start} has CRC-32C {found:08x}, expected {expected:08x}")
    return content[start:end]


def block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of a block. A key is stored as its difference from the last.

    The block ends with its restarts, the positions of keys that are stored in full, and their
    number.
    """
    count = fixed32(block, len(block) - 4)
    end = len(block) - 4 - 4 * count
    if end < 0:
        raise Malformed(f"a block of {len(block)} bytes has {count} restarts, more than fit")
    restarts = struct.unpack_from(f"<{count}I", block, end)
    in_full = {0}
    at, key = 0, b""
    while at < end:
        entry = at
        shared, at = varint(block, at)
        rest, at = varint(block, at)
        size, at = varint(block, at)
        if at + rest + size > end or shared > len(key) or shared + rest > MAX_KEY:
            raise Malformed(f"the entry at {entry} of a block does not fit into it")
        if shared == 0:
            in_full.add(entry)
        key = key[:shared] + block[at : at + rest]
        at += rest + size
        yield key, block[at - size : at]
    rising = restarts[:1] == (0,) and list(restarts) == sorted(set(restarts))
    if not rising or not in_full.issuperset(restarts):
        raise Malformed("the restarts of a block do not point to keys in full")


def handle(content: bytes, at: int) -> tuple[int, int, int]:
    """Return start and size of a block, and the end of this handle."""
    start, at = varint(content, at)
    size, at = varint(content, at)
    return start, size, at


def unmask(masked: int) -> int:
    """Return a CRC as it was before LevelDB rotated and shifted it."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


# --- protocol buffers ------------------------------------------------------------------

VARINT, BYTES, FIXED32 = 0, 2, 5  # wire types


def message(content: Any) -> dict[int, list[Any]]:
    """Return the values of a message, int or bytes, by the number of their field."""
    if not isinstance(content, bytes):
        raise Malformed(f"found the number {content}, expected a message")
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(content):
        tag, at = varint(content, at)
        if tag & 7 == VARINT:
            value, at = varint(content, at)
        elif tag & 7 == FIXED32:
            value, at = fixed32(content, at), at + 4
        elif tag & 7 == BYTES:
            size, at = varint(content, at)
            value, at = content[at : at + size], at + size
        else:
            raise Malformed(f"field {tag >> 3} has wire type {tag & 7}, expected 0, 2 or 5")
        if at > len(content):
            raise Malformed(f"field {tag >> 3} is longer than its message")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def field(fields: Mapping[int, list[Any]], number: int, absent: Any) -> Any:
    """Return the last value of a field, or `absent`, which also gives the expected type."""
    value = fields.get(number, [absent])[-1]
    if type(value) is not type(absent):
        raise Malformed(f"field {number} is {shown(value)}, expected {type(absent).__name__}")
    return value


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a number of up to 64 bits, and its end. A byte holds seven bits, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise Malformed("a number is cut off")
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128 and value < 2**64:
            return value, at
    raise Malformed("a number has over 64 bits")


def fixed32(content: bytes, at: int) -> int:
    if not 0 <= at <= len(content) - 4:
        raise Malformed("a number is cut off")
    return int.from_bytes(content[at : at + 4], "little")

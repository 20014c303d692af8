"""Parquet as pyarrow writes it: any cut gives the same rows, and bad columns one clear sentence."""
import random

import pytest

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet

from gpt2_np import Error
from gpt2_np.corpus.documents import Document, Inputs

pytestmark = pytest.mark.parity
TEXTS = ["one", None, "", "é" * 9, "x" * 41, *(f"row {i}" for i in range(95))]
IDS = [f"id {i}" for i in range(99)] + [None]
TYPES = [pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary(),
         pyarrow.string_view(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]


def write(path, kind=None, group=17, **columns):
    columns = columns or {"id": IDS, "text": TEXTS, "number": list(range(100))}
    table = pyarrow.table(columns)
    if kind is not None:
        at = table.schema.get_field_index("text")
        table = table.set_column(at, "text", table["text"].cast(kind))
    parquet.write_table(table, path, row_group_size=group)
    return str(path)


def read_shuffled(inputs, seed=0):
    shards = list(inputs.shards())
    assert sum(shard.n_bytes for shard in shards) == inputs.n_bytes()
    found = {shard: list(inputs.read(shard))
             for shard in random.Random(seed).sample(shards, len(shards))}
    return [document for shard in shards for document in found[shard]]


def expected(path, ids=None):
    for row, text in enumerate(TEXTS):
        place = f"{path}:{row}"
        id = place if ids is None or ids[row] is None else ids[row]
        reason = ("not a text" if text is None or (ids is not None and ids[row] is None) else
                  "empty" if not text else "over the limit" if len(text.encode()) > 40 else None)
        yield Document(id, None if reason else text, reason)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize(("group", "shard_bytes"), [(17, 1), (17, 300), (100, 30), (1, 2**18)])
def test_any_cut_gives_the_same_documents(tmp_path, kind, group, shard_bytes):
    path = write(tmp_path / "a.parquet", kind, group)
    options = {"max_bytes": 40, "shard_bytes": shard_bytes}
    assert read_shuffled(Inputs(path, **options)) == list(expected(path))
    assert read_shuffled(Inputs(path, id="id", **options)) == list(expected(path, IDS))
    numbered = read_shuffled(Inputs(path, id="number", **options))
    assert [document.id for document in numbered] == list(range(100))

"""Parquet as pyarrow writes it: any cut gives the same rows, and bad columns one clear sentence."""
import errno
import random
import sys

import pyarrow
import pytest
from pyarrow import parquet

from gpt2_np import Error
from gpt2_np.corpus import parquet_files
from gpt2_np.corpus.documents import Inputs
from gpt2_np.corpus.formats import Document

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
        reason = ("no id" if ids is not None and ids[row] is None else
                  "not a text" if text is None else
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


def test_text_that_is_not_utf_8_is_skipped(tmp_path):
    bad = pyarrow.array([b"a", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    path = write(tmp_path / "a.parquet", text=bad, id=bad)
    assert [document.skipped for document in read_shuffled(Inputs(path))] == [None, "not UTF-8"]
    assert read_shuffled(Inputs(path, id="id")) == [
        Document("a", "a"), Document(f"{path}:1", None, "no id")]


def test_the_same_column_can_be_text_and_id(tmp_path):
    path = write(tmp_path / "a.parquet", **{"a.b": ["x", "y"]})
    assert read_shuffled(Inputs(path, field="a.b", id="a.b")) == [
        Document("x", "x"), Document("y", "y")]


def test_small_row_groups_share_a_shard(tmp_path):
    path = write(tmp_path / "a.parquet", group=10, text=["x" * 100] * 50)
    assert len(list(Inputs(path, shard_bytes=700).shards())) == 5
    assert len(list(Inputs(path).shards())) == 1 and Inputs(path).n_shards() is None
    empty = write(tmp_path / "b.parquet", text=pyarrow.array([], pyarrow.string()))
    assert read_shuffled(Inputs((path, empty, write(tmp_path / "c.parquet", text=["c"]))))[50:] == [
        Document(f"{tmp_path}/c.parquet:0", "c")]


def test_bad_columns_and_files_are_found_before_the_run(tmp_path):
    path = write(tmp_path / "a.parquet")
    twice = tmp_path / "b.parquet"
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["text"] * 2), twice)
    cut = tmp_path / "c.parquet"
    cut.write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    (tmp_path / "d.parquet").write_bytes(b"")
    for name, options, sentence in [
        (path, {"field": "body"}, r"a\.parquet has no column named 'body': its columns are 'id', "
         "'text', 'number'"),
        (path, {"id": "key"}, "has no column named 'key'"),
        (path, {"field": "number"}, "column 'number' holds int64, expected texts"),
        (write(tmp_path / "e.parquet", text=["a"], id=[1.5]), {"id": "id"},
         "column 'id' holds double, expected texts or integers"),
        (twice, {}, "has several columns named 'text'"),
        (cut, {}, r"c\.parquet is not a whole Parquet file: "),
        (tmp_path / "d.parquet", {}, r"d\.parquet is not a whole Parquet file: "),
    ]:
        with pytest.raises(Error, match=sentence) as error:
            Inputs(name, **options)
        assert "\n" not in str(error.value)


def test_damage_inside_and_a_change_name_the_file(tmp_path):
    path = write(tmp_path / "a.parquet", group=50, text=["x" * 1000 + str(i) for i in range(100)])
    inputs = Inputs(path, shard_bytes=2000)
    shards = list(inputs.shards())
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:200] = b"\xff" * 196
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(Error, match=r"a\.parquet is not a whole Parquet file: "):
        list(inputs.read(shards[0]))
    write(tmp_path / "a.parquet", text=["a"])
    with pytest.raises(Error, match=r"a\.parquet has changed while it is read"):
        list(inputs.read(shards[-1]))


def test_errors_of_the_system_are_not_called_damage():
    with pytest.raises(MemoryError), parquet_files.parquet_errors("a.parquet"):
        pyarrow.allocate_buffer(2**60)
    for error, sentence in (
        (OSError(errno.EIO, "a long story"), "a.parquet cannot be read: Input/output error"),
        (OSError("Unexpected end of stream"), "a.parquet is not a whole Parquet file: Unexpected"),
    ):
        with pytest.raises(Error, match=sentence), parquet_files.parquet_errors("a.parquet"):
            raise error
    with pytest.raises(Error, match=r"a\.parquet cannot be read: No such file or directory$"):
        parquet_files.parquet_file("no/a.parquet")


def test_the_rows_of_a_column_are_cut_whatever_its_name(tmp_path):
    counts = []
    for name in "text", "a.b", "a":
        path = write(tmp_path / f"{name}.parquet", group=3000,
                     **{name: [f"{i} " + "x" * 100 for i in range(3000)]})
        counts.append(len(list(Inputs(path, field=name, shard_bytes=10_000).shards())))
    assert counts[0] == counts[1] == counts[2] > 20


def test_a_row_group_is_read_once_by_a_worker(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", group=100)
    inputs, opened = Inputs(path, shard_bytes=100), []
    shards = list(inputs.shards())
    assert len(shards) > 5
    open_group = parquet_files.ParquetReader.open_group
    monkeypatch.setattr(parquet_files.ParquetReader, "open_group",
                        lambda self, row: (opened.append(row), open_group(self, row))[1])
    for shard in shards:
        list(inputs.read(shard))
    assert opened == [0]


def test_a_large_row_group_is_never_held(tmp_path):
    table = pyarrow.table({"text": ["x" * 2**12] * 2**13})
    parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    del table
    pyarrow.default_memory_pool().release_unused()
    inputs = Inputs(tmp_path / "a.parquet")
    before = pyarrow.total_allocated_bytes()
    most = 0
    for shard in inputs.shards():
        for _ in inputs.read(shard):
            most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < 2**24  # of 2**25 bytes of text in one row group


def test_without_pyarrow_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Error, match=r'a\.parquet needs pyarrow.*pip install pyarrow'):
        Inputs(path)

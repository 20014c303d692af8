"""The callables under Ray Data, datasets, pandas and pyarrow; results in Parquet.

    pip install "ray[data]" datasets pyarrow pandas cloudpickle dill
    pytest -m parity tests/parity/test_corpus_callables_parity.py
"""
import errno
import io
import math
import os
import pickle

import cloudpickle
import datasets
import dill
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import ray
from given_scores import job, shard
from small_model import TEXT, save_small_model

import gpt2_np
from gpt2_np import corpus
from gpt2_np.corpus import documents, shard_files, summary
from gpt2_np.corpus.formats import Document

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]  # peers' own warnings

TEXTS = ["The café", "", "T", TEXT, None, "é\0", *(TEXT[n : n + 30] for n in range(40))]
IDS = [f"id {n}" for n in range(len(TEXTS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def cluster(ray_settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONPATH", str(gpt2_np.checkpoint.official.ROOT), prepend=os.pathsep)
        ray.init("local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False,
                 log_to_driver=False)
        yield
        ray.shutdown()


def made(kind, folder, **options):
    if kind is corpus.Generator:
        options = {"n_tokens": 6, "temperature": 1.0, "id": "id", **options}
    return kind(folder, device="cpu", per_token=True, **options)


def check(rows, doer):
    """Compare rows of any order, as dicts, with the records of the same documents."""
    records = {record["id"]: record for record in doer.records(list(map(Document, IDS, TEXTS)))}
    assert sorted(row["id"] for row in rows) == sorted(IDS)
    for row in rows:
        record = records[row["id"]]
        text = None if pandas.isna(row["text"]) else row["text"]  # pandas has its own None
        assert text == TEXTS[IDS.index(row["id"])]
        assert row["skipped"] == record.get("skipped", "")
        for name in doer.columns:
            found, expected = row[doer.renamed.get(name, name)], record.get(name)
            if isinstance(expected, np.ndarray) or name in ("tokens", "log_probabilities"):
                np.testing.assert_allclose(np.asarray(found, float),
                                           [] if expected is None else expected, rtol=1e-5)
            elif isinstance(expected, float):
                assert found == pytest.approx(expected, rel=1e-5)
            elif expected is None:
                assert found in (0, "") or math.isnan(found)
            else:
                assert found == expected


BOTH = pytest.mark.parametrize("kind", [corpus.Scorer, corpus.Generator])


@BOTH
@pytest.mark.parametrize("batch_format", ["numpy", "pandas", "pyarrow"])
def test_ray_data_maps_batches(folder, cluster, kind, batch_format):
    data = ray.data.from_arrow(pyarrow.table({"id": IDS, "text": TEXTS}))
    done = data.map_batches(made(kind, folder), batch_size=7, batch_format=batch_format)
    check(done.take_all(), made(kind, folder))


@BOTH
def test_ray_data_makes_the_object_once_an_actor(folder, cluster, kind):
    data = ray.data.from_items([{"id": i, "text": t} for i, t in zip(IDS, TEXTS, strict=True)])
    options = {"device": "cpu", "per_token": True}
    if kind is corpus.Generator:
        options |= {"n_tokens": 6, "temperature": 1.0, "id": "id"}
    done = data.map_batches(kind, fn_constructor_args=[folder], fn_constructor_kwargs=options,
                            batch_size=7, concurrency=1)
    check(done.take_all(), made(kind, folder))


@BOTH
@pytest.mark.parametrize("n_processes", [None, 2])
def test_datasets_maps_batches(folder, tmp_path, kind, n_processes):
    data = datasets.Dataset.from_dict({"id": IDS, "text": TEXTS})
    done = data.map(made(kind, folder), batched=True, batch_size=7, num_proc=n_processes)
    check(list(done), made(kind, folder))


@BOTH
def test_pandas_and_pyarrow(folder, kind):
    doer = made(kind, folder)
    frame = pandas.DataFrame({"id": IDS, "text": TEXTS})
    check(pandas.DataFrame(doer(frame)).to_dict("records"), doer)
    table = pyarrow.table({"id": IDS, "text": TEXTS})
    check(pyarrow.table(doer(table)).to_pylist(), doer)
    [batch] = table.to_batches()
    check(pyarrow.table(doer(batch)).to_pylist(), doer)


@BOTH
@pytest.mark.parametrize("library", [pickle, cloudpickle, dill])
def test_pickles_have_no_weights_and_do_the_same(folder, kind, library):
    doer = made(kind, folder)
    given = {"id": IDS[:3], "text": TEXTS[:3]}
    expected = doer(given)
    pickled = library.dumps(doer)
    assert len(pickled) < 3000
    for name, column in library.loads(pickled)(given).items():
        for found, value in zip(column, expected[name], strict=True):
            np.testing.assert_array_equal(found, value)
    model = gpt2_np.load(folder, "cpu")
    whole = library.loads(library.dumps(made(kind, model)))
    assert whole(given)["skipped"] == expected["skipped"]


# --- Parquet ---------------------------------------------------------------------------


@BOTH
def test_parquet_has_the_records_with_the_same_types_in_every_shard(folder, tmp_path, kind):
    class Inputs:
        def read(self, shard):
            yield from [list(map(Document, IDS, TEXTS)), [Document(7, None, "not JSON")], [],
                        ][shard.number]

    doer, schemas = made(kind, folder), set()
    given = shard_files.Job(Inputs(), doer, str(tmp_path), "parquet")
    for number in range(3):
        done = shard_files.write_shard(given, documents.Shard(number, (), 9))
        path = str(tmp_path / f"part-{number:07d}.parquet")
        schemas.add(pyarrow.parquet.read_schema(path).to_string())
        assert pyarrow.parquet.ParquetFile(path).metadata.num_rows == done.n_documents
    assert len(schemas) == 1
    rows = pyarrow.parquet.read_table(tmp_path / "part-0000000.parquet").to_pylist()
    for row, record in zip(rows, doer.records(list(map(Document, IDS, TEXTS))), strict=True):
        assert set(row) == {"id", *doer.columns, "skipped"}
        for name, value in row.items():
            if value is None:
                assert record.get(name) is None
            else:
                np.testing.assert_array_equal(value, record[name])
    [skipped] = pyarrow.parquet.read_table(tmp_path / "part-0000001.parquet").to_pylist()
    assert (skipped["id"], skipped["skipped"]) == ("7", "not JSON")
    assert sorted(os.listdir(tmp_path)) == [f"part-000000{n}.parquet" for n in range(3)]


def test_the_summary_of_parquet_is_that_of_json_lines(tmp_path):
    scores = {f"id {n}": (n, 4 * n, -2.5 * n - n % 7) for n in range(1, 99)}
    scores["id 0"] = (0, 0, None)
    found = []
    for format in shard_files.FORMATS:
        (tmp_path / format).mkdir()
        given = job(tmp_path / format, [[*scores, "no"], ["id 5"]], scores, format, per_token=True)
        for number in 0, 1:
            shard_files.write_shard(given, shard(number))
        found.append(summary.write_summary(given, 2))
    assert found[0] == found[1]


def test_the_bytes_of_parquet_are_the_same_each_time(tmp_path):
    contents = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        shard_files.write_shard(job(tmp_path / name, [["x", "y"]], {"x": (3, 4, -1.5)}, "parquet"),
                                shard())
        contents.add((tmp_path / name / "part-0000000.parquet").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("damage", ["cut", "zeros", "other columns"])
def test_damaged_parquet_is_named(tmp_path, damage):
    given = job(tmp_path, [["x"] * 5000], {"x": (3, 4, -1.5)}, "parquet")
    shard_files.write_shard(given, shard())
    path = tmp_path / "part-0000000.parquet"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-20])
    elif damage == "zeros":
        path.write_bytes(content[:4] + b"\0" * 200 + content[204:])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"id": ["x"]}), path)
    with pytest.raises(gpt2_np.Error, match=r"part-0000000\.parquet is damaged"):
        summary.write_summary(given, 1)


def test_a_full_disk_is_the_error_of_the_system_that_the_driver_knows(tmp_path):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    given = job(tmp_path, [["x"]], {"x": (3, 4, -1.5)}, "parquet")
    with pytest.raises(OSError) as found, Full(str(tmp_path / "file"), "wb") as file, \
            shard_files.writer(file, given.work, "parquet") as write:
        write(given.work.records([Document("x", "x")]))
    assert found.value.errno == errno.ENOSPC

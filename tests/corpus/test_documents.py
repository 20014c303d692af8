"""Any cut of the inputs gives the same documents, and bad input a reason or one clear sentence."""
import contextlib
import gc
import gzip
import hashlib
import itertools
import json
import os
import pickle
import random
import tempfile
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2_np import Error
from gpt2_np.corpus import documents, formats
from gpt2_np.corpus.documents import Inputs, Shard
from gpt2_np.corpus.formats import Document, Span


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read_all(inputs):
    return [document for shard in inputs.shards() for document in inputs.read(shard)]


def reasons(documents):
    return [document.skipped or document.text for document in documents]


# --- any cut ---------------------------------------------------------------------------

RECORDS = [b'{"text": "a"}', '{"text": "é", "id": 7}'.encode(), b'{"id": "x"}', b"[]", b"{", b"",
           b'{"text": "' + b"long " * 9 + b'"}', b'{"text": "\\ud800"}', b'{"text": "a\\nb"}']
ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r"])
LINES = st.one_of(st.binary(max_size=12), st.text(max_size=8).map(str.encode), st.just(b"x" * 45),
                  st.sampled_from([b"", b"\r", b"\0", formats.BOM, b"\xff", *RECORDS]))
CONTENTS = st.tuples(
    st.sampled_from([b"", formats.BOM, formats.BOM[:2]]),
    st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=12).map(b"".join),
    st.sampled_from([b"", b"no end", b"\r", b"\n"]),
).map(b"".join)
LIMIT = 40


def expected(content, kind):
    """Return what is in a file, by definition: split at each newline, then look at each line."""
    offset, found = 0, []
    lines = content.split(b"\n")
    for number, line in enumerate(lines):
        is_last = number == len(lines) - 1
        start, offset = offset, offset + len(line) + 1
        if is_last and not line:
            break
        line = line if is_last else line.removesuffix(b"\r")
        line = line if start else line.removeprefix(b"\xef\xbb\xbf")
        found.append((start, *expected_text(line, kind)))
    return found


def expected_text(line, kind):
    if len(line) > LIMIT:
        return None, "over the limit"
    if not line or (kind == "jsonl" and not line.strip(b" \t\r")):
        return None, "empty"
    try:
        text = line.decode()
        if kind == "jsonl":
            text = json.loads(text, parse_constant=lambda constant: int("none"))["text"]
            text.encode()
    except UnicodeError:
        return None, "not UTF-8"
    except ValueError:
        return None, "not JSON"
    except (KeyError, TypeError):
        return None, "no such field"
    return (text, None) if text else (None, "empty")


def packed(content, members):
    """Return the content in gzip, as so many members."""
    edges = [len(content) * i // members for i in range(members + 1)]
    return b"".join(gzip.compress(content[start:end], 1)
                    for start, end in itertools.pairwise(edges))


@given(CONTENTS, st.sampled_from(["jsonl", "text"]), st.integers(0, 3), st.integers(1, 70),
       st.sampled_from([3, 2**16]), st.randoms())
@example(b"ab\n\ncd\r\ne\rf", "text", 0, 1, 3, random.Random(0))
@example(b"a\r\r\nb\r", "text", 0, 70, 3, random.Random(0))
@example(b"x" * 100 + b"\nend", "text", 2, 7, 3, random.Random(0))
def test_any_cut_in_any_order_gives_the_same_documents(content, kind, members, shard_bytes, piece,
                                                       order):
    with tempfile.TemporaryDirectory() as folder, patch.object(formats, "PIECE", piece), \
            patch.object(documents, "PIECE", piece):
        name = "a.txt" + ".gz" * bool(members)
        path = write(Path(folder, name), packed(content, members) if members else content)
        inputs = Inputs((path,), input_format=kind, max_bytes=LIMIT, shard_bytes=shard_bytes)
        inputs = pickle.loads(pickle.dumps(inputs))
        shards = list(inputs.shards())
        found = {shard: list(inputs.read(shard)) for shard in order.sample(shards, len(shards))}
        assert not shards or sum(shard.n_bytes for shard in shards) == inputs.n_bytes()
    assert [document for shard in shards for document in found[shard]] == [
        Document(f"{path}:{offset}", *text) for offset, *text in expected(content, kind)]


def test_small_spans_share_a_shard_and_large_files_are_cut(tmp_path):
    paths = [write(tmp_path / f"{i}.txt", b"x" * size)
             for i, size in enumerate([300, 0, 700, 2300, 300, 900])]
    inputs = Inputs(paths, shard_bytes=1000)
    assert [[(span.path[-5], span.start, span.end) for span in shard.spans]
            for shard in inputs.shards()] == [
        [("0", 0, 300), ("2", 0, 700)], [("3", 0, 1000)], [("3", 1000, 2000)],
        [("3", 2000, 2300), ("4", 0, 300)], [("5", 0, 900)]]
    assert [shard.number for shard in inputs.shards()] == list(range(5))
    assert inputs.n_shards() == 5


def test_files_as_documents_keep_their_line_ends(tmp_path):
    contents = {"b.txt": b"\xef\xbb\xbfone\r\ntwo\n", "a.txt": b"",
                "c.txt.gz": gzip.compress(b"x\n"),
                "d.txt": b"\xff", "e.txt": b"e" * 41, "f.txt": formats.BOM + b"f" * 40,
                "g.txt.gz": gzip.compress(b"g" * 100_000), "h.txt.gz": b"",
                "i.txt": b"i" * 100}
    paths = [write(tmp_path / name, content) for name, content in contents.items()]
    inputs = Inputs(paths, documents="files", max_bytes=40, shard_bytes=600)
    found = read_all(inputs)
    assert [document.id for document in found] == paths
    assert reasons(found) == ["one\r\ntwo\n", "empty", "x\n", "not UTF-8", "over the limit",
                              "f" * 40, "over the limit", "empty", "over the limit"]
    assert [len(shard.spans) for shard in inputs.shards()] == [2, 2, 2, 1, 2]


# --- what is skipped -------------------------------------------------------------------


@pytest.mark.parametrize(("line", "id", "found"), [
    ('{"text": "a", "id": "x"}', "x", "a"),
    ('{"id": 7, "text": "\\u00e9\\ud83d\\ude00"}', 7, "é😀"),
    ('{"text": "", "id": 1}', 1, "empty"),
    ('{"text": "\\ud800", "id": 1}', 1, "not UTF-8"),
    ('{"text": "a", "id": "\\udc00"}', None, "no id"),
    ('{"id": 1}', 1, "no such field"),
    ('{"text": "a"}', None, "no id"),
    ('{"text": null, "id": 1}', 1, "not a text"),
    ('{"text": ["a"], "id": 1}', 1, "not a text"),
    ('{"text": "a", "id": null}', None, "no id"),
    ('{"text": "a", "id": true}', None, "no id"),
    ('{"text": "a", "id": 1.0}', None, "no id"),
    ('{"text": "a", "id": {}}', None, "no id"),
    ('{"text": "", "id": null}', None, "no id"),
    ('{"text": "a", "id": ""}', "", "a"),
    ('{"text": "a", "id": 1, "x": NaN}', None, "not JSON"),
    ('{"text": "a", "id": 1, "x": -Infinity}', None, "not JSON"),
    ('{"text": "a", "id": 1', None, "not JSON"),
    ("{'text': 'a'}", None, "not JSON"),
    ('{"text": "a", "id": ' + "1" * 5000 + "}", None, "not JSON"),
    ('{"text": "a", "id": 1, "x": ' + "[" * 300 + "]" * 300 + "}", None, "not JSON"),
    ("[" * 100_000, None, "not JSON"),
    ('{"text": "' + "[{" * 300 + '\\"[", "id": 1}', 1, "[{" * 300 + '"['),
    ('{"id": 1, "x": [' + "[]," * 300 + '1], "text": "a"}', 1, "a"),
    ('["text"]', None, "no such field"),
    ('"text"', None, "no such field"),
    (" \t\r", None, "empty"),
])
def test_a_record_of_json_has_a_text_or_a_reason(tmp_path, line, id, found):
    path = write(tmp_path / "a.jsonl", f"{{}}\n{line}\n")
    document = read_all(Inputs(path, id="id"))[1]
    assert document.id == (f"{path}:3" if id is None else id)
    assert type(document.id) is (str if id is None else type(id))
    assert (document.skipped or document.text) == found
    assert (document.skipped is None) == (document.text is not None)


def test_the_limit_of_nesting_does_not_depend_on_the_caller():
    def parsed(levels, record):
        return parsed(levels - 1, record) if levels else formats.json_document(
            "a:0", record, "text", None)

    for depth, skipped in (199, None), (200, "not JSON"):
        record = b'{"text": "a", "x": ' + b"[" * depth + b"]" * depth + b"}"
        assert {parsed(levels, record).skipped for levels in (0, 300)} == {skipped}


def test_an_unclosed_string_of_many_quotes_takes_no_time():
    with pytest.raises(ValueError, match="Unterminated"):
        formats.parse('{"' + "[" * 300 + '\\"' * 1_000_000)


# --- files that are none ---------------------------------------------------------------


def test_bad_inputs_are_one_sentence_each(tmp_path):
    good = write(tmp_path / "a.jsonl", "")
    text, packed_text = write(tmp_path / "b.txt", ""), write(tmp_path / "c.txt.gz", "x")
    for paths, options, sentence in [
        ([], {}, "there are no input files: name at least one"),
        ([tmp_path / "no.txt"], {}, r"no.txt cannot be read: No such file"),
        ([tmp_path], {}, "is a folder: name the files in it"),
        ([b"a.txt"], {}, r"b'a.txt' cannot be the name of an input"),
        (["a\0.txt"], {}, r"'a\\x00.txt' cannot be the name"),
        (["a\udcff.txt"], {}, r"'a\\udcff.txt' cannot be the name"),
        ([None], {}, "None cannot be the name"),
        ([good, text, tmp_path / "." / "a.jsonl"], {}, "a.jsonl are the same file: name it once"),
        ([write(tmp_path / "a.csv", "")], {}, r"a.csv has none of the suffixes \.jsonl, .*"
         "give input_format, which is jsonl, text or parquet"),
        ([write(tmp_path / "a.gz", "")], {}, "a.gz has none of the suffixes"),
        ([packed_text], {}, "c.txt.gz is not a gzip file, though its name says so: rename it"),
        ([good], {"input_format": "json"}, "input_format is 'json', expected one of jsonl, "),
        ([write(tmp_path / "a.parquet", "")], {"input_format": "text"},
         "a.parquet is Parquet by its name, but input_format is text: leave it out"),
        ([write(tmp_path / "b.parquet.gz", "")], {}, "is Parquet in gzip: unpack it first"),
        ([text], {"id": "id"}, "b.txt is plain text, which has no field 'id': leave out id"),
        ([good], {"documents": "files"}, "a.jsonl is jsonl, but only a file of plain text can be"),
        ([text], {"documents": "words"}, "documents is 'words', expected lines or files"),
        ([text], {"max_bytes": 0}, "max_bytes is 0: it must be an integer from 1 up"),
        ([text], {"max_bytes": 2**63}, "max_bytes is 9223372036854775808: it must be at most"),
        ([text], {"shard_bytes": 1.5}, "shard_bytes is 1.5: it must be an integer"),
    ]:
        with pytest.raises(Error, match=sentence) as error:
            Inputs(paths, **options)
        assert "\n" not in str(error.value)


def test_a_link_to_a_file_that_is_given_is_the_same_file(tmp_path):
    path, link = write(tmp_path / "a.txt", "a"), tmp_path / "b.txt"
    link.symlink_to(path)
    with pytest.raises(Error, match=r"a\.txt and .*b\.txt are the same file"):
        Inputs((path, link))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(Error, match=r"a\.txt is not a regular file but a pipe or a device"):
        Inputs(tmp_path / "a.txt")


def test_a_file_without_permission_is_refused_before_the_run(tmp_path):
    path = write(tmp_path / "a.txt", "a")
    with patch.object(os, "access", lambda path, mode: False), \
            pytest.raises(Error, match=r"a\.txt cannot be read: permission denied"):
        Inputs(path)


def test_formats_can_be_mixed_and_suffixes_have_any_case(tmp_path):
    paths = [write(tmp_path / "a.NDJSON", '{"text": "a"}'), write(tmp_path / "b.text", "b\n"),
             write(tmp_path / "c.JSONL.GZ", gzip.compress(b'{"text": "c"}\n')),
             write(tmp_path / "d.txt.gz", gzip.compress(b""))]
    inputs = Inputs(paths)
    assert reasons(read_all(inputs)) == ["a", "b", "c"]
    assert sum(shard.n_bytes for shard in inputs.shards()) == inputs.n_bytes()
    assert reasons(read_all(Inputs(paths[0], input_format="text"))) == ['{"text": "a"}']


# --- damaged files ---------------------------------------------------------------------

WHOLE = "".join(f"line {i} {random.Random(i).getrandbits(200):x}\n" for i in range(4000)).encode()
PACKED = gzip.compress(WHOLE)
HALF = len(PACKED) // 2
# How a file is damaged, and the text that can be read.
DAMAGED = {
    "truncated": (PACKED[:HALF], zlib.decompressobj(31).decompress(PACKED[:HALF])),
    "no checksum": (PACKED[:-8], WHOLE),
    "wrong checksum": (PACKED[:-8] + bytes(8), WHOLE),
    "garbage behind": (PACKED + b"garbage", WHOLE),
    "second header cut": (PACKED + PACKED[:7], WHOLE),
    "second part cut": (gzip.compress(b"one\ntwo\nth") + PACKED[:10], b"one\ntwo\nth"),
    "only a header": (PACKED[:10], b""),
    "half a header": (PACKED[:5], b""),
}


def read_damaged(inputs):
    """Return all documents, and the error that follows them."""
    found, shards = [], inputs.shards()
    with pytest.raises(Error) as error:
        for shard in shards:
            found += inputs.read(shard)
    return found, str(error.value)


@pytest.mark.parametrize("shard_bytes", [1000, 2**20])
@pytest.mark.parametrize("way", DAMAGED)
def test_damaged_gzip_gives_its_whole_lines_and_then_an_error(tmp_path, way, shard_bytes):
    """A line that is cut is not taken for a document. Files that come later are read too."""
    data, text = DAMAGED[way]
    paths = write(tmp_path / "bad.txt.gz", data), write(tmp_path / "good.txt", "good")
    found, error = read_damaged(Inputs(paths, shard_bytes=shard_bytes))
    assert error.startswith(f"{paths[0]} is damaged after {len(text):,} bytes of text (")
    lines = text[: text.rfind(b"\n") + 1].decode().splitlines()
    assert reasons(found) == [*lines, "good"]


def test_gzip_with_wrong_bytes_in_the_middle_gives_what_comes_before(tmp_path):
    path = write(tmp_path / "a.txt.gz", PACKED[:HALF] + b"\xff" * 99 + PACKED[HALF + 99:])
    found, error = read_damaged(Inputs(path, shard_bytes=1000))
    assert f"{path} is damaged after " in error
    assert reasons(found)[:900] == WHOLE.decode().splitlines()[:900]


def test_a_damaged_file_that_is_one_document_is_left_out(tmp_path):
    paths = [write(tmp_path / "a.txt.gz", gzip.compress(b"text")[:-3]),
             write(tmp_path / "b.txt", "b"), write(tmp_path / "c.txt.gz", gzip.compress(b"")[:9])]
    found, error = read_damaged(Inputs(paths, documents="files"))
    assert "a.txt.gz is damaged after 4 bytes" in error
    assert f": it is left out; damaged too: {paths[2]}. Fetch what is damaged again" in error
    assert found == [Document(paths[1], "b")]


# --- files that change -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("documents", ["lines", "files"])
def test_a_file_that_shrinks_is_an_error(tmp_path, name, documents):
    def content(n_bytes):
        text = b"line\n" * (n_bytes // 5)
        return gzip.compress(text) if name.endswith("gz") else text

    path = write(tmp_path / name, content(1000))
    inputs = Inputs(path, documents=documents, shard_bytes=300)
    shards = list(inputs.shards())
    write(tmp_path / name, content(500))
    for shard in shards if documents == "files" else shards[1:]:
        with pytest.raises(Error, match=r"a\.txt.* has changed while it is read: it ends earlier"):
            list(inputs.read(shard))
    os.remove(path)
    for reading in (lambda: list(inputs.read(shards[0])), lambda: list(inputs.shards()),
                    inputs.fingerprint, inputs.n_bytes):
        with pytest.raises(Error, match=r"a\.txt.* cannot be read: No such file"):
            reading()


def test_a_replaced_file_is_opened_again(tmp_path):
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"a\n" * 500))
    inputs = Inputs(path, shard_bytes=300)
    first, second = list(inputs.shards())[:2]
    assert set(reasons(inputs.read(first))) == {"a"}
    write(tmp_path / "a.txt.gz", gzip.compress(b"b\n" * 500))  # of the same size
    os.utime(path, ns=(0, 5))
    assert set(reasons(inputs.read(second))) == {"b"}


def test_a_worker_unpacks_a_file_once(tmp_path):
    path = write(tmp_path / "a.txt.gz", PACKED)
    inputs, opened = Inputs(path, shard_bytes=10_000), []
    shards = list(inputs.shards())

    class Counted(formats.Unpacked):
        def __init__(self, file):
            opened.append(file.name)
            super().__init__(file)

    with patch.object(formats, "Unpacked", Counted):
        for shard in shards:
            list(inputs.read(shard))
        assert len(opened) == 1
        list(inputs.read(shards[2]))
        assert len(opened) == 2  # it went back
        with patch.object(os, "getpid", lambda: -1):  # as in a fork, which shares the open file
            list(inputs.read(shards[3]))
        assert len(opened) == 3
        with contextlib.closing(inputs.read(shards[4])) as abandoned:
            next(abandoned)
        list(inputs.read(shards[5]))
        assert len(opened) == 5


def test_a_reader_that_is_dropped_closes_its_file(tmp_path):
    """A thread's last one is dropped when the thread ends. Warnings are errors here."""
    path = write(tmp_path / "a.txt.gz", PACKED)
    inputs, open_text, opened = Inputs(path, shard_bytes=10_000), formats.open_text, []

    def spy(path):
        opened.append(open_text(path))
        return opened[-1]

    with patch.object(formats, "open_text", spy), ThreadPoolExecutor(1) as pool:
        for shard in inputs.shards():
            pool.submit(lambda shard=shard: list(inputs.read(shard))).result()
        assert not opened[0].closed
    gc.collect()
    assert [stream.closed for stream in opened] == [True]


def test_threads_do_not_share_a_place(tmp_path):
    path = write(tmp_path / "a.txt.gz", PACKED)
    inputs = Inputs(path, shard_bytes=10_000)
    shards = list(inputs.shards())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda shard: reasons(inputs.read(shard)), shards))
    assert list(itertools.chain(*found)) == WHOLE.decode().splitlines()


# --- memory ----------------------------------------------------------------------------


@contextlib.contextmanager
def at_most(n_bytes):
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n_bytes


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.txt.gz"])
def test_a_line_over_the_limit_is_never_held(tmp_path, name):
    """The packed one is a bomb: it grows 200 times."""
    content = b"a\n" + b"x" * 2**23 + b"\n" + b"\0" * 2**23 + b"\nb"
    path = write(tmp_path / name, gzip.compress(content, 1) if name.endswith("gz") else content)
    inputs = Inputs(path, input_format="text", max_bytes=1000, shard_bytes=2**21)
    del content
    with at_most(2**20):
        found = read_all(inputs)
    assert reasons(found) == ["a", "over the limit", "over the limit", "b"]
    assert [document.id for document in found] == [
        f"{path}:{offset}" for offset in (0, 2, 2**23 + 3, 2**24 + 4)]
    if name != "a.jsonl":
        with at_most(2**20):
            assert reasons(read_all(Inputs(path, documents="files", max_bytes=99))) == [
                "over the limit"]


def test_a_hundred_gigabytes_are_cut_without_reading_them(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n')
    size = 100 * 10**9
    try:
        os.truncate(path, size)
    except OSError:
        pytest.skip("this file system has no sparse files")
    inputs = Inputs(path, max_bytes=1000)
    with at_most(2**20):
        shards = inputs.shards()
        first = next(shards)
        assert reasons(inputs.read(first)) == ["a", "over the limit"]
        last = Shard(-1, (Span(path, -1, first.spans[0].end),), 0)
        for shard in itertools.chain([first], shards):
            assert shard.number == last.number + 1
            assert shard.spans[0].start == max(0, last.spans[0].end) * (shard.number > 0)
            last = shard
    assert last.spans[0].end == inputs.n_bytes() == size
    assert last.number == 9_999


def test_shards_of_many_files_are_not_held(tmp_path):
    path = write(tmp_path / "a.txt", "a")
    inputs = Inputs(path, documents="files")
    object.__setattr__(inputs, "paths", (path,) * 3000)
    with at_most(2**18):
        assert sum(len(shard.spans) for shard in inputs.shards()) == 3000
    assert inputs.n_shards() == 3  # a span counts for 256 bytes


# --- what a run remembers --------------------------------------------------------------


def test_the_fingerprint_tells_path_size_time_and_first_bytes(tmp_path):
    path = write(tmp_path / "a.txt", b"x" * 70_000)
    os.utime(path, ns=(0, 123456789))
    head = hashlib.sha256(b"x" * 65_536).hexdigest()
    assert Inputs(path).fingerprint() == [
        {"path": path, "size": 70_000, "mtime_ns": 123456789, "sha256": head}]


def test_the_fingerprint_of_many_files_is_short_and_sees_every_change(tmp_path):
    paths = [write(tmp_path / f"{i}.txt", str(i)) for i in range(7)]
    with patch.object(documents, "MOST_PRINTS", 3):
        first = Inputs(paths).fingerprint()
        assert [entry["path"] for entry in first] == [
            f"{paths[0]} to {paths[2]}", f"{paths[3]} to {paths[5]}", paths[6]]
        assert [len(entry["sha256"]) for entry in first] == [64, 64, 64]
        os.utime(paths[4], ns=(0, 5))
        second = Inputs(paths).fingerprint()
        write(tmp_path / "0.txt", "xy")
        os.utime(paths[0], ns=(0, os.stat(paths[1]).st_mtime_ns))
        third = Inputs(paths).fingerprint()
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True]
    assert [a == b for a, b in zip(second, third, strict=True)] == [False, True, True]


def test_inputs_can_be_pickled_and_need_no_paths_to_read(tmp_path):
    path = write(tmp_path / "a.txt", "a\nb")
    inputs = Inputs(path)
    assert pickle.loads(pickle.dumps(inputs)) == inputs
    worker = pickle.loads(pickle.dumps(inputs.for_worker()))
    assert worker.paths == ()
    assert inputs.paths == (path,)
    assert [reasons(worker.read(shard)) for shard in inputs.shards()] == [["a", "b"]]


def test_the_number_of_shards_is_known_at_once_unless_a_file_is_packed(tmp_path):
    path = write(tmp_path / "a.txt", "a" * 1000)
    packed_path = write(tmp_path / "b.txt.gz", PACKED)
    assert Inputs(path, shard_bytes=400).n_shards() == 3
    assert Inputs((path, packed_path)).n_shards() is None
    with patch.object(documents, "MOST_SHARDS", 2):
        assert Inputs(path, least_shard_bytes=400).n_shards() == 2
        assert Inputs(path, shard_bytes=400).n_shards() == 3

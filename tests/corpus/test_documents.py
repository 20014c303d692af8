"""Any cut of the inputs gives the same documents, and bad input a reason or one clear sentence."""
import gzip
import itertools
import json
import pickle
import random
import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import example, given
from hypothesis import strategies as st

from gpt2_np.corpus import documents, formats
from gpt2_np.corpus.documents import Document, Inputs


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
            text = json.loads(text)["text"]
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

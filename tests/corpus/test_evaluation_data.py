"""Data of evaluations: fetched, verified, found offline, and read by the rules of their tasks."""
import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from server import Server

from gpt2_np import Error
from gpt2_np.checkpoint import CheckpointError, DownloadError, cache_folder, transfer
from gpt2_np.corpus import evaluation_data as data

LAMBADA = "".join(json.dumps({"text": text}) + "\n" for text in
                  ["she went to the café", "he said  no", "a b."]).encode()
WIKITEXT = """ \n = Robert Boulter = \n \n Robert Boulter is an English film , television actor .
 \n = = Career = = \n \n = = = 2000 – 2005 = = = \n \n He said " no , " at 20 ° C ( twice ) .
 \n = Du Fu = \n \n Du Fu 's poems : 1 @,@ 500 . \n"""
SERVED = {"lambada": "data/lambada_test.jsonl",
          "wikitext2": "datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip"}
CONTENTS = {"lambada": LAMBADA}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def archive(**files):
    with io.BytesIO() as content:
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
            for name, text in files.items():
                file.writestr(name.replace("__", "/").replace("_", "."), text)
        return content.getvalue()


CONTENTS["wikitext2"] = archive(wiki__wiki_train_raw="no " * 99, wiki__wiki_test_raw=WIKITEXT)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("GPT2_NP_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.001)
    for name, content in CONTENTS.items():
        pinned = data.FILES[name]._replace(
            size=len(content), sha256=sha256(content), contents=())
        monkeypatch.setitem(data.FILES, name, pinned)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with Server(tmp_path / "served") as server:
        for name, path in SERVED.items():
            (server.folder / path).parent.mkdir(parents=True)
            (server.folder / path).write_bytes(CONTENTS[name])
        monkeypatch.setenv("GPT2_NP_URL", server.url + "/models")
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


# --- fetching --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVED)
def test_a_published_file_is_fetched_once_from_its_mirror_and_verified(server, name):
    path = data.data_file(name)
    assert Path(path).read_bytes() == CONTENTS[name]
    assert data.data_file(name) == path and data.is_published(name, path)
    assert server.paths() == ["/" + SERVED[name]]
    assert sorted(file.name for file in cache_folder().rglob("*") if file.is_file()) == [
        ".lock", data.FILES[name].name]


def test_a_mirror_may_have_a_path_of_its_own(server, monkeypatch):
    monkeypatch.setenv("GPT2_NP_URL", server.url + "/mirror/gpt-2/")
    server.redirects["/mirror/gpt-2/data/lambada_test.jsonl"] = server.url + "/" + SERVED["lambada"]
    assert data.is_published("lambada", data.data_file("lambada"))


def test_a_transfer_that_breaks_off_goes_on(server, monkeypatch):
    monkeypatch.setattr(transfer, "PIECE", 16)
    server.cut = len(CONTENTS["wikitext2"]) // 3
    assert data.is_published("wikitext2", data.data_file("wikitext2"))
    assert {status for *_, status in server.log} == {200, 206}


def test_another_file_than_the_published_one_is_refused(server):
    server.instead["/" + SERVED["lambada"]] = LAMBADA.replace(b"no", b"on")
    with pytest.raises(CheckpointError, match=r"has SHA-256 .*: it is not the official file"):
        data.data_file("lambada")
    assert not [*cache_folder().rglob("*.jsonl"), *cache_folder().rglob("*.part")]
    server.instead["/" + SERVED["lambada"]] = LAMBADA + b" "
    with pytest.raises(CheckpointError, match="bytes, expected"):
        data.data_file("lambada")


@pytest.mark.parametrize("name", SERVED)
def test_offline_the_sentence_says_which_file_to_put_where(monkeypatch, name):
    monkeypatch.setenv("GPT2_NP_OFFLINE", "1")
    with pytest.raises(DownloadError) as found:
        data.data_file(name)
    target = cache_folder() / "evaluations" / data.FILES[name].name
    for words in (str(target), data.FILES[name].sha256, "forbids the network", "--data"):
        assert words in str(found.value)
    assert "shakespeare" not in str(found.value) and not cache_folder().exists()
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENTS[name])
    assert data.data_file(name) == str(target)
    target.write_bytes(CONTENTS[name][:-1])
    with pytest.raises(DownloadError, match="is damaged"):
        data.data_file(name)


def test_a_server_that_does_not_have_the_file(server):
    (server.folder / SERVED["lambada"]).unlink()
    with pytest.raises(DownloadError, match=r"answered 404.*; otherwise put .* at .*, or give"):
        data.data_file("lambada")


def test_a_given_file_is_taken_as_it_is(tmp_path, server):
    given = tmp_path / "mine.jsonl"
    given.write_bytes(LAMBADA)
    assert data.data_file("lambada", given) == str(given) == data.data_file(str(given))
    assert data.is_published("lambada", given) and not data.is_published(str(given), given)
    given.write_bytes(LAMBADA + LAMBADA)
    assert not data.is_published("lambada", given)
    assert not server.log


def test_the_text_of_an_archive_counts_as_published_too(tmp_path, monkeypatch):
    text = tmp_path / "wiki.test.raw"
    text.write_text(WIKITEXT)
    file = data.FILES["wikitext2"]._replace(contents=(sha256(WIKITEXT.encode()),))
    monkeypatch.setitem(data.FILES, "wikitext2", file)
    assert data.is_published("wikitext2", text)


@pytest.mark.parametrize("name, given, words", [
    ("lambda", None, "'lambda' is neither an evaluation .lambada, wikitext2. nor a file"),
    (7, None, "7 is neither an evaluation"),
    ("texts.jsonl", "x.jsonl", "data goes with lambada and wikitext2: leave it out"),
])  # fmt: skip
def test_a_name_that_is_nothing(name, given, words):
    with pytest.raises(Error, match=words):
        data.data_file(name, given)


# --- LAMBADA ---------------------------------------------------------------------------


def test_the_last_word_has_the_space_before_it(tmp_path):
    file = tmp_path / "passages.txt"
    file.write_bytes(LAMBADA)
    assert data.read_lambada(str(file)) == [
        ("she went to the", " café"), ("he said", "  no"), ("a", " b.")]


@pytest.mark.parametrize("content, words", [
    ('{"text": "two words"}\n{"text": "two', "jsonl:22: not JSON, expected JSON with a passage"),
    ('{"passage": "two words"}', "jsonl:0: no such field, expected JSON .* in 'text'"),
    ('{"text": 3}', "jsonl:0: not a text"), ('{"text": ""}', "jsonl:0: empty, expected"),
    ('{"text": "word"}', "jsonl:0 is 'word', expected .* of two words at least"),
    ('{"text": " word"}', "is ' word', expected"), ('{"text": "a word "}', "is 'a word ', expect"),
    ("two words", "jsonl:0: not JSON"), ("", "passages.jsonl is empty, expected JSON"),
    (b'{"text": "a \xff"}', "jsonl:0: not UTF-8"),
])  # fmt: skip
def test_a_passage_that_is_none_is_named(tmp_path, content, words):
    file = tmp_path / "passages.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Error, match=words):
        data.read_lambada(str(file))


def test_a_file_that_is_missing(tmp_path):
    for read in data.read_lambada, data.read_wikitext:
        with pytest.raises(Error, match=r"nothing.jsonl cannot be read: No such file"):
            read(str(tmp_path / "nothing.jsonl"))


# --- WikiText --------------------------------------------------------------------------


def test_the_test_text_comes_from_the_archive_or_a_file(tmp_path):
    for name, content in (("a.zip", CONTENTS["wikitext2"]), ("a.raw", WIKITEXT.encode())):
        (tmp_path / name).write_bytes(content)
        assert data.read_wikitext(str(tmp_path / name)) == WIKITEXT


def damaged():
    content = bytearray(CONTENTS["wikitext2"])
    content[content.index(b"wiki.test.raw") + 40] ^= 255
    return bytes(content)


@pytest.mark.parametrize("content, words", [
    (damaged(), r"is a damaged archive \(.*\): fetch it again"),
    (CONTENTS["wikitext2"][:-30], r"is a damaged archive \(File is not a zip file\)"),
    (archive(wiki__wiki_train_raw="x"), "has 0 files wiki.test.raw, expected one"),
    (archive(a__wiki_test_raw="x", b__wiki_test_raw="y"), "has 2 files wiki.test.raw"),
    (archive(wiki_test_raw=" \n"), "has no text"), (b"", "has no text, expected the test text"),
    (b"a \xff", "is not UTF-8 text, see its byte 2"),
    (archive(wiki_test_raw=b"x" * 2000), "over 1,000 bytes"), (b"x" * 2000, "over 1,000 bytes"),
])  # fmt: skip
def test_a_bad_archive_or_text_is_one_sentence(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(data, "MAX_TEXT", 1000)
    file = tmp_path / "wikitext.zip"
    file.write_bytes(content)
    with pytest.raises(Error, match=words):
        data.read_wikitext(str(file))


def test_rows_are_joined_as_the_documentation_of_transformers_does():
    assert data.joined_rows(" \n = A = \n \n b c \n") == "\n\n = A = \n\n\n\n\n b c \n"


def test_articles_begin_at_their_titles_and_not_at_sections():
    first, second = data.pages(WIKITEXT)
    assert first.startswith(" = Robert Boulter = \n") and first.endswith(" twice ) .\n ")
    assert "= = Career = =" in first and "= = = 2000" in first
    assert second == " = Du Fu = \n \n Du Fu 's poems : 1 @,@ 500 . \n"
    assert data.pages("no title\nat all") == ["no title\nat all"]


def test_articles_are_detokenized():
    assert [data.detokenized(article) for article in data.pages(WIKITEXT)] == [
        " = Robert Boulter =\n\nRobert Boulter is an English film, television actor .\n\n"
        '== Career ==\n\n=== 2000 – 2005 ===\n\nHe said "no," at 20°C (twice) .\n',
        " = Du Fu =\n\nDu Fu's poems: 1,500.\n"]


def test_brackets_and_quotes_without_a_partner_stay():
    """A million of them take no time: if each searched to the end, it would be hours."""
    assert data.detokenized("( a ( b ) [ c") == "(a ( b) [ c"
    assert data.detokenized('" a " b " c') == '"a" b " c'
    for odd in ("( ", "[", "{ x"):
        assert data.detokenized(odd * 10**6) == odd * 10**6


def test_words_are_counted_in_the_original_article():
    article = " = Du Fu = \n \n Du Fu 's poems : 1 @,@ 500 . \n"
    assert data.n_words(article) == 4 + 9 + 2  # an empty one at each end
    assert data.n_word_tokens(article) == 4 + 9 + 3
    assert data.n_word_tokens(article.rstrip("\n")) == 4 + 9 + 3

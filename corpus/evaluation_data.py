"""The texts of published evaluations: LAMBADA as OpenAI used it, and WikiText-2's raw test text.

They come from their publishers into the folder of downloads, as a checkpoint's files do.
"""
from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from typing import Any, BinaryIO, NamedTuple

from ..bpe import PART, shown
from ..checkpoint.cache import cache_folder, locked
from ..checkpoint.files import reason
from ..checkpoint.official import HUB_URL, OPENAI_URL, Pins
from ..checkpoint.sources import DownloadError, Source, hub_token, server
from ..checkpoint.transfer import WITHOUT_NETWORK, fetch, hash_of, tag_file
from ..gpt2_np import Error
from .documents import Inputs

MAX_TEXT = 2**26  # bytes of a text that is read whole; WikiText-2's test text has 1.3 MB


class PublishedFile(NamedTuple):
    """A file of an evaluation. `mirror` is the variable that may name another server."""

    name: str
    size: int
    sha256: str
    mirror: str
    contents: tuple[str, ...] = ()  # the SHA-256 of what is read from an archive

    def source(self, progress: bool) -> Source:
        folder = cache_folder() / "evaluations"
        pinned: Pins = {self.name: (self.size, self.sha256)}
        if self.mirror == "GPT2_NP_URL":  # .../models, beside which OpenAI has .../data
            url, credentials = server(self.mirror, OPENAI_URL)
            url = url.removesuffix("/models") + "/data"
        else:
            hub, credentials = server(self.mirror, HUB_URL)
            url = f"{hub}/datasets/ggml-org/ci/resolve/main"
            credentials = credentials or hub_token(hub)
        return Source(url, folder, progress, pinned, None, credentials=credentials)


FILES = {
    "lambada": PublishedFile(
        "lambada_test.jsonl", 1819752,
        "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226", "GPT2_NP_URL"),
    "wikitext2": PublishedFile(
        "wikitext-2-raw-v1.zip", 4721645,
        "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11", "HF_ENDPOINT",
        ("173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",)),
}  # fmt: skip


def data_file(name: Any, given: Any = None, progress: bool = False) -> str:
    """Return the path of an evaluation's data: the given file, or the published one, fetched.

    Any other name is the path of the data itself. Raises DownloadError if the published file is not
    available, CheckpointError if a server has another one.
    """
    if name not in FILES:
        if given is not None:
            raise Error(f"data goes with {' and '.join(FILES)}: leave it out, {name} is the data")
        if not isinstance(name, str | os.PathLike) or not os.path.exists(name):
            raise Error(f"{shown(name)} is neither an evaluation ({', '.join(FILES)}) nor a file: "
                        "check the spelling")
        return os.fspath(name)
    if given is not None:
        return os.fspath(given)
    published = FILES[name]
    source = published.source(progress)
    target = source.folder / published.name
    try:
        with locked(source.folder, source.say):
            fetch(source, published.name)
            tag_file(target.with_name(published.name + PART)).unlink(missing_ok=True)
    except DownloadError as error:
        cause = str(error).removesuffix(f"; {WITHOUT_NETWORK}")
        raise DownloadError(
            f"{cause}; otherwise put {source.url}/{published.name} ({published.size:,} bytes, "
            f"SHA-256 {published.sha256}) at {target}, or give its path with --data"
        ) from error
    except OSError as error:
        raise DownloadError(f"{error.filename or source.folder} cannot be used: {reason(error)}; "
                            "set GPT2_NP_CACHE to another folder") from error
    return str(target)


def is_published(name: str, path: str) -> bool:
    """Return True if a file is the published one, or what the evaluation reads from it."""
    from pathlib import Path

    published = FILES.get(name)
    if published is None:
        return False
    return hash_of(Path(path)).hexdigest() in (published.sha256, *published.contents)


# --- LAMBADA ---------------------------------------------------------------------------


class Passage(NamedTuple):
    """A passage whose last word is to be predicted. The word has the space before it."""

    context: str
    word: str


def read_lambada(path: str, field: str = "text") -> list[Passage]:
    """Return the passages of a file of JSON lines. The last word follows the last space."""
    inputs, passages = Inputs((path,), field=field, input_format="jsonl"), []
    expected = f"expected JSON with a passage in {shown(field)}, of two words at least"
    for shard in inputs.shards():
        for id, text, skipped in inputs.read(shard):
            if text is None:
                raise Error(f"{id}: {skipped}, {expected}")
            context = text.rpartition(" ")[0].rstrip()  # more spaces belong to the word
            word = text[len(context) :]
            if not context or not word.strip():
                raise Error(f"{id} is {shown(text)}, {expected}")
            passages.append(Passage(context, word))
    if not passages:
        raise Error(f"{path} is empty, {expected}")
    return passages


# --- WikiText --------------------------------------------------------------------------


def read_wikitext(path: str) -> str:
    """Return the test text of WikiText from its zip file, or from a file of the text alone."""
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\3\4"
            file.seek(0)
            data = member_text(path, file) if is_zip else file.read(MAX_TEXT + 1)
        text = data.decode()
    except OSError as error:
        raise Error(f"{path} cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise Error(f"{path} is not UTF-8 text, see its byte {error.start:,}") from error
    if len(data) > MAX_TEXT:
        raise Error(f"{path} has a test text of over {MAX_TEXT:,} bytes: give a shorter one")
    if not text.strip():
        raise Error(f"{path} has no text, expected the test text of WikiText")
    return text


def member_text(path: str, file: BinaryIO) -> bytes:
    """Return the test text of an archive. Raises Error if there is none, or it is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith("wiki.test.raw")]
            if len(names) != 1:
                raise Error(f"{path} has {len(names)} files wiki.test.raw, expected one: give the "
                            "archive wikitext-2-raw-v1.zip, or the text itself")
            with archive.open(names[0]) as member:
                return member.read(MAX_TEXT + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise Error(f"{path} is a damaged archive ({error}): fetch it again") from error


def joined_rows(text: str) -> str:
    """Return the text as the documentation of transformers joins it: rows, with "\\n\\n" between.

    A row is a line with its end; a line of spaces alone is an empty row.
    """
    return "\n\n".join(row if row.strip() else "" for row in io.StringIO(text))


def pages(text: str) -> list[str]:
    """Return the articles of a text of WikiText as lm-eval's task `wikitext` cuts them.

    An article begins at a heading " = Title = ", not " = = Section = = ". Blank lines before the
    first one are left out.
    """
    articles, lines = [], []
    for line in text.split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            articles.append("\n".join(lines))
            lines = []
        lines.append(line)
    return [page for page in [*articles, "\n".join(lines)] if page.strip()]


FIRST = [("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
         *((f" {mark} ", f"{mark} ") for mark in ":;.!?,")]
PAIRS = [("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'")]  # without spaces inside
LAST = [("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"), (" \n", "\n"),
        ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")]  # fmt: skip


def detokenized(page: str) -> str:
    """Return an article as ordinary text, by the rules of lm-eval's task and of Megatron-LM.

    OpenAI's own rules were not published. These cannot be inverted exactly.
    """
    for old, new in FIRST:
        page = page.replace(old, new)
    for first, last in PAIRS:
        inside = rf"{re.escape(first)}([^{re.escape(last)}]*){re.escape(last)}"
        end = page.rfind(last) + 1  # after it, each `first` would search to the end in vain
        page = re.sub(inside, lambda found: found[0][0] + found[1].strip() + found[0][-1],
                      page[:end]) + page[end:]
    for old, new in LAST:
        page = page.replace(old, new)
    return page


def n_words(page: str) -> int:
    """Return the words of an article as lm-eval counts them, with the empty ones at its ends."""
    return len(re.split(r"\s+", page))


def n_word_tokens(page: str) -> int:
    """Return the tokens of an article as WikiText counts them: words, and the end of each line."""
    return len(page.split()) + page.count("\n") + (not page.endswith("\n"))

"""One file from a server: whole, verified, and continued after a transfer that broke off.

Errors of `requests` are not chained to ours, because they show addresses with all that is in them.
"""
from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bpe import PART, shown
from .bundle import DATA
from .cache import TAG
from .files import MAX_SMALL_FILE, CheckpointError
from .layouts import HUGGING_FACE
from .sources import DownloadError, Source, redacted
from .vocabulary import MAX_TOKENIZER_JSON, tokenizer_files

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT = (10, 30)  # seconds to connect, and to wait for the next bytes
ATTEMPTS = 5  # in a row without a new byte
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the next attempt; they double
PIECE = 2**16  # bytes
WITHOUT_NETWORK = (
    "without a network, run the embedded model (--model shakespeare) or give the path of a "
    "checkpoint's folder"
)


class Unavailable(DownloadError):
    """A source cannot serve the model now. Another may."""


class Insecure(Unavailable):
    """The server sends us where others on the way could read and change the file."""


class NotServed(Unavailable):
    """The server answers, and does not have the file."""


class TooLarge(NotServed):
    """The server has a file of that name, which has more bytes than such a file may have."""


class Changed(Exception):
    """The server has another version of the checkpoint than the one whose files are noted."""


class Interrupted(Exception):
    """A transfer broke off, and may succeed when it is tried again."""

    def __init__(self, message: str, attempts: int = ATTEMPTS, wait: float = 0.0):
        super().__init__(message)
        self.attempts, self.wait = attempts, wait  # the wait is in seconds


class Fetched(NamedTuple):
    """A file that is there: its SHA-256, and the hub's commit if it has just been answered."""

    sha256: str
    commit: str | None = None


def offline() -> bool:
    """Return True if the environment forbids the network."""
    values = (os.environ.get(name, "") for name in ("GPT2_NP_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.lower() in ("1", "true", "yes", "on") for value in values)


def fetch(
    source: Source, name: str, size: int | None = None, noted: list[Any] | None = None
) -> Fetched:
    """Bring a file into the source's folder, unless it is there as it should be.

    `noted` is what the note of verified files has about it: length, time, and SHA-256. A file
    without a note and without a pin may be of an earlier version, because a server may change
    between two runs. Then the server is asked again. Raises DownloadError if the file is not
    available. Raises CheckpointError if it is not the pinned one, Changed if it is not the noted.
    """
    url, target = f"{source.url}/{name}", source.folder / name
    part = target.with_name(name + PART)
    pinned_size, sha256 = source.pinned.get(name, (None, None))
    size = size if pinned_size is None else pinned_size
    noted_sha256 = noted[2] if noted and len(noted) > 2 else None
    state = "is damaged" if target.exists() else "is not in the cache"
    if target.exists():
        may_change = name not in source.pinned and not noted
        if may_change and not offline() and os.access(source.folder, os.W_OK):
            ask_again(target, part)
        else:
            found = hash_of(target).hexdigest()
            if size in (None, bytes_in(target)) and (sha256 or noted_sha256) in (None, found):
                return Fetched(found)
            if not offline():
                source.say(f"{target} {state}: downloading it again")
                target.unlink()
    if offline():
        raise DownloadError(
            f"{target} {state}, and GPT2_NP_OFFLINE or HF_HUB_OFFLINE forbids the "
            f"network: unset them; {WITHOUT_NETWORK}"
        )
    fetched = receive_with_retries(source, url, part, size, sha256)
    if sha256 not in (None, fetched.sha256):
        part.unlink()
        raise CheckpointError(
            f"{url} has SHA-256 {fetched.sha256}, expected {sha256}: it is not the official file "
            "and was not kept; try again, or use another mirror"
        )
    os.replace(part, target)  # its tag stays until all files are noted
    if name not in source.pinned and noted_sha256 not in (None, fetched.sha256):
        raise Changed(f"{url} is another file than before")
    return fetched


def ask_again(target: Path, part: Path) -> None:
    """Make a whole file one whose last byte is to be fetched, if the server has still the same.

    A small file is fetched as a whole.
    """
    if is_small(target.name) or not bytes_in(target):
        target.unlink()
        return
    os.replace(target, part)
    os.truncate(part, bytes_in(part) - 1)


def receive_with_retries(
    source: Source, url: str, part: Path, size: int | None, sha256: str | None
) -> Fetched:
    """Receive a file, again while attempts bring new bytes."""
    failures = 0
    while True:
        before = bytes_in(part)
        try:
            return receive(source, url, part, size, sha256)
        except Interrupted as error:
            failures = failures + 1 if bytes_in(part) <= before else 1
            if failures >= error.attempts:
                raise Unavailable(str(error)) from None
            wait = min(max(error.wait, FIRST_WAIT * 2 ** (failures - 1)), LONGEST_WAIT)
            source.say(f"{error}; trying again in {wait:g} s")
            time.sleep(wait)


def receive(
    source: Source, url: str, part: Path, size: int | None, sha256: str | None
) -> Fetched:
    """Ask once for the bytes that `part` lacks, and append them. The SHA-256 is that of all."""
    import hashlib

    requests, tqdm = import_packages()
    have, tag = bytes_in(part), tag_file(part).read_text() if tag_file(part).exists() else ""
    if have and have == size:
        return Fetched(hash_of(part).hexdigest())
    headers = {"Accept-Encoding": "identity"}
    if have and (tag or sha256):  # else a change of the file in the meantime would not be noticed
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": tag} if tag else {})
    with ask(source, url, headers) as response:
        have, total = checked_answer(response, url, part, size)
        limit = total
        if limit is None:
            limit = max_bytes(part.stem) if is_small(part.stem) else have + free_bytes(part)
        digest = hash_of(part) if have else hashlib.sha256()
        silent = not source.progress or (total or 0) < 2**20
        bar = tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True,
                   disable=silent)  # fmt: skip
        try:
            with bar, open(part, "ab" if have else "wb") as file:
                for piece in response.iter_content(PIECE):
                    have += len(piece)
                    if have > limit:
                        if total is None and not is_small(part.stem):
                            check_space(url, part, have)
                        raise TooLarge(f"{url} sends more than {limit} bytes")
                    digest.update(piece)
                    bar.update(file.write(piece))
                file.flush()
                os.fsync(file.fileno())
        except requests.RequestException:
            raise Interrupted(f"{url} broke off after {have:,} bytes") from None
    if have < (total or 0):
        raise Interrupted(f"{url} broke off after {have:,} of {total:,} bytes")
    return Fetched(digest.hexdigest(), commit_of(response))


def import_packages() -> tuple[Any, Any]:
    """Return requests and tqdm. Raises DownloadError if one of them is not installed."""
    try:
        import requests
        from tqdm import tqdm
    except ImportError as error:
        raise DownloadError(f"downloads need the packages requests and tqdm ({error}): pip install "
                            f"requests tqdm; {WITHOUT_NETWORK}") from None
    return requests, tqdm


def commit_of(response: Any) -> str | None:
    """Return the commit that the hub gives with a file, in the first of several redirects."""
    for answer in (*response.history, response):
        commit = answer.headers.get("X-Repo-Commit", "")
        if re.fullmatch("[0-9a-f]{40}", commit):
            return commit
    return None


def ask(source: Source, url: str, headers: Mapping[str, str]) -> Any:
    """Return the answer of a server, whose body is still to come.

    Credentials go to the source's own server: `requests` drops them where a redirect leads to
    another one.
    """
    from urllib.parse import urlsplit

    requests, _ = import_packages()
    try:
        return requests.get(
            url, headers=headers, stream=True, timeout=TIMEOUT, auth=source.credentials,
            hooks={"response": refuse_plain_http},
        )  # fmt: skip
    except Unavailable:
        raise
    except (requests.ConnectionError, requests.Timeout) as error:
        host = urlsplit(url).netloc
        reason = redacted(cause(error))
        raise Interrupted(f"{host} cannot be reached ({reason})", attempts=2) from None
    except (requests.RequestException, ValueError) as error:
        raise Unavailable(f"{url} cannot be fetched: {redacted(str(error))}") from None


def refuse_plain_http(response: Any, **_: Any) -> None:
    """Raise Insecure for a redirect from https to anything else."""
    from urllib.parse import urljoin

    if not response.is_redirect:
        return
    target = "nowhere"
    with contextlib.suppress(ValueError):  # requests says what is wrong with it
        target = urljoin(response.url, response.headers["location"])
    if response.url.lower().startswith("https:") and not target.lower().startswith("https:"):
        response.close()
        raise Insecure(
            f"{redacted(response.url)} redirects to {shown(redacted(target))}, expected https as "
            "before: use another server"
        )


def is_served(source: Source, name: str) -> bool:
    """Return True if a server has a file, of which nothing is fetched but the header."""
    try:
        with ask(source, f"{source.url}/{name}", {"Accept-Encoding": "identity"}) as response:
            kind = response.headers.get("Content-Type", "")
            return response.status_code == 200 and not re.search("html|xml", kind)
    except (Interrupted, Unavailable):
        return False


def checked_answer(
    response: Any, url: str, part: Path, size: int | None
) -> tuple[int, int | None]:
    """Check that an answer is the file, and return its first byte and the bytes of the whole."""
    status, headers = response.status_code, response.headers
    if status in (408, 429) or status >= 500:
        raise Interrupted(f"{url} answered {status} {response.reason}", wait=retry_after(headers))
    span = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", headers.get("Content-Range", ""))
    start = int(span[1]) if span and status == 206 else 0
    if status == 416 or (status == 206 and start != bytes_in(part)):
        part.unlink(missing_ok=True)
        raise Interrupted(f"{url} does not continue {part}")
    if status not in (200, 206):
        raise NotServed(f"{url} answered {status} {response.reason}")
    length = span[2] if span and start else headers.get("Content-Length", "")
    total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else size
    kind = headers.get("Content-Type", "")
    if (re.search("html|xml", kind) and total != size) or "Content-Encoding" in headers:
        raise NotServed(f"{url} answered with a web page or a compressed file ({shown(kind)})")
    if size is not None and total != size:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"{url} has {total} bytes, expected {size}")
    if is_small(part.stem) and (total or 0) > max_bytes(part.stem):
        raise TooLarge(f"{url} has {total} bytes, expected at most {max_bytes(part.stem)}")
    check_space(url, part, (total or 0) - start)
    if start == 0:  # from now on, the bytes in `part` are of this version of the file
        part.unlink(missing_ok=True)
        tag = headers.get("ETag", "")
        strong = tag if not tag.startswith("W/") else ""
        tag_file(part).write_text(strong or headers.get("Last-Modified", ""))
    return start, total


def is_small(name: str) -> bool:
    """Return True for a file that is read whole: not one of weights, and no archive."""
    return not name.endswith((".safetensors", ".zip", DATA))


def max_bytes(name: str) -> int:
    """Return the bytes that a small file may have."""
    return MAX_TOKENIZER_JSON if name in tokenizer_files(HUGGING_FACE) else MAX_SMALL_FILE


def check_space(url: str, part: Path, n_bytes: int) -> None:
    free = free_bytes(part)
    if n_bytes > free:
        raise DownloadError(
            f"{url} needs {n_bytes:,} bytes in {part.parent}, and {free:,} are free: make room, or "
            "set GPT2_NP_CACHE to another folder"
        )


def free_bytes(part: Path) -> int:
    import shutil

    return shutil.disk_usage(part.parent).free


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds to wait that the server gives, as a number or by a date, else 0."""
    from email.utils import parsedate_to_datetime

    value = headers.get("Retry-After", "")
    with contextlib.suppress(ValueError, TypeError):
        if value.isdecimal():
            return float(value)
        return parsedate_to_datetime(value).timestamp() - time.time()
    return 0.0


def cause(error: Exception) -> str:
    """Return the system's reason, without the words that requests and urllib3 put around it."""
    inner = str(getattr(error.args[0], "reason", error)) if error.args else type(error).__name__
    number = re.search(r"\[Errno [^)]*", inner)
    return number[0] if number else inner.rpartition(": ")[2]


def bytes_in(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def hash_of(file: Path) -> Any:
    import hashlib

    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256")


def tag_file(part: Path) -> Path:
    """Return the file with the ETag or date by which the server recognises a version."""
    return part.with_name(part.name.removesuffix(PART) + TAG)

"""From a name to the servers that have its files: OpenAI's models, the hub's repositories, URLs.

User names, passwords and tokens are kept apart from URLs here, so that no message can show them.
"""
from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bpe import shown
from ..gpt2_np import SIZES, Config, Error
from .cache import cache_folder, is_private, is_verified
from .files import exists
from .official import HUB, HUB_URL, OPENAI, OPENAI_URL, OTHER_NAMES, OWNER, SIZE_BY_NAME, Pins

if TYPE_CHECKING:
    from pathlib import Path


class DownloadError(Error):
    """The files are not available: no network, no space, not on the server. The message says."""


class Source(NamedTuple):
    """A folder on a server, and the folder on this machine that its files go to."""

    url: str
    folder: Path
    progress: bool  # show bars and notes on stderr
    pinned: Pins
    config: Config | None  # the expected sizes, if the model has a name
    repository: str | None = None  # the name on the hub, if it is one of the hub's
    credentials: Credentials | None = None

    def say(self, message: str) -> None:
        if self.progress:
            print(message, file=sys.stderr)

    def is_verified(self) -> bool:
        """Return True if the folder is as it was verified. For pinned files, others could lie."""
        return is_verified(self.folder) and (not self.pinned or is_private(self.folder))


class Credentials:
    """A password or token for one server. `requests` takes it, and no text shows it."""

    def __init__(self, header: str):
        self._header = header

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = self._header
        return request


# --- names -----------------------------------------------------------------------------

# As the hub allows them. "--" is the separator in the names of folders.
REPOSITORY = re.compile(
    r"(?P<name>(?!.*\.\.)(?![^@]*--)[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(@(?P<revision>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*))?",
    re.ASCII,
)


class Repository(NamedTuple):
    """A repository of the hub, at a branch, tag or commit."""

    name: str
    revision: str


def official_size(name: object) -> str | None:
    """Return the size that a name means: "124M" for "124m", "117M" and "gpt2".

    Return None for any other name, and for one that is also a path, unless it is the size itself.
    """
    if not isinstance(name, str):
        return None
    if name in SIZES:
        return name
    size = SIZE_BY_NAME.get(name.lower().removeprefix(f"{OWNER}/"))
    return None if size is None or is_path(name) else size


def is_path(name: str | os.PathLike[str]) -> bool:
    """Return True for an existing path, and for the prefix of a TensorFlow bundle."""
    path = os.fspath(name)
    return exists(path) or exists(f"{path}.index")


def repository(name: str) -> Repository | None:
    """Return the repository of the hub that a name means, or None if it cannot be one."""
    plain, at, revision = name.partition("@")
    found = REPOSITORY.fullmatch(OTHER_NAMES.get(plain.lower(), plain) + at + revision)
    return found and Repository(found["name"], found["revision"] or "main")


def is_url(name: str) -> bool:
    return re.match("https?://", name, re.IGNORECASE) is not None


def known_names() -> str:
    """Return the names that can be given, for a sentence with "neither"."""
    return (
        f"a model ({', '.join(SIZES)}, shakespeare, gpt2, distilgpt2), nor a repository of the hub "
        "(owner/name or owner/name@revision)"
    )


def redacted(text: str) -> str:
    """Return a URL, or a message that ends in one, without passwords and anything after ? or #.

    A path may have @ and #. That of a drive (C:\\models) is no scheme and no user name.
    """
    slashes = r":(//+|(?<=\w\w:)/)"
    plain = re.sub(slashes + ".*@", "://***@", text, flags=re.DOTALL)
    user = r"(?![A-Za-z]:\\)[^\s:/]+:[^\s/].*@"  # of a URL without a scheme
    plain = re.sub(user, "***@", plain, flags=re.DOTALL)
    marks = "[?#]" if plain != text or re.search(slashes, text) else "[?]"
    return re.sub(f"({marks}).+", r"\1***", plain, flags=re.DOTALL)


# --- sources ---------------------------------------------------------------------------


def sources_of(name: str, progress: bool = True) -> list[Source]:
    """Return the sources of a name, or of the checkpoint at a URL, in the order to try."""
    progress = progress and sys.stderr is not None  # a program without a console has none
    if size := official_size(name):
        return official_sources(size, progress)
    if found := repository(name):
        return [hub_source(found, progress)]
    return [url_source(name, progress)]


def official_sources(size: str, progress: bool) -> list[Source]:
    openai, credentials = server("GPT2_NP_URL", OPENAI_URL)
    repository, revision, files = HUB[size]
    hub = hub_source(Repository(f"{OWNER}/{repository}", revision), progress)
    config, folder = SIZES[size], cache_folder() / size
    return [
        Source(f"{openai}/{size}", folder / "openai", progress, OPENAI[size], config,
               credentials=credentials),
        hub._replace(folder=folder / "huggingface", pinned=files, config=config),
    ]  # fmt: skip


def hub_source(found: Repository, progress: bool) -> Source:
    from urllib.parse import quote

    hub, credentials = server("HF_ENDPOINT", HUB_URL)
    url = f"{hub}/{found.name}/resolve/{quote(found.revision, safe='')}"
    words = (found.name.replace("/", "--"), found.revision.replace("/", "@"))  # may have "--"
    folder = cache_folder().joinpath("hub", *words)
    return Source(url, folder, progress, {}, None, found.name, credentials or hub_token(hub))


def url_source(url: str, progress: bool) -> Source:
    import hashlib

    url = url.rstrip("/")
    # An @ may stand in a path. In a password, a slash could come before it, as in me:a/b@host.
    plain = r"https?://([^@:/\s\\]+|\[[0-9a-f:.]+\])(:\d+)?/[^?#]*|https?://[^?#@]*"
    if not re.fullmatch(plain, url, re.IGNORECASE | re.DOTALL):
        raise DownloadError(
            f"{shown(redacted(url))} cannot be downloaded, it is neither {known_names()} nor the "
            "http(s) URL of a folder, without user name, ? and #: give one of these"
        )
    words = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("//")[2])[-60:].strip("-.")
    key = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:12]
    return Source(url, cache_folder() / "url" / f"{words}-{key}", progress, {}, None)


def server(variable: str, default: str) -> tuple[str, Credentials | None]:
    """Return the URL that a variable gives, without user name and password, and these apart."""
    from base64 import b64encode
    from urllib.parse import unquote

    value = (os.environ.get(variable) or default).rstrip("/")
    parts = re.fullmatch(r"(https?://)(?:([^/@]*)@)?([^/@\s?#\\][^@\s?#\\]*)", value, re.IGNORECASE)
    if parts is None:
        raise DownloadError(
            f"{variable} is {shown(redacted(value))}, expected an http(s) URL without ? and #; in "
            "a password, write @ as %40 and / as %2F"
        )
    scheme, user, rest = parts.groups()
    if user is None:
        return scheme + rest, None
    plain = unquote(user if ":" in user else user + ":").encode()
    return scheme + rest, Credentials(f"Basic {b64encode(plain).decode()}")


def hub_token(url: str) -> Credentials | None:
    """Return the token in HF_TOKEN if this is the hub itself, over https. No other may have it."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token or url != HUB_URL or not url.startswith("https://"):
        return None
    if not re.fullmatch("[!-~]+", token):
        raise DownloadError("HF_TOKEN is not a token: it holds characters that no token has")
    return Credentials(f"Bearer {token}")

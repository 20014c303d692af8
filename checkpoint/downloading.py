"""A whole checkpoint from its servers: every file fetched, verified, and noted as verified."""
from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..bpe import shown
from ..gpt2_np import SIZES, map_leaves
from .bundle import DATA, INDEX, data_size, read_index
from .cache import cache_folder, is_verified, locked, note_verified, verified_files
from .crc32c import crc32c
from .files import CheckpointError, reason
from .layouts import (
    HUGGING_FACE,
    TENSORFLOW,
    Checkpoint,
    Layout,
    match_tensors,
    open_checkpoint,
    read_config,
    read_hparams,
)
from .official import HUB, HUB_URL, OPENAI, OPENAI_URL, SHAKESPEARE
from .safetensors import SAFETENSORS, SHARDS, read_weight_map
from .tensors import MappedFiles
from .transfer import (
    WITHOUT_NETWORK,
    DownloadError,
    NotServed,
    Source,
    Unavailable,
    fetch,
    offline,
)
from .vocabulary import TOKENIZER_JSON, open_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def download(name_or_url: str, progress: bool = True) -> Path:
    """Fetch the files of a size, or at a URL, verify every byte, and return their folder.

    Files in the cache are verified again and kept. A file that broke off continues from there.
    Files must have their published SHA-256, if any, and the tensors of a bundle their CRC-32C.
    `progress` shows bars and notes on stderr. Raises DownloadError if the files are not available,
    CheckpointError if they are not the expected ones.
    """
    from pathlib import Path

    if name_or_url == "shakespeare":
        return Path(SHAKESPEARE)
    failures: list[Unavailable] = []
    sources = sources_of(name_or_url, progress)
    for source in sorted(sources, key=lambda source: not is_verified(source.folder)):
        try:
            with locked(source.folder, source.note):
                if not (offline() or is_verified(source.folder)):
                    source.note(f"downloading {source.url} into {source.folder}")
                fetch_checkpoint(source)
            return source.folder
        except Unavailable as error:
            failures.append(error)
            if len(failures) < len(sources):
                source.note(f"{error}; trying the next source")
        except OSError as error:
            raise DownloadError(
                f"{error.filename or source.folder} cannot be used: {reason(error)}; set "
                "GPT2_NP_CACHE to another folder"
            ) from error
    raise DownloadError(
        f"{name_or_url} cannot be downloaded: {'; '.join(map(str, failures))}"
        + ("" if isinstance(failures[-1], NotServed) else f"; {WITHOUT_NETWORK}")
    )


def is_url(name: str) -> bool:
    return re.match("https?://", name, re.IGNORECASE) is not None


def sources_of(name: str, progress: bool = True) -> list[Source]:
    """Return the sources of a size, or of the checkpoint at a URL, in the order to try."""
    return official_sources(name, progress) if name in SIZES else [url_source(name, progress)]


def official_sources(size: str, progress: bool) -> list[Source]:
    openai = (os.environ.get("GPT2_NP_URL") or OPENAI_URL).rstrip("/")
    hub = (os.environ.get("HF_ENDPOINT") or HUB_URL).rstrip("/")
    repository, revision, files = HUB[size]
    hub = f"{hub}/openai-community/{repository}/resolve/{revision}"
    config, folder = SIZES[size], cache_folder() / size
    return [
        Source(f"{openai}/{size}", folder / "openai", progress, OPENAI[size], config),
        Source(hub, folder / "huggingface", progress, files, config),
    ]


def url_source(url: str, progress: bool) -> Source:
    import hashlib

    url = url.rstrip("/")
    if not is_url(url) or re.search("[?#@]", url):
        raise DownloadError(
            f"{shown(url)} cannot be downloaded, expected {', '.join(SIZES)} or the http(s) URL "
            "of a folder, without user name, ? and #"
        )
    words = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("//")[2])[-60:].strip("-.")
    key = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:12]
    return Source(url, cache_folder() / "url" / f"{words}-{key}", progress, {}, None)


def fetch_checkpoint(source: Source) -> None:
    """Fetch the small files, then the large ones that they describe, and verify all."""
    folder, layout = source.folder, fetch_layout(source)
    fetch_tokenizer(source, layout)
    weights = (fetch_bundle if layout is TENSORFLOW else fetch_safetensors)(source)
    with removing(folder, layout.config, *weights):
        checkpoint = open_checkpoint(folder)
    with removing(folder, *weights):
        check_crcs(checkpoint)
    with removing(folder, layout.merges, layout.vocab, TOKENIZER_JSON):
        open_tokenizer(checkpoint)
    note_verified(folder)


def fetch_layout(source: Source) -> Layout:
    """Fetch hparams.json or config.json, whichever the server has, and return its layout."""
    problems = []
    readers = {TENSORFLOW: read_hparams, HUGGING_FACE: read_config}
    for layout in sorted(readers, key=lambda layout: not (source.folder / layout.config).exists()):
        file = source.folder / layout.config
        if source.pinned and layout.config not in source.pinned:
            continue
        try:
            fetch(source, layout.config)
            with removing(source.folder, layout.config):
                config = readers[layout](file)
                if source.config not in (None, config):
                    raise CheckpointError(f"{file} has {config}, expected {source.config}")
            return layout
        except (NotServed, CheckpointError) as error:
            if source.pinned:
                raise
            problems.append(str(error))
    raise NotServed("; ".join(problems))


def fetch_tokenizer(source: Source, layout: Layout) -> None:
    """Fetch the files of the tokenizer. A server may have none, unless they are pinned."""
    folder = source.folder
    known = verified_files(folder)
    for name in (layout.merges, layout.vocab, TOKENIZER_JSON):
        if known and name not in known:
            continue  # the server did not have it
        if name == TOKENIZER_JSON and (layout is TENSORFLOW or (folder / layout.merges).exists()):
            continue
        try:
            fetch(source, name)
        except NotServed:
            if name in source.pinned:
                raise


def fetch_bundle(source: Source) -> list[str]:
    """Fetch the index, then the data that fit it, and return the names of files of weights."""
    folder, config = source.folder, TENSORFLOW.config
    fetch(source, INDEX)
    with removing(folder, config, INDEX):
        tensors = read_index(folder / INDEX)
        match_tensors(read_hparams(folder / config), tensors, TENSORFLOW, folder / INDEX)
    fetch(source, DATA, data_size(tensors))
    return [DATA]


def fetch_safetensors(source: Source) -> list[str]:
    """Fetch the one file of weights, or the several, and return their names."""
    if not (source.folder / SHARDS).exists():
        try:
            fetch(source, SAFETENSORS)
            return [SAFETENSORS]
        except NotServed:
            if source.pinned:
                raise
    fetch(source, SHARDS)
    with removing(source.folder, SHARDS):
        shards = sorted(set(read_weight_map(source.folder / SHARDS).values()))
    for shard in shards:
        fetch(source, shard)
    return [SHARDS, *shards]


def check_crcs(checkpoint: Checkpoint) -> None:
    """Compare the bytes of each tensor with its CRC-32C, in a layout that has these."""
    files = MappedFiles()

    def check(path, tensor):
        if tensor.crc is None:
            return
        found = crc32c(memoryview(files[tensor.file])[tensor.start : tensor.start + tensor.size])
        if found != tensor.crc:
            raise CheckpointError(
                f"{tensor.file}: tensor {checkpoint.layout.tensor_name(path)!r} has CRC-32C "
                f"{found:08x}, expected {tensor.crc:08x}"
            )

    map_leaves(check, checkpoint.tensors)


@contextlib.contextmanager
def removing(folder: Path, *names: str) -> Iterator[None]:
    """Remove files that turn out to be wrong, so that the next run downloads them again."""
    try:
        yield
    except CheckpointError as error:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        raise CheckpointError(
            f"{error}; {' and '.join(names)} removed from the cache: run again to download"
        ) from error

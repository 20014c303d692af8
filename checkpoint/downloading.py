"""A whole checkpoint from its servers: every file fetched, verified, and noted as verified."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..bpe import PART
from ..gpt2_np import map_leaves
from .aligned import keep_aligned
from .bundle import DATA, INDEX, data_size, read_index
from .cache import VERIFIED, locked, note_verified, stamp, verified_files
from .crc32c import crc32c
from .files import CheckpointError, reason
from .hub_cache import find_snapshot
from .layouts import (
    HUGGING_FACE,
    TENSORFLOW,
    Checkpoint,
    Layout,
    conversion,
    open_checkpoint,
)
from .names import match_tensors
from .official import SHAKESPEARE
from .safetensors import SAFETENSORS, SHARDS, read_weight_map
from .settings import read_config, read_hparams
from .sources import DownloadError, Source, sources_of
from .tensors import MappedFiles, Tensor
from .transfer import (
    WITHOUT_NETWORK,
    Changed,
    Insecure,
    NotServed,
    TooLarge,
    Unavailable,
    fetch,
    is_served,
    offline,
    tag_file,
)
from .vocabulary import open_tokenizer, tokenizer_files

if TYPE_CHECKING:
    from pathlib import Path

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def download(name: str, progress: bool = True) -> Path:
    """Fetch the files of a model, verify every byte, and return their folder.

    `name` is one of OpenAI's models, a repository of the hub ("owner/name") or a URL. Files in the
    cache are verified again and kept. A file that broke off continues from there. Files must have
    their published SHA-256, or else the one that they had before, and the tensors of a bundle their
    CRC-32C. A whole snapshot in the hub's own cache is used where it lies. `progress` shows bars
    and notes on stderr. Raises DownloadError if the files are not available, CheckpointError if
    they are not the expected ones.
    """
    from pathlib import Path

    if name == "shakespeare":
        return Path(SHAKESPEARE)
    sources = sources_of(name, progress)
    if not any(source.is_verified() for source in sources) and (found := find_snapshot(name, True)):
        return found
    failures: list[Unavailable] = []
    for source in sorted(sources, key=lambda source: not source.is_verified()):
        try:
            with locked(source.folder, source.say):
                if verified_files(source.folder):
                    if not source.is_verified():
                        source.say(f"verifying {source.folder} again")
                elif not offline():
                    source.say(f"downloading {source.url} into {source.folder}")
                fetch_checkpoint(source)
            return source.folder
        except Unavailable as error:
            failures.append(error)
            if len(failures) < len(sources):
                source.say(f"{error}; trying the next source")
        except OSError as error:
            # Windows neither replaces nor removes a file that a process has mapped.
            in_use = isinstance(error, PermissionError) and getattr(error, "winerror", None)
            raise DownloadError(
                f"{error.filename or source.folder} cannot be used: {reason(error)}; set "
                "GPT2_NP_CACHE to another folder"
                + (", or close the program that uses the file" if in_use else "")
            ) from error
    mistyped = "is not a folder here and " if sources[0].repository else ""  # it may be a path
    raise DownloadError(
        f"{name} {mistyped}cannot be downloaded: {'; '.join(map(str, failures))}"
        + ("" if isinstance(failures[-1], NotServed | Insecure) else f"; {WITHOUT_NETWORK}")
    )


Fetch = Callable[..., None]  # of a name, and of the file's bytes if they are known


def fetch_checkpoint(source: Source) -> None:
    """Fetch the small files, then the large ones that they describe, and verify all.

    All are of one version. If the server has another than the noted one, all are fetched again.
    """
    try:
        fetch_version(source)
    except Changed as error:
        source.say(f"{error}: downloading the new version")
        (source.folder / VERIFIED).unlink()
        fetch_version(source)


def fetch_version(source: Source) -> None:
    """Do the work of `fetch_checkpoint`. Raises Changed if a noted file is another one now."""
    folder, was_verified = source.folder, source.is_verified()
    known = verified_files(folder)
    hashes: dict[str, str] = {}
    now = source

    def get(name: str, size: int | None = None) -> None:
        nonlocal now
        fetched = fetch(now, name, size, known.get(name))
        hashes[name] = fetched.sha256
        if source.repository and fetched.commit:  # the branch may move before the next file
            now = source._replace(url=f"{source.url.rpartition('/')[0]}/{fetched.commit}")

    layout = fetch_layout(source, get)
    fetch_tokenizer(source, layout, get)
    weights = (fetch_bundle if layout is TENSORFLOW else fetch_safetensors)(source, get)
    with removing(folder, layout.config, *weights):
        # Not the folder: somebody may have put other weights into it.
        checkpoint = open_checkpoint(folder / (INDEX if layout is TENSORFLOW else weights[0]))
    with removing(folder, *weights):
        check_crcs(checkpoint)
    if source.pinned:  # any other may have a tokenizer that is not read: `load` warns then
        with removing(folder, *tokenizer_files(layout)):
            open_tokenizer(checkpoint)
    copy = keep_aligned(checkpoint, was_verified, source.say)
    found = {name: [*stamp(folder / name), sha256] for name, sha256 in hashes.items()}
    note_verified(folder, found | copy)
    for name in hashes:
        tag_file(folder / (name + PART)).unlink(missing_ok=True)


def fetch_layout(source: Source, get: Fetch) -> Layout:
    """Fetch hparams.json or config.json, whichever the server has, and return its layout."""
    problems = []
    readers = {TENSORFLOW: read_hparams, HUGGING_FACE: read_config}
    for layout in sorted(readers, key=lambda layout: not (source.folder / layout.config).exists()):
        file = source.folder / layout.config
        if source.pinned and layout.config not in source.pinned:
            continue
        if source.repository and layout is not HUGGING_FACE:
            continue
        try:
            get(layout.config)
            with removing(source.folder, layout.config):
                config = readers[layout](file)
                if source.config not in (None, config):
                    raise CheckpointError(f"{file} has {config}, expected {source.config}")
            return layout
        except (NotServed, CheckpointError) as error:
            if source.pinned:
                raise
            problems.append(str(error))
    if source.repository:
        problems.append(
            f"check the spelling of {source.repository}; if it is private or gated, accept its "
            "conditions on the hub and set HF_TOKEN"
        )
    raise NotServed("; ".join(problems))


def fetch_tokenizer(source: Source, layout: Layout, get: Fetch) -> None:
    """Fetch the files of the tokenizer. A server may have none, unless they are pinned."""
    known = verified_files(source.folder)
    for name in tokenizer_files(layout):
        if known and name not in known:
            continue  # the server did not have it
        if source.pinned and name not in source.pinned:
            continue  # the pinned ones are enough, and another could change the ids
        try:
            get(name)
        except TooLarge:
            raise
        except NotServed:
            if name in source.pinned:
                raise


def fetch_bundle(source: Source, get: Fetch) -> list[str]:
    """Fetch the index, then the data that fit it, and return the names of files of weights."""
    folder, config = source.folder, TENSORFLOW.config
    get(INDEX)
    with removing(folder, config, INDEX):
        tensors = read_index(folder / INDEX)
        match_tensors(read_hparams(folder / config), tensors, TENSORFLOW, folder / INDEX)
    get(DATA, data_size(tensors))
    return [DATA]


def fetch_safetensors(source: Source, get: Fetch) -> list[str]:
    """Fetch the one file of weights, or the several, and return their names."""
    if not (source.folder / SHARDS).exists():
        try:
            get(SAFETENSORS)
            return [SAFETENSORS]
        except NotServed:
            if source.pinned:
                raise
    try:
        get(SHARDS)
    except NotServed as error:
        refuse_pickles(source)
        raise NotServed(f"{source.url}/{SAFETENSORS} is not on the server; {error}") from error
    with removing(source.folder, SHARDS):
        shards = sorted(set(read_weight_map(source.folder / SHARDS).values()))
    for shard in shards:
        get(shard)
    return [SHARDS, *shards]


def refuse_pickles(source: Source) -> None:
    """Raise NotServed with the lines that convert them if a server has only pickled weights."""
    for name in PICKLES:
        if is_served(source, name):
            folder = source.repository or "."  # where it is converted, a folder of that name
            where = "" if source.repository else ", in a folder with a copy of its files"
            raise NotServed(
                f"{source.url} has no {SAFETENSORS}, only {name}: {conversion(folder, name)}{where}"
            )


def check_crcs(checkpoint: Checkpoint) -> None:
    """Compare the bytes of each tensor with its CRC-32C, in a layout that has these."""
    files = MappedFiles()

    def check(path, tensor):
        content = memoryview(files[tensor.file])[tensor.start : tensor.start + tensor.size]
        check_crc(content, tensor, checkpoint.layout.tensor_name(path))

    map_leaves(check, checkpoint.tensors)


def check_crc(content: Any, tensor: Tensor, name: str) -> None:
    """Raise CheckpointError if the bytes of a tensor do not have its CRC-32C, if it has one."""
    if tensor.crc is not None and (found := crc32c(content)) != tensor.crc:
        raise CheckpointError(
            f"{tensor.file}: tensor {name!r} has CRC-32C {found:08x}, expected {tensor.crc:08x}"
        )


@contextlib.contextmanager
def removing(folder: Path, *names: str) -> Iterator[None]:
    """Remove files that turn out to be wrong, so that the next run downloads them again."""
    try:
        yield
    except CheckpointError as error:
        for name in names:
            for file in (folder / name, tag_file(folder / (name + PART))):
                file.unlink(missing_ok=True)
        raise CheckpointError(
            f"{error}; {' and '.join(names)} removed from the cache: run again to download"
        ) from error

"""The tokenizer beside the weights, from the files that each layout has for it.

The rule for Hugging Face's layout: the ids are those of transformers' `AutoTokenizer`, or the
tokenizer is refused in a sentence that names the setting. Where both exist, tokenizer.json counts
and vocab.json and merges.txt do not, as there. Versions 4 and 5 of transformers read some settings
differently, and a folder with these is refused as well.
"""
from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import bpe
from ..bpe import AddedToken, TokenizerError, shown
from .added_tokens import (
    ADDED,
    END_OF_TEXT,
    GPT2_CLASSES,
    MORE_ROLES,
    SETTINGS,
    SPECIAL,
    added_listings,
    entry,
    numbered,
    only_version_5,
    read_special_map,
    refuse_setting,
    roles,
)
from .files import (
    CheckpointError,
    CheckpointWarning,
    Malformed,
    exists,
    open_file,
    read_json,
    reading,
    refuse_pointer,
)
from .layouts import HUGGING_FACE, Checkpoint, Layout

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER_JSON = "tokenizer.json"  # merges and vocab in one: transformers 5 writes no other
OTHER_VOCABULARIES = ("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
MAX_TOKENIZER_JSON = 16 * 2**20  # GPT-2's has 3.5 MB
MAX_DEPTH = 50  # of a post_processor; the library tokenizers reads about 60
BARE_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # no <|endoftext|> by default

# Settings that the parts of a tokenizer.json must have. "" and null both say that there is none.
# The model in GPT-2's own file of 2020 has no type.
EXPECTED = {
    "model": {"type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "",
              "byte_fallback": False, "ignore_merges": False, "dropout": None},
    "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
}  # fmt: skip


def tokenizer_files(layout: Layout) -> tuple[str, ...]:
    """Return the names of all files that `open_tokenizer` may read. A folder may have none."""
    more = (TOKENIZER_JSON, SETTINGS, ADDED, SPECIAL) if layout is HUGGING_FACE else ()
    return (layout.merges, layout.vocab, *more)


def tokenizer_or_warning(checkpoint: Checkpoint) -> bpe.Tokenizer | None:
    """Return the tokenizer beside the weights, or None with a warning that says why not."""
    try:
        return open_tokenizer(checkpoint)
    except CheckpointError as error:
        import warnings

        message = f"{error}; the model is loaded without a tokenizer"
        warnings.warn(message, CheckpointWarning, stacklevel=3)
        return None


def open_tokenizer(checkpoint: Checkpoint) -> bpe.Tokenizer | None:
    """Return the tokenizer beside the weights, or None if there is none.

    It may have more tokens than the embedding has rows. Raises CheckpointError for a tokenizer that
    is damaged, or unlike GPT-2's.
    """
    layout = checkpoint.layout
    merges, vocab = checkpoint.folder / layout.merges, checkpoint.folder / layout.vocab
    both = checkpoint.folder / TOKENIZER_JSON
    in_json = layout is HUGGING_FACE and exists(both)
    if not (in_json or exists(merges)):
        for name in (layout.vocab, *OTHER_VOCABULARIES):
            if exists(checkpoint.folder / name):
                raise CheckpointError(
                    f"{checkpoint.folder} has {name} and no {layout.merges}, which a tokenizer of "
                    "GPT-2 needs: add it, or encode with the model's own tokenizer and give ids"
                )
        return None
    for file in () if in_json else filter(exists, (merges, vocab)):
        with reading(file, "a vocabulary"), open_file(file) as opened:
            refuse_pointer(opened.read(64))
    try:
        if layout is HUGGING_FACE and (in_json or exists(vocab)):
            return hugging_face_tokenizer(checkpoint.folder, in_json)
        return bpe.Tokenizer.from_files(merges, vocab if exists(vocab) else None)
    except (TokenizerError, Malformed, OSError) as error:
        file = both if in_json else merges
        raise CheckpointError(f"{file} is not a tokenizer of GPT-2: {error}") from error


# --- Hugging Face's files ---------------------------------------------------------------


def hugging_face_tokenizer(folder: Path, in_json: bool) -> bpe.Tokenizer:
    """Return the tokenizer of tokenizer.json, or else of vocab.json and merges.txt."""
    settings = tokenizer_settings(folder)
    parts = read_json(folder / TOKENIZER_JSON, MAX_TOKENIZER_JSON) if in_json else {}
    if not in_json and settings["tokenizer_class"] not in GPT2_CLASSES:
        raise Malformed(f"tokenizer_class is {settings['tokenizer_class']}, which needs "
                        f"{TOKENIZER_JSON}: save the tokenizer again")
    listings = added_listings(folder, settings, parts)
    names = {token.name for entries in listings for token in entries}
    if in_json:
        lines, ids = model_of(parts)
        trained = are_official(lines)
        if not trained:
            bpe.check_merges(lines, lambda n: f"{TOKENIZER_JSON}: merge {n}")
        official = trained and ids == bpe.usual_ids(bpe.made_by(lines)) | {END_OF_TEXT: 50256}
        if not official:
            bpe.check_ids(ids, TOKENIZER_JSON, lines, "its merges", names)
    else:
        merges, vocab = folder / HUGGING_FACE.merges, folder / HUGGING_FACE.vocab
        lines, trained = bpe.read_merges(str(merges))
        check_ends(merges)
        found, others = bpe.read_ids(str(vocab), lines, str(merges), trained, names)
        official = found is None
        ids = found or bpe.usual_ids(bpe.made_by(lines)) | others
    readings = [numbered(listing, ids) for listing in listings]
    added = readings[0]
    if differing := set(added) ^ set(readings[-1]):
        raise Malformed(f"versions 4 and 5 of transformers read the added token "
                        f"{shown(min(differing).name)} differently from these files: name all "
                        f"added tokens in {SETTINGS} by saving the tokenizer again")
    if in_json:
        n_vocab = len(ids.keys() | {token.name for token in added})
        first = processor_ids(parts.get("post_processor"), n_vocab)
    else:
        first = start_ids(settings, read_special_map(folder, settings), added)
    space = prefix_space(settings, parts)
    return bpe.Tokenizer.from_parts(lines, None if official else ids, added, first, space, trained)


def are_official(lines: list[str]) -> bool:
    """Return True for OpenAI's merges, which need no check and encode faster."""
    import hashlib

    text = "\n".join(["#version: 0.2", *lines, ""])
    hash = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return hash == bpe.OFFICIAL_MERGES and len(lines) == 50_000  # none has a line feed in it


def check_ends(merges: Path) -> None:
    """Raise Malformed if versions 4 and 5 of transformers would read different merges."""
    with open_file(merges) as file:
        content = file.read()
    if not content.startswith(b"#version"):
        raise Malformed("its first line is a merge, which transformers 4 skips and 5 does not: put "
                        "the line '#version: 0.2' before it")
    if not content.endswith(b"\n"):
        raise Malformed("its last line has no line feed, so transformers 4 skips it and 5 does "
                        "not: end the file with one")


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, with the tokenizer_class of config.json if it has none."""
    settings = read_json(folder / SETTINGS) if exists(folder / SETTINGS) else {}
    config = read_json(folder / HUGGING_FACE.config) if exists(folder / HUGGING_FACE.config) else {}
    settings.setdefault("tokenizer_class", config.get("tokenizer_class"))
    if settings["tokenizer_class"] not in (*GPT2_CLASSES, *BARE_CLASSES):
        raise Malformed(f"tokenizer_class is {shown(settings['tokenizer_class'])}, expected "
                        "GPT2Tokenizer: save the tokenizer with that class")
    for name in ("split_special_tokens", "auto_map", "fix_mistral_regex", MORE_ROLES):
        refuse_setting(name, settings, SETTINGS)
    return settings


def model_of(parts: Mapping[str, Any]) -> tuple[list[str], dict[str, int]]:
    """Return the merges and ids in a tokenizer.json. Raises Malformed if it is unlike GPT-2's."""
    for part, expected in EXPECTED.items():
        found = parts.get(part)
        if not isinstance(found, dict):
            raise Malformed(f"it has no {part} of a byte-level BPE")
        for name, value in expected.items():
            absent = None if part == "pre_tokenizer" and name == "type" else value
            setting = found.get(name, absent)
            if setting != value and (setting or value):
                raise Malformed(f"{part}'s {name} is {shown(setting)}, but GPT-2's byte-level BPE "
                                f"has {shown(value)}")
    if parts.get("normalizer"):
        raise Malformed(f"normalizer is {shown(parts['normalizer'])}, but GPT-2's byte-level BPE "
                        "has none")
    merges, ids = parts["model"].get("merges"), parts["model"].get("vocab")
    if not isinstance(merges, list) or not isinstance(ids, dict):
        raise Malformed("its model has no merges and vocab")
    lines = [" ".join(merge) if isinstance(merge, list) and all(isinstance(part, str) for part in
             merge) else merge for merge in merges]  # fmt: skip
    if not all(isinstance(line, str) for line in lines) or set(map(type, ids.values())) != {int}:
        raise Malformed("its merges are not all pairs of tokens, or its ids not all integers")
    return lines, ids


# --- what goes before a text ------------------------------------------------------------


def prefix_space(settings: dict[str, Any], parts: dict[str, Any]) -> bool:
    """Return add_prefix_space. Transformers takes that of the settings, not of tokenizer.json."""
    wanted = settings.get("add_prefix_space", False) is True
    if settings["tokenizer_class"] in GPT2_CLASSES:
        return wanted
    in_json = parts["pre_tokenizer"].get("add_prefix_space") is True
    if in_json != wanted and not only_version_5(settings):
        raise Malformed(f"add_prefix_space is {in_json} in {TOKENIZER_JSON} and {wanted} in "
                        f"{SETTINGS}, so transformers 4 and 5 differ: make them equal")
    return in_json


def start_ids(
    settings: dict[str, Any], special_map: dict[str, Any], added: list[AddedToken]
) -> list[int]:
    """Return the ids before a text that the settings ask for, without a tokenizer.json."""
    if settings.get("add_eos_token"):
        raise Malformed(f"{SETTINGS}: add_eos_token is set, so that a text could not be continued: "
                        "remove it")
    begin = roles(settings, special_map).get("bos_token")
    begin = begin if settings.get("add_bos_token") is True else None
    return [token.id for token in added if begin and token.name == entry(begin).name]


def processor_ids(found: Any, n_vocab: int, depth: int = 0) -> list[int]:
    """Return the ids before a text that the post_processor of a tokenizer.json states."""
    if depth > MAX_DEPTH:
        raise Malformed(f"its post_processor is nested more than {MAX_DEPTH} deep: remove it")
    if found is None:
        return []
    kind = found.get("type") if isinstance(found, dict) else None
    if kind == "ByteLevel":
        return []
    if kind == "Sequence" and isinstance(found.get("processors"), list):
        parts = (processor_ids(part, n_vocab, depth + 1) for part in found["processors"])
        lists = [ids for ids in parts if ids]
        if len(lists) <= 1:
            return lists[0] if lists else []
    elif kind == "TemplateProcessing":
        with contextlib.suppress(AttributeError, KeyError, TypeError):
            *before, last = found["single"]
            table = found["special_tokens"]
            ids = [id for part in before for id in table[part["SpecialToken"]["id"]]["ids"]]
            if last["Sequence"]["id"] == "A" and all(
                type(id) is int and 0 <= id < n_vocab for id in ids
            ):
                return ids
    raise Malformed(f"its post_processor is {shown(kind)} with other parts than tokens before the "
                    "text, so that a text could not be continued: remove it")

"""The tokenizer beside the weights, from the files that each layout has for it.

The rule for Hugging Face's layout: the ids are those of transformers' `AutoTokenizer`, or the
tokenizer is refused in a sentence that names the setting. Where both exist, tokenizer.json counts
and vocab.json and merges.txt do not, as there. Versions 4 and 5 of transformers read some settings
differently, and a folder with these is refused as well.
"""
from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import bpe
from ..bpe import AddedToken, TokenizerError, shown
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
SETTINGS = "tokenizer_config.json"
ADDED = "added_tokens.json"  # transformers 3 and 4
SPECIAL = "special_tokens_map.json"  # the same
OTHER_VOCABULARIES = ("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
MAX_TOKENIZER_JSON = 16 * 2**20  # GPT-2's has 3.5 MB
MAX_DEPTH = 50  # of a post_processor; the library tokenizers reads about 60
MAX_ADDED = 10**7  # the squares of the lengths of added tokens: 10,000 have some 10**6

GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
BARE_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # no <|endoftext|> by default
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
         "mask_token")  # fmt: skip
MORE_ROLES = "model_specific_special_tokens"  # transformers 5 adds these tokens, 4 does not
END_OF_TEXT = "<|endoftext|>"
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")

# What the parts of a tokenizer.json must say. "" and null both say that there is none. The model in
# GPT-2's own file of 2020 has no type.
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
    settings = read_settings(folder)
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


def read_settings(folder: Path) -> dict[str, Any]:
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


def refuse_setting(name: str, settings: Mapping[str, Any], file: str) -> None:
    if settings.get(name):
        raise Malformed(f"{file}: {name} is set, which is not supported: remove it if the model "
                        "was trained without it")


def only_version_5(settings: Mapping[str, Any]) -> bool:
    """Return True if transformers 5 wrote the settings and version 4 cannot read them."""
    return (settings["tokenizer_class"] == "TokenizersBackend"
            or isinstance(settings.get("extra_special_tokens"), list))


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


# --- added tokens -----------------------------------------------------------------------


class Entry(NamedTuple):
    """An added token as a file describes it. `id` and `flags` are None if the file has none."""

    name: str
    special: bool
    id: int | None = None
    flags: tuple[bool, ...] | None = None  # of FLAGS


def entry(found: Any, id: Any = None, special: bool = False) -> Entry:
    """Return the entry of a name, or of an object with a name and flags."""
    if type(id) not in (int, type(None)):
        raise Malformed("an added token has no integer as its id")
    if isinstance(found, str):
        return Entry(found, special, id)
    if not isinstance(found, dict) or not isinstance(found.get("content"), str):
        raise Malformed("an added token is neither a name nor an object with a name as 'content'")
    special = special or found.get("special") is True
    flags = {"normalized": not special} | found
    return Entry(found["content"], special, id, tuple(flags.get(name) is True for name in FLAGS))


def entries(found: Any, where: str, special: bool = False) -> list[Entry]:
    if found is None:
        return []
    if not isinstance(found, list):
        raise Malformed(f"{where} is a {type(found).__name__}, expected a list of tokens")
    ids = (token.get("id") if isinstance(token, dict) else None for token in found)
    return [entry(token, id, special) for token, id in zip(found, ids, strict=True)]


def added_listings(
    folder: Path, settings: dict[str, Any], parts: dict[str, Any]
) -> list[list[Entry]]:
    """Return the added tokens of all files as version 4 of transformers reads them, and as 5 does.

    What version 5 alone can load has one listing.
    """
    in_json = entries(parts.get("added_tokens"), "added_tokens")
    special_map = read_special_map(folder, settings)
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"]
        listed = by_id([entry(token, id) for id, token in numbers(decoder).items()])
    else:
        old = read_json(folder / ADDED) if exists(folder / ADDED) else {}
        special = {token.name for token in named_entries(settings, special_map, 4)}
        plain = [entry(name, id) for name, id in old.items()]
        plain = [token._replace(flags=(False, False, False, token.name not in special))
                 for token in plain]  # fmt: skip
        listed = by_id(plain + in_json)
    rebuilt = settings["tokenizer_class"] in GPT2_CLASSES  # by version 5, without added_tokens
    if not parts and not all(role in settings | special_map for role in NAMED[:3]):
        for token in listed:  # of bos_token and so on, version 4 makes a plain token
            if token.name == END_OF_TEXT and any((token.flags or ())[:3]):
                raise Malformed(f"{SETTINGS} gives {END_OF_TEXT} lstrip, rstrip or single_word, "
                                "but is without bos_token, eos_token or unk_token: "
                                "save the tokenizer again")
    version_4 = [*in_json, *listed, *named_entries(settings, special_map, 4)]
    version_5 = [*listed, *named_entries(settings, special_map, 5)]
    version_5 = version_5 if rebuilt else in_json + version_5
    return [version_5] if only_version_5(settings) else [version_4, version_5]


def read_special_map(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return special_tokens_map.json, which counts only without an added_tokens_decoder."""
    unused = "added_tokens_decoder" in settings or not exists(folder / SPECIAL)
    special_map = {} if unused else read_json(folder / SPECIAL)
    refuse_setting(MORE_ROLES, special_map, SPECIAL)
    return special_map


def numbers(found: Any) -> dict[int, Any]:
    if not isinstance(found, dict) or not all(key.isdecimal() and len(key) < 10 for key in found):
        raise Malformed(f"{SETTINGS}: added_tokens_decoder is not an object with ids as keys")
    return {int(id): token for id, token in found.items()}


def by_id(found: list[Entry]) -> list[Entry]:
    """Return the entries in the order of their ids, of several with one id only the last."""
    last: dict[Any, Entry] = {token.id: token for token in found}
    if None in last:
        raise Malformed("an added token has no integer as its id")
    return [last[id] for id in sorted(last)]


def roles(settings: dict[str, Any], special_map: dict[str, Any]) -> dict[str, Any]:
    """Return what bos_token, eos_token and so on stand for, and all other settings."""
    default = settings["tokenizer_class"] in GPT2_CLASSES
    return (dict.fromkeys(NAMED[:3], END_OF_TEXT) if default else {}) | settings | special_map


def named_entries(
    settings: dict[str, Any], special_map: dict[str, Any], version: int
) -> list[Entry]:
    """Return the special tokens that have a role: the end of a text, padding and so on."""
    in_role = roles(settings, special_map)
    found = [in_role.get(role) for role in NAMED]
    sources = settings, special_map
    own, extra, additional = [], [], [list_of(source, "additional_special_tokens") for source in
                                      sources]  # fmt: skip
    for source in sources:
        if isinstance(source.get("extra_special_tokens"), dict):
            own += source["extra_special_tokens"].values()
        else:
            extra += list_of(source, "extra_special_tokens")
    if version == 4:
        found += [*additional[0], *additional[1], *extra, *own]
    else:  # other roles count, and the first list that there is
        found += [token for role, token in settings.items() if role.endswith("_token")
                  and role not in NAMED and isinstance(token, str | dict)]  # fmt: skip
        found += [*own, *(extra or additional[0] or additional[1])]
    named = entries([token for token in found if token], "special tokens", special=True)
    plain = {token.name for token in named if token.flags is None}
    for token in named:
        if token.name in plain and token.flags and any(token.flags[:3]):
            raise Malformed(f"{shown(token.name)} has {', '.join(FLAGS[:3])} in one role and none "
                            f"in another: make {SETTINGS} or {SPECIAL} say the same of both")
    return named


def list_of(source: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(found := source.get(key) or [], list):
        raise Malformed(f"{key} is {shown(found)}, expected a list of tokens")
    return found


def numbered(found: Iterable[Entry], ids: Mapping[str, int]) -> list[AddedToken]:
    """Return tokens with the ids that transformers gives them: the known one, or the next."""
    added: dict[str, AddedToken] = {}
    described: set[str] = set()
    unsure: set[str] = set()  # versions 4 and 5 may differ in whether these are `normalized`
    n_vocab = len(ids)
    for name, special, stated, flags in found:
        if not name:
            continue
        token = added.get(name) or AddedToken(name, ids.get(name, n_vocab), False)
        n_vocab += name not in added and name not in ids
        if stated not in (None, token.id):
            raise Malformed(f"{shown(name)} has id {shown(stated)}, but transformers gives it "
                            f"{token.id}, its own or the next free one: save the tokenizer again")
        if flags is None:
            if name not in described:
                unsure.add(name)
        elif name not in described:
            token = token._replace(**dict[str, Any](zip(FLAGS, flags, strict=True)))
        elif flags[:3] != token[3:6]:
            raise Malformed(f"the files differ in {', '.join(FLAGS[:3])} of {shown(name)}: save "
                            "the tokenizer again")
        elif flags[3] != token.normalized:
            unsure.add(name)
        if flags is not None:
            described.add(name)
        added[name] = token._replace(special=token.special or special)
    if unsure and (pair := order_matters(added, unsure)):
        raise Malformed(f"the added tokens {shown(pair[0])} and {shown(pair[1])} overlap, and the "
                        "files do not say which one is found first: save the tokenizer again")
    return list(added.values())


def order_matters(
    added: Mapping[str, AddedToken], unsure: Set[str]
) -> tuple[str, str] | None:
    """Return two tokens, one of them unsure, if it may matter which of them is looked for first.

    A token meets another if it has a trait that the other one minds, such as "begins with <x".
    """
    if sum(len(name) ** 2 for name in added) > MAX_ADDED:
        raise Malformed(f"it has {len(added)} added tokens with {sum(map(len, added))} characters, "
                        "which are too many to compare: save the tokenizer again")
    having: defaultdict[Trait, list[str]] = defaultdict(list)
    for name in sorted(added, key=lambda name: name not in unsure):
        for trait in traits(added[name]):
            if len(having[trait]) < 2:  # unsure ones first, and one of two is another than any name
                having[trait].append(name)
    lengths = sorted(set(map(len, added)))
    for name in added:
        for trait in minded(name, lengths):
            for other in having.get(trait, ()):
                if other != name and not unsure.isdisjoint((name, other)):
                    return name, other
    return None


Trait = tuple[str, str]


def traits(token: AddedToken) -> Iterator[Trait]:
    """Yield what others may mind of a token."""
    if token.single_word:
        yield "single_word", ""
    if token.lstrip or token.rstrip:
        yield "strips", ""
    yield "is", token.name
    for n in range(1, len(token.name)):
        yield "begins with", token.name[:n]


def minded(name: str, lengths: Iterable[int]) -> Iterator[Trait]:
    """Yield the traits of another token that change where `name` is found, or change it there."""
    if bpe.in_word(name[0]) or bpe.in_word(name[-1]):
        yield "single_word", ""
    if name != name.strip():
        yield "strips", ""
    for start in range(len(name)):
        if start:
            yield "begins with", name[start:]
        for n in lengths:
            if n > len(name) - start:
                break
            yield "is", name[start : start + n]


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


# --- writing ----------------------------------------------------------------------------


def write_tokenizer(tokenizer: bpe.Tokenizer, folder: Path, model_max_length: int) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json into an existing folder.

    `AutoTokenizer` of transformers 4 and 5 gives the same ids from them, and so does
    `open_tokenizer`. Raises TokenizerError, before it writes, for a tokenizer that these files
    cannot hold.
    """
    import json

    end = END_OF_TEXT if tokenizer.end_of_text is not None else None
    by_id = {token.id: token for token in tokenizer.added_tokens}
    begin = end
    if tokenizer.start_ids:
        first = by_id.get(tokenizer.start_ids[0])
        # Transformers writes the name into a template, in which these characters have a meaning.
        if (first is None or not first.special or len(tokenizer.start_ids) > 1
                or any(letter in ":$" or letter.isspace() for letter in first.name)):
            raise TokenizerError(
                f"start_ids are {shown(list(tokenizer.start_ids))}, expected one special token, "
                f"without spaces, ':' and '$' in its name: {SETTINGS} has no place for others"
            )
        begin = first.name
    special = [name for name in tokenizer.special_tokens if name not in (begin, end)]
    ids = tokenizer.all_ids(HUGGING_FACE.vocab)
    while ids and (last := by_id.get(len(ids) - 1)) and last.name != end:
        ids.popitem()  # transformers gives tokens added last the next ids
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": model_max_length,
        "add_prefix_space": tokenizer.add_prefix_space,
        "add_bos_token": bool(tokenizer.start_ids),
        "bos_token": begin,
        "eos_token": end,
        "unk_token": end,
        "additional_special_tokens": special,
        "added_tokens_decoder": {
            str(id): {"content": token.name, "special": token.special}
            | {flag: getattr(token, flag) for flag in FLAGS}
            for id, token in sorted(by_id.items())
        },
    }
    contents = {
        HUGGING_FACE.merges: tokenizer.merges_text(),
        HUGGING_FACE.vocab: json.dumps(ids),
        SETTINGS: json.dumps(settings, indent=2) + "\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content.encode())

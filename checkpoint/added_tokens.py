"""Added tokens, as versions 4 and 5 of transformers read them from four files.

Both versions take an added token from any file that names it, but not from the same ones, and not
in the same order. So there is a listing for each version, and `numbered` turns it into tokens.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import bpe
from ..bpe import AddedToken, shown
from .files import Malformed, exists, read_json

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = "tokenizer_config.json"
ADDED = "added_tokens.json"  # transformers 3 and 4
SPECIAL = "special_tokens_map.json"  # the same

GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")  # <|endoftext|> is theirs by default
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
         "mask_token")  # fmt: skip
MORE_ROLES = "model_specific_special_tokens"  # transformers 5 adds these tokens, 4 does not
END_OF_TEXT = "<|endoftext|>"
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
MAX_ADDED = 10**7  # the squares of the lengths of added tokens: 10,000 have some 10**6


def refuse_setting(name: str, settings: Mapping[str, Any], file: str) -> None:
    if settings.get(name):
        raise Malformed(f"{file}: {name} is set, which is not supported: remove it if the model "
                        "was trained without it")


def only_version_5(settings: Mapping[str, Any]) -> bool:
    """Return True if transformers 5 wrote the settings and version 4 cannot read them."""
    return (settings["tokenizer_class"] == "TokenizersBackend"
            or isinstance(settings.get("extra_special_tokens"), list))


# --- listings ---------------------------------------------------------------------------


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

    Settings that version 5 alone can read have one listing.
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


# --- ids, and the order in which tokens are found ----------------------------------------


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

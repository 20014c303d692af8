"""Byte-level byte-pair encoding (BPE) as in GPT-2: text to token ids and back, and training.

Text is split into words. A word starts as the ids of its UTF-8 bytes. Neighbouring ids are then
merged, pair by pair, in the order in which training learned the merges. This file runs alone: ASCII
text needs the standard library, other text the package `regex`.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", over bytes as
in Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""
from __future__ import annotations

import codecs
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, cached_property, partial
from heapq import heapify, heappop, heappush
from itertools import count, pairwise
from operator import index
from typing import Literal

try:
    from .backend import Error
except ImportError:  # this file alone
    Error = ValueError  # type: ignore[assignment, misc]

__all__ = ["Decoder", "Tokenizer", "TokenizerError", "train", "words"]

# GPT-2's pattern of a word. The package `regex` reads it, because Python's own `re` knows neither
# \p{L}, a letter, nor \p{N}, a number.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same pattern for ASCII text and `re`, which tries alternatives one by one, so that it pays to
# factor out common beginnings. Without re.ASCII, \s would also match U+001C to U+001F, which are
# not white space in Unicode.
ASCII_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?(?:[A-Za-z]++|[0-9]++|[^\sA-Za-z0-9]++)|\s+(?!\S)|\s+"

# Ids 0 to 255 are the bytes. Those with a visible Latin-1 character come first: id 0 is b"!".
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF_ID = bytes(_VISIBLE + sorted(set(range(256)) - set(_VISIBLE)))
_ID_OF_BYTE = bytes(_BYTE_OF_ID.index(byte) for byte in range(256))
# GPT-2's files spell a byte as one visible character: its own, or the next from U+0100 on. This
# module works on that spelling: b" t" is "Ġt", and the length of a token is its number of bytes.
_CHAR_OF_ID = "".join(map(chr, [*_VISIBLE, *range(256, 512 - len(_VISIBLE))]))
_CHAR_OF_BYTE = "".join(_CHAR_OF_ID[i] for i in _ID_OF_BYTE)
_BYTE_OF_CHAR = codecs.charmap_build(_CHAR_OF_BYTE)
_FIRST_BYTES = "\xc2-\xf4"  # the first byte of every character beyond ASCII, spelled

_END_OF_TEXT = "<|endoftext|>"
_HEADER = "#version: 0.2"

# SHA-256 of OpenAI's own files.
OFFICIAL_MERGES = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
OFFICIAL_IDS = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"

_NO_MERGE = 1 << 62  # the rank of a pair that no merge joins: above every id
_CACHE_BYTES = 32 << 20  # for the ids of words, and as many for the ids of segments
_CACHED_WORD = 128  # characters; longer words, such as the rulers of tables, seldom come back
_SHORT_WORD = 64  # bytes; `_merge_long` is quicker for longer words
_ASCII_PIECE = 1 << 18  # characters that are split into words at a time, to bound memory
_PIECE = 1 << 9  # the same in other text: small, so that most pieces of English are ASCII
_MAX_FILE = 16 << 20  # bytes; GPT-2's files have 0.5 and 1 MB


class TokenizerError(Error):
    """The error of this module. The message says what was found, where, and what was expected."""


def shown(value: object) -> str:
    """Return a value as an error message shows it: ASCII, at most 80 characters."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    except ValueError:  # Python does not print integers of thousands of digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def words(text: str) -> list[str]:
    """Split a text into GPT-2's words: "Hello  world's" is "Hello", " ", " world", "'s".

    No token crosses the end of a word. Raises TokenizerError if the text is not ASCII and the
    package `regex` is not installed.
    """
    return _word_finder(text.isascii())(text)


@cache
def _word_finder(ascii_only: bool) -> Callable[[str], list[str]]:
    """Return a function that splits a text into words, compiled on first use."""
    if ascii_only:
        return re.compile(ASCII_PATTERN, re.ASCII).findall
    try:
        import regex
    except ImportError:
        raise TokenizerError(
            "text with characters beyond ASCII needs the package regex, which is not installed: "
            "pip install regex"
        ) from None
    # By default `regex` releases the interpreter lock for every word, which costs time.
    return partial(regex.compile(PATTERN).findall, concurrent=False)


def _pieces(text: str) -> Iterable[str]:
    """Cut the text into pieces of bounded length that have the same words.

    A cut comes before white space that follows another character. GPT-2's pattern always ends a
    word there, and never looks further to find that end.
    """
    size = _ASCII_PIECE if text.isascii() else _PIECE
    if len(text) <= size:
        return [text]
    piece = rf"(?s:.{{{size}}}.*?\S(?=[\t-\r ])|.+)"
    return (found[0] for found in re.finditer(piece, text))


def _replace_surrogates(text: str) -> str:
    """Put U+FFFD in place of lone surrogates, which UTF-8 cannot hold, as tiktoken does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Tokenizer:
    """A vocabulary that turns text into ids and back.

    Ids are the 256 bytes, one per merge, then the special tokens. `merges` are pairs of tokens in
    the order in which they were learned. `n_vocab` counts all ids, `special_tokens` maps names to
    ids, `end_of_text` is the id of <|endoftext|> or None. Threads may share a tokenizer. Raises
    TokenizerError if a merge joins unknown tokens or makes a known one, or if names are not unique.
    """

    n_vocab: int
    end_of_text: int | None
    special_tokens: dict[str, int]

    def __init__(
        self,
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] = (_END_OF_TEXT,),
    ):
        lines = [f"{_spell(left)} {_spell(right)}" for left, right in merges]
        _check_merges(lines, lambda n: f"merges[{n}]")
        self._set_up(lines, special_tokens, trained=False)

    @classmethod
    def from_files(
        cls, merges_path: str | os.PathLike[str], vocab_path: str | os.PathLike[str] | None = None
    ) -> Tokenizer:
        """Read vocab.bpe (or merges.txt) and, if given, encoder.json (or vocab.json).

        The merges imply the ids, and the second file must agree. That file may name other special
        tokens than <|endoftext|>, whose ids follow the merges. Raises TokenizerError if a file is
        damaged or the two do not match, OSError if one cannot be read.
        """
        merges_path = os.fspath(merges_path)
        text, official = _read(merges_path, OFFICIAL_MERGES)
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        header = lines[0].startswith("#version")
        if header:
            del lines[0]
        if not official:  # the check takes twice as long as all the rest
            _check_merges(lines, lambda n: f"{merges_path}: line {n + 1 + header}")
        special: Sequence[str] = (_END_OF_TEXT,)
        if vocab_path is not None:
            vocab_path = os.fspath(vocab_path)
            text, official_ids = _read(vocab_path, OFFICIAL_IDS)
            if not (official and official_ids):
                ids = _parse_ids(text, vocab_path)
                special = _special_tokens(ids, vocab_path, lines, merges_path)
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(lines, special, trained=official)
        return tokenizer

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer.json, the one file that transformers 5 writes.

        Its format is that of Hugging Face's tokenizers library. Raises TokenizerError if the file
        is damaged or not of a tokenizer like GPT-2's, OSError if it cannot be read.
        """
        path = os.fspath(path)
        text, _ = _read(path, "")
        lines, ids = _parse_json(text, path)
        _check_merges(lines, lambda n: f"{path}: merge {n}")
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(lines, _special_tokens(ids, path, lines, "its merges"), trained=False)
        return tokenizer

    def _set_up(self, lines: list[str], special_tokens: Sequence[str], trained: bool) -> None:
        # In a trained vocabulary the bytes of a token always merge to that token. Not so in others.
        self._trained = trained
        self._lines = lines
        self._tokens = [*_CHAR_OF_ID, *(line.replace(" ", "") for line in lines)]
        self._ids = dict(zip(self._tokens, count()))
        self._bytes = _TokenBytes(self._tokens)
        self.special_tokens = dict(zip(special_tokens, count(len(self._tokens))))
        if len(self.special_tokens) < len(special_tokens) or "" in self.special_tokens:
            raise TokenizerError(
                f"special_tokens are {shown(special_tokens)}, expected names that differ and are "
                "not empty"
            )
        self._tokens += (_spell(_replace_surrogates(name).encode()) for name in special_tokens)
        self.n_vocab = len(self._tokens)
        self.end_of_text = self.special_tokens.get(_END_OF_TEXT)
        self._word_ids = _IdCache(self._encode_word)
        self._segment_ids = _IdCache(self._encode_segment)

    @cached_property
    def _merges(self) -> dict[str, int]:
        """The id that two neighbours merge to, by their line in the file: "Ġ t" gives 256."""
        return dict(zip(self._lines, count(256)))

    def encode(
        self, text: str, allowed_special: Collection[str] | Literal["all"] = ()
    ) -> list[int]:
        """Return the ids of a text. With GPT-2's merges they equal those of tiktoken's "gpt2".

        "<|endoftext|>" in the text is thirteen ordinary characters, unless it is allowed by name or
        by "all". Lone surrogates count as U+FFFD. `regex` and tiktoken may class a letter
        differently if it is newer than the Unicode version of one of them. Raises TokenizerError
        if `allowed_special` has an unknown name, or for the reason that `words` gives.
        """
        text = _replace_surrogates(text)
        names = self.special_tokens if allowed_special == "all" else allowed_special
        if not names:
            return self._encode_ordinary(text)
        for name in names:
            if name not in self.special_tokens:
                raise TokenizerError(
                    f"allowed_special has {shown(name)}, but the special tokens of this "
                    f"vocabulary are {shown(list(self.special_tokens))}"
                )
        longest_first = sorted(names, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        ids = self._encode_ordinary(parts[0])
        for name, ordinary in zip(parts[1::2], parts[2::2], strict=True):
            ids.append(self.special_tokens[name])
            ids += self._encode_ordinary(ordinary)
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        word_ids, ids = self._word_ids, []
        for piece in _pieces(text):
            for word in words(piece):
                ids += word_ids[word]
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        """Return the ids of a word by way of its segments: even a new word has few new ones."""
        spelled = _spell(word.encode())
        if word.isascii():
            return self._encode_segment(spelled)
        segment_ids, ids = self._segment_ids, []
        for segment in self._segment_pattern.findall(spelled):
            ids += segment_ids[segment]
        return tuple(ids)

    @cached_property
    def _segment_pattern(self) -> re.Pattern[str]:
        """The pattern of a segment: a character and the following ones that a merge might join.

        A merge puts the last byte of one token before the first byte of another. Two bytes that no
        merge brings together never meet in a token, so a word can be cut between them. GPT-2's
        merges, mostly English, leave nearly every character of other scripts a segment of its own.
        """
        before: defaultdict[str, set[str]] = defaultdict(set)  # first byte: bytes merged before it
        lines = "\n".join(self._lines)
        for gap in re.finditer(f" [{_FIRST_BYTES}]", lines):
            before[lines[gap.start() + 1]].add(re.escape(lines[gap.start() - 1]))
        joined = "|".join(f"{first}(?<=[{''.join(lasts)}].)" for first, lasts in before.items())
        others = f"[^{_FIRST_BYTES}]*+"
        return re.compile(f".{others}(?:(?:{joined or '(?!)'}){others})*+")

    def _encode_segment(self, spelled: str) -> tuple[int, ...]:
        """Return the ids of a segment, or of a whole word."""
        if self._trained and (id := self._ids.get(spelled)) is not None:
            return (id,)
        merge = self._merge_short if len(spelled) <= _SHORT_WORD else self._merge_long
        return tuple(map(self._ids.__getitem__, merge(list(spelled))))

    def _merge_short(self, parts: list[str]) -> list[str]:
        """Merge the pair learned first, the leftmost of equals, until no merge applies.

        With the merges h e, l l, he ll: h e l l o, he l l o, he ll o, hell o.
        """
        merged_id, tokens = self._merges.get, self._tokens
        ids = [merged_id(f"{left} {right}", _NO_MERGE) for left, right in pairwise(parts)]
        while ids and (first := min(ids)) != _NO_MERGE:
            i = ids.index(first)
            parts[i] = new = tokens[first]
            del parts[i + 1], ids[i]
            if i > 0:
                ids[i - 1] = merged_id(f"{parts[i - 1]} {new}", _NO_MERGE)
            if i < len(ids):
                ids[i] = merged_id(f"{new} {parts[i + 1]}", _NO_MERGE)
        return parts

    def _merge_long(self, parts: list[str]) -> list[str]:
        """Return the result of `_merge_short` in n log n steps: equal pairs are merged together.

        A token stands at its first and its last position in `parts`, with "" between, so lengths
        lead to its neighbours. A merge is learned after the tokens that it joins, so each id leaves
        the heap once, in order. A position is out of date if a token there has grown since.
        """
        merged_id, end = self._merges.get, len(parts)
        heap: list[int] = []
        pairs: dict[int, tuple[str, str]] = {}
        positions: defaultdict[int, list[int]] = defaultdict(list)

        def add(left: str, right: str, i: int) -> None:
            if (id := merged_id(f"{left} {right}")) is not None:
                if id not in pairs:
                    pairs[id] = left, right
                    heappush(heap, id)
                positions[id].append(i)

        for i, (left, right) in enumerate(pairwise(parts)):
            add(left, right, i)
        while heap:
            id = heappop(heap)
            left, right = pairs[id]
            new = left + right
            for i in sorted(positions.pop(id)):  # left to right: a a a is aa a
                middle, after = i + len(left), i + len(new)
                if after > end or parts[i] != left or parts[middle] != right:
                    continue
                parts[middle - 1] = parts[middle] = ""
                parts[i] = parts[after - 1] = new
                if i > 0:
                    add(parts[i - 1], new, i - len(parts[i - 1]))
                if after < end:
                    add(new, parts[after], i)
        tokens, i = [], 0
        while i < end:
            tokens.append(parts[i])
            i += len(parts[i])
        return tokens

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes of one token. Raises TokenizerError if the id is out of range."""
        return self.decode_bytes([id])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the joined bytes of the tokens. Raises TokenizerError if an id is out of range."""
        ids = list(map(index, ids))
        try:
            return b"".join(map(self._bytes.__getitem__, ids))
        except KeyError:
            n, wrong = next((n, i) for n, i in enumerate(ids) if not 0 <= i < self.n_vocab)
            raise TokenizerError(
                f"ids[{n}] is {shown(wrong)}, but this vocabulary has ids 0 to {self.n_vocab - 1}"
            ) from None

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """Return the text of the tokens. Raises TokenizerError if an id is out of range.

        `errors` is that of bytes.decode. It applies to characters of which bytes are missing.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decoder(self) -> Decoder:
        """Return a decoder for ids that come one at a time."""
        return Decoder(self)

    def save(
        self, folder: str | os.PathLike[str], names: tuple[str, str] = ("vocab.bpe", "encoder.json")
    ) -> None:
        """Write the merges and the ids as GPT-2's two files, each whole or not at all.

        Hugging Face calls the same files "merges.txt" and "vocab.json". Raises TokenizerError if a
        special token is spelled like another token: the file of ids would lose one of them.
        """
        ids = self._ids | self.special_tokens
        if len(ids) < self.n_vocab:
            raise TokenizerError(
                f"{names[1]} cannot hold the special tokens {shown(list(self.special_tokens))}, "
                "because it spells another token like one of them: rename that special token"
            )
        merges = "".join(f"{line}\n" for line in self._lines)
        os.makedirs(folder, exist_ok=True)
        _write(os.path.join(folder, names[0]), f"{_HEADER}\n{merges}")
        _write(os.path.join(folder, names[1]), json.dumps(ids))


class Decoder:
    """A decoder of ids that come one by one. It holds back characters that are not yet whole."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Return the characters that this token completes, perhaps none.

        Raises TokenizerError if the id is out of range.
        """
        return self._utf8.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """Return U+FFFD if the last bytes are no whole character, else "", and start anew."""
        return self._utf8.decode(b"", final=True)


def train(text: str, n_vocab: int) -> Tokenizer:
    """Train a tokenizer: merge the most frequent pair of neighbours, again and again.

    `n_vocab` counts the 256 bytes, the merges and <|endoftext|>. Pairs are counted within words and
    may overlap (a a a has two). Of equally frequent pairs the one with the lower left id comes
    first, then the lower right id. So text and n_vocab alone determine the result. A merge visits
    only the words that hold its pair. Raises TokenizerError if n_vocab is under 257, if the text
    runs out of pairs, or for the reason that `words` gives. Sennrich et al. 2016, section 3.2.
    """
    if n_vocab < 257:
        raise TokenizerError(
            f"n_vocab is {shown(n_vocab)}, expected at least 257: 256 bytes and {_END_OF_TEXT}"
        )
    frequencies: Counter[str] = Counter()
    for piece in _pieces(_replace_surrogates(text)):
        frequencies.update(words(piece))
    split = [list(word.encode().translate(_ID_OF_BYTE)) for word in frequencies]
    times = list(frequencies.values())
    counts: Counter[tuple[int, int]] = Counter()
    words_with: defaultdict[tuple[int, int], set[int]] = defaultdict(set)  # pair: indices in split
    for w, ids in enumerate(split):
        for pair in pairwise(ids):
            counts[pair] += times[w]
            words_with[pair].add(w)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapify(heap)
    tokens = [bytes([byte]) for byte in _BYTE_OF_ID]
    merges = []
    while len(merges) < n_vocab - 257:
        if not heap:
            raise TokenizerError(
                f"n_vocab is {shown(n_vocab)}, but this text has pairs for at most "
                f"{len(merges) + 257}: choose a smaller n_vocab or a longer text"
            )
        n, pair = heappop(heap)
        if counts[pair] != -n:  # out of date: every change of a count pushed a new entry
            continue
        left, right = (tokens[id] for id in pair)
        merges.append((left, right))
        tokens.append(left + right)
        changes: Counter[tuple[int, int]] = Counter()
        for w in words_with.pop(pair):
            merged = _merge_pair(split[w], pair, len(tokens) - 1)
            for old in pairwise(split[w]):
                changes[old] -= times[w]
            for new in pairwise(merged):
                changes[new] += times[w]
                words_with[new].add(w)
            split[w] = merged
        for changed, change in changes.items():
            counts[changed] += change
            if change and counts[changed]:
                heappush(heap, (-counts[changed], changed))
    tokenizer = Tokenizer(merges)
    tokenizer._trained = True
    return tokenizer


def _merge_pair(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace a pair by one id, from the left: [7, 7, 7] with (7, 7) as 8 is [8, 7]."""
    merged: list[int] = []
    for id in ids:
        if merged and (merged[-1], id) == pair:
            merged[-1] = new
        else:
            merged.append(id)
    return merged


def _spell(token: bytes) -> str:
    """Spell a token as GPT-2's files do: b" the" is "Ġthe"."""
    return codecs.charmap_decode(token, "strict", _CHAR_OF_BYTE)[0]


class _IdCache(dict[str, tuple[int, ...]]):
    """A cache of the ids of strings. It encodes a missing string, and clears itself when full."""

    def __init__(self, encode: Callable[[str], tuple[int, ...]]):
        self._encode = encode
        self._size = 0  # bytes

    def __missing__(self, string: str) -> tuple[int, ...]:
        ids = self._encode(string)
        if len(string) <= _CACHED_WORD:
            size = 200 + 4 * len(string) + 8 * len(ids)  # at most, with its slot in the table
            if self._size + size > _CACHE_BYTES:
                self.clear()
                self._size = 0
            self._size += size
            self[string] = ids
        return ids


class _TokenBytes(dict[int, bytes]):
    """The bytes of each token, computed on first use: most programs decode few of the tokens."""

    def __init__(self, tokens: list[str]):
        self._tokens = tokens

    def __missing__(self, id: int) -> bytes:
        if not 0 <= id < len(self._tokens):
            raise KeyError(id)
        self[id] = data = codecs.charmap_encode(self._tokens[id], "strict", _BYTE_OF_CHAR)[0]
        return data


def _check_merges(lines: list[str], name_line: Callable[[int], str]) -> None:
    """Raise TokenizerError unless each line joins two known tokens into a new one."""
    known = set(_CHAR_OF_ID)
    for n, line in enumerate(lines):
        left, _, right = line.partition(" ")
        if left not in known or right not in known:
            raise TokenizerError(
                f"{name_line(n)} is {shown(line)}, expected two tokens, each of them a byte or "
                "made by an earlier merge"
            )
        if left + right in known:
            raise TokenizerError(
                f"{name_line(n)} makes {shown(left + right)}, which an earlier merge makes too"
            )
        known.add(left + right)


def _parse_json(text: str, path: str) -> tuple[list[str], dict[str, int]]:
    """Return the lines of merges.txt, and all ids by token, that a tokenizer.json holds."""
    required = {
        "model": {"type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "byte_fallback": False, "ignore_merges": False, "dropout": None},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }  # fmt: skip
    try:
        parts = json.loads(text)
        if parts.get("normalizer"):
            raise TokenizerError(f"{path}: normalizer is {shown(parts['normalizer'])}, but GPT-2's "
                                 "byte-level BPE has none")
        for part, settings in required.items():
            for name, value in settings.items():
                found = parts[part].get(name, value if name != "type" else None)
                if found != value and (found or value):  # "" and null both say that there is none
                    raise TokenizerError(f"{path}: {part}'s {name} is {shown(found)}, but GPT-2's "
                                         f"byte-level BPE has {shown(value)}")
        merges, ids = parts["model"]["merges"], dict(parts["model"]["vocab"])
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        ids |= {token["content"]: token["id"] for token in parts.get("added_tokens") or ()}
    except TokenizerError:
        raise
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON: {shown(error)}") from None
    except (AttributeError, KeyError, TypeError):
        raise TokenizerError(f"{path}: not a tokenizer.json of a byte-level BPE") from None
    if set(map(type, ids.values())) != {int}:
        raise TokenizerError(f"{path}: not all ids of its tokens are integers")
    return lines, ids


def _special_tokens(
    ids: dict[str, int], path: str, lines: list[str], merges_path: str
) -> list[str]:
    """Return the names of the ids after the merges. Raise TokenizerError if other ids disagree."""
    tokens = dict(zip([*_CHAR_OF_ID, *(line.replace(" ", "") for line in lines)], count()))
    if not tokens.items() <= ids.items():
        token, id = next(item for item in tokens.items() if ids.get(item[0]) != item[1])
        found = f"id {shown(ids[token])}" if token in ids else "no id"
        raise TokenizerError(
            f"{path}: {shown(token)} has {found}, expected {id}, which follows from {merges_path}"
        )
    special = sorted((name for name in ids if name not in tokens), key=ids.__getitem__)
    for name, id in zip(special, count(len(tokens))):
        if ids[name] != id:
            raise TokenizerError(
                f"{path}: {shown(name)} has id {shown(ids[name])}, expected {id}, the next after "
                f"the tokens of {merges_path}"
            )
    for name in special[:1]:  # two tokens joined: a merge whose line is lost
        if any(name[:i] in tokens and name[i:] in tokens for i in range(1, min(len(name), 1000))):
            raise TokenizerError(
                f"{path}: {shown(name)} has id {ids[name]} and joins two tokens, but is missing "
                f"from {merges_path}: is the file cut short?"
            )
    return special


def _parse_ids(text: str, path: str) -> dict[str, int]:
    def distinct(pairs: list[tuple[str, int]]) -> dict[str, int]:
        if len(ids := dict(pairs)) < len(pairs):
            twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
            raise TokenizerError(f"{path}: {shown(twice)} has two ids, expected one")
        return ids

    try:
        ids = json.loads(text, object_pairs_hook=distinct)
    except TokenizerError:
        raise
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON: {shown(error)}") from None
    if not isinstance(ids, dict) or set(map(type, ids.values())) != {int}:
        raise TokenizerError(f"{path}: not one JSON object that gives each token an integer")
    return ids


def _read(path: str, sha256: str) -> tuple[str, bool]:
    """Return the text of a file, and True if its hash is `sha256`."""
    import hashlib  # a tenth of the time of importing this package, and only files need it

    with open(path, "rb") as file:
        data = file.read(_MAX_FILE + 1)
    if not 0 < len(data) <= _MAX_FILE:
        found = "empty" if not data else f"over {_MAX_FILE >> 20} MiB"
        raise TokenizerError(f"{path}: {found}, which a vocabulary never is")
    try:
        return data.decode(), hashlib.sha256(data).hexdigest() == sha256
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}") from None


def _write(path: str, text: str) -> None:
    """Write a file that other processes see whole or not at all."""
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise

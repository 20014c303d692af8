"""Byte-level byte-pair encoding, GPT-2's: text to token ids and back, and training a vocabulary.

Text is cut into words; a word is the ids of its UTF-8 bytes, of which neighbours are joined, pair
by pair, in the order in which the merges were learned. It needs the standard library alone.
Part of gpt2_np.

Neural Machine Translation of Rare Words with Subword Units, Sennrich et al. 2016, over bytes as in
Language Models are Unsupervised Multitask Learners, Radford et al. 2019, section 2.2.
"""
from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, cached_property
from heapq import heapify, heappop, heappush
from itertools import accumulate, count, pairwise
from operator import index
from typing import Literal

# Ids 0 to 255 are the bytes, those with a visible Latin-1 character first: id 0 is b"!".
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF_ID = bytes(_VISIBLE + sorted(set(range(256)) - set(_VISIBLE)))
_ID_OF_BYTE = bytes(_BYTE_OF_ID.index(byte) for byte in range(256))
# The files write a byte as one visible character: its own, or else the next from U+0100 on. So does
# this module until ids are asked for: "Ġt" is b" t", and its length is the number of bytes.
_CHAR_OF_ID = "".join(map(chr, [*_VISIBLE, *range(256, 512 - len(_VISIBLE))]))
_CHAR_OF_BYTE = "".join(_CHAR_OF_ID[i] for i in _ID_OF_BYTE)
_BYTE_OF_CHAR = codecs.charmap_build(_CHAR_OF_BYTE)
_FIRST_BYTES = "\xc2-\xf4"  # of characters beyond ASCII, in UTF-8 and as the files write them

_END_OF_TEXT = "<|endoftext|>"
_HEADER = "#version: 0.2"

# SHA-256 of OpenAI's own files.
_OFFICIAL_MERGES = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_OFFICIAL_IDS = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"

_NONE = 1 << 62  # what a pair makes that is in no merge: more than any id
_CACHE = 32 << 20  # bytes for the words met before, and as many for their segments
_CACHED_WORD = 128  # characters: the rulers of tables; longer words seldom come back
_SHORT_WORD = 64  # bytes; longer words are quicker in `_merge_long`
_PIECE = 1 << 18  # characters of text that are in the form of words at one time
_MAX_FILE = 16 << 20  # bytes; GPT-2's files have 0.5 and 1 MB


class TokenizerError(ValueError):
    """What every failure of this module is: the message says what was wrong, where, what to do."""


# Words. GPT-2's pattern is
#   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# but the standard library has no \p, and the package `regex` follows the newest Unicode, whose new
# letters change the ids of texts. So letters and numbers are tables here, at the end of this file.

_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# What is above U+FFFF, less a run without letters and numbers that has most emoji.
_HIGH = "\U00010000-\U0001f10c\U0001fbf0-\U0010ffff"


def words(text: str) -> list[str]:
    """GPT-2's words, which no token crosses: "Hello  world's" is "Hello", " ", " world", "'s"."""
    return _word_pattern(text.isascii()).findall(text)


@cache
def _word_pattern(ascii_only: bool) -> re.Pattern[str]:
    """GPT-2's pattern for ASCII text, compiled in 0.2 ms, or for any text, in 11 ms.

    Below U+10000 `re` sees at once whether a class has a character; above, it tries range by range.
    So words that no such character follows are tried first, and all others after white space.
    """
    contraction = "'(?:[sdmt]|ll|ve|re)"
    # All white space, or all but its last character where a word follows. That word takes a " ".
    white_space = f"[{_SPACE}]+(?![^{_SPACE}])|(?! )[{_SPACE}]"
    if ascii_only:
        return re.compile("|".join([contraction, _word("A-Za-z", "0-9"), white_space]))
    letters, numbers = _ranges(_LETTERS), _ranges(_NUMBERS)
    low = ("".join(r for r in ranges if r < "\U00010000") for ranges in (letters, numbers))
    any_word = _word("".join(letters), "".join(numbers))
    return re.compile("|".join([contraction, _word(*low, _HIGH), white_space, any_word]))


def _word(letters: str, numbers: str, but: str = "") -> str:
    """The pattern of a run of letters, numbers or others, with the " " before it.

    Characters in `but` are not others, and no word ends before one.
    """
    others = f"^{_SPACE}{letters}{numbers}{but}"
    end = f"(?![{but}])" if but else ""
    return f" ?(?:[{letters}]++|[{numbers}]++|[{others}]++){end}"


def _ranges(lengths: str) -> list[str]:
    """Lengths of runs, out and in by turns, as ranges: "65 26 6 26" is ["A-Z", "a-z"]."""
    edges = [*accumulate(map(int, lengths.split()))]
    return [f"{chr(a)}-{chr(b - 1)}" for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _pieces(text: str) -> Iterator[str]:
    """The text in parts of bounded length, cut before white space that follows a word.

    GPT-2's pattern always ends a word there, and never looks further to find it.
    """
    start = 0
    while len(text) - start > _PIECE:
        found = re.compile(f"[^{_SPACE}](?=[\t-\r ])").search(text, start + _PIECE)
        if not found:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def _valid(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which UTF-8 cannot hold: tiktoken's rule."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Tokenizer:
    """Text to ids and back. Ids are the 256 bytes, one per merge, then the special tokens.

    `merges` are pairs of tokens, first learned first. `n_vocab` counts the ids, `special_tokens`
    has the last of them by name, `end_of_text` is the one of <|endoftext|> or None. Threads may
    share a tokenizer. Raises TokenizerError where the merges or names make no vocabulary.
    """

    n_vocab: int
    end_of_text: int | None
    special_tokens: dict[str, int]

    def __init__(
        self,
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] = (_END_OF_TEXT,),
    ):
        lines = [f"{_written(left)} {_written(right)}" for left, right in merges]
        _check_merges(lines, lambda n: f"merges[{n}]")
        self._set_up(lines, special_tokens, trained=False)

    @classmethod
    def from_files(
        cls, merges_path: str | os.PathLike[str], vocab_path: str | os.PathLike[str] | None = None
    ) -> Tokenizer:
        """The tokenizer of vocab.bpe (merges.txt) and, where given, its encoder.json (vocab.json).

        The merges imply the ids. The second file must agree, and may name other special tokens
        than <|endoftext|>, with the ids after the merges. Raises TokenizerError where it does not
        or a file is damaged, OSError where one cannot be read.
        """
        merges_path = os.fspath(merges_path)
        text, official = _read(merges_path, _OFFICIAL_MERGES)
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        header = lines[0].startswith("#version")
        if header:
            del lines[0]
        if not official:  # the check takes twice as long as all the rest
            _check_merges(lines, lambda n: f"{merges_path}: line {n + 1 + header}")
        special: Sequence[str] = (_END_OF_TEXT,)
        if vocab_path is not None:
            vocab_path = os.fspath(vocab_path)
            text, official_ids = _read(vocab_path, _OFFICIAL_IDS)
            if not (official and official_ids):
                ids = _parse_ids(text, vocab_path)
                special = _special_tokens(ids, vocab_path, lines, merges_path)
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(lines, special, trained=official)
        return tokenizer

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a tokenizer.json, the one file that transformers 5 writes.

        Its format is that of Hugging Face's tokenizers library. Raises TokenizerError where the
        file is damaged or describes another kind than GPT-2's, OSError where it cannot be read.
        """
        path = os.fspath(path)
        text, _ = _read(path, "")
        lines, ids = _parse_json(text, path)
        _check_merges(lines, lambda n: f"{path}: merge {n}")
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(lines, _special_tokens(ids, path, lines, "its merges"), trained=False)
        return tokenizer

    def _set_up(self, lines: list[str], special_tokens: Sequence[str], trained: bool) -> None:
        # Training gives only tokens that are what their own bytes become; other merges may not.
        self._trained = trained
        self._lines = lines
        self._tokens = [*_CHAR_OF_ID, *(line.replace(" ", "") for line in lines)]
        self._ids = dict(zip(self._tokens, count()))
        self._bytes = _Bytes(self._tokens)
        self.special_tokens = dict(zip(special_tokens, count(len(self._tokens))))
        if len(self.special_tokens) < len(special_tokens) or "" in self.special_tokens:
            raise TokenizerError(
                f"special_tokens must be different and not empty, but are {_short(special_tokens)}"
            )
        self._tokens += (_written(_valid(name).encode()) for name in special_tokens)
        self.n_vocab = len(self._tokens)
        self.end_of_text = self.special_tokens.get(_END_OF_TEXT)
        self._known = _Known(self._encode_word)
        self._known_segments = _Known(self._encode_segment)

    @cached_property
    def _merges(self) -> dict[str, int]:
        """What two neighbours make, by the line that says so: "Ġ t" makes 256."""
        return dict(zip(self._lines, count(256)))

    def encode(
        self, text: str, allowed_special: Collection[str] | Literal["all"] = ()
    ) -> list[int]:
        """The ids of the text: with GPT-2's merges, those of tiktoken's "gpt2".

        "<|endoftext|>" in the text is thirteen ordinary characters unless it is allowed by name or
        with "all". Lone surrogates count as U+FFFD. Raises TokenizerError where a name in
        `allowed_special` is not a special token.
        """
        text = _valid(text)
        names = self.special_tokens if allowed_special == "all" else allowed_special
        if not names:
            return self._encode_ordinary(text)
        for name in names:
            if name not in self.special_tokens:
                raise TokenizerError(
                    f"allowed_special has {_short(name)}, but the special tokens of this "
                    f"vocabulary are {_short(list(self.special_tokens))}"
                )
        longest_first = sorted(names, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        ids = self._encode_ordinary(parts[0])
        for name, ordinary in zip(parts[1::2], parts[2::2], strict=True):
            ids.append(self.special_tokens[name])
            ids += self._encode_ordinary(ordinary)
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        known, ids = self._known, []
        for piece in _pieces(text):
            for word in words(piece):
                ids += known[word]
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        """The ids of a word, by way of its segments, few of which are new even in a new word."""
        written = _written(word.encode())
        if word.isascii():
            return self._encode_segment(written)
        known, ids = self._known_segments, []
        for segment in self._segment_pattern.findall(written):
            ids += known[segment]
        return tuple(ids)

    @cached_property
    def _segment_pattern(self) -> re.Pattern[str]:
        """The pattern of a segment: a character, and those after it that some merge might join.

        A merge puts the last byte of one token before the first of another. Bytes that no merge
        puts side by side never meet in a token, so there a word can be cut. GPT-2's merges, most
        of them English, leave nearly every character of other scripts a segment of its own.
        """
        before: defaultdict[str, set[str]] = defaultdict(set)  # first bytes: what merges have there
        lines = "\n".join(self._lines)
        for gap in re.finditer(f" [{_FIRST_BYTES}]", lines):
            before[lines[gap.start() + 1]].add(re.escape(lines[gap.start() - 1]))
        joined = "|".join(f"{first}(?<=[{''.join(lasts)}].)" for first, lasts in before.items())
        others = f"[^{_FIRST_BYTES}]*+"
        return re.compile(f".{others}(?:(?:{joined or '(?!)'}){others})*+")

    def _encode_segment(self, written: str) -> tuple[int, ...]:
        """The ids of a segment, or of a whole word."""
        if self._trained and (id := self._ids.get(written)) is not None:
            return (id,)
        merge = self._merge_short if len(written) <= _SHORT_WORD else self._merge_long
        return tuple(map(self._ids.__getitem__, merge(list(written))))

    def _merge_short(self, parts: list[str]) -> list[str]:
        """Join the pair learned first, the leftmost of equals, until no pair is in the merges.

        With the merges h e, l l, he ll: h e l l o, he l l o, he ll o, hell o.
        """
        makes, tokens = self._merges.get, self._tokens
        found = [makes(f"{left} {right}", _NONE) for left, right in pairwise(parts)]
        while found and (first := min(found)) != _NONE:
            i = found.index(first)
            parts[i] = new = tokens[first]
            del parts[i + 1], found[i]
            if i > 0:
                found[i - 1] = makes(f"{parts[i - 1]} {new}", _NONE)
            if i < len(found):
                found[i] = makes(f"{new} {parts[i + 1]}", _NONE)
        return parts

    def _merge_long(self, parts: list[str]) -> list[str]:
        """What `_merge_short` returns, in n log n steps: all pairs of one kind are joined at once.

        A token stands at its first and at its last place in `parts` and "" between, so its
        neighbours are found by lengths. What a token is merged into was learned after it, so kinds
        come up in order, each once. A place may be out of date: its tokens have grown since.
        """
        makes, end = self._merges.get, len(parts)
        heap: list[int] = []  # kinds: the ids that pairs make
        pairs: dict[int, tuple[str, str]] = {}
        places: defaultdict[int, list[int]] = defaultdict(list)

        def expect(left: str, right: str, i: int) -> None:
            if (kind := makes(f"{left} {right}")) is not None:
                if kind not in pairs:
                    pairs[kind] = left, right
                    heappush(heap, kind)
                places[kind].append(i)

        for i, (left, right) in enumerate(pairwise(parts)):
            expect(left, right, i)
        while heap:
            kind = heappop(heap)
            left, right = pairs[kind]
            new = left + right
            for i in sorted(places.pop(kind)):  # left to right: a a a is aa a
                middle, after = i + len(left), i + len(new)
                if after > end or parts[i] != left or parts[middle] != right:
                    continue
                parts[middle - 1] = parts[middle] = ""
                parts[i] = parts[after - 1] = new
                if i > 0:
                    expect(parts[i - 1], new, i - len(parts[i - 1]))
                if after < end:
                    expect(new, parts[after], i)
        tokens, i = [], 0
        while i < end:
            tokens.append(parts[i])
            i += len(parts[i])
        return tokens

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token. Raises TokenizerError where there is no such id."""
        return self.decode_bytes([id])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens together. Raises TokenizerError where there is no such id."""
        ids = list(map(index, ids))
        try:
            return b"".join(map(self._bytes.__getitem__, ids))
        except KeyError:
            n, wrong = next((n, i) for n, i in enumerate(ids) if not 0 <= i < self.n_vocab)
            raise TokenizerError(
                f"ids[{n}] is {_short(wrong)}, but this vocabulary has ids 0 to {self.n_vocab - 1}"
            ) from None

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of the tokens; `errors`, as in bytes.decode, is for characters cut in two."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decoder(self) -> Decoder:
        """A decoder for ids that come one at a time."""
        return Decoder(self)

    def save(
        self, folder: str | os.PathLike[str], names: tuple[str, str] = ("vocab.bpe", "encoder.json")
    ) -> None:
        """Write the merges and the ids as GPT-2's two files, each whole or not at all.

        Hugging Face calls the same files "merges.txt" and "vocab.json". Raises TokenizerError
        where a special token is spelled as another token is written, so that it would be lost.
        """
        ids = self._ids | self.special_tokens
        if len(ids) < self.n_vocab:
            raise TokenizerError(
                f"{names[1]} cannot hold the special tokens {_short(list(self.special_tokens))}, "
                "because it writes another token so: rename them"
            )
        merges = "".join(f"{line}\n" for line in self._lines)
        os.makedirs(folder, exist_ok=True)
        _write(os.path.join(folder, names[0]), f"{_HEADER}\n{merges}")
        _write(os.path.join(folder, names[1]), json.dumps(ids))


class Decoder:
    """Text from ids one by one. A character whose bytes are spread over tokens comes when whole."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters that this token completes, perhaps none. Raises TokenizerError."""
        return self._utf8.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """U+FFFD where the last bytes were no whole character, else nothing; then begin anew."""
        return self._utf8.decode(b"", final=True)


def train(text: str, n_vocab: int) -> Tokenizer:
    """The tokenizer whose merges join, again and again, the most frequent pair of neighbours.

    `n_vocab` counts the 256 bytes, the merges and <|endoftext|>. Pairs are counted within words
    and may overlap (a a a has two). Of equally frequent pairs the one with the lower left id is
    first, then the lower right id: text and n_vocab alone decide the result. Raises
    TokenizerError where n_vocab is under 257 or the text runs out of pairs. Sennrich et al. 2016,
    section 3.2; a merge visits only the words that hold its pair.
    """
    if n_vocab < 257:
        raise TokenizerError(f"n_vocab is {n_vocab}, but 256 bytes and {_END_OF_TEXT} make 257")
    repeats: Counter[str] = Counter()
    for piece in _pieces(_valid(text)):
        repeats.update(words(piece))
    split = [list(word.encode().translate(_ID_OF_BYTE)) for word in repeats]
    times = list(repeats.values())
    counts: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)  # numbers of words
    for w, ids in enumerate(split):
        for pair in pairwise(ids):
            counts[pair] += times[w]
            where[pair].add(w)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapify(heap)
    tokens = [bytes([byte]) for byte in _BYTE_OF_ID]
    merges = []
    while len(merges) < n_vocab - 257:
        if not heap:
            raise TokenizerError(
                f"n_vocab is {n_vocab}, but this text has pairs for {len(merges) + 257} at most"
            )
        n, pair = heappop(heap)
        if counts[pair] != -n:  # out of date: every change of a count pushed a new entry
            continue
        left, right = (tokens[id] for id in pair)
        merges.append((left, right))
        tokens.append(left + right)
        changes: Counter[tuple[int, int]] = Counter()
        for w in where.pop(pair):
            joined = _join(split[w], pair, len(tokens) - 1)
            for old in pairwise(split[w]):
                changes[old] -= times[w]
            for new in pairwise(joined):
                changes[new] += times[w]
                where[new].add(w)
            split[w] = joined
        for changed, by in changes.items():
            counts[changed] += by
            if by and counts[changed]:
                heappush(heap, (-counts[changed], changed))
    tokenizer = Tokenizer(merges)
    tokenizer._trained = True
    return tokenizer


def _join(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace a pair by one id from the left: [7, 7, 7] with (7, 7) as 8 is [8, 7]."""
    joined: list[int] = []
    for id in ids:
        if joined and (joined[-1], id) == pair:
            joined[-1] = new
        else:
            joined.append(id)
    return joined


def _written(token: bytes) -> str:
    """A token as the files have it: b" the" is "Ġthe"."""
    return codecs.charmap_decode(token, "strict", _CHAR_OF_BYTE)[0]


class _Known(dict[str, tuple[int, ...]]):
    """The ids of strings met before. Others are encoded, and remembered while there is room."""

    def __init__(self, encode: Callable[[str], tuple[int, ...]]):
        self._encode = encode
        self._size = 0  # bytes

    def __missing__(self, string: str) -> tuple[int, ...]:
        ids = self._encode(string)
        if len(string) <= _CACHED_WORD:
            size = 200 + 4 * len(string) + 8 * len(ids)  # at most, with its place in the table
            if self._size + size > _CACHE:
                self.clear()
                self._size = 0
            self._size += size
            self[string] = ids
        return ids


class _Bytes(dict[int, bytes]):
    """The bytes of each token, found when first asked for: those of all tokens take 12 ms."""

    def __init__(self, tokens: list[str]):
        self._tokens = tokens

    def __missing__(self, id: int) -> bytes:
        if not 0 <= id < len(self._tokens):
            raise KeyError(id)
        self[id] = data = codecs.charmap_encode(self._tokens[id], "strict", _BYTE_OF_CHAR)[0]
        return data


def _check_merges(lines: list[str], place: Callable[[int], str]) -> None:
    """Each line must join two tokens into a new one; `place` names a wrong line."""
    known = set(_CHAR_OF_ID)
    for n, line in enumerate(lines):
        left, _, right = line.partition(" ")
        if left not in known or right not in known:
            raise TokenizerError(
                f"{place(n)} is {_short(line)}, but a merge is two tokens, each of them a byte or "
                "made by an earlier merge"
            )
        if left + right in known:
            raise TokenizerError(f"{place(n)} makes {_short(left + right)}, which exists by then")
        known.add(left + right)


def _parse_json(text: str, path: str) -> tuple[list[str], dict[str, int]]:
    """Merges as merges.txt has them, and ids, special tokens included, of a tokenizer.json."""
    whole = {
        "model": {"type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "byte_fallback": False, "ignore_merges": False, "dropout": None},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }  # fmt: skip
    try:
        parts = json.loads(text)
        if parts.get("normalizer"):
            raise TokenizerError(f"{path}: normalizer is {_short(parts['normalizer'])}, GPT-2's "
                                 "byte-level BPE has none")
        for part, expected in whole.items():
            for name, value in expected.items():
                found = parts[part].get(name, value if name != "type" else None)
                if found != value and (found or value):  # "" and null both say that there is none
                    raise TokenizerError(f"{path}: {part}'s {name} is {_short(found)}, GPT-2's "
                                         f"byte-level BPE has {_short(value)}")
        merges, ids = parts["model"]["merges"], dict(parts["model"]["vocab"])
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        ids |= {token["content"]: token["id"] for token in parts.get("added_tokens") or ()}
    except TokenizerError:
        raise
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON: {_short(error)}") from None
    except (AttributeError, KeyError, TypeError):
        raise TokenizerError(f"{path}: not a tokenizer.json of a byte-level BPE") from None
    if set(map(type, ids.values())) != {int}:
        raise TokenizerError(f"{path}: its ids are not all integers")
    return lines, ids


def _special_tokens(
    ids: dict[str, int], path: str, lines: list[str], merges_path: str
) -> list[str]:
    """The names among these ids after the merges' tokens, about which they must agree."""
    tokens = dict(zip([*_CHAR_OF_ID, *(line.replace(" ", "") for line in lines)], count()))
    if not tokens.items() <= ids.items():
        token, id = next(item for item in tokens.items() if ids.get(item[0]) != item[1])
        found = f"id {_short(ids[token])}" if token in ids else "no id"
        raise TokenizerError(f"{path}: {_short(token)} has {found}, but {id} in {merges_path}")
    special = sorted((name for name in ids if name not in tokens), key=ids.__getitem__)
    for name, id in zip(special, count(len(tokens))):
        if ids[name] != id:
            raise TokenizerError(
                f"{path}: {_short(name)} has id {_short(ids[name])}, but the next after the tokens "
                f"of {merges_path} is {id}"
            )
    for name in special[:1]:  # two tokens joined: a merge whose line is lost
        if any(name[:i] in tokens and name[i:] in tokens for i in range(1, min(len(name), 1000))):
            raise TokenizerError(
                f"{path}: {_short(name)} has id {ids[name]}, but {merges_path} ends before it"
            )
    return special


def _parse_ids(text: str, path: str) -> dict[str, int]:
    def distinct(pairs: list[tuple[str, int]]) -> dict[str, int]:
        if len(ids := dict(pairs)) < len(pairs):
            twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
            raise TokenizerError(f"{path}: {_short(twice)} has two ids")
        return ids

    try:
        ids = json.loads(text, object_pairs_hook=distinct)
    except TokenizerError:
        raise
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON: {_short(error)}") from None
    if not isinstance(ids, dict) or set(map(type, ids.values())) != {int}:
        raise TokenizerError(f"{path}: not one JSON object of tokens and integers")
    return ids


def _read(path: str, sha256: str) -> tuple[str, bool]:
    """The text of a file, and whether it has this hash."""
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
    """Write a file that others see whole or not at all."""
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


def _short(value: object) -> str:
    """What to show of a value from a file in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# Letters (L) and numbers (N) of Unicode 16, by lengths of runs from U+0000: not, are, not, are.

_LETTERS = """
65 26 6 26 47 1 10 1 4 1 5 23 1 31 1 458 4 12 14 5 7 1 1 1 129 5 1 2 2 4 1 1 6 1 1 3 1 1 1 20 1 83 1
139 8 166 1 38 2 1 6 41 71 27 4 4 45 43 35 2 1 99 1 1 15 2 7 2 10 3 2 1 16 1 1 30 29 89 11 1 24 33 9
2 4 1 5 22 4 1 9 1 3 1 23 25 7 11 5 24 1 6 17 42 58 54 3 1 18 1 7 10 15 16 4 8 2 2 2 22 1 7 1 1 3 4
3 1 16 1 13 2 1 3 14 2 10 1 8 6 4 2 2 22 1 7 1 2 1 2 1 2 31 4 1 1 19 3 16 9 1 3 1 22 1 7 1 2 1 5 3 1
18 1 15 2 23 1 11 8 2 2 2 22 1 7 1 2 1 5 3 1 30 2 1 3 15 1 17 1 1 6 3 3 1 4 3 2 1 1 1 2 3 2 3 3 3 12
22 1 52 8 1 3 1 23 1 16 3 1 26 3 2 1 2 2 30 1 4 8 1 3 1 23 1 10 1 5 3 1 31 2 1 2 15 2 17 9 1 3 1 41
2 1 16 1 5 3 8 3 24 6 5 18 3 24 1 9 1 1 2 7 58 48 1 2 12 7 58 2 1 1 1 5 1 24 1 1 1 10 1 2 9 1 2 5 1
1 21 4 32 1 63 8 1 36 27 5 115 43 20 1 16 6 4 4 3 1 3 2 7 3 4 13 12 1 17 38 1 1 5 1 2 43 1 333 1 4 2
7 1 1 1 4 2 41 1 4 2 33 1 4 2 7 1 1 1 4 2 15 1 57 1 4 2 67 37 16 16 86 2 6 3 620 2 17 1 26 5 75 6 8
7 18 13 19 14 18 14 13 1 3 15 52 35 1 4 1 67 89 7 5 2 34 1 1 5 70 10 31 49 30 2 5 11 44 4 26 54 23 9
53 82 1 93 47 17 8 54 30 13 2 10 44 26 36 41 3 10 36 2 11 5 43 2 3 41 4 1 6 1 2 3 1 5 192 64 278 2 6
2 38 2 6 2 8 1 1 1 1 1 1 1 31 2 53 1 7 1 1 3 3 1 7 3 4 2 6 4 13 5 3 1 7 116 1 13 1 16 13 101 1 4 1 2
10 1 1 3 5 6 1 1 1 1 1 1 4 1 11 2 4 5 5 4 1 52 2 2683 229 6 4 3 2 12 38 1 1 5 1 2 56 7 1 16 23 9 7 1
7 1 7 1 7 1 7 1 7 1 7 1 7 80 1 469 2 42 5 5 2 4 86 6 3 1 90 1 4 5 43 1 94 17 32 48 16 512 6592 64
22157 67 46 2 269 3 16 10 2 20 47 16 31 2 70 49 9 2 103 2 67 2 2 1 1 1 8 21 16 1 3 1 4 1 23 29 52 14
50 62 6 3 1 1 2 11 28 10 23 25 29 7 47 28 1 16 5 1 10 10 5 1 41 23 3 1 8 20 23 3 1 3 50 1 1 3 2 2 5
2 1 1 1 24 3 2 11 7 3 12 6 2 6 2 6 9 7 1 7 1 43 1 14 6 115 29 11172 12 23 4 49 8452 366 2 106 38 7
12 5 5 1 1 10 1 13 1 5 1 1 1 2 1 2 1 108 33 363 18 64 2 54 40 12 116 5 1 135 36 26 6 26 11 89 3 6 2
6 2 6 2 3 35 12 1 26 1 19 1 2 1 15 2 14 34 123 389 29 3 49 47 32 13 20 1 8 6 38 10 30 2 36 4 8 48
158 18 36 4 36 4 40 8 52 12 11 1 15 1 7 1 2 1 11 1 15 1 7 1 2 3 52 12 311 9 22 10 8 24 6 1 42 1 9 69
6 2 1 1 44 1 2 3 1 2 23 10 23 9 31 65 19 1 2 10 22 10 26 70 56 6 2 64 1 15 4 1 3 1 29 42 29 3 29 35
8 1 28 27 54 10 22 10 19 13 18 110 73 55 51 13 51 13 36 38 28 9 23 250 42 6 2 16 3 59 29 10 1 8 22
42 18 46 21 27 23 12 53 57 2 2 1 13 45 32 25 26 36 29 1 2 1 8 35 3 1 12 48 14 4 21 1 1 1 35 18 1 25
19 2 63 7 1 1 1 4 1 15 1 10 7 47 38 8 2 2 2 22 1 7 1 2 1 5 3 1 18 1 12 5 30 10 1 1 2 1 1 38 1 1 25 1
1 1 44 53 18 4 20 3 30 48 20 2 1 1 184 47 41 4 36 48 20 1 59 43 13 1 71 27 37 7 185 44 116 64 31 8 2
1 2 8 1 2 1 24 15 1 1 1 94 8 2 39 16 1 1 1 28 1 10 40 7 1 21 1 11 46 19 1 18 73 199 33 31 9 1 37 17
1 49 30 112 7 1 2 1 38 21 1 25 6 1 2 1 32 14 1 327 19 15 1 1 13 1 34 124 1 79 922 230 196 2636 97 15
1072 17 6 25 3995 5 583 6841 30 1762 569 7 31 17 79 17 30 18 48 16 4 31 21 5 19 432 45 211 64 128 75
5 1 66 13 64 2 1 1 28 6136 8 1238 41 10 8935 4 1 7 1 2 1 291 15 1 29 3 2 1 14 4 8 396 2308 107 5 13
3 9 7 10 5990 85 1 71 1 2 2 1 2 2 2 4 1 12 1 1 1 7 1 65 1 4 2 8 1 7 1 28 1 4 1 5 1 1 3 7 1 340 2 25
1 25 1 31 1 25 1 31 1 25 1 31 1 25 1 31 1 25 1 8 1844 31 6 6 261 62 146 45 10 7 16 1 321 30 18 44
484 28 228 30 2 1 495 7 1 4 1 2 1 15 1 197 59 68 7 1 1204 4 1 27 1 2 1 1 2 1 1 10 1 4 1 1 1 1 6 1 4
1 1 1 1 1 1 3 1 2 1 1 2 1 1 1 1 1 1 1 1 1 1 2 1 1 2 4 1 7 1 4 1 4 1 1 1 10 1 17 5 3 1 5 1 17 4420
42720 32 4154 6 222 2 5762 14 7473 15 622 2466 542 1506 4939 5 4192
"""
_NUMBERS = """
48 10 120 2 5 1 2 3 1441 10 134 10 198 10 412 10 118 10 4 6 108 10 118 10 118 10 2 6 110 13 115 10 8
7 103 10 104 7 7 19 109 10 96 10 118 10 70 20 268 10 70 10 719 20 881 3 239 10 6 10 22 10 300 10 128
11 165 10 6 10 182 10 86 10 134 10 6 10 1046 1 3 6 6 10 198 51 2 5 726 60 78 22 630 30 1385 1 777 1
25 9 14 3 343 4 138 10 30 8 1 15 32 10 39 15 29536 10 188 10 320 6 154 10 38 10 198 10 22 10 86 10
406 10 21270 10 493 45 12 57 17 2 341 27 36 4 29 1 8 1 134 5 202 10 942 8 25 7 39 9 75 5 22 6 160 2
2 16 2 46 64 9 52 2 30 3 75 5 104 8 24 8 41 7 330 6 48 10 6 10 278 31 158 10 42 4 112 7 134 30 128
10 60 10 144 10 7 20 251 10 342 10 118 10 374 10 102 10 6 20 76 12 420 19 93 10 662 10 86 29 227 10
70 10 422 10 102 21 1067 111 15553 10 2342 10 86 10 134 10 1 7 526 10 262 23 24153 10 1478 20 12 20
108 25 1109 50 2368 10 422 10 502 10 247 10 716 9 128 10 791 59 1 3 1 4 76 45 1 15 962 13 2787 10
"""

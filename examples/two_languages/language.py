"""A small English, a made-up language called Mirro, and the rules that translate between them.

    the two old kings did not see a red bird near the river
    seno lo wi     karu veto du lo     piti rumo na     mito ta ni

Mirro says a sentence nearly backwards: the place first, the verb last, and a noun before all that
English puts before it. It leaves out "a", and marks a plural without a number (mi), the object
(na), the past (ta) and a negation (ni) by words of their own. An adjective ends in -o beside
somebody alive and in -a beside a thing.
"""
from __future__ import annotations

import zlib

import numpy as np

ALIVE = {"dog": "keru", "cat": "nasi", "bird": "piti", "king": "karu", "queen": "limu",
         "girl": "tesa"}  # fmt: skip
THINGS = {"house": "domu", "tree": "wala", "river": "seno", "ship": "noru", "garden": "hemi",
          "book": "kipa"}  # fmt: skip
ADJECTIVES = {"red": "rum", "old": "vet", "small": "pik", "white": "lan", "quiet": "shom",
              "lost": "gur"}  # fmt: skip
TRANSITIVE = {"sees see saw": "mito", "finds find found": "falu", "hears hear heard": "oru",
              "hides hide hid": "zemu", "draws draw drew": "pinu", "leaves leave left": "yako"}
INTRANSITIVE = {"sleeps sleep slept": "dumi", "sings sing sang": "lalo",
                "waits wait waited": "teno"}  # fmt: skip
NUMBERS = {"two": "du", "three": "tiro"}
PLACES = {"near": "wi", "in": "im", "behind": "goru", "under": "suba"}
NOUNS = ALIVE | THINGS
# Adjectives and nouns that training never shows together.
NEW_PAIRS = {*zip(ADJECTIVES, ALIVE, strict=True), *zip(ADJECTIVES, THINGS, strict=True)}

ENGLISH = ["a", "the", *NUMBERS, *ADJECTIVES, *NOUNS, *(f"{noun}s" for noun in NOUNS),
           *" ".join(TRANSITIVE | INTRANSITIVE).split(), "does", "do", "did", "not", *PLACES]
MIRRO = ["lo", "mi", "na", "ta", "ni", *NUMBERS.values(), *NOUNS.values(),
         *(stem + ending for stem in ADJECTIVES.values() for ending in "oa"),
         *TRANSITIVE.values(), *INTRANSITIVE.values(), *PLACES.values()]  # fmt: skip

# The English words that a word of Mirro may stand for. Its particles stand for none.
MEANINGS = {said: {noun, f"{noun}s"} for noun, said in NOUNS.items()}
MEANINGS |= {stem + ending: {word} for word, stem in ADJECTIVES.items() for ending in "oa"}
MEANINGS |= {said: set(forms.split()) for forms, said in (TRANSITIVE | INTRANSITIVE).items()}
MEANINGS |= {said: {word} for word, said in (NUMBERS | PLACES).items()}


def sentence(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return a random sentence of the small English, and its translation."""
    subject, translated, is_plural = noun_phrase(rng)
    verb, said = verb_phrase(rng, is_plural)
    place, placed = [], []
    if rng.random() < 0.4:
        preposition = pick(rng, PLACES)
        words, placed, _ = noun_phrase(rng)
        place, placed = [preposition, *words], [*placed, PLACES[preposition]]
    return subject + verb + place, placed + translated + said


def noun_phrase(rng: np.random.Generator) -> tuple[list[str], list[str], bool]:
    """Return a noun with what belongs to it, its translation, and if it is plural."""
    noun = pick(rng, NOUNS)
    number = pick(rng, ["one", "some", *NUMBERS])
    is_the, is_plural = number == "some" or rng.random() < 0.5, number != "one"
    adjectives = [pick(rng, ADJECTIVES) for _ in range(rng.choice(3, p=[0.4, 0.45, 0.15]))]
    adjectives = list(dict.fromkeys(adjectives))
    words = ["the"] * is_the or ["a"] * (not is_plural)
    words += [number] * (number in NUMBERS) + adjectives + [noun + "s" * is_plural]
    ending = "o" if noun in ALIVE else "a"
    translated = [NOUNS[noun], *(ADJECTIVES[word] + ending for word in reversed(adjectives))]
    translated += [NUMBERS.get(number, "mi")] * is_plural + ["lo"] * is_the
    return words, translated, is_plural


def verb_phrase(rng: np.random.Generator, is_plural: bool) -> tuple[list[str], list[str]]:
    """Return a verb that agrees with its subject, with its object, and their translation."""
    verbs = TRANSITIVE if rng.random() < 0.7 else INTRANSITIVE
    forms = pick(rng, verbs)
    singular, base, past = forms.split()
    is_past, is_negated = rng.random() < 0.5, rng.random() < 0.3
    finite = past if is_past else base if is_plural else singular
    helper = "did" if is_past else "do" if is_plural else "does"
    words = [helper, "not", base] if is_negated else [finite]
    said = [verbs[forms]] + ["ta"] * is_past + ["ni"] * is_negated
    if verbs is INTRANSITIVE:
        return words, said
    thing, translated, _ = noun_phrase(rng)
    return words + thing, [*translated, "na", *said]


def kind(words: list[str]) -> str:
    """Return "new pair", "new sentence" or "training". Only the last are learned from.

    A new pair is an adjective beside a noun of `NEW_PAIRS`. Of the other sentences a tenth, chosen
    by a checksum, is held out.
    """
    nouns = {f"{noun}{ending}": noun for noun in NOUNS for ending in ("", "s")}
    beside: list[str] = []
    for word in words:
        if any((adjective, nouns.get(word)) in NEW_PAIRS for adjective in beside):
            return "new pair"
        beside = [*beside, word] if word in ADJECTIVES else []
    return "training" if zlib.crc32(" ".join(words).encode()) % 10 else "new sentence"


def sentences(n: int, of_kind: str, seed: int) -> list[tuple[list[str], list[str]]]:
    """Return n random sentences of a kind, with their translations."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < n:
        english, mirro = sentence(rng)
        if kind(english) == of_kind:
            found.append((english, mirro))
    return found


def alignment(english: list[str], mirro: list[str]) -> list[tuple[int, int]]:
    """Return the positions (in Mirro, in English) of words that mean the same.

    A word that could stand for several in the sentence is left out.
    """
    origins = [[j for j, word in enumerate(english) if word in MEANINGS.get(said, ())]
               for said in mirro]
    return [(i, found[0]) for i, found in enumerate(origins) if len(found) == 1]


def pick(rng, choices):
    return list(choices)[rng.integers(len(choices))]

"""Measure the toy model on sentences that its training never shows.

    python examples/two_languages/measure.py

A translation is right if all of its words are. An attention head aligns a decoded word if it looks
at the English word of that meaning more than at any other.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent)]
from encoder_decoder import END, START, Translator, beam_search, decode, greedy, load, padded
from language import alignment, sentences


def measure(model: Translator, n: int = 1000) -> None:
    """Print how many of n new sentences are right, and how often each head aligns."""
    for kind, told in ("new sentence", "new sentences"), ("new pair", "with a new pair of words"):
        pairs = sentences(n, kind, seed=1)
        sources = [model.ids(english) for english, _ in pairs]
        targets = [model.ids(mirro) for _, mirro in pairs]
        by_greedy = sum(map(list.__eq__, greedy(model, sources), targets))
        found = [beam_search(model, source)[0] for source in sources]
        by_beams = sum(text == [*target, END] for text, target in zip(found, targets, strict=True))
        print(f"{n} {told}: {by_greedy} right by greedy decoding, {by_beams} by beam search")
    print("Share of words that a head of cross-attention aligns, the last one the mean of all")
    for layer, shares in enumerate(aligned(model, sentences(n, "new sentence", seed=1))):
        print(f"layer {layer}:", *(f"{share:.3f}" for share in shares))


def aligned(model: Translator, pairs: list) -> np.ndarray:  # [layer, head and their mean]
    """Return the share of words that each head aligns, given the right translation so far."""
    patterns = {}

    def keep(name, array):
        if name.endswith("cross_attn.hook_pattern"):
            patterns[name] = np.concatenate([array, array.mean(axis=1, keepdims=True)], axis=1)

    memory, lengths = model.read([model.ids(english) for english, _ in pairs])
    targets, _ = padded([[START, *model.ids(mirro)] for _, mirro in pairs])
    decode(model.params, model.n_head, targets, memory, lengths, tap=keep)
    # A word is decoded at the position before its own, which START fills for the first.
    words = [(row, i, j) for row, pair in enumerate(pairs) for i, j in alignment(*pair)]
    rows, queries, keys = np.array(words).T
    return np.array([(pattern.argmax(axis=-1)[rows, :, queries] == keys[:, None]).mean(axis=0)
                     for pattern in patterns.values()])


if __name__ == "__main__":
    measure(load())

"""Tasks: prompts with one right answer, and minimally different prompts without it.

A pair of prompts isolates a behaviour. Everything that both share cancels in a comparison, and the
effect of the difference is left: a token that repeats, or the name of the person who gives. The
choice of contrast decides which circuit is found, so each task says how it corrupts.
(Wang et al. 2022, section 2; Olsson et al. 2022, "In-context Learning and Induction Heads".)
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from ..bpe import shown
from ..gpt2_np import Error, Model, generator
from .inputs import Prompts, check_count, encoded, end_of_text, prompts, token_id, tokenizer_of
from .metrics import Differentiable, logit_difference
from .short_reprs import Result

MOST_PROMPTS = 1000  # their stored activations are 9 GB at 124M's shape, at 41 tokens each


class PromptPair(TypedDict):
    """The arguments of a causal tool: the run that is changed, the other one, and the metric."""

    base: Prompts
    source: Prompts
    metric: Differentiable


@dataclass(frozen=True, eq=False, repr=False)
class Task(Result):
    """Prompts whose last position has an answer, and minimally different ones without it.

    `answers` and `wrong` are ids [b]; `metric(model)` is the difference of their logits. Causal
    tools take `**task.noising(model)` or `**task.denoising(model)` for base, source and metric.
    """

    name: str
    clean: Prompts
    corrupted: Prompts
    answers: np.ndarray
    wrong: np.ndarray

    def metric(self, model: Model) -> Differentiable:
        if not isinstance(model, Model):
            raise Error("metric takes the model and returns the metric: write "
                        "task.metric(model)(logits)")
        return logit_difference(model, self.answers, self.wrong)

    def denoising(self, model: Model) -> PromptPair:
        """Return what puts parts of the clean prompts into the corrupted: parts that suffice."""
        return {"base": self.corrupted, "source": self.clean, "metric": self.metric(model)}

    def noising(self, model: Model) -> PromptPair:
        """Return what puts parts of the corrupted prompts into the clean: parts that are needed."""
        return {"base": self.clean, "source": self.corrupted, "metric": self.metric(model)}


def repeated_tokens(
    model: Model, length: int = 50, batch: int = 4, *, seed: int = 0, bos: bool | None = None
) -> Task:
    """Return random tokens that repeat once: the answer is the first of them, for the third time.

    Corrupted: other tokens in the first half, so that nothing repeats, and another (`wrong`) at
    the beginning of the second half. <|endoftext|> comes first if the vocabulary has it.
    """
    check_count("batch", batch, most=MOST_PROMPTS)
    end = end_of_text(model)
    bos = (end is not None) if bos is None else bos
    ordinary = np.array([i for i in range(model.n_vocab) if i != end])
    most = min((model.config.n_ctx - bos) // 2, (len(ordinary) - 1) // 2)
    if not 2 <= length <= most:
        raise Error(f"length is {length}: it must be from 2 to {most}, for two different halves "
                    "of this vocabulary to fit into n_ctx")
    check_count("length", length)
    rng = generator(seed)
    rows = np.stack([rng.choice(ordinary, 2 * length + 1, replace=False) for _ in range(batch)])
    once, others, wrong = rows[:, :length], rows[:, length:-1], rows[:, -1]
    clean = np.concatenate([once, once], axis=1)
    corrupted = np.concatenate([others, wrong[:, None], once[:, 1:]], axis=1)
    return Task("repeated tokens", prompts(model, clean, bos), prompts(model, corrupted, bos),
                once[:, 0], wrong)


NAMES = (
    "Alan Alex Alice Amy Andrew Anna Ben Bill Bob Brian Charles Chris Dan Daniel David Eric Frank "
    "George Grant Henry Jack James Jane Jason Jim Joe John Jordan Josh Kate Kevin Laura Lisa Luke "
    "Mark Martin Mary Matt Max Michael Mike Paul Peter Rachel Rob Robert Roy Sam Sarah Scott "
    "Simon Steve Taylor Tim Tom Tony Will"
)
PLACES = "bank beach bridge church farm garden hospital library market office school station"
THINGS = "bag ball book box camera card drink key letter map phone ring ticket"
TEMPLATES = (
    "When {A} and {B} met at the {place}, {S} handed the {thing} to",
    "Once {A} and {B} reached the {place}, {S} passed the {thing} to",
    "While {A} and {B} sat near the {place}, {S} sold the {thing} to",
    "After {A} and {B} left the {place}, {S} gave the {thing} to",
)


def indirect_object(
    model: Model, n: int = 8, *, corruption: str = "abc", seed: int = 0, bos: bool = True
) -> Task:
    """Return prompts with two people, one of whom gives: the answer is the other.

    Half the prompts name the giver first (BABA), half second (ABBA). Corrupted: three other names,
    none twice ("abc"), or the other giver ("swap"). Names must be single tokens, as they are in
    the official vocabulary; Error if fewer than six are. (Wang et al. 2022, section 2.)
    """
    check_count("n", n, most=MOST_PROMPTS)
    if corruption not in ("abc", "swap"):
        raise Error(f"unknown corruption {shown(corruption)}: choose 'abc' or 'swap'")
    encode = tokenizer_of(model).encode

    def single(words):
        return [word for word in words.split() if len(encode(" " + word)) == 1]

    names, places, things = single(NAMES), single(PLACES), single(THINGS)
    if len(names) < 6 or not places or not things:
        raise Error(f"only {len(names)} of the names are single tokens of this vocabulary, and the "
                    "indirect-object task needs 6: use name_repetition")
    rng = generator(seed)
    clean, corrupted, answers, wrong, length = [], [], [], [], None
    for _ in range(100 * n):
        template = str(rng.choice(TEMPLATES))
        words = {"place": rng.choice(places), "thing": rng.choice(things)}
        other, giver, *new = rng.choice(names, 5, replace=False)
        first, second = (giver, other) if len(answers) % 2 == 0 else (other, giver)
        text = template.format(A=first, B=second, S=giver, **words)
        swapped = template.format(A=first, B=second, S=other, **words)
        abc = template.format(A=new[0], B=new[1], S=new[2], **words)
        length = length or len(encode(text))
        if len(encode(text)) == length:  # templates differ: keep those as long as the first
            clean.append(text)
            corrupted.append(abc if corruption == "abc" else swapped)
            answers.append(token_id(model, f" {other}"))
            wrong.append(token_id(model, f" {giver}"))
        if len(answers) == n:
            break
    return Task("indirect object", prompts(model, clean, bos), prompts(model, corrupted, bos),
                np.array(answers), np.array(wrong))


def name_repetition(model: Model, n: int = 8, *, seed: int = 0, bos: bool | None = None) -> Task:
    """Return prompts with an invented name of two tokens: after its first half, the second.

    The name comes twice before. Any vocabulary will do: first halves are beginnings of capitalised
    words, second halves letters. Corrupted: another second half (`wrong`) both times.
    """
    check_count("n", n, most=MOST_PROMPTS)
    tokenizer = tokenizer_of(model)
    text_of = {i: tokenizer.decode([i]) for i in range(model.n_vocab)}
    firsts = [i for i, text in text_of.items() if re.fullmatch(r" [A-Z][a-z]{1,3}", text)]
    seconds = [i for i, text in text_of.items() if re.fullmatch(r"[a-z]{2,4}", text)]
    if len(firsts) < 2 or len(seconds) < 3:
        raise Error("this vocabulary has no tokens to make names from: use repeated_tokens")
    before, between, after = (encoded(model, text) for text in (
        "I saw", ", and he saw me. I know the face of", " still, and all the men know"))
    rng = generator(seed)
    clean, corrupted, answers, wrong = [], [], [], []
    for _ in range(n):
        first = int(rng.choice(firsts))
        second, other = map(int, rng.choice(seconds, 2, replace=False))
        for rows, half in ((clean, second), (corrupted, other)):
            rows.append([*before, first, half, *between, first, half, *after, first])
        answers.append(second)
        wrong.append(other)
    bos = (tokenizer.end_of_text is not None) if bos is None else bos
    return Task("name repetition", prompts(model, clean, bos), prompts(model, corrupted, bos),
                np.array(answers), np.array(wrong))


TASKS = {
    "repeated": lambda model, n, seed: repeated_tokens(model, 20, n, seed=seed),
    "names": lambda model, n, seed: name_repetition(model, n, seed=seed),
    "indirect-object": lambda model, n, seed: indirect_object(model, n, seed=seed),
}

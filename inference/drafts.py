"""Drafts from the text itself: guesses at the next tokens that one pass of the model checks.

Text that repeats itself (code, tables, lists, a small model's own loops) goes on as it went on
before. A pass of several tokens takes less time than as many passes of one, so a guess that is
often right saves time. A wrong guess is thrown away: the tokens are always the model's own.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class Repeats:
    """A growing sequence that knows where its longest suffix occurred before.

    A suffix automaton, built as the sequence grows in constant time for each item on average
    (Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text").
    """

    def __init__(self, items: Iterable[int] = ()):
        self.items: list[int] = []
        # A state is a set of substrings that end at the same places. It has the states that items
        # after them lead to, the state of their longest suffix that ends at more places, the
        # length of the longest, and the first place where they end.
        self.follow, self.suffix, self.longest, self.end = [{}], [-1], [0], [0]
        self.last = 0
        for item in items:
            self.push(item)

    def push(self, item: int) -> None:
        self.items.append(item)
        new = self.add_state({}, 0, self.longest[self.last] + 1, len(self.items))
        state, self.last = self.last, new
        while state >= 0 and item not in self.follow[state]:
            self.follow[state][item] = new
            state = self.suffix[state]
        if state < 0:
            return
        target, length = self.follow[state][item], self.longest[state] + 1
        if self.longest[target] == length:
            self.suffix[new] = target
            return
        clone = self.add_state(
            dict(self.follow[target]), self.suffix[target], length, self.end[target]
        )
        self.suffix[target] = self.suffix[new] = clone
        while state >= 0 and self.follow[state].get(item) == target:
            self.follow[state][item] = clone
            state = self.suffix[state]

    def add_state(self, *parts):
        columns: tuple[list[Any], ...] = self.follow, self.suffix, self.longest, self.end
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
        return len(self.end) - 1

    def match(self) -> tuple[int, int]:
        """Return the length of the longest suffix that occurred before, and where that ended."""
        state = max(0, self.suffix[self.last])
        return self.longest[state], self.end[state]

    def continuation(self) -> Iterator[tuple[int, bool]]:
        """Yield the items that followed the match, each with True if nothing else ever followed.

        Past the end of the sequence they repeat with the period of the match.
        """
        length, end = self.match()
        state, period = self.suffix[self.last], len(self.items) - end
        for i in itertools.count() if length else ():
            item = self.items[end + i % period]
            while item not in self.follow[state]:  # nothing has followed the end yet
                state = self.suffix[state]
            yield item, len(self.follow[state]) == 1
            state = self.follow[state][item]


class Drafts:
    """Guesses at the next tokens that one pass of the model can check together.

    Prompt lookup: the guess is the continuation of the longest suffix that occurred before. A pass
    of q tokens takes longer than a pass of one, so a draft is made only if it should pay. That
    depends on how often guesses have been right so far, drafted or not, after matches of that
    length that did or did not always go on alike; on the measured time of passes; and on the cost
    of earlier drafts. A draft never changes which tokens are chosen.
    """

    LONGEST = 63
    FEW = 5  # up to so many drafted tokens the backend multiplies row by row, which is cheaper
    LEAST_GAIN = 1.1  # tokens in the time of one that a draft must promise

    def __init__(self, text: Sequence[int]):
        self.repeats = Repeats()
        # Recent guesses and right guesses, by the bits of the match's length and by whether it
        # always went on alike. The prior is four guesses, more of them right for longer matches.
        prior = [2**bits / (2**bits + 8) for bits in range(8)]
        self.guesses = [[4.0, 4.0] for _ in prior]
        self.right = [[2 * p, 4 * p] for p in prior]
        self.single = math.inf  # seconds of a pass of one token
        self.factors = [1.0, 1.0]  # cost on this machine over `expected_cost`: up to FEW, above
        self.n_drafted, self.saved = 0, 0.0  # saved: in passes of one token
        for token in text:
            self.push(token)
        self.n_prompt = self.n_before = len(text)

    def push(self, token: int) -> None:
        """Learn from the token that was chosen."""
        bits = min(self.repeats.match()[0].bit_length(), 7)
        for guess, alike in itertools.islice(self.repeats.continuation(), 1):
            self.guesses[bits][alike] = 0.95 * self.guesses[bits][alike] + 1
            self.right[bits][alike] = 0.95 * self.right[bits][alike] + (guess == token)
        self.repeats.push(token)

    def cost(self, n: int) -> float:
        """Return the time of a pass that checks n drafted tokens, in passes of one token."""
        return 1 + self.expected_cost(n) * self.factors[n > self.FEW]

    def expected_cost(self, n):
        """Return the cost of n drafted tokens as measured at 124M's shape on two cores.

        `learn_time` corrects it for this machine and model.
        """
        if n == 0:
            return 0.0
        return 0.2 + 0.2 * n if n <= self.FEW else 1.0 + 0.09 * n

    def learn_time(self, seconds: float) -> None:
        """Learn from the time of the pass that followed `propose`."""
        n = self.n_drafted
        if n:
            ratio = (seconds / self.single - 1) / self.expected_cost(n)
            factor = self.factors[n > self.FEW]
            self.factors[n > self.FEW] += 0.3 * (min(max(ratio, 0.0), 10.0) - factor)
        elif seconds < self.single:
            self.single = seconds
        else:  # passes grow with the context; a single one that was held up says little
            self.single += 0.2 * (min(seconds, 1.2 * self.single) - self.single)

    def propose(self, room: int) -> list[int]:
        """Return up to `room` tokens that may come next, or none if a draft would not pay."""
        n_items = len(self.repeats.items)
        # A text may mislead: all drafts together may lose 1.8 passes, or 2% of all.
        self.saved += n_items - self.n_before - self.cost(self.n_drafted)
        at_stake = self.saved + max(1.8, 0.02 * (n_items - self.n_prompt))
        self.n_before, self.n_drafted = n_items, self.best_length(room, at_stake)
        return [token for token, _ in itertools.islice(self.repeats.continuation(), self.n_drafted)]

    def best_length(self, room, at_stake):
        """Return the length of draft that promises most tokens for its time, or 0."""
        if self.single == math.inf:
            return 0
        length, _ = self.repeats.match()
        best, gain = 0, self.LEAST_GAIN
        chance, promised = 1.0, 1.0
        guesses = itertools.islice(self.repeats.continuation(), min(room, self.LONGEST))
        for n, (_, alike) in enumerate(guesses, 1):
            bits = min((length + n - 1).bit_length(), 7)
            chance *= self.right[bits][alike] / self.guesses[bits][alike]
            promised += chance
            if chance < 0.02 or self.cost(n) - 1 > at_stake:
                break
            if promised / self.cost(n) > gain:
                best, gain = n, promised / self.cost(n)
        return best

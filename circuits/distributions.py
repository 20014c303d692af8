"""The distribution of an activation over texts: how often it is high, and how high.

The examples that excite a neuron most are its extremes. A histogram shows the rest: if the neuron
is off nearly everywhere, if it has two states, how far its extremes are from its mean.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bpe import shown
from ..gpt2_np import Error, Model
from .drawings import bars
from .inputs import check_count, check_numbers
from .interventions import EditsLike
from .names import BY_QUERY, kind_of
from .texts import is_unit, one_activation, passages, unit_of

BAR = 40  # characters of the longest bar
MOST_BINS = 1 << 20
LEAST_EXPONENT = -30  # bins are at least 2^-30 wide


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts [bin] of an activation's values between `edges` [bin + 1], and exact moments.

    A bin holds the values from its lower edge up to, but not including, its upper one. `below` and
    `above` count those outside of edges that were given. `std` is that of the `n` values themselves
    (divided by n).
    """

    name: str
    measure: str
    edges: np.ndarray
    counts: np.ndarray
    below: int
    above: int
    n: int
    n_texts: int
    min: float
    max: float
    mean: float
    std: float

    @property
    def title(self) -> str:
        return (f"{self.name}, {self.measure}: {self.n:,} values in {self.n_texts:,} texts, "
                f"from {self.min:.4g} to {self.max:.4g}, mean {self.mean:.4g}, std {self.std:.4g}")

    def __repr__(self) -> str:
        return f"<Histogram of {self.title}; {len(self.counts)} bins>"

    def _repr_html_(self) -> str:
        labels = [f"{low:.4g} to {high:.4g}" for low, high in
                  zip(self.edges, self.edges[1:], strict=False)]
        return bars(labels, self.counts.tolist(), f"{self.name}: number of values", repr(self))

    def __str__(self) -> str:
        rows = [(f"{low:.4g} to {high:.4g}", int(count)) for low, high, count in
                zip(self.edges, self.edges[1:], self.counts, strict=False)]
        rows = [("below", self.below)] * (self.below > 0) + rows
        rows += [("above", self.above)] * (self.above > 0)
        width = max(len(label) for label, _ in rows)
        most = max(count for _, count in rows)
        return "\n".join([self.title, *(
            f"{label:>{width}s}  {count:>11,}  {'#' * math.ceil(BAR * count / most)}".rstrip()
            for label, count in rows)])


def histogram(
    model: Model,
    texts: Iterable[Any],
    name: Any,
    bins: int | Sequence[float] | np.ndarray = 40,
    *,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Histogram:
    """Return the histogram of an activation over texts, read once and not kept.

    `name` is one activation ("blocks.2.hook_resid_post"), all of whose elements count, or a neuron
    "L2N17" or a head "L1H1" as in `max_activating`. `bins` are edges, or at most so many bins of
    one width: the least power of two with which they hold all values, whatever their order. Of
    patterns and scores only keys count that a query can see. The <|endoftext|> before a text is
    not counted. `edits`, as for `run`, see one window after another.
    """
    if is_unit(name):
        unit = unit_of(model, name, edits)
        name, activation, measure, value = unit.name, unit.activation, unit.measure, unit.value
    else:
        name = activation = one_activation(name, model.config)
        measure, value = "all elements", None
    counted = FixedBins(bins) if np.ndim(bins) else GrowingBins(bins)
    moments, n_texts = Moments(), 0
    for passage in passages(model, texts, activation, edits, bos):
        n_texts = max(n_texts, passage.text + 1)
        values = value(passage.array) if value else passage.array
        values = visible_elements(values, passage.first, kind_of(activation))
        if values.size:
            check_numbers("activations", values, model)
            moments.add(values)
            counted.add(values)
    if not moments.n:
        raise Error("there is no token in these texts: give at least one")
    std = math.sqrt(moments.squares / moments.n)
    edges, counts, below, above = counted.finished()
    return Histogram(name, measure, edges, counts, below, above, moments.n, n_texts,
                     moments.least, moments.most, moments.mean, std)


def visible_elements(array, first, kind):
    """Return the elements of counted positions, [n] in float64."""
    if kind in BY_QUERY and array.ndim == 3:  # [h, q, k]
        seen = np.tri(array.shape[1], dtype=bool)
        return array[:, first:][:, seen[first:]].astype(float).ravel()
    return array[first:].astype(float).ravel()


class Moments:
    """Number, extremes, mean and sum of squared deviations, merged part by part.

    (Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample Variance".)
    """

    def __init__(self):
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self.least, self.most = math.inf, -math.inf

    def add(self, values):
        n, mean = values.size, float(values.mean())
        apart, before = mean - self.mean, self.n
        self.n += n
        self.squares += float(((values - mean) ** 2).sum()) + apart * apart * before * n / self.n
        self.mean += apart * n / self.n
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))


class FixedBins:
    """Counts between edges that were given."""

    def __init__(self, edges):
        try:
            self.edges = np.asarray(edges, float)
        except (TypeError, ValueError):
            raise Error(f"bins is {shown(edges)}: give a number, or edges that rise") from None
        if self.edges.ndim != 1 or len(self.edges) < 2 or not (np.diff(self.edges) > 0).all():
            raise Error(f"bins is {shown(edges)}: give a number, or edges that rise")
        self.counts = np.zeros(len(self.edges) + 1, int)

    def add(self, values):
        place = np.searchsorted(self.edges, values, side="right")
        self.counts += np.bincount(place, minlength=len(self.counts))

    def finished(self):
        """Return edges, counts, and the counts below and above."""
        return self.edges, self.counts[1:-1], int(self.counts[0]), int(self.counts[-1])


class GrowingBins:
    """Counts in at most `most` bins of width 2^exponent, which joins pairs of bins as it grows.

    Bin i holds the values from i to i + 1 widths. The result depends on the values alone, because
    the exponent never grows beyond the one that all values need together.
    """

    def __init__(self, most):
        check_count("bins", most, most=MOST_BINS)
        if most < 2:
            raise Error("bins is 1: at least 2 are needed, as 0 is always an edge")
        self.most, self.exponent = most, LEAST_EXPONENT
        self.low, self.counts = 0, np.zeros(0, int)

    def add(self, values):
        least, most = float(values.min()), float(values.max())
        if self.counts.size:
            width = 2.0**self.exponent
            least = min(least, self.low * width)
            most = max(most, (self.low + self.counts.size - 1) * width)
        exponent = self.exponent
        while not self.fits(least, most, exponent):
            exponent += 1
        self.widen(exponent)
        new = np.floor(np.ldexp(values, -exponent)).astype(np.int64)
        low = int(new.min())
        if self.counts.size:
            low = min(low, self.low)
            new = np.append(new, np.arange(self.low, self.low + self.counts.size))
            weights = np.append(np.ones(values.size, int), self.counts)
            self.counts = np.bincount(new - low, weights=weights).astype(int)
        else:
            self.counts = np.bincount(new - low)
        self.low = low

    def fits(self, least, most, exponent):
        ends = math.ldexp(least, -exponent), math.ldexp(most, -exponent)
        return (max(map(abs, ends)) < 2**52
                and math.floor(ends[1]) - math.floor(ends[0]) < self.most)

    def widen(self, exponent):
        if self.counts.size and exponent > self.exponent:
            places = np.arange(self.low, self.low + self.counts.size) >> (exponent - self.exponent)
            self.low = int(places[0])
            self.counts = np.bincount(places - self.low, weights=self.counts).astype(int)
        self.exponent = exponent

    def finished(self):
        """Return edges, counts, and the counts below and above, which are 0."""
        places = np.arange(self.low, self.low + self.counts.size + 1)
        return np.ldexp(places.astype(float), self.exponent), self.counts, 0, 0

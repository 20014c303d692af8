"""Scores of several continuations of one context, whose keys and values are computed once.

An example: the choices of a question, a prompt of hundreds of tokens and four answers of a few.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..gpt2_np import KVCache, namespace, transformer
from .packing import Packed
from .scoring import Query, Scores, query_scores, target_scores
from .turns import turn

CACHE_BYTES = 1 << 30  # of the keys and values of the branches that are computed together


class Branches(NamedTuple):
    """The ids of a context, and of its continuations of at least one token each."""

    context: np.ndarray
    continuations: Sequence[np.ndarray]

    @property
    def n_new(self) -> int:
        """The tokens that are read after the context. Nothing follows a last one."""
        return max(map(len, self.continuations)) - 1


def branch_scores(model, groups, tap=None) -> Iterator[tuple[int, int, Scores]]:
    """Yield the numbers of a group and of its continuation, with its scores, as they are computed.

    A context and a continuation have up to n_ctx + 1 tokens together. With a tap, and if there is
    one continuation, they are read as one text.
    """
    has_tap, queries, asked = tap is not None and tap.function is not None, [], []
    for number, (context, continuations) in enumerate(groups):
        if has_tap or len(continuations) == 1:
            for branch, ids in enumerate(continuations):
                inputs = np.append(context, ids[:-1])
                queries.append(Query(number, inputs, np.arange(len(context) - 1, len(inputs)), ids))
                asked.append((number, branch))
    for query, found in query_scores(model, queries, tap, len(groups)):
        yield *asked[query], found.checked()
    rest = [] if has_tap else [i for i, one in enumerate(groups) if len(one.continuations) > 1]
    rest.sort(key=lambda number: -groups[number].n_new)
    for numbers in batches(model, groups, rest):
        names = [(number, branch) for number in numbers
                 for branch in range(len(groups[number].continuations))]
        found = shared_scores(model, [groups[number] for number in numbers])
        for name, scores in zip(names, found, strict=True):
            yield *name, scores


def batches(model, groups, order) -> Iterator[list[int]]:
    """Yield the numbers of groups whose contexts fit into one row, and their branches into memory.

    The next in `order` have no longer continuations.
    """
    config, itemsize = model.config, model.params["wpe"].dtype.itemsize
    most = CACHE_BYTES // (2 * itemsize * config.n_layer * config.n_embd)  # positions
    batch: list[int] = []
    for number in order:
        together = [groups[i] for i in (*batch, number)]
        lengths = [len(group.context) for group in together]
        n_positions = max(lengths) + together[0].n_new
        n_cached = n_positions * sum(len(group.continuations) for group in together)
        fits = sum(lengths) <= config.n_ctx and n_positions <= config.n_ctx and n_cached <= most
        if batch and not fits:
            yield batch
            batch = []
        batch = [*batch, number]
    if batch:
        yield batch


def shared_scores(model, groups) -> Iterator[Scores]:
    """Yield the scores of each continuation of each group: a pass over contexts, one over the rest.

    A continuation's first token is scored at the end of its context.
    """
    config, params, wte = model.config, model.params, model.params["wte"][: model.n_vocab]
    lengths, n_new = [len(group.context) for group in groups], groups[0].n_new
    branches = [ids for group in groups for ids in group.continuations]
    rows = np.repeat(np.arange(len(groups)), [len(group.continuations) for group in groups])
    inputs = np.zeros((len(branches), n_new), int)
    for row, ids in zip(inputs, branches, strict=True):
        row[: len(ids) - 1] = ids[:-1]
    contexts = np.concatenate([group.context for group in groups])
    cache = KVCache(config, len(groups), max(lengths) + n_new) if n_new else None
    with turn(model, has_tap=False):
        x = transformer(params, config, contexts[None], Packed(lengths, cache))
        xp = namespace(x)
        ends = xp.asarray((np.cumsum(lengths) - 1)[rows])
        stream = xp.empty((len(branches), n_new + 1, config.n_embd), x.dtype)
        stream[:, 0] = x[0, ends]
        if cache:
            cache.select(rows.tolist())
            stream[:, 1:] = transformer(params, config, inputs, cache)
        scored = np.arange(n_new + 1) < np.array([[len(ids)] for ids in branches])
        stream = stream.reshape(-1, config.n_embd)[xp.asarray(np.flatnonzero(scored))]
        found = target_scores(stream[None], np.concatenate(branches), wte).checked()
    end = 0
    for ids in branches:
        start, end = end, end + len(ids)
        yield Scores(found.log_probabilities[start:end], found.is_greedy[start:end])

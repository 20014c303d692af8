"""The work: a batch of texts in, the scores or continuations out.

`Scorer` and `Generator` are plain callables. The engines of this package call `records`; Ray Data,
Spark and datasets call the object itself.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .documents import Document

Record = dict[str, Any]  # a line of the output; it begins with the document's id


class Work(Protocol):
    """What a worker does with documents. It can be pickled: each worker loads its own model."""

    def prepare(self) -> None:
        """Load the model."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what the output depends on: the model and the options."""

    def records(self, documents: Sequence[Document]) -> list[Record]:
        """Return a record for each document, in their order."""


class Scorer:
    """Scores texts."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


class Generator:
    """Continues texts."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

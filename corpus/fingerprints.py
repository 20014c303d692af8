"""Fingerprints of models: a run that goes on must go on with the same weights and vocabulary."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from .. import checkpoint
from ..gpt2_np import Model, map_leaves, to_host

PIECE, N_PIECES = 4096, 16  # of each tensor's bytes, evenly spaced, its first and last among them


def checkpoint_fingerprint(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Return sizes and hashes of a model on the disk, downloading it if necessary.

    Reads the vocabulary and, of each tensor, up to 16 pieces of 4 KiB. No weights are loaded.
    """
    opened = checkpoint.open_checkpoint(checkpoint.locate(name))
    weights, vocabulary = hashlib.sha256(), hashlib.sha256()

    def add(path, tensor):
        weights.update(repr((path, tensor.dtype, tensor.shape, tensor.query_scale)).encode())
        with open(tensor.file, "rb") as file:
            for start, end in pieces(tensor.size):
                file.seek(tensor.start + start)
                weights.update(file.read(end - start))

    map_leaves(add, opened.tensors)
    layout = opened.layout
    official = checkpoint.official_size(name)  # only its two pinned files: other ones may appear
    for file in (layout.merges, layout.vocab) if official else checkpoint.tokenizer_files(layout):
        path = opened.folder / file
        if path.exists():
            vocabulary.update(hashlib.sha256(path.read_bytes()).digest())
    return {"config": asdict(opened.config), "sample of weights": weights.hexdigest(),
            "vocabulary": vocabulary.hexdigest()}


def model_fingerprint(model: Model) -> dict[str, Any]:
    """Return sizes and hashes of a model in memory, of all its weights: it may have been edited."""
    weights, vocabulary = hashlib.sha256(), hashlib.sha256()

    def add(path, array):
        weights.update(repr((path, array.dtype.name, array.shape)).encode())
        weights.update(np.ascontiguousarray(to_host(array)).data)

    map_leaves(add, model.params)
    if tokenizer := model.tokenizer:
        vocabulary.update(repr((
            tokenizer.merges_text(), [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)],
            tokenizer.added_tokens, tokenizer.start_ids, tokenizer.add_prefix_space)).encode())
    return {"config": asdict(model.config), "weights": weights.hexdigest(),
            "vocabulary": vocabulary.hexdigest()}


def pieces(n_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield evenly spaced pieces [start, end) of some bytes, or all of them if they are few."""
    if n_bytes <= PIECE * N_PIECES:
        yield 0, n_bytes
        return
    for i in range(N_PIECES):
        start = (n_bytes - PIECE) * i // (N_PIECES - 1)
        yield start, start + PIECE

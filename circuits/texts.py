"""Activations over texts: any number of texts of any length, in bounded memory.

A question about one neuron or head needs many texts, whose activations together fit nowhere. So
they come window by window, and whoever asks keeps what it needs. Only the layers up to the
activation are computed. Short texts share a pass.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..bpe import shown
from ..gpt2_np import Config, Error, Model, Tap, transformer
from ..inference.options import start_of_text
from ..inference.packing import Packed
from ..inference.scoring import pack_windows
from ..inference.turns import turn
from .activations import Recorder
from .head_weights import attention_weights
from .inputs import checked_ids, encoded, end_of_text, windows_of
from .interventions import Edits, EditsLike, Place
from .names import BY_QUERY, activation_name, kind_of, layer_of, matching_names, parse_node

TOKENS_AT_ONCE = 1 << 14  # of texts that are packed into passes together


class Passage(NamedTuple):
    """A window of one text with an activation, [q, ...] or [h, q, k], on the host.

    `tokens` are those of the window, which begins at token `start` of the text. Positions before
    `first` are not counted: another window counts them, or they are a first <|endoftext|>.
    """

    text: int
    tokens: np.ndarray
    start: int
    first: int
    array: np.ndarray


class Unit(NamedTuple):
    """A neuron or a head: the activation to look at, and its value [q] from that of a passage."""

    name: str
    activation: str
    measure: str
    value: Callable[[np.ndarray], np.ndarray]
    layer: int
    head: int | None


def passages(
    model: Model,
    texts: Iterable[Any],
    name: str,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Iterator[Passage]:
    """Yield every window of every text with the activation of that full name, after its edits.

    Texts longer than n_ctx are read in windows that overlap by half, and every token is counted
    once. Windows come in the order of the passes, not of the texts. Edits, as for `run`, see one
    window after another, [1, q, ...].
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise Error(f"texts is {shown(texts)}: give a list of texts, or anything that yields texts")
    lower, n_ctx = layers_below(model, name), model.config.n_ctx
    edits, end = Edits(model, edits), end_of_text(model)
    apart = kind_of(name) in BY_QUERY or bool(edits)
    for first_text, chunk in chunks(text_ids(model, text, bos) for text in texts):
        windows = windows_of([len(ids) for ids in chunk], n_ctx)
        for row in [[w] for w in windows] if apart else pack_windows(windows, n_ctx):
            tokens = [chunk[w.text][w.start : w.end] for w in row]
            lengths = [w.end - w.start for w in row]
            recorder = Recorder({name}, edits, Place.from_position(0, 1, lengths[0]))
            with turn(model, has_tap=bool(edits)):
                transformer(lower.params, lower.config, np.concatenate(tokens)[None],
                            Packed(lengths), Tap(recorder))
            array = recorder.kept[name][0]
            for w, own, stop in zip(row, tokens, np.cumsum(lengths).tolist(), strict=True):
                first = max(w.first_scored - w.start, int(w.start == 0 and own[0] == end))
                yield Passage(first_text + w.text, own, w.start, first,
                              array if apart else array[stop - len(own) : stop])


def layers_below(model, name):
    """Return the model up to the layer of the activation."""
    n = layer_of(name) + 1 if name.startswith("blocks.") else model.config.n_layer
    params = {**model.params, "blocks": model.params["blocks"][:n]}
    return Model(replace(model.config, n_layer=n), params, model.tokenizer)


def chunks(rows):
    """Yield the number of the first text and a list of texts: about TOKENS_AT_ONCE tokens."""
    chunk, first, size = [], 0, 0
    for row in rows:
        chunk.append(row)
        size += len(row)
        if size >= TOKENS_AT_ONCE:
            yield first, chunk
            chunk, first, size = [], first + len(chunk), 0
    if chunk:
        yield first, chunk


def text_ids(model, text, bos):
    """Return the ids of one text, or ids, checked; `bos` as in `prompts`."""
    is_text = isinstance(text, str)
    if not is_text and not isinstance(text, Iterable):
        raise Error(f"{shown(text)} is not a text: give strings or lists of token ids")
    ids = encoded(model, text) if is_text else list(text)
    ids = [*start_of_text(model, is_text if bos is None else bos, [ids]), *ids]
    return checked_ids(model, [ids])[0] if ids else np.empty(0, int)


def is_unit(name: Any) -> bool:
    """Return True for a spelling of a neuron or head, False for the name of an activation."""
    if isinstance(name, tuple):  # (1, 1) or (2, None, 17), but not ("z", 1)
        return not any(isinstance(part, str) for part in name)
    return bool(re.fullmatch(r"L\d+[NH]\d+|\d+\.\d+", str(name)))


def unit_of(model: Model, unit: Any, edits: EditsLike | None = None) -> Unit:
    """Return the neuron "L2N17" or the head "L1H1", "1.1" or (1, 1).

    Raises Error for others, and for an edit of the hook_result that a head is measured by.
    """
    layer, head, *neuron = parse_node(model.config, unit)
    if neuron:
        return Unit(f"L{layer}N{neuron[0]}", activation_name("post", layer),
                    "activation (hook_post)", lambda post: post[:, neuron[0]], layer, None)
    if head is None:
        raise Error(f"{shown(unit)} is not a neuron or head: write 'L2N17' or 'L1H1'")
    result = activation_name("result", layer)
    if result in Edits(model, edits):
        raise Error(f"the output of {shown(unit)} is computed from z, so an edit of {result} would "
                    "be ignored: edit z, or leave {result} out")
    w_o = attention_weights(model, layer).W_O[head]
    return Unit(f"L{layer}H{head}", activation_name("z", layer), "norm of the output (hook_result)",
                lambda z: np.linalg.norm(z[:, head] @ w_o, axis=-1), layer, head)


def one_activation(name: Any, config: Config) -> str:
    """Return the full name of one activation, "blocks.2.hook_resid_post". Error for several."""
    found = matching_names(name, config)
    if len(found) > 1:
        layers = sorted(found, key=lambda one: (len(one), one))
        raise Error(f"{shown(name)} is in {len(found)} layers: name one, as {layers[0]}")
    return found.pop()

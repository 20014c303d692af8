"""Edits as one tap: several in the order given, at the right rows and positions of any pass.

An edit is called as a tap is: (name, array), with a copy of the activation. It changes the copy, or
returns an array. A pass may hold less than whole texts: a sweep begins at the first position that
differs, with many copies of the prompts, and cached generation goes on with one position at a
time. `Place` says which positions of which prompts a pass holds, so that position 7 is always
position 7 of the text.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import namespace, to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, Tap, all_but_results
from .inputs import check_index
from .names import BY_HEAD, BY_NEURON, BY_QUERY, activation_names, kind_of, matching_names

WITHOUT_GRADIENT = ("ln1", "ln2", "ln_final", "result")  # activations that are edited
Edit = Callable[[str, Any], Any]  # (name, a copy of the activation) -> an array, or None


@dataclass(frozen=True, eq=False)
class Place:
    """The positions and prompts that one pass holds.

    `positions` [b, q] count from 0 at the beginning of each text. `rows` [b] are the prompts that
    they belong to, of `n_rows`. `lengths` [b] are those of the prompts: negative positions count
    from their ends. A `growing` text may come to positions that it does not have yet. In a sweep
    the prompts are there in several `copies`.
    """

    positions: np.ndarray
    rows: np.ndarray
    lengths: np.ndarray
    n_rows: int
    growing: bool = False
    copies: int = 1

    @classmethod
    def from_position(cls, first: int, n_rows: int, length: int, copies: int = 1) -> Place:
        """Return the place of copies of whole prompts from position `first` on."""
        rows = np.tile(np.arange(n_rows), copies)
        positions = np.broadcast_to(np.arange(first, length), (len(rows), length - first))
        return cls(positions, rows, np.full(len(rows), length), n_rows, copies=copies)

    def fitted(self, name: str, array: Any) -> Place:
        """Return the place of an activation that holds only the last positions of the pass."""
        extra = self.positions.shape[1] - array.shape[position_axis(name)]
        return replace(self, positions=self.positions[:, extra:]) if extra else self

    def chosen(self, position: Any, positions: np.ndarray | None = None, axis: str = "position",
               ) -> np.ndarray:
        """Return booleans [b, q]: an int, a list or a slice of positions, or None for all.

        They count from the beginning of the text or, below 0, from the end of the prompt. A slice
        without an end goes on in a growing text.
        """
        here = self.positions if positions is None else positions
        if position is None:
            return np.ones(here.shape, bool)
        lengths = self.lengths[:, None]
        if isinstance(position, slice):
            return in_slice(here, position, lengths)
        mask = np.zeros(here.shape, bool)
        for one in np.atleast_1d(position).tolist():
            n = int(self.lengths.min())
            if not self.growing or not isinstance(one, int) or isinstance(one, bool) or one < 0:
                check_index(axis, one, n, negative=True)
            mask |= here == (one if one >= 0 else lengths + one)
        return mask


def in_slice(here, chosen, lengths):
    """Return the positions `here` [b, q] that are in a slice of texts of these lengths [b, 1]."""
    bounds = chosen.start, chosen.stop, chosen.step
    if any(bound is not None and not isinstance(bound, int | np.integer) for bound in bounds):
        raise Error(f"{shown(chosen)} is not a slice of positions: give integers")
    start, stop = (bound if bound is None or bound >= 0 else np.maximum(lengths + bound, 0)
                   for bound in bounds[:2])
    start, step = 0 if start is None else start, 1 if chosen.step is None else chosen.step
    if step < 1:
        raise Error(f"{shown(chosen)} goes backward: give positions from the first to the last")
    mask = (here >= start) & ((here - start) % step == 0)
    return mask if stop is None else mask & (here < stop)


def position_axis(name):
    """Return the axis of an activation that holds its positions: for attention its queries'."""
    return 2 if kind_of(name) in BY_QUERY else 1


class Edits:
    """Edits by the full names of their activations, in the order in which they were given.

    `edits` maps names, short names or globs to an edit, an array or a list of these; or it is a
    tap; or a list of such mappings and taps.
    """

    def __init__(self, model: Model, edits: EditsLike | None = None):
        self.by_name: dict[str, list[Any]] = {}
        self.add(model.config, edits)

    def add(self, config, edits):
        if edits is None:
            return
        if isinstance(edits, Edits | EditingTap):
            held = edits if isinstance(edits, Edits) else edits.edits
            for name, several in held.by_name.items():
                self.by_name.setdefault(name, []).extend(several)
        elif isinstance(edits, Mapping):
            for pattern, edit in edits.items():
                if not isinstance(pattern, str | tuple):
                    raise Error(f"edits name {shown(pattern)}: write an activation's name, such as "
                                "'blocks.5.attn.hook_z'")
                several = [checked_edit(pattern, one) for one in
                           (edit if is_list_of_edits(edit) else [edit])]
                for name in matching_names([pattern], config):
                    self.by_name.setdefault(name, []).extend(several)
        elif callable(edits) and not isinstance(edits, PlacedEdit):
            wants = getattr(edits, "wants", None) or all_but_results
            for name in filter(wants, activation_names(config)):
                self.by_name.setdefault(name, []).append(edits)
        elif isinstance(edits, list | tuple):
            for one in edits:
                self.add(config, one)
        else:
            raise Error(f"edits are {shown(edits)}: give a mapping of names to edits, such as "
                        "{'blocks.5.attn.hook_z': zero(head=1)}, a tap, or a list of these")

    def __bool__(self) -> bool:
        return bool(self.by_name)

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    @property
    def every(self) -> list[Any]:
        return [edit for several in self.by_name.values() for edit in several]

    @property
    def has_functions(self) -> bool:
        """True if an edit is a function of the caller's, which has to see whole texts."""
        return not all(isinstance(edit, PlacedEdit) for edit in self.every)

    @property
    def placed(self) -> bool:
        """True if an edit depends on positions or on the prompt."""
        return any(isinstance(edit, PlacedEdit) and edit.placed for edit in self.every)

    def apply(self, name: str, array: Any, place: Place) -> Any:
        """Return the activation after its edits. The array that is given stays as it is."""
        place = place.fitted(name, array)
        for edit in self.by_name.get(name, ()):
            if isinstance(edit, PlacedEdit):
                array = edit.at(name, array, place)
            else:
                array = called(edit, name, array, place.copies)
        return array

    def back(self, name: str, gradient: np.ndarray, place: Place) -> np.ndarray:
        """Return the gradient of an activation before its edits from that after them."""
        for edit in reversed(self.by_name.get(name, ())):
            if not isinstance(edit, PlacedEdit):
                raise Error(f"gradients cannot go back through a function of your own, the edit "
                            f"of {name}: use patch, zero, add, knock_out or an array")
            gradient = edit.back(name, gradient, place)
        return gradient

    @property
    def without_gradient(self) -> bool:
        """True if gradients cannot go back through an edit, or its activation has none."""
        return self.has_functions or bool(self.of_kinds(WITHOUT_GRADIENT))

    def of_kinds(self, kinds: Sequence[str]) -> list[str]:
        """Return the names that are edited of these kinds, or of any in a layer norm of these.

        A layer norm is "ln1", "ln2" or "ln_final".
        """
        return [name for name in self.by_name
                if kind_of(name) in kinds or set(name.split(".")) & set(kinds)]

    def refuse(self, tool: str, kinds: Sequence[str], remedy: str) -> None:
        """Raise Error if an activation of these kinds is edited."""
        for name in self.of_kinds(kinds):
            raise Error(f"{tool} cannot honour the edit of {name}: {remedy}")


EditsLike = Mapping[str, Any] | Edit | Sequence[Any] | Edits  # a list is of mappings and taps


def is_list_of_edits(edit):
    """Return True for a list of functions and arrays; one of plain numbers is an array itself."""
    return isinstance(edit, list | tuple) and (
        not edit or any(callable(one) or getattr(one, "ndim", 0) for one in edit))


def checked_edit(pattern, edit):
    """Return an edit. An array is put in as it is, broadcast as NumPy does."""
    if callable(edit):
        try:
            inspect.signature(edit).bind(pattern, None)
        except TypeError:
            raise Error(f"the edit of {pattern} cannot be called with two arguments: write a "
                        "function (name, array)") from None
        except ValueError:  # a builtin that does not tell its arguments
            pass
        return edit
    if not is_numbers(edit) and not isinstance(edit, list | tuple):
        raise Error(f"the edit of {pattern} is {shown(edit)}: give a function (name, array), an "
                    "array, or a list of these")
    return Replacement(edit)


def is_numbers(array):
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        return isinstance(array, int | float) and not isinstance(array, bool)
    return hasattr(array, "shape") and getattr(dtype, "kind", "") in "fiu"


def called(function, name, array, copies=1):
    """Return the checked result of a function (name, array) for an activation.

    It gets a copy, and of a batch that holds several copies of the prompts one after another.
    """
    if copies > 1:
        result, n = array.copy(), len(array) // copies
        for start in range(0, len(array), n):
            result[start : start + n] = called(function, name, array[start : start + n])
        return result
    given = array.copy()
    result = function(name, given)
    if result is None:
        return given
    if not is_numbers(result) or np.shape(result) != array.shape:
        found = (f"an array of shape {np.shape(result)}" if is_numbers(result) and np.ndim(result)
                 else shown(result))
        raise Error(f"the edit of {name} returned {found}: it is called (name, array), and must "
                    f"return an array of shape {array.shape}, or None after changing its array")
    return namespace(array).asarray(result, dtype=array.dtype)


# --- edits that know their place -------------------------------------------------------


class PlacedEdit:
    """An edit of some rows, positions, heads or neurons of an activation."""

    placed = True

    def __call__(self, name: str, array: Any) -> Any:
        """Edit the activation of a pass over whole texts."""
        shape = array.shape[0], array.shape[position_axis(name)]
        return self.at(name, array, Place.from_position(0, *shape))

    def mask(self, name: str, array: Any, place: Place) -> np.ndarray:
        """Return booleans that broadcast to the activation: the entries that are edited."""
        raise NotImplementedError

    def at(self, name: str, array: Any, place: Place) -> Any:
        """Return the activation after the edit. The array that is given stays as it is."""
        raise NotImplementedError

    def back(self, name: str, gradient: np.ndarray, place: Place) -> np.ndarray:
        """Return the gradient before the edit from that after it: 0 for entries put in."""
        return np.where(self.mask(name, gradient, place), 0, gradient)


class Replacement(PlacedEdit):
    """An edit that puts in values, or adds them if `adds`, at some heads, neurons and positions."""

    def __init__(self, values, head=None, neuron=None, position=None, adds=False):
        values = host_numbers(values)
        self.values, self.adds = values, adds
        self.head, self.neuron, self.position = head, neuron, position
        self.placed = position is not None or values.ndim > 1

    def __repr__(self):
        parts = {"head": self.head, "neuron": self.neuron, "position": self.position}
        given = [f"{key}={part!r}" for key, part in parts.items() if part is not None]
        what = shown(self.values.item()) if self.values.ndim == 0 else f"values {self.values.shape}"
        return f"{'add' if self.adds else 'patch'}({', '.join([what, *given])})"

    def mask(self, name, array, place):
        kind, axis = kind_of(name), position_axis(name)
        shape = [1] * array.ndim
        shape[0], shape[axis] = place.positions.shape
        mask = place.chosen(self.position).reshape(shape)
        heads = (1 if axis == 2 else 2) if kind in BY_HEAD else None
        for unit, index, at, known in (("head", self.head, heads, BY_HEAD),
                                       ("neuron", self.neuron, 2, BY_NEURON)):
            if index is None:
                continue
            if kind not in known:
                raise Error(f"{name} has no {unit}s: leave {unit} out")
            chosen = np.zeros(array.shape[at], bool)
            chosen[chosen_indices(unit, index, array.shape[at])] = True
            mask = mask & chosen.reshape([-1 if i == at else 1 for i in range(array.ndim)])
        return mask

    def at(self, name, array, place):
        mask = self.mask(name, array, place)
        if not mask.any():
            return array
        xp = namespace(array)
        new = xp.asarray(self.placed_values(name, array, place, mask), dtype=array.dtype)
        return xp.where(xp.asarray(mask), array + new if self.adds else new, array)

    def placed_values(self, name, array, place, mask):
        """Return the values of the rows and positions of this pass."""
        values, axis = self.values, position_axis(name)
        values = values.reshape([1] * (array.ndim - values.ndim) + list(values.shape))
        if values.ndim > array.ndim or len(values) not in (1, place.n_rows):
            raise self.misfit(name, array)
        if len(values) > 1:
            values = values[place.rows]
        n = values.shape[axis]
        if n > 1:
            here, length = place.positions, int(place.lengths.max())
            edited = here[np.broadcast_to(mask.any(axis=mask_rest(mask, axis)), here.shape)]
            if place.growing and edited.max() >= n:
                raise Error(f"the values for {name} have {n} positions, and the text has come to "
                            f"position {edited.max()}: give position=slice(0, {n})")
            if not place.growing and n != length:
                raise self.misfit(name, array)
            index = np.minimum(here, n - 1)
            if (index == index[0]).all():
                values = values.take(index[0], axis)
            else:
                shape = [-1 if i in (0, axis) else 1 for i in range(array.ndim)]
                shape[0] = len(index)
                values = np.broadcast_to(values, (len(index), *values.shape[1:]))
                values = np.take_along_axis(values, index.reshape(shape), axis)
        try:
            np.broadcast_to(values, array.shape)
        except ValueError:
            raise self.misfit(name, array) from None
        return values

    def misfit(self, name, array):
        return Error(f"the values for {name} have shape {self.values.shape}, they must have "
                     f"{array.shape} or one that NumPy broadcasts to it")

    def back(self, name, gradient, place):
        if self.adds and kind_of(name) == "pattern":
            raise Error(f"gradients cannot go back through what was added to {name}: add to the "
                        "scores or to z")
        return gradient if self.adds else super().back(name, gradient, place)


def host_numbers(values):
    """Return an array, a number or a list of numbers as an array on the host, checked."""
    try:
        array = np.asarray(to_host(values) if hasattr(values, "dtype") else values)
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.dtype.kind not in "fiu":
        raise Error(f"the values are {shown(values)}: give numbers, in rows of one length")
    return array


def mask_rest(mask, axis):
    """Return the axes of a mask but for its rows and positions."""
    return tuple(i for i in range(mask.ndim) if i not in (0, axis))


def chosen_indices(axis, index, n):
    """Return the indices below n that an int, a list, a slice or None (all) means, checked."""
    if index is None or isinstance(index, slice):
        return np.arange(n)[slice(None) if index is None else index]
    for one in np.atleast_1d(index).tolist():
        check_index(axis, one, n, negative=True)
    return np.atleast_1d(index).astype(int) % n


# --- taps ------------------------------------------------------------------------------


class HeldEdits:
    """A tap that keeps edits up in a pass of which the place is known.

    `skip` is an activation that the pass begins with, already edited.
    """

    def __init__(self, edits: Edits, place: Place, skip: str = ""):
        self.edits, self.place, self.skip = edits, place, skip

    def wants(self, name):
        return name in self.edits and name != self.skip

    def __call__(self, name, array):
        return self.edits.apply(name, array, self.place)


class InTurn:
    """Several taps as one, each of which gets the activation from the one before."""

    def __init__(self, *taps: Any):
        self.taps = [Tap(tap) for tap in taps]

    def wants(self, name):
        return any(tap.wants(name) for tap in self.taps)

    def __call__(self, name, array):
        for tap in self.taps:
            array = tap(name, array)
        return array


class EditingTap:
    """A tap of `as_tap`. The package's functions say by `begin` which positions a pass holds."""

    def __init__(self, model: Model, edits: EditsLike):
        self.edits, self.wpe = Edits(model, edits), model.params["wpe"]
        self.place = Place.from_position(0, 1, 0)
        self.told, self.given = False, 0  # the length of the text that a cache goes on with

    def wants(self, name: str) -> bool:
        return name in self.edits or name in BEGINNINGS

    def begin(self, positions: np.ndarray, rows: np.ndarray, lengths: np.ndarray, n_rows: int,
              ) -> None:
        """Take the place of the next pass: positions [b, q], prompts [b] and their lengths [b]."""
        self.place, self.told = Place(positions, rows, lengths, n_rows, growing=True), True

    def __call__(self, name: str, array: Any) -> Any:
        if not self.told:
            self.find_place(name, array)
        elif name == "hook_pos_embed":
            self.told = False  # the next pass is another one
        return self.edits.apply(name, array, self.place) if name in self.edits else None

    def find_place(self, name, array):
        """Find the positions of a pass that nobody has announced, by their embeddings."""
        n_rows, n = array.shape[:2]
        if name == BEGINNINGS[0]:
            self.place = replace(Place.from_position(0, n_rows, n), growing=True)
        if name != BEGINNINGS[1] or not self.edits.placed:
            return
        found = np.flatnonzero((to_host(self.wpe) == to_host(array)[0, 0]).all(axis=-1))
        if len(found) != 1:
            raise Error("the positions of this pass are not known, as the model's position "
                        "embeddings are not all different: use circuits.run or gpt2_np.generate")
        first = int(found[0])
        if first and BEGINNINGS[0] in self.edits:
            raise Error("hook_embed is edited before the positions of a pass with a cache are "
                        "known: edit hook_pos_embed or blocks.0.hook_resid_pre")
        self.given = self.given if first else n
        rows, length = np.arange(n_rows), self.given or first + n
        positions = np.broadcast_to(np.arange(first, first + n), (n_rows, n))
        self.place = Place(positions, rows, np.full(n_rows, length), n_rows, growing=True)


BEGINNINGS = ("hook_embed", "hook_pos_embed")  # the first two activations of a pass


def as_tap(model: Model, edits: EditsLike) -> EditingTap:
    """Return edits as a tap, for `forward`, `generate`, `score`, `complete` and the others.

    Positions are those of the text, also while a cache is filled one token at a time: a slice
    without an end means "from there on". Negative ones count from the end of the prompt. Functions
    of your own see the arrays of each pass. Use one tap in one thread at a time.
    """
    return EditingTap(model, edits)

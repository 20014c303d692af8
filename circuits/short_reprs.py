"""Short reprs: a result shows names, sizes and shapes, so that a notebook's cell may end in it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ..bpe import shown

FEW, WIDTH = 4, 100  # items that are shown one by one; characters of a line


class Result:
    """The base class of results, dataclasses that hold arrays. `properties` are shown too."""

    properties: tuple[str, ...] = ()

    def __repr__(self) -> str:
        from textwrap import fill

        own: Any = self
        names = [*(field.name for field in fields(own)), *self.properties]
        text = ", ".join(f"{name}={short(getattr(self, name))}" for name in names)
        return fill(f"{type(self).__name__}({text})", WIDTH, subsequent_indent="    ",
                    break_long_words=False, break_on_hyphens=False)


def short(value: Any) -> str:
    """Return a value on part of a line: an array as its type and shape, a long list by its ends."""
    if isinstance(value, np.ndarray):
        if value.ndim == 1 and value.size <= FEW:
            return listed([short(one) for one in value.tolist()], "[]")
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, Mapping):
        return listed([f"{short(key)}: {short(one)}" for key, one in value.items()], "{}")
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return str(value)
    if isinstance(value, list | tuple):
        return listed([short(one) for one in value], "[]" if isinstance(value, list) else "()")
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return shown(value) if isinstance(value, str) else repr(value)


def listed(items, brackets):
    """Return all of a few short items, or the first two of many and the last."""
    text = ", ".join(items)
    if len(items) > FEW and len(text) > WIDTH:
        text = f"{len(items)} items: {items[0]}, {items[1]}, ..., {items[-1]}"
    return brackets[0] + text + brackets[1]

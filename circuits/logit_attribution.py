"""Direct logit attribution: a logit as the sum of one number for each part of the stream.

The unembedding reads the stream linearly once the scale of the final layer norm is held fixed. So
each head and MLP adds a number of its own to a logit, and the numbers show which parts speak for
an answer and which against it. Effects through later parts are not counted: patching shows those.
(Elhage et al. 2021; Wang et al. 2022, "Interpretability in the Wild", section 3.1.)
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, overload

import numpy as np

from ..backend import einsum
from ..bpe import shown
from ..gpt2_np import Error, Model, Tokens
from .decomposition import (
    FINAL_BIAS,
    StreamSum,
    Terms,
    check_size,
    directions_for,
    stream_name,
    stream_terms,
)
from .drawings import attribution_picture
from .inputs import (
    AnswerSets,
    OnePrompt,
    Prompts,
    PromptsLike,
    answer_sets,
    check_count,
    check_numbers,
    for_each_length,
    one_each,
)
from .interventions import Edits, EditsLike
from .metrics import mean_rows
from .short_reprs import MOST_LINES, prompts_in, strongest, table
from .weights import centred, on_host


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(StreamSum):
    """The terms of a logit, of a difference of two, of a direction, or of every logit.

    `values` [p, b] (or [p, b, v]) over `labels` sum to `total`, the model's own logits. The last
    part, "ln_final.b", is the final layer norm's bias. Units: logits. If `position` is None, for
    all of them, axis q follows b. `by_source` is None, or holds the heads' terms [head, b, key].
    """

    total: np.ndarray
    position: int | None
    tokens: np.ndarray
    bos: bool
    by_source: Terms | None = None
    prompt_axes: ClassVar[dict[str, int]] = {"values": 1, "total": 0, "tokens": 0, "by_source": 1}

    def __repr__(self) -> str:
        if self.values.ndim != 2:
            return super().__repr__()
        n = MOST_LINES if self.by_source is None else MOST_LINES // 2
        rows = [[name, f"{value:+.4g}"] for name, value in self.top(n)]
        if self.by_source is not None:
            moved = self.by_source.values.mean(axis=1)
            rows += [[f"{self.by_source.labels[head]} from position {key}",
                      f"{moved[head, key]:+.4g}"] for head, key in strongest(moved, n)]
        return table(f"Attribution in {prompts_in(self.tokens)}: {self.total.mean():.4g}, of which "
                     f"the largest of {len(self.labels)} parts:", rows)

    def _repr_html_(self) -> str | None:
        return attribution_picture(self) if self.values.ndim == 2 else None

    def top(self, n: int = 10, kind: str = "all") -> list[tuple[str, float]]:
        """Return the labels with the largest terms, in either direction, and their means.

        Of all parts, or of a `kind`: "heads", "neurons" or "mlps". Means are over prompts. Raises
        Error for terms that are not one number a prompt.
        """
        check_count("n", n)
        if kind not in KINDS:
            raise Error(f"kind is {shown(kind)}: choose one of {', '.join(KINDS)}")
        if self.values.ndim != 2:
            raise Error(f"the terms have shape {self.values.shape}: top ranks one number a prompt, "
                        "an attribution's to an answer at one position")
        means = self.values.mean(axis=-1)
        means[[not re.fullmatch(KINDS[kind], label) for label in self.labels]] = np.nan
        return [(self.labels[i], float(means[i])) for (i,) in strongest(means, n)]

    def heads(self) -> np.ndarray:
        """Return the heads' terms, [layer, head, b] (or [layer, head, b, v])."""
        found = [i for i, label in enumerate(self.labels) if HEAD.fullmatch(label)]
        n_layer = sum(label.startswith("b_O") for label in self.labels)
        return self.values[found].reshape(n_layer, -1, *self.values.shape[1:])


HEAD = re.compile(r"L\d+H\d+")
KINDS = {"all": ".*", "heads": HEAD.pattern, "neurons": r"L\d+N\d+", "mlps": r"MLP\d+"}


@overload
def attribution(
    model: Model,
    text_or_tokens: Prompts | OnePrompt,
    answer: AnswerSets | None = None,
    wrong: AnswerSets | None = None,
    *,
    direction: np.ndarray | None = None,
    position: int | None = -1,
    by_source: bool = False,
    neurons: Sequence[int] | str = (),
    constants_apart: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Attribution: ...
@overload
def attribution(
    model: Model,
    text_or_tokens: Sequence[str] | Sequence[Tokens],
    answer: AnswerSets | None = None,
    wrong: AnswerSets | None = None,
    *,
    direction: np.ndarray | None = None,
    position: int | None = -1,
    by_source: bool = False,
    neurons: Sequence[int] | str = (),
    constants_apart: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Attribution | list[Attribution]: ...
def attribution(
    model: Model,
    text_or_tokens: PromptsLike,
    answer: AnswerSets | None = None,
    wrong: AnswerSets | None = None,
    *,
    direction: np.ndarray | None = None,
    position: int | None = -1,
    by_source: bool = False,
    neurons: Sequence[int] | str = (),
    constants_apart: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Attribution | list[Attribution]:
    """Return the direct effect of each part of the stream on a logit at one position, or at all.

    The logit is that of `answer`, or its difference from that of `wrong`, or every token's if
    neither is given. Each is a text of one token or an id: one for all prompts, or one for each,
    or sets of them as in `logit_difference`, whose mean logit it is.
    Or it is the product with `direction`, [d], [b, d] or [b, q, d], of the stream after the final
    layer norm, which the unembedding reads. `position` may be None for all.

    `by_source` tells which position each head's term was moved from: `by_source["L5H1"]` [b, key]
    sums to that head's term. b_V is part of every source's value, in proportion to attention; with
    `constants_apart` it is in "b_O5". A head whose z is edited has no sources (0).

    `neurons` ("all" for all layers), `constants_apart` and `edits` are those of `decompose`: with
    other heads ablated it shows what a backup head says. The final layer norm cannot be edited.
    Text gets <|endoftext|> put before it, unlike in `complete` and `score`; `bos=False` leaves it
    out. Prompts of several lengths give a list, one Attribution a prompt.
    """
    edits = Edits(model, edits)
    edits.refuse("attribution", ("ln_final",), "logits are not linear in the parts through it")
    if by_source and constants_apart:
        edits.refuse("by_source with constants_apart", ("pattern",), "leave one of them out")
    if wrong is not None and answer is None:
        raise Error("wrong was given without answer: give both, or answer alone")
    if direction is not None and answer is not None:
        raise Error("direction stands in place of answer and wrong: give one of them")

    def attribution_of(given, rows, n):
        ids = [None if one is None else one_each(answer_sets(model, one), n)[rows]
               for one in (answer, wrong)]
        own = direction
        if own is not None and len(rows) < n:
            own = directions_for(direction, (n, 1), on_host(model.params["ln_f"]["g"]))[rows]
        return attribution_of_group(model, given, ids, own, position, by_source, neurons,
                                    constants_apart, edits)

    return for_each_length(model, text_or_tokens, bos, attribution_of)


def attribution_of_group(model, given, ids, direction, position, by_source, neurons,
                         constants_apart, edits):
    """Return the Attribution of prompts of one length; `ids` of both are sets [b, s], or None."""
    norm, wte = on_host(model.params["ln_f"]), model.params["wte"]
    directions = wanted_directions(model, given.tokens.shape, ids, direction, norm["g"])
    asked = (model, given, stream_name(None, model.config), position, neurons, constants_apart,
             edits)
    if directions is not None:
        found = stream_terms(*asked, centred(directions * norm["g"]), by_source)
        bias = (directions @ norm["b"]).reshape(len(directions), -1)  # [b, 1] or [b, q]
        bias = bias if position is None or bias.shape[1] == 1 else bias[:, [position]]
        values = with_last(found.values / found.scale[..., 0], bias)
    elif by_source:
        raise Error("by_source needs one number to explain: give an answer or a direction")
    else:
        found = stream_terms(*asked)
        wte = on_host(wte)
        check_size((*found.values.shape[:-1], len(wte)),
                   "give an answer, a direction or a position")
        read = with_last(centred(found.values) / found.scale * norm["g"], norm["b"])
        values = einsum("pbqd,vd->pbqv", read, wte)
    check_numbers("the logits", values, model)
    sources = None
    if found.sources is not None:
        heads = [label for label in found.labels if HEAD.fullmatch(label)]
        moved = found.sources / found.scale
        sources = Terms(heads, moved if position is None else moved[:, :, 0])
    if position is not None:
        values, position = values[:, :, 0], position % given.tokens.shape[1]
    return Attribution([*found.labels, FINAL_BIAS], values, values.sum(axis=0), position,
                       given.tokens, given.bos, sources)


def with_last(values, bias):
    return np.concatenate([values, np.broadcast_to(bias, (1, *values.shape[1:]))])


def wanted_directions(model, shape, ids, direction, like):
    """Return the explained directions [b, d] or [b, q, d], or None for every token."""
    if direction is not None:
        return directions_for(direction, shape, like)
    answer, wrong = (None if one is None else mean_rows(model.params["wte"], one) for one in ids)
    return answer if wrong is None else answer - wrong

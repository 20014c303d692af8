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

import numpy as np

from ..backend import einsum
from ..gpt2_np import LAYER_NORM_EPSILON, Config, Error, Model
from .decomposition import decompose, labelled
from .drawings import attribution_picture
from .inputs import Answers, PromptsLike, answer_ids, check_numbers, one_each, prompts
from .interventions import Edits, EditsLike
from .names import head_names, stream_points
from .short_reprs import MOST_LINES, Result, prompts_in, table
from .weights import centred, on_host


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """The terms of a logit, of a difference of two, or of every logit.

    `values` [p, b] (or [p, b, v]) over `labels` sum to `total`, the model's own logits. The last
    part, "ln_final.b", is the final layer norm's bias. Units: logits.
    """

    labels: list[str]
    values: np.ndarray
    total: np.ndarray
    position: int
    tokens: np.ndarray
    bos: bool

    def __repr__(self) -> str:
        if self.values.ndim != 2:
            return super().__repr__()
        values = self.values.mean(axis=1)
        order = np.argsort(-np.abs(values), kind="stable")[:MOST_LINES]
        return table(f"Attribution in {prompts_in(self.tokens)}: {self.total.mean():.4g}, of which "
                     f"the largest of {len(values)} parts:",
                     [[self.labels[i], f"{values[i]:+.4g}"] for i in order])

    def _repr_html_(self) -> str | None:
        return attribution_picture(self) if self.values.ndim == 2 else None

    def __getitem__(self, label: str) -> np.ndarray:
        return labelled(self, label)

    def heads(self, config: Config) -> np.ndarray:
        """Return the heads' terms, [layer, head, b] (or [layer, head, b, v])."""
        found = [self.labels.index(name) for name in head_names(config)]
        return self.values[found].reshape(config.n_layer, config.n_head, *self.values.shape[1:])

    def layers(self, config: Config) -> tuple[list[str], np.ndarray]:
        """Return terms summed by sub-layer: "embed", "pos_embed", "0_attn_out", "0_mlp_out", ..."""
        names = ["embed", "pos_embed"]
        names += [f"{n}_{s}_out" for n in range(config.n_layer) for s in ("attn", "mlp")]
        sums = np.zeros((len(names), *self.values.shape[1:]), self.values.dtype)
        for label, value in zip(self.labels[:-1], self.values, strict=False):
            sums[names.index(sub_layer_of(label))] += value
        return names, sums

    def accumulated(self, config: Config) -> tuple[list[str], np.ndarray]:
        """Return the logit as the stream grows: "0_pre", "0_mid", "1_pre", ..., "final_post".

        This is the lens with the final scale held fixed, without the final layer norm's bias.
        """
        _, sums = self.layers(config)
        sums = np.cumsum(sums, axis=0)[1:]
        return stream_points(config), sums


def sub_layer_of(label):
    """Return "5_attn_out" or "5_mlp_out" for a part's label, or the label of an embedding."""
    layer = re.search(r"\d+", label)
    if not layer:
        return label
    n = int(layer[0])
    if label.startswith("edit_resid_pre"):  # what reads it comes next
        return f"{n - 1}_mlp_out" if n else "pos_embed"
    of_attention = re.match(r"L\d+H|b_O|edit_(attn_out|result|resid_mid)", label)
    return f"{n}_{'attn' if of_attention else 'mlp'}_out"


def attribution(
    model: Model,
    text_or_tokens: PromptsLike,
    answer: Answers | None = None,
    wrong: Answers | None = None,
    *,
    position: int = -1,
    neurons: Sequence[int] = (),
    constants_apart: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Attribution:
    """Return the direct effect of each part of the stream on a logit at one position.

    The logit is that of `answer`, or its difference from that of `wrong`, or every token's if
    neither is given. Each is a text of one token or an id: one for all prompts, or one for each.
    `neurons`, `constants_apart` and `edits` are those of `decompose`: with other heads ablated it
    shows what a backup head says. The final layer norm cannot be edited.
    """
    given = prompts(model, text_or_tokens, bos)
    if wrong is not None and answer is None:
        raise Error("wrong was given without answer: give both, or answer alone")
    edits = Edits(model, edits)
    edits.refuse("attribution", ("ln_final",), "logits are not linear in the parts through it")
    parts = decompose(model, given, position=position, neurons=neurons,
                      constants_apart=constants_apart, edits=edits)
    values = parts.values[:, :, 0]  # [p, b, d]
    norm, wte = on_host(model.params["ln_f"]), on_host(model.params["wte"])
    stream = centred(values.sum(axis=0))
    scale = np.sqrt((stream * stream).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    read = centred(values) / scale * norm["g"]
    read = np.concatenate([read, np.broadcast_to(norm["b"], (1, *stream.shape))])
    if answer is None:
        values = einsum("pbd,vd->pbv", read, wte)
    else:
        direction = wte[one_each(answer_ids(model, answer), len(stream))]
        if wrong is not None:
            direction = direction - wte[one_each(answer_ids(model, wrong), len(stream))]
        values = np.einsum("pbd,bd->pb", read, direction)
    check_numbers("the logits", values, model)
    return Attribution([*parts.labels, "ln_final.b"], values, values.sum(axis=0),
                       position % given.tokens.shape[1], given.tokens, given.bos)

"""The logit lens: read the stream after each layer as if the model ended there.

Every layer refines one stream that the unembedding reads, so an unfinished stream can be read
too. It shows the layer at which an answer appears, and its rivals before that layer.
(nostalgebraist 2020, "interpreting GPT: the logit lens".)
"""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..backend import namespace, to_host
from ..bpe import Tokenizer, shown
from ..gpt2_np import NO_TAP, Error, Model, layer_norm, softmax, unembed
from ..inference.turns import turn
from .activations import run
from .drawings import lens_picture
from .inputs import (
    Answers,
    PromptsLike,
    answer_ids,
    check_numbers,
    labels_of,
    one_each,
    position_slice,
    prompts,
)
from .interventions import Edits, EditsLike
from .metrics import entropy
from .names import activation_name, stream_points
from .short_reprs import MOST_LINES, Result, prompts_in, table


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Result):
    """The distribution over the next token at each point of the stream.

    `points` are "0_pre", "0_mid", ..., "final_post". `probability` and `rank` (0 is the best) of
    the target and `entropy` (nats) are [point, b, q]; `top` and `top_probability` are
    [point, b, q, k]; `logits` are [point, b, q, v], or None unless asked for.
    """

    points: list[str]
    probability: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    top: np.ndarray
    top_probability: np.ndarray
    logits: np.ndarray | None
    targets: np.ndarray
    tokens: np.ndarray
    bos: bool
    tokenizer: Tokenizer | None = field(default=None, repr=False, kw_only=True)

    def __repr__(self) -> str:
        rows = []
        for i in np.linspace(0, len(self.points) - 1, MOST_LINES).round().astype(int):
            words = labels_of(self, self.top[i, 0, -1, :4])
            best = zip(map(shown, words), self.top_probability[i, 0, -1], strict=False)
            rows.append([self.points[i], *(f"{word} {p:.3f}" for word, p in best)])
        return table(f"Lens of {prompts_in(self.tokens)}: the best tokens after the last, "
                     "were each layer the last:", rows)

    def _repr_html_(self) -> str:
        return lens_picture(self)


def lens(
    model: Model,
    text_or_tokens: PromptsLike,
    answer: Answers | None = None,
    *,
    position: int | None = None,
    top: int = 5,
    frozen: bool = False,
    keep_logits: bool = False,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Lens:
    """Return the logit lens before and after every attention and at the end.

    Targets are `answer` (one for all prompts, or one for each), or else the tokens that follow and,
    at the last position, the model's best. One `position` or all. `top` is the number of best
    tokens to keep. The stream gets the final layer norm with its own statistics; `frozen` takes
    the scale of the finished stream instead, as attribution does. `edits` are those of `run`, but
    for the final layer norm's own.
    """
    config, params, n = model.config, model.params, model.n_vocab
    given = prompts(model, text_or_tokens, bos)
    here = position_slice(position, given.tokens)
    streams = [activation_name(point, layer) for layer in range(config.n_layer)
               for point in ("resid_pre", "resid_mid")]
    streams.append(activation_name("resid_post", config.n_layer - 1))
    edits = Edits(model, edits)
    edits.refuse("lens", ("ln_final",), "it reads every layer through the model's own layer norm")
    seen = run(model, given, [*streams, "ln_final.hook_scale"], edits=edits)
    check_numbers("the logits", seen.logits, model)
    if not 1 <= top <= n:
        raise Error(f"top is {top}: it must be from 1 to the vocabulary's {n}")
    targets = lens_targets(model, given, seen.logits, answer)[:, here]
    xp = namespace(params["wte"])
    scale = xp.asarray(seen["ln_final.hook_scale"][:, here])
    tap = FixedScale(scale) if frozen else NO_TAP
    rows = []
    for name in streams:
        normalized = layer_norm(xp.asarray(seen[name][:, here]), **params["ln_f"], tap=tap)
        with turn(model):
            logits = to_host(unembed(normalized, params))[..., :n]
        rows.append((*read_logits(logits, targets, top), logits if keep_logits else None))
    columns = list(zip(*rows, strict=True))
    probability, rank, spread, best, best_probability = map(np.stack, columns[:5])
    logits = np.stack(columns[5]) if keep_logits else None
    return Lens(stream_points(config), probability, rank, spread, best, best_probability, logits,
                targets, given.tokens, given.bos, tokenizer=model.tokenizer)


class FixedScale:
    """A tap for one layer norm that replaces the scale by another stream's."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, name, array):
        return self.scale if name == "hook_scale" else array


def lens_targets(model, given, logits, answer):
    if answer is None:
        best = logits[:, -1:, : model.n_vocab].argmax(axis=-1)
        return np.append(given.tokens[:, 1:], best, axis=1)
    targets = one_each(answer_ids(model, answer), len(given.tokens))[:, None]
    return np.repeat(targets, given.tokens.shape[1], axis=1)


def read_logits(logits, targets, top):
    """Return the target's probability and rank, the entropy, the best ids and their probability."""
    probabilities = softmax(logits)
    of_target = np.take_along_axis(logits, targets[..., None], axis=-1)
    rank = (logits > of_target).sum(axis=-1)
    best = np.argpartition(logits, -top, axis=-1)[..., -top:]
    order = np.argsort(-np.take_along_axis(logits, best, axis=-1), axis=-1, kind="stable")
    best = np.take_along_axis(best, order, axis=-1)
    target = np.take_along_axis(probabilities, targets[..., None], axis=-1)[..., 0]
    return (target, rank, entropy(probabilities), best,
            np.take_along_axis(probabilities, best, axis=-1))

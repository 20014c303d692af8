"""Metrics: one number a prompt that says how well the model does a task.

A metric maps logits [b, q, v] to [b]; any function will do. The difference of two logits is the
usual choice for a causal question: it is linear in the logits, and a shift of all of them does not
move it. (Heimersheim & Nanda 2024, "How to use and interpret activation patching".)

A metric may be able to do more. `Differentiable` is needed to attribute it to edges. With
`ReadsStream` sweeps leave out the unembedding, a tenth to a quarter of their time.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..backend import einsum, namespace, to_host
from ..gpt2_np import Error, Model, softmax
from .inputs import Answers, answer_ids, one_each
from .short_reprs import Result


class Metric(Protocol):
    """One number a prompt."""

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Return [b] for logits [b, q, v]. In sweeps q is 1, the last, unless last_only=False."""


@runtime_checkable
class Differentiable(Metric, Protocol):
    """A metric of the last position that knows its gradient."""

    def gradient(self, logits: np.ndarray) -> np.ndarray:
        """Return d metric / d logits [b, v] for logits [b, 1, v]."""


@runtime_checkable
class ReadsStream(Metric, Protocol):
    """A metric of the last position that needs few logits."""

    def of_stream(self, x: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
        """Return the metric [b] from the final layer norm's result at that position, [b, d]."""


@dataclass(frozen=True, eq=False, repr=False)
class LogitDifference(Result):
    """Logit of `answer` minus logit of `wrong` at the last position; each is ids [1 or b]."""

    answer: np.ndarray
    wrong: np.ndarray

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        last = logits[:, -1]
        rows, n = np.arange(len(last)), len(last)
        return last[rows, one_each(self.answer, n)] - last[rows, one_each(self.wrong, n)]

    def gradient(self, logits: np.ndarray) -> np.ndarray:
        result = np.zeros((len(logits), logits.shape[-1]), logits.dtype)
        rows, n = np.arange(len(logits)), len(logits)
        np.add.at(result, (rows, one_each(self.answer, n)), 1)
        np.add.at(result, (rows, one_each(self.wrong, n)), -1)
        return result

    def of_stream(self, x: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
        wte = params["wte"]
        answer, wrong = (to_host(wte[namespace(wte).asarray(one_each(ids, len(x)))])
                         for ids in (self.answer, self.wrong))
        return einsum("bd,bd->b", x, answer - wrong)


@dataclass(frozen=True, eq=False, repr=False)
class LogProbability(Result):
    """Log-probability in nats of `answer`, ids [1 or b], among the `n_vocab` tokens."""

    answer: np.ndarray
    n_vocab: int

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        last = logits[:, -1, : self.n_vocab]
        chosen = last[np.arange(len(last)), one_each(self.answer, len(last))]
        return chosen - log_sum_exp(last)

    def gradient(self, logits: np.ndarray) -> np.ndarray:
        result = np.zeros_like(logits[:, -1])
        result[:, : self.n_vocab] = -softmax(logits[:, -1, : self.n_vocab])
        result[np.arange(len(result)), one_each(self.answer, len(result))] += 1
        return result


@dataclass(frozen=True, eq=False, repr=False)
class RepeatLoss(Result):
    """Mean loss in nats of the last `n` of `tokens` [b, q], each given all tokens before it."""

    tokens: np.ndarray
    n: int

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        length = self.tokens.shape[1]
        if logits.shape[1] != length:
            raise Error(f"the loss of {self.n} tokens needs the logits of all {length} positions, "
                        f"{logits.shape[1]} were given: use last_only=False")
        before = logits[:, -self.n - 1 : -1]
        targets = one_each(self.tokens[:, -self.n :, None], len(before))
        chosen = np.take_along_axis(before, targets, axis=-1)[..., 0]
        return (log_sum_exp(before) - chosen).mean(axis=-1)


def logit_difference(model: Model, answer: Answers, wrong: Answers) -> LogitDifference:
    """Return the metric "logit of `answer` minus logit of `wrong`" at the last position.

    Each is one token (text or id) for all prompts, or one for each.
    """
    return LogitDifference(answer_ids(model, answer), answer_ids(model, wrong))


def log_probability(model: Model, answer: Answers) -> LogProbability:
    """Return the metric "log-probability (nats) of `answer`" at the last position."""
    return LogProbability(answer_ids(model, answer), model.n_vocab)


def repeat_loss(tokens: np.ndarray, n: int) -> RepeatLoss:
    """Return the metric "mean loss (nats) of the last `n` tokens given all before them".

    It needs the logits of all positions: give sweeps `last_only=False`. It does not know the
    vocabulary, so rows that pad an embedding count.
    """
    tokens = np.atleast_2d(tokens)
    if not 1 <= n < tokens.shape[1]:
        raise Error(f"n is {n}: it must be from 1 to {tokens.shape[1] - 1}, as the first of "
                    f"{tokens.shape[1]} tokens has no loss")
    return RepeatLoss(tokens, n)


def checked_values(values, n):
    """Return a metric's values as floats [n]; Error unless there is one number for each prompt."""
    values = np.asarray(values, float)
    if values.shape != (n,):
        raise Error(f"the metric gave shape {values.shape} for {n} prompts: it must give one "
                    f"number for each, ({n},)")
    return values


def log_sum_exp(x):
    best = x.max(axis=-1)
    return best + np.log(np.exp(x - best[..., None]).sum(axis=-1))


def entropy(probabilities):
    """Return the entropy over the last axis in nats; 0 log 0 is 0."""
    tiny = np.finfo(probabilities.dtype).tiny
    return -(probabilities * np.log(np.maximum(probabilities, tiny))).sum(axis=-1)

"""Metrics: one number a prompt that says how well the model does a task.

A metric maps logits [b, q, v] to [b]; any function will do. The difference of two logits is the
usual choice for a causal question: it is linear in the logits, and a shift of all of them does not
move it. (Heimersheim & Nanda 2024, "How to use and interpret activation patching".)

A metric may be able to do more. `Differentiable` is needed for gradients and to attribute it to
edges. With `ReadsStream` sweeps leave out the unembedding, a tenth to a quarter of their time.
`ReadsPositions` says that it needs more than the last position, `ByPrompt` that each prompt has an
answer of its own, `LowerIsBetter` that it is a loss.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from ..backend import einsum, namespace, to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, Tokens, softmax
from .inputs import AnswerSets, Prompts, answer_sets, check_count, one_each
from .interventions import host_numbers
from .short_reprs import Result

Kind = Literal["logit", "log_probability", "probability"]


class Metric(Protocol):
    """One number a prompt."""

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Return [b] for logits [b, q, v]: q is 1, the last, but for metrics of all positions."""


@runtime_checkable
class ReadsPositions(Metric, Protocol):
    """A metric that says which logits it needs: of the last position only, or of all.

    One that does not say it is of the last position, unless a tool's own last_only is False.
    """

    last_only: bool


@runtime_checkable
class Differentiable(Metric, Protocol):
    """A metric that knows its gradient."""

    def gradient(self, logits: np.ndarray) -> np.ndarray:
        """Return d metric / d logits: [b, v], of the last position, or [b, q, v].

        The logits are [b, 1, v], those of the last position, unless the metric's last_only is
        False.
        """


@runtime_checkable
class ReadsStream(Metric, Protocol):
    """A metric of the last position that needs few logits."""

    def of_stream(self, x: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
        """Return the metric [b] from the final layer norm's result at that position, [b, d]."""


@runtime_checkable
class LowerIsBetter(Metric, Protocol):
    """A metric that says if it is better low, as a loss is. One that does not say is not."""

    @property
    def lower_is_better(self) -> bool:
        """True if the task is done better where the metric is lower."""


@runtime_checkable
class ByPrompt(Metric, Protocol):
    """A metric that knows prompts apart, as one with an answer for each."""

    def of_rows(self, rows: np.ndarray, n: int) -> Metric:
        """Return the metric of the prompts `rows` [b] alone, out of n."""


@dataclass(frozen=True, eq=False, repr=False)
class AnswerMetric(Result):
    """A metric of the last position: a measure of `answer` minus that of `wrong` (None: no minus).

    Both hold ids [1 or b, s], -1 where a set has fewer tokens than s.
    """

    answer: np.ndarray
    wrong: np.ndarray | None

    def minus_wrong(self, measure):
        return measure(self.answer) - (0 if self.wrong is None else measure(self.wrong))

    def of_rows(self, rows: np.ndarray, n: int) -> Metric:
        own: Any = self
        wrong = None if self.wrong is None else one_each(self.wrong, n)[rows]
        return replace(own, answer=one_each(self.answer, n)[rows], wrong=wrong)


@dataclass(frozen=True, eq=False, repr=False)
class LogitDifference(AnswerMetric):
    """Logit of `answer` minus that of `wrong`, each the mean over its set."""

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        last = logits[:, -1]
        return self.minus_wrong(
            lambda ids: chosen(last, ids).sum(axis=-1) / (ids >= 0).sum(axis=-1, dtype=last.dtype))

    def gradient(self, logits: np.ndarray) -> np.ndarray:
        last = logits[:, -1]

        def slope(ids):
            held = members(ids, last)
            return held / held.sum(axis=-1, keepdims=True, dtype=last.dtype)

        return self.minus_wrong(slope)

    def of_stream(self, x: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
        rows = self.minus_wrong(lambda ids: mean_rows(params["wte"], ids))
        return einsum("bd,bd->b", x, one_each(rows, len(x)))


@dataclass(frozen=True, eq=False, repr=False)
class ProbabilityDifference(AnswerMetric):
    """Probability of `answer`, summed over its set, minus that of `wrong`; of the logs if `log`.

    Probabilities are among the `n_vocab` tokens.
    """

    n_vocab: int
    log: bool

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        last = logits[:, -1, : self.n_vocab]
        whole = log_sum_exp(last)

        def measure(ids):
            log_p = log_sum_exp(chosen(last, ids, -np.inf)) - whole
            return log_p if self.log else np.exp(log_p)

        return self.minus_wrong(measure)

    def gradient(self, logits: np.ndarray) -> np.ndarray:
        last, result = logits[:, -1, : self.n_vocab], np.zeros_like(logits[:, -1])
        p = softmax(last)

        def slope(ids):  # of the log: each token's share of the set, less its share of all
            held = members(ids, last)
            slope = softmax(np.where(held, last, -np.inf)) - p
            return slope if self.log else slope * (p * held).sum(axis=-1, keepdims=True)

        result[:, : self.n_vocab] = self.minus_wrong(slope)
        return result


@dataclass(frozen=True, eq=False, repr=False)
class RepeatLoss(Result):
    """Mean loss in nats of the last `n` of `tokens` [b, q], each given all tokens before it."""

    tokens: np.ndarray
    n: int
    last_only = False
    lower_is_better = True

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        before, targets = self.predicted(logits)
        return (log_sum_exp(before) - chosen(before, targets)[..., 0]).mean(axis=-1)

    def gradient(self, logits: np.ndarray) -> np.ndarray:
        before, targets = self.predicted(logits)
        result = np.zeros_like(logits)
        result[:, -self.n - 1 : -1] = (softmax(before) - members(targets, before)) / self.n
        return result

    def of_rows(self, rows: np.ndarray, n: int) -> Metric:
        return replace(self, tokens=one_each(self.tokens, n)[rows])

    def predicted(self, logits):
        """Return the logits [b, n, v] that predict the last n tokens, and these, [b, n, 1]."""
        length = self.tokens.shape[1]
        if logits.shape[1] != length:
            remedy = ("use last_only=False" if logits.shape[1] == 1 else "give repeat_loss the "
                      "tokens of the prompts, with <|endoftext|> if they have it")
            raise Error(f"the loss of {self.n} tokens needs the logits of all {length} positions, "
                        f"{logits.shape[1]} were given: {remedy}")
        targets = one_each(self.tokens[:, -self.n :, None], len(logits))
        return logits[:, -self.n - 1 : -1], targets


def logit_difference(
    model: Model, answers: AnswerSets, wrong: AnswerSets | None = None, kind: Kind = "logit"
) -> Differentiable:
    """Return the metric "logit of `answers` minus logit of `wrong`" at the last position.

    Each is one token (text or id) for all prompts, one for each, or a set for each:
    [[" he", " him"], [" she"]]; [[" he", " him"]] is one set for all. If `wrong` is None, the
    measure of `answers` is all.

    `kind` is "logit", the mean logit of a set (linear, so that attribution adds up to it),
    "probability", the sum over the set, or "log_probability", the logarithm of that sum in nats.
    Wang et al. 2022 compare logits of single names; Hanna et al. 2023 ("How does GPT-2 compute
    greater-than?") the probability of all greater years with that of the others.
    """
    if kind not in get_args(Kind):
        raise Error(f"kind is {shown(kind)}: choose one of {', '.join(get_args(Kind))}")
    right = answer_sets(model, answers)
    other = None if wrong is None else answer_sets(model, wrong)
    if kind == "logit":
        return LogitDifference(right, other)
    return ProbabilityDifference(right, other, model.n_vocab, kind == "log_probability")


def log_probability(model: Model, answers: AnswerSets) -> Differentiable:
    """Return the metric "log-probability (nats) of `answers`" at the last position.

    Answers are those of `logit_difference`; of a set it is the logarithm of its probability.
    """
    return logit_difference(model, answers, None, "log_probability")


def repeat_loss(tokens: Prompts | Tokens | Sequence[Tokens], n: int) -> RepeatLoss:
    """Return the metric "mean loss (nats) of the last `n` tokens given all before them".

    It reads the logits of all positions, and says so to sweeps and gradients. It does not know the
    vocabulary, so rows that pad an embedding count.
    """
    tokens = np.atleast_2d(host_numbers(getattr(tokens, "tokens", tokens)))
    check_count("n", n)
    if n >= tokens.shape[1]:
        raise Error(f"n is {n}: it must be from 1 to {tokens.shape[1] - 1}, as the first of "
                    f"{tokens.shape[1]} tokens has no loss")
    return RepeatLoss(tokens, n)


def chosen(values, ids, fill=0.0):
    """Return the values [..., v] at ids [1 or b, ..., s], [..., s], with `fill` at id -1."""
    ids = one_each(ids, len(values))
    return np.where(ids < 0, values.dtype.type(fill), np.take_along_axis(values, ids, axis=-1))


def mean_rows(wte, ids):
    """Return the mean row of the unembedding of each set of ids [b, s], [b, d], on the host."""
    held = ids >= 0
    rows = to_host(wte[namespace(wte).asarray(ids * held)])
    dtype = np.promote_types(rows.dtype, np.float32)
    return einsum("bs,bsd->bd", held / held.sum(axis=-1, keepdims=True, dtype=dtype),
                  rows.astype(dtype, copy=False))


def members(ids, values):
    """Return which of the values [..., v] are those of ids [1 or b, ..., s], as 0 or 1."""
    ids = one_each(ids, len(values))
    result = np.zeros_like(values)
    np.put_along_axis(result, np.where(ids < 0, ids[..., :1], ids), 1, axis=-1)
    return result


def reads_last(metric, last_only=None):
    """Return True if a metric is of the last position alone: as asked for, or as it says itself.

    Raises Error for a metric that is no function, such as a text or a Task.
    """
    if not callable(metric):
        raise Error(f"metric is a {type(metric).__name__}, expected a function from logits "
                    "[b, q, v] to [b]: give one, such as task.metric(model)")
    if last_only is not None:
        return last_only
    return metric.last_only if isinstance(metric, ReadsPositions) else True


def is_better_low(metric):
    """Return True for a loss."""
    return metric.lower_is_better if isinstance(metric, LowerIsBetter) else False


def kind_of_patching(base, source, lower_is_better):
    """Return the `kind` of a result that holds the metric of base and of source, each [b]."""
    if source is None:
        return "ablation"
    gain = (base.mean() - source.mean()) * (1 if lower_is_better else -1)
    return "denoising" if gain > 0 else "noising" if gain < 0 else "no difference"


def of_rows(metric, rows, n):
    """Return the metric of some of n prompts; a metric without `of_rows` is the same for all."""
    return metric.of_rows(rows, n) if isinstance(metric, ByPrompt) else metric


def gradient_of_logits(metric, logits):
    """Return the gradient of a metric, [b, q, v], that of the last position as it gives it."""
    gradient = np.asarray(metric.gradient(logits))
    if gradient.ndim == 2:
        gradient = gradient[:, None]
    expected = {(len(logits), q, logits.shape[-1]) for q in (1, logits.shape[1])}
    if gradient.shape not in expected:
        raise Error(f"the metric's gradient has shape {gradient.shape} for logits {logits.shape}: "
                    "it must be [b, v], of the last position, or [b, q, v]")
    return gradient


def measured(metric, logits, n):
    """Return a metric's values of logits [1 or n, q, v], one prompt for all or one each."""
    logits = one_each(logits, n)
    try:
        values = metric(logits)
    except IndexError as error:
        raise Error(f"the metric failed on logits of shape {logits.shape}: {error}. It sees the "
                    "last position only, unless metric.last_only is set to False, and prompts of "
                    "one length at a time") from error
    return checked_values(values, n)


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

"""A survey of one model or of many: sizes of activations, outliers, attention, calibration.

Norms of the residual stream grow from layer to layer (Heimersheim & Turner 2023, "Residual stream
norms grow exponentially over the forward pass"), a few of its dimensions may be far larger than
the others, and heads of a kind form at one time of the training (Olsson et al. 2022, "In-context
Learning and Induction Heads"). Each is a number for every layer: side by side they show how a model
differs from another, or from itself at an earlier step.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, Tap, generator, transformer
from ..inference.turns import turn
from .attention_patterns import Attention, heads
from .calibration import Measures, measure, measured_ids
from .drawings import survey_picture
from .inputs import check_numbers, windows_of
from .metrics import entropy
from .names import kind_of, layer_of
from .short_reprs import MOST_LINES, Result, table_lines
from .texts import chunks

# Dettmers et al. 2022, "LLM.int8()", section 4.1: an outlier reaches this magnitude at this share
# of positions, and does so in this share of layers.
MAGNITUDE, OF_POSITIONS, OF_LAYERS = 6.0, 0.06, 0.25

OneModel = Model | Callable[[], Model]
Models = OneModel | Mapping[Any, OneModel] | Iterable[OneModel]


@dataclass(frozen=True, eq=False, repr=False)
class Profile(Result):
    """One model of a survey: means over the positions of texts, but for each text's first.

    `norm` and `largest` [layer + 1] are of the residual stream before each layer and at the end:
    its mean norm and its largest magnitude. `first_norm` is its norm at the first position, which
    is often far larger. `attn_norm` and `mlp_norm` [layer] are of what the layers write, `entropy`
    [layer, head] of attention in nats. `outlier_share` [layer, d] is the share of positions at
    which the input of attention or that of the MLP, after layer norm, has a magnitude of 6 or more.
    `repeats` are scores of heads on random tokens that repeat, `measures` loss and calibration.
    """

    name: str
    norm: np.ndarray
    first_norm: np.ndarray
    largest: np.ndarray
    attn_norm: np.ndarray
    mlp_norm: np.ndarray
    outlier_share: np.ndarray
    entropy: np.ndarray
    repeats: Attention = field(repr=False)
    measures: Measures = field(repr=False)
    _properties = "growth", "outliers"

    @property
    def growth(self) -> float:
        """The factor by which the norm of the stream grows in a layer: the geometric mean."""
        return float((self.norm[-1] / self.norm[0]) ** (1 / (len(self.norm) - 1)))

    @property
    def outliers(self) -> list[int]:
        """The outlier dimensions: over 6 at 6% of positions, in a quarter of layers or more."""
        layers = (self.outlier_share >= OF_POSITIONS).mean(axis=0)
        return np.flatnonzero(layers >= OF_LAYERS).tolist()

    @property
    def by_layer(self) -> dict[str, np.ndarray]:
        """The columns of the table of one model, each [layer]: the stream's are after the layer.

        `outliers` counts them in a layer, `entropy` is its mean, `previous` and `induction` are the
        scores of its best heads.
        """
        return {
            "norm": self.norm[1:], "at first": self.first_norm[1:], "largest": self.largest[1:],
            "attn": self.attn_norm, "mlp": self.mlp_norm,
            "outliers": (self.outlier_share[:, self.outliers] >= OF_POSITIONS).sum(axis=1),
            "entropy": self.entropy.mean(axis=1),
            "previous": self.repeats.previous_token.max(axis=1),
            "induction": self.repeats.induction.max(axis=1),
        }  # fmt: skip

    @property
    def overall(self) -> dict[str, float]:
        """The columns of the table of several models: the norm is that at the end."""
        layers = self.by_layer
        return {
            "loss": self.measures.loss.value,
            "calibration": self.measures.calibration_error.value,
            "growth": self.growth, "norm": self.norm[-1], "largest": self.largest.max(),
            "outliers": len(self.outliers), "entropy": self.entropy.mean(),
            "previous": layers["previous"].max(), "induction": layers["induction"].max(),
        }  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Survey(Result):
    """A Profile of each model, in the order given. As text a row a layer, or a row a model."""

    profiles: list[Profile]
    n_texts: int

    @property
    def title(self) -> str:
        n, first = len(self.profiles), self.profiles[0]
        texts = f"{self.n_texts:,} text{'s' * (self.n_texts > 1)}"
        if n > 1:
            return f"Survey of {n} models on {texts}"
        return (f"Survey of {first.name} on {texts}: loss {first.measures.loss}, calibration error "
                f"{first.measures.calibration_error.value:.3f}, growth {first.growth:.3f} a layer")

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the rows: one a layer of a single model, else one a model."""
        if len(self.profiles) > 1:
            names, columns = ["model"], [one.overall for one in self.profiles]
            rows = [[one.name] for one in self.profiles]
        else:
            layers = self.profiles[0].by_layer
            columns = [dict(zip(layers, values, strict=True))
                       for values in zip(*layers.values(), strict=True)]
            names, rows = ["layer"], [[str(i)] for i in range(len(columns))]
        for row, values in zip(rows, columns, strict=True):
            row += [cell(kind, value) for kind, value in values.items()]
        return [*names, *columns[0]], rows

    def __str__(self) -> str:
        return "\n".join([self.title, *table_lines(*self.table())])

    def __repr__(self) -> str:
        header, rows = self.table()
        if len(rows) > MOST_LINES:
            rows[4:-3] = [["...", *[""] * (len(header) - 1)]]
        return "\n".join([self.title, *(f"    {line}" for line in table_lines(header, rows))])

    def _repr_html_(self) -> str:
        return survey_picture(self, ("norm", "largest", "outliers", "entropy", "previous",
                                     "induction"))

    def by_layer(self, kind: str) -> np.ndarray:
        """Return a column of Profile.by_layer for all models, [layer, model]; NaN past the end."""
        columns = [one.by_layer[kind] for one in self.profiles]
        found = np.full((max(map(len, columns)), len(columns)), np.nan)
        for i, column in enumerate(columns):
            found[: len(column), i] = column
        return found


def cell(kind, value):
    """Return a value as a cell of the table; "-" for NaN."""
    if value != value:
        return "-"
    if kind == "outliers":
        return str(int(value))
    return f"{value:,.1f}" if kind in ("norm", "at first", "largest", "attn", "mlp") \
        else f"{value:.3f}"


def survey(
    models: Models,
    texts: Sequence[Any],
    *,
    bins: int = 10,
    seed: int = 0,
    bos: bool | None = None,
) -> Survey:
    """Return norms, outliers, entropy of attention, calibration, kinds of heads: layer by layer.

    `models` is one, several, or {name: model}. In place of a model may stand a function without
    arguments that loads it, such as `functools.partial(gpt2_np.load, folder)`: checkpoints are then
    in memory one at a time. `texts` are those of `measure`, texts or lists of ids, and are read
    window by window, as there. `bins` are of confidence; `seed` is that of resampling and of the
    random tokens that repeat. Text gets <|endoftext|> put before it; `bos=False` leaves it out.
    """
    generator(seed)  # a wrong one is an error now, and not after all texts were read
    profiles = [profile(name, model, texts, bins, seed, bos) for name, model in named(models)]
    if not profiles:
        raise Error("there is no model to survey: give at least one")
    return Survey(profiles, len(texts))


def named(models):
    """Yield each model, or the function that loads it, with its name."""
    if isinstance(models, Model) or callable(models):
        yield "the model", models
    elif isinstance(models, Mapping):
        yield from ((str(name), model) for name, model in models.items())
    elif isinstance(models, Iterable) and not isinstance(models, str):
        yield from ((str(i), model) for i, model in enumerate(models))
    else:
        raise Error(f"models is {shown(models)}: give a Model, several, or {{name: Model}}; "
                    "functools.partial(gpt2_np.load, name) loads one when it is needed")


def profile(name, model, texts, bins, seed, bos):
    """Return the Profile of one model."""
    model = model if isinstance(model, Model) or not callable(model) else model()
    if not isinstance(model, Model):
        raise Error(f"model {name} is {shown(model)}: give a Model, or a function that loads one, "
                    "such as functools.partial(gpt2_np.load, name)")
    measures = measure(model, texts, bins=bins, seed=seed, bos=bos)
    sums = StreamSums(model)
    for _, chunk in chunks(measured_ids(model, text, bos) for text in texts):
        for window in windows_of([len(ids) for ids in chunk], model.config.n_ctx):
            tokens = chunk[window.text][window.start : window.end]
            sums.begin(len(tokens), max(1, window.first_scored - window.start), not window.start)
            with turn(model):
                transformer(model.params, model.config, tokens[None], tap=Tap(sums))
    check_numbers("activations", sums.largest, model)
    n = sums.n
    with np.errstate(divide="ignore", invalid="ignore"):
        return Profile(name, sums.norm / n, sums.first_norm / sums.n_first, sums.largest,
                       sums.attn_out / n, sums.mlp_out / n, sums.large.max(axis=1) / n,
                       sums.entropy / n, heads(model, seed=seed), measures)


class StreamSums:
    """A tap that sums over positions what a Profile says the means of; it keeps no activation."""

    def __init__(self, model):
        config, self.blocks = model.config, model.params["blocks"]
        n = self.n_layer = config.n_layer
        self.n = self.n_first = 0
        self.norm, self.first_norm, self.largest = np.zeros((3, n + 1))
        self.attn_out, self.mlp_out = np.zeros((2, n))
        self.large = np.zeros((n, 2, config.n_embd), int)  # of the inputs of attention and MLP
        self.entropy = np.zeros((n, config.n_head))

    def begin(self, length, first, is_first_window):
        """Begin a pass over `length` tokens, of which those from `first` on are counted."""
        self.first, self.is_first_window = first, is_first_window
        self.n += length - first
        self.n_first += is_first_window

    def wants(self, name):
        if not name.startswith("blocks."):
            return False
        kind = kind_of(name)
        return (kind in ("resid_pre", "attn_out", "mlp_out", "normalized", "pattern")
                or (kind == "resid_post" and layer_of(name) == self.n_layer - 1))

    def __call__(self, name, array):
        layer, kind, array = layer_of(name), kind_of(name), to_host(array)[0]
        if kind == "pattern":  # [h, q, k]
            self.entropy[layer] += entropy(array[:, self.first :]).sum(axis=-1)
            return
        x = array.astype(float)  # [q, d]
        counted = x[self.first :]
        if kind == "normalized":
            i = int(".ln2." in name)
            norm = self.blocks[layer][("ln_1", "ln_2")[i]]
            x = counted * to_host(norm["g"]) + to_host(norm["b"])
            self.large[layer, i] += (np.abs(x) >= MAGNITUDE).sum(axis=0)
        elif kind in ("attn_out", "mlp_out"):
            getattr(self, kind)[layer] += np.linalg.norm(counted, axis=-1).sum()
        else:
            point = layer + (kind == "resid_post")
            self.norm[point] += np.linalg.norm(counted, axis=-1).sum()
            self.largest[point] = max(self.largest[point], np.abs(counted).max())
            if self.is_first_window:
                self.first_norm[point] += np.linalg.norm(x[0])

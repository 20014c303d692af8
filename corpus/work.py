"""The work: a batch of texts in, their scores or continuations out.

`Scorer` and `Generator` are plain callables. The engines of this package call `records`; Ray Data,
Spark and datasets call the object itself. A record depends on its document, the options and the
model. Texts that are computed together change scores by no more than rounding.
"""
from __future__ import annotations

import contextvars
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from .. import backend, checkpoint
from ..bpe import shown
from ..checkpoint.loading import DtypeName, dtype_name, pick_device
from ..command_line import with_tokenizer
from ..gpt2_np import Error, Model, Sampling, __version__, namespace
from ..inference.decoders import NotFinite
from ..inference.generation import Generation
from ..inference.options import Stop, check_count, start_of_text
from ..inference.scoring import score_windows
from ..inference.text_stream import cut_at_stop, stop_list, stop_strings
from .fingerprints import checkpoint_fingerprint, model_fingerprint
from .formats import Document, why_not

Record = dict[str, Any]  # a line of the output; it begins with the document's id
Row = list[int]  # token ids


class Work(Protocol):
    """The work on documents. It can be pickled: each worker loads its own model."""

    columns: dict[str, str]  # the names of a record's values, and their types

    def prepare(self) -> None:
        """Load the model."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what the output depends on: the model, the options and the versions."""

    def records(self, documents: Sequence[Document]) -> list[Record]:
        """Return a record for each document, in their order."""


class ModelWork:
    """The base of `Scorer` and `Generator`: a model that is loaded on first use, and columns."""

    columns: dict[str, str]
    renamed: Mapping[str, str] = {}  # values whose column has another name
    id: str | None = None  # the column of ids, if they count

    def __init__(self, model: str | os.PathLike[str] | Model, device: backend.DeviceName,
                 dtype: DtypeName, tf32: bool, field: str):
        self.source, self.field = model, field
        self.dtype: Any = dtype_name(dtype)
        self.device, self.tf32 = device, tf32
        self.loaded = model if isinstance(model, Model) else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a model that was given by its name: the copy loads its own."""
        return {**vars(self), "loaded": self.source if isinstance(self.source, Model) else None}

    @property
    def model(self) -> Model:
        if self.loaded is None:
            assert not isinstance(self.source, Model)
            self.loaded = checkpoint.load(self.source, self.device, self.dtype)
        return with_tokenizer(self.loaded, shown(self.source))

    def prepare(self) -> None:
        """Load the model. Raises Error if it has no tokenizer or does not fit the options."""
        self.check(self.model)

    def check(self, model: Model) -> None:
        """Raise Error if the options are not for this model."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what the output depends on, from a few MB of the weights of a named model.

        A model that was given as an object may have been edited, so all of its bytes count.
        """
        if isinstance(self.source, Model):
            wte = self.source.params["wte"]
            about, dtype = model_fingerprint(self.source), wte.dtype.name
            device = device_name(namespace(wte))
        else:
            device, dtype = self.device, np.dtype(self.dtype).name
            if device == "auto":
                device = device_name(pick_device(device))
            if device == "cpu":  # of "cuda", the workers may have a GPU and this process none
                backend.check_dtype(dtype, np)
            about = checkpoint_fingerprint(self.source)
        return {"work": type(self).__name__, "model": about,
                "device": device, "dtype": dtype, "tf32": self.tf32,
                **self.options(about["config"]["n_ctx"]),
                "gpt2_np": __version__, "numpy": np.__version__, "regex": regex_version()}

    def options(self, n_ctx: int) -> dict[str, Any]:
        raise NotImplementedError

    def records(self, documents: Sequence[Document]) -> list[Record]:
        """Return a record for each document, in their order."""
        reasons = [document.skipped or why_not(document.text) for document in documents]
        wanted = [d for d, reason in zip(documents, reasons, strict=True) if not reason]
        context = contextvars.copy_context()  # which --tf32 changes
        context.run(backend.allow_tf32, self.tf32)
        found = iter(context.run(self.results, wanted) if wanted else ())
        return [{"id": d.id, **({"skipped": reason} if reason else next(found))}
                for d, reason in zip(documents, reasons, strict=True)]

    def results(self, documents: Sequence[Document]) -> list[Record]:
        """Return the values of texts, or {"skipped": the reason}."""
        raise NotImplementedError

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a batch and the new ones: arrays, or lists of strings and arrays.

        Types do not depend on the batch. A row that was skipped has its reason in "skipped", 0 for
        counts, NaN for other numbers, and "" or an empty array.
        """
        columns = columns_of(batch)
        new = {self.renamed.get(name, name): name for name in [*self.columns, "skipped"]}
        for name in (self.field, self.id or self.field):
            if name not in columns:
                raise Error(f"there is no column {shown(name)} among {shown(list(columns))}: name "
                            f"it by {'field' if name == self.field else 'id'}=")
            if not hasattr(columns[name], "__len__") or isinstance(columns[name], str | bytes):
                raise Error(f"the column {shown(name)} is {shown(columns[name])}: give a list or "
                            "an array, with a value for each row")
        if taken := [name for name in new if name in columns]:
            raise Error(f"the batch has a column {shown(taken[0])} already: rename or drop it")
        texts, ids = columns[self.field], columns[self.id or self.field]
        records = self.records([Document(plain(id), plain(text))
                                for id, text in zip(ids, texts, strict=True)])
        types = {**self.columns, "skipped": "string"}
        return columns | {to: column(types[name], [record.get(name) for record in records])
                          for to, name in new.items()}


class Scorer(ModelWork):
    """Scores texts: log-probabilities in nats, bits a byte, and on request every token's.

        scorer = corpus.Scorer("124M")
        scores = scorer({"text": ["To be, or not to be", "that is"]})["nats_per_token"]

    `model` is a name for `gpt2_np.load`, which each copy of a pickled scorer loads on first use, or
    a Model. With `bos`, <|endoftext|> stands before each text, so that its first token is scored
    too. Without it, or if the vocabulary has none, the first token and its bytes do not count. A
    space that a tokenizer puts before every text is part of its first token, but of no n_bytes.
    Texts longer than n_ctx are read in windows `stride` tokens apart, as in `gpt2_np.score`.

    A call takes a mapping of columns, of which `field` has the texts, and returns all of them with
    n_tokens, n_bytes, log_probability, nats_per_token, bits_per_byte and skipped, the reason why a
    text has no score, such as "not finite" for a result that is no number, or "". With `per_token`
    come tokens and log_probabilities.
    """

    def __init__(self, model: str | os.PathLike[str] | Model = "124M", *,
                 stride: int | None = None, bos: bool = True, per_token: bool = False,
                 device: backend.DeviceName = "auto", dtype: DtypeName = "float32",
                 tf32: bool = False, field: str = "text"):  # fmt: skip
        super().__init__(model, device, dtype, tf32, field)
        if stride is not None:
            check_count("stride", stride)
        self.stride, self.bos, self.per_token = stride, bos, per_token
        self.columns = {
            "n_tokens": "int64", "n_bytes": "int64", "log_probability": "float64",
            "nats_per_token": "float64", "bits_per_byte": "float64",
        }  # fmt: skip
        if per_token:
            self.columns |= {"tokens": "list int32", "log_probabilities": "list float32"}

    def check(self, model: Model) -> None:
        self.options(model.config.n_ctx)

    def options(self, n_ctx: int) -> dict[str, Any]:
        if self.stride is not None:
            check_count("stride", self.stride, 1, n_ctx)
        return {"stride": self.stride or n_ctx // 2, "bos": self.bos, "per_token": self.per_token}

    def results(self, documents: Sequence[Document]) -> list[Record]:
        model = self.model
        tokenizer: Any = model.tokenizer
        start, rows = start_and_rows(model, self.bos and tokenizer.end_of_text is not None,
                                     documents)
        scores = score_windows(model, [[*start, *row] for row in rows], self.stride)
        texts: Any = [document.text for document in documents]
        return [self.record(row, len(text.encode()), score.log_probabilities) if start else
                self.record(row[1:], len(tokenizer.decode_bytes(row[1:])), score.log_probabilities)
                for text, row, score in zip(texts, rows, scores, strict=True)]

    def record(self, tokens: Row, n_bytes: int, log_p: np.ndarray) -> Record:
        log_p = log_p[len(log_p) - len(tokens) :]
        total = float(log_p.sum(dtype=np.float64))
        if not math.isfinite(total):
            return {"skipped": "not finite"}
        numbers = (total, -total / len(tokens), -total / math.log(2) / n_bytes) if tokens else [
            None] * 3  # nothing was scored
        record: Record = dict(zip(self.columns, (len(tokens), n_bytes, *numbers), strict=False))
        if self.per_token:
            record |= {"tokens": np.array(tokens, np.int32), "log_probabilities": log_p}
        return record


class Generator(ModelWork):
    """Continues texts by up to `n_tokens` tokens, `batch` of them at a time.

        generator = corpus.Generator("124M", n_tokens=20, temperature=0.8, id="id")
        samples = generator({"id": [1, 2], "text": ["To be,", "Once"]})["continuation"]

    `model` is as in `Scorer`, the other options as in `gpt2_np.generate`. <|endoftext|> stands
    before each text only with `bos`. A text draws with `document_seed(seed, id)`, so that it gets
    the tokens that `gpt2_np.generate` with that seed gives it alone, with draft=False.

    A call takes a mapping of columns, of which `field` has the texts and `id` the ids. Without `id`
    the text is its own id, and equal texts have equal continuations. It returns all of them with
    n_prompt_tokens, n_tokens, continuation, reason ("length", "stop" or "context") and skipped, the
    reason why a text has no continuation, such as "not finite", or "". With `per_token` comes
    tokens.
    """

    renamed: Mapping[str, str] = {"text": "continuation"}

    def __init__(self, model: str | os.PathLike[str] | Model = "124M", *, n_tokens: int = 40,
                 temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
                 min_p: float | None = None, repetition_penalty: float | None = None,
                 stop: Stop = (), seed: int = 0, batch: int = 32, bos: bool = False,
                 per_token: bool = False, device: backend.DeviceName = "auto",
                 dtype: DtypeName = "float32", tf32: bool = False,
                 field: str = "text", id: str | None = None):  # fmt: skip
        super().__init__(model, device, dtype, tf32, field)
        check_count("n_tokens", n_tokens)
        check_count("seed", seed, 0)
        check_count("batch", batch)
        self.sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        self.n_tokens, self.seed, self.batch = n_tokens, seed, batch
        self.stop, self.bos, self.per_token, self.id = stop_list(stop), bos, per_token, id
        self.columns = {"n_prompt_tokens": "int64", "n_tokens": "int64", "text": "string",
                        "reason": "string"}
        if per_token:
            self.columns["tokens"] = "list int32"

    def check(self, model: Model) -> None:
        start_of_text(model, self.bos)

    def options(self, n_ctx: int) -> dict[str, Any]:
        return {"n_tokens": self.n_tokens, **vars(self.sampling), "stop": list(self.stop),
                "seed": self.seed, "batch": self.batch, "bos": self.bos,
                "per_token": self.per_token}

    def results(self, documents: Sequence[Document]) -> list[Record]:
        model, records = self.model, [{"skipped": "longer than the context"}] * len(documents)
        start, rows = start_and_rows(model, self.bos, documents)
        n_ctx, rows = model.config.n_ctx, [[*start, *row] for row in rows]
        order = sorted((i for i, row in enumerate(rows) if len(row) <= n_ctx),
                       key=lambda i: len(rows[i]))
        for first in range(0, len(order), self.batch):
            here = order[first : first + self.batch]
            found = self.continued(model, [rows[i] for i in here], [documents[i] for i in here])
            for i, record in zip(here, found, strict=True):
                records[i] = record
        return records

    def continued(self, model: Model, prompts: list[Row], documents: list[Document]
                  ) -> list[Record]:
        # A draft's length would depend on the time of a pass, and so would its rounding.
        generation = Generation(
            model, prompts, self.n_tokens, self.stop,
            [document_seed(self.seed, document.id) for document in documents], self.sampling,
            draft=False)
        try:
            for _ in generation:
                pass
        except NotFinite:
            if len(prompts) == 1:
                return [{"skipped": "not finite"}]
            return [record for prompt, document in zip(prompts, documents, strict=True)
                    for record in self.continued(model, [prompt], [document])]
        return [self.record(model.tokenizer, len(prompt), text.continuation, text.ended_by)
                for prompt, text in zip(prompts, generation.texts, strict=True)]

    def record(self, tokenizer: Any, n_prompt: int, tokens: Row, reason: str) -> Record:
        text = cut_at_stop(tokenizer.decode(tokens), stop_strings(self.stop))
        record: Record = {"n_prompt_tokens": n_prompt, "n_tokens": len(tokens), "text": text,
                  "reason": reason}
        return record | ({"tokens": np.array(tokens, np.int32)} if self.per_token else {})


def device_name(xp: Any) -> Literal["cpu", "cuda"]:
    return "cpu" if xp is np else "cuda"


def regex_version() -> str | None:
    """Return the version of the package that splits text, which changes with Unicode's tables."""
    try:
        import regex
    except ImportError:  # ASCII needs none
        return None
    return regex.__version__


def document_seed(seed: int, id: str | int) -> np.random.SeedSequence:
    """Return the seed of a document's draws: that of the run and a hash of the document's id.

    1 and "1" are different ids.
    """
    spelled = f"{type(id).__name__} {id}".encode("utf-8", "surrogatepass")
    words = np.frombuffer(hashlib.sha256(spelled).digest(), "<u4")
    return np.random.SeedSequence([*words.tolist(), int(seed)])


def start_and_rows(
    model: Model, bos: bool, documents: Iterable[Document]
) -> tuple[Row, list[Row]]:
    """Return the ids before every text, and those of each text.

    <|endoftext|> replaces the ids that a tokenizer of Hugging Face's may put there itself.
    """
    tokenizer: Any = model.tokenizer
    own = len(tokenizer.start_ids)
    start = start_of_text(model, bos) or list(tokenizer.start_ids)
    return start, [tokenizer.encode(document.text)[own:] for document in documents]


# --- columns ---------------------------------------------------------------------------


def columns_of(batch: Any) -> dict[str, Any]:
    """Return the columns of a mapping, a DataFrame or a table of pyarrow as lists or arrays."""
    if not (hasattr(batch, "keys") or hasattr(batch, "column_names")):
        raise Error(f"the batch is {shown(batch)}: give a mapping of columns, such as "
                    '{"text": ["To be", "or not"]}')
    names = list(batch.keys()) if hasattr(batch, "keys") else batch.column_names
    return {name: as_list_or_array(batch[name]) for name in names}


def as_list_or_array(values: Any) -> Any:
    for method in ("to_pylist", "to_numpy"):  # of pyarrow and of pandas
        if hasattr(values, method):
            return getattr(values, method)()
    return values


def plain(value: Any) -> Any:
    """Return Python's own number or string for one of NumPy's, so that both have one id."""
    return value.item() if isinstance(value, np.generic) else value


def column(type: str, values: list[Any]) -> Any:
    """Return values of a type of `Work.columns`; those that are None get what stands for it."""
    kind = type.removeprefix("list ")
    if kind != type:
        return [np.empty(0, kind) if value is None else value for value in values]
    if type == "string":
        return [value or "" for value in values]
    none = math.nan if type == "float64" else 0
    return np.array([none if value is None else value for value in values], type)

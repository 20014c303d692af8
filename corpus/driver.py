"""The driver: from input files to a folder of results, by workers that do the missing shards."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal, TypedDict, Unpack

from .. import backend
from ..bpe import shown
from ..checkpoint.loading import pick_device
from ..gpt2_np import Error, Model, namespace
from ..inference.options import SamplingOptions, Stop, check_count
from .documents import Inputs, Shard
from .parquet_files import import_pyarrow
from .processes import ProcessEngine, refuse_to_start_again
from .progress import Progress
from .ray_actors import RayEngine
from .runs import Run, open_run, read_summary, refuse_changes
from .scheduling import Engine, run_shards
from .shard_files import FORMATS, Job
from .summary import MOST_LISTED, reasons_of, write_summary
from .work import Generator, Scorer, Work, device_name

ENGINES = ("processes", "ray")
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class Incomplete(Error):
    """Shards are missing, because each of them failed three times. The message has the reasons."""


class Stopped(KeyboardInterrupt):
    """A run was stopped. The message says how far it came."""


class RunOptions(TypedDict, total=False):
    """Options that `score` and `generate` share, all of them optional."""

    device: backend.DeviceName
    dtype: str
    tf32: bool
    field: str
    id: str | None
    documents: Literal["lines", "files"]
    input_format: str | None
    max_bytes: int
    shard_bytes: int | None
    output_format: Literal["jsonl", "parquet"]
    engine: Literal["processes", "ray"]
    address: str | None
    workers: int | None
    threads: int
    gpus: int
    progress: bool
    command: str | None


class GenerateOptions(RunOptions, SamplingOptions, total=False):
    """Options of `generate` beside its own, all of them optional."""


def score(
    paths: Paths, output: str | os.PathLike[str], model: str | os.PathLike[str] | Model = "124M",
    *, stride: int | None = None, bos: bool = True, per_token: bool = False,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:  # fmt: skip
    """Score every text of some files, and go on with a run that was stopped.

    A program that calls this begins its work under `if __name__ == "__main__":`, because each
    worker process imports it.

    Args:
        paths: a file or several: JSON lines, plain text, each perhaps with .gz, or Parquet.
        output: the folder of the results, a file for each shard of the input.
        model: the name of a model, or a Model. Each worker loads a named one by itself.
        stride, bos, per_token: as in `Scorer`.
        device, dtype, tf32: as in `gpt2_np.load`, but that with Ray "auto" is the CPU. `gpus` ask
            for GPUs. A Model has its own device and dtype.
        field, id, documents, input_format, max_bytes, shard_bytes: as in `Inputs`.
        output_format: "jsonl" or "parquet".
        engine: "processes" of this machine, or "ray", with the `address` of a cluster.
        workers: how many, by default as many as cores allow. They do not change the results.
        threads: of BLAS in each worker. Their number changes the last digits.
        gpus: use this many GPUs, with a worker for each.
        progress: show a bar on standard error.
        command: words that go on with this run, for `status`.

    Returns:
        The content of summary.json.

    Raises:
        Incomplete: shards failed three times each. All others are done.
        Error: an option or an input is wrong, no document has a text, the folder is in use, or is
            of a run with something changed, or nothing can go on, as on a full disk.
        Stopped: a KeyboardInterrupt that says how far the run came.
    """
    given: dict[str, Any] = {**options}
    work = Scorer(model, stride=stride, bos=bos, per_token=per_token,
                  **pop_model(given, model))
    return run(work, pop_inputs(paths, given), output, **given)


def generate(
    paths: Paths, output: str | os.PathLike[str], model: str | os.PathLike[str] | Model = "124M",
    *, n_tokens: int = 40, stop: Stop = (), seed: int = 0, batch: int = 32, bos: bool = False,
    per_token: bool = False, **options: Unpack[GenerateOptions],
) -> dict[str, Any]:  # fmt: skip
    """Continue every text of some files, and go on with a run that was stopped.

    Args:
        n_tokens, stop, seed, batch, bos, per_token: as in `Generator`.
        temperature, top_k, top_p, min_p, repetition_penalty: as in `gpt2_np.generate`.

    All else, results and errors too, is as in `score`.
    """
    given: dict[str, Any] = {**options}
    work = Generator(model, n_tokens=n_tokens, stop=stop, seed=seed, batch=batch, bos=bos,
                     per_token=per_token, **pop(given, *SamplingOptions.__annotations__),
                     **pop_model(given, model))
    return run(work, pop_inputs(paths, given, least_shard_bytes=2**16), output, **given)


# --- options ---------------------------------------------------------------------------


def pop(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Take some options out of others, if they are given."""
    return {name: options.pop(name) for name in names if name in options}


def check_workers(*, device: str = "auto", engine: str = "processes", address: str | None = None,
                  workers: int | None = None, threads: int = 1, gpus: int = 0, **_: Any) -> None:
    """Raise Error, which begins with an option's name, unless these options go together."""
    if engine not in ENGINES:
        raise Error(f"engine is {shown(engine)}: choose one of {', '.join(ENGINES)}")
    if address is not None and engine != "ray":
        raise Error(f"address is {shown(address)}, that of a Ray cluster: it needs engine ray")
    check_count("threads", threads)
    check_count("gpus", gpus, 0)
    if workers is not None:
        check_count("workers", workers)
    if gpus and workers not in (None, gpus):
        raise Error(f"workers is {workers}, but each of {gpus} GPUs has one: leave it out")
    if gpus and device == "cpu":
        raise Error(f"gpus is {gpus}, which does not go with device cpu")


def pop_model(options: dict[str, Any], model: Any) -> dict[str, Any]:
    """Take the options of the model. The device is the one that workers use."""
    check_workers(**options)
    taken = {"device": "auto", **pop(options, "device", "dtype", "tf32")}
    if isinstance(model, Model):
        if options.get("gpus") or taken["device"] != "auto" or "dtype" in taken:
            raise Error("gpus, device or dtype is given beside a Model, which has its own: leave "
                        "it out, or give the model's name")
        taken["device"] = device_name(namespace(model.params["wte"]))
    elif options.get("gpus"):
        taken["device"] = "cuda"
    elif taken["device"] == "auto":
        by_ray = options.get("engine") == "ray"
        taken["device"] = "cpu" if by_ray else device_name(pick_device("auto"))
    return taken


def pop_inputs(paths: Any, options: dict[str, Any], least_shard_bytes: int = 2**18) -> Inputs:
    """Take the options of the inputs."""
    given = pop(options, "field", "id", "documents", "input_format", "max_bytes", "shard_bytes")
    return Inputs(paths, **given, least_shard_bytes=least_shard_bytes)


def make_engine(
    job: Job, engine: str, address: str | None, workers: int | None, threads: int, gpus: int
) -> Engine:
    if engine == "ray":
        return RayEngine(job, workers, threads=threads, gpus=gpus, address=address)
    if getattr(job.work, "device", "cpu") == "cuda":
        default = gpus or 1  # a second worker would only compete for the card
    else:
        usable = getattr(os, "sched_getaffinity", None)
        cores = len(usable(0)) if usable else os.cpu_count() or 1
        default = max(1, cores // threads)
    return ProcessEngine(job, workers or default, threads, gpus)


# --- the run ---------------------------------------------------------------------------


def run(
    work: Work, inputs: Inputs, output: str | os.PathLike[str], *, output_format: str = "jsonl",
    engine: str = "processes", address: str | None = None, workers: int | None = None,
    threads: int = 1, gpus: int = 0, progress: bool = False, command: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Do the shards that are missing and return the summary. Options are as in `score`."""
    refuse_to_start_again()
    if output_format not in FORMATS:
        raise Error(f"output_format is {shown(output_format)}: choose one of {', '.join(FORMATS)}")
    if output_format == "parquet":
        import_pyarrow("output_format='parquet'")  # one sentence if it is not installed
    if not os.fspath(output):
        raise Error("output is '': name a folder")
    folder = os.path.abspath(output)
    job = Job(inputs.for_worker(), work, folder, output_format)
    options = {**vars(inputs), "threads": threads, "output_format": output_format}
    del options["paths"]
    fingerprint = {"options": options, **work.fingerprint(), "inputs": inputs.fingerprint()}
    bar = Progress(quiet=not progress)
    with open_run(folder, fingerprint, output_format, command) as state:
        shards, failures = Missing(state, inputs, bar), {}
        if (first := next(shards.to_do, None)) is not None:
            bar.start(inputs.n_bytes())
            with stopping(state), contextlib.closing(bar), contextlib.closing(
                    make_engine(job, engine, address, workers, threads, gpus)) as at_work:
                failures = run_shards(at_work, chain([first], shards.to_do), bar.add, bar.say)
        elif not shards.problem and (summary := read_summary(folder)) and summary["complete"]:
            return checked(summary, inputs, state)
        if shards.problem:  # what cannot be read counts as one more shard
            failures[shards.n] = shards.problem
        try:
            now = inputs.fingerprint()
        except Error:
            if not failures:
                raise
            now = fingerprint["inputs"]  # an input is gone, and its shards failed
        refuse_changes(folder, fingerprint, fingerprint | {"inputs": now})
        summary = write_summary(job, shards.n + bool(shards.problem), failures)
        if summary["complete"]:
            return checked(summary, inputs, state)
    missing = summary["missing_shards"]
    n = missing["n_shards"] - bool(shards.problem)
    reasons = "; ".join(f"shard {shard['shard']}: {shard['reason']}"
                        for shard in missing[f"first_{MOST_LISTED}"][: min(n, 3)])
    sentences = [shards.problem] if shards.problem else []
    if n:
        sentences.insert(0, f"{n} of {shards.n} shards are missing ({reasons}{'; ...' * (n > 3)}): "
                            "the same command tries them again")
    raise Incomplete(". ".join(sentences))


def checked(summary: dict[str, Any], inputs: Inputs, state: Run) -> dict[str, Any]:
    """Return a summary. Raises Error if all documents were skipped, and leaves the folder as new.

    So the next command may have another field, or other inputs.
    """
    skipped = summary["skipped"]
    if skipped["n_documents"] < summary["n_documents"]:
        return summary
    state.forget()
    wrong = [f"{name} is {shown(getattr(inputs, name))}, name another"
             for name, reason in (("field", "no such field"), ("id", "no id"))
             if reason in skipped["reasons"]]
    raise Error(f"nothing could be done: {skipped['n_documents']:,} of {summary['n_documents']:,} "
                f"documents were skipped ({reasons_of(skipped) or 'there are none'}): "
                + (" and ".join(wrong) or "give other inputs"))


class Missing:
    """The shards that are not done. Notes how many there are in all."""

    def __init__(self, state: Run, inputs: Inputs, bar: Progress):
        self.n = state.n_shards or 0
        self.problem = ""  # why the inputs could not be read to their end
        self.to_do = iter(()) if state.is_complete else self.find(state, inputs, bar)

    def find(self, state: Run, inputs: Inputs, bar: Progress) -> Iterator[Shard]:
        if (n_shards := inputs.n_shards()) is not None:
            state.note_shards(n_shards)
        self.n = 0
        try:
            for shard in inputs.shards():
                self.n += 1
                if shard.number in state.done:
                    bar.skip(shard.n_bytes)
                else:
                    yield shard
        except Error as error:  # a damaged file: all that can be read came before
            self.problem = str(error)
        else:
            state.note_shards(self.n)


@contextlib.contextmanager
def stopping(state: Run) -> Iterator[None]:
    """Say how far a run came if it ends before its end."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(f"stopped: {state.look_again()}; the same command goes on") from stop
    except Error as error:
        how_far = state.look_again()
        if not state.done:
            state.forget()  # perhaps an option is wrong, and the next command has another
            raise
        raise Error(f"{error}. {how_far}: the same command goes on") from error

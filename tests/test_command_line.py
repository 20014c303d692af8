"""The command line as its user meets it: `main` in this process, or a process of its own."""
import ast
import contextlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from make_checkpoints import write_tensorflow
from random_model import TINY, random_params
from server import Server
from small_model import save_small_model

import gpt2_np
from gpt2_np import backend, bpe, checkpoint, command_line
from gpt2_np import gpt2_np as reference
from gpt2_np.cuda import products
from gpt2_np.inference import drafts, generation

ROOT = Path(gpt2_np.__file__).parent
PROMPT = "The café at the"
posix = pytest.mark.skipif(os.name != "posix", reason="Windows has other pipes and terminals")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory):
    """A model with a context so long that a test can look before its text ends."""
    return str(save_small_model(tmp_path_factory.mktemp("models") / "long", n_ctx=40_000))


@pytest.fixture(scope="module")
def model(folder):
    return gpt2_np.load(folder, "cpu")


@pytest.fixture
def run(capsys):
    """A function that runs a command line and returns its exit status, stdout and stderr."""

    def run(*arguments):
        status = gpt2_np.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def standard_input(monkeypatch):
    return lambda data: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


@contextlib.contextmanager
def start(*arguments, **options):
    """Start `python gpt2_np.py` as a process that is killed at the end or after a minute."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, ROOT / "gpt2_np.py", *arguments]
    with subprocess.Popen(command, **{**pipes, **options}) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def run_to_end(*arguments, data=None, **options):
    """Return the exit status, stdout and stderr of a process, in bytes."""
    with start(*arguments, **options) as process:
        output = process.communicate(data)
    return process.returncode, *output


# --- generating ------------------------------------------------------------------------


def test_the_output_is_the_prompt_and_forty_greedy_tokens(run, folder, model):
    continuation = gpt2_np.complete(model, PROMPT, n_tokens=40)
    assert len(model.tokenizer.encode(continuation)) >= 20
    assert run(PROMPT, "-m", folder) == (0, PROMPT + continuation + "\n", "")


def test_the_default_model_is_124m_in_float32(run, monkeypatch):
    loaded = []

    def load(*arguments):
        loaded.extend(arguments)
        raise gpt2_np.Error("not here")

    monkeypatch.setattr(checkpoint, "load", load)
    assert run("Hello") == (1, "", "gpt2_np: not here\n")
    assert loaded == ["124M", "auto", "float32"]


def test_device_and_dtype_reach_the_model(run, folder, monkeypatch):
    loaded, load = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda *a: loaded.extend(a) or load(*a))
    assert run(PROMPT, "-m", folder, "--device", "cpu", "--dtype", "float64")[0] == 0
    assert loaded == [folder, "cpu", "float64"]


def test_no_draft_makes_the_same_text_one_token_at_a_time(run, folder, monkeypatch):
    expected = run("the café the café the", "-m", folder, "-n", 20)

    def propose(drafts, room):
        raise AssertionError("a draft was proposed")

    monkeypatch.setattr(drafts.Drafts, "propose", propose)
    assert run("the café the café the", "-m", folder, "-n", 20, "--no-draft") == expected
    with pytest.raises(AssertionError, match="a draft was proposed"):
        run("the café the café the", "-m", folder, "-n", 20)


def test_no_echo_prints_the_continuation_alone(run, folder, model):
    continuation = gpt2_np.complete(model, PROMPT, n_tokens=7)
    assert run(PROMPT, "-m", folder, "-n", 7, "--no-echo") == (0, continuation + "\n", "")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--temperature", "2"], {}),
        (["--temperature", "2", "--top-k", "2"], {"top_k": 2}),
        (["--temperature", "2", "--top-p", "0.3"], {"top_p": 0.3}),
        (["--temperature", "2", "--min-p", "0.2"], {"min_p": 0.2}),
        (["--temperature", "2", "--repetition-penalty", "3"], {"repetition_penalty": 3.0}),
    ],
)
def test_sampling_options_reach_the_generator(run, folder, model, arguments, options):
    def text(**options):
        continuation = gpt2_np.complete(model, PROMPT, 15, temperature=2.0, seed=5, **options)
        return PROMPT + continuation + "\n"

    assert run(PROMPT, "-m", folder, "-n", 15, "--seed", 5, *arguments) == (0, text(**options), "")
    assert not options or text(**options) != text()


def test_a_text_is_repeated_only_with_a_seed(run, folder):
    def text(*seed):
        return run(PROMPT, "-m", folder, "--temperature", 2, *seed)[1]

    assert text("--seed", 1) == text("--seed", 1) != text("--seed", 2)
    assert text() != text()


def test_samples_equal_those_of_generate_batch(run, folder, model):
    tokens = model.tokenizer.encode(PROMPT)
    rows = gpt2_np.generate_batch(model, [tokens] * 3, 8, temperature=1.5, seed=7)
    texts = [PROMPT + model.tokenizer.decode(row) for row in rows]
    assert len(set(texts)) == 3
    arguments = ["-m", folder, "-n", 8, "--temperature", 1.5, "--seed", 7]
    assert run(PROMPT, "--samples", 3, *arguments) == (0, "\n---\n".join(texts) + "\n", "")
    assert run(PROMPT, *arguments)[1] == texts[0] + "\n"


def test_beams_prints_the_texts_that_beam_search_finds(run, folder, model):
    tokens = model.tokenizer.encode(PROMPT)
    found = gpt2_np.beam_search(model, tokens, 9, n_beams=4, n_results=2)
    texts = [model.tokenizer.decode(beam.tokens) for beam in found]
    assert texts[0] != gpt2_np.complete(model, PROMPT, 9) and texts[0] != texts[1]
    arguments = [PROMPT, "-m", folder, "-n", 9, "--beams", 4]
    assert run(*arguments) == (0, PROMPT + texts[0] + "\n", "")
    both = "\n---\n".join(PROMPT + text for text in texts) + "\n"
    assert run(*arguments, "--samples", 2) == (0, both, "")
    result = json.loads(run(*arguments, "--samples", 2, "--json")[1])
    assert (result["beams"], result["prompt_tokens"], "seed" in result) == (4, tokens, False)
    assert result["samples"] == [{"text": text, **vars(beam)}
                                 for text, beam in zip(texts, found, strict=True)]


def test_beams_end_before_a_stop_text_and_at_n_ctx_with_a_notice(run, folder, model):
    [beam] = gpt2_np.beam_search(model, model.tokenizer.encode(PROMPT), 20)
    text = model.tokenizer.decode(beam.tokens)
    out = run(PROMPT, "-m", folder, "--no-echo", "--beams", 1, "--stop", text[5:7])[1]
    assert text[5:7] not in out
    err = run(PROMPT, "-m", folder, "-n", 1000, "--beams", 2)[2]
    assert err == "gpt2_np: stopped at n_ctx = 64 positions\n"


@pytest.mark.parametrize("samples", [[], ["--samples", "2", "--temperature", "1e-9"]])
def test_a_text_ends_before_a_stop_text(run, folder, model, samples):
    continuation = gpt2_np.complete(model, PROMPT)
    stop = continuation[12:15]  # it crosses the border of two tokens
    expected = PROMPT + continuation[: continuation.index(stop)]
    status, out, err = run(PROMPT, "-m", folder, "--stop", "not there", "--stop", stop, *samples)
    assert (status, err) == (0, "")
    assert out == (f"{expected}\n---\n{expected}\n" if samples else f"{expected}\n")


def test_end_of_text_in_prompt_and_stop_means_the_special_token(run, folder, model, monkeypatch):
    seen = {}

    class Spy(generation.Generation):
        def __init__(self, model, prompts, n_tokens, stop, *rest):
            seen.update(tokens=prompts[0], stop=stop)
            super().__init__(model, prompts, n_tokens, stop, *rest)

    monkeypatch.setattr(generation, "Generation", Spy)
    end = model.tokenizer.end_of_text
    assert run("<|endoftext|>The", "-m", folder, "--stop", "<|endoftext|>")[0] == 0
    assert seen == {"tokens": [end, *model.tokenizer.encode("The")], "stop": [end]}


def test_a_full_context_ends_the_text_with_a_notice(run, folder, model):
    for samples in [], ["--samples", "2", "--temperature", "1"]:
        status, out, err = run(PROMPT, "-m", folder, "-n", 1000, *samples)
        assert status == 0
        assert out.startswith(PROMPT)
        assert err == "gpt2_np: stopped at n_ctx = 64 positions\n"


def replace_generation(monkeypatch, tokens):
    """Make generation yield the tokens of `tokens()` instead of the model's."""

    class FixedGeneration(generation.Generation):
        reasons = ("length",)

        def __init__(self, *arguments):
            pass

        def __iter__(self):
            return ((0, token) for token in tokens())

    monkeypatch.setattr(generation, "Generation", FixedGeneration)


def test_output_is_written_in_whole_characters(folder, model, monkeypatch):
    text = " — naïve 🦙, 你好"
    id_of = {model.tokenizer.token_bytes(id): id for id in range(256)}
    tokens = [id_of[bytes([byte])] for byte in text.encode()]

    class Pieces(io.StringIO):
        def write(self, piece):
            pieces.append(piece)

    pieces = []
    replace_generation(monkeypatch, lambda: tokens)
    monkeypatch.setattr("sys.stdout", Pieces())
    assert gpt2_np.main([PROMPT, "-m", folder]) == 0
    assert [piece for piece in pieces if piece] == [PROMPT, *text, "\n"]


def test_a_possible_beginning_of_a_stop_text_is_held_back(folder, model, monkeypatch):
    def tokens():
        for character in "one.\ntwo.\n\nthree":
            yield from model.tokenizer.encode(character)
            generated.append(character)

    class Screen(io.StringIO):
        def write(self, piece):
            shown.append(("".join(generated), piece))

    generated, shown = [], []
    replace_generation(monkeypatch, tokens)
    monkeypatch.setattr("sys.stdout", Screen())
    assert gpt2_np.main([PROMPT, "-m", folder, "--stop", ".\n\n"]) == 0
    assert "".join(piece for _, piece in shown) == PROMPT + "one.\ntwo\n"
    assert ("one.\n", ".\nt") in shown  # printed as soon as "t" rules out the stop text
    assert "three" not in "".join(generated)  # nothing is computed after the stop


def test_prompts_come_from_a_file_or_standard_input(run, folder, tmp_path, standard_input):
    prompt = PROMPT + "\r\n\tcorner"
    file = tmp_path / "prompt.txt"
    file.write_bytes(prompt.encode())
    expected = run(prompt, "-m", folder)
    assert expected[1].startswith(prompt)
    assert run("--file", file, "-m", folder) == expected
    standard_input(prompt.encode())
    assert run("-", "-m", folder) == expected


def test_json_holds_the_same_text_as_plain_output(run, folder, model):
    arguments = [PROMPT, "-m", folder, "-n", 9, "--temperature", 2, "--seed", 3]
    status, out, err = run(*arguments, "--json")
    result = json.loads(out)
    (sample,) = result["samples"]
    assert (status, err, out.count("\n")) == (0, "", 1)
    assert PROMPT + sample["text"] + "\n" == run(*arguments)[1]
    assert model.tokenizer.decode(sample["tokens"]) == sample["text"]
    assert (len(sample["tokens"]), sample["ended_by"]) == (9, "length")
    assert result["prompt"] == model.tokenizer.decode(result["prompt_tokens"]) == PROMPT
    assert (result["model"], result["seed"], result["temperature"]) == (folder, 3, 2.0)


def test_json_names_the_drawn_seed_and_the_reason_for_ending(run, folder):
    arguments = [PROMPT, "-m", folder, "--json", "--temperature", 2, "--samples", 3, "-n", 500]
    first = json.loads(run(*arguments)[1])
    again = json.loads(run(*arguments, "--seed", first["seed"])[1])
    assert again == first
    assert [sample["ended_by"] for sample in first["samples"]] == ["context"] * 3
    stop = first["samples"][1]["text"][5:8]
    stopped = json.loads(run(*arguments, "--seed", first["seed"], "--stop", stop)[1])
    assert stopped["samples"][1]["ended_by"] == "stop"
    assert stop not in stopped["samples"][1]["text"]


# --- scoring ---------------------------------------------------------------------------


def test_score_is_the_log_probability_of_each_token_after_end_of_text(run, folder, model):
    """The table and the totals are those of log-softmax in float64, by the definition."""
    text = PROMPT + " 🦙 corner"
    tokens = model.tokenizer.encode(text)
    inputs = [model.tokenizer.end_of_text, *tokens]
    logits = gpt2_np.forward(model.params, model.config, inputs).astype(float)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    log_p = log_p[np.arange(len(tokens)), tokens]

    status, out, err = run(text, "-m", folder, "--score")
    header, *rows, counts, totals = out.splitlines()
    assert (status, err, header.split()) == (0, "", ["token", "log", "p", "text"])
    assert [int(row.split()[0]) for row in rows] == tokens
    assert [float(row.split()[1]) for row in rows] == pytest.approx(log_p, abs=1e-4)
    assert b"".join(unquoted(row.split(maxsplit=2)[2]) for row in rows) == text.encode()
    assert counts.startswith(f"{len(tokens)} tokens")
    assert f"{len(text.encode())} bytes" in counts

    result = json.loads(run(text, "-m", folder, "--score", "--json")[1])
    loss, bits = -log_p.mean(), -log_p.sum() / math.log(2) / len(text.encode())
    assert [row["token"] for row in result["tokens"]] == tokens
    assert [row["log_p"] for row in result["tokens"]] == pytest.approx(log_p, abs=1e-5)
    assert result["n_bytes"] == len(text.encode())
    assert result["loss_nats_per_token"] == pytest.approx(loss, abs=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(bits, abs=1e-5)
    assert totals == (
        f"loss {loss:.4f} nats per token, perplexity {math.exp(loss):.2f}, "
        f"{bits:.4f} bits per byte"
    )


def unquoted(quoted):
    """Return the bytes of a token, which is quoted as text, or as bytes of half a character."""
    value = ast.literal_eval(quoted)
    return value if isinstance(value, bytes) else value.encode()


def test_score_reads_a_file_longer_than_the_context(run, folder, model, tmp_path):
    text = (PROMPT + " corner of the street. ") * 20
    tokens = model.tokenizer.encode(text)
    assert len(tokens) > 2 * model.config.n_ctx
    file = tmp_path / "long.txt"
    file.write_text(text, encoding="utf-8")
    result = json.loads(run("--file", file, "-m", folder, "--score", "--json")[1])
    log_p = gpt2_np.score(model, [model.tokenizer.end_of_text, *tokens])
    assert [row["log_p"] for row in result["tokens"]] == pytest.approx(log_p.tolist())


def test_a_token_before_every_text_is_not_put_there_twice(run, folder, tmp_path):
    """Scores are those of the same tokenizer without add_bos_token."""
    expected = run(PROMPT, "-m", folder, "--score")
    changed = shutil.copytree(folder, tmp_path / "changed")
    (changed / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert run(PROMPT, "-m", changed, "--score") == expected
    assert "the first after <|endoftext|>" in expected[1]


def test_a_token_without_a_row_is_named(run, folder, model, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "changed")
    n_rows = model.config.n_vocab
    (changed / "added_tokens.json").write_text(json.dumps({"[PAD]": n_rows}))
    assert run("the [PAD]", "-m", changed, "-n", 1) == (1, "", (
        f"gpt2_np: '[PAD]' is token {n_rows}, but the model's embedding has {n_rows} rows: leave "
        "it out\n"))  # fmt: skip
    assert run("the corner", "-m", changed, "-n", 1) == run("the corner", "-m", folder, "-n", 1)


@pytest.mark.filterwarnings("default")
def test_a_tokenizer_that_is_not_understood_is_explained(run, folder, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "changed")
    (changed / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    status, out, err = run("the", "-m", changed)
    warning, error = err.splitlines()
    assert (status, out) == (1, "")
    assert "tokenizer_class is 'LlamaTokenizer', expected GPT2Tokenizer" in warning
    assert error.startswith(f"gpt2_np: {changed} has no tokenizer that can be used: ")


# --- the cost of a model ---------------------------------------------------------------

PUBLISHED = {"124M": 124439808, "355M": 354823168, "774M": 774030080, "1558M": 1557611200}


@pytest.mark.parametrize("size", PUBLISHED)
def test_info_of_every_size_needs_no_files(run, size, monkeypatch):
    monkeypatch.setattr(checkpoint, "load", None)
    status, out, err = run("--info", "-m", size, "--json")
    about = json.loads(out)
    config = gpt2_np.SIZES[size]
    width, layers = config.n_embd, config.n_layer
    assert (status, err) == (0, "")
    assert about["config"] == vars(config)
    assert about["parameters"]["total"] == PUBLISHED[size]
    assert sum(about["parameters"].values()) == 2 * PUBLISHED[size]
    assert about["parameters"]["MLP"] == layers * (8 * width * width + 5 * width)
    assert about["parameters"]["attention"] == layers * (4 * width * width + 4 * width)
    assert about["bytes"] == 4 * PUBLISHED[size]
    assert about["cache_bytes_per_token"] == layers * 2 * width * 4  # a key and a value, float32
    assert about["cache_bytes_at_n_ctx"] == 1024 * about["cache_bytes_per_token"]

    table = run("--info", "-m", size)[1]
    assert size in table.splitlines()[0]
    figures = [about[key] for key in about if key.startswith(("bytes", "cache", "flops"))]
    for figure in [*about["parameters"].values(), *figures]:
        assert f" {figure:,} " in table


def test_info_in_float64_counts_twice_the_bytes(run):
    single, double = (json.loads(run("--info", "--json", "--dtype", dtype)[1])
                      for dtype in ("float32", "float64"))
    for key in "bytes", "cache_bytes_per_token", "cache_bytes_at_n_ctx":
        assert double[key] == 2 * single[key]
    assert double["flops_per_token_first"] == single["flops_per_token_first"]


@pytest.mark.parametrize(("key", "before"), [("first", 0), ("at_n_ctx", TINY.n_ctx - 1)])
def test_operations_per_token_are_those_of_the_forward_pass(monkeypatch, key, before):
    """Every product of the forward pass of one token is counted."""
    params, cache, operations = random_params(TINY), gpt2_np.KVCache(TINY), []
    if before:
        gpt2_np.forward(params, TINY, [1] * before, cache)
    einsum = reference.einsum

    def counting(specification, left, right):
        if specification != "bqd,bqd->bq":  # the variance of a layer norm
            axes = "".join(specification.partition("->")[0].split(","))
            sizes = dict(zip(axes, left.shape + right.shape, strict=True))
            operations.append(2 * math.prod(sizes.values()))
        return einsum(specification, left, right)

    monkeypatch.setattr(reference, "einsum", counting)
    gpt2_np.forward(params, TINY, [1], cache)
    assert gpt2_np.describe(TINY)[f"flops_per_token_{key}"] == sum(operations)


def test_info_of_a_folder_reads_its_sizes(run, folder, model):
    about = json.loads(run("--info", "-m", folder, "--json")[1])
    assert about["config"] == vars(model.config)
    assert about["bytes"] == 4 * about["parameters"]["total"]
    arrays = (Path(folder) / "model.safetensors").stat().st_size
    assert 0 < arrays - about["bytes"] < 5000  # the file has a header beside the arrays


# --- downloading -----------------------------------------------------------------------


def test_download_prints_the_folder_and_later_runs_need_no_network(
    run, folder, model, tmp_path, monkeypatch
):
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path))
    with Server(folder) as server:
        status, out, err = run("--download", "-m", server.url)
        assert status == 0
        (printed,) = out.splitlines()
        (weights,) = tmp_path.rglob("model.safetensors")
        assert Path(printed).samefile(weights.parent)
        assert server.url in err
        n_requests = len(server.log)
        assert run("--download", "-m", server.url) == (0, out, "")
    text = PROMPT + gpt2_np.complete(model, PROMPT) + "\n"
    assert run(PROMPT, "-m", server.url) == (0, text, "")
    assert len(server.log) == n_requests


# --- saving ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", checkpoint.SAVED_DTYPES)
def test_save_converts_a_checkpoint_and_prints_its_folder(run, model, tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    write_tensorflow("source", model.config, tokenizer=False)
    model.tokenizer.save("source")
    assert run("-m", "source", "--save", "new/saved", "--dtype", dtype) == (
        0, f"{tmp_path / 'new' / 'saved'}\n", "")  # fmt: skip
    gpt2_np.save(gpt2_np.load("source", "cpu"), "expected", dtype)
    found, expected = ({file.name: file.read_bytes() for file in Path(folder).iterdir()}
                       for folder in ("new/saved", "expected"))
    assert found == expected
    continuation = gpt2_np.complete(gpt2_np.load("expected", "cpu"), PROMPT)
    assert run(PROMPT, "-m", "new/saved") == (0, PROMPT + continuation + "\n", "")


def test_save_refuses_a_folder_that_exists_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "load", None)
    for path, message in (tmp_path, "exists: give the path of a new"), ("", "give a path of a new"):
        status, out, err = run("--save", path)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert message in err


def test_save_needs_no_vocabulary(run, folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in "config.json", "model.safetensors":
        shutil.copy(Path(folder) / name, bare)
    assert run("-m", bare, "--save", tmp_path / "saved")[0] == 0
    assert gpt2_np.load(tmp_path / "saved", "cpu").tokenizer is None


# --- errors ----------------------------------------------------------------------------

USAGE = {
    "no prompt": ([], "python -m gpt2_np"),
    "two texts": ([PROMPT, "--file", "x"], "a prompt and --file"),
    "a prompt for info": ([PROMPT, "--info"], "a prompt and --info"),
    "a file for info": (["--file", "x", "--info"], "--file and --info"),
    "a prompt for a conversation": ([PROMPT, "--interactive"], "a prompt and --interactive"),
    "two jobs": (["--score", "--info"], "--score and --info"),
    "json and a conversation": (["--interactive", "--json"], "not with --interactive"),
    "samples and score": ([PROMPT, "--score", "--samples", "2", "--temperature", "1"], "--score"),
    "sampling and score": ([PROMPT, "--score", "--top-p", "0.9"], "--top-p goes with generating"),
    "a stop and score": ([PROMPT, "--score", "--stop", "x"], "--stop goes with generating"),
    "tokens and info": (["--info", "-n", "3"], "--tokens goes with generating, not with --info"),
    "no draft and download": (["--download", "--no-draft"], "--no-draft goes with generating"),
    "beams and score": ([PROMPT, "--score", "--beams", "2"], "--beams goes with generating, not"),
    "beams and a conversation": (["--interactive", "--beams", "2"], "not with --interactive"),
    "beams and temperature": ([PROMPT, "--beams", "2", "--temperature", "1"],
                              "--temperature does not go with --beams, which looks for the most"),
    "beams and top-k": ([PROMPT, "--beams", "2", "--top-k", "3"], "--top-k does not go with"),
    "beams and a seed": ([PROMPT, "--beams", "2", "--seed", "0"], "--seed does not go with"),
    "beams and drafts": ([PROMPT, "--beams", "2", "--no-draft"], "--no-draft does not go with"),
    "no beams": ([PROMPT, "--beams", "0"], "--beams is 0: it must be at least 1"),
    "samples above beams": ([PROMPT, "--beams", "2", "--samples", "3"], "at most --beams, 2"),
    "greedy samples": ([PROMPT, "--samples", "2"], "--temperature above 0"),
    "no samples": ([PROMPT, "--samples", "0"], "at least 1"),
    "tokens below 0": ([PROMPT, "-n", "-1"], "at least 0"),
    "tokens in words": ([PROMPT, "-n", "many"], "'many'"),
    "temperature below 0": ([PROMPT, "--temperature", "-1"], "--temperature is -1.0"),
    "temperature not a number": ([PROMPT, "--temperature", "nan"], "temperature is nan"),
    "device and info": (["--info", "--device", "cuda"], "--device goes with running a model, not"),
    "device and download": (["--download", "--device", "cpu"], "--device goes with running"),
    "verbose and info": (["--info", "--verbose"], "--verbose goes with running a model, not with"),
    "tf32 and download": (["--download", "--tf32"], "--tf32 goes with running a model"),
    "dtype and download": (["--download", "--dtype", "float64"], "--dtype goes with running"),
    "device and save": (["--save", "x", "--device", "cpu"], "--device goes with running a model"),
    "tokens and save": (["--save", "x", "-n", "3"], "--tokens goes with generating, not with"),
    "json and save": (["--save", "x", "--json"], "not with --save"),
    "a prompt and save": ([PROMPT, "--save", "x"], "a prompt and --save do not go together"),
    "save and download": (["--save", "", "--download"], "--download and --save are different"),
    "float64 and save": (["--save", "x", "--dtype", "float64"], "choose float32 or float16 or bfl"),
    "bfloat16 to run": ([PROMPT, "--dtype", "bfloat16"], "--dtype bfloat16 goes with --save"),
    "bfloat16 and info": (["--info", "--dtype", "bfloat16"], "--dtype bfloat16 goes with --save"),
    "json and no echo": ([PROMPT, "--json", "--no-echo"], "leave --no-echo out"),
    "top-k of 0": ([PROMPT, "--top-k", "0"], "error: --top-k is 0"),
    "top-p of 0": ([PROMPT, "--top-p", "0"], "error: --top-p is 0.0"),
    "top-p above 1": ([PROMPT, "--top-p", "1.5"], "error: --top-p is 1.5"),
    "top-k and greedy": ([PROMPT, "--top-k", "3"], "--top-k needs --temperature above 0"),
    "min-p above 1": ([PROMPT, "--min-p", "2"], "error: --min-p is 2.0"),
    "penalty of 0": ([PROMPT, "--repetition-penalty", "0"], "--repetition-penalty is 0.0"),
    "seed below 0": ([PROMPT, "--seed", "-1"], "--seed is -1"),
    "an empty stop": ([PROMPT, "--stop", ""], "error: --stop holds ''"),
    "unknown device": ([PROMPT, "--device", "tpu"], "'tpu'"),
    "unknown dtype": ([PROMPT, "--dtype", "int8"], "'int8'"),
    "unknown option": ([PROMPT, "--fast"], "--fast"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_is_reported_in_one_sentence_before_anything_is_loaded(run, monkeypatch, case):
    arguments, expected = USAGE[case]
    monkeypatch.setattr(checkpoint, "load", None)
    status, out, err = run(*arguments)
    usage, sentence = err.splitlines()
    assert (status, out) == (2, "")
    assert usage == "usage: python -m gpt2_np [options] [prompt]"
    assert sentence.startswith("python -m gpt2_np: error: ")
    assert expected in sentence


BAD_INPUT = {
    "an empty prompt": ([""], "the prompt is empty: give"),
    "an empty file": (["--file", "empty.txt"], "empty.txt is empty: give"),
    "no such file": (["--file", "none.txt"], "none.txt cannot be read: No such file"),
    "a folder as file": (["--file", "."], ". cannot be read: Is a directory"),
    "a file in Latin-1": (["--file", "latin.txt"], "latin.txt is not UTF-8 text, byte 7 is 0xe9"),
    "a prompt too long": (["the " * 70], "n_ctx is 64"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_reported_in_one_sentence(run, folder, tmp_path, monkeypatch, case):
    arguments, expected = BAD_INPUT[case]
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes("The café".encode("latin-1"))
    status, out, err = run(*arguments, "-m", folder)
    assert (status, out) == (1, "")
    assert err.startswith("gpt2_np: ")
    assert (err.count("\n"), err[-1]) == (1, "\n")
    assert expected in err


def test_a_byte_order_mark_is_not_part_of_the_text(run, folder, tmp_path, standard_input):
    file = tmp_path / "marked.txt"
    file.write_bytes(b"\xef\xbb\xbf" + PROMPT.encode())
    for job in [], ["--score"]:
        expected = run(PROMPT, "-m", folder, *job)
        assert run("--file", file, "-m", folder, *job) == expected
        standard_input(file.read_bytes())
        assert run("-", "-m", folder, *job) == expected
    file.write_bytes(b"\xef\xbb\xbf")
    assert "marked.txt is empty" in run("--file", file, "-m", folder)[2]


def test_standard_input_that_is_not_utf_8_is_reported_in_one_sentence(run, folder, standard_input):
    standard_input(b"The caf\xe9")
    sentence = "standard input is not UTF-8 text, byte 7 is 0xe9: convert it to UTF-8"
    assert run("-", "-m", folder) == (1, "", f"gpt2_np: {sentence}\n")
    standard_input(b"")
    assert "standard input is empty" in run("-", "-m", folder)[2]


@pytest.mark.parametrize("argument", ["-", "--interactive"])
def test_closed_standard_input_is_reported_in_one_sentence(run, monkeypatch, folder, argument):
    monkeypatch.setattr(sys, "stdin", None)
    status, out, err = run(argument, "-m", folder)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "standard input is closed" in err


@posix
def test_closed_standard_output_is_reported_in_one_sentence(folder):
    status, _, err = run_to_end(PROMPT, "-m", folder, stdout=None, preexec_fn=lambda: os.close(1))
    assert (status, err.count(b"\n")) == (1, 1)
    assert b"standard output is closed" in err


@pytest.mark.parametrize("job", [[PROMPT], ["--score", PROMPT], ["--info"]])
def test_any_job_reports_that_there_is_no_standard_output(folder, monkeypatch, capsys, job):
    """Python has none if it starts with a closed one."""
    monkeypatch.setattr(sys, "stdout", None)
    assert gpt2_np.main([*job, "-m", folder]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "standard output is closed" in err


def test_what_is_for_a_closed_standard_error_is_not_on_standard_output(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert gpt2_np.main([PROMPT, "-m", folder, "-n", "1000"]) == 0
    assert "stopped" not in capsys.readouterr().out
    for status, arguments in (1, ["", "-m", folder]), (2, ["--no-such-option"]):
        assert gpt2_np.main(arguments) == status
        assert capsys.readouterr().out == ""
    assert sys.stderr is None


def test_an_unknown_model_is_reported_in_one_sentence_with_the_choices(run):
    for arguments in ["Hello"], ["--info"], ["Hello", "--score"], ["--interactive"]:
        status, out, err = run(*arguments, "-m", "125M")
        assert (status, out, err.count("\n")) == (1, "", 1)
        for word in ["'125M'", *gpt2_np.SIZES, "shakespeare", "path"]:
            assert word in err


@pytest.mark.parametrize("n_tokens", [2**63 - 1, 2**63, 10**22])
def test_any_number_of_tokens_ends_when_the_context_is_full(run, folder, n_tokens):
    for samples in [], ["--samples", "2", "--temperature", "1"]:
        status, out, err = run(PROMPT, "-m", folder, "-n", n_tokens, *samples)
        assert (status, out[: len(PROMPT)]) == (0, PROMPT)
        assert err == "gpt2_np: stopped at n_ctx = 64 positions\n"


@pytest.mark.parametrize("samples", [10**8, 10**30, 10**400])
def test_samples_that_do_not_fit_into_memory_are_refused(run, folder, model, samples):
    arguments = ["-m", folder, "-n", 1000, "--temperature", 1]
    status, out, err = run(PROMPT, "--samples", samples, *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"gpt2_np: --samples is {samples}: their keys and values would take ")
    cache = gpt2_np.describe(model.config)["cache_bytes_at_n_ctx"]
    assert f" {samples * cache >> 30:,} GiB" in err
    assert int(err.split()[-1]) < 10**8


@pytest.mark.parametrize("arguments", [[], ["--json"]])
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_scores_not_finite_are_reported_in_one_sentence(run, folder, tmp_path, value, arguments):
    broken = shutil.copytree(folder, tmp_path / "broken")
    file = broken / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-400:] = np.full(100, value, np.float32).tobytes()
    file.write_bytes(data)
    status, out, err = run(PROMPT, "-m", broken, "--score", *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("gpt2_np: ")


def test_json_stays_valid_if_the_perplexity_overflows(run, folder, monkeypatch):
    def score(model, tokens):
        return np.full(len(tokens) - 1, -800.0)

    monkeypatch.setattr(command_line, "score", score)
    result = json.loads(run(PROMPT, "-m", folder, "--score", "--json")[1])
    assert (result["loss_nats_per_token"], result["perplexity"]) == (800.0, None)
    assert "perplexity inf" in run(PROMPT, "-m", folder, "--score")[1]


@pytest.mark.parametrize("variable", ["GPT2_NP_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_error_names_models_that_need_no_network(run, monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("GPT2_NP_CACHE", str(tmp_path))
    for arguments in ["Hello"], ["--download"]:
        status, out, err = run(*arguments)
        assert (status, out, err.count("\n")) == (1, "", 1)
        for word in "124M", variable, "--model shakespeare", "path":
            assert word in err
    assert not list(tmp_path.iterdir())


def test_a_failed_download_leaves_nothing_behind(run, folder, tmp_path, monkeypatch):
    cache = tmp_path / "made" / "for it"
    monkeypatch.setenv("GPT2_NP_CACHE", str(cache))
    with Server(folder) as server:
        for _ in range(2):
            assert run("Hello", "-m", server.url + "/mistyped")[0] == 1
            assert not cache.parent.exists()
        assert run(PROMPT, "-m", server.url, "-n", 1)[0] == 0
        assert run("Hello", "-m", server.url + "/mistyped")[0] == 1
    assert len(list((cache / "url").iterdir())) == 1


def test_weights_without_a_vocabulary_are_reported_in_one_sentence(run, folder, tmp_path):
    for name in "config.json", "model.safetensors":
        (tmp_path / name).write_bytes((Path(folder) / name).read_bytes())
    status, out, err = run(PROMPT, "-m", tmp_path)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "no tokenizer that can be used" in err
    assert "merges.txt" in err


class CUDARuntimeError(RuntimeError):
    """A stand-in for CuPy's error of that name."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (gpt2_np.Error("this failed: do that"), "this failed: do that"),
        (bpe.TokenizerError("this failed: do that"), "this failed: do that"),
        (backend.DeviceError("this failed: do that"), "this failed: do that"),
        (CUDARuntimeError("cudaErrorIllegalAddress"), "cudaErrorIllegalAddress"),
        (MemoryError(), "there is not enough memory: choose a smaller model"),
        (OSError(5, "Input/output error"), "reading or writing failed: [Errno 5] Input/output"),
    ],
)
def test_failures_are_reported_in_one_sentence(run, monkeypatch, error, sentence):
    def load(*arguments):
        raise error

    monkeypatch.setattr(checkpoint, "load", load)
    monkeypatch.setattr(command_line, "discard_output", lambda: None)
    cuda = SimpleNamespace(runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
                           cublas=SimpleNamespace(CUBLASError=CUDARuntimeError),
                           driver=SimpleNamespace(CUDADriverError=CUDARuntimeError))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    status, out, err = run("Hello")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"gpt2_np: {sentence}")


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_a_bug_is_not_reported_as_a_failure(run, monkeypatch, kind):
    def load(*arguments):
        raise kind("a bug")

    monkeypatch.setattr(checkpoint, "load", load)
    with pytest.raises(kind, match="a bug"):
        run("Hello")


def test_a_gpu_that_is_not_available_is_reported_in_one_sentence(run, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    status, out, err = run(PROMPT, "-m", folder, "--device", "cuda")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "device 'cpu'" in err


def test_streams_that_cannot_be_reconfigured_are_used_as_they_are(folder, model, monkeypatch):
    """Those of a notebook cannot."""
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    assert gpt2_np.main([PROMPT, "-m", folder]) == 0
    assert out.getvalue() == PROMPT + gpt2_np.complete(model, PROMPT) + "\n"


# --- processes -------------------------------------------------------------------------


@posix
def test_text_appears_as_it_is_made_and_ctrl_c_ends_it_quietly(long_folder):
    with start(PROMPT, "-m", long_folder, "-n", "39000") as process:
        beginning = process.stdout.read(100)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate()
    assert (process.returncode, err) == (130, b"\n")
    assert (beginning + rest).decode().startswith(PROMPT)  # whole characters to the end


SLOW_NUMPY = """
import sys, time
class Slow:
    def find_spec(name, *_):
        if name == "numpy":
            print("numpy", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow)
"""


PROGRAMS = {
    "file": [ROOT / "gpt2_np.py"], "circuits": ["-m", "gpt2_np.circuits"],
    "installed": ["-m", "gpt2_np"], "installed command": ["bin/gpt2-np"],
}  # fmt: skip


@posix
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("ignored", [False, True], ids=["", "in the background"])
def test_ctrl_c_while_numpy_loads_ends_it_quietly(tmp_path, installed, program, ignored):
    """A shell starts a job in the background with SIGINT ignored, and that stays so."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_NUMPY)
    where = installed if program.startswith("installed") else ROOT
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{where}"}
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    command = [installed / part if part == "bin/gpt2-np" else part for part in PROGRAMS[program]]
    with subprocess.Popen([sys.executable, *command, "--help"], env=environment, cwd=tmp_path,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"numpy\n"
        process.send_signal(signal.SIGINT)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            process.kill()
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == -(signal.SIGKILL if ignored else signal.SIGINT)


@posix
def test_a_closed_pipe_ends_it_quietly(long_folder):
    with start(PROMPT, "-m", long_folder, "-n", "39000") as process:
        assert process.stdout.read(5) == PROMPT.encode()[:5]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@posix
def test_a_full_disk_behind_stdout_is_reported_in_one_sentence(folder):
    with open("/dev/full", "wb") as full:
        status, _, err = run_to_end("--info", "-m", folder, stdout=full)
    assert (status, err.count(b"\n")) == (1, 1)
    assert b"No space left on device" in err


def test_output_is_utf_8_in_any_locale(folder):
    """Python's own encoding is ASCII here: that of the C locale, from which nothing saves it."""
    text = "naïve “🦙” 你好".encode()
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ["-", "-m", folder, "-n", "0"]
    result = run_to_end(*arguments, data=text, stdin=subprocess.PIPE, env=environment)
    assert result == (0, text + b"\n", b"")


@posix
def test_a_prompt_that_is_not_utf_8_is_reported_in_one_sentence(folder):
    """An error when the file is the program, the module __main__ without an Error of its own."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    status, out, err = run_to_end(b"The caf\xe9", "-m", folder, env=environment)
    assert (status, out) == (1, b"")
    assert err == b"gpt2_np: the prompt is not UTF-8 text, byte 7 is 0xe9: convert it to UTF-8\n"


def test_version_prints_the_version_of_the_library(run):
    assert run("--version") == (0, f"gpt2_np {gpt2_np.__version__}\n", "")


def test_help_names_every_option(run):
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    for option in command_line.command_line()._option_string_actions:
        assert option in out


# --- main() in somebody's program ------------------------------------------------------


def surroundings():
    return (sys.stdout, sys.stdout.encoding, sys.stdout.errors, sys.stderr.encoding,
            sys.stderr.errors, warnings.showwarning, list(warnings.filters), np.geterr(),
            signal.getsignal(signal.SIGINT), products._tf32.get())


def use_streams_of(encoding, monkeypatch):
    for name in "stdout", "stderr":
        stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
        monkeypatch.setattr(sys, name, stream)


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
@pytest.mark.parametrize(("arguments", "expected"), [
    (["--version"], 0), (["--help"], 0), (["--no-such-option"], 2), ([], 2),
    (["x", "--score", "--info"], 2), (["x", "-m", "nowhere"], 1), (["x", "-m", "{folder}"], 0),
])
def test_main_returns_its_status_and_leaves_everything_as_it_was(
    arguments, expected, handler, folder, monkeypatch
):
    use_streams_of("latin-1", monkeypatch)
    before = signal.signal(signal.SIGINT, handler)
    try:
        found = surroundings()
        assert gpt2_np.main([part.format(folder=folder) for part in arguments]) == expected
        assert surroundings() == found
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-16"])
@pytest.mark.parametrize("prompt", ["-", "naïve “🦙”"])
def test_main_reads_and_prints_utf_8_whatever_the_encoding_was(
    folder, monkeypatch, encoding, prompt
):
    use_streams_of(encoding, monkeypatch)
    stdin = io.TextIOWrapper(io.BytesIO("naïve “🦙”".encode()), encoding)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert gpt2_np.main([prompt, "-m", folder, "-n", "0"]) == 0
    assert sys.stdout.buffer.getvalue() == "naïve “🦙”\n".encode()


def test_main_forgets_tf32(folder):
    found = surroundings()
    assert gpt2_np.main(["x", "-m", folder, "-n", "1", "--tf32"]) == 0
    assert surroundings() == found


def test_main_reports_a_closed_stream(folder, monkeypatch, capsys):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    assert gpt2_np.main(["x", "-m", folder, "-n", "1"]) == 1
    assert "standard output is closed" in capsys.readouterr().err


def test_main_continues_lines_of_a_stdin_that_its_caller_has_begun_to_read(folder, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(b"mine\nyours\n"), "latin-1")
    monkeypatch.setattr(sys, "stdin", stream)
    assert stream.readline() == "mine\n"
    assert gpt2_np.main(["--interactive", "-m", folder, "-n", "1"]) == 0


def test_main_runs_in_a_thread(folder):
    statuses = []
    arguments = ["x", "-m", folder, "-n", "1"]
    thread = threading.Thread(target=lambda: statuses.append(gpt2_np.main(arguments)))
    thread.start()
    thread.join(60)
    assert statuses == [0]


@posix
def test_after_a_closed_pipe_stdout_is_still_that_pipe(folder, monkeypatch):
    reading, writing = os.pipe()
    before = os.fstat(writing)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        os.close(reading)
        assert gpt2_np.main(["x", "-m", folder, "-n", "1"]) == 141
        after = os.fstat(writing)
        assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
        stream.flush()  # raises if output were still buffered


def test_a_failure_to_read_leaves_stdout_open(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(command_line, "run", fail)
    with open(tmp_path / "out", "w+") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert gpt2_np.main(["x"]) == 1
        print("more", flush=True)
        stream.seek(0)
        assert stream.read() == "more\n"


# --- a conversation --------------------------------------------------------------------


def test_interactive_continues_one_line_after_another(run, folder, model, standard_input):
    standard_input(f"{PROMPT}\nthe corner\n\nnot read\n".encode())
    texts = [text + gpt2_np.complete(model, text, n_tokens=5) for text in (PROMPT, "the corner")]
    expected = "".join(text + "\n" for text in texts)
    assert run("--interactive", "-m", folder, "-n", 5) == (0, expected, "")


def test_interactive_goes_on_after_a_bad_line(run, folder, model, standard_input):
    standard_input(b"the " * 70 + b"\nThe caf\xe9\nThe\n")
    status, out, err = run("--interactive", "-m", folder, "-n", 5)
    assert (status, out) == (0, "The" + gpt2_np.complete(model, "The", n_tokens=5) + "\n")
    too_long, not_utf_8 = err.splitlines()
    assert "n_ctx is 64" in too_long
    assert "this line is not UTF-8 text, byte 7 is 0xe9" in not_utf_8


@posix
def test_at_a_terminal_the_arrow_key_brings_the_last_line_back(folder, model):
    import pty

    continuation = gpt2_np.complete(model, PROMPT, n_tokens=3).encode()
    keyboard, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    arguments = ["--interactive", "-m", folder, "-n", "3"]
    seen = b""

    def wait_for(expected, times):
        nonlocal seen
        while seen.count(expected) < times:
            seen += os.read(keyboard, 4096)

    with start(*arguments, stdin=terminal, stdout=terminal, env=environment) as process:
        os.close(terminal)
        wait_for(b"> ", 1)
        os.write(keyboard, PROMPT.encode() + b"\n")
        wait_for(PROMPT.encode() + continuation, 1)
        wait_for(b"> ", 2)
        os.write(keyboard, b"\x1b[A\n")
        wait_for(PROMPT.encode() + continuation, 2)
        wait_for(b"> ", 3)
        os.write(keyboard, b"\x04")  # Ctrl-D
        assert process.stderr.read() == b"A line is continued; an empty line or Ctrl-D ends.\n"
        assert process.wait() == 0
    os.close(keyboard)

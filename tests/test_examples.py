"""Examples run in any working directory, from a clone or copied, and print what they should."""
import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_model import save_small_model

import gpt2_np
from examples import encoder_decoder
from gpt2_np import circuits

EXAMPLES = Path(gpt2_np.__file__).parent / "examples"


@pytest.fixture
def run(tmp_path):
    """A function that runs an example in a folder outside the clone and returns its stdout."""

    def run(name, *arguments):
        done = subprocess.run(
            [sys.executable, EXAMPLES / name, *arguments], cwd=tmp_path, timeout=60,
            capture_output=True, check=False, env={**os.environ, "PYTHONUTF8": "1"},
        )
        assert (done.returncode, done.stderr.decode()) == (0, "")
        return done.stdout.decode()

    return run


@pytest.fixture
def folder(tmp_path):
    """A folder that holds a model with random weights."""
    return save_small_model(tmp_path / "small", n_ctx=128)


# Run examples as programs, one after another: {name: [status, stdout, stderr]}.
RUN_ALL = """
import contextlib, io, json, runpy, sys
ends = {}
for name, *arguments in json.loads(sys.argv[1]):
    sys.argv, status = [name, *arguments], 0
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(name, run_name="__main__")
        except SystemExit as end:
            status = end.code
            if isinstance(status, str):
                status = print(status, file=err) or 1
    ends[name] = [status, out.getvalue(), err.getvalue()]
print(json.dumps(ends))
"""


@pytest.fixture
def run_copies(installed, tmp_path):
    """A function that runs Python without docstrings beside copies of the examples.

    It finds the installed package, and returns the finished process.
    """
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": str(installed)}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-OO", *arguments], cwd=tmp_path, timeout=100,
            capture_output=True, check=False, env=environment, encoding="utf-8",
        )

    return run


def test_an_example_copied_elsewhere_runs_the_installed_package(run_copies):
    done = run_copies("complete_text.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") > 2


def test_an_example_copied_elsewhere_says_in_one_line_what_is_missing(run_copies):
    commands = [[path.name, "nowhere"] for path in EXAMPLES.glob("*.py")]
    commands.remove(["encoder_decoder.py", "nowhere"])  # which has its own model
    done = run_copies("-c", RUN_ALL, json.dumps([*commands, ["encoder_decoder.py"]]))
    assert (done.returncode, done.stderr) == (0, "")
    ends = json.loads(done.stdout)
    assert len(ends) == len(commands) + 1 > 10
    for name, (status, out, err) in ends.items():
        example = name.removesuffix(".py")
        assert (status, out, err.count("\n")) == (1, "", 1), name
        assert err.startswith(f"{example}: 'nowhere' is neither") or example == "encoder_decoder"
    _, _, err = ends["encoder_decoder.py"]
    assert re.match(r"encoder_decoder: .*config\.json cannot be read", err)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_uses_only_public_names(name):
    modules = {"gpt2_np": gpt2_np.__all__, "circuits": circuits.__all__}
    for node in ast.walk(ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr in modules.get(node.value.id, [node.attr])


def test_complete_text_prints_the_prompt_and_its_continuation(run, folder):
    options = {"n_tokens": 80, "temperature": 0.8, "top_p": 0.95, "seed": 1}
    model, prompt = gpt2_np.load("shakespeare"), "ROMEO:\nBut soft, what light"
    continuation = gpt2_np.complete(model, prompt, **options)
    assert len(continuation.split()) > 20
    assert run("complete_text.py") == prompt + continuation + "\n"

    continuation = gpt2_np.complete(gpt2_np.load(folder), "The café", **options)
    assert run("complete_text.py", folder, "The café") == "The café" + continuation + "\n"


def test_score_text_prints_the_loss_and_the_least_likely_tokens(run, folder, tmp_path):
    totals, _, *rows = run("score_text.py").splitlines()
    nats = [float(row.split()[0]) for row in rows]
    loss = float(totals.split()[2])
    assert loss < math.log(2048) - 2
    assert nats == sorted(nats, reverse=True)
    assert nats[-1] > loss

    file = tmp_path / "text.txt"
    file.write_text("The naïve café", encoding="utf-8")
    model = gpt2_np.load(folder)
    tokens = model.tokenizer.encode("The naïve café")
    log_p = gpt2_np.score(model, [model.tokenizer.end_of_text, *tokens])
    totals = run("score_text.py", folder, file).splitlines()[0]
    assert f"{len(tokens)} tokens, {-log_p.mean():.3f} nats each" in totals
    assert totals.endswith(f"{-log_p.sum() / math.log(2) / 16:.3f} bits per byte")


def test_score_text_finds_a_shuffled_text_less_likely(run, tmp_path):
    text = "If we should fail? We fail! But screw your courage to the sticking-place."
    losses = []
    for order in text.split(), np.random.default_rng(0).permutation(text.split()):
        file = tmp_path / "text.txt"
        file.write_text(" ".join(order), encoding="utf-8")
        losses.append(float(run("score_text.py", "shakespeare", file).split()[2]))
    assert losses[0] < losses[1] - 0.3


def test_own_arrays_shows_a_guess_before_training_and_a_lower_loss_after(run, folder):
    figures = [line.split()[1] for line in run("own_arrays.py").splitlines()]
    guessing, untrained, trained = map(float, figures)
    assert guessing == pytest.approx(math.log(2048), abs=1e-3)
    assert untrained == pytest.approx(guessing, abs=0.2)
    assert trained < guessing - 2
    assert "guessing:  5.704 nats" in run("own_arrays.py", folder)


def test_edit_and_save_keeps_all_but_one_head_in_a_new_folder(run, folder, tmp_path):
    lines = run("edit_and_save.py", folder, tmp_path / "edited").splitlines()
    _, without, again = (float(line.split(":")[1].split()[0]) for line in lines[:3])
    assert without == again
    head = int(lines[1].partition("0.")[2][0])
    before, after = (gpt2_np.load(place).params["blocks"][0]["attn"]["c_proj"]["w"]
                     for place in (folder, tmp_path / "edited"))  # fmt: skip
    changed = (before != after).any(axis=1)
    assert np.flatnonzero(changed).tolist() == list(range(8 * head, 8 * head + 8))


def test_encoder_decoder_prints_every_tensor_the_translation_and_where_a_word_looked(run):
    text = run("encoder_decoder.py", "the two kings did not see a bird", "--word", "karu")
    tensors, translation, alignment, heads = text.split("\n\n")
    assert len(tensors.splitlines()) == 69
    assert "decoder.1.cross_attn.hook_pattern  bhqk 1×4×9×8" in tensors
    english, mirro = translation.splitlines()
    assert english == "the two kings did not see a bird"
    assert mirro.split("   ")[0] == "karu du lo piti na mito ta ni <end>"
    assert [line.split()[0] for line in alignment.splitlines()[2:]] == mirro.split()[:9]
    assert len(heads.splitlines()) == 2 + 8


@pytest.mark.parametrize(("arguments", "error"), [
    (["the dogg sleeps"], "the English has no word 'dogg'; did you mean dog"),
    (["the dog sleeps", "--word", "karu"], "the translation has no word 'karu'"),
    ([""], "the sentence has 0 words: give 1 to 40"),
])  # fmt: skip
def test_encoder_decoder_says_which_word_it_does_not_know(arguments, error, capsys):
    with pytest.raises(gpt2_np.Error, match=re.escape(error)):
        encoder_decoder.main(arguments)

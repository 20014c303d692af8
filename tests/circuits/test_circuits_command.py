"""The commands: a table, the same as JSON, and one sentence for each failure."""
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_model import map_params
from small_model import TEXT, save_small_model

import gpt2_np
from gpt2_np import Model, backend, bpe, circuits
from gpt2_np.circuits import __main__ as program
from gpt2_np.circuits.__main__ import main

PROGRAM = "python -m gpt2_np.circuits"
A_FILE = str(Path(__file__).parent / "conftest.py")
COMMANDS = {
    "lens": ["lens", "The naïve café at", "--answer", " the"],
    "attribution": ["attribution", "The naïve café", "--answer", " the", "--wrong", " of"],
    "heads": ["heads"],
    "heads of a text": ["heads", "The naïve café the naïve café"],
    "patch": ["patch", "The café at", "The naïve at", "--answer", " the"],
    "patch by position": ["patch", "The café at", "The naïve at", "--answer", " the", "--what",
                          "v", "--by-position"],
    "patch a task": ["patch", "--task", "repeated", "--what", "resid_mid"],
    "find": ["find", "--task", "repeated", "--prompts", "2", "--keep", "0.5"],
    "find edges": ["find", "The café at", "The naïve at", "--answer", " of", "--wrong", " the",
                   "--edges", "--keep", "0.5"],
    "neurons": ["neurons", "The naïve", "--answer", " the", "--top", "3"],
    "a neuron": ["neurons", "--layer", "1", "--neuron", "17"],
    "excite": ["excite", "L1N17", A_FILE, "--lines", "--top", "2"],
    "excite a head": ["excite", "L1H1", A_FILE, "--lines", "--top", "2"],
    "histogram": ["histogram", "L1N17", A_FILE, "--lines"],
    "histogram of the stream": ["histogram", "blocks.1.hook_resid_mid", A_FILE, "--lines"],
    "survey": ["survey", A_FILE],
}  # fmt: skip
NO_PROMPT = ("a neuron", "excite", "excite a head", "histogram", "histogram of the stream",
             "survey")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_a_table_and_the_same_as_json(command, folder, capsys):
    argv = [*COMMANDS[command], "--model", folder]
    assert main(argv) == 0
    table = capsys.readouterr()
    assert table.err == ""
    assert command in NO_PROMPT or "with <|endoftext|> at the beginning" in table.out
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["model"] == folder
    assert result.get("bos", True) is True
    assert "table" not in result


def test_checkpoints_are_surveyed_after_the_model_and_each_once(folder, capsys, tmp_path):
    other = str(save_small_model(tmp_path / "step-100", seed=1))
    text = tmp_path / "text"
    text.write_text(TEXT)
    argv = ["survey", str(text), "--lines", "--model", folder, "--checkpoints", folder, other]
    assert main(argv) == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "Survey of 2 models on 4 texts" and header.split()[0] == "model"
    assert [row.split()[0] for row in rows] == ["small", "step-100"]
    assert main([*argv, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["models"]
    assert [len(one["norm"]) for one in records] == [3, 3]
    assert main(["survey", "/dev/null", "--model", folder]) == 1
    assert "give a list of texts" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["lens", "heads", "neurons", "a neuron", "find"])
def test_commands_show_no_row_that_only_pads_the_embedding(command, tmp_path, capsys):
    folder = save_small_model(tmp_path / "padded")
    for name in ("merges.txt", "vocab.json"):
        (folder / name).unlink()
    bpe.train(TEXT, 290).save(folder, names=("merges.txt", "vocab.json"))
    argv = [*COMMANDS[command], "--model", str(folder)]
    if command != "find":
        argv += ["--top", "290"]
    assert main(argv) == 0
    assert capsys.readouterr().err == ""


def test_a_text_that_repeats_no_token_is_said_to_and_has_no_scores(folder, capsys, tmp_path):
    argv = ["heads", "The café at", "--model", folder, "--top", "3"]
    assert main(argv) == 0
    _, _, note, *rows = capsys.readouterr().out.splitlines()
    assert note == "this text repeats no token, so that no head can show duplicate token or " \
        "induction"
    assert len(rows) == 4 and "nan" not in "".join(rows)
    assert all(re.split("  +", row)[2:4] == ["-", "-"] for row in rows[1:])
    path = tmp_path / "x.png"
    assert main([*argv, "--plot", str(path)]) == 1
    assert "repeats no token: there is no induction score to draw" in capsys.readouterr().err
    assert not path.exists()
    assert main(["heads", "The", "--no-bos", "--model", folder]) == 0
    assert "is one token, so that no head can show previous token or" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_of_nan_is_one_sentence_of_every_command(command, folder, capsys, monkeypatch):
    model = gpt2_np.load(folder, "cpu")
    params = map_params(lambda array: array * np.float32(np.nan), model.params)
    monkeypatch.setattr(program, "text_model",
                        lambda _: Model(model.config, params, model.tokenizer))
    assert main([*COMMANDS[command], "--model", folder]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"{PROGRAM}: ") and "hold NaN or infinity" in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("error", [bpe.TokenizerError, backend.DeviceError, np.linalg.LinAlgError])
def test_what_other_modules_raise_is_one_sentence_too(error, capsys, monkeypatch):
    def fail(_):
        raise error("it cannot be done")

    monkeypatch.setattr(program, "text_model", fail)
    assert main(["heads", "--model", "x"]) == 1
    output = capsys.readouterr()
    assert output.err.endswith("it cannot be done\n") and output.err.count("\n") == 1


def test_the_attribution_table_is_what_python_gives(folder, capsys):
    model = gpt2_np.load(folder, "cpu")
    expected = circuits.attribution(model, "The naïve café", " the", " of", bos=False)
    argv = [*COMMANDS["attribution"], "--model", folder, "--no-bos", "--json"]
    assert main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bos"] is False
    assert result["total"] == pytest.approx(float(expected.total[0]))
    assert list(result["parts"]) == expected.labels
    assert list(result["parts"].values()) == pytest.approx(expected.values[:, 0].tolist())


def test_lines_and_files_and_standard_input_are_texts(folder, capsys, monkeypatch, tmp_path):
    texts = ["The naïve café", "at the café", "on the mat"]
    (tmp_path / "lines.txt").write_text("\r\n".join([*texts[:2], "", texts[2]]), encoding="utf-8")
    model = gpt2_np.load(folder, "cpu")

    def found(*argv):
        assert main(["excite", "L1N17", *argv, "--model", folder, "--json", "--top", "9"]) == 0
        return json.loads(capsys.readouterr().out)

    expected = circuits.max_activating(model, texts, "L1N17", 9)
    by_line = found(str(tmp_path / "lines.txt"), "--lines")
    assert [one["value"] for one in by_line["examples"]] == pytest.approx(
        [one.value for one in expected])
    assert by_line["examples"][0]["tokens"] == expected[0].tokens.tolist()
    assert by_line["n_texts"] == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"on the mat")))
    (tmp_path / "one.txt").write_text(texts[0], encoding="utf-8")
    assert found("-", str(tmp_path / "one.txt"))["n_texts"] == 2
    (tmp_path / "latin.txt").write_bytes(b"good\ncaf\xe9\n")
    assert main(["excite", "L1N17", str(tmp_path / "latin.txt"), "--lines", "--model", folder]) == 1
    assert "line 2 of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lens", "text", "--answer", "zzz"], "'zzz' is 3 tokens"),
        (["attribution", "text", "--answer", "<nothing>"], "it must be one"),
        (["patch", "The café", "The café at", "--answer", " the"], "and the corrupted prompts"),
        (["find", "--task", "indirect-object"], "use name_repetition"),
        (["neurons", "--layer", "7", "--neuron", "1"], "layer 7 does not exist"),
        (["patch", "The café", "The café", "--answer", " the"], "the same on both prompts"),
        (["heads", "text", "--head", "MLP1", "--plot", "x.png"], "an MLP has no attention"),
        (["excite", "L1N17", "/no/such/file"], "/no/such/file cannot be read: No such file"),
        (["excite", "L1", __file__], "'L1' is not a head or MLP: write 'L9H6'"),
        (["histogram", "resid_mid", __file__], "is in 2 layers: name one"),
    ],
)  # fmt: skip
def test_failures_are_one_sentence_and_status_1(argv, message, folder, capsys):
    assert main([*argv, "--model", folder]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"{PROGRAM}: ")
    assert message in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lens"], "required: text"),
        (["lens", "text", "--top", "0"], "--top is 0"),
        (["excite", "L1N17"], "required: FILE"),
        (["histogram", "L1N17", "x", "--bins", "1"], "--bins is 1: it must be at least 2"),
        (["patch", "one"], "give a clean and a corrupted text and --answer, or --task"),
        (["find", "a", "b", "--task", "names"], "--task brings its own prompts"),
        (["neurons", "text"], "give a text and --answer"),
        (["neurons", "--neuron", "1"], "--neuron goes with --layer"),
        (["heads", "--head", "1.1"], "give a text and --plot"),
        (["find", "--task", "names", "--edges", "--mode", "mean"], "leave --mode out"),
        (["patch", "--task", "names", "--no-bos"], "leave --no-bos out"),
        (["find", "--task", "names", "--prompts", "100000000"], "it must be from 1 to 1000"),
    ],
)  # fmt: skip
def test_usage_errors_come_before_a_model_is_loaded_and_are_status_2(argv, message, capsys):
    assert main([*argv, "--model", "/no/such/model"]) == 2
    assert message in capsys.readouterr().err


def test_a_picture_without_matplotlib_says_what_to_install(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = tmp_path / "heads.png"
    assert main(["heads", "--model", folder, "--plot", str(path)]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(("started", "name"), [
    ("/usr/bin/gpt2-np-circuits", "gpt2-np-circuits"),
    ("gpt2-np-circuits.exe", "gpt2-np-circuits"),
    ("/somewhere/circuits/__main__.py", PROGRAM),
])
def test_usage_and_failures_name_the_command_as_it_was_called(started, name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    assert main(["lens"]) == 2
    assert f"usage: {name} lens" in capsys.readouterr().err
    assert main(["lens", "text", "--model", "/no/such/model"]) == 1
    assert capsys.readouterr().err.startswith(f"{name}: ")


def test_the_package_runs_as_a_command_in_a_clone(folder):
    argv = [sys.executable, "-m", "gpt2_np.circuits", *COMMANDS["a neuron"], "--model", folder]
    root = Path(gpt2_np.__file__).parent
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("neuron 17 of layer 1") and done.stderr == ""

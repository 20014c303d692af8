"""The type hints, as mypy and pyright read them in a program of a user and in the library."""
import json
import os
import shutil
import site
import subprocess
import sys
import venv

import pytest
import user_program
from copies import ROOT, copy_repository
from random_model import random_model

import gpt2_np
from gpt2_np import Config

OPTIONS = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]


@pytest.mark.filterwarnings("ignore:the metric is")  # a random model does no task
def test_the_right_lines_of_the_users_program_run(tmp_path, capsys):
    tokenizer = gpt2_np.load("shakespeare").tokenizer
    tiny = random_model(Config(2048, 64, n_embd=16, n_head=4, n_layer=3), tokenizer=tokenizer)
    gpt2_np.save(tiny, tmp_path / "model")
    user_program.right(tmp_path / "model")
    assert capsys.readouterr().out


@pytest.fixture(scope="module", params=["install -e", "install"])
def folder(request, tmp_path_factory):
    """A folder with the user's program and an environment in which pip has installed a copy."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(user_program.__file__, folder / "program.py")
    venv.create(folder / "venv")
    [packages] = (folder / "venv").rglob("site-packages")
    # The other packages are those of the environment that runs the tests.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    command, *editable = request.param.split()
    clone = copy_repository(folder / "clone")
    subprocess.run([python_of(folder), "-m", "pip", command, "-q", *OPTIONS, *editable, clone],
                   check=True, timeout=100, capture_output=True)
    return folder


def python_of(folder):
    return folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"


def output_of(folder, checker, *options):
    done = subprocess.run([sys.executable, "-m", checker, *options], cwd=folder,
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def found_by_mypy(folder):
    """Return {line: message} of the errors in the user's program."""
    output = output_of(folder, "mypy", "--strict", "--python-executable", python_of(folder),
                       "--output", "json", "program.py")
    found = [json.loads(line) for line in output.splitlines()]
    return {error["line"]: error["message"] for error in found if error["severity"] == "error"}


def found_by_pyright(folder):
    output = output_of(folder, "pyright", "--pythonpath", python_of(folder), "--outputjson",
                       "program.py")
    return {error["range"]["start"]["line"] + 1: error["message"]
            for error in json.loads(output)["generalDiagnostics"] if error["severity"] == "error"}


CHECKERS = {"mypy --strict": found_by_mypy, "pyright": found_by_pyright}


@pytest.mark.types
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_rejects_the_marked_lines_of_the_users_program_and_no_other(checker, folder):
    lines = (folder / "program.py").read_text().splitlines()
    marked = [number for number, line in enumerate(lines, 1) if line.endswith("  # error")]
    found = CHECKERS[checker](folder)
    assert len(marked) > 10
    assert sorted(found) == marked, found


@pytest.mark.types
@pytest.mark.parametrize("folder", ["install"], indirect=True)
def test_mypy_finds_no_error_in_the_library(folder):
    output = output_of(folder, "mypy", "--config-file", ROOT / "setup.cfg", "--python-executable",
                       python_of(folder), "-p", "gpt2_np")
    assert "Success: no issues found" in output, output

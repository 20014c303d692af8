"""Copied, vendored or installed, the code works the same: each way in a folder of its own."""
import compileall
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from copies import ROOT, copy_repository
from random_model import TINY, random_params
from small_model import save_small_model

import gpt2_np

MODULES = sorted(path.name for path in ROOT.glob("*.py") if not path.name.startswith("__"))
LEAST = ["gpt2_np.py", "backend.py", "bpe.py", "checkpoint.py"]  # what loads and runs a model
TOKENS = [5, 3, 60, 7, 7, 12, 5]

# What a program does that has arrays and token ids; its results go to stdout.
PROGRAM = """
import pickle, sys
import numpy as np
config, params, tokens = pickle.load(sys.stdin.buffer)
model = gpt2_np.Model(gpt2_np.Config(**config), params)
options = dict(temperature=1.5, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=3)
results = dict(
    logits=gpt2_np.forward(model.params, model.config, tokens),
    greedy=list(gpt2_np.generate(model, tokens, 9)),
    drawn=gpt2_np.generate_batch(model, [tokens, tokens[:2]], 9, **options),
    score=gpt2_np.score(model, tokens * 6),
)
pickle.dump((results, sorted(sys.modules)), sys.stdout.buffer)
"""

# In front of it: the standard library, NumPy and what lies in sys.path[0] are all there is.
NUMPY_ONLY = """
import sys, importlib.machinery
class NumpyOnly:
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in sys.stdlib_module_names or top == "numpy"
        if not known and not importlib.machinery.PathFinder.find_spec(top, sys.path[:1]):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NumpyOnly)
"""


def python(program, folder, *, arguments=(), **options):
    """stdout of a Python program that finds modules in `folder` before all others."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *arguments],
        cwd=folder, capture_output=True, timeout=60, check=False, **options,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout


def results_of(program, folder):
    """What PROGRAM computes there, and the modules it has loaded."""
    given = pickle.dumps((asdict(TINY), random_params(TINY, scale=0.3), TOKENS))
    return pickle.loads(python(program + PROGRAM, folder, input=given))


@pytest.fixture(scope="module")
def expected():
    results, _ = results_of("import gpt2_np", ROOT)
    assert len(set(results["greedy"])) > 1
    return results


def assert_same(results, expected):
    for name in "logits", "score":
        np.testing.assert_allclose(results[name], expected[name], rtol=1e-5, atol=1e-5)
    for name in "greedy", "drawn":
        assert results[name] == expected[name]


def copy(names, folder, package=False):
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(ROOT / name, folder / name)
    if package:
        (folder / "__init__.py").touch()
    return folder


# --- one file --------------------------------------------------------------------------


def test_the_model_s_file_alone_needs_numpy_only(tmp_path, expected):
    folder = copy(["gpt2_np.py"], tmp_path / "script")
    results, modules = results_of(NUMPY_ONLY + "import gpt2_np", folder)
    assert_same(results, expected)
    assert not {"backend", "bpe", "checkpoint", "drafts"} & set(modules)


STRANGERS = {
    "raises": "raise RuntimeError('this is for the server only')",
    "exits": "raise SystemExit('usage: ...')",
    "works": "def load(*_): print('loaded by a stranger')\ndef einsum(*_): return 'a stranger'",
}


@pytest.mark.parametrize("package", [False, True], ids=["script", "package"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_the_model_s_file_runs_no_stranger_s_module_beside_it(
    tmp_path, expected, stranger, package
):
    folder = copy(["gpt2_np.py"], tmp_path / "theirs", package)
    for name in gpt2_np.SIBLINGS:
        (folder / f"{name}.py").write_text(f"print('import gpt2_np')\n{STRANGERS[stranger]}\n")
    program = "from theirs import gpt2_np" if package else "import gpt2_np"
    results, modules = results_of(program, tmp_path if package else folder)
    assert_same(results, expected)
    assert not {f"{prefix}{name}" for name in gpt2_np.SIBLINGS
                for prefix in ("", "theirs.")} & set(modules)
    program += f"""
assert not any(hasattr(gpt2_np, name) for name in {gpt2_np.SIBLINGS})
assert not hasattr(gpt2_np, "CheckpointError")
try:
    gpt2_np.load("124M")
except gpt2_np.Error as error:
    print(error)
"""
    assert python(program, tmp_path if package else folder).decode() == (
        "there is no checkpoint.py, bpe.py, backend.py of gpt2_np beside gpt2_np.py: to load "
        "models it needs checkpoint.py, bpe.py and backend.py\n"
    )


def test_a_folder_of_a_sibling_s_name_is_no_sibling(tmp_path, expected):
    """As where a training script keeps its results in checkpoint/."""
    folder = copy(["gpt2_np.py"], tmp_path / "script")
    for name in "backend", "checkpoint":
        (folder / name).mkdir()
    results, _ = results_of("import gpt2_np", folder)
    assert_same(results, expected)
    assert python("import gpt2_np; print(hasattr(gpt2_np, 'checkpoint'))", folder) == b"False\n"


def test_modules_without_their_sources_are_still_siblings(tmp_path, expected):
    """As in an application that ships compiled files only."""
    folder = copy(MODULES, tmp_path / "app")
    compileall.compile_dir(folder, quiet=1, legacy=True)
    for name in MODULES:
        (folder / name).unlink()
    results, modules = results_of("import gpt2_np; assert gpt2_np.circuits", folder)
    assert_same(results, expected)
    assert {"backend", "drafts", "circuits"} <= set(modules)


def test_modules_in_a_zip_file_are_siblings_and_say_that_weights_must_be_outside(tmp_path):
    archive = shutil.make_archive(tmp_path / "app", "zip", copy_repository(tmp_path / "clone"))
    program = f"""
import sys; sys.path.insert(0, {archive!r})
import gpt2_np
assert gpt2_np.backend and gpt2_np.drafts
try:
    gpt2_np.load("shakespeare")
except gpt2_np.CheckpointError as error:
    print(error)
"""
    said = python(program, tmp_path).decode()
    assert "from inside an archive" in said
    assert "copy the folder" not in said


def test_the_model_s_file_alone_says_what_loading_needs(tmp_path):
    shutil.copy(ROOT / "gpt2_np.py", tmp_path)
    command = [sys.executable, tmp_path / "gpt2_np.py", "hi", "-m", "shakespeare"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no checkpoint.py, bpe.py, backend.py of gpt2_np beside gpt2_np.py" in done.stderr


def test_the_model_s_file_alone_says_what_a_model_costs(tmp_path):
    folder = copy(["gpt2_np.py"], tmp_path / "script")
    done = subprocess.run([sys.executable, "gpt2_np.py", "--info"], cwd=folder, timeout=60,
                          capture_output=True, text=True, check=True)
    assert "124,439,808" in done.stdout


# --- the modules together --------------------------------------------------------------


@pytest.mark.parametrize("names", [LEAST, MODULES, [*MODULES, "__init__.py"]],
                         ids=["least", "modules", "package"])
def test_the_modules_work_inside_another_package(tmp_path, expected, names):
    copy(names, tmp_path / "theirs" / "_vendor", package="__init__.py" not in names)
    (tmp_path / "theirs" / "__init__.py").touch()
    program = "from theirs._vendor import gpt2_np\n"
    results, modules = results_of(program, tmp_path)
    assert_same(results, expected)
    assert "theirs._vendor.backend" in modules
    assert not {name.removesuffix(".py") for name in MODULES} & set(modules)

    save_small_model(tmp_path / "small")
    program += """
model = gpt2_np.load("small", "cpu")
assert model.tokenizer.decode(model.tokenizer.encode("café")) == "café"
print(gpt2_np.complete(model, "The café"))
from theirs._vendor import checkpoint
try:
    gpt2_np.load("nowhere")
except gpt2_np.Error as error:
    assert isinstance(error, checkpoint.CheckpointError)
else:
    raise AssertionError("there is no such model")
tops = {name.partition(".")[0] for name in sys.modules}
assert not {"gpt2_np", "backend", "bpe", "checkpoint"} & tops, tops
"""
    model = gpt2_np.load(tmp_path / "small", "cpu")
    continuation = gpt2_np.complete(model, "The café")
    assert python(program, tmp_path).decode() == continuation + "\n"


def test_two_copies_live_side_by_side_in_one_process(tmp_path):
    for name in "one", "two":
        copy(MODULES, tmp_path / name / "_vendor", package=True)
    save_small_model(tmp_path / "small")
    python(
        """
from one._vendor import gpt2_np as one
from two._vendor import gpt2_np as two
assert one is not two and one.einsum is not two.einsum
texts = {gpt2_np.complete(gpt2_np.load("small", "cpu"), "The café") for gpt2_np in (one, two)}
assert len(texts) == 1
try:
    two.load("nowhere")
except one.Error:
    raise AssertionError("each copy has its own errors")
except two.Error:
    pass
tops = {name.partition(".")[0] for name in sys.modules}
assert not {"gpt2_np", "backend", "bpe", "checkpoint"} & tops, tops
""",
        tmp_path,
    )


def test_the_command_line_of_a_vendored_copy_catches_its_errors(tmp_path):
    copy(MODULES, tmp_path / "theirs" / "_vendor")
    save_small_model(tmp_path / "small")

    def run(*arguments):
        command = [sys.executable, "-m", "theirs._vendor.gpt2_np", *arguments]
        return subprocess.run(command, cwd=tmp_path, timeout=60, capture_output=True, text=True,
                              encoding="utf-8", check=False)

    done = run("The café", "--model", "small", "-n", "3")
    assert (done.returncode, done.stderr, done.stdout[:8]) == (0, "", "The café")
    done = run("The café", "--model", "nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("gpt2_np: 'nowhere'")


# --- the repository --------------------------------------------------------------------

PUBLIC = sorted(["__version__", *gpt2_np.__all__])


@pytest.mark.parametrize("name", ["gpt2_np", "gpt2"])
def test_the_repository_is_a_package_under_any_name(tmp_path, expected, name):
    copy_repository(tmp_path / "theirs" / name)
    results, modules = results_of(f"import theirs.{name} as gpt2_np\n", tmp_path)
    assert_same(results, expected)
    assert not {name.removesuffix(".py") for name in MODULES} & set(modules)
    program = f"""
import theirs.{name} as package
assert all(hasattr(package, name) for name in {PUBLIC})
print(package.complete(package.load("shakespeare", "cpu"), "ROMEO", n_tokens=5))
"""
    assert python(program, tmp_path).strip()


# --- pip install -----------------------------------------------------------------------


def test_pip_installs_one_package_and_no_other_name(installed):
    found = {path.name for path in installed.iterdir()} - {"bin"}
    assert found == {"gpt2_np", f"gpt2_np-{gpt2_np.__version__}.dist-info"}
    files = {path.relative_to(installed / "gpt2_np").as_posix()
             for path in (installed / "gpt2_np").rglob("*")
             if path.is_file() and path.suffix != ".pyc"}
    model = {f"models/shakespeare/{name}" for name in
             ("README.md", "config.json", "merges.txt", "model.safetensors", "vocab.json")}
    assert files == {"__init__.py", "__main__.py", "py.typed", *MODULES, *model}


def test_the_installed_package_works_from_anywhere(installed, tmp_path, expected):
    program = f"sys.path.insert(0, {str(installed)!r})\nimport gpt2_np\n"
    results, modules = results_of(program, tmp_path)
    assert_same(results, expected)
    assert not ({name.removesuffix(".py") for name in MODULES} - {"gpt2_np"}) & set(modules)
    program += f"""
assert gpt2_np.__file__.startswith({str(installed)!r})
assert all(hasattr(gpt2_np, name) for name in {PUBLIC})
print(gpt2_np.complete(gpt2_np.load("shakespeare", "cpu"), "ROMEO", n_tokens=5))
"""
    assert python(program, tmp_path).strip()


def test_clone_and_installation_have_the_same_names(installed, tmp_path):
    """At a clone's root gpt2_np is the file, installed it is the package."""
    names = {name for name in dir(gpt2_np) if not name.startswith("__")} | {"__version__"}
    names |= {*gpt2_np.SIBLINGS, "CheckpointError", "DownloadError"}
    program = f"""
import gpt2_np
for name in {sorted(names)}:
    getattr(gpt2_np, name)
assert not hasattr(gpt2_np, "nothing")
assert issubclass(gpt2_np.CheckpointError, gpt2_np.Error)
assert gpt2_np.CheckpointError is gpt2_np.checkpoint.CheckpointError
star = {{}}
exec("from gpt2_np import *", star)
print(*sorted(star.keys() - {{"__builtins__"}}))
"""
    at_root, by_pip = (python(program, folder).decode().split() for folder in (ROOT, installed))
    assert at_root == by_pip == sorted(gpt2_np.__all__)


@pytest.fixture(params=["command", "module"])
def run_installed(request, installed, tmp_path):
    """Exit status, stdout and stderr of gpt2-np, or of python -m gpt2_np; and its name."""
    name = {"command": "gpt2-np", "module": "python -m gpt2_np"}[request.param]
    command = {"command": [installed / "bin" / "gpt2-np"],
               "module": [sys.executable, "-m", "gpt2_np"]}[request.param]
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*arguments):
        return subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, timeout=60,
                              capture_output=True, text=True, encoding="utf-8", check=False)

    return run, name


def test_the_installed_command_runs(run_installed):
    run, _ = run_installed
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"gpt2_np {gpt2_np.__version__}\n")
    done = run("ROMEO", "--model", "shakespeare", "-n", "5")
    assert (done.returncode, done.stderr, done.stdout[:5]) == (0, "", "ROMEO")
    done = run("ROMEO", "--model", "nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_usage_and_advice_name_the_command_that_was_called(run_installed):
    run, name = run_installed
    usage, sentence = run().stderr.splitlines()
    assert usage == f"usage: {name} [options] [prompt]"
    assert f'there is no prompt: {name} "Alan Turing was"' in sentence

"""Copied, vendored or installed, the code works the same: each way in a folder of its own."""
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from random_model import TINY, random_params
from small_model import save_small_model

import gpt2_np

ROOT = Path(gpt2_np.__file__).parent
MODULES = sorted(path.name for path in ROOT.glob("*.py") if path.name != "__init__.py")
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


def copy_repository(folder):
    """What a subtree or submodule brings: the tracked files, the embedded model among them."""
    caches = shutil.ignore_patterns(
        ".*", "__pycache__", "build", "dist", "*.egg-info", "work", "tests"
    )
    shutil.copytree(ROOT, folder, ignore=caches)
    return folder


# --- one file --------------------------------------------------------------------------


def test_the_model_s_file_alone_needs_numpy_only(tmp_path, expected):
    folder = copy(["gpt2_np.py"], tmp_path / "script")
    results, modules = results_of(NUMPY_ONLY + "import gpt2_np", folder)
    assert_same(results, expected)
    assert not {"backend", "bpe", "checkpoint", "drafts"} & set(modules)


def test_the_model_s_file_works_beside_an_unrelated_backend(tmp_path, expected):
    folder = copy(["gpt2_np.py"], tmp_path / "script")
    (folder / "backend.py").write_text("def serve(request): ...\n")
    results, modules = results_of(NUMPY_ONLY + "import gpt2_np", folder)
    assert_same(results, expected)
    assert "backend" in modules


def test_the_model_s_file_alone_says_what_loading_needs(tmp_path):
    shutil.copy(ROOT / "gpt2_np.py", tmp_path)
    command = [sys.executable, tmp_path / "gpt2_np.py", "hi", "-m", "shakespeare"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no checkpoint beside gpt2_np.py" in done.stderr


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


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder where pip has installed the repository, built with the setuptools at hand."""
    source = copy_repository(tmp_path_factory.mktemp("source") / "checkout")
    target = tmp_path_factory.mktemp("site-packages")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *options, "--target", target, source],
        capture_output=True, text=True, timeout=100, check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_pip_installs_one_package_and_no_other_name(installed):
    found = {path.name for path in installed.iterdir()} - {"bin"}
    assert found == {"gpt2_np", f"gpt2_np-{gpt2_np.__version__}.dist-info"}
    files = {path.relative_to(installed / "gpt2_np").as_posix()
             for path in (installed / "gpt2_np").rglob("*")
             if path.is_file() and path.suffix != ".pyc"}
    model = {f"models/shakespeare/{name}" for name in
             ("README.md", "config.json", "merges.txt", "model.safetensors", "vocab.json")}
    assert files == {"__init__.py", *MODULES, *model}


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


def test_the_installed_command_runs(installed, tmp_path):
    command = installed / "bin" / "gpt2-np"
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*arguments):
        return subprocess.run([command, *arguments], cwd=tmp_path, env=environment, timeout=60,
                              capture_output=True, text=True, encoding="utf-8", check=False)

    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"gpt2_np {gpt2_np.__version__}\n")
    done = run("ROMEO", "--model", "shakespeare", "-n", "5")
    assert (done.returncode, done.stderr, done.stdout[:5]) == (0, "", "ROMEO")
    done = run("ROMEO", "--model", "nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)

"""The ways of use: the code works the same run, imported, installed, copied or vendored."""
import compileall
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from copies import PACKAGES, ROOT, copy_repository, product_files
from random_model import TINY, random_params
from small_model import save_small_model

import gpt2_np

TOKENS = [5, 3, 60, 7, 7, 12, 5]

# A function that runs a model on arrays and token ids.
RESULTS = """
def results(gpt2_np, config, params, tokens):
    model = gpt2_np.Model(gpt2_np.Config(**config), params)
    options = dict(temperature=1.5, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=3)
    found = dict(
        logits=gpt2_np.forward(model.params, model.config, tokens),
        greedy=list(gpt2_np.generate(model, tokens, 9)),
        drawn=list(gpt2_np.generate(model, tokens, 9, **options)),
        score=gpt2_np.score(model, tokens * 3),
    )
    if hasattr(gpt2_np, "generate_batch"):  # more than the reference alone
        found["batch"] = list(gpt2_np.generate_batch(model, [tokens, tokens[:2]], 9, **options))
        found["windows"] = gpt2_np.score(model, tokens * 6)
    return found
"""

# It limits imports to the standard library, NumPy and the files in sys.path[0].
NUMPY_ONLY = """
import importlib.machinery
class NumpyOnly:
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in sys.stdlib_module_names or top == "numpy"
        if not known and not importlib.machinery.PathFinder.find_spec(top, sys.path[:1]):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NumpyOnly)
"""

# Runs command lines in one process, as `python -m NAME` or as a script, and notes how they end.
RUN_ALL = """
import contextlib, io, runpy
def run_all(commands):
    return [run(*command) for command in commands]
def run(name, *arguments):
    sys.argv = [name, *arguments]
    sys.modules.pop(f"{name}.__main__", None)  # a script has imported it
    with contextlib.redirect_stdout(io.StringIO()) as out, \\
            contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            if "/" in name or "\\\\" in name:
                runpy.run_path(name, run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            raise AssertionError("a program ends with SystemExit")
        except SystemExit as end:
            return end.code, out.getvalue(), err.getvalue()
"""
GIVEN = asdict(TINY), random_params(TINY, scale=0.3), TOKENS


def python(program, folder, cwd=None):
    """Return `answer` of a Python program that finds modules in `folder` before all others."""
    program = f"""
import sys; sys.path.insert(0, {str(folder)!r})
import pickle
given = pickle.load(sys.stdin.buffer)
{RESULTS}
{program}
pickle.dump(answer, sys.stdout.buffer)
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], input=pickle.dumps(GIVEN),
                          cwd=cwd or folder, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return pickle.loads(done.stdout)


@pytest.fixture(scope="module")
def expected():
    namespace = {}
    exec(RESULTS, namespace)
    results = namespace["results"](gpt2_np, *GIVEN)
    assert len(set(results["greedy"])) > 1
    return results


def assert_same(results, expected):
    for name in "logits", "score":
        np.testing.assert_allclose(results[name], expected[name], rtol=1e-5, atol=1e-5)
    for name in "greedy", "drawn":
        assert results[name] == expected[name]
    if "batch" in results:
        assert results["batch"] == expected["batch"]
        np.testing.assert_allclose(results["windows"], expected["windows"], rtol=1e-5, atol=1e-5)


def copy_reference(folder, package=False):
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "gpt2_np.py", folder)
    if package:
        (folder / "__init__.py").touch()
    return folder


# --- one file --------------------------------------------------------------------------

UNRELATED = "def load(*_): print('not ours')\ndef einsum(*_): return 'not ours'"
OUR_NAMES = sorted(path.stem for path in product_files()
                   if not path.stem.startswith(("gpt2_np", "__")))


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Results of the reference and modules that it loads, in each layout, in one process."""
    parent = tmp_path_factory.mktemp("references")
    script = copy_reference(parent / "script")
    beside_modules = copy_reference(parent / "beside modules")
    for name in OUR_NAMES:
        (beside_modules / f"{name}.py").write_text(f"print('import gpt2_np')\n{UNRELATED}\n")
    in_package = copy_reference(parent / "in a package" / "theirs", package=True)
    (in_package / "backend.py").write_text(UNRELATED)
    beside_folders = copy_reference(parent / "beside folders")
    folders_in_package = copy_reference(parent / "folders in a package" / "theirs", package=True)
    for name in "backend", "checkpoint", "models/shakespeare":
        for folder in beside_folders, folders_in_package:
            (folder / name).mkdir(parents=True)
    layouts = {script: "gpt2_np", beside_modules: "gpt2_np", beside_folders: "gpt2_np",
               in_package.parent: "theirs.gpt2_np", folders_in_package.parent: "theirs.gpt2_np"}
    return python(f"""
{NUMPY_ONLY}
import numpy
def run_in(folder, name):
    before = set(sys.modules)
    sys.path.insert(0, folder)
    found = results(importlib.import_module(name), *given)
    sys.path.remove(folder)
    new = set(sys.modules) - before
    for name in new:  # the next layout imports its own
        if (getattr(sys.modules[name], "__file__", "") or "").startswith(folder):
            del sys.modules[name]
    return found, new
import importlib
answer = {{name: run_in(folder, module) for name, folder, module in
          {[(folder.name, str(folder), module) for folder, module in layouts.items()]}}}
""", parent)


def test_the_reference_alone_needs_only_numpy(references, expected):
    results, modules = references["script"]
    assert_same(results, expected)
    assert "gpt2_np" in modules
    assert not {"backend", "bpe", "checkpoint", "gpt2_np.backend"} & modules


def test_the_reference_alone_runs_no_unrelated_module_beside_it(references, expected):
    """Modules of somebody else may have the names of ours."""
    results, modules = references["beside modules"]
    assert_same(results, expected)
    assert len(OUR_NAMES) > 9 and not set(OUR_NAMES) & modules


def test_the_reference_in_a_package_uses_nothing_of_an_unrelated_backend(references, expected):
    results, modules = references["in a package"]
    assert_same(results, expected)
    assert "theirs.gpt2_np" in modules


@pytest.mark.parametrize("layout", ["beside folders", "folders in a package"])
def test_a_folder_named_like_a_module_is_not_taken_for_it(references, expected, layout):
    """A training script may keep its results in checkpoint/ and models/shakespeare/."""
    assert_same(references[layout][0], expected)


def test_the_command_line_of_the_reference_alone_asks_for_the_repository(tmp_path):
    folder = copy_reference(tmp_path / "script")
    done = subprocess.run([sys.executable, folder / "gpt2_np.py", "hi"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("gpt2_np: ")
    assert "the command line needs the whole repository" in done.stderr


# --- a clone ---------------------------------------------------------------------------

NAMES = """
import gpt2_np
star = {}
exec("from gpt2_np import *", star)
names = (sorted(star.keys() - {"__builtins__"}),
         sorted(name for name in dir(gpt2_np) if not name.startswith("_")))
assert issubclass(gpt2_np.CheckpointError, gpt2_np.Error)
assert gpt2_np.CheckpointError is gpt2_np.checkpoint.CheckpointError
"""


@pytest.fixture(scope="module")
def clone():
    return SimpleNamespace(**python(f"""
{NAMES}
from gpt2_np import checkpoint, circuits
import gpt2_np.gpt2_np
assert gpt2_np.__path__ and gpt2_np is sys.modules["gpt2_np"]
assert gpt2_np.Error is gpt2_np.gpt2_np.Error
assert issubclass(checkpoint.CheckpointError, gpt2_np.Error)
assert gpt2_np.Model is circuits.activations.Model
files = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
answer = dict(names=names, files=[file for file in files if file.startswith(sys.path[0])])
""", ROOT))


def test_a_clone_loads_each_file_once_however_it_is_imported(clone):
    assert len(clone.files) == len(set(clone.files)) > 5, clone.files


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        gpt2_np.nothing  # noqa: B018


# --- the repository inside another package ---------------------------------------------

PUBLIC = sorted(gpt2_np.__all__)
COPIES = "theirs.gpt2_np", "others._vendor.gpt2"


@pytest.fixture(scope="module")
def vendored(tmp_path_factory):
    """What one process finds in two copies, and the folder that they are in."""
    folder = tmp_path_factory.mktemp("vendored")
    for name in COPIES:
        copy_repository(folder / name.replace(".", "/"))
    (folder / "theirs" / "__init__.py").touch()
    save_small_model(folder / "small")
    answer = python(f"""
import importlib
def use(name):
    package = importlib.import_module(name)
    bpe, checkpoint, circuits = (importlib.import_module(f"{{name}}.{{module}}")
                                 for module in ("bpe", "checkpoint", "circuits"))
    assert all(hasattr(package, name) for name in {PUBLIC})
    model = package.load("small", "cpu")
    assert model.tokenizer.decode(model.tokenizer.encode("café")) == "café"
    assert circuits.run(model, "café").logits.size
    continuation = {gpt2_np.complete(gpt2_np.load(folder / "small", "cpu"), "The café")!r}
    assert package.complete(model, "The café") == continuation
    assert package.complete(package.load("shakespeare", "cpu"), "ROMEO", n_tokens=5)
    try:
        package.load("nowhere")
    except package.Error as error:
        assert isinstance(error, checkpoint.CheckpointError)
    else:
        raise AssertionError("there is no such model")
    return results(package, *given)

one, two = packages = [importlib.import_module(name) for name in {COPIES}]
answer = dict(results=[use(name) for name in {COPIES}])
answer["modules"] = sorted(sys.modules)
answer["have their own"] = [getattr(one, name) is not getattr(two, name)
                            for name in ("backend", "Error", "CheckpointError", "Model")]
answer["have their own"].append(one.backend.einsum is not two.backend.einsum)
try:
    two.load("nowhere")
except one.Error:
    answer["caught"] = "by the other"
except two.Error:
    answer["caught"] = "by its own"
{RUN_ALL}
answer["commands"] = run_all([
    (two.__name__, "The café", "--model", "small", "-n", "3"), (two.__name__,)])
""", folder)
    return SimpleNamespace(folder=folder, **answer)


@pytest.mark.parametrize("name", COPIES)
def test_the_repository_is_a_package_under_any_name(vendored, expected, name):
    assert_same(vendored.results[COPIES.index(name)], expected)
    assert f"{name}.backend" in vendored.modules
    tops = {module.partition(".")[0] for module in vendored.modules}
    assert not {"gpt2_np", "backend", "bpe", "checkpoint", "circuits", "inference"} & tops


def test_two_copies_live_side_by_side_in_one_process(vendored):
    assert all(getattr(vendored, "have their own"))
    assert vendored.caught == "by its own"


def test_the_command_line_of_a_vendored_copy_catches_its_errors(vendored):
    (status, out, err), (_, _, usage) = vendored.commands
    assert (status, err, out[:8]) == (0, "", "The café")
    assert usage.startswith("usage: python -m others._vendor.gpt2 [options] [prompt]\n")
    done = subprocess.run(
        [sys.executable, "-m", "others._vendor.gpt2", "The café", "--model", "nowhere"],
        cwd=vendored.folder, timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("gpt2_np: 'nowhere'")


def test_the_package_works_without_its_sources_in_a_zip_file(tmp_path, expected):
    """Some applications ship compiled files only. Weights are asked for outside the archive."""
    folder = copy_repository(tmp_path / "app" / "gpt2_np")
    for path in folder.rglob("*.py"):
        cached = Path(importlib.util.cache_from_source(path))
        if cached.exists():
            cached.rename(path.with_suffix(".pyc"))  # compiled again only if it is of another time
    compileall.compile_dir(folder, quiet=1, legacy=True)
    for path in folder.rglob("*.py"):
        path.unlink()
    archive = shutil.make_archive(tmp_path / "app", "zip", tmp_path / "app")
    answer = python("""
import gpt2_np
from gpt2_np import circuits
from gpt2_np.cuda import elementwise, kernels
assert gpt2_np.backend and gpt2_np.inference.drafts
assert kernels.constants(elementwise.SOURCE)["BLOCK"]
try:
    gpt2_np.load("shakespeare")
except gpt2_np.CheckpointError as error:
    message = str(error)
answer = results(gpt2_np, *given), gpt2_np.__file__, sorted(sys.modules), message
""", archive, cwd=tmp_path)
    results, file, modules, message = answer
    assert_same(results, expected)
    assert file.startswith(archive) and file.endswith(".pyc")
    assert {"gpt2_np.backend", "gpt2_np.circuits"} <= set(modules)
    assert "from inside an archive" in message
    assert "copy the folder" not in message


# --- pip install -----------------------------------------------------------------------


def test_pip_installs_one_package_and_no_other_name(installed):
    found = {path.name for path in installed.iterdir()} - {"bin"}
    assert found == {"gpt2_np", f"gpt2_np-{gpt2_np.__version__}.dist-info"}
    files = {path.relative_to(installed / "gpt2_np").as_posix()
             for path in (installed / "gpt2_np").rglob("*")
             if path.is_file() and path.suffix != ".pyc"}
    sources = {path.as_posix() for path in product_files()}
    kernels = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("cuda/*.cu")}
    pages = {f"{folder}/README.md" for folder in PACKAGES if folder}
    pages |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("circuits/pages/*")}
    model = {f"models/shakespeare/{name}" for name in
             ("README.md", "config.json", "merges.txt", "model.safetensors", "vocab.json")}
    assert len(kernels) == 2 and "circuits/pages/pages.css" in pages
    assert files - pages == {"py.typed", *sources, *kernels, *model}


PROGRAMS = {
    "gpt2-np": ["ROMEO", "--model", "shakespeare", "-n", "5"],
    "python -m gpt2_np": ["ROMEO", "--model", "shakespeare", "-n", "5"],
    "gpt2-np-circuits": ["lens", "ROMEO", "-m", "shakespeare"],
    "python -m gpt2_np.circuits": ["lens", "ROMEO", "-m", "shakespeare"],
}


@pytest.fixture(scope="module")
def used(installed, tmp_path_factory):
    """What one process finds in the installation, and how each program ends in it."""
    commands = [(called, *given) for called, arguments in PROGRAMS.items()
                for given in (arguments, [])]
    commands += [("gpt2-np", "ROMEO", "--model", "nowhere")]
    starts = [(called.removeprefix("python -m ") if " " in called
               else str(installed / "bin" / called), *given) for called, *given in commands]
    answer = python(f"""
sys.path.insert(0, {str(installed)!r})
{NAMES}
assert gpt2_np.__file__.startswith({str(installed)!r})
assert all(hasattr(gpt2_np, name) for name in {PUBLIC})
assert gpt2_np.complete(gpt2_np.load("shakespeare", "cpu"), "ROMEO", n_tokens=5)
answer = dict(names=names, results=results(gpt2_np, *given), modules=set(sys.modules))
{RUN_ALL}
answer["ends"] = run_all({starts})
""", tmp_path_factory.mktemp("anywhere"))
    return SimpleNamespace(**{**answer, "ends": dict(zip(commands, answer["ends"], strict=True))})


def test_the_installed_package_works_from_anywhere(used, expected):
    assert_same(used.results, expected)
    assert not {"backend", "bpe", "checkpoint", "circuits", "inference"} & used.modules


def test_clone_and_installation_have_the_same_names(clone, used):
    assert clone.names == used.names
    assert clone.names[0] == PUBLIC


@pytest.mark.parametrize("called", PROGRAMS)
def test_an_installed_program_runs_and_names_itself_as_called(used, called):
    status, out, err = used.ends[called, *PROGRAMS[called]]
    assert (status, err) == (0, "")
    assert "final_post" in out if "circuits" in called else out[:5] == "ROMEO"
    status, out, err = used.ends[called,]
    assert (status, out) == (2, "") and err.startswith(f"usage: {called} ")
    if "circuits" not in called:
        usage, sentence = err.splitlines()
        assert usage == f"usage: {called} [options] [prompt]"
        assert f'there is no prompt: {called} "Alan Turing was"' in sentence


def test_the_installed_command_catches_its_errors(used):
    status, out, err = used.ends["gpt2-np", "ROMEO", "--model", "nowhere"]
    assert (status, out, err.count("\n")) == (1, "", 1)


@pytest.mark.parametrize("called, arguments, status, words", [
    ("gpt2-np", ["--version"], 0, f"gpt2_np {gpt2_np.__version__}\n"),
    ("gpt2-np-circuits", [], 2, "usage: gpt2-np-circuits "),
])
def test_an_installed_command_is_a_program(installed, tmp_path, called, arguments, status, words):
    done = subprocess.run([installed / "bin" / called, *arguments], cwd=tmp_path, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True,
                          text=True, check=False)
    assert done.returncode == status
    assert (done.stderr if status else done.stdout).startswith(words)

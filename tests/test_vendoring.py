"""The ways of use: the code works the same run, imported, installed, copied or vendored."""
import compileall
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from copies import PACKAGES, ROOT, copy_repository, product_files
from random_model import TINY, random_params
from small_model import save_small_model

import gpt2_np

TOKENS = [5, 3, 60, 7, 7, 12, 5]

# A program that runs a model on arrays and token ids and writes its results to stdout.
PROGRAM = """
import pickle, sys
import numpy as np
config, params, tokens = pickle.load(sys.stdin.buffer)
model = gpt2_np.Model(gpt2_np.Config(**config), params)
options = dict(temperature=1.5, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=3)
results = dict(
    logits=gpt2_np.forward(model.params, model.config, tokens),
    greedy=list(gpt2_np.generate(model, tokens, 9)),
    drawn=list(gpt2_np.generate(model, tokens, 9, **options)),
    score=gpt2_np.score(model, tokens * 3),
)
if hasattr(gpt2_np, "generate_batch"):  # more than the reference alone
    results["batch"] = list(gpt2_np.generate_batch(model, [tokens, tokens[:2]], 9, **options))
    results["windows"] = gpt2_np.score(model, tokens * 6)
pickle.dump((results, sorted(sys.modules)), sys.stdout.buffer)
"""

# Run first, it limits imports to the standard library, NumPy and the files in sys.path[0].
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
    """Return stdout of a Python program that finds modules in `folder` before all others."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *arguments],
        cwd=folder, capture_output=True, timeout=60, check=False, **options,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout


def results_of(program, folder):
    """Return the results of PROGRAM in that folder, and the modules that it has loaded."""
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


def test_the_reference_alone_needs_only_numpy(tmp_path, expected):
    folder = copy_reference(tmp_path / "script")
    results, modules = results_of(NUMPY_ONLY + "import gpt2_np", folder)
    assert_same(results, expected)
    assert not {"backend", "bpe", "checkpoint", "gpt2_np.backend"} & set(modules)


UNRELATED = "def load(*_): print('not ours')\ndef einsum(*_): return 'not ours'"


def test_the_reference_alone_runs_no_unrelated_module_beside_it(tmp_path, expected):
    """Modules of somebody else may have the names of ours."""
    folder = copy_reference(tmp_path / "theirs")
    names = [path.stem for path in product_files() if not path.stem.startswith(("gpt2_np", "__"))]
    for name in names:
        (folder / f"{name}.py").write_text(f"print('import gpt2_np')\n{UNRELATED}\n")
    results, modules = results_of("import gpt2_np", folder)
    assert_same(results, expected)
    assert not set(names) & set(modules)


def test_the_reference_in_a_package_uses_nothing_of_an_unrelated_backend(tmp_path, expected):
    folder = copy_reference(tmp_path / "theirs", package=True)
    (folder / "backend.py").write_text(UNRELATED)
    results, _ = results_of("from theirs import gpt2_np", tmp_path)
    assert_same(results, expected)


@pytest.mark.parametrize("package", [False, True], ids=["script", "package"])
def test_a_folder_named_like_a_module_is_not_taken_for_it(tmp_path, expected, package):
    """A training script may keep its results in checkpoint/ and models/shakespeare/."""
    folder = copy_reference(tmp_path / "theirs", package)
    for name in "backend", "checkpoint", "models/shakespeare":
        (folder / name).mkdir(parents=True)
    program = "from theirs import gpt2_np" if package else "import gpt2_np"
    results, _ = results_of(program, tmp_path if package else folder)
    assert_same(results, expected)


def test_the_command_line_of_the_reference_alone_asks_for_the_repository(tmp_path):
    folder = copy_reference(tmp_path / "script")
    done = subprocess.run([sys.executable, folder / "gpt2_np.py", "hi"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("gpt2_np: ")
    assert "the command line needs the whole repository" in done.stderr


# --- a clone ---------------------------------------------------------------------------


def test_a_clone_loads_each_file_once_however_it_is_imported():
    program = """
import gpt2_np
from gpt2_np import checkpoint, circuits
import gpt2_np.gpt2_np
assert gpt2_np.__path__ and gpt2_np is sys.modules["gpt2_np"]
assert gpt2_np.Error is gpt2_np.gpt2_np.Error
assert issubclass(checkpoint.CheckpointError, gpt2_np.Error)
assert gpt2_np.Model is circuits.activations.Model
files = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
files = [file for file in files if file.startswith(sys.path[0])]
assert len(files) == len(set(files)) > 5, files
"""
    python(program, ROOT)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        gpt2_np.nothing  # noqa: B018


# --- the repository inside another package ---------------------------------------------

PUBLIC = sorted(gpt2_np.__all__)


@pytest.mark.parametrize("name", ["gpt2_np", "gpt2"])
def test_the_repository_is_a_package_under_any_name(tmp_path, expected, name):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").touch()
    copy_repository(tmp_path / "theirs" / name)
    save_small_model(tmp_path / "small")
    program = f"""
import theirs.{name} as package
from theirs.{name} import bpe, checkpoint, circuits
assert all(hasattr(package, name) for name in {PUBLIC})
model = package.load("small", "cpu")
assert model.tokenizer.decode(model.tokenizer.encode("café")) == "café"
assert circuits.run(model, "café").logits.size
continuation = {gpt2_np.complete(gpt2_np.load(tmp_path / "small", "cpu"), "The café")!r}
assert package.complete(model, "The café") == continuation
assert package.complete(package.load("shakespeare", "cpu"), "ROMEO", n_tokens=5)
try:
    package.load("nowhere")
except package.Error as error:
    assert isinstance(error, checkpoint.CheckpointError)
else:
    raise AssertionError("there is no such model")
gpt2_np = package
"""
    results, modules = results_of(program, tmp_path)
    assert_same(results, expected)
    assert f"theirs.{name}.backend" in modules
    assert not {"gpt2_np", "backend", "bpe", "checkpoint", "circuits", "inference"} & set(modules)


def test_two_copies_live_side_by_side_in_one_process(tmp_path):
    for name in "one", "two":
        copy_repository(tmp_path / name / "_vendor" / "gpt2")
    save_small_model(tmp_path / "small")
    python(
        """
from one._vendor import gpt2 as one
from two._vendor import gpt2 as two
assert one is not two and one.backend.einsum is not two.backend.einsum
texts = {gpt2.complete(gpt2.load("small", "cpu"), "The café") for gpt2 in (one, two)}
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
    copy_repository(tmp_path / "theirs" / "_vendor" / "gpt2")
    save_small_model(tmp_path / "small")

    def run(*arguments):
        command = [sys.executable, "-m", "theirs._vendor.gpt2", *arguments]
        return subprocess.run(command, cwd=tmp_path, timeout=60, capture_output=True, text=True,
                              encoding="utf-8", check=False)

    done = run("The café", "--model", "small", "-n", "3")
    assert (done.returncode, done.stderr, done.stdout[:8]) == (0, "", "The café")
    done = run("The café", "--model", "nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("gpt2_np: 'nowhere'")
    assert run().stderr.startswith("usage: python -m theirs._vendor.gpt2 [options] [prompt]\n")


def test_the_package_works_without_its_sources(tmp_path, expected):
    """Some applications ship compiled files only."""
    folder = copy_repository(tmp_path / "app" / "gpt2_np")
    compileall.compile_dir(folder, quiet=1, legacy=True)
    for path in folder.rglob("*.py"):
        path.unlink()
    results, modules = results_of("from gpt2_np import circuits; import gpt2_np", tmp_path / "app")
    assert_same(results, expected)
    assert {"gpt2_np.backend", "gpt2_np.circuits"} <= set(modules)


def test_the_package_works_in_a_zip_file_and_asks_for_weights_outside_it(tmp_path):
    copy_repository(tmp_path / "clone" / "gpt2_np")
    archive = shutil.make_archive(tmp_path / "app", "zip", tmp_path / "clone")
    program = f"""
import sys; sys.path.insert(0, {archive!r})
import gpt2_np
assert gpt2_np.backend and gpt2_np.inference.drafts
from gpt2_np.cuda import elementwise, kernels
assert kernels.constants(elementwise.SOURCE)["BLOCK"]
try:
    gpt2_np.load("shakespeare")
except gpt2_np.CheckpointError as error:
    print(error)
"""
    message = python(program, tmp_path).decode()
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


def test_the_installed_package_works_from_anywhere(installed, tmp_path, expected):
    program = f"""
sys.path.insert(0, {str(installed)!r})
import gpt2_np
assert gpt2_np.__file__.startswith({str(installed)!r})
assert all(hasattr(gpt2_np, name) for name in {PUBLIC})
assert gpt2_np.complete(gpt2_np.load("shakespeare", "cpu"), "ROMEO", n_tokens=5)
"""
    results, modules = results_of(program, tmp_path)
    assert_same(results, expected)
    assert not {"backend", "bpe", "checkpoint", "circuits", "inference"} & set(modules)


def test_clone_and_installation_have_the_same_names(installed):
    program = """
import gpt2_np
assert issubclass(gpt2_np.CheckpointError, gpt2_np.Error)
assert gpt2_np.CheckpointError is gpt2_np.checkpoint.CheckpointError
star = {}
exec("from gpt2_np import *", star)
print(*sorted(star.keys() - {"__builtins__"}))
print(*sorted(name for name in dir(gpt2_np) if not name.startswith("_")))
"""
    in_clone, by_pip = (python(program, folder).decode().splitlines()
                        for folder in (ROOT, installed))
    assert in_clone == by_pip
    assert in_clone[0].split() == sorted(PUBLIC)


COMMANDS = {
    "command": ["gpt2-np"], "module": ["python", "-m", "gpt2_np"],
    "circuits command": ["gpt2-np-circuits"],
    "circuits module": ["python", "-m", "gpt2_np.circuits"],
}


@pytest.fixture
def run_installed(installed, tmp_path):
    """A function that runs one of the installed COMMANDS."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(command, *arguments):
        first, *rest = COMMANDS[command]
        first = sys.executable if first == "python" else installed / "bin" / first
        return subprocess.run([first, *rest, *arguments], cwd=tmp_path, env=environment,
                              timeout=60, capture_output=True, text=True, encoding="utf-8",
                              check=False)

    return run


@pytest.mark.parametrize("command", ["command", "module"])
def test_an_installed_program_runs_and_names_itself_as_called(run_installed, command):
    name = " ".join(COMMANDS[command])
    done = run_installed(command, "ROMEO", "--model", "shakespeare", "-n", "5")
    assert (done.returncode, done.stderr, done.stdout[:5]) == (0, "", "ROMEO")
    usage, sentence = run_installed(command).stderr.splitlines()
    assert usage == f"usage: {name} [options] [prompt]"
    assert f'there is no prompt: {name} "Alan Turing was"' in sentence


@pytest.mark.parametrize("command", ["circuits command", "circuits module"])
def test_an_installed_circuits_program_runs_and_names_itself_as_called(run_installed, command):
    done = run_installed(command, "lens", "ROMEO", "-m", "shakespeare")
    assert (done.returncode, done.stderr) == (0, "") and "final_post" in done.stdout
    assert run_installed(command).stderr.startswith(f"usage: {' '.join(COMMANDS[command])} ")


def test_the_installed_command_knows_its_version_and_catches_its_errors(run_installed):
    assert run_installed("command", "--version").stdout == f"gpt2_np {gpt2_np.__version__}\n"
    done = run_installed("command", "ROMEO", "--model", "nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)

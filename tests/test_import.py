"""What an import costs: NumPy and the standard library; what a job has no use for is not loaded."""
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2_np

ROOT = Path(gpt2_np.__file__).parent
MODULES = sorted(path.stem for path in ROOT.glob("*.py") if not path.stem.startswith("__"))


@functools.cache
def loaded(program, folder=ROOT):
    """The top-level modules that are loaded after a program, less those before it."""
    program = f"""
import sys
before = set(sys.modules)
sys.path.insert(0, {str(folder)!r})
{program}
print(*{{name.partition(".")[0] for name in set(sys.modules) - before}}, sep="\\n")
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], timeout=60, check=True,
                          capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", MODULES)
def test_a_module_loads_numpy_and_the_standard_library_only(module):
    # import numpy may load what is in its environment (threadpoolctl, mkl), so it goes first.
    numpy = loaded("import numpy")
    others = loaded(f"import {module}") - numpy - sys.stdlib_module_names - set(MODULES)
    assert module in loaded(f"import {module}")
    assert others == set()


def test_the_model_loads_neither_tokenizer_nor_checkpoint_reader():
    assert {"gpt2_np", "backend", "drafts"} <= loaded("import gpt2_np")
    assert not {"bpe", "checkpoint", "requests", "tqdm", "cupy"} & loaded("import gpt2_np")


def test_the_package_loads_no_more_than_the_module(tmp_path):
    (tmp_path / "gpt2_np").symlink_to(ROOT)
    as_package = loaded("import gpt2_np; assert gpt2_np.__path__", tmp_path)
    assert as_package == loaded("import gpt2_np") - {"backend", "drafts"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["--info"], ["--info", "--json"]])
def test_what_needs_no_model_loads_no_reader(arguments):
    found = loaded(f"""
import contextlib, io, gpt2_np
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    gpt2_np.main({arguments})
assert out.getvalue()
""")
    assert "gpt2_np" in found
    assert not {"bpe", "checkpoint", "requests", "urllib3", "tqdm", "cupy"} & found


def test_a_model_on_disk_needs_nothing_for_the_network(tmp_path):
    found = loaded("""
import gpt2_np
model = gpt2_np.load("shakespeare", "cpu")
gpt2_np.complete(model, "ROMEO", n_tokens=2)
""")
    assert {"gpt2_np", "checkpoint", "bpe"} <= found
    assert not {"requests", "urllib3", "tqdm", "cupy"} & found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_whose_it_is_so_that_a_stranger_of_its_name_is_not_taken_for_it(module):
    assert module == "gpt2_np" or (module in gpt2_np.SIBLINGS and gpt2_np.is_ours(module))


def test_the_modules_are_found_through_gpt2_np_at_the_root_of_a_clone_too():
    program = "from gpt2_np import circuits, checkpoint; import gpt2_np; gpt2_np.nothing"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("has no attribute 'nothing'")

"""The folder cuda/ of a clone leaves room for other packages named cuda.

CuPy 14 imports cuda.pathfinder, a part of a namespace package of NVIDIA's. A regular package
`cuda` in the root of a clone would hide it.
"""
import os
import subprocess
import sys

import pytest
from copies import ROOT

PROGRAM = """
import gpt2_np
from gpt2_np.cuda import decode_step
import cuda.pathfinder
print(cuda.pathfinder.__file__, decode_step.__file__)
"""


def test_the_folder_has_no_init():
    assert not (ROOT / "cuda" / "__init__.py").exists()


@pytest.mark.parametrize("first", ["clone", "site"])
@pytest.mark.parametrize("regular", [False, True], ids=["namespace", "regular"])
def test_another_cuda_is_importable_beside_a_clone(tmp_path, first, regular):
    other = tmp_path / "cuda" / "pathfinder"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    if regular:
        (tmp_path / "cuda" / "__init__.py").touch()
    path = [str(ROOT), str(tmp_path)][:: 1 if first == "clone" else -1]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.split() == [
        str(other / "__init__.py"), str(ROOT / "cuda" / "decode_step.py")]

"""A program that PyInstaller freezes into one file does what it does when Python runs it."""
import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import gpt2_np
from gpt2_np import circuits
from gpt2_np.cuda import decode_step, elementwise, kernels

model = gpt2_np.load("shakespeare", "cpu")
print(gpt2_np.complete(model, "ROMEO: naïve", n_tokens=20, temperature=0.8, seed=1))
print(circuits.run(model, "But soft").logits.shape)
print([kernels.constants(kernel.SOURCE) for kernel in (decode_step, elementwise)])
sys.exit(gpt2_np.main(["ROMEO.", "-m", "shakespeare", "-n", "5"]))
"""


@pytest.mark.slow
def test_a_program_frozen_with_collect_data_prints_what_python_prints(installed, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONIOENCODING": "utf-8"}

    def output_of(*command, env=environment):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=900,
                              check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    expected = output_of(sys.executable, "program.py")
    output_of(sys.executable, "-m", "PyInstaller", "--onefile", "--collect-data", "gpt2_np",
              "program.py")
    del environment["PYTHONPATH"]
    assert output_of(tmp_path / "dist" / "program") == expected
    assert b"ROMEO." in expected

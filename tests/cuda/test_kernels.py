"""The .cu files: their constants, and what CUDA's compiler says of them."""
import itertools
import re
import subprocess
from pathlib import Path

import pytest
from cuda_on_cpu import signatures

from gpt2_np.cuda import decode_step, elementwise
from gpt2_np.cuda.kernels import compile_kernels, constants

SOURCES = [Path(decode_step.SOURCE), Path(elementwise.SOURCE)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_kernel_of_a_source_is_found(source, launched):
    options = ("-DHALF=0",)
    assert set(compile_kernels(source, options, launched)) == set(signatures(source.read_text()))


def test_constants_are_what_the_source_defines_as_plain_numbers(tmp_path):
    source = tmp_path / "some.cu"
    source.write_text("constexpr int TILE = 64;  // keys\nconstexpr int HALF = TILE / 2;\n"
                      "void f() { int digit = 255; }\n")  # fmt: skip
    assert constants(source) == {"TILE": 64}


@pytest.mark.parametrize("module", [decode_step, elementwise], ids=lambda module: module.__name__)
def test_the_host_reads_no_constant_that_the_source_lacks(module):
    with open(module.__file__, encoding="utf-8") as file:
        read = re.findall(r'(?:size|\(SOURCE\))\["(\w+)"\]', file.read())
    assert read and set(read) <= set(constants(module.SOURCE))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_source_is_plain_ascii(source):
    assert source.read_bytes().isascii()  # NVRTC gets it as it is


SHAPES = {"decode_step.cu": list(itertools.product(
    [(768, 12, 1), (768, 12, 8), (1600, 25, 4)], [0, 1])), "elementwise.cu": [None]}  # fmt: skip


@pytest.mark.nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("source", "shape"), [
    (source, shape) for source in SOURCES for shape in SHAPES[source.name]
], ids=str)  # fmt: skip
def test_the_kernels_compile_without_warnings(tmp_path, architecture, source, shape):
    definitions = []
    if shape:
        (n_embd, n_head, rows), half = shape
        definitions = [f"-DN_EMBD={n_embd}", f"-DN_HEAD={n_head}", f"-DROWS={rows}",
                       f"-DHALF={half}", "-DEPSILON=1e-5f"]  # fmt: skip
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "-Werror", "all-warnings",
               *definitions, str(source)]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""The part of CuPy that launches and captures kernels, on the strict stand-in's arrays.

`install(monkeypatch)` gives `strict_arrays` streams, graphs and RawModule. Every launch is checked
against the kernel's own parameters. With `compiler` the CUDA source itself is compiled for the CPU,
with cuda_on_cpu.h in place of CUDA, and run. Without it nothing is computed.
"""
import ctypes
import functools
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import strict_arrays

from gpt2_np.cuda import elementwise

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
TYPES = {"float": np.float32, "int": np.int32, "double": np.float64,
         "unsigned long long": np.uint64}  # fmt: skip
FORTIFIED = ("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=0")  # it takes a change of stacks for a fault


def signatures(source):
    """Return the parameters of every kernel as they are written: "const float*" or "int" each."""
    found = re.findall(
        r'extern "C" __global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(([^)]*)\)', source
    )
    return {name: [re.sub(r"\w+$", "", text.strip()).strip() for text in inside.split(",")]
            for name, inside in found}  # fmt: skip


@functools.cache
def compiled(compiler, source, options):
    """Return a shared library with a function for every kernel."""
    glue = []
    for name, types in signatures(source).items():
        arguments = ", ".join(f"*({kind}*)a[{i}]" for i, kind in enumerate(types))
        glue.append(
            f"static void call_{name}(void** a) {{ {name}({arguments}); }}\n"
            f'extern "C" int launch_{name}(void** a, unsigned* grid, unsigned* block) '
            f"{{ return run_grid(call_{name}, a, grid, block); }}\n"
        )
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        file.write_text(f'#include "{HEADER}"\n{source}\n{"".join(glue)}')
        command = [compiler, "-O2", *FORTIFIED, "-shared", "-fPIC", *options, str(file), "-o",
                   str(library)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(library))


class RawModule:
    compiler = None

    def __init__(self, *, code, options):
        assert type(options) is tuple and all(type(option) is str for option in options)
        number = np.float16 if "-DHALF=1" in options else np.float32
        types = TYPES | {"number": number}
        self.parameters = {
            name: [types[kind.strip("*").removeprefix("const ")] if "*" in kind else kind
                   for kind in kinds]
            for name, kinds in signatures(code).items()
        }  # fmt: skip
        self.library = compiled(self.compiler, code, options) if self.compiler else None

    def get_function(self, name):
        return functools.partial(self.launch, name)

    def launch(self, name, grid, block, arguments):
        parameters = self.parameters[name]
        assert all(type(n) is int and n > 0 for n in (*grid, *block)), (name, grid, block)
        assert type(grid) is type(block) is tuple and max(grid[1:], default=1) < 2**16
        assert len(arguments) == len(parameters), name
        for argument, parameter in zip(arguments, parameters, strict=True):
            if parameter == "int":
                assert type(argument) is np.int32, (name, argument)
            else:
                assert argument.dtype == parameter and argument.flags.c_contiguous, (name, argument)
        if strict_arrays.capturing is not None:
            strict_arrays.capturing.append((self, name, grid, block, arguments))
        else:
            self.compute(name, grid, block, arguments)

    def compute(self, name, grid, block, arguments):
        if not self.library:
            return
        values = [
            ctypes.c_int(int(a)) if isinstance(a, np.int32) else ctypes.c_void_p(a.data.ptr)
            for a in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values)
        )
        sizes = [(ctypes.c_uint * 3)(*(*n, 1, 1)[:3]) for n in (grid, block)]
        missed = getattr(self.library, f"launch_{name}")(pointers, *sizes)
        assert not missed, f"{name}: some threads of a block missed a barrier"


class Graph:
    def __init__(self, launches):
        self.launches = launches

    def launch(self, stream):
        strict_arrays.refuse_capture("launches of graphs")
        for module, *rest in self.launches:
            module.compute(*rest)


entered = []  # streams


class Stream:
    def __init__(self, non_blocking=False):
        self.non_blocking = non_blocking

    def __enter__(self):
        entered.append(self)
        return self

    def __exit__(self, *_):
        entered.pop()

    def begin_capture(self):
        assert self.non_blocking and entered[-1] is self
        strict_arrays.capturing = []

    def end_capture(self):
        launches, strict_arrays.capturing = strict_arrays.capturing, None
        return Graph(launches)

    def record(self):
        return self

    def wait_event(self, event):
        strict_arrays.refuse_capture("events of other streams")

    def synchronize(self):
        strict_arrays.refuse_capture("synchronous API calls")


def install(monkeypatch, compiler=None):
    # Without a compiler launches compute nothing. With it nothing is remembered between tests.
    fresh = functools.cache(elementwise.compiled.__wrapped__) if compiler else lambda xp: None
    monkeypatch.setattr(elementwise, "compiled", fresh)
    module = type("RawModule", (RawModule,), {"compiler": compiler})
    monkeypatch.setattr(strict_arrays, "RawModule", module, raising=False)
    cuda = {
        "Stream": Stream,
        "get_current_stream": Stream,
        "alloc_pinned_memory": bytearray,
        "Device": lambda: SimpleNamespace(attributes={"MultiProcessorCount": 3}),
    }
    for name, value in cuda.items():
        monkeypatch.setattr(strict_arrays.cuda, name, value, raising=False)

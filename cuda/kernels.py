"""The kernels of the .cu files in this folder, compiled by NVRTC, and the sizes they define."""
from __future__ import annotations

import functools
import re
from types import ModuleType
from typing import Any


@functools.cache
def constants(source: str) -> dict[str, int]:
    """Return the constants of a .cu file, from lines such as `constexpr int BLOCK = 256;`."""
    found = re.findall(r"^constexpr int (\w+) = (\d+);", read(source), re.MULTILINE)
    return {name: int(value) for name, value in found}


def compile_kernels(source: str, options: tuple[str, ...], xp: ModuleType) -> dict[str, Any]:
    """Return the kernels of a .cu file by name. Raises the errors of NVRTC and of the driver."""
    text = read(source)
    names = re.findall(r"__global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(", text)
    module = xp.RawModule(code=text, options=("-std=c++17", *options))
    return {name: module.get_function(name) for name in names}


def read(source: str) -> str:
    return __loader__.get_data(source).decode()  # type: ignore[name-defined]  # from a zip too


def reason(error: Exception) -> str:
    """Return the first line of an error of CUDA, or the name of its class."""
    return str(error).strip().partition("\n")[0] or type(error).__name__

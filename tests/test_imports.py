"""Imports run downward, and an import loads NumPy and the standard library only."""
import ast
import functools
import subprocess
import sys

from copies import ROOT, product_files

# From the bottom up. A file may import files further down, and files of its own folder.
ORDER = ["cuda", "backend", "bpe", "gpt2_np", "checkpoint", "inference", "circuits",
         "command_line", "circuits.__main__", "corpus", "__init__", "__main__"]
FORBIDDEN = {"circuits": {"checkpoint"}}


def name_of(path):
    """Return the dotted name of a file within the package: "inference.drafts"."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__") or "__init__"


FILES = {name_of(path): path for path in product_files()}


def height(name):
    return ORDER.index(name if name in ORDER else name.partition(".")[0])


@functools.cache
def own_imports(name):
    """Return the name of each of our own files that a file imports, and True if at its top."""
    return list(imports_of(name))


def imports_of(name):
    path = FILES[name]
    package = list(path.parent.parts)
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.partition(".")[0] == "gpt2_np" for alias in node.names), name
        if not isinstance(node, ast.ImportFrom):
            continue
        if not node.level:
            assert node.module.partition(".")[0] != "gpt2_np" or name == "gpt2_np", name
            continue
        base = package[: len(package) - node.level + 1]
        base += node.module.split(".") if node.module else []
        for alias in node.names:
            full_name = ".".join([*base, alias.name])
            is_file = full_name in FILES or full_name == "cuda"
            found = full_name if is_file else ".".join(base) or "__init__"
            yield found, at_top_level(tree, node)


def at_top_level(tree, node):
    """Return True for an import that stands on its own, in a `try` or under TYPE_CHECKING."""
    blocks = [statement.body for statement in tree.body if isinstance(statement, ast.Try)
              or (isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING")]
    return any(node in block for block in [tree.body, *blocks])


@functools.cache
def graph():
    return {name: sorted({found for found, _ in own_imports(name)} - {"cuda"}) for name in FILES}


def test_imports_run_downward():
    print("\n".join(f"{name}: {', '.join(found) or '-'}" for name, found in graph().items()))
    for name, found in graph().items():
        for other in found:
            folder, other_folder = name.partition(".")[0], other.partition(".")[0]
            same_folder = "." in other and other_folder == folder
            assert height(other) < height(name) or same_folder, f"{name} imports {other}"
            if name != "circuits.__main__":
                assert other_folder not in FORBIDDEN.get(folder, ()), f"{name} imports {other}"


def test_imports_have_no_cycle():
    """Files of the same folder have none either."""
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name in done:
            return
        path.append(name)
        for other in graph()[name]:
            visit(other)
        done.add(path.pop())

    for name in FILES:
        visit(name)


def test_our_own_modules_are_imported_at_the_top_of_a_file():
    assert not [(name, found) for name in FILES for found, at_top in own_imports(name)
                if not at_top]


def test_no_file_depends_on_how_it_was_imported():
    for name, path in FILES.items():
        text = (ROOT / path).read_text()
        for words in "if __package__", "def __getattr__(name", "Part of gpt2_np.", "sys._getframe":
            assert words not in text, name


def loaded(program):
    """Return the modules that a program loads."""
    program = f"""
import sys
before = set(sys.modules)
sys.path.insert(0, {str(ROOT)!r})
{program}
print(*set(sys.modules) - before, sep="\\n")
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], timeout=60, check=True,
                          capture_output=True, text=True)
    return set(done.stdout.split())


def top_names(names):
    return {name.partition(".")[0] for name in names}


# With NumPy come threadpoolctl or mkl on some machines.
NUMPY = functools.cache(lambda: top_names(loaded("import numpy")))
LAZY = {"cupy", "lm_eval", "matplotlib", "pyarrow", "ray", "regex", "requests", "tqdm", "urllib3"}
MODULES = [name for name in FILES if not name.endswith("__") or name == "__init__"]


def test_all_modules_together_load_only_numpy_and_the_standard_library():
    modules = ["gpt2_np" if name == "__init__" else f"gpt2_np.{name}" for name in MODULES]
    found = loaded("\n".join(f"import {module}" for module in modules))
    assert set(modules) <= found
    assert top_names(found) - NUMPY() - sys.stdlib_module_names == {"gpt2_np"}


def test_importing_the_package_loads_no_circuits():
    found = loaded("import gpt2_np")
    assert {"gpt2_np.gpt2_np", "gpt2_np.inference.generation"} <= found
    assert not {name for name in found if name.startswith(("gpt2_np.circuits", "gpt2_np.corpus"))}


COMMANDS = [["--help"], ["--version"], ["--info"], ["--info", "--json"],
            ["-m", "shakespeare", "ROMEO", "-n", "2"], ["-m", "shakespeare", "--score", "ROMEO"]]


def test_commands_on_ascii_text_load_no_optional_library():
    found = loaded(f"""
import contextlib, io, gpt2_np
for arguments in {COMMANDS}:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        gpt2_np.main(arguments)
    assert out.getvalue()
""")
    assert not LAZY & top_names(found)


def test_text_beyond_ascii_loads_regex():
    program = """
import gpt2_np
gpt2_np.load("shakespeare", "cpu").tokenizer.encode("naïve")
"""
    assert LAZY & top_names(loaded(program)) == {"regex"}

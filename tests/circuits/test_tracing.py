"""The trace is measured: shapes, types, work and einsums are those of a real pass."""
import ast
import cProfile
import json
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from random_model import TINY, random_model, random_params

import gpt2_np
from gpt2_np import Config, KVCache, Model, circuits, forward
from gpt2_np.circuits import tracing
from gpt2_np.circuits.__main__ import main
from gpt2_np.inference.costs import describe

MODEL = random_model()
REFERENCE = ast.parse((Path(gpt2_np.__file__).parent / "gpt2_np.py").read_text())


def test_every_activation_of_a_pass_is_a_row_in_the_order_of_the_pass():
    found = circuits.trace(MODEL, [[1, 2, 3], [4, 5, 6]])
    seen = {}
    logits = forward(MODEL.params, TINY, found.tokens, tap=lambda name, x: seen.update({name: x}))
    seen["logits"] = logits
    assert [row.name for row in found.rows] == list(seen)
    named = [*circuits.activation_names(TINY), "logits"]
    assert list(seen) == [name for name in named if not name.endswith("hook_result")]
    for row in found.rows:
        array = seen[row.name]
        assert (row.shape, row.dtype, row.bytes) == (array.shape, str(array.dtype), array.nbytes)
    assert found.bytes == sum(array.nbytes for array in seen.values())


def test_types_are_measured():
    model = Model(TINY, random_params(TINY, dtype=np.float64))
    assert {row.dtype for row in circuits.trace(model, [1, 2]).rows} == {"float64"}


@pytest.mark.parametrize("result", [False, True])
def test_axes_are_those_of_the_pass(result):
    """With sizes that all differ, and a cache, a shape can mean one set of letters only."""
    config = Config(n_vocab=61, n_ctx=24, n_embd=15, n_head=5, n_layer=2)
    sizes = {"b": 2, "q": 7, "k": 11, "d": 15, "h": 5, "e": 3, "m": 60, "v": 61, "1": 1}
    assert len(set(sizes.values())) == len(sizes)

    def check(name, array):
        assert array.shape == tuple(sizes[letter] for letter in tracing.axes_of(name)), name

    class Tap:
        wants = staticmethod(lambda name: result or not name.endswith("hook_result"))
        __call__ = staticmethod(check)

    cache, params = KVCache(config, batch=2, capacity=11), random_params(config)
    forward(params, config, np.ones((2, 4), int), cache)
    check("logits", forward(params, config, np.ones((2, 7), int), cache, Tap()))


def test_einsums_are_those_of_the_source_and_made_the_activations_beside_them():
    """Each makes arrays of the axes of its row, but for the axis of query, key and value."""
    called = {node.args[0].value for node in ast.walk(REFERENCE) if isinstance(node, ast.Call)
              and isinstance(node.func, ast.Name) and node.func.id == "einsum"}
    rows = circuits.trace(MODEL, [1, 2, 3]).rows
    noted = {row.einsum for row in rows} - {""}
    assert noted == called - {"bqhe,hed->bqhd"}  # the one for hook_result
    for row in rows:
        if row.einsum:
            made = row.einsum.partition("->")[2].replace("c", "")
            assert made == row.axes.replace("1", ""), row
    without = {circuits.names.kind_of(row.name) for row in rows if not row.einsum}
    assert without == {"embed", "pos_embed", "resid_pre", "normalized", "pattern", "resid_mid",
                       "post", "resid_post"}


@pytest.mark.parametrize("n", [1, 2, 5, TINY.n_ctx])
def test_totals_are_those_of_describe(n):
    found, about = circuits.trace(MODEL, [7] * n), describe(TINY)
    first, last = about["flops_per_token_first"], about["flops_per_token_at_n_ctx"]
    at_n = first + (last - first) * (n - 1) / (TINY.n_ctx - 1)
    assert found.flops_per_token == pytest.approx(at_n, rel=1e-12)
    assert found.cache_bytes == n * about["cache_bytes_per_token"]
    assert found.norm_multiply_adds == (2 * TINY.n_layer + 1) * n * TINY.n_embd


def test_other_passes_are_not_watched():
    """A pass in another thread, while a trace runs, is in no row."""
    stop, model = threading.Event(), random_model(seed=1)
    thread = threading.Thread(target=lambda: [
        forward(model.params, TINY, [1, 2, 3]) for _ in iter(stop.is_set, True)])
    thread.start()
    try:
        rows = [circuits.trace(MODEL, [1, 2]).rows for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert all(one == rows[0] for one in rows)


def test_a_profiler_goes_on_after_a_trace(monkeypatch):
    def profile(frame, event, argument):
        pass

    sys.setprofile(profile)
    try:
        circuits.trace(MODEL, [1])
        assert sys.getprofile() is profile
        monkeypatch.setattr(tracing, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            circuits.trace(MODEL, [1])
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)


def test_cprofile_goes_on_after_a_trace():
    profiler = cProfile.Profile()
    with profiler:
        circuits.trace(MODEL, [1])
        textwrap.dedent("a")
    assert any("dedent" in str(entry.code) for entry in profiler.getstats())


def test_the_command_prints_text_markdown_and_json(folder, capsys):
    model = gpt2_np.load(folder, "cpu")
    expected = circuits.trace(model, "The café")
    argv = ["trace", "The café", "--model", folder]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == expected.notes()
    assert [line.split()[0] for line in lines[4:]] == [
        row.name.replace(".0.", ".*.") for row in expected.rows if ".1." not in row.name]
    assert main([*argv, "--all", "--markdown"]) == 0
    markdown = capsys.readouterr().out
    assert markdown == expected.markdown(every=True) + "\n"
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(expected.rows)
    assert {line.count("|") for line in table} == {8}
    assert main([*argv, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["multiply_adds"] == expected.multiply_adds
    assert [row["einsum"] for row in data["activations"]] == [row.einsum for row in expected.rows]
    print(expected)
    assert capsys.readouterr().out.splitlines()[1:] == lines[4:] + lines[1:3]


def test_the_readmes_table_is_of_a_real_run():
    readme = Path(circuits.__file__).with_name("README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith(("| `hook_", "| `blocks."))]
    assert len(rows) > 8
    found = circuits.trace(gpt2_np.load("shakespeare"), "The cat sat")
    assert set(rows) <= set(found.markdown().splitlines())

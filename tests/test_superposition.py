"""The superposition example: exact gradients, the figures of the paper, and the whole essay."""
import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest

import gpt2_np

PATH = Path(gpt2_np.__file__).parent / "examples" / "superposition.py"


@pytest.fixture(scope="module")
def essay():
    """The example as a module, which prints nothing until it is asked to."""
    spec = util.spec_from_file_location("superposition", PATH)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gradients_equal_finite_differences(essay):
    rng = np.random.default_rng(0)
    W, b = rng.normal(size=(2, 3, 4)), rng.normal(0, 0.1, (2, 4))
    x = essay.sample(rng, np.array([1, 0.4]), 6, 4).astype(float)
    importance = np.array([1, 0.9, 0.5, 0.1])
    _, d_W, d_b = essay.loss_and_gradients(W, b, x, importance)
    for array, slope in (W, d_W), (b, d_b):
        for index in np.ndindex(array.shape):
            value, losses = array[index], []
            for array[index] in value + 1e-6, value - 1e-6:
                losses.append(essay.loss_and_gradients(W, b, x, importance)[0].sum())
            array[index] = value
            assert slope[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-7)


def test_features_are_sparse_and_uniform(essay):
    x = essay.sample(np.random.default_rng(0), np.array([1, 0.1]), 5000, 8)
    assert (x > 0).mean(axis=(1, 2)) == pytest.approx([1, 0.1], abs=0.01)
    for one in x:
        quarters = np.quantile(one[one > 0], [0.25, 0.5, 0.75])
        assert quarters == pytest.approx([0.25, 0.5, 0.75], abs=0.02)


def test_dimensionality_is_the_share_of_an_axis_a_pair_and_a_pentagon(essay):
    turns = 2 * np.pi * np.arange(5) / 5
    pentagon = 0.9 * np.stack([np.cos(turns), np.sin(turns)])
    assert essay.dimensionality(pentagon) == pytest.approx([0.4] * 5)
    mixed = np.array([[1.1, 0, 0, 0], [0, 0.8, -0.8, 0]])
    assert essay.dimensionality(mixed) == pytest.approx([1, 0.5, 0.5, 0])


def test_dense_features_become_orthogonal_and_sparse_ones_a_pentagon(essay, capsys):
    best = essay.five_in_a_plane(densities=(1, 0.05), seeds=3, steps=1500)
    assert essay.angles(best[1]) == pytest.approx([90, 270], abs=3)
    assert essay.angles(best[0.05]) == pytest.approx([72] * 5, abs=3)
    lengths = np.sort(np.linalg.norm(best[1], axis=0))
    assert lengths[-2:] == pytest.approx([1, 1], abs=0.05)
    assert lengths[2] < 0.2
    assert "density 0.05" in capsys.readouterr().out


@pytest.mark.slow
def test_the_essay_finds_plateaus_and_neurons_of_many_meanings(tmp_path):
    has_matplotlib = util.find_spec("matplotlib") is not None
    done = subprocess.run(
        [sys.executable, PATH, *(["--plot", "picture.png"] if has_matplotlib else [])],
        cwd=tmp_path, capture_output=True, check=False, encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not has_matplotlib or (tmp_path / "picture.png").stat().st_size < 100_000
    _, plane, geometry, contexts, overlaps = re.split(r"^\d\. ", done.stdout, flags=re.MULTILINE)
    assert "90 90 90 90" in plane
    each = [line.split()[:2] for line in geometry.splitlines() if line.endswith("#")]
    each = {float(density): float(value) for density, value in each}
    assert each[1] == pytest.approx(1, abs=0.01)
    assert sum(abs(value - 0.5) < 0.015 for value in each.values()) >= 2
    assert min(each.values()) < 0.25
    layers = re.findall(r"^ +(\d)  (0\.\d+) .*(\d\.\d) kinds$", contexts, re.MULTILINE)
    assert len(layers) == 4
    assert all(0.05 < float(cosine) < 0.3 and float(kinds) > 5 for _, cosine, kinds in layers)
    *rows, random = re.findall(r"^ +(?:\d|random) +(0\.\d+)", overlaps, re.MULTILINE)
    assert float(random) == pytest.approx(256**-0.5, abs=0.001)
    assert all(float(random) < float(row) < 0.08 for row in rows)

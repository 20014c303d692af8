"""Pictures are drawn with matplotlib, by the commands and from Python, for any token."""
import numpy as np
import pytest
from matplotlib import image
from small_model import save_small_model

import gpt2_np
from gpt2_np import circuits
from gpt2_np.circuits import pictures
from gpt2_np.circuits.__main__ import main

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("models") / "small"))


@pytest.mark.parametrize(
    "argv",
    [
        ["lens", "The naïve café\n$x$ \\frac at"],
        ["attribution", "The naïve", "--answer", " the"],
        ["heads"],
        ["heads", "The café 🦙 the café", "--head", "0.1", "--head", "L1H2"],
        ["patch", "The café at", "The naïve at", "--answer", " the"],
        ["patch", "The café at", "The naïve at", "--answer", " the", "--what", "resid_pre"],
        ["patch", "The café at", "The naïve at", "--answer", " the", "--by-position"],
        ["find", "The café at", "The naïve at", "--answer", " the", "--keep", "0.5"],
        ["find", "The café at", "The naïve at", "--answer", " the", "--keep", "0.5", "--edges"],
        ["neurons", "The naïve $x$ café", "--answer", " the"],
        ["neurons", "--layer", "1", "--neuron", "17"],
    ],
)
def test_every_command_draws(argv, folder, tmp_path):
    path = tmp_path / "picture.png"
    assert main([*argv, "--model", folder, "--plot", str(path)]) == 0
    pixels = image.imread(path)
    assert pixels.shape[0] > 100 and pixels.shape[1] > 200
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20


def test_a_picture_that_cannot_be_written_is_an_error(folder, tmp_path, capsys):
    path = str(tmp_path / "no" / "such.png")
    assert main(["heads", "--model", folder, "--plot", path]) == 1
    assert f"{path} cannot be written" in capsys.readouterr().err


def test_drawing_leaves_the_callers_matplotlib_alone(folder, tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    model = gpt2_np.load(folder, "cpu")
    pictures.plot_lens(circuits.lens(model, "The café"), model, tmp_path / "lens.png")
    pictures.plot_map(np.eye(3), tmp_path / "heads.png")
    assert pyplot.get_fignums() == before

"""Pictures are drawn with matplotlib, by the commands and from Python, for any token."""
import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure
from prompt_pair import CLEAN, DENOISING, METRIC, MODEL
from random_model import random_model
from small_model import save_small_model

import gpt2_np
from gpt2_np import Config, circuits
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
        ["find", "The naïve at", "The café at", "--answer", " the", "--keep", "0.5"],
        ["find", "The naïve at", "The café at", "--answer", " the", "--keep", "0.5", "--edges"],
        ["neurons", "The naïve $x$ café", "--answer", " the"],
        ["neurons", "--layer", "1", "--neuron", "17"],
        ["survey", str(Path(__file__).parents[1] / "circuits" / "conftest.py"), "--lines"],
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


def texts_of(figure):
    """All text of a figure: titles, labels of axes and ticks, words in cells."""
    figure.canvas.draw()
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def patched(what, **options):
    return circuits.patching(MODEL, what, **DENOISING, **options)


RESULTS = {
    "sweep": (lambda: patched("z"), ["layer", "head", "z from source", "share of the way"]),
    "sweep by position": (lambda: patched("resid_pre"), ["layer", "position", "11", "resid_pre"]),
    "sweep of heads by position": (lambda: patched("z", by_position=True),
                                   ["L2H3", "position", "11"]),
    "sweep of layers": (lambda: patched("mlp_out", by_position=False), ["layer", "mlp_out"]),
    "sweep of neurons": (lambda: circuits.attribution_patching(MODEL, "post", **DENOISING),
                         ["neuron", "78"]),
    "ablation": (lambda: circuits.ablation(MODEL, base=CLEAN, metric=METRIC),
                 ["ablated", "change of the"]),
    "paths": (lambda: circuits.path_patching(MODEL, **DENOISING), ["direct paths"]),
    "paths of named senders": (lambda: circuits.path_patching(MODEL, ["MLP0", "L1H1"], **DENOISING),
                               ["direct paths", "sender", "MLP0", "L1H1"]),
    "no difference": (lambda: circuits.patching(MODEL, base=CLEAN, source=CLEAN, metric=METRIC),
                      ["change of the"]),
    "attention": (lambda: circuits.heads(MODEL, CLEAN), ["induction", "beginning", "layer"]),
    "lens": (lambda: circuits.lens(MODEL, CLEAN), ["2_mid", "final_post", str(CLEAN[0, 0])]),
    "array": (lambda: np.eye(3), ["layer", "head", "2"]),
    "three dimensions": (lambda: np.ones((2, 3, 4)), ["1.2", "position", "3"]),
    "lists": (lambda: [[1, 2], [3, 4]], ["layer", "1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_a_map_takes_a_result_as_it_is_and_labels_itself(name, tmp_path):
    make, labels = RESULTS[name]
    figure = pictures.plot_map(make(), tmp_path / "map.png")
    assert isinstance(figure, Figure) and (tmp_path / "map.png").stat().st_size > 2000
    found = texts_of(figure)
    assert all(any(label in text for text in found) for label in labels), found
    assert max(figure.get_size_inches()) < 70


def test_the_colours_of_a_map_are_the_values_of_the_sweep():
    sweep = patched("z", by_position=True)
    [drawn] = pictures.plot_map(sweep).axes[0].images
    np.testing.assert_allclose(drawn.get_array().reshape(sweep.values.shape), sweep.normalized)
    ablation = circuits.ablation(MODEL, base=CLEAN, metric=METRIC)
    [drawn] = pictures.plot_map(ablation).axes[0].images
    np.testing.assert_allclose(drawn.get_array(), ablation.effect)


def test_positions_are_labelled_by_tokens(folder):
    model = gpt2_np.load(folder, "cpu")
    clean, corrupted = ("The café at", "The naïve at")
    metric = circuits.log_probability(model, " the")
    sweep = circuits.patching(model, "resid_pre", base=corrupted, source=clean, metric=metric)
    assert "<|endoftext|>" in texts_of(pictures.plot_map(sweep))
    assert "<|endoftext|>" in texts_of(pictures.plot_map(sweep, model=model))
    assert "<|endoftext|>" in texts_of(pictures.plot_lens(circuits.lens(model, clean, position=0)))


@pytest.mark.parametrize("shape", [(2, 5, 5), (5, 5)])
def test_attention_is_drawn_of_one_head_or_several(shape):
    figure = pictures.plot_attention(np.ones(shape))
    assert sum(axes.get_ylabel() == "from" for axes in figure.axes) == (2 if len(shape) == 3 else 1)
    assert "to" in texts_of(pictures.plot_attention(np.ones(shape), list("abcde")))
    attention = circuits.heads(MODEL, CLEAN)
    assert "induction" in texts_of(pictures.plot_attention(attention))


def test_bars_are_drawn_of_results():
    texts = list(CLEAN)
    for result, labels in (
        (patched("z"), ["L1H2", "z: change of the metric"]),
        (circuits.attribution(MODEL, CLEAN, 3), ["logits", "embed"]),
        (circuits.histogram(MODEL, texts, "L1N5"), ["L1N5: number of values"]),
    ):
        found = texts_of(pictures.plot_bars(result))
        assert all(label in found for label in labels), found


def test_a_notebook_shows_the_figure_that_a_cell_ends_in():
    png = pictures.plot_map(np.eye(3))._repr_png_()
    assert png.startswith(b"\x89PNG")


def test_the_pictures_of_the_forty_tasks_are_drawn():
    example = Path(gpt2_np.__file__).parent / "examples" / "forty_tasks.py"
    draw = runpy.run_path(str(example))["look_at_the_results"]
    assert draw(gpt2_np.load("shakespeare")) == "4 figures"


def test_a_survey_is_lines_by_layer_a_reliability_diagram_and_its_models_in_order(tmp_path):
    other = random_model(Config(n_vocab=61, n_ctx=16, n_embd=8, n_head=2, n_layer=2), seed=1)
    found = circuits.survey({"a": MODEL, "b": other}, list(CLEAN))
    figure = pictures.plot_survey(found, tmp_path / "survey.png")
    norm, *_, reliability, heads, _loss = figure.axes
    for line, one in zip(norm.lines, found.profiles, strict=True):
        drawn = np.asarray(line.get_ydata())
        np.testing.assert_allclose(drawn[: len(one.norm) - 1], one.norm[1:])
    _, *lines = reliability.lines
    for line, one in zip(lines, found.profiles, strict=True):
        rows = one.measures.reliability
        np.testing.assert_allclose(line.get_ydata(), rows[rows[:, 2] > 0, 1])
    np.testing.assert_allclose(heads.lines[1].get_ydata(),
                               [one.overall["induction"] for one in found.profiles])
    alone = pictures.plot_survey(circuits.survey(MODEL, list(CLEAN)))
    assert [axes.get_visible() for axes in alone.axes] == [True] * 5 + [False]


def test_a_reliability_diagram_has_confidence_below_and_accuracy_beside():
    found = circuits.measure(MODEL, list(CLEAN))
    [axes] = pictures.plot_reliability(found).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("confidence", "accuracy")
    rows = found.reliability[found.reliability[:, 2] > 0]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), rows[:, :2])
    two = pictures.plot_reliability({"one": found, "$x": found})
    assert {"one", "$x"} <= set(texts_of(two))

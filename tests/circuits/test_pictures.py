"""Pictures of what cannot be drawn are one clear sentence. (Those that can are in parity/.)"""
import numpy as np
import pytest
from prompt_pair import CLEAN, DENOISING, METRIC, MODEL

from gpt2_np import Error, circuits
from gpt2_np.circuits import pictures


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: pictures.plot_map(np.ones(4)), r"plot_map takes .* not an array of shape \(4,\)"),
        (lambda: pictures.plot_map(np.ones((2, 2, 2, 2))), "three dimensions, not an array"),
        (lambda: pictures.plot_map(np.ones((0, 2))), r"of shape \(0, 2\)"),
        (lambda: pictures.plot_map(3.0), r"of shape \(\)"),
        (lambda: pictures.plot_map("sweep"), "not 'sweep'"),
        (lambda: pictures.plot_map([[1], [2, 3]]), r"not \[\[1\], \[2, 3\]\]"),
        (lambda: pictures.plot_map(np.ones((2, 3)), columns=["a", "b"]), "2 columns are named"),
        (lambda: pictures.plot_attention(np.ones((1, 2, 5, 5))), "plot_attention takes patterns"),
        (lambda: pictures.plot_attention(np.ones((5, 5)), ["a"]), "1 labels for patterns"),
        (lambda: pictures.plot_lens(np.ones((5, 5))), "plot_lens takes the result of"),
        (lambda: pictures.plot_bars(np.ones((5, 5))), r"plot_bars takes .* shape \(5, 5\)"),
        (lambda: pictures.plot_bars({}), r"not \{\}"),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_sentence(draw, message):
    with pytest.raises(Error, match=message) as caught:
        draw()
    assert "\n" not in str(caught.value)


def test_a_sweep_becomes_a_map_of_two_axes():
    """Rows are layers, or heads if positions are the columns."""
    sweep = circuits.patching(MODEL, "z", **DENOISING, by_position=True)
    grid = pictures.sweep_grid(sweep)
    assert (grid.axes, len(grid.rows), len(grid.columns)) == (("head", "position"), 12, 12)
    assert grid.values[grid.rows.index("L2H1"), 5] == sweep.normalized[2, 1, 5]
    alone = circuits.ablation(MODEL, "mlp_out", base=CLEAN, metric=METRIC, by_position=False)
    assert pictures.sweep_grid(alone).values.tolist() == alone.effect[:, None].tolist()

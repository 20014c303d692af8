"""The tour is a notebook with its outputs: they are what its cells give today."""
import json
import re
from pathlib import Path

import pytest

import gpt2_np

TOUR = Path(gpt2_np.__file__).parent / "examples" / "tour.ipynb"
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


def cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(cell):
    """Return the text of each output of a cell: what it printed, or the text of its value."""
    found = [output.get("text") or output["data"]["text/plain"] for output in cell["outputs"]]
    return ["".join(text) for text in found]


def kinds(cell):
    return [sorted(output.get("data", ["printed"])) for output in cell["outputs"]]


def without_numbers(text):
    return re.sub(r" +", " ", NUMBER.sub("#", text))


def test_the_tour_is_stored_with_its_outputs_and_names_no_machine():
    stored = json.loads(TOUR.read_text(encoding="utf-8"))
    numbered = [cell["execution_count"] for cell in cells(stored)]
    assert numbered == list(range(1, len(numbered) + 1))
    pictures = [kind for cell in cells(stored) for kind in kinds(cell) if "text/html" in kind]
    assert len(pictures) == 5
    assert sum("text/markdown" in kind for cell in cells(stored) for kind in kinds(cell)) == 1
    assert TOUR.stat().st_size < 200_000
    assert not re.search(r"/home/|/tmp/|/root|0x[0-9a-f]{6}", TOUR.read_text("utf-8"))


@pytest.mark.notebook
@pytest.mark.filterwarnings("default")  # those of the notebook's libraries
def test_the_tours_cells_give_the_outputs_that_are_stored():
    """Words are the same, numbers to the last digit that is shown."""
    import nbformat
    from nbclient import NotebookClient

    stored, fresh = (nbformat.read(TOUR, as_version=4) for _ in range(2))
    NotebookClient(fresh, timeout=300, coalesce_streams=True,
                   resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    for cell, expected in zip(cells(fresh), cells(stored), strict=True):
        assert kinds(cell) == kinds(expected)
        for text, stored_text in zip(texts(cell), texts(expected), strict=True):
            assert without_numbers(text) == without_numbers(stored_text)
            for one, other in zip(NUMBER.findall(text), NUMBER.findall(stored_text), strict=True):
                digits = len(other.partition(".")[2])
                assert abs(float(one) - float(other)) <= 1.5 * 10**-digits * bool(digits)

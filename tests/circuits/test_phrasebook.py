"""Each line of the table for users of TransformerLens runs; tests/parity compares the numbers."""
import re

import numpy as np
import phrasebook
import pytest


@pytest.fixture(scope="module")
def names():
    return phrasebook.our_names()


def test_the_table_has_thirty_lines_without_repeats():
    assert len(phrasebook.ROWS) == phrasebook.SECTION.count("\n| `") == 30
    assert all(len(set(column)) == 30 for column in zip(*phrasebook.ROWS, strict=True))


def test_the_examples_of_the_page_run():
    found = re.findall(r"^```python\n(.*?)^```", phrasebook.PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    exec("\n".join(found).replace("model, 20, 8", "model, 4, 2"), {})  # fewer and shorter prompts


@pytest.mark.parametrize("line", [ours for _, ours in phrasebook.ROWS])
def test_the_line_runs(line, names):
    value = phrasebook.result(line, names)
    numbers = [value] if isinstance(value, np.ndarray | float) else []
    assert value is not None
    assert all(np.isfinite(number).all() for number in numbers)

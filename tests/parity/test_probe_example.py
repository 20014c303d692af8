"""Probes of the embedded model, fitted with scikit-learn, find what the example says they find."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.linear_model import LogisticRegression

import gpt2_np

pytestmark = pytest.mark.parity
EXAMPLE = Path(gpt2_np.__file__).parent / "examples" / "probe.py"


def accuracies(*arguments):
    """Return {question: {point: accuracy}} as the example prints them."""
    done = subprocess.run([sys.executable, EXAMPLE, *arguments], capture_output=True, timeout=300,
                          check=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
    assert not done.stderr
    found = {}
    for part in done.stdout.split("\n\n")[1:]:
        question, *lines = part.splitlines()
        found[question] = {line[9:].strip(): float(line[:9]) for line in lines}
    return found


def test_layers_hold_facts_that_token_and_position_do_not():
    assert LogisticRegression.__module__.startswith("sklearn")
    found = accuracies()
    assert len(found) == 3
    for question, by_point in found.items():
        values = list(by_point.values())
        assert len(values) == 6 and all(0.5 < value < 1 for value in values), question
        assert max(values[2:]) > values[1] + 0.015  # a layer adds to token and position
        assert max(values[2:]) > values[0] + 0.025  # and to the most frequent answer
    line = found["over 25 characters into the line"]
    assert line["token and position"] < 0.75 < 0.85 < line["after layer 0"]


def test_a_text_of_ones_own_is_probed(tmp_path):
    file = tmp_path / "text.txt"
    line = "The king of France is come to town again, and I am glad of it today.\n"
    file.write_text(("ROMEO:\n" + line * 3 + "\n") * 9, encoding="utf-8")
    assert accuracies("shakespeare", file)["inside a speaker's name"]["after layer 1"] > 0.9

"""The examples that look inside: they run on the embedded model, and tell their story."""
import functools
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from random_model import random_model

import gpt2_np
from gpt2_np import Config, circuits

EXAMPLES = Path(gpt2_np.__file__).parent / "examples"


@pytest.fixture
def example(monkeypatch, capsys):
    """Return a function that runs an example and returns the text that it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_induction_example_tells_the_story_on_the_embedded_model(example, monkeypatch):
    """It takes eight prompts; three tell the same."""
    repeated = circuits.repeated_tokens
    monkeypatch.setattr(circuits, "repeated_tokens", lambda *args, **kw: repeated(
        *args, **{**kw, "batch": 3}))
    text = example("induction_heads.py")
    assert text.startswith("3 prompts of random tokens")
    losses = [float(line.split()[0]) for line in text.partition("4. Ablation")[2].splitlines()
              if line[:4].isspace() and line.split()[0].replace(".", "").isdigit()]
    whole, without_induction, without_previous, without_others, guessing = losses
    assert whole <= without_others < 0.5 * min(without_induction, without_previous)
    assert guessing == pytest.approx(np.log(2048), abs=0.01)
    assert "after <|endoftext|>" in text


def test_the_induction_example_ends_where_there_is_no_induction_head(example, folder):
    text = example("induction_heads.py", folder)
    assert text.endswith("this model has no induction head.\n")


def test_the_steering_example_makes_the_model_ask(example):
    asked = [int(line.split("vector: ")[1].split()[0]) for line in
             example("steering.py").splitlines() if "times the vector" in line]
    assert asked[0] <= asked[1] < asked[2] / 3


def test_the_indirect_object_example_runs_on_the_embedded_model(example, monkeypatch):
    names = circuits.name_repetition
    monkeypatch.setattr(circuits, "name_repetition", lambda model, n: names(model, 3))
    text = example("indirect_object.py")
    assert text.startswith("Names that repeat instead of indirect objects: ' Mary' is 2 tokens")
    assert "published" not in text
    assert float(text.partition("right minus wrong name: ")[2].split()[0]) > 2


@pytest.mark.filterwarnings("ignore:the metric is")  # a random model does no task
def test_the_indirect_object_example_puts_published_figures_beside_those_of_124m(
    example, official, monkeypatch
):
    config = Config(n_vocab=50257, n_ctx=32, n_embd=24, n_head=12, n_layer=12)
    small = random_model(config, tokenizer=official.tokenizer)
    monkeypatch.setattr(gpt2_np, "load", {"124M": small}.__getitem__)
    monkeypatch.setattr(circuits, "find", functools.partial(circuits.find, subsets=1))
    text = example("indirect_object.py", "124M")
    assert "First of 8 prompts, as tokens: '<|endoftext|> When  John  and  Mary" in text
    assert text.count("published") == 1 + 5 + 7
    assert "   published   2.985" in text


def test_forty_tasks_run_on_the_embedded_model_and_agree_with_calculations_by_hand(example):
    lines = example("forty_tasks.py").splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, 41))
    assert not [line for line in lines if "FAILED" in line]


def test_a_task_fails_where_a_tool_is_wrong(monkeypatch):
    tasks = runpy.run_path(str(EXAMPLES / "forty_tasks.py"))
    model = gpt2_np.load("shakespeare")
    monkeypatch.setattr(circuits, "ablated", lambda model, nodes: {"post": circuits.zero()})
    with pytest.raises(AssertionError, match="away from the calculation by hand"):
        tasks["switch_off_one_neuron"](model)


def test_the_probe_example_says_how_to_install_scikit_learn(example, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SystemExit, match="probes need scikit-learn: pip install scikit-learn"):
        example("probe.py")

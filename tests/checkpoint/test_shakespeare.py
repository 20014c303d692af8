"""The embedded model: its files, its predictions, and the heads that copy."""
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import gpt2_np
from gpt2_np.checkpoint import SHAKESPEARE

# From Macbeth, one of the two plays that were held out.
PASSAGE = """MACBETH:
She should have died hereafter;
There would have been a time for such a word.
To-morrow, and to-morrow, and to-morrow,
Creeps in this petty pace from day to day
To the last syllable of recorded time,
And all our yesterdays have lighted fools
The way to dusty death. Out, out, brief candle!
Life's but a walking shadow, a poor player
That struts and frets his hour upon the stage
And then is heard no more: it is a tale
Told by an idiot, full of sound and fury,
Signifying nothing.
"""


@pytest.fixture(scope="module")
def model():
    return gpt2_np.load("shakespeare", "cpu")


def bits_per_byte(model, text):
    tokens = [model.tokenizer.end_of_text, *model.tokenizer.encode(text)]
    return -gpt2_np.score(model, tokens).sum() / math.log(2) / len(text.encode())


def test_its_files_are_at_most_8_mb_together():
    files = [path for path in Path(SHAKESPEARE).iterdir() if path.is_file()]
    assert {"config.json", "model.safetensors", "merges.txt", "vocab.json"} <= {
        path.name for path in files
    }
    assert sum(path.stat().st_size for path in files) <= 8e6


def test_its_vocabulary_fits_its_weights(model):
    tokenizer = model.tokenizer
    assert tokenizer.n_vocab == model.config.n_vocab == 2048
    assert tokenizer.end_of_text == 2047
    ids = tokenizer.encode(PASSAGE)
    assert tokenizer.decode(ids) == PASSAGE
    assert len(PASSAGE) / len(ids) > 2.5  # characters a token: the merges are of this language


def test_a_play_that_it_has_not_seen_costs_it_few_bits(model):
    shuffled = np.random.default_rng(0).permutation(PASSAGE.split())
    assert bits_per_byte(model, PASSAGE) < 2
    assert bits_per_byte(model, PASSAGE) < bits_per_byte(model, " ".join(shuffled)) - 0.5


def test_its_greedy_text_is_the_same_everywhere(model):
    """Each choice is clear, so no library of matrix products decides it by its rounding."""
    prompt = "ROMEO:\n"
    tokens = model.tokenizer.encode(prompt)
    chosen = list(gpt2_np.generate(model, tokens, 24))
    logits = gpt2_np.forward(model.params, model.config, tokens + chosen)[len(tokens) - 1 : -1]
    first, second = np.sort(logits, axis=-1)[:, :-3:-1].T
    assert (first - second).min() > 0.05
    expected = "I'll be sworn to see you.\n\n[Exit]\n\n[Enter PETRUCHIO]\n\nP"
    assert model.tokenizer.decode(chosen) == expected


def test_it_writes_speeches(model):
    text = gpt2_np.complete(model, "ROMEO:\n", n_tokens=200, temperature=0.8, seed=1)
    speakers = re.findall(r"^[A-Z][A-Z ]+:$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if len(line.split()) > 3]
    assert len(speakers) >= 2
    assert len(lines) >= 8
    assert sum(line[0].isupper() for line in lines) > 0.8 * len(lines)  # verse


def copying_scores(model, n_tokens=50, n_rows=8):
    """Return mean attention [layer, head] from the second copy of random tokens to the first.

    The first array is attention to the token after the first occurrence, which is induction
    (Olsson et al. 2022, "In-context Learning and Induction Heads"). The second is attention to
    the token before.
    """
    once = np.random.default_rng(0).integers(0, 2047, (n_rows, n_tokens))
    seconds = np.arange(n_tokens, 2 * n_tokens)
    scores = np.zeros((2, model.config.n_layer, model.config.n_head))

    def tap(name, pattern):  # [batch, head, query, key]
        if name.endswith("hook_pattern"):
            for kind, keys in enumerate((seconds - n_tokens + 1, seconds - 1)):
                layer = int(name.split(".")[1])
                scores[kind, layer] = pattern[:, :, seconds, keys].mean(axis=(0, 2))

    gpt2_np.forward(model.params, model.config, np.tile(once, 2), tap=tap)
    return scores


def test_heads_copy_what_followed_before(model):
    """The card names three induction heads in layer 1, and a previous-token head in layer 0."""
    induction, previous = copying_scores(model)
    assert np.argwhere(induction > 0.5).tolist() == [[1, 1], [1, 2], [1, 3]]
    assert np.argwhere(previous > 0.5).tolist() == [[0, 0]]


def test_repeats_are_predicted_from_their_second_occurrence(model):
    once = np.random.default_rng(1).integers(0, 2047, 50)
    loss = -gpt2_np.score(model, np.tile(once, 2))
    assert loss[50:].mean() < loss[:49].mean() / 2


def test_its_card_shows_what_its_command_prints(model, capsys):
    card = Path(SHAKESPEARE, "README.md").read_text(encoding="utf-8")
    assert f"{gpt2_np.describe(model.config)['parameters']['total'] / 1e6:.2f} million" in card
    found = re.search(r"    python gpt2_np.py (.+?)\n\n```\n(.+?)```", card, re.DOTALL)
    command, sample = found.groups()
    assert gpt2_np.main(shlex.split(command.replace("\n    ", "\n"))) == 0
    assert capsys.readouterr().out == sample

"""The texts that excite a unit most are those of a whole pass over each text, one by one."""
import re
import weakref

import numpy as np
import pytest
from prompt_pair import MODEL, close
from random_model import TINY

from gpt2_np import Error, circuits
from gpt2_np.circuits import texts as texts_module

RNG = np.random.default_rng(2)
LENGTHS = [5, 70, 24, 1, 25, 9, 40, 12]
TEXTS = [RNG.integers(0, TINY.n_vocab, n) for n in LENGTHS]


def windows(tokens, n_ctx=TINY.n_ctx):
    """The definition: windows that overlap by half, and the first position each one counts."""
    start, counted = 0, 0
    while True:
        end = min(start + n_ctx, len(tokens))
        yield start, tokens[start:end], counted - start
        counted, start = end, start + n_ctx // 2
        if end == len(tokens):
            return


def by_hand(unit):
    """(value, text, position) of every window, the highest first."""
    found = []
    for text, tokens in enumerate(TEXTS):
        for start, window, first in windows(tokens):
            if "N" in unit:
                seen = circuits.run(MODEL, window, "blocks.1.mlp.hook_post")
                values = seen["post"][0, :, int(unit.partition("N")[2])]
            else:
                seen = circuits.run(MODEL, window, "blocks.1.attn.hook_result")
                values = np.linalg.norm(seen["result"][0, :, int(unit.partition("H")[2])], axis=-1)
            best = first + int(values[first:].argmax())
            found.append((values[best], text, start + best))
    return sorted(found, key=lambda one: -one[0])


@pytest.mark.parametrize("unit", ["L1N17", "L1H2"])
@pytest.mark.parametrize("tokens_at_once", [30, 10**6])
def test_the_highest_windows_are_those_of_one_pass_each(unit, tokens_at_once, monkeypatch):
    monkeypatch.setattr(texts_module, "TOKENS_AT_ONCE", tokens_at_once)
    found = circuits.max_activating(MODEL, iter(TEXTS), unit, top=6)
    expected = by_hand(unit)[:6]
    assert [(one.text, one.position) for one in found] == [place[1:] for place in expected]
    close([one.value for one in found], [value for value, _, _ in expected])
    for one in found:
        assert one.tokens.tolist() == TEXTS[one.text][one.start :][: TINY.n_ctx].tolist()
        assert one.values[one.marked] == np.float32(one.value)
    assert (found.n_tokens, found.n_texts) == (sum(LENGTHS), len(TEXTS))
    assert found.measure in str(found).splitlines()[0] and found.measure in repr(found)


def test_a_heads_example_shows_what_the_marked_token_attends_to():
    found = circuits.max_activating(MODEL, TEXTS, "L1H2", top=6)
    for one in found:
        seen = circuits.run(MODEL, one.tokens, "blocks.1.attn.hook_pattern")
        close(one.attention, seen["pattern"][0, 2, one.marked])
        best = int(one.attention.argmax())
        back = f"{one.marked - best} back" if best < one.marked else "itself"
        assert f"{one.attention[best]:.2f} to « {one.tokens[best]}», {back})" in str(one)
    assert circuits.max_activating(MODEL, TEXTS, (1, 2), top=1)[0].value == found[0].value


def test_texts_are_read_one_after_another_and_not_kept(monkeypatch):
    monkeypatch.setattr(texts_module, "TOKENS_AT_ONCE", 100)
    yielded = []

    class Text(list):
        """A list that can be referred to weakly."""

    def stream():
        for _ in range(100):
            text = Text(RNG.integers(0, TINY.n_vocab, 24).tolist())
            yielded.append(weakref.ref(text))
            alive.append(sum(reference() is not None for reference in yielded))
            yield text

    alive = []
    found = circuits.max_activating(MODEL, stream(), "L0N3", top=2)
    assert found.n_texts == 100
    assert max(alive) <= 3


def test_end_of_text_before_a_text_is_not_counted(speaking):
    texts = ["The cat sat", "the dog", "The cat sat", "", "The cat sat"]
    found = circuits.max_activating(speaking, texts, "L1N5", top=5)
    assert found.n_texts == 5 and len(found) == 4
    assert all(one.marked > 0 and one.labels[0] == "<|endoftext|>" for one in found)
    same = [one.value for one in found if one.text != 1]
    close(same, same[:1] * 3)
    without = circuits.max_activating(speaking, texts, "L1N5", top=5, bos=False)
    assert found.n_tokens == without.n_tokens == sum(len(one.tokens) for one in without)


def test_examples_are_short_in_the_console_and_escaped_in_html(speaking):
    hostile = "The <b>cat</b>\n\x1b[31m sat & \"on\""
    found = circuits.max_activating(speaking, [hostile] * 12, "L1H1")
    assert len(repr(found)) < 200 and "\n" not in repr(found)
    assert len(str(found).splitlines()) == 11
    assert re.search(r"«.+?»", str(found)) and "\x1b" not in str(found)
    html = found._repr_html_()
    assert html.count("<tr>") == 11 and html.count("outline:") == 10
    assert "<b>" not in html and "\x1b" not in html
    shown = re.sub(r"<[^>]+>", "", html.partition("<tr><td>")[2].partition("</tr>")[0])
    assert "The &lt;b&gt;cat&lt;/b&gt;\\n\\x1b[31m sat &amp; &quot;on&quot;" in shown


@pytest.mark.parametrize(
    ("texts", "unit", "message"),
    [
        (TEXTS, "L1N80", "layer 1's neuron 80 does not exist: there are 80"),
        (TEXTS, "L3N8", "layer 3 does not exist: there are 3"),
        (TEXTS, "L1H4", "layer 1's head 4 does not exist"),
        (TEXTS, "MLP1", "'MLP1' is not a neuron or head"),
        (TEXTS, "post", "'post' is not a"),
        ("text", "L1N8", "texts is 'text': give a list of texts"),
        ([3, 4], "L1N8", "3 is not a text: give strings or lists of token ids"),
        ([], "L1N8", "there is no token"),
        ([[]], "L1N8", "there is no token"),
        ([[1, 61]], "L1N8", "token 61 is outside the vocabulary of 61"),
        (["text"], "L1N8", "no vocabulary"),
    ],
)
def test_bad_texts_and_units_are_one_clear_error(texts, unit, message):
    with pytest.raises(Error, match=message):
        circuits.max_activating(MODEL, texts, unit)


def test_top_is_checked():
    with pytest.raises(Error, match="top is 0"):
        circuits.max_activating(MODEL, TEXTS, "L1N8", 0)


def test_examples_are_those_of_the_edited_model():
    edits = {"blocks.0.attn.hook_z": circuits.zero(head=1)}
    found = circuits.max_activating(MODEL, TEXTS, "L1H2", top=3, edits=edits)
    assert found[0].value != circuits.max_activating(MODEL, TEXTS, "L1H2", top=1)[0].value
    for one in found:
        seen = circuits.run(MODEL, one.tokens, ["result", "pattern"], edits=edits)
        close(one.value, np.linalg.norm(seen["blocks.1.attn.hook_result"][0, one.marked, 2]))
        close(one.attention, seen["blocks.1.attn.hook_pattern"][0, 2, one.marked])


@pytest.mark.parametrize("tool", [circuits.max_activating, circuits.histogram])
def test_an_edit_of_the_output_that_measures_a_head_is_refused(tool):
    with pytest.raises(Error, match=r"an edit of blocks\.1.* would be ignored: edit z"):
        tool(MODEL, TEXTS, "L1H2", edits={"result": circuits.zero()})
    tool(MODEL, TEXTS, "L1H2", edits={("result", 0): circuits.zero()})


def test_the_ids_of_a_model_without_a_vocabulary_stand_apart():
    [found] = circuits.max_activating(MODEL, [[5, 17, 60]], "L1N3", top=1)
    assert found.window().replace("«", "").replace("»", "") == " 5 17 60"

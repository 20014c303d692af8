"""What people type at first works, or ends in one sentence that says what to write."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, METRIC, MODEL, NOISING, close
from random_model import TINY

import gpt2_np
from gpt2_np import Error, circuits


def test_a_layer_from_the_end_has_no_name():
    for layer in (-1, 1.0, True, "1"):
        with pytest.raises(Error, match=f"layer is .*{layer}.*: it must be an integer from 0 on"):
            circuits.activation_name("resid_post", layer)
    with pytest.raises(Error, match="unknown activation 'resid'; did you mean resid_"):
        circuits.activation_name("resid", 0)


@pytest.mark.parametrize("node", ["L1H1", "1.1", (1, 1), ["L1H1"], [(1, 1)], ("L1H1",)])
def test_one_node_may_be_given_in_any_spelling(node):
    expected = circuits.run(MODEL, CLEAN, edits={"blocks.1.attn.hook_z": circuits.zero(head=1)})
    close(circuits.run(MODEL, CLEAN, edits=circuits.ablated(MODEL, node)).logits, expected.logits)
    [sent] = circuits.path_patching(MODEL, node, **NOISING).values
    close(sent, circuits.path_patching(MODEL, **NOISING).values[1, 1])
    with pytest.raises(Error, match=r"'L1' is not a head or MLP: write 'L9H6', '9.6'"):
        circuits.ablated(MODEL, "L1")


def test_path_patching_takes_the_names_of_edges():
    to_keys = circuits.path_patching(MODEL, "heads", "L1H1.k", **NOISING)
    close(to_keys.values, circuits.path_patching(MODEL, "heads", [(1, 1, "k")], **NOISING).values)
    for receiver in ("L1H1.z", "MLP1.k", "L1N3", (1, None, "q")):
        with pytest.raises(Error, match=r"is no receiver: write 'L9H6.q', '.k' or '.v', 'L9H6'"):
            circuits.path_patching(MODEL, "heads", receiver, **NOISING)
    with pytest.raises(Error, match="there are no senders: give some"):
        circuits.path_patching(MODEL, [], **NOISING)
    with pytest.raises(Error, match="'logits' cannot be one of several receivers"):
        circuits.path_patching(MODEL, "heads", ["logits", "L1H1.k"], **NOISING)


def test_several_edits_of_one_activation_are_made_in_their_order():
    name = "blocks.1.attn.hook_z"
    seen = circuits.run(MODEL, CLEAN, name, edits={name: [circuits.zero(1), circuits.add(1.0)]})
    close(seen[name][:, :, 1], np.ones_like(seen[name][:, :, 1]))
    seen = circuits.run(MODEL, CLEAN, name, edits={name: [circuits.add(1.0), circuits.zero(1)]})
    close(seen[name][:, :, 1], np.zeros_like(seen[name][:, :, 1]))


def test_entries_of_a_full_circuit_are_tokens_by_id():
    full = circuits.full_ov(MODEL, "L1H1")
    close(full.entries(3, [4, -1]), full.full()[[3]][:, [4, -1]])
    for rows, columns, message in (("a", "b", "rows are 'a': give integers, for tokens token_id"),
                                   (0, 1.5, "columns are 1.5: give integers"),
                                   (TINY.n_vocab, 0, "there is no row 61 of 61, counted from 0")):
        with pytest.raises(Error, match=message):
            full.entries(rows, columns)


def test_a_head_is_no_neuron_and_a_neuron_no_head():
    for tool, node, message in ((circuits.ov, "MLP1", "'MLP1' is not a head: write 'L9H6'"),
                                (circuits.qk, "L1N3", "'L1N3' is not a head"),
                                (circuits.neuron_tokens, "L1H1", "'L1H1' is not a neuron"),
                                (circuits.neuron_tokens, "MLP1", "'MLP1' is not a neuron")):
        with pytest.raises(Error, match=message):
            tool(MODEL, node)


def test_a_batch_takes_a_tap_and_names_what_is_none():
    tap = circuits.as_tap(MODEL, circuits.ablated(MODEL, "L0H0"))
    rows = gpt2_np.generate_batch(MODEL, CLEAN[:2, :5].tolist(), 3, tap=tap)
    assert [list(row) for row in rows] == [list(gpt2_np.generate(MODEL, prompt, 3, tap=tap))
                                           for prompt in CLEAN[:2, :5].tolist()]
    with pytest.raises(Error, match="tap is 'z': give a function"):
        gpt2_np.generate_batch(MODEL, [[1, 2]], 3, tap="z")


def test_a_score_is_of_one_text_and_of_ids():
    with pytest.raises(Error, match=r"shape \(3, 12\), expected those of one text.*score_batch"):
        gpt2_np.score(MODEL, CLEAN)
    with pytest.raises(Error, match="tokens are the text 'ROMEO': give its ids"):
        gpt2_np.score(MODEL, "ROMEO")


def test_a_dtype_may_be_numpys_own():
    model = gpt2_np.load("shakespeare", "cpu", dtype=np.float64)
    assert model.params["wte"].dtype == np.float64


def test_labels_of_a_text_are_those_of_the_positions_of_its_run(speaking):
    labels, seen = circuits.labels_of(speaking, "The cat"), circuits.run(speaking, "The cat")
    assert labels[0] == "<|endoftext|>" and "".join(labels[1:]) == "The cat"
    assert labels == circuits.labels_of(speaking, seen.tokens[0])


def test_no_texts_have_no_measures():
    with pytest.raises(Error, match="list of texts"):
        circuits.measure(MODEL, [])


def test_a_text_that_begins_with_end_of_text_gets_another_and_says_so(speaking):
    with pytest.warns(circuits.PromptWarning, match="gets another before it"):
        seen = circuits.run(speaking, "<|endoftext|>The cat")
    end = speaking.tokenizer.end_of_text
    assert seen.tokens[0, :2].tolist() == [end, end]
    assert circuits.run(speaking, "<|endoftext|>The cat", bos=False).bos
    assert circuits.run(speaking, [[end, 1, 2]]).tokens.shape == (1, 3)


@pytest.mark.parametrize("tool", [
    circuits.run, circuits.heads, circuits.attribution, lambda m, text: circuits.measure(m, [text]),
    lambda m, text: gpt2_np.score(m, m.tokenizer.encode(text, allowed_special="all"), bos=True),
    lambda m, text: gpt2_np.complete(
        m, m.tokenizer.encode(text, allowed_special="all"), 1, bos=True),
    lambda m, text: circuits.patching(
        m, base=text, source=text, metric=circuits.logit_difference(m, 1), layers=[0]),
])  # fmt: skip
def test_the_warning_of_a_second_end_of_text_is_at_the_callers_line(tool, speaking):
    with pytest.warns(circuits.PromptWarning, match="gets another before it") as caught:
        tool(speaking, "<|endoftext|>The cat")
    assert {one.filename for one in caught} == {__file__}


def test_base_and_source_are_given_by_name():
    for tool in (circuits.patching, circuits.find, circuits.path_patching):
        with pytest.raises(TypeError, match="positional"):
            tool(MODEL, CLEAN, CORRUPTED, METRIC, "z")

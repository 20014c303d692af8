"""Edits as one tap: in the order given, at the positions of the text, in any pass."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, MODEL, close
from random_model import TINY

import gpt2_np
from gpt2_np import Error, KVCache, circuits, forward
from gpt2_np import gpt2_np as reference

Z, MID = "blocks.1.attn.hook_z", "blocks.1.hook_resid_mid"
VECTOR = np.random.default_rng(1).standard_normal(TINY.n_embd).astype(np.float32)
OTHER = circuits.run(MODEL, CORRUPTED, [Z, MID])


def logits(edits, tokens=CLEAN):
    return circuits.run(MODEL, tokens, edits=edits).logits


def double(name, array):
    return 2 * array


def add_one(name, array):
    array += 1


# --- one protocol ----------------------------------------------------------------------


def test_a_tap_is_an_edit_and_edits_are_a_tap():
    def without_head_2(name, array):
        if name == Z:
            array[:, :, 2] = 0

    edits = {Z: circuits.zero(head=2)}
    expected = logits(edits)
    assert (expected != logits(None)).any()
    close(logits(without_head_2), expected)
    close(logits(circuits.as_tap(MODEL, edits)), expected)
    tap = circuits.as_tap(MODEL, edits)
    close(forward(MODEL.params, TINY, CLEAN, tap=tap), expected)
    close(circuits.zero(head=2)(Z, OTHER[Z])[:, :, 2], np.zeros_like(OTHER[Z][:, :, 2]))
    text = CLEAN[0].tolist()
    close(gpt2_np.score(MODEL, text, tap=tap), reference.score(MODEL, text, tap=without_head_2))


def test_a_selective_tap_edits_only_what_it_wants():
    class Selective:
        def wants(self, name):
            return name == Z

        def __call__(self, name, array):
            assert name == Z
            return 0 * array

    close(logits(Selective()), logits({Z: circuits.zero()}))


@pytest.mark.parametrize("edit", [
    lambda array, name: array,  # swapped: these two return the name
    lambda array, name: array * 2,
    lambda name, array: 0.5,
    lambda name, array: [1, 2],
    lambda name, array: array[:, :3],
])
def test_an_edit_that_returns_no_such_array_is_one_clear_error(edit):
    with pytest.raises(Error, match=r"edit of blocks.1.attn.hook_z returned .* \(name, array\)"):
        logits({Z: edit})


@pytest.mark.parametrize(("edits", "message"), [
    ({Z: "zero"}, "the edit of blocks.1.attn.hook_z is 'zero': give a function"),
    ({Z: [circuits.zero(), None]}, "is None: give a function"),
    ("z", "edits are 'z': give a mapping"),
    ({3: circuits.zero()}, "edits name 3: write an activation's name"),
    (circuits.zero(2), r"edits are patch\(0.0, head=2\): give a mapping of names"),
    ([circuits.zero(1)], "edits are .*: give a mapping of names"),
    ({Z: circuits.zero(position=slice("a"))}, "not a slice of positions"),
    ({Z: circuits.zero(position=1.5)}, "position is 1.5"),
])
def test_what_is_no_edit_is_one_clear_error(edits, message):
    with pytest.raises(Error, match=message):
        logits(edits)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: circuits.patch("z"), "the values are 'z': give numbers"),
    (lambda: circuits.patch([[1, 2], [3]]), "in rows of one length"),
    (lambda: circuits.add("v"), "the values are 'v'"),
    (lambda: circuits.add(VECTOR, "s"), "scale is 's'"),
    (lambda: circuits.knock_out(3), "knock_out got 3 and no keys"),
    (lambda: circuits.ablated(MODEL, 3), "3 is not a head or MLP"),
    (lambda: gpt2_np.generate_batch(MODEL, [[1]], 3, tap="z"), "tap is 'z': give a function"),
    (lambda: gpt2_np.score(MODEL, [1, 2], tap={Z: 0.0}), r"or circuits.as_tap\(model, edits\)"),
])
def test_what_makes_no_edit_is_one_clear_error(make, message):
    with pytest.raises(Error, match=message):
        make()


# --- several edits ---------------------------------------------------------------------


def test_edits_of_one_name_are_made_in_the_order_given():
    expected = 2 * circuits.run(MODEL, CLEAN, Z)[Z] + 1
    layer_1 = {"blocks.1.*_z": add_one}
    for edits in ({Z: [double, add_one]}, [{Z: double}, {Z: add_one}], {Z: double, **layer_1},
                  [{Z: double}, circuits.as_tap(MODEL, {Z: add_one})]):
        np.testing.assert_array_equal(circuits.run(MODEL, CLEAN, Z, edits=edits)[Z], expected)
    short_first = circuits.run(MODEL, CLEAN, "z", edits={"z": circuits.zero(), Z: add_one})
    assert (short_first[Z] == 1).all() and not short_first["blocks.0.attn.hook_z"].any()
    long_first = circuits.run(MODEL, CLEAN, "z", edits={Z: add_one, "*hook_z": circuits.zero()})
    assert not long_first[Z].any()


def test_the_array_that_a_pass_goes_on_with_is_not_the_edits():
    values = OTHER[Z].copy()
    circuits.run(MODEL, CLEAN, edits={Z: [values, add_one]})
    np.testing.assert_array_equal(values, OTHER[Z])


# --- patches and positions -------------------------------------------------------------


@pytest.mark.parametrize("values", [0.5, VECTOR, VECTOR[None, None], OTHER[MID][:1], OTHER[MID],
                                    OTHER[MID][:, :1], OTHER[MID][0]])
def test_values_are_put_in_as_numpy_broadcasts_them(values):
    for edit in (values, circuits.patch(values), circuits.patch(values, position=slice(3, 7))):
        seen = circuits.run(MODEL, CLEAN, MID, edits={MID: edit})[MID]
        here = slice(3, 7) if getattr(edit, "position", None) else slice(None)
        expected = circuits.run(MODEL, CLEAN, MID)[MID]
        expected[:, here] = np.broadcast_to(values, expected.shape)[:, here]
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("position", [3, -2, [1, -1], slice(4, None), slice(None, -3),
                                      slice(-4, 20), slice(1, 9, 3)])
def test_positions_are_numpys(position):
    for edit, change in ((circuits.zero(position=position), 0),
                         (circuits.add(VECTOR, 0.5, position=position), None)):
        seen = circuits.run(MODEL, CLEAN, MID, edits={MID: edit})[MID]
        expected = circuits.run(MODEL, CLEAN, MID)[MID]
        expected[:, position] = (0 if change == 0 else
                                 expected[:, position] + np.float32(0.5) * VECTOR)
        close(seen, expected)


@pytest.mark.parametrize(("name", "edit", "message"), [
    (MID, circuits.patch(VECTOR[:3]), r"shape \(3,\), they must have \(3, 12, 20\) or"),
    (MID, circuits.patch(OTHER[MID][:, :5]), r"shape \(3, 5, 20\)"),
    (MID, circuits.patch(OTHER[MID][:2]), r"shape \(2, 12, 20\)"),
    (MID, circuits.add(OTHER[MID][None]), r"shape \(1, 3, 12, 20\)"),
    (MID, circuits.zero(position=12), "position 12 does not exist"),
    (MID, circuits.zero(position=-13), "position -13 does not exist"),
    (MID, circuits.zero(position=slice(5, 1, -1)), "goes backward"),
    (MID, circuits.zero(neuron=3), "has no neurons"),
    ("blocks.0.mlp.hook_post", circuits.zero(neuron=80), "neuron 80 does not exist"),
])
def test_an_edit_that_does_not_fit_is_one_clear_error(name, edit, message):
    with pytest.raises(Error, match=message):
        logits({name: edit})


EDITS = {
    "from there on": {MID: circuits.add(VECTOR, position=slice(3, None))},
    "one": {MID: circuits.add(VECTOR, position=5)},
    "from the end of the prompt on": {Z: circuits.zero(1, slice(-2, None))},
    "one of the prompt": {Z: circuits.zero(1, [0, -2])},
    "of the prompt": {"blocks.0.hook_mlp_out": circuits.zero(position=slice(0, -1))},
    "attention": {"blocks.0.attn.hook_attn_scores": circuits.knock_out(slice(4, None), [1, 2])},
    "values": {MID: circuits.patch(OTHER[MID][:1], position=slice(2, 9))},
}  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_knows_the_positions_that_a_cache_goes_on_with(case):
    """Pieces of a text through a cache give what the whole text gives."""
    text, tap = CLEAN[0], circuits.as_tap(MODEL, EDITS[case])
    for pieces in ([12], [5, 1, 1, 5], [4] + [1] * 8):
        cache, found, start = KVCache(TINY), [], 0
        for n in pieces:
            found.append(forward(MODEL.params, TINY, text[start : start + n], cache, tap))
            start += n
        if "prompt" in case:  # the first piece is the prompt
            end = pieces[0]
            edits = {"from the end of the prompt on":
                     {Z: circuits.zero(1, slice(end - 2, None))},
                     "one of the prompt": {Z: circuits.zero(1, [0, end - 2])},
                     "of the prompt": {"blocks.0.hook_mlp_out":
                                       circuits.zero(position=slice(0, end - 1))}}[case]
        else:
            edits = EDITS[case]
        close(np.concatenate(found), logits(edits, text)[0])
    assert np.abs(logits(edits, text)[0] - logits(None, text)[0]).max() > 0.01


def test_positions_that_cannot_be_told_are_one_clear_error():
    params = {**MODEL.params, "wpe": 0 * MODEL.params["wpe"]}
    model = gpt2_np.Model(TINY, params)
    forward(params, TINY, CLEAN, tap=circuits.as_tap(model, {Z: circuits.zero(1)}))
    with pytest.raises(Error, match="positions of this pass are not known"):
        forward(params, TINY, CLEAN, tap=circuits.as_tap(model, EDITS["one"]))
    circuits.run(model, CLEAN, edits=EDITS["one"])
    cache, tap = KVCache(TINY), circuits.as_tap(MODEL, {"embed": circuits.zero(position=5)})
    forward(MODEL.params, TINY, CLEAN[0, :4], cache, tap)
    with pytest.raises(Error, match=r"edit hook_pos_embed or blocks.0.hook_resid_pre"):
        forward(MODEL.params, TINY, CLEAN[0, 4:], cache, tap)
    tap = circuits.as_tap(MODEL, {MID: circuits.patch(OTHER[MID][:1, :5])})
    with pytest.raises(Error, match=r"come to position 11: give position=slice\(0, 5\)"):
        forward(MODEL.params, TINY, CLEAN, tap=tap)


def test_a_list_of_numbers_as_an_edit_is_the_array():
    for values in (VECTOR.tolist(), OTHER[MID].tolist(), list(VECTOR)):
        np.testing.assert_array_equal(logits({MID: values}), logits({MID: np.float32(values)}))
    both = logits({MID: [VECTOR, double]})
    np.testing.assert_array_equal(both, logits({MID: 2 * VECTOR}))


def test_a_vector_may_be_added_to_single_neurons():
    def by_hand(name, array):
        array[:, 4, [3, 17]] += 0.5

    found = logits({"blocks.1.mlp.hook_post": circuits.add(0.5, neuron=[3, 17], position=4)})
    np.testing.assert_array_equal(found, logits({"blocks.1.mlp.hook_post": by_hand}))

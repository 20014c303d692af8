"""Attributions sum to the logits, and are what removing a part takes away at a fixed scale."""
import numpy as np
import pytest
from prompt_pair import ANSWERS, CLEAN, METRIC, MODEL, WRONG, close
from random_model import TINY, random_params

from gpt2_np import Error, Model, circuits

DOUBLE = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))
DIRECTIONS = np.random.default_rng(5).standard_normal((3, 20))


def test_attributions_sum_to_the_logit_and_to_the_difference():
    last = circuits.run(MODEL, CLEAN).logits[:, -1]
    rows = np.arange(3)
    for apart in (False, True):
        for neurons in ((), [0, 2]):
            options = {"constants_apart": apart, "neurons": neurons}
            one = circuits.attribution(MODEL, CLEAN, ANSWERS, **options)
            close(one.values.sum(axis=0), last[rows, ANSWERS])
            two = circuits.attribution(MODEL, CLEAN, ANSWERS, WRONG, **options)
            close(two.values.sum(axis=0), last[rows, ANSWERS] - last[rows, WRONG])
            close(two.total, METRIC(last[:, None]))


def test_attribution_to_all_tokens_holds_every_single_one():
    every = circuits.attribution(MODEL, CLEAN, position=5)
    close(every.total, circuits.run(MODEL, CLEAN).logits[:, 5])
    single = circuits.attribution(MODEL, CLEAN, 9, position=5)
    close(every.values[..., 9], single.values)
    assert every.heads().shape == (3, 4, 3, 61)
    assert every.position == 5


def test_a_heads_attribution_is_what_removing_its_vector_takes_away_at_a_frozen_scale():
    seen = circuits.run(MODEL, CLEAN, "*")
    norm = MODEL.params["ln_f"]
    vector = seen["blocks.1.attn.hook_result"][:, -1, 2]
    stream = seen["blocks.2.hook_resid_post"][:, -1]

    def logit(x):
        x = (x - x.mean(axis=-1, keepdims=True)) / seen["ln_final.hook_scale"][:, -1]
        return (x * norm["g"] + norm["b"]) @ MODEL.params["wte"][9]

    close(circuits.attribution(MODEL, CLEAN, 9)["L1H2"], logit(stream) - logit(stream - vector))


def test_attributions_by_layer_and_accumulated_are_sums_of_the_parts():
    result = circuits.attribution(MODEL, CLEAN, ANSWERS, WRONG, neurons=[1])
    names, layers = result.layers()
    close(layers.sum(axis=0) + result["ln_final.b"], result.total)
    assert names[:4] == ["embed", "pos_embed", "0_attn_out", "0_mlp_out"]
    attn = sum(result[f"L2H{h}"] for h in range(4)) + result["b_O2"]
    close(layers[names.index("2_attn_out")], attn)
    points, grown = result.accumulated()
    assert points == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    close(grown[0], result["embed"] + result["pos_embed"])
    close(grown[-1] + result["ln_final.b"], result.total)


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_a_direction_stands_in_place_of_tokens():
    wte = MODEL.params["wte"]
    two = circuits.attribution(MODEL, CLEAN, ANSWERS, WRONG)
    close(circuits.attribution(MODEL, CLEAN, direction=wte[ANSWERS] - wte[WRONG]).values,
          two.values)
    close(circuits.attribution(MODEL, CLEAN, direction=wte[9]).values,
          circuits.attribution(MODEL, CLEAN, 9).values)
    norm = DOUBLE.params["ln_f"]
    normalized = circuits.run(DOUBLE, CLEAN, "*")["ln_final.hook_normalized"][:, -1]
    total = ((normalized * norm["g"] + norm["b"]) * DIRECTIONS).sum(axis=-1)
    same(circuits.attribution(DOUBLE, CLEAN, direction=DIRECTIONS).total, total)


def test_attribution_at_all_positions_is_that_at_each():
    options = {"neurons": [1], "by_source": True}
    for asked in ({"answer": ANSWERS, "wrong": WRONG}, {"direction": DIRECTIONS}):
        whole = circuits.attribution(MODEL, CLEAN, position=None, **asked, **options)
        assert whole.position is None
        for q in (0, 3, 11):
            one = circuits.attribution(MODEL, CLEAN, position=q, **asked, **options)
            close(whole.values[:, :, q], one.values)
            close(whole.by_source.values[:, :, q], one.by_source.values)
    every = circuits.attribution(MODEL, CLEAN, position=None)
    close(every.total, circuits.run(MODEL, CLEAN).logits)
    assert every.heads().shape == (3, 4, 3, 12, 61)


def test_a_direction_may_be_one_for_each_position():
    """The next token's row at each position: what spoke for the text as it goes on."""
    following = DOUBLE.params["wte"][np.roll(CLEAN, -1, axis=1)]
    options = {"neurons": [1], "by_source": True, "constants_apart": True}
    whole = circuits.attribution(DOUBLE, CLEAN, direction=following, position=None, **options)
    for q in (0, 5, 11):
        one = circuits.attribution(DOUBLE, CLEAN, direction=following, position=q - 12, **options)
        token = circuits.attribution(DOUBLE, CLEAN, CLEAN[:, (q + 1) % 12], position=q, **options)
        for found in (one, token):
            same(whole.values[:, :, q], found.values)
            same(whole.by_source.values[:, :, q], found.by_source.values)
    logits = circuits.run(DOUBLE, CLEAN).logits[:, :-1]
    same(whole.total[:, :-1], np.take_along_axis(logits, CLEAN[:, 1:, None], axis=-1)[..., 0])


def test_the_top_parts_are_those_with_the_largest_mean():
    found = circuits.attribution(MODEL, CLEAN, ANSWERS, WRONG, neurons="all")
    means = dict(zip(found.labels, found.values.mean(axis=-1).tolist(), strict=True))
    best = sorted(means, key=lambda label: -abs(means[label]))[:7]
    assert found.top(7) == [(label, pytest.approx(means[label])) for label in best]
    assert len(circuits.attribution(MODEL, CLEAN, 3).top()) == 10
    with pytest.raises(Error, match="top ranks one number a prompt"):
        circuits.attribution(MODEL, CLEAN).top()


def test_neurons_of_all_layers_are_the_terms_that_their_vectors_have():
    found = circuits.attribution(DOUBLE, CLEAN, ANSWERS, WRONG, neurons="all")
    wte = DOUBLE.params["wte"]
    parts = circuits.decompose(DOUBLE, CLEAN, neurons="all", position=-1)
    assert found.labels == [*parts.labels, "ln_final.b"]
    assert len(found.labels) == 2 + 3 * (4 + 1 + 80 + 1) + 1
    same(found.values[:-1], parts.project(wte[ANSWERS] - wte[WRONG])[..., 0])
    whole = circuits.attribution(DOUBLE, CLEAN, ANSWERS, WRONG)
    for layer in range(3):
        mlp = sum(found[f"L{layer}N{n}"] for n in range(80)) + found[f"b_out{layer}"]
        same(mlp, whole[f"MLP{layer}"])
    same(found.total, whole.total)
    same(found.layers()[1], whole.layers()[1])


@pytest.mark.parametrize("apart", [False, True])
def test_terms_by_source_sum_to_the_heads_and_are_a_calculation_by_hand(apart):
    found = circuits.attribution(DOUBLE, CLEAN, ANSWERS, WRONG, position=7, by_source=True,
                                 constants_apart=apart)
    assert found.by_source.labels == circuits.head_names(TINY)
    same(found.by_source.values.sum(axis=-1), found.heads().reshape(12, 3))
    assert not found.by_source.values[..., 8:].any()  # what comes later is not seen
    seen, norm, block = circuits.run(DOUBLE, CLEAN, "*"), DOUBLE.params["ln_f"], \
        DOUBLE.params["blocks"][1]
    value = seen["v", 1][2, 4, 3]
    if apart:
        shift = block["attn"]["c_attn"]["b"] + block["ln_1"]["b"] @ block["attn"]["c_attn"]["w"]
        value = value - shift.reshape(3, 4, 5)[2, 3]
    moved = seen["pattern", 1][2, 3, 7, 4] * value @ block["attn"]["c_proj"]["w"][15:]
    read = (moved - moved.mean()) / seen["ln_final.hook_scale"][2, 7] * norm["g"]
    wte = DOUBLE.params["wte"]
    same(found.by_source["L1H3"][2, 4], read @ (wte[ANSWERS[2]] - wte[WRONG[2]]))


@pytest.mark.parametrize("edits", [
    {"resid_mid": circuits.add(0.2), "blocks.1.attn.hook_v": circuits.zero(head=1, position=3)},
    {"attn_scores": circuits.knock_out([5, 11], [2, 3])},
    {"blocks.0.attn.hook_pattern": circuits.zero(head=2)},
    circuits.ablated(DOUBLE, ["L0H1", "L1H3"]),
    {"blocks.1.attn.hook_result": circuits.zero(head=2)},
])  # fmt: skip
def test_terms_by_source_sum_to_the_heads_of_an_edited_model(edits):
    found = circuits.attribution(DOUBLE, CLEAN, ANSWERS, edits=edits, by_source=True)
    same(found.by_source.values.sum(axis=-1), found.heads().reshape(12, 3))
    same(found.total, circuits.run(DOUBLE, CLEAN, edits=edits).logits[range(3), -1, ANSWERS])


def test_a_head_whose_z_was_put_in_has_no_sources():
    edits = {"blocks.1.attn.hook_z": circuits.patch(0.5, head=2, position=-1)}
    found = circuits.attribution(DOUBLE, CLEAN, ANSWERS, edits=edits, by_source=True)
    assert not found.by_source["L1H2"].any() and found["L1H2"].all()
    same(found.by_source["L1H1"].sum(axis=-1), found["L1H1"])


@pytest.mark.parametrize(("options", "message"), [
    ({"direction": np.ones(19)}, r"direction has shape \(19,\): .* the model's width, 20"),
    ({"direction": np.ones((2, 20))}, r"\[3, 20\], or for each position, \[3, 12, 20\]"),
    ({"direction": np.ones((3, 11, 20))}, r"or for each position, \[3, 12, 20\]"),
    ({"direction": np.ones(20), "answer": 3}, "in place of answer and wrong: give one of them"),
    ({"direction": [[1, 2], [3]]}, "give numbers, in rows of one length"),
    ({"wrong": 3}, "wrong was given without answer"),
    ({"by_source": True}, "needs one number to explain: give an answer or a direction"),
    ({"answer": 3, "by_source": True, "constants_apart": True,
      "edits": {"pattern": circuits.zero()}}, "constants_apart cannot honour the edit"),
    ({"answer": 3, "position": 12}, "position 12 does not exist"),
    ({"answer": 3, "neurons": "none"}, "neurons is 'none': give layers, such as .5., or 'all'"),
])  # fmt: skip
def test_a_question_without_an_answer_is_one_clear_error(options, message):
    with pytest.raises(Error, match=message):
        circuits.attribution(MODEL, CLEAN, **options)


def test_the_attribution_of_sets_is_that_of_their_mean_logit():
    sets, wrong = [[1, 4], [2], [3, 5, 7]], {8, 9}
    found = circuits.attribution(DOUBLE, CLEAN, sets, wrong)
    metric = circuits.logit_difference(DOUBLE, sets, wrong)
    same(found.total, metric(circuits.run(DOUBLE, CLEAN).logits))
    each = [circuits.attribution(DOUBLE, CLEAN, i).values for i in (3, 5, 7, 8, 9)]
    same(found.values[:, 2], np.mean(each[:3], axis=0)[:, 2] - np.mean(each[3:], axis=0)[:, 2])


def test_parts_are_ranked_by_kind_and_read_in_any_spelling():
    found = circuits.attribution(MODEL, CLEAN, ANSWERS, WRONG, neurons=[-1], by_source=True)
    for kind, n in (("heads", 12), ("neurons", 80), ("mlps", 2), ("all", len(found.labels))):
        assert len(found.top(999, kind)) == n
    assert found.top(999, "mlps") == [one for one in found.top(999) if one[0].startswith("MLP")]
    for terms in (found, found.by_source):
        for node in ("1.2", (1, 2)):
            np.testing.assert_array_equal(terms[node], terms["L1H2"])
    assert not hasattr(found.by_source, "accumulated")  # heads by source are no whole stream
    means = np.abs(found.by_source.values.mean(axis=1))
    head, key = np.unravel_index(means.argmax(), means.shape)
    assert f"{found.by_source.labels[head]} from position {key}" in repr(found)

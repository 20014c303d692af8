"""Running a model: the activations that are kept, under which names, and edits on the way."""
from collections.abc import Mapping

import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, MODEL, NOISING, close
from random_model import TINY

import gpt2_np
from gpt2_np import Error, circuits


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("hook_embed", ["hook_embed"]),
        (["blocks.*.attn.hook_pattern"], [f"blocks.{n}.attn.hook_pattern" for n in range(3)]),
        (["blocks.1.hook_resid_*", "ln_final.hook_scale"],
         ["blocks.1.hook_resid_mid", "blocks.1.hook_resid_post", "blocks.1.hook_resid_pre",
          "ln_final.hook_scale"]),
        (lambda name: name.endswith("hook_result"),
         [f"blocks.{n}.attn.hook_result" for n in range(3)]),
        ((), []),
    ],
)  # fmt: skip
def test_run_keeps_what_is_asked_for_and_no_more(names, expected):
    seen = circuits.run(MODEL, CLEAN, names)
    assert sorted(seen.activations) == expected
    close(seen.logits, gpt2_np.forward(MODEL.params, TINY, CLEAN))


def test_kept_activations_own_their_memory_so_that_nothing_else_stays_alive():
    seen = circuits.run(MODEL, CLEAN, "*")
    assert all(array.base is None for array in seen.activations.values())
    assert list(seen.activations) == circuits.activation_names(TINY)


def test_a_batch_gives_what_each_prompt_gives_alone():
    together = circuits.run(MODEL, CLEAN, "*")
    for row, tokens in enumerate(CLEAN):
        alone = circuits.run(MODEL, tokens, "*")
        for name, array in alone.activations.items():
            np.testing.assert_allclose(together[name][row], array[0], rtol=1e-4, atol=1e-5)


def test_short_names_are_those_of_the_field():
    assert circuits.activation_name("q", 2) == "blocks.2.attn.hook_q"
    assert circuits.activation_name("resid_mid", 0) == "blocks.0.hook_resid_mid"
    assert circuits.activation_name("post", 1) == "blocks.1.mlp.hook_post"
    with pytest.raises(Error, match="did you mean resid_mid"):
        circuits.activation_name("resid_midd", 0)


def test_an_activation_may_be_named_short_long_or_by_a_pattern_everywhere():
    everywhere = {f"blocks.{n}.hook_resid_mid" for n in range(3)}
    for name in ("resid_mid", "hook_resid_mid", "blocks.*.hook_resid_mid", ["resid_mid"]):
        assert circuits.run(MODEL, CLEAN, name).activations.keys() == everywhere
    assert circuits.run(MODEL, CLEAN, "embed").activations.keys() == {"hook_embed"}
    one = circuits.run(MODEL, CLEAN, "blocks.2.attn.hook_z")
    assert one["z"] is one["blocks.2.attn.hook_z"]
    z = circuits.run(MODEL, CLEAN, "z")
    with pytest.raises(Error, match=r"'z' is in 3 layers: name one, as blocks.0.attn.hook_z"):
        z["z"]
    by_edit = circuits.run(MODEL, CLEAN, edits={"z": circuits.zero()})
    close(by_edit.logits, circuits.run(
        MODEL, CLEAN, edits={"blocks.*.attn.hook_z": circuits.zero()}).logits)
    short, long, one = (circuits.patching(MODEL, name, **NOISING).per_prompt
                        for name in ("v", "blocks.*.attn.hook_v", "blocks.1.attn.hook_v"))
    np.testing.assert_array_equal(short, long)
    np.testing.assert_array_equal(one[1], short[1])
    assert np.isnan(one[[0, 2]]).all()
    close(circuits.decompose(MODEL, CLEAN, "blocks.1.*mid").values.sum(axis=0),
          circuits.run(MODEL, CLEAN, "blocks.1.hook_resid_mid")["resid_mid"])
    with pytest.raises(Error, match="'resid_mid', which is 3 activations: name one"):
        circuits.decompose(MODEL, CLEAN, "resid_mid")


def test_edits_change_what_comes_after_and_what_is_kept():
    name = "blocks.0.attn.hook_z"
    edited = circuits.run(MODEL, CLEAN, [name], edits={name: circuits.zero(head=2, position=3)})
    assert (edited[name][:, 3, 2] == 0).all()
    plain = circuits.run(MODEL, CLEAN, [name])
    plain[name][:, 3, 2] = 0
    np.testing.assert_array_equal(edited[name], plain[name])
    assert (edited.logits[:, 3:] != plain.logits[:, 3:]).any()
    np.testing.assert_array_equal(edited.logits[:, :3], plain.logits[:, :3])


def test_edits_may_return_an_array_change_theirs_or_be_one():
    name = "blocks.1.hook_resid_pre"
    source = circuits.run(MODEL, CORRUPTED, [name])

    def returns(_, array):
        return array * 0 + source[name]

    def changes(_, array):
        array[:] = source[name]

    for edit in (returns, changes, source[name], circuits.patch(source[name])):
        close(circuits.run(MODEL, CLEAN, edits={name: edit}).logits, source.logits)


EVERY = circuits.run(MODEL, CLEAN, "*")


def test_a_run_is_a_mapping_of_full_names_in_the_order_of_the_forward_pass():
    assert isinstance(EVERY, Mapping)
    assert list(EVERY) == list(EVERY.keys()) == circuits.activation_names(TINY)
    assert len(EVERY) == 58
    assert all(EVERY[name] is array for name, array in EVERY.items())
    assert [array.shape for array in dict(EVERY).values()] == [a.shape for a in EVERY.values()]
    assert circuits.run(MODEL, CLEAN, "*") != EVERY
    assert {EVERY: 1}[EVERY] == 1
    assert not circuits.run(MODEL, CLEAN)  # nothing was kept


def test_an_activation_is_found_by_its_short_name_and_layer():
    for key, name in (
        (("pattern", 1), "blocks.1.attn.hook_pattern"),
        (("hook_pattern", np.int64(1)), "blocks.1.attn.hook_pattern"),
        (("resid_post", -1), "blocks.2.hook_resid_post"),
        (("ln1.hook_scale", 2), "blocks.2.ln1.hook_scale"),
        ("hook_embed", "hook_embed"), ("embed", "hook_embed"),
        ("2_mid", "blocks.2.hook_resid_mid"), ("final_post", "blocks.2.hook_resid_post"),
    ):  # fmt: skip
        assert EVERY[key] is EVERY.activations[name]
        assert key in EVERY
    some = circuits.run(MODEL, CLEAN, ["0_post", "blocks.1.hook_resid_post", "hook_embed"])
    for key in (("resid_post", -1), ("resid_post", 3), "blocks.2.hook_resid_post", "z",
                ("foo", 1), ("embed", 0), "foo", 5, None, (), ("z",), ("z", "1"), (5, 0)):
        assert key not in some
    assert "resid_post" in some and ("resid_post", 0) in some  # of any layer
    assert some.get("z") is None and some.get("blocks.2.hook_resid_post", 7) == 7
    assert some.get("blocks.1.hook_resid_post") is some["resid_post", 1]


def test_a_kind_of_activation_is_stacked_over_the_layers_that_were_kept():
    stack = EVERY.stack("resid_pre")
    assert stack.shape == (3, 3, 12, 20)
    for layer in range(3):
        np.testing.assert_array_equal(stack[layer], EVERY["resid_pre", layer])
        np.testing.assert_array_equal(
            EVERY.stack("ln2.hook_scale")[layer], EVERY[f"blocks.{layer}.ln2.hook_scale"])
    some = circuits.run(MODEL, CLEAN, "blocks.[12].attn.hook_z")
    close(some.stack("z"), EVERY.stack("z")[1:])


@pytest.mark.parametrize(("read", "message"), [
    (lambda r: r["hook_embedd"], "'hook_embedd' was not kept; did you mean hook_embed"),
    (lambda r: r["z", 1], r"\('z', 1\) was not kept: ask for it with names='z'$"),
    (lambda r: r["blocks.1.attn.hook_z"], "ask for it with names='blocks.1.attn.hook_z'"),
    (lambda r: r["resid_post", 3], "layer 3 does not exist: there are 3"),
    (lambda r: r["embed", 0], "'embed' is not an activation of layers"),
    (lambda r: r["resid_pots", 0], "'resid_pots' is not .*; did you mean resid_post"),
    (lambda r: r.stack("resid_pre"), "'resid_pre' was kept of no layer: ask .* names='resid_pre'"),
    (lambda r: r.stack("embed"), "'embed' is not an activation of layers"),
    (lambda r: r["1_mid"], "'1_mid' was not kept: ask for it with names='1_mid'"),
    (lambda r: r[5], "5 was not kept"),
])  # fmt: skip
def test_an_activation_that_was_not_kept_is_named_with_what_keeps_it(read, message):
    with pytest.raises(Error, match=message):
        read(circuits.run(MODEL, CLEAN, "hook_embed"))


def test_the_error_of_an_activation_that_was_not_kept_is_a_key_error_too():
    with pytest.raises(KeyError) as found:
        circuits.run(MODEL, CLEAN)["z", 1]
    assert str(found.value).startswith("('z', 1) was not kept")


def test_hook_normalized_is_the_layer_norm_before_gain_and_bias():
    """The meaning of the name in TransformerLens."""
    seen = circuits.run(MODEL, CLEAN, "*")
    for stream, norm in (("blocks.1.hook_resid_pre", "blocks.1.ln1"),
                         ("blocks.1.hook_resid_mid", "blocks.1.ln2"),
                         ("blocks.2.hook_resid_post", "ln_final")):
        x = seen[stream]
        x = (x - x.mean(axis=-1, keepdims=True)) / seen[f"{norm}.hook_scale"]
        close(seen[f"{norm}.hook_normalized"], x)


def test_the_top_of_a_run_are_its_most_probable_next_tokens(speaking, padded):
    texts = [[1, 2, 3], [40, 41, 42]]
    for model in (speaking, padded):
        seen = circuits.run(model, texts)
        found, p = seen.top(3), np.exp(seen.logits[:, -1, : model.n_vocab].astype(float))
        p /= p.sum(axis=-1, keepdims=True)
        close(found.probabilities, -np.sort(-p)[:, :3])
        np.testing.assert_array_equal(found.ids[:, 0], p.argmax(axis=-1))
        assert f"{found.probabilities[1, 0]:.3f}" in repr(found)


def test_a_pair_of_a_kind_and_a_layer_names_an_activation_wherever_one_is_asked_for():
    seen = circuits.run(MODEL, CLEAN, ("z", -1))
    assert list(seen) == ["blocks.2.attn.hook_z"]
    assert len(circuits.run(MODEL, CLEAN, [("z", 0), "embed"])) == 2
    assert len(circuits.run(MODEL, CLEAN, ("z", "q"))) == 6  # two names
    edited = circuits.run(MODEL, CLEAN, edits={("z", 2): circuits.zero()})
    expected = circuits.run(MODEL, CLEAN, edits={"blocks.2.attn.hook_z": 0.0})
    np.testing.assert_array_equal(edited.logits, expected.logits)

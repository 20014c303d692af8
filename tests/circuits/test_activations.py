"""Running a model: the activations that are kept, under which names, and edits on the way."""
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


def test_an_activation_that_was_not_kept_is_named():
    seen = circuits.run(MODEL, CLEAN, "hook_embed")
    with pytest.raises(Error, match="'hook_embedd' was not kept; did you mean hook_embed"):
        seen["hook_embedd"]


def test_hook_normalized_is_the_layer_norm_before_gain_and_bias():
    """The meaning of the name in TransformerLens."""
    seen = circuits.run(MODEL, CLEAN, "*")
    for stream, norm in (("blocks.1.hook_resid_pre", "blocks.1.ln1"),
                         ("blocks.1.hook_resid_mid", "blocks.1.ln2"),
                         ("blocks.2.hook_resid_post", "ln_final")):
        x = seen[stream]
        x = (x - x.mean(axis=-1, keepdims=True)) / seen[f"{norm}.hook_scale"]
        close(seen[f"{norm}.hook_normalized"], x)

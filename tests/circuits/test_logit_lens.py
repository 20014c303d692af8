"""The lens reads each stream through the final layer norm, and ends in the model itself."""
from html import unescape

import numpy as np
from prompt_pair import CLEAN, MODEL, close

from gpt2_np import circuits


def test_the_lens_at_the_end_is_the_model_itself():
    result = circuits.lens(MODEL, CLEAN, keep_logits=True)
    logits = circuits.run(MODEL, CLEAN).logits.astype(float)
    close(result.logits[-1], logits)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    close(result.entropy[-1], -(p * np.log(p)).sum(axis=-1))
    close(result.probability[-1, :, :-1],
          np.take_along_axis(p[:, :-1], CLEAN[:, 1:, None], -1)[..., 0])
    np.testing.assert_array_equal(result.top[-1], np.argsort(-logits, axis=-1)[..., :5])
    order = np.argsort(np.argsort(-logits, axis=-1), axis=-1)
    np.testing.assert_array_equal(
        result.rank[-1, :, :-1], np.take_along_axis(order[:, :-1], CLEAN[:, 1:, None], -1)[..., 0])


def test_the_lens_reads_each_stream_through_the_final_layer_norm():
    result = circuits.lens(MODEL, CLEAN, 9, position=4, keep_logits=True)
    assert result.points == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    name = "blocks.1.hook_resid_mid"
    stream = circuits.run(MODEL, CLEAN, [name])[name][:, 4]
    norm = MODEL.params["ln_f"]
    x = (stream - stream.mean(-1, keepdims=True)) / np.sqrt(stream.var(-1, keepdims=True) + 1e-5)
    logits = (x * norm["g"] + norm["b"]) @ MODEL.params["wte"].T
    close(result.logits[3][:, 0], logits)
    assert (result.targets == 9).all()


def test_the_frozen_lens_grows_as_accumulated_attribution_does():
    result = circuits.lens(MODEL, CLEAN, frozen=True, keep_logits=True)
    attribution = circuits.attribution(MODEL, CLEAN, 9)
    _, grown = attribution.accumulated()
    close(result.logits[:, :, -1, 9], grown + attribution["ln_final.b"], 2e-5)


def test_the_repr_of_a_lens_has_a_line_for_each_point():
    result = circuits.lens(MODEL, CLEAN)
    assert [line.split()[0] for line in repr(result).splitlines()[1:]] == result.points


def test_a_lens_of_one_position_names_it_and_its_token():
    for position, place in ((0, "position 0"), (-2, "position 10"), (-1, "the last")):
        result = circuits.lens(MODEL, CLEAN, position=position)
        assert f"the best tokens after {place}, were" in repr(result)
        assert f"final_post, after “{CLEAN[0, position]}”:" in unescape(result._repr_html_())
        np.testing.assert_array_equal(result.read_tokens, CLEAN[:, [position]])
    short, long = circuits.lens(MODEL, [CLEAN[0, :3], CLEAN[1]], position=-1)
    assert (short.position, long.position) == (2, 11)

"""Attributions sum to the logits, and are what removing a part takes away at a fixed scale."""
import numpy as np
from prompt_pair import ANSWERS, CLEAN, METRIC, MODEL, WRONG, close

from gpt2_np import circuits


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

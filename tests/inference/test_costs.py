"""Parameters, cache, operations and reads of any decoder, beside lists of every tensor."""
import dataclasses
import json
import math

import numpy as np
import pytest
from random_decoder import IMPOSSIBLE, random_sizes
from random_model import TINY, random_model

import gpt2_np
from gpt2_np import DECODERS, SIZES, Decoder
from gpt2_np.inference.costs import count_flops, count_parameters, numbers_read

# The publishers' totals: OpenAI's checkpoints; total_size of model.safetensors.index.json on the
# hub, at two bytes a parameter; for DeepSeek-V3 the main model without multi-token prediction.
PUBLISHED = {
    "GPT-2 124M": 124_439_808, "GPT-2 355M": 354_823_168, "GPT-2 774M": 774_030_080,
    "GPT-2 1558M": 1_557_611_200, "Llama-3-8B": 8_030_261_248,
    "Mistral-7B-v0.2": 14_483_464_192 // 2, "Qwen2.5-7B": 15_231_233_024 // 2,
    "Qwen3-8B": 16_381_470_720 // 2,
    "Mixtral-8x7B": 46_702_792_704, "DeepSeek-V3": 671_026_419_200,
}  # fmt: skip


def gpt2(n_layer, d, n_ctx=1024, v=50257):
    block = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,),
             (4 * d, d), (d,)]
    return [(v, d), (n_ctx, d), (d,), (d,)] + n_layer * block


def llama(n_layer, d, kv, mlp, v, extra=()):
    block = [(d, d), (d, kv), (d, kv), (d, d), *mlp, (d,), (d,), *extra]
    return [(v, d), (v, d), (d,)] + n_layer * block


def swiglu(d, m):
    return [(d, m), (d, m), (m, d)]


def deepseek_v3():
    attention = [(7168, 1536), (1536,), (1536, 128 * 192), (7168, 512 + 64), (512,),
                 (512, 128 * 256), (128 * 128, 7168), (7168,), (7168,)]
    dense = attention + swiglu(7168, 18432)
    sparse = attention + [(7168, 256), (256,)] + 257 * swiglu(7168, 2048)
    return [(129280, 7168), (129280, 7168), (7168,)] + 3 * dense + 58 * sparse


TENSORS = {
    "GPT-2 124M": gpt2(12, 768), "GPT-2 355M": gpt2(24, 1024), "GPT-2 774M": gpt2(36, 1280),
    "GPT-2 1558M": gpt2(48, 1600),
    "Llama-3-8B": llama(32, 4096, 1024, swiglu(4096, 14336), 128256),
    "Mistral-7B-v0.2": llama(32, 4096, 1024, swiglu(4096, 14336), 32000),
    "Qwen2.5-7B": llama(28, 3584, 512, swiglu(3584, 18944), 152064, [(3584,), (512,), (512,)]),
    "Qwen3-8B": llama(36, 4096, 1024, swiglu(4096, 12288), 151936, [(128,), (128,)]),
    "Mixtral-8x7B": llama(32, 4096, 1024, [(4096, 8), *8 * swiglu(4096, 14336)], 32000),
    "DeepSeek-V3": deepseek_v3(),
}  # fmt: skip
GPT2 = Decoder.of(SIZES["124M"])


def changed(decoder, **sizes):
    return dataclasses.replace(decoder, **sizes)


@pytest.mark.parametrize("name", DECODERS)
def test_parameters_are_those_of_the_published_files(name):
    total = gpt2_np.describe(DECODERS[name])["parameters"]["total"]
    assert total == sum(map(math.prod, TENSORS[name])) == PUBLISHED[name]


@pytest.mark.parametrize("config", [TINY, *SIZES.values()])
def test_a_gpt2_is_one_decoder_and_has_the_tensors_of_the_reference(config):
    sizes = []
    gpt2_np.gpt2_np.map_leaves(lambda path, shape: sizes.append(math.prod(shape)),
                               gpt2_np.parameter_shapes(config))
    about, same = gpt2_np.describe(config), gpt2_np.describe(Decoder.of(config))
    assert about["parameters"]["total"] == sum(sizes)
    assert about.pop("config") == dataclasses.asdict(config)
    assert about == {key: value for key, value in same.items() if key != "config"}
    assert sum(tensor.copies for tensor in Decoder.of(config).tensors()) == \
        len(sizes) + 4 * config.n_layer  # here query, key and value are not one matrix and bias


def test_one_token_uses_two_of_mixtrals_eight_experts():
    about = gpt2_np.describe(DECODERS["Mixtral-8x7B"])
    assert about["active_parameters"] == 12_879_925_248
    experts = [count_parameters(DECODERS["Mixtral-8x7B"], active)["experts"]
               for active in (False, True)]
    assert experts[0] == 4 * experts[1]


@pytest.mark.parametrize("name", ["GPT-2 1558M", "Llama-3-8B", "Qwen2.5-7B"])
def test_without_experts_every_parameter_is_active(name):
    about = gpt2_np.describe(DECODERS[name])
    assert about["active_parameters"] == about["parameters"]["total"]


@pytest.mark.parametrize(("name", "cached"), [
    ("GPT-2 124M", 36_864), ("Llama-3-8B", 131_072), ("DeepSeek-V3", 70_272),
])  # fmt: skip
def test_the_cache_of_a_token_in_16_bits(name, cached):
    about = gpt2_np.describe(DECODERS[name], 2)
    assert about["cache_bytes_per_token"] == cached
    assert about["cache_bytes_at_n_ctx"] == cached * DECODERS[name].n_ctx


def test_latent_attention_works_on_latents_as_on_the_keys_and_values_that_they_stand_for():
    """Absorbing the up-projections into query and output gives the same, in the counted steps."""
    c = Decoder(n_vocab=5, n_ctx=7, n_embd=6, n_layer=1, n_head=2, attention="latent", kv_rank=3,
                d_nope=4, d_rope=2, d_value=5, mlp="gelu", n_hidden=8)
    rng, operations = np.random.default_rng(0), []

    def product(specification, *operands):
        axes = specification.partition("->")[0]
        sizes = dict(zip(axes.replace(",", ""), sum((a.shape for a in operands), ()), strict=True))
        operations.append(2 * math.prod(sizes.values()))
        return np.einsum(specification, *operands)

    x, latents, ropes = (rng.normal(size=shape) for shape in [(6,), (7, 3), (7, 2)])
    w_q, w_down, w_out = (rng.normal(size=shape) for shape in [(6, 2, 6), (6, 5), (2, 5, 6)])
    up_k, up_v = rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 2, 5))
    q = product("d,dhe->he", x, w_q)
    product("d,dr->r", x, w_down)  # the token's own latent
    q_latent = product("ha,rha->hr", q[:, :4], up_k)
    scores = product("hr,kr->hk", q_latent, latents) + product("hp,kp->hk", q[:, 4:], ropes)
    z = product("hk,kr->hr", scores, latents)
    out = product("hu,hud->d", product("hr,rhu->hu", z, up_v), w_out)

    keys, values = np.einsum("kr,rha->kha", latents, up_k), np.einsum("kr,rhu->khu", latents, up_v)
    plain = np.einsum("ha,kha->hk", q[:, :4], keys) + np.einsum("hp,kp->hk", q[:, 4:], ropes)
    np.testing.assert_allclose(scores, plain)
    np.testing.assert_allclose(out, np.einsum("hk,khu,hud->d", plain, values, w_out))
    assert count_flops(c, 7) == sum(operations) + 2 * 2 * 6 * 8 + 2 * 6 * 5  # MLP, unembedding


def test_operations_of_a_token_count_only_the_experts_it_uses():
    few, many = (changed(GPT2, n_expert=n, n_active=2, n_expert_hidden=100) for n in (4, 64))
    assert count_flops(many, 1) - count_flops(few, 1) == 2 * 12 * 768 * 60  # the router


def test_grouped_queries_save_cache_and_not_operations_on_keys():
    whole, shared = (changed(GPT2, n_kv_head=n) for n in (12, 1))
    assert gpt2_np.describe(whole)["cache_bytes_per_token"] == \
        12 * gpt2_np.describe(shared)["cache_bytes_per_token"]
    grown = [count_flops(c, 9) - count_flops(c, 8) for c in (whole, shared)]
    assert grown[0] == grown[1]


def test_a_batch_shares_the_reading_of_weights_but_not_of_the_cache():
    c, rows = DECODERS["Llama-3-8B"], 4096
    weights = PUBLISHED["Llama-3-8B"] - 128256 * 4096
    for batch in 1, 8:
        assert numbers_read(c, 100, batch) == weights / batch + rows + 100 * 65536


def test_a_batch_reads_the_experts_that_even_choices_are_expected_to_reach():
    """Counted over all ways in which two tokens choose 2 of 4 experts."""
    pairs = [{a, b} for a in range(4) for b in range(a)]
    reached = np.mean([len(one | other) for one in pairs for other in pairs])
    c = changed(DECODERS["Mixtral-8x7B"], n_expert=4)
    expert, router = 3 * 4096 * 14336, 4096 * 4
    rest = PUBLISHED["Mixtral-8x7B"] - 32000 * 4096 - 32 * (8 * expert + 4096 * 8 - router)
    assert numbers_read(c, 0, 2) == pytest.approx((rest + 32 * reached * expert) / 2 + 4096)


@pytest.mark.parametrize("sentence", IMPOSSIBLE)
def test_sizes_that_do_not_fit_together_are_one_sentence(sentence):
    with pytest.raises(gpt2_np.Error, match=f"^{sentence}") as raised:
        changed(GPT2, **IMPOSSIBLE[sentence])
    assert len(str(raised.value)) < 120 and ": " in str(raised.value)


@pytest.mark.parametrize("options", [
    {"batch": 0}, {"batch": "3"}, {"batch": math.nan}, {"batch": math.inf}, {"batch": 2.5},
    {"bytes_per_number": 0}, {"bytes_per_number": math.inf}, {"bytes_per_number": math.nan},
    {"bytes_per_number": "x"}, {"config": {"n_embd": 4}}, {"config": random_model()},
])  # fmt: skip
def test_options_that_cannot_be_are_one_sentence_that_names_them(options):
    [name] = options
    with pytest.raises(gpt2_np.Error, match=f"^{name} is .*(it must be|choose|give) ") as raised:
        gpt2_np.describe(**{"config": GPT2} | options)
    assert len(str(raised.value)) < 160


def test_numbers_and_flags_of_numpy_are_those_of_python():
    same = changed(GPT2, n_layer=np.int64(12), norm=np.str_("layer"), tied=np.True_)
    assert same == GPT2
    assert json.dumps(gpt2_np.describe(same)) == json.dumps(gpt2_np.describe(GPT2))
    assert gpt2_np.describe(GPT2, np.float32(4), np.int64(2)) == gpt2_np.describe(GPT2, 4, 2)


def test_random_decoders_are_described_or_refused():
    rng, described = np.random.default_rng(0), 0
    for _ in range(300):
        try:
            about = gpt2_np.describe(Decoder(**random_sizes(rng)), 2, batch=3)
        except gpt2_np.Error:
            continue
        described += 1
        assert 0 < about["active_parameters"] <= about["parameters"]["total"]
        assert json.loads(json.dumps(about)) == about
    assert 100 < described < 280

"""Parameters of any decoder beside transformers' own models, which have shapes and no memory."""
import numpy as np
import pytest
import torch
import transformers

from gpt2_np import DECODERS, Decoder
from gpt2_np.inference.costs import count_parameters

pytestmark = pytest.mark.parity


def settings(c):
    """The keys that all families but GPT-2's share."""
    return {
        "vocab_size": c.n_vocab, "max_position_embeddings": c.n_ctx, "hidden_size": c.n_embd,
        "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head,
        "num_key_value_heads": c.kv_heads, "intermediate_size": c.hidden_width,
        "tie_word_embeddings": c.tied, "pad_token_id": None,
    }  # fmt: skip


def gpt2(c):
    return transformers.GPT2Config(
        vocab_size=c.n_vocab, n_positions=c.n_ctx, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, n_inner=c.hidden_width, tie_word_embeddings=c.tied)


def llama(c):
    biased = c.biases == "all"
    return transformers.LlamaConfig(**settings(c), head_dim=c.head_width, attention_bias=biased,
                                    mlp_bias=biased)


def mistral(c):
    return transformers.MistralConfig(**settings(c), head_dim=c.head_width)


def starcoder2(c):
    return transformers.Starcoder2Config(**settings(c), use_bias=c.biases == "all")


def qwen2(c):
    return transformers.Qwen2Config(**settings(c))


def qwen3(c):
    return transformers.Qwen3Config(**settings(c), head_dim=c.head_width)


def mixtral(c):
    return transformers.MixtralConfig(
        **settings(c) | {"intermediate_size": c.n_expert_hidden}, head_dim=c.head_width,
        num_local_experts=c.n_expert, num_experts_per_tok=c.n_active)


def qwen3_moe(c):
    return transformers.Qwen3MoeConfig(
        **settings(c), head_dim=c.head_width, num_experts=c.n_expert,
        num_experts_per_tok=c.n_active, moe_intermediate_size=c.n_expert_hidden)


def glm4_moe(c):
    return transformers.Glm4MoeConfig(
        **settings(c), head_dim=c.head_width, attention_bias=c.biases == "qkv",
        use_qk_norm=c.qk_norm, n_routed_experts=c.n_expert, num_experts_per_tok=c.n_active,
        n_shared_experts=c.n_shared, moe_intermediate_size=c.n_expert_hidden,
        first_k_dense_replace=c.n_dense, n_group=1, topk_group=1)


def deepseek_v3(c):
    return transformers.DeepseekV3Config(
        **settings(c), q_lora_rank=c.q_rank or None, kv_lora_rank=c.kv_rank,
        qk_nope_head_dim=c.d_nope, qk_rope_head_dim=c.d_rope, v_head_dim=c.d_value,
        n_routed_experts=c.n_expert, num_experts_per_tok=c.n_active, n_shared_experts=c.n_shared,
        moe_intermediate_size=c.n_expert_hidden, first_k_dense_replace=c.n_dense, n_group=1,
        topk_group=1)


def count_in_transformers(config):
    """The parameters of a checkpoint: the router's bias is a buffer there, but is stored."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    stored = [buffer for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
    return sum(tensor.numel() for tensor in [*model.parameters(), *stored])


PUBLISHED = {
    "GPT-2 1558M": gpt2, "Llama-3-8B": llama, "Mistral-7B-v0.2": mistral, "Qwen2.5-7B": qwen2,
    "Qwen3-8B": qwen3, "Mixtral-8x7B": mixtral, "DeepSeek-V3": deepseek_v3,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_parameters_of_transformers(name):
    peer = count_in_transformers(PUBLISHED[name](DECODERS[name]))
    assert sum(count_parameters(DECODERS[name]).values()) == peer


def random_decoder(family, rng):
    """Random sizes that the family can have."""
    g, each, e = (int(rng.integers(1, 5)) for _ in range(3))
    h, e = g * each, 2 * e
    apart = family in (llama, mistral, qwen3, mixtral, qwen3_moe, glm4_moe)
    sizes = {
        "n_vocab": int(rng.integers(100, 999)), "n_ctx": int(rng.integers(1, 99)),
        "n_embd": h * e, "n_layer": int(rng.integers(2, 6)), "n_head": h, "n_kv_head": g,
        "d_head": 2 * int(rng.integers(1, 9)) if apart else 0,
        "n_hidden": int(rng.integers(1, 99)), "tied": bool(rng.integers(2)),
    }  # fmt: skip
    if family in (mixtral, qwen3_moe, glm4_moe, deepseek_v3):
        sizes |= {"n_expert": int(rng.integers(2, 9)), "n_active": 2,
                  "n_expert_hidden": int(rng.integers(1, 99))}
    if family is gpt2:
        sizes |= {"n_kv_head": 0, "mlp": "gelu", "positions": "learned", "norm": "layer",
                  "biases": "all"}
    if family is starcoder2:
        sizes |= {"mlp": "gelu", "norm": "layer", "biases": str(rng.choice(["all", "none"]))}
    if family is llama:
        sizes["biases"] = str(rng.choice(["all", "none"]))
    if family is qwen2:
        sizes["biases"] = "qkv"
    if family in (qwen3, qwen3_moe):
        sizes["qk_norm"] = True
    if family is glm4_moe:
        sizes |= {"biases": str(rng.choice(["none", "qkv"])), "qk_norm": bool(rng.integers(2)),
                  "n_shared": int(rng.integers(1, 4)), "n_dense": int(rng.integers(0, 3)),
                  "router_bias": True}
    if family is deepseek_v3:
        sizes |= {"attention": "latent", "q_rank": int(rng.integers(0, 2)) * 24, "kv_rank": 12,
                  "d_nope": 6, "d_rope": 4, "d_value": int(rng.integers(1, 9)), "n_kv_head": 0,
                  "n_shared": int(rng.integers(1, 4)), "n_dense": int(rng.integers(0, 3)),
                  "router_bias": True}
    return Decoder(**sizes)


@pytest.mark.parametrize("family", [gpt2, llama, mistral, starcoder2, qwen2, qwen3, mixtral,
                                    qwen3_moe, glm4_moe, deepseek_v3])
def test_random_models_of_a_family_have_the_parameters_of_transformers(family):
    rng = np.random.default_rng(0)
    for _ in range(8):
        decoder = random_decoder(family, rng)
        peer = count_in_transformers(family(decoder))
        assert sum(count_parameters(decoder).values()) == peer, decoder

"""Random sizes of decoders, of every kind, and sizes that do not fit together."""
from gpt2_np.inference.architectures import CHOICES, FLAGS

# How each sentence begins, and the change to GPT-2 124M that it is about.
IMPOSSIBLE = {
    "13 heads do not divide n_embd = 768": {"n_head": 13},
    "5 key/value heads do not divide 12 heads": {"n_kv_head": 5},
    "d_head = 63: rotary": {"d_head": 63, "positions": "rotary"},
    "d_rope = 0: rotary": {"attention": "latent", "kv_rank": 1, "d_nope": 1, "d_value": 1,
                           "positions": "rotary"},
    "kv_rank = 0: latent attention": {"attention": "latent"},
    "a token cannot use 9 of 8 experts": {"n_expert": 8, "n_active": 9, "n_expert_hidden": 1},
    "a token cannot use 0 of 8 experts": {"n_expert": 8, "n_expert_hidden": 1},
    "n_expert_hidden = 0": {"n_expert": 8, "n_active": 1},
    "13 dense layers do not fit into 12": {"n_expert": 8, "n_active": 1, "n_expert_hidden": 1,
                                           "n_dense": 13},
    "n_layer = 0: choose a whole number from 1 to 16,777,216": {"n_layer": 0},
    "n_layer = 1.5: choose": {"n_layer": 1.5},
    "n_layer = True: choose": {"n_layer": True},
    "n_vocab = 10000000000000000: choose": {"n_vocab": 10**16},
    "norm = 'batch': choose layer or rms": {"norm": "batch"},
    "tied = 'no': choose True or False": {"tied": "no"},
}  # fmt: skip


def random_sizes(rng):
    """Return the arguments of a Decoder. About one in four is impossible."""
    def number(low, high):
        return int(rng.integers(low, high + 1))

    n_kv_head, d_head = number(0, 4), number(0, 1) * number(1, 80)
    n_head = max(n_kv_head, 1) * number(1, 8)
    n_embd = n_head * 2 * number(1, 40) if rng.random() < 0.9 else number(1, 2000)
    if rng.random() < 0.1:
        n_kv_head += 1
    sizes = {
        "n_vocab": number(1, 200_000), "n_ctx": number(1, 1 << number(1, 20)), "n_embd": n_embd,
        "n_layer": number(1, 80), "n_head": n_head, "n_kv_head": n_kv_head, "d_head": d_head,
        "n_hidden": number(0, 1) * number(1, 20_000), "q_rank": number(0, 1) * number(1, 2000),
        "kv_rank": number(0, 20) * 32, "d_nope": number(0, 20) * 16, "d_rope": number(1, 60) * 2,
        "d_value": number(1, 200), "n_expert": number(0, 1) * number(1, 300),
        "n_active": number(0, 9), "n_shared": number(0, 3), "n_expert_hidden": number(0, 9) * 640,
        "n_dense": number(0, 4),
    }  # fmt: skip
    kinds = {name: str(rng.choice(choices)) for name, choices in CHOICES.items()}
    flags = {name: bool(rng.integers(2)) for name in FLAGS}
    if rng.random() < 0.05:
        sizes[str(rng.choice(list(sizes)))] = number(-2, 0)
    return sizes | kinds | flags

"""Our models as TransformerLens's, with the same weights; only parity tests import this file."""
import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig


def state_dict(model):
    """Our parameters under TransformerLens's names and in its shapes."""
    d, h = model.config.n_embd, model.config.n_head
    params = model.params
    state = {
        "embed.W_E": params["wte"], "pos_embed.W_pos": params["wpe"],
        "unembed.W_U": params["wte"].T, "unembed.b_U": np.zeros(model.config.n_vocab),
        "ln_final.w": params["ln_f"]["g"], "ln_final.b": params["ln_f"]["b"],
    }  # fmt: skip
    for layer, block in enumerate(params["blocks"]):
        at, attn, mlp = f"blocks.{layer}.", block["attn"], block["mlp"]
        w = attn["c_attn"]["w"].reshape(d, 3, h, d // h).transpose(1, 2, 0, 3)
        b = attn["c_attn"]["b"].reshape(3, h, d // h)
        for c, kind in enumerate("QKV"):
            state |= {f"{at}attn.W_{kind}": w[c], f"{at}attn.b_{kind}": b[c]}
        state |= {
            f"{at}attn.W_O": attn["c_proj"]["w"].reshape(h, d // h, d),
            f"{at}attn.b_O": attn["c_proj"]["b"],
            f"{at}mlp.W_in": mlp["c_fc"]["w"], f"{at}mlp.b_in": mlp["c_fc"]["b"],
            f"{at}mlp.W_out": mlp["c_proj"]["w"], f"{at}mlp.b_out": mlp["c_proj"]["b"],
        }  # fmt: skip
        for n in ("1", "2"):
            norm = block[f"ln_{n}"]
            state |= {f"{at}ln{n}.w": norm["g"], f"{at}ln{n}.b": norm["b"]}
    return {name: torch.tensor(np.array(array, np.float32)) for name, array in state.items()}


def hooked(model, processed=False, act_fn="gelu_new"):
    c = model.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_ctx, d_head=c.n_embd // c.n_head,
        n_heads=c.n_head, d_mlp=4 * c.n_embd, d_vocab=c.n_vocab, act_fn=act_fn,
        normalization_type="LN", eps=1e-5, device="cpu", seed=0,
    )  # fmt: skip
    peer = HookedTransformer(config)
    state = state_dict(model)
    if processed:
        peer.load_and_process_state_dict(state)
    else:
        peer.load_state_dict(state, strict=False)
    peer.setup()
    return peer.eval()

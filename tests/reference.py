"""GPT-2 in float64, one position and one head at a time: slow and obviously right."""
import numpy as np


def layer_norm(x, g, b):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * g + b


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def logits(params, config, tokens):
    """Return the logits [position, n_vocab] in float64."""
    width = config.n_embd // config.n_head
    stream = [params["wte"][t] + params["wpe"][i] for i, t in enumerate(tokens)]
    for block in params["blocks"]:
        c_attn, c_proj = block["attn"]["c_attn"], block["attn"]["c_proj"]
        qkv = [layer_norm(x, **block["ln_1"]) @ c_attn["w"] + c_attn["b"] for x in stream]
        q, k, v = ([np.split(np.split(x, 3)[c], config.n_head) for x in qkv] for c in range(3))
        for i in range(len(stream)):
            heads = []
            for h in range(config.n_head):
                scores = np.array([q[i][h] @ k[j][h] / np.sqrt(width) for j in range(i + 1)])
                pattern = np.exp(scores - scores.max())
                pattern /= pattern.sum()
                heads.append(sum(p * v[j][h] for j, p in enumerate(pattern)))
            stream[i] = stream[i] + np.concatenate(heads) @ c_proj["w"] + c_proj["b"]
        c_fc, c_proj = block["mlp"]["c_fc"], block["mlp"]["c_proj"]
        for i, x in enumerate(stream):
            hidden = gelu(layer_norm(x, **block["ln_2"]) @ c_fc["w"] + c_fc["b"])
            stream[i] = x + hidden @ c_proj["w"] + c_proj["b"]
    return np.array([layer_norm(x, **params["ln_f"]) @ params["wte"].T for x in stream])

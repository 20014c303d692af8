"""The original Transformer, an encoder and a decoder, with every tensor of one sentence printed.

    python examples/encoder_decoder.py "the two old kings did not see a red bird near the river"

Vaswani et al. 2017, "Attention Is All You Need"; numbers of sections are those of the paper. The
functions that GPT-2 has in common with it are those of gpt2_np.py. A toy model in two_languages/
translates a small English into Mirro, a made-up language with nearly the opposite word order.

Axis letters are those of gpt2_np.py: b batch, q query position, k key position, d residual width,
h head, e head width, m hidden width of the MLP, v vocabulary, c one of query, key and value.
"""
from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np
from gpt2_np.bpe import shown
from gpt2_np.checkpoint.files import read_json
from gpt2_np.checkpoint.safetensors import read_safetensors
from gpt2_np.checkpoint.tensors import MappedFiles, as_array
from gpt2_np.circuits.names import nearest
from gpt2_np.command_line import as_program
from gpt2_np.gpt2_np import (
    Cache,
    Config,
    KVCache,
    Tap,
    TapFunction,
    einsum,
    layer_norm,
    mask_future,
    softmax,
    unembed,
)
from gpt2_np.inference.beams import highest, log_softmax

TOY = Path(__file__).resolve().parent / "two_languages"
SPECIAL = ["<pad>", "<start>", "<end>"]
PAD, START, END = range(3)
MOST = 40  # words of a sentence: training shows up to 19


# --- the model -------------------------------------------------------------------------


def encode(params, n_head, source, lengths, tap=None):  # [b, k] -> [b, k, d]
    """Return what the encoder (section 3.1) makes of each source text, the memory.

    Row i of `source` has `lengths[i]` tokens and then padding, which nothing looks at.
    """
    tap, last = Tap(tap), np.repeat(lengths[:, None] - 1, source.shape[1], axis=1)
    x = embed(params["wte"], source, np.indices(source.shape)[1], tap.under("encoder."))
    for layer, block in enumerate(params["encoder"]):
        here = tap.under(f"encoder.{layer}.")
        out = attention(x, x, **block["attn"], n_head=n_head, last=last, tap=here.under("attn."))
        x = layer_norm(x + out, **block["ln_1"], tap=here.under("ln1."))
        out = mlp(x, **block["mlp"], tap=here.under("mlp."))
        x = layer_norm(x + out, **block["ln_2"], tap=here.under("ln2."))
    return x


def decode(params, n_head, target, memory, lengths, cache=None, tap=None):
    """Return the logits [b, q, v] of the token that follows each one of `target` [b, q].

    `memory` [b, k, d] and `lengths` [b] are those of `encode`. With a `cache`, `target` continues
    the cached tokens. Keys and values of the memory are computed anew at each call.
    """
    tap, cache = Tap(tap), cache or Cache()
    positions = cache.reserve(target.shape)  # [b, q]
    last = np.repeat(lengths[:, None] - 1, target.shape[1], axis=1)
    x = embed(params["wte"], target, positions, tap.under("decoder."))
    for layer, block in enumerate(params["decoder"]):
        here = tap.under(f"decoder.{layer}.")
        out = attention(x, x, **block["attn"], n_head=n_head, last=positions, cache=cache,
                        layer=layer, tap=here.under("attn."))
        x = layer_norm(x + out, **block["ln_1"], tap=here.under("ln1."))
        out = attention(x, memory, **block["cross_attn"], n_head=n_head, last=last,
                        tap=here.under("cross_attn."))
        x = layer_norm(x + out, **block["ln_2"], tap=here.under("ln2."))
        out = mlp(x, **block["mlp"], tap=here.under("mlp."))
        x = layer_norm(x + out, **block["ln_3"], tap=here.under("ln3."))
    cache.advance(target.shape[1])
    return tap("logits", unembed(x, params))


def embed(wte, tokens, positions, tap):  # [b, q] twice -> [b, q, d]
    """Section 3.4: one embedding for source, target and logits, here scaled by √d."""
    d = wte.shape[-1]
    x = tap("hook_embed", wte[tokens] * math.sqrt(d))
    return x + tap("hook_pos_embed", sinusoids(positions, d).astype(x.dtype))


def sinusoids(positions, d):  # [..., q] -> [..., q, d]
    """Section 3.5: sines and cosines, in turn, of wavelengths from 2π to 10000 · 2π."""
    angles = positions[..., None] / 10000 ** (np.arange(0, d, 2) / d)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(*positions.shape, d)


def attention(x, source, c_attn, c_proj, n_head, last, tap, cache=None, layer=0):
    """Attention of x [b, q, d] to `source` [b, k, d] in several heads (section 3.2.2): [b, q, d].

    In self-attention `source` is x. A query sees the keys up to `last` [b, q]: its own position in
    the decoder, or the end of the source text.
    """
    d = x.shape[-1]
    heads = n_head, d // n_head
    w, b = c_attn["w"].reshape(d, 3, *heads), c_attn["b"].reshape(3, *heads)
    q = tap("hook_q", einsum("bqd,dhe->bqhe", x, w[:, 0]) + b[0])
    k = tap("hook_k", einsum("bkd,dhe->bkhe", source, w[:, 1]) + b[1])
    v = tap("hook_v", einsum("bkd,dhe->bkhe", source, w[:, 2]) + b[2])
    k, v = (cache or Cache()).append(layer, k, v)  # [b, k, h, e], the cached positions included

    scores = einsum("bqhe,bkhe->bhqk", q / math.sqrt(q.shape[-1]), k)  # section 3.2.1
    pattern = tap("hook_pattern", softmax(mask_future(scores, last)))
    z = tap("hook_z", einsum("bhqk,bkhe->bqhe", pattern, v))
    return tap("hook_out", einsum("bqhe,hed->bqd", z, c_proj["w"].reshape(*heads, d)) + c_proj["b"])


def mlp(x, c_fc, c_proj, tap):  # [b, q, d] -> [b, q, d]
    """Section 3.3: two matrices with a ReLU between them."""
    post = tap("hook_post", np.maximum(einsum("bqd,dm->bqm", x, c_fc["w"]) + c_fc["b"], 0))
    return tap("hook_out", einsum("bqm,md->bqd", post, c_proj["w"]) + c_proj["b"])


# --- translation -----------------------------------------------------------------------


@dataclass(frozen=True)
class Translator:
    """A model and its words. Token i is `words[i]`; the source language has those in `english`."""

    params: dict[str, Any]  # wte, encoder and decoder
    n_head: int
    words: list[str]
    english: list[str]

    def ids(self, words: Sequence[str]) -> list[int]:
        return [self.words.index(word) for word in words]

    def read(self, sentences: Sequence[Sequence[int]], tap: TapFunction | None = None) -> tuple:
        """Return memory [b, k, d] and lengths [b], the arguments of `decode`, of ragged texts."""
        source, lengths = padded(sentences)
        return encode(self.params, self.n_head, source, lengths, tap), lengths

    def new_cache(self, batch: int) -> KVCache:
        """Return a cache for the self-attention of the decoder."""
        d, n_layer = self.params["wte"].shape[1], len(self.params["decoder"])
        return KVCache(Config(len(self.words), MOST, d, self.n_head, n_layer), batch, MOST)


def load(folder: Path = TOY) -> Translator:
    """Return the model that two_languages/train.py wrote."""
    config, files = read_json(folder / "config.json"), MappedFiles()
    tensors = read_safetensors(folder / "model.safetensors")
    arrays = {name: as_array(tensor, files[tensor.file], "<f4") for name, tensor in tensors.items()}
    words = [*SPECIAL, *config["english"], *config["mirro"]]
    return Translator(nested(arrays), config["n_head"], words, config["english"])


def nested(arrays):
    """Return arrays named like encoder.0.mlp.c_fc.w as nested dicts, with each stack as a list."""
    tree = {}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[leaf] = array
    return tree | {stack: [tree[stack][str(i)] for i in range(len(tree[stack]))]
                   for stack in ("encoder", "decoder")}


def padded(texts):  # -> [b, k], [b]
    lengths = np.array([len(text) for text in texts])
    return np.array([[*text, *[PAD] * (lengths.max() - len(text))] for text in texts]), lengths


def greedy(model: Translator, sentences: Sequence[Sequence[int]], most: int = MOST) -> list:
    """Return the translation of each sentence, as ids, with the most probable word at each step."""
    memory, lengths = model.read(sentences)
    texts, cache = np.full((len(sentences), 1), START), model.new_cache(len(sentences))
    for _ in range(most):
        logits = decode(model.params, model.n_head, texts[:, -1:], memory, lengths, cache)
        texts = np.hstack([texts, logits[:, -1:].argmax(axis=-1)])
        if (texts == END).any(axis=1).all():
            break
    rows = texts[:, 1:].tolist()
    return [row[: row.index(END)] if END in row else row for row in rows]


def beam_search(
    model: Translator, sentence: Sequence[int], n_beams: int = 4, length_penalty: float = 0.6,
    most: int = MOST,
) -> tuple[list[int], float]:  # fmt: skip
    """Return the best translation found, with its END if it has one, and its log-probability.

    Best is log p / ((5 + n) / 6) ** length_penalty for n tokens (section 6.1, after Wu et al.
    2016). Each step keeps the `n_beams` most probable texts that have not ended.
    """
    def score(text, log_p):
        return log_p / ((5 + len(text)) / 6) ** length_penalty

    memory, lengths = model.read([sentence])
    beams, ended, cache = [([], 0.0)], [], model.new_cache(1)
    for _ in range(most):
        last = np.array([[START, *text][-1:] for text, _ in beams])
        shared = np.repeat(memory, len(beams), axis=0), np.repeat(lengths, len(beams))
        logits = decode(model.params, model.n_head, last, *shared, cache)[:, -1]
        log_p = log_softmax(logits) + np.array([[total] for _, total in beams])
        best = highest(log_p.ravel(), 2 * n_beams)  # every beam may be ended by one of them
        rows, new = np.unravel_index(best, log_p.shape)
        grown = [([*beams[row][0], int(token)], float(log_p[row, token]))
                 for row, token in zip(rows, new, strict=True)]
        ended += [beam for beam in grown if beam[0][-1] == END]
        going = np.flatnonzero(new != END)[:n_beams]
        beams = [grown[i] for i in going]
        cache.select(rows[going])
        # A longer text is never more probable, but its penalty may be smaller.
        ceiling = beams[0][1] / ((5 + most) / 6) ** max(length_penalty, 0)
        if ended and max(score(*beam) for beam in ended) >= ceiling:
            break
    else:
        ended += beams
    return max(ended, key=lambda beam: score(*beam))


# --- the printed walk ------------------------------------------------------------------

ACTIVATIONS = {  # axes, einsum, formula
    "hook_embed": ("bqd", "", "√d wte[token]"),
    "hook_pos_embed": ("bqd", "", "sin and cos of position / 10000^(2i/d)"),
    "hook_q": ("bqhe", "bqd,dhe->bqhe", "x W_Q + b_Q"),
    "hook_k": ("bkhe", "bkd,dhe->bkhe", "source W_K + b_K"),
    "hook_v": ("bkhe", "bkd,dhe->bkhe", "source W_V + b_V"),
    "hook_pattern": ("bhqk", "bqhe,bkhe->bhqk", "softmax(q kᵀ / √e, masked)"),
    "hook_z": ("bqhe", "bhqk,bkhe->bqhe", "pattern v"),
    "attn.hook_out": ("bqd", "bqhe,hed->bqd", "z W_O + b_O"),
    "hook_scale": ("bq1", "bqd,bqd->bq", "√(variance of x + out, + 0.00001)"),
    "hook_normalized": ("bqd", "", "(x + out - mean) / scale, then g and b"),
    "hook_post": ("bqm", "bqd,dm->bqm", "max(0, x W_1 + b_1)"),
    "mlp.hook_out": ("bqd", "bqm,md->bqd", "post W_2 + b_2"),
    "logits": ("bqv", "bqd,vd->bqv", "x wteᵀ"),
}


def walk(model: Translator, english: list[str], word: str | None = None) -> None:
    """Print every tensor, the translation, and the cross-attention of a word of it."""
    if not 1 <= len(english) <= MOST:
        raise gpt2_np.Error(f"the sentence has {len(english)} words: give 1 to {MOST}")
    text, log_p = beam_search(model, model.ids(check(english, model.english, "the English")))
    mirro = [model.words[token] for token in text]
    [word] = check([word or mirro[0]], mirro, "the translation")

    seen: dict[str, np.ndarray] = {}
    memory, lengths = model.read([model.ids(english)], seen.__setitem__)
    decode(model.params, model.n_head, np.array([[START, *text[:-1]]]), memory, lengths,
           tap=seen.__setitem__)
    for name, array in seen.items():
        [(axes, terms, formula)] = [row for end, row in ACTIVATIONS.items() if name.endswith(end)]
        shape = "×".join(map(str, array.shape))
        print(f"{name:34s} {axes:4s} {shape:9s} {terms:15s} {formula}")
    print(f"\n{' '.join(english)}\n{' '.join(mirro)}   (log p {log_p:.3f})\n")
    patterns = [seen[f"decoder.{layer}.cross_attn.hook_pattern"][0]
                for layer in range(len(model.params["decoder"]))]  # [h, q, k] of each layer
    print(f"Cross-attention of layer {len(patterns) - 1} from each decoded word, mean of its heads")
    draw(mirro, english, patterns[-1].mean(axis=0))
    print(f"\nCross-attention from {word}, head by head")
    heads = [f"L{layer}H{head}" for layer, head in np.ndindex(len(patterns), model.n_head)]
    draw(heads, english, np.concatenate([heads[:, mirro.index(word)] for heads in patterns]))


def check(words, known, place):
    for word in words:
        if word not in known:
            raise gpt2_np.Error(f"{place} has no word {shown(word)}{nearest(word, known)}")
    return words


def draw(rows, columns, weights):  # [row, column], from 0 to 1
    width = max(map(len, rows))
    print(" " * width, *columns)
    for name, shares in zip(rows, weights, strict=True):
        cells = [" ░▒▓█"[round(4 * float(share))] * len(column)
                 for share, column in zip(shares, columns, strict=True)]
        print(" ".join([name.ljust(width), *cells]).rstrip())


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Translate a sentence and print every tensor.")
    parser.add_argument("sentence", nargs="?", help="in the small English of two_languages/",
                        default="the two old kings did not see a red bird near the river")
    parser.add_argument("--word", help="of the translation, whose attention is drawn")
    args = parser.parse_args(arguments)
    walk(load(), args.sentence.lower().split(), args.word)


if __name__ == "__main__":
    try:
        with as_program():
            main()
    except gpt2_np.Error as error:  # its message names the fault and the remedy
        sys.exit(f"encoder_decoder: {error}")

"""A small GPT-2 on disk: random weights under a trained vocabulary, in Hugging Face's layout."""
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from random_model import random_params

import bpe
import checkpoint
from gpt2_np import Config

# "é" and "ï" are often enough to become tokens; the bytes of the llama stay apart.
TEXT = "The naïve café at the corner of the street is the café that they remember. 🦙\n" * 4
N_VOCAB = 300


def save_small_model(folder, n_ctx=64, seed=0):
    """Write the files of the model into a new folder and return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    config = Config(n_vocab=N_VOCAB, n_ctx=n_ctx, n_embd=32, n_head=4, n_layer=2)
    bpe.train(TEXT, N_VOCAB).save(folder, names=("merges.txt", "vocab.json"))
    sizes = {**asdict(config), "vocab_size": N_VOCAB, "n_positions": n_ctx}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))

    header, pieces, size = {}, [], 0

    def add(path, array):
        nonlocal size
        name = checkpoint.hugging_face_name(path)
        offsets = [size, size := size + array.nbytes]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": offsets}
        pieces.append(array.astype("<f4").tobytes())

    checkpoint.nest(random_params(config, seed, np.float32, scale=0.3), add)
    head = json.dumps(header).encode()
    content = len(head).to_bytes(8, "little") + head + b"".join(pieces)
    (folder / "model.safetensors").write_bytes(content)
    return folder

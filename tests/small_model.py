"""A small GPT-2 on disk: random weights under a trained vocabulary, in Hugging Face's layout."""
from make_checkpoints import encode, hugging_face_tensors, write_hugging_face, write_safetensors
from random_model import random_params

from gpt2_np import Config, bpe

# "é" and "ï" occur often enough to become tokens; the bytes of the llama stay apart.
TEXT = "The naïve café at the corner of the street is the café that they remember. 🦙\n" * 4


def save_small_model(folder, n_ctx=64, seed=0):
    """Write the model's files into a folder and return the folder."""
    config = Config(n_vocab=300, n_ctx=n_ctx, n_embd=32, n_head=4, n_layer=2)
    write_hugging_face(folder, config, tokenizer=False)
    bpe.train(TEXT, config.n_vocab).save(folder, names=("merges.txt", "vocab.json"))
    # Weights larger than those of write_hugging_face, so that the text does not repeat one token.
    arrays = hugging_face_tensors(random_params(config, seed, scale=0.3))
    tensors = {name: ("F32", array.shape, encode(array, "F32")) for name, array in arrays.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder

"""Run the forward pass on arrays of your own: python examples/own_arrays.py [MODEL]

These arrays are a GPT-2 of the same sizes before its training. For them gpt2_np.py and NumPy are
enough. The model is loaded for its sizes, its tokenizer and the comparison.
"""
import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np


def untrained(shapes, rng, name=""):
    """Return arrays, nested as `forward` takes them: gains 1, biases 0, small weights."""
    if isinstance(shapes, dict):
        return {key: untrained(value, rng, key) for key, value in shapes.items()}
    if isinstance(shapes, list):
        return [untrained(value, rng) for value in shapes]
    spread = 0 if name in ("g", "b") else 0.02
    return rng.normal(name == "g", spread, shapes).astype(np.float32)


def loss(params, config, tokens):
    """Return the nats per token of a text."""
    logits = gpt2_np.forward(params, config, tokens[:-1])  # of the next token, [position, n_vocab]
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(tokens) - 1), tokens[1:]].mean()


def main():
    parser = argparse.ArgumentParser(description="Run the forward pass on arrays of your own.")
    parser.add_argument("model", nargs="?", default="shakespeare",
                        help='"shakespeare" (default), a size such as "124M", a path or a URL')
    args = parser.parse_args()

    model = gpt2_np.load(args.model)
    if model.tokenizer is None:
        raise gpt2_np.Error("this model has no vocabulary files: choose one that has them")
    tokens = model.tokenizer.encode("MACBETH:\nI have lived long enough: my way of life\nIs fall'n")
    params = untrained(gpt2_np.parameter_shapes(model.config), np.random.default_rng(0))
    print(f"guessing:  {np.log(model.config.n_vocab):.3f} nats per token")
    print(f"untrained: {loss(params, model.config, tokens):.3f}")
    print(f"trained:   {loss(model.params, model.config, tokens):.3f}")


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # its message names the fault and the remedy
        sys.exit(f"own_arrays: {error}")

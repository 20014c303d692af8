"""Take an attention head out of a model, and save what is left for transformers to load.

    python examples/edit_and_save.py [MODEL [FOLDER]]

The head is the one of the first layer that the text misses least. FOLDER must be new; without it
the model is saved into a temporary one.
"""
import argparse
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np

TEXT = "MACBETH:\nI have lived long enough: my way of life\nIs fall'n into the sear"


def without_head(model, layer, head):
    """Return a model in which nothing reads the head. It shares all other arrays."""
    width = model.config.n_embd // model.config.n_head
    blocks = list(model.params["blocks"])
    attn = blocks[layer]["attn"]
    weights = attn["c_proj"]["w"].copy()  # loaded arrays are read-only
    weights[head * width : (head + 1) * width] = 0
    blocks[layer] = {**blocks[layer], "attn": {**attn, "c_proj": {**attn["c_proj"], "w": weights}}}
    return gpt2_np.Model(model.config, {**model.params, "blocks": blocks}, model.tokenizer)


def loss(model, tokens):
    """Return the nats per token of a text."""
    return -gpt2_np.score(model, tokens).mean()


def main():
    parser = argparse.ArgumentParser(description="Take a head out of a model, and save the rest.")
    parser.add_argument("model", nargs="?", default="shakespeare",
                        help='"shakespeare" (default), a size such as "124M", a path or a URL')
    parser.add_argument("folder", nargs="?", help="a new folder (default: a temporary one)")
    args = parser.parse_args()

    model = gpt2_np.load(args.model)
    if model.tokenizer is None:
        raise gpt2_np.Error("this model has no vocabulary files: choose one that has them")
    tokens = model.tokenizer.encode(TEXT)
    print(f"all heads:      {loss(model, tokens):.4f} nats per token")
    losses = [loss(without_head(model, 0, head), tokens) for head in range(model.config.n_head)]
    head = losses.index(min(losses))
    print(f"without 0.{head}:    {losses[head]:.4f}")

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "edited"
        gpt2_np.save(without_head(model, 0, head), folder)
        print(f"loaded again:   {loss(gpt2_np.load(folder), tokens):.4f}")
        try:
            import torch
            from transformers import GPT2LMHeadModel, logging
        except ImportError:
            return
        logging.disable_progress_bar()
        ids = torch.tensor([tokens])
        logits = GPT2LMHeadModel.from_pretrained(folder)(ids).logits
        theirs = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()
        print(f"in transformers: {theirs:.4f}")


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # its message names the fault and the remedy
        sys.exit(f"edit_and_save: {error}")

"""Print the loss of a model on a text and its least likely tokens.

    python examples/score_text.py [MODEL [FILE]]
"""
import argparse
import math
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np

TEXT = "MACBETH:\nI have lived long enough: my way of life\nIs fall'n into the sear"


def main():
    parser = argparse.ArgumentParser(
        description="Print the loss of a model on a text and its least likely tokens.")
    parser.add_argument("model", nargs="?", default="shakespeare",
                        help='"shakespeare" (default), a size such as "124M", a path or a URL')
    parser.add_argument("file", nargs="?", help="a file of UTF-8 text (default: lines of Macbeth)")
    args = parser.parse_args()

    text = Path(args.file).read_text("utf-8") if args.file else TEXT
    model = gpt2_np.load(args.model)
    if model.tokenizer is None:
        raise gpt2_np.Error("this model has no vocabulary files: choose one that has them")
    if not text:
        raise gpt2_np.Error(f"{args.file} is empty: give some text")
    tokens = model.tokenizer.encode(text, allowed_special="all")
    log_p = gpt2_np.score(model, [model.tokenizer.end_of_text, *tokens])  # nats, one each

    loss = -log_p.mean()
    bits = -log_p.sum() / math.log(2)
    print(f"{len(tokens)} tokens, {loss:.3f} nats each, perplexity {math.exp(loss):.1f}, "
          f"{bits / len(text.encode()):.3f} bits per byte")
    print("The least likely tokens, with the text before them:")
    for i in log_p.argsort()[:5]:
        print(f"{-log_p[i]:8.3f} nats  {model.tokenizer.decode(tokens[max(0, i - 8) : i + 1])!r}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:  # a ValueError is an Error, or text not in UTF-8
        sys.exit(f"score_text: {error}")

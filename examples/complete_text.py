"""Print the continuation of a text as it is made: python examples/complete_text.py [MODEL [PROMPT]]

MODEL is "shakespeare" (the default), a size such as "124M", a path or a URL.
"""
import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np


def main():
    parser = argparse.ArgumentParser(description="Print the continuation of a text as it is made.")
    parser.add_argument("model", nargs="?", default="shakespeare",
                        help='"shakespeare" (default), a size such as "124M", a path or a URL')
    parser.add_argument("prompt", nargs="?", default="ROMEO:\nBut soft, what light",
                        help="the text to continue")
    args = parser.parse_args()

    model = gpt2_np.load(args.model)
    pieces = gpt2_np.stream(model, args.prompt, n_tokens=80, temperature=0.8, top_p=0.95, seed=1)
    print(args.prompt, end="", flush=True)
    for piece in pieces:  # whole characters, each as soon as it is known
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # its message names the fault and the remedy
        sys.exit(f"complete_text: {error}")

"""Continue a text while it is made: python examples/complete_text.py [MODEL [PROMPT]]"""
import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np


def main():
    parser = argparse.ArgumentParser(description="Continue a text while it is made.")
    parser.add_argument("model", nargs="?", default="shakespeare", help='or "124M", a path, a URL')
    parser.add_argument("prompt", nargs="?", default="ROMEO:\nBut soft, what light")
    args = parser.parse_args()

    model = gpt2_np.load(args.model)
    pieces = gpt2_np.stream(model, args.prompt, n_tokens=80, temperature=0.8, top_p=0.95, seed=1)
    print(args.prompt, end="", flush=True)
    for piece in pieces:  # pieces of whole characters, each as soon as it is known
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # one sentence: what was wrong, and what to do
        sys.exit(f"complete_text: {error}")

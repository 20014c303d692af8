"""Continue a text while it is made: python examples/complete_text.py [MODEL [PROMPT]]"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # needless where it is installed

import gpt2_np

parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
parser.add_argument("model", nargs="?", default="shakespeare", help='or "124M", a path, a URL')
parser.add_argument("prompt", nargs="?", default="ROMEO:\nBut soft, what light")


def main(args, parser):
    model = gpt2_np.load(args.model)
    pieces = gpt2_np.stream(model, args.prompt, n_tokens=80, temperature=0.8, top_p=0.95, seed=1)
    print(args.prompt, end="", flush=True)
    for piece in pieces:  # pieces of whole characters, each as soon as it is known
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":  # run_command makes one sentence of any failure
    raise SystemExit(gpt2_np.run_command("complete_text", parser, None, main))

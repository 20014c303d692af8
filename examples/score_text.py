"""How much a text surprises a model: python examples/score_text.py [MODEL [FILE]]"""
import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # needless where it is installed

import gpt2_np

TEXT = "MACBETH:\nI have lived long enough: my way of life\nIs fall'n into the sear"
parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
parser.add_argument("model", nargs="?", default="shakespeare", help='or "124M", a path, a URL')
parser.add_argument("file", nargs="?", help="UTF-8 text; without it, three lines of Macbeth")


def main(args, parser):
    text = gpt2_np.utf_8(Path(args.file).read_bytes(), args.file) if args.file else TEXT
    model = gpt2_np.load(args.model)
    if model.tokenizer is None or not text:
        raise gpt2_np.Error("scoring a text needs a text, and a model with its vocabulary files")
    tokens = gpt2_np.prompt_tokens(model, text)
    log_p = gpt2_np.score(model, [model.tokenizer.end_of_text, *tokens])  # nats, one each

    loss = -log_p.mean()
    bits = -log_p.sum() / math.log(2)
    print(f"{len(tokens)} tokens, {loss:.3f} nats each, perplexity {math.exp(loss):.1f}, "
          f"{bits / len(text.encode()):.3f} bits per byte")
    print("The greatest surprises:")
    for i in log_p.argsort()[:5]:
        print(f"{-log_p[i]:8.3f} nats  {model.tokenizer.decode(tokens[max(0, i - 8) : i + 1])!r}")


if __name__ == "__main__":  # run_command makes one sentence of any failure
    raise SystemExit(gpt2_np.run_command("score_text", parser, None, main))

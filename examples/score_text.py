"""How much a text surprises a model: python examples/score_text.py [MODEL [FILE]]"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # needless where it is installed

import gpt2_np

name = sys.argv[1] if len(sys.argv) > 1 else "shakespeare"  # or "124M", a path, a URL
text = "MACBETH:\nI have lived long enough: my way of life\nIs fall'n into the sear"
if len(sys.argv) > 2:
    text = Path(sys.argv[2]).read_text(encoding="utf-8")

model = gpt2_np.load(name)
tokens = model.tokenizer.encode(text)
log_p = gpt2_np.score(model, [model.tokenizer.end_of_text, *tokens])  # nats, one for each token

loss = -log_p.mean()
bits = -log_p.sum() / math.log(2)
print(f"{len(tokens)} tokens, {loss:.3f} nats each, perplexity {math.exp(loss):.1f}, "
      f"{bits / len(text.encode()):.3f} bits per byte")
print("The greatest surprises:")
for i in log_p.argsort()[:5]:
    print(f"{-log_p[i]:8.3f} nats  {model.tokenizer.decode(tokens[max(0, i - 8) : i + 1])!r}")

"""Continue a text while it is made: python examples/complete_text.py [MODEL [PROMPT]]"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # needless where it is installed

import gpt2_np

name = sys.argv[1] if len(sys.argv) > 1 else "shakespeare"  # or "124M", a path, a URL
prompt = sys.argv[2] if len(sys.argv) > 2 else "ROMEO:\nBut soft, what light"

model = gpt2_np.load(name)
print(prompt, end="", flush=True)
pieces = gpt2_np.stream(model, prompt, n_tokens=80, temperature=0.8, top_p=0.95, seed=1)
for piece in pieces:  # pieces of whole characters, each as soon as it is known
    print(piece, end="", flush=True)
print()

"""The table of circuits/README.md, TransformerLens beside ours, and the names that it uses."""
import re
from pathlib import Path

import numpy as np

import gpt2_np
from gpt2_np import circuits

EMBEDDED = Path(gpt2_np.__file__).parent / "models" / "shakespeare"
TEXT = "ROMEO:\nBut soft, what light through yonder window"
PAGE = Path(circuits.__file__).with_name("README.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## From TransformerLens\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| `(.*)` \| `(.*)` \|$", SECTION, re.MULTILINE)


def result(code, names):
    """Return the value of an expression, or `out` if a statement leaves that."""
    try:
        code = compile(code, "circuits/README.md", "eval")
    except SyntaxError:
        names = {**names}
        exec(code, names)
        return names.get("out")
    return eval(code, names)


def our_names():
    """Return what the lines on the right know."""
    model = gpt2_np.load(EMBEDDED, "cpu")
    task = circuits.repeated_tokens(model, 6, 1)

    def half(name, array):
        return array / 2

    return {
        "gpt2_np": gpt2_np, "circuits": circuits, "model": model, "text": TEXT, "half": half,
        "tokens": task.clean.tokens, "clean": task.clean.tokens,
        "corrupted": task.corrupted.tokens, "metric": task.metric(model),
        "seen": circuits.run(model, TEXT, "*"),
        "vector": np.random.default_rng(0).standard_normal(256).astype(np.float32),
    }  # fmt: skip

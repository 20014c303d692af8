"""Probe every layer: read facts about a text off the residual stream with scikit-learn.

    pip install scikit-learn
    python examples/probe.py [model] [file]

A probe is a linear classifier of activations. If it is right on texts that it was not fitted on,
the layer holds the fact in a form that later layers could read. It does not say that they do
(Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes"). An
accuracy means little without that of the most frequent answer, which is printed beside it. The
texts are the paragraphs of the file, by default what the model writes itself; every third is held
out. Default model: shakespeare.
"""
import argparse
import re
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np
from gpt2_np import circuits

N_TEXTS, LENGTH = 60, 120  # LENGTH is in tokens


def written(model, start, length):
    """Return texts that the model writes, as lists of ids that begin with <|endoftext|>."""
    starts = [[start]] * N_TEXTS
    rows = gpt2_np.generate_batch(model, starts, length - 1, temperature=1.0, seed=1)
    return [[start, *row] for row in rows]


def read(model, start, length, file):
    """Return the beginnings of the paragraphs of a file that are long enough."""
    parts = Path(file).read_text(encoding="utf-8", errors="replace").split("\n\n")
    rows = [[start, *model.tokenizer.encode(part)][:length] for part in parts]
    return [row for row in rows if len(row) > 20][:N_TEXTS]


def labels(model, tokens):
    """Return what each token (but the last) is asked about, booleans [position] by question."""
    pieces = ["", *circuits.labels_of(model, tokens[1:])]  # <|endoftext|> is not part of the text
    text, ends = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
    in_name = np.zeros(len(text) + 1, bool)
    for found in re.finditer(r"^[A-Z][A-Z' ]*:?$", text, re.MULTILINE):
        in_name[found.start() : found.end()] = True
    lines = np.array([text[:end].rpartition("\n")[2] for end in ends])
    return {
        "inside a speaker's name": in_name[np.maximum(ends - 1, 0)][1:-1],
        "the next token ends the line": np.array([p.startswith("\n") for p in pieces[2:]]),
        "over 25 characters into the line": np.array([len(line) > 25 for line in lines])[1:-1],
    }


def streams(model, rows):
    """Return the residual stream of all texts at each point, [token, d] by name."""
    names = ["blocks.0.hook_resid_pre"]
    names += [f"blocks.{layer}.hook_resid_post" for layer in range(model.config.n_layer)]
    kept = [circuits.run(model, row, names, last_only=True) for row in rows]
    return {name: np.concatenate([seen[name][0, 1:-1] for seen in kept]) for name in names}


def main():
    parser = argparse.ArgumentParser(description="Probe every layer of a model.")
    parser.add_argument("model", nargs="?", default="shakespeare", help='or "124M", a path, a URL')
    parser.add_argument("file", nargs="?", help="text to read instead of the model's own writing")
    args = parser.parse_args()

    model = gpt2_np.load(args.model)
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise gpt2_np.Error("probes need scikit-learn: pip install scikit-learn") from None

    start = getattr(model.tokenizer, "end_of_text", None)
    if start is None:
        raise gpt2_np.Error("this model has no vocabulary with <|endoftext|>: use another")
    length = min(LENGTH, model.config.n_ctx)
    rows = read(model, start, length, args.file) if args.file else written(model, start, length)
    if len(rows) < 3:
        raise gpt2_np.Error(f"{args.file} has {len(rows)} paragraphs of 20 tokens: 3 are needed")
    asked = [labels(model, row) for row in rows]
    held_out = np.concatenate([np.full(len(row) - 2, i % 3 == 2) for i, row in enumerate(rows)])
    points = streams(model, rows)
    names = ["token and position", *(f"after layer {n}" for n in range(model.config.n_layer))]
    print(f"{len(rows)} texts, {len(held_out)} tokens, every third text held out. "
          "Accuracy on these:")
    for question in asked[0]:
        y = np.concatenate([one[question] for one in asked])
        print(f"\n{question}")
        if len(set(y[~held_out])) < 2:
            print("   always or never so in these texts")
            continue
        most = y[~held_out].mean() > 0.5
        print(f"   {np.mean(y[held_out] == most):6.3f}  most frequent answer")
        for name, x in zip(names, points.values(), strict=True):
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
            probe.fit(x[~held_out], y[~held_out])
            print(f"   {probe.score(x[held_out], y[held_out]):6.3f}  {name}")


if __name__ == "__main__":
    try:
        main()
    except (gpt2_np.Error, OSError) as error:  # one sentence: what was wrong, and what to do
        sys.exit(f"probe: {error}")

"""Find a model's induction heads, see their mechanism, and measure the loss without them.

    python examples/induction_heads.py [model]

An induction head attends from a token to the token that followed it before, and predicts that one
again (Elhage et al. 2021; Olsson et al. 2022). It needs an earlier head that writes into every
position the token before it. Random tokens that repeat show all of this. Default: shakespeare.
"""
import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np
from gpt2_np import circuits


def name(layer, head):
    return f"L{layer}H{head}"


def ranked(scores):
    """Return every (layer, head) from the highest score to the lowest."""
    return [tuple(map(int, np.unravel_index(i, scores.shape))) for i in np.argsort(-scores.ravel())]


def main():
    parser = argparse.ArgumentParser(description="Find a model's induction heads.")
    parser.add_argument("model", nargs="?", default="shakespeare", help='or "124M", a path, a URL')
    args = parser.parse_args()

    model = gpt2_np.load(args.model)
    config = model.config
    task = circuits.repeated_tokens(model, length=min(20, (config.n_ctx - 1) // 2), batch=8)
    start = "after <|endoftext|>" if task.clean.bos else "without <|endoftext|>"
    print(f"{len(task.clean.tokens)} prompts of random tokens that repeat once, {start}\n")

    print("1. Attention, as a share: to the previous token, to what followed the current one")
    attention = circuits.heads(model, task.clean)
    for kind in ("previous_token", "induction"):
        scores = getattr(attention, kind)
        best = ", ".join(f"{name(*head)} {scores[head]:.2f}" for head in ranked(scores)[:5])
        print(f"   {kind.replace('_', ' '):15s} {best}")
    previous = ranked(attention.previous_token)[0]
    induction = [head for head in ranked(attention.induction) if attention.induction[head] > 0.4]
    if not induction:
        print("   No head attends to what followed: this model has no induction head.")
        return

    print("\n2. Copying: does a head predict what it attends to? 1 always, 0 by chance, -1 never")
    copying = circuits.copying_scores(model)
    print("  ", ", ".join(f"{name(*head)} {copying[head]:.2f}" for head in induction[:5]))

    print("\n3. Composition: whose output do the keys of induction heads read, beyond chance?")
    by_key = circuits.composition(model, "K").values  # [layer, head, later layer, later head]
    for head in induction[:5]:
        sources = by_key[: head[0], :, head[0], head[1]]  # of earlier layers
        best = ", ".join(f"{name(*source)} {sources[source]:.3f}" for source in ranked(sources)[:3])
        print(f"   {name(*head)} reads {best}")

    print("\n4. Ablation: loss of the repeated half in nats, when heads are set to zero")
    metric = circuits.repeat_loss(task.clean.tokens, (task.clean.tokens.shape[1] - 1) // 2 - 1)

    def loss(heads):
        edits = circuits.ablated(model, heads)
        return metric(circuits.run(model, task.clean, edits=edits).logits).mean()

    print(f"   {loss([]):6.2f}  the whole model")
    print(f"   {loss(induction):6.2f}  without the induction heads "
          f"{', '.join(name(*head) for head in induction)}")
    print(f"   {loss([previous]):6.2f}  without the previous-token head {name(*previous)}")
    others = [(layer, head) for layer, head in ranked(copying)
              if layer > 0 and (layer, head) not in (*induction, previous)]
    rng = np.random.default_rng(0)
    chosen = [others[i] for i in rng.permutation(len(others))[: len(induction)]]
    print(f"   {loss(chosen):6.2f}  without as many others {', '.join(name(*h) for h in chosen)}")
    print(f"   {np.log(config.n_vocab):6.2f}  guessing")

    print("\n5. Search: the smallest set of heads and MLPs that keeps 80% of the logit difference")
    found = circuits.find(model, keep=0.8, **task.noising(model))
    print(f"   {' '.join(found.kept)}")
    print(f"   share kept {found.share}, incompleteness {found.incompleteness} (95% over prompts)")


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # one sentence: what was wrong, and what to do
        sys.exit(f"induction_heads: {error}")

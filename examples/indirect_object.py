"""Follow the indirect-object circuit of Wang et al. 2022, with published figures beside ours.

    python examples/indirect_object.py [model]

"When John and Mary went to the shops, John gave the bag to" is followed by " Mary". With 124M
(downloaded on first use) every step prints the published figure beside its own. If the names are
no single tokens of the vocabulary, as with the default model, shakespeare, invented names that
repeat take their place.
"""
import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np
from gpt2_np import circuits

# TransformerLens, demos/Exploratory_Analysis_Demo.ipynb; all for 124M and these eight prompts.
TEMPLATES = [
    ("When John and Mary went to the shops,{} gave the bag to", " Mary", " John"),
    ("When Tom and James went to the park,{} gave the ball to", " Tom", " James"),
    ("When Dan and Sid went to the shops,{} gave an apple to", " Dan", " Sid"),
    ("After Martin and Amy went to the park,{} gave a drink to", " Martin", " Amy"),
]
DIFFERENCE = 3.552
ATTRIBUTION = {"L9H9": 2.985, "L10H7": -1.899, "L9H6": 1.385, "L11H10": -0.970, "L10H0": 0.561}
PATCHING = {"L10H7": -0.480, "L5H5": 0.344, "L8H6": 0.319, "L11H10": -0.278, "L8H10": 0.278,
            "L9H9": 0.264, "L7H9": 0.192}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description="The indirect-object task, on arrays and figures.")
    parser.add_argument("model", nargs="?", default="shakespeare", help='or "124M", a path, a URL')
    args = parser.parse_args()

    model = gpt2_np.load(args.model)
    config, published = model.config, args.model == "124M"
    try:
        pairs = [(text, a, b) for text, *two in TEMPLATES for a, b in (two, two[::-1])]
        texts = [text.format(wrong) for text, _, wrong in pairs]
        answers, wrongs = ([circuits.token_id(model, pair[i]) for pair in pairs] for i in (1, 2))
        clean = circuits.prompts(model, texts)
        corrupted = circuits.prompts(model, [texts[i ^ 1] for i in range(len(texts))])
    except gpt2_np.Error as error:
        print(f"Names that repeat instead of indirect objects: {error}\n")
        task = circuits.name_repetition(model, 8)
        clean, corrupted, answers, wrongs = task.clean, task.corrupted, task.answers, task.wrong
        published = False
    metric = circuits.logit_difference(model, answers, wrongs)

    def show(title, values, figures=None):
        """Print the strongest heads of a map [layer, head], or those with published figures."""
        print(f"\n{title}")
        names, flat = circuits.head_names(config), values.ravel()
        strongest = [names[i] for i in np.argsort(-np.abs(flat))[:5]]
        for name in figures if figures and published else strongest:
            beside = f"   published {figures[name]:7.3f}" if figures and published else ""
            print(f"   {name:7s}{flat[names.index(name)]:8.3f}{beside}")

    words = " ".join(model.tokenizer.decode([token]) for token in clean.tokens[0])
    print(f"First of {len(clean.tokens)} prompts, as tokens: {words!r}")
    difference = metric(circuits.run(model, clean, last_only=True).logits).mean()
    beside = f"   published {DIFFERENCE:7.3f}" if published else ""
    print(f"Mean difference of logits, right minus wrong name: {difference:.3f}{beside}")

    result = circuits.attribution(model, clean, answers, wrongs, constants_apart=True)
    show("What each head adds to that difference directly (constants counted as bias)",
         result.heads().mean(axis=-1), ATTRIBUTION)

    sweep = circuits.patching(model, "z", base=corrupted, source=clean, metric=metric)
    show("Share of the difference that each head's clean output brings back in corrupted prompts",
         sweep.normalized, PATCHING)

    by_head = result.heads().mean(axis=-1)
    movers = [divmod(int(i), config.n_head) for i in np.argsort(-by_head.ravel())[:3]]
    queries = [(*head, "q") for head in movers]
    senders = circuits.path_patching(model, base=clean, source=corrupted, metric=metric,
                                     receivers=queries)
    show(f"Who steers the queries of the strongest, {', '.join(f'L{n}H{h}' for n, h in movers)}: "
         "effect of sending corrupted output there", senders.effect)

    found = circuits.find(model, base=clean, source=corrupted, metric=metric, keep=0.8)
    print(f"\n{len(found.kept)} of {found.n_all} heads and MLPs keep 80% of it:")
    print(f"   {' '.join(found.kept)}")
    print(f"   share kept {found.share}, incompleteness {found.incompleteness} (95% over prompts)")


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # one sentence: what was wrong, and what to do
        sys.exit(f"indirect_object: {error}")

"""Steer what a model writes toward questions: python examples/steering.py [MODEL]

The stream's mean difference between questions and statements is a vector. Added to the stream from
the end of the prompt on, it makes the model ask; subtracted, it makes it state. (Turner et al.
2023, "Activation Addition: Steering Language Models Without Optimization".)
"""
import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np
from gpt2_np import circuits

PAIRS = [
    ("What is the matter? Why do you weep? What then?\n",
     "Hold thy peace. I will go now. It is done.\n"),
    ("Who comes here? Where is he? How?\n", "He comes here. There he is. So.\n"),
    ("Is it so? Art thou well? Why?\n", "It is so. Thou art well. Then.\n"),
]
PROMPT, N_TEXTS, N_TOKENS = "MENENIUS:\n", 8, 40


def main():
    parser = argparse.ArgumentParser(description="Steer a model toward questions.")
    parser.add_argument("model", nargs="?", default="shakespeare",
                        help='"shakespeare" (default), a size such as "124M", a path or a URL')
    args = parser.parse_args()

    model = gpt2_np.load(args.model)
    name = circuits.activation_name("resid_pre", model.config.n_layer * 3 // 4)
    vector = circuits.steering_vector(model, PAIRS, name)
    prompts = [model.tokenizer.encode(PROMPT)] * N_TEXTS
    for scale in (-1.5, 0, 1.5):
        from_the_end_on = circuits.add(vector, scale, position=slice(-1, None))
        tap = circuits.as_tap(model, {name: from_the_end_on})
        rows = gpt2_np.generate_batch(model, prompts, N_TOKENS, temperature=0.8, seed=1, tap=tap)
        texts = [model.tokenizer.decode(row) for row in rows]
        asked = sum(text.count("?") for text in texts)
        print(f"{scale} times the vector: {asked} question marks in {N_TEXTS} texts, such as")
        print("".join(f"    {line}\n" for line in texts[-1].strip().splitlines()[:4] if line))


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # one sentence: what was wrong, and what to do
        sys.exit(f"steering: {error}")

"""Beam search beside transformers, token for token, under both of its major versions."""
import numpy as np
import pytest
import torch
from random_model import random_model
from transformers import GPT2LMHeadModel

import gpt2_np

pytestmark = pytest.mark.parity
MODEL = random_model(gpt2_np.Config(n_vocab=61, n_ctx=24, n_embd=20, n_head=4, n_layer=1))
N_PROMPTS, N_TOKENS = 200, 8


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer") / "model"
    gpt2_np.save(MODEL, folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are tiny
    yield GPT2LMHeadModel.from_pretrained(folder).eval()
    torch.set_num_threads(threads)


def random_case(seed):
    """Return a prompt, stop tokens and options of beam search."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, MODEL.n_vocab, rng.integers(1, 16)).tolist()
    stop = rng.choice(MODEL.n_vocab, rng.choice([0, 1, 8]), replace=False).tolist()
    n_beams = int(rng.integers(2, 6))
    return prompt, stop, {
        "n_beams": n_beams,
        "n_results": int(rng.integers(1, n_beams + 1)),
        "length_penalty": float(rng.choice([-1, 0, 0.7, 1, 2])),
        "no_repeat_ngram": [None, None, 1, 2, 3][rng.integers(5)],
    }


def expected_beams(peer, prompt, stop, options, early_stopping):
    """Return the tokens, without the stop token, and the scores that transformers finds."""
    found = peer.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=N_TOKENS, do_sample=False, eos_token_id=stop or None, pad_token_id=0,
        num_beams=options["n_beams"], num_return_sequences=options["n_results"],
        length_penalty=options["length_penalty"], early_stopping=early_stopping,
        no_repeat_ngram_size=options["no_repeat_ngram"] or 0, return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    rows = []
    for row in found.sequences[:, len(prompt) :].tolist():
        ends = [row.index(token) for token in stop if token in row]
        rows.append(row[: min(ends, default=N_TOKENS)])
    return rows, found.sequences_scores.tolist()


def test_beams_equal_transformers_by_all_three_rules_of_stopping(peer):
    by_rule = {}
    for early_stopping in (True, False, "never"):
        ended_by = []
        for seed in range(N_PROMPTS):
            prompt, stop, options = random_case(seed)
            beams = gpt2_np.beam_search(MODEL, prompt, N_TOKENS, stop=stop,
                                        early_stopping=early_stopping, **options)
            rows, scores = expected_beams(peer, prompt, stop, options, early_stopping)
            assert [beam.tokens for beam in beams] == rows, (seed, early_stopping)
            assert [beam.score for beam in beams] == pytest.approx(scores, rel=1e-4, abs=1e-5)
            ended_by += [beam.ended_by for beam in beams]
            by_rule.setdefault(early_stopping, []).append(rows)
        assert min(ended_by.count(reason) for reason in ("stop", "length")) > N_PROMPTS / 10
    different = [sum(a != b for a, b in zip(by_rule[True], by_rule[rule], strict=True))
                 for rule in (False, "never")]
    print(f"parity: beam search, {N_PROMPTS} prompts by 3 rules: the tokens of transformers; False "
          f'and "never" change {different[0]} and {different[1]} results of True')
    assert min(different) > 0

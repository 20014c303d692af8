"""Beside transformers in float32, and beside our own float64, at the official shapes."""
import numpy as np
import pytest
import torch
from random_model import map_params, random_params
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList
from transformers.generation import logits_process

import gpt2_np
from gpt2_np import SIZES, forward
from gpt2_np.gpt2_np import probabilities

pytestmark = pytest.mark.parity
ALL_SIZES = [
    "124M",
    "355M",
    pytest.param("774M", marks=pytest.mark.slow),
    pytest.param("1558M", marks=pytest.mark.slow),
]


def hugging_face_model(params, config):
    """transformers' model over the same memory as our arrays: no copy, no transposition."""
    state = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}" if name else key, inner)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(f"h.{index}", inner)
        else:
            leaf = {"w": "weight", "g": "weight", "b": "bias"}
            parent, _, last = name.rpartition(".")
            name = f"{parent}.{leaf[last]}" if last in leaf else f"{name}.weight"
            state[f"transformer.{name}"] = torch.from_numpy(value)

    walk("", params)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    shape = {"vocab_size": config.n_vocab, "n_positions": config.n_ctx, "n_embd": config.n_embd}
    with torch.device("meta"):
        peer = GPT2LMHeadModel(GPT2Config(**shape, n_head=config.n_head, n_layer=config.n_layer))
    missing = peer.load_state_dict(state, assign=True, strict=False)
    assert not missing.missing_keys, missing
    assert not missing.unexpected_keys, missing
    return peer.eval()


def relative_error(a, b):
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


class InFloat64(list):
    """Blocks that become float64 one at a time: 1558M would not fit twice over otherwise."""

    def __iter__(self):
        for block in super().__iter__():
            yield map_params(lambda array: array.astype(np.float64), block)


def in_float64(params):
    rest = {key: value for key, value in params.items() if key != "blocks"}
    rest = map_params(lambda array: array.astype(np.float64), rest)
    return {**rest, "blocks": InFloat64(params["blocks"])}


@pytest.fixture(scope="module", params=ALL_SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def params(size):
    return random_params(SIZES[size], seed=1)


@pytest.mark.parametrize("n_tokens", [1, 5, 37, 256])  # 5: products row by row
def test_logits_equal_transformers_and_float64(size, params, n_tokens):
    config = SIZES[size]
    tokens = np.random.default_rng(n_tokens).integers(0, config.n_vocab, n_tokens)
    ours = forward(params, config, tokens)
    with torch.no_grad():
        theirs = hugging_face_model(params, config)(torch.tensor(tokens)[None]).logits[0].numpy()
    exact = forward(in_float64(params), config, tokens)
    beside_peer, beside_exact = relative_error(ours, theirs), relative_error(ours, exact)
    print(
        f"parity: {size}, {n_tokens} tokens: logits beside transformers {beside_peer:.1e}, "
        f"beside float64 {beside_exact:.1e} (transformers {relative_error(theirs, exact):.1e})"
    )
    assert beside_peer <= 1e-5
    assert beside_exact <= 2e-6


def test_1024_tokens_at_124M_equal_float64():
    config = SIZES["124M"]
    params = random_params(config, seed=2)
    tokens = np.random.default_rng(0).integers(0, config.n_vocab, 1024)
    exact = forward(in_float64(params), config, tokens)
    error = relative_error(forward(params, config, tokens), exact)
    print(f"parity: 124M, 1024 tokens: logits beside float64 {error:.1e}")
    assert error <= 2e-6


@pytest.mark.slow
def test_1024_tokens_of_1558M_run_in_24_GiB():
    import resource

    config = SIZES["1558M"]
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, config.n_vocab, 1024)
    assert np.isfinite(forward(params, config, tokens)).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"parity: 1558M, 1024 tokens, all logits: peak {peak:.1f} GiB with weights in memory")
    assert peak < 24


@pytest.fixture(scope="module")
def small():
    config = gpt2_np.Config(n_vocab=311, n_ctx=64, n_embd=48, n_head=4, n_layer=3)
    params = random_params(config, seed=5, scale=0.2)
    return gpt2_np.Model(config, params), hugging_face_model(params, config)


def test_greedy_generation_equals_transformers(small):
    model, peer = small
    for seed in range(10):
        prompt = np.random.default_rng(seed).integers(0, 311, 5)
        expected = peer.generate(
            torch.tensor(prompt)[None], max_new_tokens=40, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )[0, 5:].tolist()  # fmt: skip
        assert list(gpt2_np.generate(model, prompt, 40)) == expected


def test_windows_of_a_long_text_equal_transformers(small):
    model, peer = small
    text = np.random.default_rng(1).integers(0, 311, 150)
    stride, n_ctx = 20, 64
    expected = np.zeros(len(text) - 1)
    done = 0
    for start in range(0, len(text) - 1, stride):
        window = torch.tensor(text[start : start + n_ctx + 1])[None]
        with torch.no_grad():
            log_p = peer(window[:, :-1]).logits.log_softmax(-1)[0]
        own = log_p.gather(1, window[0, 1:, None])[:, 0].numpy()
        end = start + len(own)
        expected[done:end] = own[done - start :]
        done = end
        if done == len(text) - 1:
            break
    error = relative_error(gpt2_np.score(model, text, stride), expected)
    print(f"parity: windowed scores beside transformers {error:.1e}")
    assert error <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 9},
        {"top_p": 0.6},
        {"top_p": 0.95},
        {"min_p": 0.1},
        {"temperature": 1.6, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_distributions_equal_transformers_processors(options):
    rng = np.random.default_rng(0)
    makers = {
        "temperature": logits_process.TemperatureLogitsWarper,
        "top_k": logits_process.TopKLogitsWarper,
        "top_p": logits_process.TopPLogitsWarper,
        "min_p": logits_process.MinPLogitsWarper,
    }
    processors = LogitsProcessorList(makers[name](value) for name, value in options.items())
    for _ in range(20):
        logits = (rng.standard_normal(500) * 3).astype(np.float32)
        expected = processors(None, torch.tensor(logits, dtype=torch.float64)[None]).softmax(-1)[0]
        ours = probabilities(logits, gpt2_np.Sampling(**{"temperature": 1.0, **options}))
        np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6, atol=1e-12)


def test_repetition_penalty_equals_transformers():
    rng = np.random.default_rng(0)
    for penalty in (0.5, 1.2, 3.0):
        processor = logits_process.RepetitionPenaltyLogitsProcessor(penalty)
        for _ in range(20):
            logits = rng.standard_normal(50).astype(np.float32)
            previous = rng.integers(0, 50, 20)
            expected = processor(torch.tensor(previous)[None], torch.tensor(logits)[None])[0]
            ours = gpt2_np.sample(logits, repetition_penalty=penalty, previous=previous)
            assert ours == int(expected.argmax())

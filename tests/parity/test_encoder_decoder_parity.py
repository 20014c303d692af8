"""The encoder-decoder example beside torch.nn.Transformer: random weights, ragged batches."""
from argparse import Namespace

import numpy as np
import pytest
import torch

from examples import encoder_decoder as example
from examples.two_languages import train
from gpt2_np.gpt2_np import NO_TAP, layer_norm

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*nested.tensor")]


def random_pair(rng, d, n_head, n_layer, m):
    """Return a Translator of PyTorch with random weights, and the same weights as arrays."""
    peer = train.Translator(d, n_head, n_layer, m).eval()
    torch.manual_seed(int(rng.integers(1 << 30)))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter += 0.3 / d**0.5 * torch.randn_like(parameter)
    return peer, example.nested({name: w.numpy() for name, w in train.exported(peer).items()})


def texts(rng, n, first=()):
    return [[*first, *rng.integers(3, len(train.WORDS), size).tolist()]
            for size in rng.integers(1, 13, n)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("with_last_norms", [False, True])
def test_logits_are_those_of_torch_with_padding_and_causal_masks(seed, with_last_norms):
    """The paper has no layer norm after a stack. PyTorch's default has, which is added here."""
    rng = np.random.default_rng(seed)
    d, n_head, n_layer = int(rng.choice([8, 32, 48])), int(rng.choice([1, 2, 4])), seed % 3 + 1
    peer, params = random_pair(rng, d, n_head, n_layer, 4 * d)
    norms = [torch.nn.LayerNorm(d) for _ in range(2)] if with_last_norms else [None, None]
    peer.transformer.encoder.norm, peer.transformer.decoder.norm = norms
    source, source_lengths = example.padded(texts(rng, 5))
    target, target_lengths = example.padded(texts(rng, 5, first=[example.START]))

    memory = example.encode(params, n_head, source, source_lengths)
    seen = {}
    if with_last_norms:
        for norm in norms:
            torch.nn.init.normal_(norm.weight, 1, 0.3)
            torch.nn.init.normal_(norm.bias, 0, 0.3)
        g, b = (parameter.detach().numpy() for parameter in (norms[0].weight, norms[0].bias))
        memory = layer_norm(memory, g, b, NO_TAP)
    logits = example.decode(params, n_head, target, memory, source_lengths, tap=seen.__setitem__)
    if with_last_norms:
        name = f"decoder.{n_layer - 1}.ln3."
        g, b = params["decoder"][-1]["ln_3"].values()
        g2, b2 = (parameter.detach().numpy() for parameter in (norms[1].weight, norms[1].bias))
        x = layer_norm(seen[f"{name}hook_normalized"] * g + b, g2, b2, NO_TAP)
        logits = x @ params["wte"].T
    with torch.no_grad():
        expected = peer(torch.from_numpy(source), torch.from_numpy(target)).numpy()
    real = np.arange(target.shape[1]) < target_lengths[:, None]
    assert np.linalg.norm((logits - expected)[real]) <= 1e-5 * np.linalg.norm(expected[real])
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-5)


def test_attention_patterns_are_those_of_torch():
    rng = np.random.default_rng(0)
    peer, params = random_pair(rng, 16, 4, 1, 32)
    seen = {}
    x = rng.standard_normal((3, 5, 16), dtype=np.float32)
    memory = rng.standard_normal((3, 7, 16), dtype=np.float32)
    last = np.array([[6] * 5, [2] * 5, [0] * 5])
    out = example.attention(x, memory, **params["decoder"][0]["cross_attn"], n_head=4, last=last,
                            tap=example.Tap(seen.__setitem__))
    hidden = torch.arange(7) > torch.from_numpy(last[:, :1])
    with torch.no_grad():
        expected = peer.transformer.decoder.layers[0].multihead_attn(
            *map(torch.from_numpy, (x, memory, memory)), key_padding_mask=hidden,
            average_attn_weights=False,
        )
    np.testing.assert_allclose(out, expected[0].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(seen["hook_pattern"], expected[1].numpy(), rtol=0, atol=1e-6)


def test_training_lowers_the_loss_and_its_files_give_the_same_logits(tmp_path):
    torch.manual_seed(0)
    peer = train.Translator(16, 2, 1, 32)
    pairs = [([train.IDS[word] for word in english], [train.IDS[word] for word in mirro])
             for english, mirro in train.sentences(64, "training", seed=0)]
    source, _ = example.padded([english for english, _ in pairs])
    target, _ = example.padded([[example.START, *mirro, example.END] for _, mirro in pairs])
    inputs = torch.from_numpy(source), torch.from_numpy(target)

    def loss():
        with torch.no_grad():
            logits = peer(inputs[0], inputs[1][:, :-1])
        return train.nats(logits, inputs[1][:, 1:]).item()

    before = loss()
    with torch.enable_grad():  # other files of tests switch gradients off
        train.train(peer, pairs, Namespace(steps=60, batch=16, lr=0.01, seed=0))
    assert loss() < before - 1

    train.save(peer, 2, tmp_path)
    model = example.load(tmp_path)
    assert [model.n_head, *model.words] == [2, *train.WORDS]
    logits = example.decode(model.params, 2, target[:, :-1], *model.read([row for row, _ in pairs]))
    halved = peer.half().float().eval()
    real = target[:, 1:] != example.PAD
    with torch.no_grad():
        expected = halved(inputs[0], inputs[1][:, :-1]).numpy()
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-5)

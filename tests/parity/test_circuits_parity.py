"""Beside TransformerLens on the same weights: unprocessed, and as its defaults process them."""
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from hooked import hooked
from random_model import TINY, random_params
from transformer_lens import FactoredMatrix
from transformer_lens import patching as peer_patching

import gpt2_np
from gpt2_np import SIZES, Config, Model, circuits

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
]
torch.set_grad_enabled(False)
SHAPES = {
    "tiny": TINY,
    "narrow": Config(n_vocab=101, n_ctx=40, n_embd=64, n_head=2, n_layer=5),
    "wide": Config(n_vocab=500, n_ctx=64, n_embd=192, n_head=12, n_layer=4),
    "shakespeare": None,
}
EMBEDDED = Path(gpt2_np.__file__).parent / "models" / "shakespeare"


class Pair:
    """A model here and there, and prompts that differ in two places."""

    def __init__(self, name):
        self.name = name
        if name == "shakespeare":
            self.model = gpt2_np.load(EMBEDDED, "cpu")
        else:
            config = SHAPES.get(name) or SIZES[name]
            scale = 0.3 * (20 / config.n_embd) ** 0.5 if name in SHAPES else 0.03
            self.model = Model(config, random_params(config, 1, scale=scale))
        self.peer = hooked(self.model)
        rng = np.random.default_rng(0)
        self.clean = rng.integers(0, self.model.config.n_vocab, (3, 14))
        self.corrupted = self.clean.copy()
        self.corrupted[:, 5] = (self.clean[:, 5] + 1) % self.model.config.n_vocab
        self.corrupted[:, 9] = (self.clean[:, 9] + 3) % self.model.config.n_vocab
        self.answers, self.wrong = rng.integers(0, self.model.config.n_vocab, (2, 3))
        self.metric = circuits.logit_difference(self.model, self.answers, self.wrong)

    def peer_metric(self, logits):
        rows, last = torch.arange(len(logits)), logits[:, -1]
        return (last[rows, self.answers] - last[rows, self.wrong]).mean()

    def peer_cache(self, tokens, peer=None):
        return (peer or self.peer).run_with_cache(torch.tensor(tokens))


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    torch.set_num_threads(1)
    return Pair(request.param)


def error(ours, theirs):
    """Return the relative error over the whole array; -inf in both (masked scores) agrees."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    assert ours.shape == theirs.shape
    both = np.isneginf(ours) & np.isneginf(theirs)
    ours, theirs = np.where(both, 0, ours), np.where(both, 0, theirs)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_the_peer_is_a_version_with_these_names():
    version = metadata.version("transformer-lens")
    print(f"\nparity: transformer-lens {version}, torch {torch.__version__}")
    assert version.startswith("3.")


def test_every_activation_agrees(pair):
    ours = circuits.run(pair.model, pair.clean, "*")
    pair.peer.set_use_attn_result(True)
    logits, theirs = pair.peer_cache(pair.clean)
    pair.peer.set_use_attn_result(False)
    errors = {name: error(ours[name], theirs[name]) for name in ours.activations}
    worst = max(errors, key=errors.get)
    print(f"\nparity: {pair.name}: {len(errors)} activations, worst relative error "
          f"{errors[worst]:.1e} ({worst}), logits {error(ours.logits, logits):.1e}")
    assert set(circuits.activation_names(pair.model.config)) == set(ours.activations)
    assert errors[worst] < 1e-4
    assert error(ours.logits, logits) < 1e-4


@pytest.mark.parametrize("mlp_neurons", [False, True])
def test_parts_of_the_stream_agree(pair, mlp_neurons):
    layers = range(pair.model.config.n_layer) if mlp_neurons else ()
    ours = circuits.decompose(pair.model, pair.clean, neurons=layers)
    _, cache = pair.peer_cache(pair.clean)
    theirs, labels = cache.get_full_resid_decomposition(
        expand_neurons=mlp_neurons, return_labels=True)
    where = {label: i for i, label in enumerate(ours.labels)}
    compared = 0
    for label, part in zip(labels, theirs, strict=True):
        label = f"MLP{label[0]}" if label.endswith("_mlp_out") else label
        if label in where:
            np.testing.assert_allclose(ours.values[where[label]], part, rtol=1e-3, atol=1e-4)
            compared += 1
    biases = sum(ours[label] for label in ours.labels if label.startswith("b_"))
    assert error(biases, np.broadcast_to(theirs[labels.index("bias")], biases.shape)) < 1e-4
    assert compared == len(labels) - 1


def test_the_accumulated_stream_agrees(pair):
    _, cache = pair.peer_cache(pair.clean)
    for at, layer in ((None, None), ("1_pre", 1), ("2_pre", 2)):
        theirs, labels = cache.accumulated_resid(layer=layer, incl_mid=True, return_labels=True)
        points, ours = circuits.decompose(pair.model, pair.clean, at).accumulated()
        assert points == labels
        assert error(ours, theirs) < 1e-4


def test_a_stack_of_one_activation_agrees(pair):
    _, cache = pair.peer_cache(pair.clean)
    ours = circuits.run(pair.model, pair.clean, "z")
    assert error(ours.stack("z"), cache.stack_activation("z")) < 1e-4
    assert error(ours["z", -1], cache["z", -1]) < 1e-4


def test_unembedding_agrees(pair):
    _, cache = pair.peer_cache(pair.clean)
    normalized, stream = cache["ln_final.hook_normalized"], cache["resid_post", -1]
    normalized = gained(pair.peer, normalized) + pair.peer.ln_final.b
    theirs = pair.peer.unembed(normalized)
    n = pair.model.n_vocab
    assert error(circuits.unembed(pair.model, normalized), theirs[..., :n]) < 1e-4
    assert error(circuits.unembed(pair.model, stream, layer_norm=True), theirs[..., :n]) < 1e-4
    processed = hooked(pair.model, processed=True)
    vector = np.random.default_rng(0).standard_normal((2, pair.model.config.n_embd))
    theirs = processed.unembed(torch.tensor(vector - vector.mean(axis=-1, keepdims=True)).float())
    ours = circuits.unembed(pair.model, vector, folded=True)
    theirs = theirs - processed.unembed.b_U
    assert error(ours, (theirs - theirs.mean(dim=-1, keepdim=True))[..., :n]) < 1e-4


def test_the_lens_agrees(pair):
    _, cache = pair.peer_cache(pair.clean)
    theirs, labels = cache.accumulated_resid(incl_mid=True, apply_ln=True, return_labels=True)
    ours = circuits.lens(pair.model, pair.clean, keep_logits=True)
    assert ours.points == labels
    for point, stream in zip(ours.logits, theirs, strict=True):
        assert error(point, pair.peer.unembed(stream)) < 1e-4


def test_the_lens_with_the_final_scale_agrees(pair):
    _, cache = pair.peer_cache(pair.clean)
    stack = gained(pair.peer, cache.apply_ln_to_stack(cache.accumulated_resid(incl_mid=True)))
    ours = circuits.lens(pair.model, pair.clean, frozen=True, keep_logits=True)
    for point, stream in zip(ours.logits, stack, strict=True):
        assert error(point, pair.peer.unembed(stream + pair.peer.ln_final.b)) < 1e-4


def gained(peer, stack):
    """Multiply by the final layer norm's gain.

    TransformerLens's apply_ln_to_stack expects the gain to be folded into the unembedding, also
    if weights are not processed.
    """
    return stack * peer.ln_final.w


def test_attribution_agrees(pair):
    _, cache = pair.peer_cache(pair.clean)
    stack, labels = cache.get_full_resid_decomposition(
        expand_neurons=False, return_labels=True, pos_slice=-1)
    stack = gained(pair.peer, cache.apply_ln_to_stack(stack, pos_slice=-1))
    direction = pair.peer.W_U[:, pair.answers] - pair.peer.W_U[:, pair.wrong]  # [d, b]
    theirs = torch.einsum("pbd,db->pb", stack, direction)
    ours = circuits.attribution(pair.model, pair.clean, pair.answers, pair.wrong)
    for label, value in zip(labels[:-1], theirs, strict=False):
        label = f"MLP{label[0]}" if label.endswith("_mlp_out") else label
        np.testing.assert_allclose(ours[label], value, rtol=1e-3, atol=1e-5)
    logits = circuits.run(pair.model, pair.clean).logits
    assert error(ours.total, pair.metric(logits)) < 1e-4


def test_attribution_of_all_neurons_agrees(pair):
    _, cache = pair.peer_cache(pair.clean)
    stack, labels = cache.stack_neuron_results(layer=-1, pos_slice=-1, return_labels=True)
    stack = gained(pair.peer, cache.apply_ln_to_stack(stack, pos_slice=-1))
    direction = pair.peer.W_U[:, pair.answers] - pair.peer.W_U[:, pair.wrong]  # [d, b]
    theirs = torch.einsum("pbd,db->pb", stack, direction)
    ours = circuits.attribution(pair.model, pair.clean, pair.answers, pair.wrong, neurons="all")
    where = {label: i for i, label in enumerate(ours.labels)}
    assert error(ours.values[[where[label] for label in labels]], theirs) < 1e-4


def test_attribution_by_source_agrees(pair):
    _, cache = pair.peer_cache(pair.clean)
    scale = cache["ln_final.hook_scale"][:, -1]
    direction = pair.peer.W_U[:, pair.answers] - pair.peer.W_U[:, pair.wrong]
    ours = circuits.attribution(pair.model, pair.clean, pair.answers, pair.wrong, by_source=True)
    theirs = []
    for layer in range(pair.model.config.n_layer):
        read = direction.T * pair.peer.ln_final.w
        read = (read - read.mean(dim=-1, keepdim=True)) / scale  # [b, d]
        written = torch.einsum("bkhe,hed,bd->bhk", cache["v", layer], pair.peer.W_O[layer], read)
        theirs.append((cache["pattern", layer][:, :, -1] * written).transpose(0, 1))
    assert error(ours.by_source.values, torch.cat(theirs)) < 1e-4


def test_attribution_as_published_agrees_with_processed_weights(pair):
    peer = hooked(pair.model, processed=True)
    _, cache = pair.peer_cache(pair.clean, peer)
    stack = cache.stack_head_results(pos_slice=-1)
    theirs = cache.logit_attrs(stack, torch.tensor(pair.answers), pos_slice=-1,
                               incorrect_tokens=torch.tensor(pair.wrong)).numpy()
    ours = circuits.attribution(pair.model, pair.clean, pair.answers, pair.wrong,
                                constants_apart=True)
    heads = ours.heads().reshape(-1, 3)
    print(f"\nparity: {pair.name}: head attributions with folded layer norms, centred writing and "
          f"b_V in b_O: relative error {error(heads, theirs[: len(heads)]):.1e}")
    assert error(heads, theirs[: len(heads)]) < 1e-4
    names, layers = ours.layers()
    stack, labels = cache.decompose_resid(return_labels=True, pos_slice=-1)
    theirs = cache.logit_attrs(stack, torch.tensor(pair.answers), pos_slice=-1,
                               incorrect_tokens=torch.tensor(pair.wrong)).numpy()
    assert names == labels[: len(names)]
    assert error(layers, theirs[: len(names)]) < 1e-4


def test_what_processing_leaves_unchanged_agrees_with_processed_weights(pair):
    logits, cache = pair.peer_cache(pair.clean, hooked(pair.model, processed=True))
    names = ["blocks.*.attn.hook_pattern", "blocks.*.mlp.hook_post"]
    ours = circuits.run(pair.model, pair.clean, names)
    for name, array in ours.activations.items():
        assert error(array, cache[name]) < 1e-4
    centred = ours.logits - ours.logits.mean(axis=-1, keepdims=True)
    assert error(centred, logits - logits.mean(dim=-1, keepdim=True)) < 1e-4


SWEEPS = {
    "resid_pre": (peer_patching.get_act_patch_resid_pre, None),
    "resid_mid": (peer_patching.get_act_patch_resid_mid, None),
    "attn_out": (peer_patching.get_act_patch_attn_out, None),
    "mlp_out": (peer_patching.get_act_patch_mlp_out, None),
    "z": (peer_patching.get_act_patch_attn_head_out_all_pos, False),
    "q": (peer_patching.get_act_patch_attn_head_q_all_pos, False),
    "k": (peer_patching.get_act_patch_attn_head_k_all_pos, False),
    "v": (peer_patching.get_act_patch_attn_head_v_all_pos, False),
    "pattern": (peer_patching.get_act_patch_attn_head_pattern_all_pos, False),
    "z by position": (peer_patching.get_act_patch_attn_head_out_by_pos, True),
    "q by position": (peer_patching.get_act_patch_attn_head_q_by_pos, True),
    "k by position": (peer_patching.get_act_patch_attn_head_k_by_pos, True),
    "v by position": (peer_patching.get_act_patch_attn_head_v_by_pos, True),
}


@pytest.mark.parametrize("what", SWEEPS)
def test_patching_sweeps_agree(pair, what):
    sweep, by_position = SWEEPS[what]
    _, cache = pair.peer_cache(pair.clean)
    theirs = sweep(pair.peer, torch.tensor(pair.corrupted), cache, pair.peer_metric).numpy()
    ours = circuits.patching(pair.model, what.partition(" ")[0], base=pair.corrupted,
                             source=pair.clean, metric=pair.metric, by_position=by_position)
    values = ours.values
    if by_position:
        values = values.transpose(0, 2, 1)  # there: layer, position, head
    base = ours.base.mean()
    worst = np.abs(values - theirs).max() / np.abs(theirs - base).max()
    print(f"\nparity: {pair.name}: patching {what}: largest difference {worst:.1e} of the "
          "largest effect")
    assert worst < 1e-4


def test_zero_ablation_agrees(pair):
    ours = circuits.ablation(pair.model, base=pair.clean, metric=pair.metric)

    def zero(z, hook, head):
        z[:, :, head] = 0
        return z

    for layer, head in np.ndindex(ours.values.shape):
        hooks = [(f"blocks.{layer}.attn.hook_z", partial(zero, head=head))]
        logits = pair.peer.run_with_hooks(torch.tensor(pair.clean), fwd_hooks=hooks)
        theirs = float(pair.peer_metric(logits))
        assert abs(ours.values[layer, head] - theirs) < 1e-4 * max(1, abs(theirs))


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_scores_agree(pair, kind, processed):
    peer = hooked(pair.model, processed)
    theirs = peer.all_composition_scores(kind).numpy()
    ours = circuits.composition(pair.model, kind, folded=processed, baseline=False).values
    assert error(ours, theirs) < 1e-4


@pytest.mark.parametrize("processed", [False, True])
def test_factored_matrices_agree(pair, processed):
    peer = hooked(pair.model, processed)
    layer, head = pair.model.config.n_layer - 1, 1
    for ours, theirs in (
        (circuits.ov(pair.model, (layer, head), processed), peer.OV[layer, head]),
        (circuits.qk(pair.model, (layer, head), processed), peer.QK[layer, head]),
    ):
        assert error(ours.full(), theirs.AB) < 1e-4
        assert error(ours.svd()[1], theirs.svd()[1]) < 1e-4
        assert abs(ours.norm() - float(theirs.norm())) < 1e-4 * ours.norm()
        values = [np.sort(np.abs(v)) for v in (ours.eigenvalues(), theirs.eigenvalues.numpy())]
        assert error(*values) < 1e-3
    w_e, w_u = peer.W_E, peer.W_U
    full = FactoredMatrix(w_e @ peer.W_V[layer, head], peer.W_O[layer, head] @ w_u)
    ours = circuits.full_ov(pair.model, (layer, head), processed)
    rows, columns = [0, 7, 11], [3, 2]
    assert error(ours.entries(rows, columns), full.AB[rows][:, columns]) < 1e-4
    copying = full.eigenvalues.numpy()
    copying = (copying.sum() / np.abs(copying).sum()).real
    assert abs(circuits.copying_scores(pair.model, processed)[layer, head] - copying) < 1e-3


@pytest.mark.slow
def test_124m_shape_agrees_and_how_long_it_takes():
    torch.set_num_threads(1)
    pair = Pair("124M")

    def seconds(work):
        start = time.perf_counter()
        result = work()
        return time.perf_counter() - start, result

    pair.peer_cache(pair.clean)
    here, ours = seconds(lambda: circuits.run(pair.model, pair.clean, "*"))
    there, (logits, cache) = seconds(lambda: pair.peer_cache(pair.clean))
    print(f"\nparity: 124M, 3 prompts of 14 tokens, every activation: {here:.2f} s here, "
          f"{there:.2f} s there, logits {error(ours.logits, logits):.1e}")
    assert error(ours.logits, logits) < 1e-4
    corrupted = torch.tensor(pair.corrupted)
    here, sweep = seconds(
        lambda: circuits.patching(pair.model, "z", base=pair.corrupted, source=pair.clean,
                                  metric=pair.metric))
    there, theirs = seconds(lambda: peer_patching.get_act_patch_attn_head_out_all_pos(
        pair.peer, corrupted, cache, pair.peer_metric))
    print(f"parity: 124M, patching 144 heads: {here:.1f} s here, {there:.1f} s there")
    theirs = theirs.numpy()
    base = sweep.base.mean()
    assert np.abs(sweep.values - theirs).max() < 1e-3 * np.abs(theirs - base).max()

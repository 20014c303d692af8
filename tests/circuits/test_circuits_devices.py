"""The toolkit on device arrays: a strict stand-in for CuPy here, CuPy where there is a GPU."""
import numpy as np
import pytest
import strict_arrays
from random_model import TINY, map_params, random_model

import gpt2_np
from gpt2_np import Model, backend, circuits

HOST = random_model()
TOKENS = np.random.default_rng(0).integers(0, TINY.n_vocab, (2, 10))
OTHER = TOKENS.copy()
OTHER[:, 4] = (OTHER[:, 4] + 5) % TINY.n_vocab
METRIC = circuits.logit_difference(HOST, 5, 3)
PAIR = {"base": TOKENS, "source": OTHER, "metric": METRIC}
Z, SCORES = "blocks.1.attn.hook_z", "blocks.0.attn.hook_attn_scores"


@pytest.fixture(params=["strict", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    xp = backend.pick("cuda") if request.param == "cuda" else strict_arrays
    return Model(TINY, map_params(xp.asarray, HOST.params))


def patched(model):
    source = circuits.run(model, OTHER, [Z])
    return circuits.run(model, TOKENS, edits={Z: circuits.patch(source[Z], [1, 2])}).logits


MID = "blocks.1.hook_resid_mid"
VECTOR = np.random.default_rng(1).standard_normal(TINY.n_embd)
EDITS = {MID: circuits.add(VECTOR, position=slice(3, None)), Z: circuits.patch(0.2, [1, 2]),
         "blocks.0.mlp.hook_post": [circuits.zero(neuron=5), lambda name, array: 2 * array],
         SCORES: circuits.knock_out([(5, 1), (6, 2)])}


def continued(model):
    tap = circuits.as_tap(model, EDITS)
    return gpt2_np.generate_batch(model, [[3, 5, 7], list(range(7))], 5, tap=tap)[1]


TOOLS = {
    "run": lambda m: circuits.run(m, TOKENS, "*")["blocks.2.hook_resid_post"],
    "trace": lambda m: np.array([row.bytes + row.multiply_adds
                                 for row in circuits.trace(m, TOKENS).rows]),
    "patch": patched,
    "zero": lambda m: circuits.run(m, TOKENS, edits={Z: circuits.zero(1, 2)}).logits,
    "knock out": lambda m: circuits.run(
        m, TOKENS, edits={SCORES: circuits.knock_out([5], [1, 2])}).logits,
    "edits": lambda m: circuits.run(m, TOKENS, edits=EDITS).logits,
    "generate with edits": continued,
    "run_generate": lambda m: circuits.run_generate(m, TOKENS[0], 4, edits=EDITS).logits,
    "score with edits": lambda m: gpt2_np.score_batch(
        m, list(TOKENS), tap=circuits.as_tap(m, EDITS)),
    "edited attribution": lambda m: circuits.attribution(m, TOKENS, 3, edits=EDITS).values,
    "edited lens": lambda m: circuits.lens(m, TOKENS, edits=EDITS).entropy,
    "edited heads": lambda m: circuits.heads(m, TOKENS, edits=EDITS).entropy,
    "edited measure": lambda m: circuits.measure(
        m, list(TOKENS), resamples=10, edits=EDITS).reliability,
    "edited gradients": lambda m: circuits.gradients(
        m, TOKENS, METRIC, edits={MID: circuits.zero(position=3)})["blocks.0.hook_resid_pre"],
    "edited patching": lambda m: circuits.patching(m, **PAIR, edits=EDITS).values,
    "edited path patching": lambda m: circuits.path_patching(
        m, **PAIR, receivers=[(2, 1, "q")], edits={Z: circuits.zero(1)}).values,
    "edited find": lambda m: circuits.find(m, **PAIR, keep=0.8, edits={Z: circuits.zero(1)}).share,
    "steering vector": lambda m: circuits.steering_vector(m, [TOKENS], MID),
    "mean": lambda m: circuits.mean_activation(m, list(TOKENS), Z),
    "decompose": lambda m: circuits.decompose(m, TOKENS, neurons=[0]).values,
    "attribution": lambda m: circuits.attribution(m, TOKENS, 3).values,
    "neurons and sources": lambda m: [a.sum() for found in [circuits.attribution(
        m, TOKENS, 3, 5, position=None, by_source=True, neurons="all", edits=EDITS)]
        for a in (found.values, found.by_source.values)],
    "unembed": lambda m: circuits.unembed(m, VECTOR, layer_norm=True),
    "lens": lambda m: circuits.lens(m, TOKENS, frozen=True).entropy,
    "heads": lambda m: circuits.heads(m, TOKENS).entropy,
    **{f"patching {what}": lambda m, what=what: circuits.patching(m, what, **PAIR).values
       for what in ("resid_pre", "z", "k", "pattern")},
    "patching neurons": lambda m: circuits.patching(m, "blocks.2.mlp.hook_post", **PAIR).values[2],
    "path patching": lambda m: circuits.path_patching(m, **PAIR, receivers=[(2, 1, "q")]).values,
    "composition": lambda m: circuits.composition(m, "K").values,
    "copying": circuits.copying_scores,
    "full circuit": lambda m: circuits.full_ov(m, "L1H1", extended=True).entries([1], [2]),
    "neuron": lambda m: circuits.neuron_tokens(m, "L1N1")["reads"].logits,
    "survey": lambda m: np.concatenate([*circuits.survey(
        m, list(TOKENS)).profiles[0].by_layer.values()]),
    "measure": lambda m: circuits.measure(m, list(TOKENS), resamples=10).reliability,
    "max activating": lambda m: [one.value for unit in ("L1N7", "L2H1")
                                 for one in circuits.max_activating(m, TOKENS, unit)],
    "histogram": lambda m: circuits.histogram(m, TOKENS, "blocks.1.hook_resid_mid", [-1, 0]).mean,
    "gradients": lambda m: circuits.gradients(m, TOKENS, METRIC)["blocks.0.hook_resid_pre"],
    "attribution patching": lambda m: circuits.attribution_patching(m, **PAIR, steps=2).values,
    "edges": lambda m: circuits.edge_attribution(m, **PAIR).values,
    "find": lambda m: circuits.find(m, **PAIR, keep=0.8).share,
    "find edges": lambda m: circuits.find_edges(m, **PAIR, keep=0.8, checks=9).share,
}  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_gives_on_the_device_what_it_gives_on_the_host(tool, device):
    here, there = (np.asarray(TOOLS[tool](model), float) for model in (HOST, device))
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-4)

"""Weight circuits are what the forward pass computes, folded or not, in either precision."""
import numpy as np
import pytest
from prompt_pair import CLEAN, MODEL, close
from random_model import TINY, map_params, random_model, random_params

from gpt2_np import Config, Model, circuits, gpt2_np

WEIGHTS = {
    "ov": lambda m: circuits.ov(m, "L1H1").svd()[1],
    "norm": lambda m: circuits.qk(m, "L1H1").norm(),
    "eigenvalues": lambda m: np.sort_complex(circuits.ov(m, "L2H0", folded=True).eigenvalues()),
    "full circuit": lambda m: circuits.full_ov(m, "L1H1", extended=True).svd()[1],
    "copying": circuits.copying_scores,
    "composition": lambda m: circuits.composition(m, "K").values,
    "singular": lambda m: circuits.singular_tokens(m, "L1H2")[0]["writes"].logits,
    "neuron": lambda m: circuits.neuron_tokens(m, "L1N5", folded=True)["reads"].logits,
}  # fmt: skip


@pytest.mark.parametrize("tool", WEIGHTS)
def test_weights_in_float16_give_what_the_same_numbers_give_in_float32(tool):
    half = map_params(lambda x: x.astype(np.float16), MODEL.params)
    single = map_params(lambda x: x.astype(np.float32), half)
    found, expected = (WEIGHTS[tool](Model(TINY, params)) for params in (half, single))
    assert np.asarray(found).dtype != np.float16
    close(found, expected, 1e-6)


def test_head_circuits_are_what_the_forward_pass_computes():
    seen = circuits.run(MODEL, CLEAN, "*")
    norm = MODEL.params["blocks"][1]["ln_1"]
    x = seen["blocks.1.ln1.hook_normalized"][0] * norm["g"] + norm["b"]
    bare = random_params(TINY, 0, scale=0.3)
    weights = bare["blocks"][1]["attn"]["c_attn"]
    weights["b"][:] = 0
    model = Model(TINY, bare)
    scores = circuits.run(model, CLEAN, "blocks.1.attn.hook_attn_scores", edits={
        "blocks.1.ln1.hook_normalized": seen["blocks.1.ln1.hook_normalized"],
    })["blocks.1.attn.hook_attn_scores"][0, 2]
    expected = x @ circuits.qk(MODEL, "L1H2").full() @ x.T / np.sqrt(5)
    lower = np.tri(12, dtype=bool)
    close(scores[lower], expected[lower], 1e-4)
    pattern = seen["blocks.1.attn.hook_pattern"][0, 2]
    moved = pattern @ x @ circuits.ov(MODEL, "L1H2").full()
    attn = MODEL.params["blocks"][1]["attn"]
    bias = attn["c_attn"]["b"].reshape(3, 4, 5)[2, 2] @ attn["c_proj"]["w"].reshape(4, 5, 20)[2]
    close(seen["blocks.1.attn.hook_result"][0, :, 2], moved + bias, 1e-4)


def test_folded_circuits_give_the_same_attention_and_the_same_logit_differences():
    """Gains in the weights, means taken out: x needs only to be normalised, without gain."""
    x = np.random.default_rng(0).standard_normal((6, 20))
    x -= x.mean(axis=1, keepdims=True)
    gain = MODEL.params["blocks"][1]["ln_1"]["g"]
    plain, folded = (circuits.ov(MODEL, "L1H2", f).full() for f in (False, True))
    written = x * gain @ plain
    close(x @ folded, written - written.mean(axis=1, keepdims=True), 1e-5)
    plain, folded = (circuits.qk(MODEL, "L1H2", f).full() for f in (False, True))
    close(x @ folded @ x.T, x * gain @ plain @ (x * gain).T, 1e-5)


def test_full_circuits_and_copying_scores_equal_their_products():
    w_e = MODEL.params["wte"]
    full = w_e @ circuits.ov(MODEL, "L1H0").full() @ w_e.T
    close(circuits.full_ov(MODEL, "L1H0").full(), full, 1e-5)
    close(circuits.full_ov(MODEL, "L1H0").entries([5, 6], [7]), full[[5, 6]][:, [7]], 1e-5)
    eigenvalues = np.linalg.eigvals(full.astype(float))
    score = (eigenvalues.sum() / np.abs(eigenvalues).sum()).real
    close(circuits.copying_scores(MODEL)[1, 0], score, 1e-3)
    close(circuits.full_qk(MODEL, "L1H0").full(),
          w_e @ circuits.qk(MODEL, "L1H0").full() @ w_e.T, 1e-5)


def test_extended_embeddings_include_the_first_mlp():
    x = MODEL.params["wte"]
    close(circuits.full_ov(MODEL, "L1H0", extended=True).left,
          (x + gpt2_np.mlp(gpt2_np.layer_norm(
              x[None], **MODEL.params["blocks"][0]["ln_2"], tap=gpt2_np.NO_TAP),
              **MODEL.params["blocks"][0]["mlp"], tap=gpt2_np.NO_TAP)[0])
          @ circuits.ov(MODEL, "L1H0").left, 1e-5)


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_scores_are_ratios_of_frobenius_norms(kind):
    found = circuits.composition(MODEL, kind, baseline=False)
    scores, best = found.values, found.top(100)
    first = circuits.ov(MODEL, "L0H3").full()
    second = {"Q": circuits.qk(MODEL, "L2H1").full(), "K": circuits.qk(MODEL, "L2H1").full().T,
              "V": circuits.ov(MODEL, "L2H1").full()}[kind]
    norm = np.linalg.norm
    close(scores[0, 3, 2, 1], norm(first @ second) / norm(first) / norm(second))
    for later in range(3):
        assert not scores[later:, :, later].any()
    assert len(best) == 3 * 4 * 4  # the second head is in a later layer
    assert dict(best)["L0H3", "L2H1"] == scores[0, 3, 2, 1]
    assert [value for _, value in best] == sorted(scores[scores > 0], reverse=True)


def test_a_head_that_does_nothing_has_no_scores_and_no_warning():
    params = map_params(np.copy, MODEL.params)
    attn = params["blocks"][1]["attn"]
    for c in range(3):
        attn["c_attn"]["w"][:, 20 * c + 10 : 20 * c + 15] = 0
    attn["c_proj"]["w"][10:15] = 0
    model = Model(TINY, params)
    copying, found = circuits.copying_scores(model), circuits.composition(model, "K")
    assert np.argwhere(np.isnan(copying)).tolist() == [[1, 2]]
    pairs = [pair for pair, _ in found.top(100)]
    assert len(pairs) == 3 * 4 * 4 - 8 and not any("L1H2" in pair for pair in pairs)


def test_random_weights_compose_no_more_than_the_baseline():
    scores = circuits.composition(random_model(Config(5, 4, 120, 4, 2), scale=1), "K").values
    assert np.abs(scores[0, :, 1]).max() < 0.02


def test_singular_and_neuron_directions_rank_the_whole_vocabulary():
    found = circuits.singular_tokens(MODEL, "L1H2", n=2, top=4)
    u, s, vt = np.linalg.svd(circuits.ov(MODEL, "L1H2").full())
    assert found[0]["value"] == pytest.approx(s[0], rel=1e-4)
    reads = MODEL.params["wte"] @ u[:, 0]
    sign = 1 if reads.max() >= -reads.min() else -1
    assert found[0]["reads"].ids.tolist() == np.argsort(-sign * reads)[:4].tolist()
    writes = sign * vt[0] @ MODEL.params["wte"].T
    assert found[0]["writes"].ids.tolist() == np.argsort(-writes)[:4].tolist()
    ends = circuits.neuron_tokens(MODEL, "L1N5", top=3)
    logits = MODEL.params["wte"] @ MODEL.params["blocks"][1]["mlp"]["c_proj"]["w"][5]
    assert ends["raises"].ids.tolist() == np.argsort(-logits)[:3].tolist()
    assert ends["lowers"].ids.tolist() == np.argsort(logits)[:3].tolist()

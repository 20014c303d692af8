"""Every tool works on an edited model, and gives what whole passes with the edits give."""
import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, DENOISING, METRIC, MODEL, NOISING, close
from random_model import TINY, random_params

from gpt2_np import Error, Model, circuits

RNG = np.random.default_rng(2)
VECTOR = RNG.standard_normal(TINY.n_embd).astype(np.float32)
ONE_EACH = RNG.standard_normal((3, 12, TINY.n_embd)).astype(np.float32)


def half_from_the_start(name, array):
    """A function of the caller's that depends on the positions of a whole text."""
    array[:, 2:9] *= 0.5


def name(short, layer):
    return circuits.activation_name(short, layer)


EDITS = {
    "stream": {"resid_pre": circuits.add(VECTOR, 0.5, position=slice(3, None)),
               name("resid_mid", 1): circuits.patch(VECTOR, position=6),
               name("resid_post", 0): circuits.patch(ONE_EACH, position=[5, -2])},
    "parts": {**circuits.ablated(MODEL, ["L1H2", "MLP0", "L2N17"]),
              "attn_out": circuits.add(VECTOR, 0.2, position=-1),
              name("mlp_out", 1): circuits.zero()},
    "attention": {name("attn_scores", 1): circuits.knock_out([5, 8], [2, 3], 1),
                  name("pattern", 2): circuits.zero(1, 9), name("result", 0): circuits.zero(3),
                  name("v", 1): circuits.zero(0, slice(2, 5))},
    "norms": {"ln_final.hook_normalized": circuits.add(VECTOR, position=-1),
              "blocks.1.ln2.hook_normalized": circuits.zero(position=7),
              "post": circuits.patch(0.3, neuron=[4, 9])},
    "functions": {"resid_mid": half_from_the_start, name("mlp_out", 2): half_from_the_start,
                  name("z", 1): [half_from_the_start, circuits.zero(1)]},
}  # fmt: skip


def metric_of(edits, tokens=CLEAN):
    return METRIC(circuits.run(MODEL, tokens, edits=edits).logits)


@pytest.mark.parametrize("what", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",
                                  "q", "k", "v", "z", "pattern", "z by position", "post"])
@pytest.mark.parametrize("case", EDITS)
def test_a_sweep_of_an_edited_model_equals_a_pass_for_every_cell(case, what):
    edits = EDITS[case]
    what, _, by_position = what.partition(" ")
    layers = [1] if what == "post" else None
    sweep = circuits.patching(MODEL, what, **DENOISING, layers=layers, edits=edits,
                              by_position=bool(by_position) or None)
    source = circuits.run(MODEL, CLEAN, what, edits=edits)
    close(sweep.base, metric_of(edits, CORRUPTED))
    close(sweep.source, metric_of(edits))
    assert np.abs(sweep.base - metric_of(None, CORRUPTED)).max() > 0.01
    cells = list(np.ndindex(sweep.values.shape))
    for index in [cells[i] for i in RNG.choice(len(cells), min(len(cells), 6), replace=False)]:
        at = dict(zip(sweep.axes, index, strict=True))
        here = name(what, at.pop("layer"))
        if np.isnan(sweep.values[index]):
            assert layers and int(here.split(".")[1]) not in layers
            continue
        cell = {here: circuits.patch(source[here], **at)}
        close(sweep.per_prompt[index], metric_of([edits, cell], CORRUPTED))


@pytest.mark.parametrize("case", EDITS)
def test_ablation_of_an_edited_model_equals_a_pass_for_every_cell(case):
    edits = EDITS[case]
    for mode, reference in (("zero", None), ("mean", CORRUPTED)):
        sweep = circuits.ablation(MODEL, "mlp_out", base=CLEAN, source=reference, metric=METRIC,
                                  mode=mode, edits=edits, by_position=False)
        for layer in range(3):
            here = name("mlp_out", layer)
            values = 0.0 if mode == "zero" else circuits.run(
                MODEL, CORRUPTED, here, edits=edits)[here].mean(axis=0, keepdims=True)
            close(sweep.per_prompt[layer], metric_of([edits, {here: circuits.patch(values)}]))


@pytest.mark.filterwarnings("ignore:the metric is")  # a random model does no task
@pytest.mark.parametrize("case", ["parts", "functions"])
def test_a_circuit_of_an_edited_model_is_measured_by_passes_with_the_edits(case):
    edits = EDITS[case]
    found = circuits.find(MODEL, **NOISING, keep=0.6, edits=edits, subsets=2)
    removed = [n for n in circuits.node_names(TINY) if n not in found.kept]
    other = circuits.run(MODEL, CORRUPTED, ["z", "mlp_out"], edits=edits)
    replaced = {}
    for node in removed:
        layer, head = circuits.parse_node(TINY, node)
        here = name("mlp_out" if head is None else "z", layer)
        replaced.setdefault(here, []).append(circuits.patch(other[here], head))
    close(found.base, metric_of(edits))
    none = found.none.mean()
    share = (metric_of([edits, replaced]).mean() - none) / (found.base.mean() - none)
    close(found.share.value, share, 1e-4)


# --- reading the edited model ----------------------------------------------------------

PARTS = ("stream", "parts", "attention", "functions")


@pytest.mark.parametrize("at", [None, "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid",
                                "blocks.0.hook_resid_post"])
@pytest.mark.parametrize("case", PARTS)
def test_parts_of_an_edited_model_sum_to_its_stream(case, at):
    edits = EDITS[case]
    stream = circuits.run(MODEL, CLEAN, "*", edits=edits)[at or "blocks.2.hook_resid_post"]
    for neurons in ((), range(3)):
        parts = circuits.decompose(MODEL, CLEAN, at, neurons=neurons, edits=edits)
        close(parts.values.sum(axis=0), stream)


@pytest.mark.parametrize("case", PARTS)
def test_attribution_in_an_edited_model_sums_to_its_logits_layer_by_layer(case):
    edits = EDITS[case]
    found = circuits.attribution(MODEL, CLEAN, [3, 4, 5], [6, 7, 8], edits=edits)
    close(found.total, metric_of(edits), 1e-4)
    frozen = circuits.lens(MODEL, CLEAN, position=-1, frozen=True, keep_logits=True, edits=edits)
    points, grown = circuits.attribution(MODEL, CLEAN, edits=edits).accumulated()
    bias = MODEL.params["ln_f"]["b"] @ MODEL.params["wte"].T
    close(frozen.logits[:, :, 0], grown + bias, 1e-4)
    assert points == frozen.points


def test_the_vector_of_a_steering_edit_is_a_part_of_the_attribution():
    edits = {name("resid_pre", 1): circuits.add(VECTOR, 2.0, position=-1)}
    found = circuits.decompose(MODEL, CLEAN, edits=edits, position=-1)
    close(found["edit_resid_pre1"][0, 0], 2 * VECTOR)


@pytest.mark.parametrize("case", EDITS)
def test_attention_scores_of_an_edited_model_are_those_of_its_patterns(case):
    edits = EDITS[case]
    found = circuits.heads(MODEL, CLEAN, edits=edits)
    seen = circuits.run(MODEL, CLEAN, "pattern", edits=edits)
    for layer in range(3):
        pattern = seen[name("pattern", layer)]
        before = np.mean([pattern[:, :, q, q - 1] for q in range(1, 12)], axis=(0, 1))
        close(found.previous_token[layer], before)


@pytest.mark.parametrize("case", ["stream", "attention", "norms", "functions"])
def test_the_loss_of_an_edited_model_is_that_of_one_pass_for_each_text(case):
    edits = EDITS[case]
    if case == "stream":
        edits = {name("resid_mid", 1): circuits.add(VECTOR, position=slice(4, None))}
    texts = [CLEAN[0].tolist(), CLEAN[1, :11].tolist()]
    found = circuits.measure(MODEL, texts, resamples=5, edits=edits)
    losses = []
    for text in texts:
        logits = circuits.run(MODEL, text[:-1], edits=edits).logits[0].astype(float)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        losses += [-log_p[i, token] for i, token in enumerate(text[1:])]
    close(found.loss.value, np.mean(losses), 1e-5)
    assert abs(found.loss.value - circuits.measure(MODEL, texts, resamples=5).loss.value) > 1e-3


@pytest.mark.parametrize("short", ["resid_pre", "resid_mid", "q", "k", "v", "z", "attn_out",
                                   "mlp_out"])
@pytest.mark.parametrize("case", ["stream", "parts", "attention"])
def test_gradients_of_an_edited_model_are_the_slopes_of_the_metric(case, short):
    model = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))
    edits = {key: edit for key, edit in EDITS[case].items() if "result" not in key}
    edits |= {"post": circuits.zero(neuron=[3, 8]), name("pre", 1): circuits.add(0.1)}
    found = circuits.gradients(model, CLEAN, METRIC, edits=edits)
    for layer in range(3):
        here = name(short, layer)
        step = 1e-5 * np.random.default_rng(layer).standard_normal(found[here].shape)
        up, down = (METRIC(circuits.run(model, CLEAN, edits=[edits, {
            here: circuits.add(step, sign)}]).logits) for sign in (1, -1))
        slope = (found[here] * step).sum(axis=tuple(range(1, step.ndim)))
        np.testing.assert_allclose((up - down) / 2, slope, rtol=1e-5, atol=1e-12)


PATH_EDITS = {
    "parts": {**circuits.ablated(MODEL, ["L0H2", "MLP0", "L1N17"]),
              "embed": circuits.add(VECTOR, 0.2, position=-1)},
    "attention": {name("attn_scores", 1): circuits.knock_out([5, 8], [2, 3], 1),
                  "q": circuits.add(0.5, head=1), "blocks.2.ln1.hook_normalized": circuits.add(0.3),
                  "blocks.1.ln2.hook_normalized": circuits.zero(position=[7, 11])},
    "functions": {name("mlp_out", 1): half_from_the_start, name("z", 0): half_from_the_start,
                  name("k", 2): half_from_the_start},
}  # fmt: skip


@pytest.mark.parametrize("through_mlps", [True, False])
@pytest.mark.parametrize("receivers", ["logits", [(2, 1, "q"), (1, 3, "k"), (2, 1, "k")]])
@pytest.mark.parametrize("case", PATH_EDITS)
def test_path_patching_of_an_edited_model_equals_its_definition(case, receivers, through_mlps):
    edits = PATH_EDITS[case]
    sweep = circuits.path_patching(MODEL, **NOISING, receivers=receivers, edits=edits,
                                   through_mlps=through_mlps)
    clean, other = (circuits.run(MODEL, tokens, "*", edits=edits) for tokens in (CLEAN, CORRUPTED))
    for layer, head in ((0, 0), (0, 2), (1, 3), (2, 1)):
        held = {name("z", n): circuits.patch(clean[name("z", n)]) for n in range(3)}
        if not through_mlps:
            held |= {name("mlp_out", n): clean[name("mlp_out", n)] for n in range(3)}
        sent = {name("z", layer): circuits.patch(other[name("z", layer)], head)}
        first = circuits.run(MODEL, CLEAN, "*", edits=[edits, held, sent])
        expected = METRIC(first.logits)
        if receivers != "logits":
            received = [{name(kind, n): circuits.patch(first[name(kind, n)], h)}
                        for n, h, kind in receivers if n > layer]
            expected = metric_of([edits, *received])
        close(sweep.per_prompt[layer, head], expected)


@pytest.mark.parametrize(("tool", "edits", "message"), [
    (circuits.lens, {"ln_final.hook_scale": 1.0}, "lens cannot honour the edit of ln_final"),
    (circuits.attribution, {"ln_final.*": 1.0}, "attribution cannot honour the edit of ln_final"),
    (lambda *a, **o: circuits.gradients(*a, METRIC, **o), {"blocks.1.ln2.hook_scale": 1.0},
     "gradients cannot honour the edit of blocks.1.ln2.hook_scale"),
    (lambda *a, **o: circuits.gradients(*a, METRIC, **o), {"z": half_from_the_start},
     r"back through a function of your own, the edit of blocks.2.attn.hook_z"),
    (lambda *a, **o: circuits.gradients(*a, METRIC, **o), {"pattern": circuits.add(0.1)},
     "through what was added to blocks.2.attn.hook_pattern"),
    (lambda model, _, **o: circuits.path_patching(model, **NOISING, **o),
     {name("resid_mid", 1): circuits.zero()}, "path_patching cannot honour the edit of blocks.1"),
])  # fmt: skip
def test_an_edit_that_a_tool_cannot_honour_is_one_clear_error(tool, edits, message):
    with pytest.raises(Error, match=message):
        tool(MODEL, CLEAN, edits=edits)

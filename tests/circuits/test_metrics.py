"""Metrics of single tokens and of sets, with their gradients."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_pair import ANSWERS, CLEAN, CORRUPTED, MODEL, TEXT, WRONG, close
from random_model import TINY, random_params

from gpt2_np import Error, Model, circuits
from gpt2_np.circuits.metrics import of_rows

KINDS = ["logit", "log_probability", "probability"]
SETS, OTHERS = [[3, 4], [5], [6, 0, 60]], [[7], [8, 9, 10], [1, 2]]
LOGITS = np.random.default_rng(1).standard_normal((3, 1, TINY.n_vocab)) * 3

# One token for all, one each, sets of several sizes, one set for all, and no other answers.
ASKED = [(3, 6), (ANSWERS, WRONG), (SETS, OTHERS), ([[3, 4, 9]], OTHERS), (SETS, None), (3, None)]


def listed(answers):
    """Return one list of ids for each of three prompts."""
    rows = answers if isinstance(answers, list) else [answers]
    rows = [row if isinstance(row, list) else [row] for row in rows]
    return rows * 3 if len(rows) == 1 else rows


def by_hand(logits, answers, wrong, kind):
    values = []
    for row, right, other in zip(logits[:, -1], listed(answers), listed(wrong), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        measure = {"logit": lambda ids, x=row: x[ids].mean(),
                   "probability": lambda ids, p=p: p[ids].sum(),
                   "log_probability": lambda ids, p=p: np.log(p[ids].sum())}[kind]
        values.append(measure(right) - (0 if other == [None] else measure(other)))
    return np.array(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("answers", "wrong"), ASKED)
def test_a_metric_of_answers_is_that_calculated_by_hand(answers, wrong, kind):
    metric = circuits.logit_difference(MODEL, answers, wrong, kind)
    close(metric(LOGITS), by_hand(LOGITS, answers, wrong, kind), 1e-12)
    if wrong is None and kind == "log_probability":
        close(circuits.log_probability(MODEL, answers)(LOGITS), metric(LOGITS), 0)


def slopes(metric, logits):
    """Return finite differences of a metric with respect to every logit."""
    result = np.zeros_like(logits)
    for index in np.ndindex(logits.shape[1:]):
        step = np.zeros_like(logits)
        step[(slice(None), *index)] = 1e-5
        result[(slice(None), *index)] = (metric(logits + step) - metric(logits - step)) / 2e-5
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("answers", "wrong"), ASKED)
def test_the_gradient_of_a_metric_of_answers_is_its_slope(answers, wrong, kind):
    metric = circuits.logit_difference(MODEL, answers, wrong, kind)
    np.testing.assert_allclose(metric.gradient(LOGITS), slopes(metric, LOGITS)[:, 0],
                               rtol=1e-6, atol=1e-9)


def test_the_gradient_of_the_repeat_loss_is_its_slope_at_every_position():
    tokens = CLEAN[:, :6]
    logits = np.random.default_rng(2).standard_normal((3, 6, TINY.n_vocab))
    metric = circuits.repeat_loss(tokens, 3)
    found = metric.gradient(logits)
    np.testing.assert_allclose(found, slopes(metric, logits), rtol=1e-6, atol=1e-9)
    assert not found[:, [0, 1, 5]].any() and found[:, 2:5].any(axis=(0, 2)).all()


@pytest.mark.parametrize(("answers", "wrong"), ASKED)
def test_the_logit_difference_is_read_from_the_stream_as_from_the_logits(answers, wrong):
    metric = circuits.logit_difference(MODEL, answers, wrong)
    seen = circuits.run(MODEL, CLEAN, "ln_final.hook_normalized")
    norm = MODEL.params["ln_f"]
    x = seen["ln_final.hook_normalized"][:, -1] * norm["g"] + norm["b"]
    close(metric.of_stream(x, MODEL.params), metric(seen.logits))


def test_only_the_metric_of_logits_is_read_from_the_stream():
    found = [isinstance(circuits.logit_difference(MODEL, 3, 6, kind), circuits.ReadsStream)
             for kind in KINDS]
    assert found == [True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_pad_the_embedding_are_in_no_probability(kind, speaking, padded):
    def value(model):
        metric = circuits.logit_difference(model, [[" the", " cat"]], " sat", kind)
        logits = circuits.run(model, TEXT[:30], last_only=True).logits
        gradient = metric.gradient(logits)
        assert not gradient[:, model.n_vocab :].any()
        return np.append(metric(logits), gradient[0, : model.n_vocab])

    close(value(padded), value(speaking))


def test_a_set_counts_a_token_once():
    twice, once = (circuits.logit_difference(MODEL, [answers], 5, "probability")(LOGITS)
                   for answers in ([3, 3, 4], [4, 3]))
    close(twice, once, 0)


def test_a_python_set_is_one_set_for_all_prompts():
    found, expected = (circuits.logit_difference(MODEL, answers, 5)(LOGITS)
                       for answers in ({3, 4, 9}, [[3, 4, 9]]))
    close(found, expected, 0)


def test_a_set_of_improbable_tokens_has_a_finite_log_probability():
    logits = np.zeros((1, 1, TINY.n_vocab), np.float32)
    logits[..., 3:5] = -500
    metric = circuits.logit_difference(MODEL, [[3, 4]], None, "log_probability")
    close(metric(logits), [-500 + np.log(2) - np.log(TINY.n_vocab - 2)], 1e-6)
    assert np.isfinite(metric.gradient(logits)).all()


@settings(max_examples=20)
@given(st.data())
def test_the_metric_of_some_rows_is_that_metric_at_these_rows(data):
    n = data.draw(st.integers(1, 5))
    token = st.integers(0, TINY.n_vocab - 1)
    each = st.lists(token, min_size=n, max_size=n)
    sets = st.lists(st.lists(token, min_size=1, max_size=3), min_size=n, max_size=n)
    answers, wrong = (data.draw(st.one_of(token, each, sets)) for _ in range(2))
    metric = circuits.logit_difference(MODEL, answers, wrong, data.draw(st.sampled_from(KINDS)))
    logits = np.random.default_rng(n).standard_normal((n, 1, TINY.n_vocab))
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True)))
    close(of_rows(metric, rows, n)(logits[rows]), metric(logits)[rows], 1e-12)


def test_the_repeat_loss_of_some_rows_is_that_of_their_tokens():
    logits = np.random.default_rng(2).standard_normal((*CLEAN.shape, TINY.n_vocab))
    metric = circuits.repeat_loss(CLEAN, 4)
    close(of_rows(metric, [2, 0], 3)(logits[[2, 0]]), metric(logits)[[2, 0]], 0)


def test_a_function_of_logits_is_the_same_for_any_rows():
    def metric(logits):
        return logits[:, -1, 3]

    assert of_rows(metric, np.arange(2), 5) is metric


class LastAndFirst:
    """A user's metric of two positions."""

    last_only = False

    def __call__(self, logits):
        return logits[:, -1, 3] - logits[:, 0, 5] ** 2

    def gradient(self, logits):
        result = np.zeros_like(logits)
        result[:, -1, 3] = 1
        result[:, 0, 5] = -2 * logits[:, 0, 5]
        return result


class Last:
    """A user's metric of the last position, whose gradient is [b, v]."""

    def __call__(self, logits):
        return logits[:, -1, 3] ** 2

    def gradient(self, logits):
        assert logits.shape[1] == 1
        return 2 * logits[:, 0] * (np.arange(logits.shape[-1]) == 3)


@pytest.mark.parametrize("metric", [
    LastAndFirst(), Last(), circuits.repeat_loss(CLEAN, 7),
    *(circuits.logit_difference(MODEL, SETS, OTHERS, kind) for kind in KINDS)])
@pytest.mark.parametrize("name", ["hook_resid_pre", "attn.hook_k", "attn.hook_pattern",
                                  "mlp.hook_post"])
def test_gradients_of_any_metric_are_its_slopes(name, metric):
    model = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))
    name = f"blocks.1.{name}"
    found = circuits.gradients(model, CLEAN, metric, names=name)[name]
    step = 1e-5 * np.random.default_rng(1).standard_normal(found.shape)
    up, down = (metric(circuits.run(model, CLEAN, edits={
        name: lambda _, x, s=sign: x + s * step}).logits) for sign in (1, -1))
    slope = (found * step).sum(axis=tuple(range(1, step.ndim)))
    np.testing.assert_allclose((up - down) / 2, slope, rtol=2e-5, atol=1e-12)


DOUBLE = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))
OF_ALL = [LastAndFirst(), circuits.repeat_loss(CLEAN, 7)]


@pytest.mark.parametrize("metric", OF_ALL)
def test_sweeps_measure_a_metric_of_all_positions_unasked(metric):
    sweep = circuits.patching(MODEL, "z", base=CLEAN, source=CORRUPTED, metric=metric)
    z = circuits.run(MODEL, CORRUPTED, "z")["blocks.1.attn.hook_z"]
    patched = circuits.run(MODEL, CLEAN, edits={"blocks.1.attn.hook_z": circuits.patch(z, head=2)})
    close(sweep.per_prompt[1, 2], metric(patched.logits))


@pytest.mark.parametrize("metric", OF_ALL)
def test_attribution_patching_of_a_metric_of_all_positions_adds_up(metric):
    """With steps, the cells of a layer add up to the patch of the whole layer."""
    pair = {"base": CLEAN, "source": CORRUPTED, "metric": metric}
    found = circuits.attribution_patching(DOUBLE, "z", **pair, layers=[1], steps=30)
    name = "blocks.1.attn.hook_z"
    z = circuits.run(DOUBLE, CORRUPTED, name)[name]
    whole = metric(circuits.run(DOUBLE, CLEAN, edits={name: z}).logits) - found.base
    np.testing.assert_allclose((found.per_prompt[1] - found.base).sum(axis=0), whole, rtol=1e-3)


def test_edge_attribution_of_the_repeat_loss_is_exact_for_small_changes():
    params = random_params(TINY, 0, np.float64, scale=0.3)
    params["wte"][1] = params["wte"][0] + 1e-6 * np.random.default_rng(0).standard_normal(20)
    model, base, source = Model(TINY, params), [[2, 0, 5, 0, 9]], [[2, 1, 5, 0, 9]]
    metric = circuits.repeat_loss(base, 3)
    pair = {"base": base, "source": source}
    scores = circuits.edge_attribution(model, metric=metric, **pair)
    before = metric(circuits.run(model, base).logits)
    for edge in (("embed", "L0H2.v"), ("L0H1", "L1H0.q"), ("MLP0", "L2H1.k"), ("L1H3", "logits")):
        change = metric(circuits.patch_edges(model, edge, **pair, last_only=False)) - before
        np.testing.assert_allclose(scores[edge], change, rtol=1e-3, atol=1e-14)


@pytest.mark.filterwarnings("ignore:the metric is")  # a random model does no task
def test_a_circuit_of_edges_is_found_for_the_repeat_loss():
    metric = circuits.repeat_loss(CLEAN[:1], 7)
    base, source = (circuits.run(MODEL, tokens[:1]).logits for tokens in (CLEAN, CORRUPTED))
    found = circuits.find_edges(MODEL, 0.3, base=CLEAN[:1], source=CORRUPTED[:1], metric=metric,
                                checks=3, subsets=1)
    close([found.base.mean(), found.source.mean()], [metric(base).mean(), metric(source).mean()])
    assert found.kept and 0.3 - 1e-9 <= found.share.value <= 1.7


def test_a_gradient_of_another_shape_is_a_clear_error():
    class Wrong(Last):
        def gradient(self, logits):
            return np.zeros(len(logits))

    with pytest.raises(Error, match=r"gradient has shape \(3,\) for logits \(3, 1, 61\): it must"):
        circuits.gradients(MODEL, CLEAN, Wrong())

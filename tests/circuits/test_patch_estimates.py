"""Attribution patching is the slope of patching; with steps it adds up to a whole layer's patch."""
import numpy as np
import pytest
from planted import INDUCTION, PREVIOUS, planted_model
from prompt_pair import CLEAN, CORRUPTED, DENOISING, METRIC, MODEL, NOISING, close
from random_model import TINY, random_params

from gpt2_np import Error, Model, circuits
from gpt2_np.circuits.patch_estimates import rank_correlation
from gpt2_np.circuits.resumed_runs import PATCHABLE

DOUBLE = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))


def estimate(model=DOUBLE, what="z", **options):
    return circuits.attribution_patching(model, what, **DENOISING, **options)


def exact(model=DOUBLE, what="z", **options):
    return circuits.patching(model, what, **{**DENOISING, **options})


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("what", PATCHABLE)
def test_an_estimate_is_the_slope_of_the_patch_of_that_cell(what, by_position):
    """A hundred-thousandth of the way to source, the exact effect is the estimate's share."""
    found = estimate(what=what, by_position=by_position)
    base, source = (circuits.run(DOUBLE, tokens, what).activations for tokens in (CORRUPTED, CLEAN))
    share, rng = 1e-5, np.random.default_rng(0)
    values = found.values
    assert values.shape == tuple({"layer": 3, "head": 4, "neuron": 80, "position": 12}[axis]
                                 for axis in found.axes)
    for flat in rng.choice(values.size, 3, replace=False):
        index = np.unravel_index(flat, values.shape)
        at = dict(zip(found.axes, map(int, index), strict=True))
        name = circuits.activation_name(what, at.pop("layer"))
        logits = [circuits.run(DOUBLE, CORRUPTED, edits={name: circuits.patch(
            base[name] + sign * share * (source[name] - base[name]), **at)}).logits
            for sign in (1, -1)]
        slope = (METRIC(logits[0]) - METRIC(logits[1])) / (2 * share)
        np.testing.assert_allclose(found.per_prompt[index] - found.base, slope, rtol=1e-5,
                                   atol=1e-8)


def test_an_estimate_has_the_form_of_the_exact_sweep():
    for what in ("resid_post", "v", "post"):
        found = circuits.attribution_patching(MODEL, what, base=CORRUPTED, source=CLEAN[:1],
                                              metric=METRIC, layers=[1])
        exact = circuits.patching(MODEL, what, base=CORRUPTED, source=CLEAN[:1], metric=METRIC,
                                  layers=[1])
        assert (found.what, found.axes) == (exact.what, exact.axes)
        assert np.isnan(found.values[[0, 2]]).all() and np.isfinite(found.values[1]).all()
        for mine, other in ((found.base, exact.base), (found.source, exact.source)):
            close(mine, other)
        assert np.array_equal(found.tokens, exact.tokens) and found.bos == exact.bos


@pytest.mark.parametrize("what", ["z", "resid_pre", "post"])
def test_with_steps_the_cells_of_a_layer_add_up_to_the_patch_of_the_whole_layer(what):
    """Completeness, proposition 1 of Sundararajan et al. 2017; one step misses it."""
    source = circuits.run(DOUBLE, CLEAN, what).activations
    name = circuits.activation_name(what, 0)
    whole = METRIC(circuits.run(DOUBLE, CORRUPTED, edits={name: source[name]}).logits)
    misses = []
    for steps in (1, 4, 16):
        found = estimate(what=what, steps=steps, layers=[0])
        change = (found.per_prompt[0] - found.base).reshape(-1, 3).sum(axis=0)
        misses.append(np.abs(change - (whole - found.base)).max())
    assert misses[0] > 20 * misses[2] and misses[2] < 0.02 * np.abs(whole - found.base).max()


def test_the_estimate_finds_the_heads_that_were_planted():
    model = planted_model()
    rng = np.random.default_rng(0)
    first = np.stack([rng.permutation(20)[:8] for _ in range(6)])
    clean = np.concatenate([first, first[:, :5]], axis=1)
    corrupted = clean.copy()
    corrupted[:, 5] = [next(t for t in rng.permutation(20) if t not in row) for row in first]
    metric = circuits.logit_difference(model, clean[:, 5], corrupted[:, 5])
    options = {"base": corrupted, "source": clean, "metric": metric}
    found = circuits.attribution_patching(model, "z", **options)
    exact = circuits.patching(model, "z", **options)
    beside = circuits.compare(found, exact)
    names = [f"L{layer}H{head}" for layer, head in (INDUCTION, PREVIOUS)]
    assert found.top(1)[0][0] == exact.top(1)[0][0] == names[0]
    assert beside.rank_correlation > 0.8
    assert len(beside.cells) == 8


def test_edits_hold_in_the_estimate():
    edits = {"blocks.1.attn.hook_z": circuits.zero(head=2)}
    found = estimate(edits=edits)
    close(found.base, METRIC(circuits.run(DOUBLE, CORRUPTED, edits=edits).logits))
    exact = circuits.patching(DOUBLE, "z", **DENOISING, edits=edits)
    close(found.source, exact.source)
    assert circuits.compare(found, exact).rank_correlation > 0.5
    close(found.values[0, 0], estimate(edits=edits, layers=[0]).values[0, 0])
    assert not np.allclose(found.values, estimate().values)


def test_an_estimate_beside_the_exact_sweep_is_one_table():
    exact = circuits.patching(MODEL, "z", **DENOISING)
    found = circuits.compare(estimate(MODEL), exact)
    close(found.exact, exact.effect.ravel())
    close(found.miss, estimate(MODEL).effect.ravel() - exact.effect.ravel())
    cell, miss = found.worst
    assert abs(miss) == np.abs(found.miss).max()
    assert found.miss[found.cells.index(cell)] == miss
    lines = str(found).splitlines()
    assert len(lines) == 11 and f"({exact.kind}, metric" in lines[0] and max(map(len, lines)) < 100
    assert lines[3].split()[0] == exact.top(1)[0][0]
    assert len(found.table(3).splitlines()) == 6


def test_the_rank_correlation_is_spearmans():
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([5.0, 60, 700])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    # Ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3: the covariance is 4.5, the variances 4.5 and 5.
    ties = rank_correlation(np.array([1.0, 2, 2, 9]), np.array([1.0, 2, 3, 4]))
    assert ties == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: estimate(steps=0), "steps is 0"),
        (lambda: estimate(what="result"), "cannot patch 'result'"),
        (lambda: circuits.attribution_patching(
            MODEL, base=CLEAN, source=CLEAN, metric=lambda x: x[:, -1, 0]), "no gradient"),
        (lambda: circuits.attribution_patching(
            MODEL, base=CLEAN, source=CLEAN[:, 1:], metric=METRIC), "source prompts 11"),
        (lambda: circuits.compare(exact(), estimate()), "give attribution_patching's first"),
        (lambda: circuits.compare(exact(), exact()), "give attribution_patching's first"),
        (lambda: circuits.compare(estimate(), exact(what="q")), "what is z in the estimate, q"),
        (lambda: circuits.compare(estimate(), exact(by_position=True)), "axes is"),
        (lambda: circuits.compare(estimate(layers=[0]), exact(layers=[1])), "no cell in common"),
        (lambda: circuits.compare(estimate(), circuits.patching(MODEL, **NOISING)),
         "prompts differ"),
        (lambda: circuits.compare(estimate(), circuits.ablation(
            MODEL, base=CORRUPTED, metric=METRIC)), "an ablation has no source"),
        (lambda: circuits.compare(estimate(), exact(
            metric=circuits.log_probability(MODEL, 3))), "the metric of base is .* same metric"),
        (lambda: circuits.compare(estimate(), exact(source=CLEAN[::-1])), "the metric of source"),
    ],
)
def test_bad_input_is_one_clear_error(work, message):
    with pytest.raises(Error, match=message):
        work()

"""A sweep gives what a whole forward pass for every cell gives, and computes less."""
import re

import numpy as np
import pytest
from planted import planted_model
from prompt_pair import ANSWERS, CLEAN, CORRUPTED, DENOISING, METRIC, MODEL, NOISING, close

from gpt2_np import Error, circuits, gpt2_np
from gpt2_np.circuits import resumed_runs, sweeps
from gpt2_np.circuits.edits import MODES

PLANTED = planted_model()
TASK = circuits.repeated_tokens(PLANTED, 9, 6)
LOSS = circuits.repeat_loss(TASK.clean.tokens, 8)


def one_by_one(sweep, source, base=CLEAN, metric=METRIC, last_only=True):
    """The definition of a sweep: a whole forward pass for every cell."""
    values = np.zeros(sweep.per_prompt.shape)
    for index in np.ndindex(sweep.values.shape):
        at = dict(zip(sweep.axes, index, strict=True))
        name = circuits.activation_name(sweep.what, at["layer"])
        head, position = at.get("head"), at.get("position")
        edit = (circuits.zero(head, position) if source is None
                else circuits.patch(source[name], head, position))
        logits = circuits.run(MODEL, base, edits={name: edit}).logits
        values[index] = metric(logits[:, -1:] if last_only else logits)
    return values


@pytest.mark.parametrize(
    "what", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z",
             "pattern", "z by position", "q by position", "k by position", "v by position",
             "pattern by position"],
)  # fmt: skip
def test_a_patching_sweep_equals_a_forward_pass_for_every_cell(monkeypatch, what):
    name, _, by_position = what.partition(" ")

    def swept(positions_at_once):
        monkeypatch.setattr(resumed_runs, "POSITIONS_AT_ONCE", positions_at_once)
        return circuits.patching(MODEL, name, **DENOISING, by_position=bool(by_position) or None)

    few, sweep = swept(60), swept(10**6)
    expected = one_by_one(sweep, circuits.run(MODEL, CLEAN, "*"), CORRUPTED)
    close(sweep.per_prompt, expected)
    close(few.per_prompt, expected)
    assert np.ptp(expected) > 0.01
    close(sweep.base, METRIC(circuits.run(MODEL, CORRUPTED).logits))
    close(sweep.source, METRIC(circuits.run(MODEL, CLEAN).logits))


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("what", ["resid_pre", "attn_out", "mlp_out", "z"])
def test_a_sweep_with_any_metric_equals_a_forward_pass_for_every_cell(what, by_position):
    """A metric that needs all logits, of one source prompt for all, over positions or not."""
    metric = circuits.log_probability(MODEL, ANSWERS)
    sweep = circuits.patching(MODEL, what, base=CORRUPTED, source=CLEAN[:1], metric=metric,
                              by_position=by_position)
    source = circuits.run(MODEL, CLEAN[:1], "*")
    close(sweep.per_prompt, one_by_one(sweep, source, CORRUPTED, metric))


def test_a_sweep_measures_metrics_of_all_positions():
    metric = circuits.repeat_loss(CLEAN, 9)
    sweep = circuits.patching(MODEL, base=CORRUPTED, source=CLEAN, metric=metric, last_only=False)
    source = circuits.run(MODEL, CLEAN, "*")
    close(sweep.per_prompt, one_by_one(sweep, source, CORRUPTED, metric, last_only=False))


def test_patching_everything_of_the_source_gives_the_source():
    sweep = circuits.patching(MODEL, "resid_post", **DENOISING)
    close(sweep.normalized[2, -1], 1.0, 1e-4)
    close(sweep.normalized[2, :-1], np.zeros(11), 1e-4)


def test_the_share_that_ablation_removes_is_1_where_nothing_is_left_of_the_metric():
    sweep = circuits.ablation(MODEL, base=CLEAN, metric=METRIC)
    close(sweep.normalized, 1 - sweep.values / sweep.base.mean())
    nothing_left = circuits.Sweep("z", ("layer",), np.zeros((1, 3)), sweep.base, None, CLEAN, False)
    close(nothing_left.normalized, [1.0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["z", "mlp_out"])
def test_an_ablation_sweep_equals_a_forward_pass_for_every_cell(what, mode):
    given = NOISING if mode != "zero" else {**NOISING, "source": None}
    sweep = circuits.ablation(MODEL, what, **given, mode=mode, by_position=False)
    source = None
    if mode != "zero":
        source = circuits.run(MODEL, CORRUPTED, "*").activations
        if mode == "mean":
            source = {name: array.mean(axis=0, keepdims=True) for name, array in source.items()}
    close(sweep.per_prompt, one_by_one(sweep, source))


def test_a_mean_over_other_texts_is_ablated_as_it_is_patched():
    for what in ("z", "mlp_out", "post"):
        name = circuits.activation_name(what, 1)
        means = {name: circuits.mean_activation(MODEL, CORRUPTED[:, 3:].tolist(), name)}
        sweep = circuits.ablation(MODEL, name, base=CLEAN, metric=METRIC, mode="mean",
                                  source=means, by_position=False)
        part = {"z": {"head": 2}, "post": {"neuron": 2}}.get(what, {})
        edited = circuits.run(MODEL, CLEAN, edits={name: circuits.patch(means[name], **part)})
        close(sweep.per_prompt[(1, 2)[: len(sweep.axes)]], METRIC(edited.logits))
        node = {"z": "L1H2", "post": "L1N2"}.get(what, "MLP1")
        edits = circuits.ablated(MODEL, node, "mean", source=means)
        close(circuits.run(MODEL, CLEAN, edits=edits).logits, edited.logits)
        for mode, wrong in (("resample", means), ("mean", {}), ("mean", {name: np.zeros(3)})):
            with pytest.raises(Error, match=r"source is a mapping, and .*mean_activation"):
                circuits.ablation(MODEL, name, base=CLEAN, metric=METRIC, mode=mode, source=wrong)


def test_a_sweep_of_some_layers_leaves_the_others_out():
    sweep = circuits.patching(MODEL, **DENOISING, layers=[1])
    assert np.isnan(sweep.values[[0, 2]]).all()
    whole = circuits.patching(MODEL, **DENOISING)
    close(sweep.values[1], whole.values[1])


def test_a_sweep_shows_its_progress_on_stderr_only_when_asked(capsys):
    for progress in (False, True):
        circuits.patching(MODEL, **DENOISING, progress=progress)
        output = capsys.readouterr()
        assert output.out == ""
        assert ("0/12" in output.err) == progress


def test_a_sweep_computes_neither_layers_below_nor_positions_before_the_patch(monkeypatch):
    computed = []
    original = gpt2_np.mlp

    def count(x, *args, **options):
        computed.append(x.shape[0] * x.shape[1])
        return original(x, *args, **options)

    monkeypatch.setattr(gpt2_np, "mlp", count)
    circuits.patching(MODEL, **DENOISING, layers=[2])
    runs = 2 * 3 * CLEAN.size
    # Four heads of the last layer, and of their stream only the last position.
    assert sum(computed) == runs + 4 * 3
    computed.clear()
    circuits.patching(MODEL, **DENOISING, layers=[1])
    # The first four tokens are the same in every pair: eight positions of each prompt are left.
    assert sum(computed) == runs + 4 * 3 * 8 + 4 * 3


def test_any_function_is_a_metric():
    """One without of_stream is given logits, and measures the same."""
    def difference(logits):
        return METRIC(logits)

    known, plain = (circuits.patching(MODEL, base=CORRUPTED, source=CLEAN, metric=metric)
                    for metric in (METRIC, difference))
    close(plain.per_prompt, known.per_prompt)
    close(plain.source, known.source)


def test_the_top_of_a_sweep_names_its_strongest_cells():
    sweep = circuits.patching(MODEL, "z", **DENOISING, layers=[0, 2])
    top = sweep.top(3)
    assert [abs(effect) for _, effect in top] == sorted(np.abs(
        sweep.effect[[0, 2]]).ravel().tolist(), reverse=True)[:3]
    for name, effect in top:
        assert sweep.effect[circuits.parse_node(MODEL.config, name)] == effect
    assert len(sweep.top(100)) == 8  # cells of the layer that was left out are none
    by_position = circuits.patching(MODEL, "resid_pre", **DENOISING)
    name, effect = by_position.top(1)[0]
    layer, position = (int(word.split()[1]) for word in name.split(", "))
    assert by_position.effect[layer, position] == effect
    heads = circuits.patching(MODEL, "z", **DENOISING, by_position=True)
    assert re.fullmatch(r"L\dH\d, position \d+", heads.top(1)[0][0])


@pytest.mark.parametrize("tool", [
    lambda **o: circuits.patching(MODEL, "z", **o),
    lambda **o: circuits.attribution_patching(MODEL, "z", **o),
    lambda **o: circuits.path_patching(MODEL, "heads", "L2H1", **o),
    lambda **o: circuits.ablation(MODEL, "mlp_out", mode="mean", by_position=False, **o),
    lambda **o: circuits.ablation(MODEL, "z", **{**o, "source": None}),
])  # fmt: skip
def test_pairs_of_several_lengths_are_swept_as_each_alone_in_the_order_given(tool):
    lengths = [12, 9, 12]
    base, source = ([row[:n].tolist() for row, n in zip(rows, lengths, strict=True)]
                    for rows in (CLEAN, CORRUPTED))
    sweep = tool(base=base, source=source, metric=METRIC)
    for rows in ([0, 2], [1]):
        alone = tool(base=[base[i] for i in rows], source=[source[i] for i in rows],
                     metric=METRIC.of_rows(np.array(rows), 3))
        close(sweep.per_prompt[..., rows], alone.per_prompt)
        close(sweep.base[rows], alone.base)
        assert (sweep.source is None) == (alone.source is None)
    assert [len(row) for row in sweep.tokens] == lengths and sweep.kind == alone.kind


def test_prompts_of_several_lengths_have_no_common_positions_and_pairs_must_match():
    base = [[1, 2, 3], [4, 5]]
    metric = circuits.logit_difference(MODEL, 1, 2)
    with pytest.raises(Error, match="share no positions to sweep over: give by_position=False"):
        circuits.patching(MODEL, "resid_pre", base=base, source=base, metric=metric)
    with pytest.raises(Error, match="prompt 0 has 3 tokens and its source 2"):
        circuits.patching(MODEL, "z", base=base, source=base[::-1], metric=metric)
    with pytest.raises(Error, match="3 tokens and the source prompts 2"):
        circuits.ablation(MODEL, "z", base=base[:1], source=base[1:], mode="mean", metric=metric)


def test_a_sweep_says_if_it_denoises_or_noises():
    """Only the clean prompts of the planted model let it do the task."""
    for metric in (TASK.metric(PLANTED), LOSS):
        there, back = (circuits.patching(PLANTED, **{**pair, "metric": metric})
                       for pair in (TASK.noising(PLANTED), TASK.denoising(PLANTED)))
        assert (there.kind, back.kind) == ("noising", "denoising")
        assert "(noising)" in repr(there) and "(denoising)" in repr(back)
        same = circuits.patching(PLANTED, base=TASK.clean, source=TASK.clean, metric=metric)
        assert same.kind == "no difference"
    assert circuits.ablation(MODEL, base=CLEAN, metric=METRIC).kind == "ablation"
    there = circuits.patching(MODEL, **NOISING)
    close(circuits.ablation(MODEL, mode="resample", **NOISING).per_prompt, there.per_prompt)


@pytest.mark.parametrize("search", [
    lambda **pair: circuits.find(PLANTED, **pair),
    pytest.param(lambda **pair: circuits.find_edges(PLANTED, 0.5, checks=1, subsets=1, **pair),
                 marks=pytest.mark.slow)])
def test_a_search_warns_of_prompts_that_are_the_wrong_way_round_and_of_no_others(search):
    for metric in (TASK.metric(PLANTED), LOSS):
        found = search(**{**TASK.noising(PLANTED), "metric": metric})  # a warning would raise
        assert found.kind == "noising" and "(noising" in repr(found)
        with pytest.warns(circuits.PromptWarning, match="give the prompts that do the task as bas"):
            found = search(**{**TASK.denoising(PLANTED), "metric": metric})
        assert found.kind == "denoising"


def test_edges_know_a_loss():
    pair = {**TASK.noising(PLANTED), "metric": LOSS}
    assert circuits.edge_attribution(PLANTED, **pair).kind == "noising"


def test_the_top_of_a_sweep_of_many_neurons_reads_the_effect_once(monkeypatch):
    sweep = circuits.patching(MODEL, "post", **DENOISING)
    reads, original = [], circuits.Sweep.effect
    monkeypatch.setattr(circuits.Sweep, "effect",
                        property(lambda self: reads.append(1) or original.fget(self)))
    assert len(sweep.top(300)) == 240 and len(reads) == 1
    assert len(repr(sweep).splitlines()) == 9 and len(reads) == 2


def test_a_sweep_is_read_by_the_names_of_its_cells():
    heads = circuits.patching(MODEL, "z", **DENOISING)
    assert heads["L1H3"] == heads["1.3"] == heads[1, 3] == dict(heads.top(12))["L1H3"]
    by_position = circuits.patching(MODEL, "z", **DENOISING, by_position=True)
    close(by_position["L2H0"], by_position.effect[2, 0])
    neurons = circuits.patching(MODEL, "post", **DENOISING, layers=-1)
    close(neurons["L2N17"], neurons.effect[2, 17])
    sent = circuits.path_patching(MODEL, ["L0H1", "MLP1"], **NOISING)
    close([sent["0.1"], sent["MLP1"]], sent.effect)
    mlps = circuits.patching(MODEL, "mlp_out", **DENOISING)
    close(mlps["MLP1"], mlps.effect[1])
    stream = circuits.patching(MODEL, "resid_pre", **DENOISING)
    for sweep, node, message in ((heads, "L3H0", "layer 3 does not exist: there are 3"),
                                 (heads, "MLP1", "there is no 'MLP1' in a sweep of z over layer"),
                                 (stream, "MLP1", "there is no 'MLP1' in a sweep of resid_pre"),
                                 (sent, "L0H2", "there is no 'L0H2' in a sweep of path over sen"),
                                 (heads, "L1", "'L1' is not a head or MLP")):
        with pytest.raises(Error, match=message):
            sweep[node]


@pytest.mark.parametrize("layers", [1, -2, [1], [-2], slice(1, 2)])
def test_one_layer_needs_no_list_and_may_count_from_the_end(layers):
    sweep = circuits.patching(MODEL, **DENOISING, layers=layers)
    assert np.isfinite(sweep.values[:, 0]).tolist() == [False, True, False]
    with pytest.raises(Error, match="layer 3 does not exist"):
        circuits.patching(MODEL, **DENOISING, layers=3)


def test_prompts_that_share_no_positions_are_refused_before_any_pass(monkeypatch):
    monkeypatch.setattr(sweeps, "BaseRun", None)
    with pytest.raises(Error, match="share no positions"):
        circuits.patching(MODEL, "resid_pre", base=[[1, 2, 3], [4, 5]], source=[[1, 2, 4], [4, 6]],
                          metric=METRIC)


def test_a_metric_of_ones_own_is_guarded():
    ragged = {"base": [[1, 2, 3], [4, 5]], "source": [[1, 2, 4], [4, 6]]}
    with pytest.warns(circuits.PromptWarning, match="prompts of each length by themselves") as seen:
        circuits.patching(MODEL, **ragged, metric=lambda logits: logits[:, -1, 3])
    assert seen[0].filename == __file__
    for tool in (circuits.patching, circuits.find, circuits.path_patching):
        with pytest.raises(Error, match=r"shape \(3, 1, 61\): .*unless metric.last_only is set to"):
            tool(MODEL, **{**NOISING, "metric": lambda logits: logits[:, 3, 5]})
    for tool in (circuits.patching, circuits.find, circuits.find_edges):
        with pytest.raises(Error, match=r"metric is a Task, expected a .* task.metric\(model\)"):
            tool(MODEL, **{**NOISING, "metric": TASK})

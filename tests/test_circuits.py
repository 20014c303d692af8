"""The circuits toolkit by its definitions: parts sum, sweeps equal single runs, products match."""
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import TINY, map_params, random_model, random_params

import bpe
import circuits
import gpt2_np
from gpt2_np import Config, Error, Model

MODEL = random_model()
RNG = np.random.default_rng(3)
CLEAN = RNG.integers(0, TINY.n_vocab, (3, 12))
CORRUPTED = CLEAN.copy()
CORRUPTED[:, [4, 7]] = (CLEAN[:, [4, 7]] + 5) % TINY.n_vocab
ANSWERS, WRONG = [3, 4, 5], [6, 7, 8]
METRIC = circuits.logit_difference(MODEL, ANSWERS, WRONG)
TEXT = "The cat sat on the mat and the dog sat on the cat. " * 3


@pytest.fixture(scope="module")
def speaking():
    """A random model that has a vocabulary, with <|endoftext|>."""
    tokenizer = bpe.train(TEXT, 275)
    config = Config(n_vocab=tokenizer.n_vocab, n_ctx=40, n_embd=24, n_head=3, n_layer=2)
    return random_model(config, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def padded(speaking):
    """The same model with rows after its embedding that stand for no token, and large."""
    n = speaking.config.n_vocab
    wte = np.concatenate([speaking.params["wte"], 9 * speaking.params["wte"][:13]])
    config = Config(n + 13, *list(vars(speaking.config).values())[1:])
    return Model(config, {**speaking.params, "wte": wte}, speaking.tokenizer)


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())


# --- activations -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("hook_embed", ["hook_embed"]),
        (["blocks.*.attn.hook_pattern"], [f"blocks.{n}.attn.hook_pattern" for n in range(3)]),
        (["blocks.1.hook_resid_*", "ln_final.hook_scale"],
         ["blocks.1.hook_resid_mid", "blocks.1.hook_resid_post", "blocks.1.hook_resid_pre",
          "ln_final.hook_scale"]),
        (lambda name: name.endswith("hook_result"),
         [f"blocks.{n}.attn.hook_result" for n in range(3)]),
        ((), []),
    ],
)  # fmt: skip
def test_run_keeps_what_is_asked_for_and_no_more(names, expected):
    seen = circuits.run(MODEL, CLEAN, names)
    assert sorted(seen.activations) == expected
    close(seen.logits, gpt2_np.forward(MODEL.params, TINY, CLEAN))


def test_kept_activations_own_their_memory_so_that_nothing_else_stays_alive():
    seen = circuits.run(MODEL, CLEAN, "*")
    assert all(array.base is None for array in seen.activations.values())
    assert list(seen.activations) == circuits.activation_names(TINY)


def test_a_batch_gives_what_each_prompt_gives_alone():
    together = circuits.run(MODEL, CLEAN, "*")
    for row, tokens in enumerate(CLEAN):
        alone = circuits.run(MODEL, tokens, "*")
        for name, array in alone.activations.items():
            np.testing.assert_allclose(together[name][row], array[0], rtol=1e-4, atol=1e-5)


def test_short_names_are_those_of_the_field():
    assert circuits.activation_name("q", 2) == "blocks.2.attn.hook_q"
    assert circuits.activation_name("resid_mid", 0) == "blocks.0.hook_resid_mid"
    assert circuits.activation_name("post", 1) == "blocks.1.mlp.hook_post"
    with pytest.raises(Error, match="did you mean resid_mid"):
        circuits.activation_name("resid_midd", 0)


def test_an_activation_may_be_named_short_long_or_by_a_pattern_everywhere():
    everywhere = {f"blocks.{n}.hook_resid_mid" for n in range(3)}
    for name in ("resid_mid", "hook_resid_mid", "blocks.*.hook_resid_mid", ["resid_mid"]):
        assert circuits.run(MODEL, CLEAN, name).activations.keys() == everywhere
    assert circuits.run(MODEL, CLEAN, "embed").activations.keys() == {"hook_embed"}
    one = circuits.run(MODEL, CLEAN, "blocks.2.attn.hook_z")
    assert one["z"] is one["blocks.2.attn.hook_z"]
    z = circuits.run(MODEL, CLEAN, "z")
    with pytest.raises(Error, match=r"'z' is in 3 layers: name one, as blocks.0.attn.hook_z"):
        z["z"]
    by_edit = circuits.run(MODEL, CLEAN, edits={"z": circuits.zero()})
    close(by_edit.logits, circuits.run(
        MODEL, CLEAN, edits={"blocks.*.attn.hook_z": circuits.zero()}).logits)
    short, long, one = (circuits.patching(MODEL, CLEAN, CORRUPTED, METRIC, name).per_prompt
                        for name in ("v", "blocks.*.attn.hook_v", "blocks.1.attn.hook_v"))
    np.testing.assert_array_equal(short, long)
    np.testing.assert_array_equal(one[1], short[1])
    assert np.isnan(one[[0, 2]]).all()
    close(circuits.decompose(MODEL, CLEAN, "blocks.1.*mid").values.sum(axis=0),
          circuits.run(MODEL, CLEAN, "blocks.1.hook_resid_mid")["resid_mid"])
    with pytest.raises(Error, match="'resid_mid', which is 3 activations: name one"):
        circuits.decompose(MODEL, CLEAN, "resid_mid")


RESULTS = [
    lambda: circuits.prompts(MODEL, CLEAN), lambda: circuits.run(MODEL, CLEAN, "z"),
    lambda: circuits.decompose(MODEL, CLEAN), lambda: circuits.attribution(MODEL, CLEAN, 1),
    lambda: circuits.lens(MODEL, CLEAN), lambda: circuits.heads(MODEL, CLEAN),
    lambda: circuits.ablation(MODEL, CLEAN, METRIC), lambda: circuits.ov(MODEL, 0, 0),
    lambda: circuits.find(MODEL, CLEAN, CORRUPTED, METRIC, 0.5),
    lambda: circuits.measure(MODEL, list(CLEAN), resamples=2),
    lambda: circuits.repeated_tokens(MODEL, 5),
]  # fmt: skip


@pytest.mark.parametrize("make", RESULTS)
def test_results_that_hold_arrays_can_be_compared_and_kept_in_sets(make):
    first, second = make(), make()
    assert first == first
    assert first != second  # who means the arrays compares them
    assert len({first, second}) == 2


def test_every_result_says_whether_the_text_began_with_end_of_text(speaking):
    assert circuits.run(speaking, "The cat").bos
    assert circuits.run(speaking, "The cat").tokens[0, 0] == speaking.tokenizer.end_of_text
    assert not circuits.run(speaking, "The cat", bos=False).bos
    ids = speaking.tokenizer.encode("The cat")
    assert not circuits.run(speaking, ids).bos
    assert circuits.run(speaking, ids, bos=True).tokens.tolist() == \
        circuits.run(speaking, "The cat").tokens.tolist()
    assert circuits.lens(speaking, "The cat").bos
    assert circuits.attribution(speaking, "The cat", " the").bos
    assert not circuits.heads(speaking, "The cat", bos=False).bos
    assert circuits.decompose(speaking, "The cat").bos


def test_edits_change_what_comes_after_and_what_is_kept():
    name = "blocks.0.attn.hook_z"
    edited = circuits.run(MODEL, CLEAN, [name], edits={name: circuits.zero(head=2, position=3)})
    assert (edited[name][:, 3, 2] == 0).all()
    plain = circuits.run(MODEL, CLEAN, [name])
    plain[name][:, 3, 2] = 0
    np.testing.assert_array_equal(edited[name], plain[name])
    assert (edited.logits[:, 3:] != plain.logits[:, 3:]).any()
    np.testing.assert_array_equal(edited.logits[:, :3], plain.logits[:, :3])


def test_edits_may_return_an_array_change_theirs_or_be_one():
    name = "blocks.1.hook_resid_pre"
    source = circuits.run(MODEL, CORRUPTED, [name])

    def returns(array, _):
        return array * 0 + source[name]

    def changes(array, _):
        array[:] = source[name]

    for edit in (returns, changes, source[name], circuits.patch(source[name])):
        close(circuits.run(MODEL, CLEAN, edits={name: edit}).logits, source.logits)


# --- the stream as a sum ---------------------------------------------------------------

STREAMS = [f"blocks.{n}.hook_resid_{s}" for n in range(3) for s in ("pre", "mid", "post")]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("at", STREAMS)
def test_parts_sum_to_the_stream_at_every_point(at, apart):
    stream = circuits.run(MODEL, CLEAN, [at])[at]
    for neurons in ((), range(3)):
        parts = circuits.decompose(MODEL, CLEAN, at, neurons=neurons, constants_apart=apart)
        close(parts.values.sum(axis=0), stream)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3))
def test_parts_sum_to_the_stream_for_any_shape(seed, n_head, n_layer):
    config = Config(n_vocab=17, n_ctx=9, n_embd=4 * n_head, n_head=n_head, n_layer=n_layer)
    model = random_model(config, seed)
    tokens = np.random.default_rng(seed).integers(0, 17, (2, 9))
    parts = circuits.decompose(model, tokens)
    close(parts.values.sum(axis=0),
          circuits.run(model, tokens, "*")[f"blocks.{n_layer - 1}.hook_resid_post"])


def test_parts_are_what_their_labels_say():
    seen = circuits.run(MODEL, CLEAN, "*")
    parts = circuits.decompose(MODEL, CLEAN, neurons=[1])
    close(parts["embed"], seen["hook_embed"])
    close(parts["L2H1"], seen["blocks.2.attn.hook_result"][:, :, 1])
    close(parts["MLP0"], seen["blocks.0.hook_mlp_out"])
    w = MODEL.params["blocks"][1]["mlp"]["c_proj"]["w"]
    close(parts["L1N7"], seen["blocks.1.mlp.hook_post"][..., 7:8] * w[7])
    one = circuits.decompose(MODEL, CLEAN, position=-2)
    close(one.values[:, :, 0], circuits.decompose(MODEL, CLEAN).values[:, :, -2])


def test_constants_apart_moves_only_what_a_head_always_writes():
    plain, apart = (circuits.decompose(MODEL, CLEAN, constants_apart=a) for a in (False, True))
    moved = plain["L1H0"] - apart["L1H0"]
    close(moved, np.broadcast_to(moved[:1, :1], moved.shape), 1e-5)
    assert np.abs(moved).max() > 0.1
    close(plain["MLP1"], apart["MLP1"])


# --- attribution and the lens ----------------------------------------------------------


def test_attributions_sum_to_the_logit_and_to_the_difference():
    last = circuits.run(MODEL, CLEAN).logits[:, -1]
    rows = np.arange(3)
    for apart in (False, True):
        for neurons in ((), [0, 2]):
            options = {"constants_apart": apart, "neurons": neurons}
            one = circuits.attribution(MODEL, CLEAN, ANSWERS, **options)
            close(one.values.sum(axis=0), last[rows, ANSWERS])
            two = circuits.attribution(MODEL, CLEAN, ANSWERS, WRONG, **options)
            close(two.values.sum(axis=0), last[rows, ANSWERS] - last[rows, WRONG])
            close(two.total, METRIC(last[:, None]))


def test_attribution_to_all_tokens_holds_every_single_one():
    every = circuits.attribution(MODEL, CLEAN, position=5)
    close(every.total, circuits.run(MODEL, CLEAN).logits[:, 5])
    single = circuits.attribution(MODEL, CLEAN, 9, position=5)
    close(every.values[..., 9], single.values)
    assert every.heads(TINY).shape == (3, 4, 3, 61)
    assert every.position == 5


def test_a_heads_attribution_is_what_removing_its_vector_takes_away_at_a_frozen_scale():
    seen = circuits.run(MODEL, CLEAN, "*")
    norm = MODEL.params["ln_f"]
    vector = seen["blocks.1.attn.hook_result"][:, -1, 2]
    stream = seen["blocks.2.hook_resid_post"][:, -1]

    def logit(x):
        x = (x - x.mean(axis=-1, keepdims=True)) / seen["ln_final.hook_scale"][:, -1]
        return (x * norm["g"] + norm["b"]) @ MODEL.params["wte"][9]

    close(circuits.attribution(MODEL, CLEAN, 9)["L1H2"], logit(stream) - logit(stream - vector))


def test_attributions_by_layer_and_accumulated_are_sums_of_the_parts():
    result = circuits.attribution(MODEL, CLEAN, ANSWERS, WRONG, neurons=[1])
    names, layers = result.layers(TINY)
    close(layers.sum(axis=0) + result["ln_final.b"], result.total)
    assert names[:4] == ["embed", "pos_embed", "0_attn_out", "0_mlp_out"]
    attn = sum(result[f"L2H{h}"] for h in range(4)) + result["b_O2"]
    close(layers[names.index("2_attn_out")], attn)
    points, grown = result.accumulated(TINY)
    assert points == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    close(grown[0], result["embed"] + result["pos_embed"])
    close(grown[-1] + result["ln_final.b"], result.total)


def test_the_lens_at_the_end_is_the_model_itself():
    result = circuits.lens(MODEL, CLEAN, keep_logits=True)
    logits = circuits.run(MODEL, CLEAN).logits.astype(float)
    close(result.logits[-1], logits)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    close(result.entropy[-1], -(p * np.log(p)).sum(axis=-1))
    close(result.probability[-1, :, :-1],
          np.take_along_axis(p[:, :-1], CLEAN[:, 1:, None], -1)[..., 0])
    np.testing.assert_array_equal(result.top[-1], np.argsort(-logits, axis=-1)[..., :5])
    order = np.argsort(np.argsort(-logits, axis=-1), axis=-1)
    np.testing.assert_array_equal(
        result.rank[-1, :, :-1], np.take_along_axis(order[:, :-1], CLEAN[:, 1:, None], -1)[..., 0])


def test_the_lens_reads_each_stream_through_the_final_layer_norm():
    result = circuits.lens(MODEL, CLEAN, 9, position=4, keep_logits=True)
    assert result.points == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    name = "blocks.1.hook_resid_mid"
    stream = circuits.run(MODEL, CLEAN, [name])[name][:, 4]
    norm = MODEL.params["ln_f"]
    x = (stream - stream.mean(-1, keepdims=True)) / np.sqrt(stream.var(-1, keepdims=True) + 1e-5)
    logits = (x * norm["g"] + norm["b"]) @ MODEL.params["wte"].T
    close(result.logits[3][:, 0], logits)
    assert (result.targets == 9).all()


def test_the_frozen_lens_grows_as_accumulated_attribution_does():
    result = circuits.lens(MODEL, CLEAN, frozen=True, keep_logits=True)
    attribution = circuits.attribution(MODEL, CLEAN, 9)
    _, grown = attribution.accumulated(TINY)
    close(result.logits[:, :, -1, 9], grown + attribution["ln_final.b"], 2e-5)


# --- attention -------------------------------------------------------------------------


def test_head_scores_are_the_attention_on_the_keys_they_name():
    tokens = np.array([[1, 2, 3, 1, 2, 5]])
    name = "blocks.1.attn.hook_pattern"
    p = circuits.run(MODEL, tokens, name)[name][0]
    scores = circuits.heads(MODEL, tokens)
    close(scores.previous_token[1], np.mean([p[:, q, q - 1] for q in range(1, 6)], axis=0))
    close(scores.duplicate_token[1], (p[:, 3, 0] + p[:, 4, 1]) / 2)
    close(scores.induction[1], (p[:, 3, 1] + p[:, 4, 2]) / 2)
    close(scores.beginning[1], p[:, 1:, 0].mean(axis=1))
    back = np.arange(6)[:, None] - np.arange(6)
    close(scores.distance[1], (p * back).sum(axis=2).mean(axis=1))
    safe = np.where(p > 0, p, 1)
    close(scores.entropy[1], -(p * np.log(safe)).sum(axis=2).mean(axis=1))


def test_what_no_position_could_show_is_nan_not_zero():
    scores = circuits.heads(MODEL, [1, 2, 3])
    assert np.isnan(scores.induction).all()
    assert not np.isnan(scores.previous_token).any()


# --- interventions ---------------------------------------------------------------------


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


@pytest.mark.parametrize("rows", [60, 10**6])
@pytest.mark.parametrize(
    "what", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z",
             "pattern", "z by position", "q by position", "k by position", "v by position",
             "pattern by position"],
)  # fmt: skip
def test_a_patching_sweep_equals_a_forward_pass_for_every_cell(monkeypatch, what, rows):
    monkeypatch.setattr(circuits, "ROWS_AT_ONCE", rows)
    name, _, by_position = what.partition(" ")
    sweep = circuits.patching(MODEL, CORRUPTED, CLEAN, METRIC, name,
                              by_position=bool(by_position) or None)
    expected = one_by_one(sweep, circuits.run(MODEL, CLEAN, "*"), CORRUPTED)
    close(sweep.per_prompt, expected)
    assert np.ptp(expected) > 0.01
    close(sweep.base, METRIC(circuits.run(MODEL, CORRUPTED).logits))
    close(sweep.source, METRIC(circuits.run(MODEL, CLEAN).logits))


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("what", ["resid_pre", "attn_out", "mlp_out", "z"])
def test_a_sweep_with_any_metric_equals_a_forward_pass_for_every_cell(what, by_position):
    """A metric that needs all logits, of one source prompt for all, over positions or not."""
    metric = circuits.log_probability(MODEL, ANSWERS)
    sweep = circuits.patching(MODEL, CORRUPTED, CLEAN[:1], metric, what, by_position=by_position)
    source = circuits.run(MODEL, CLEAN[:1], "*")
    close(sweep.per_prompt, one_by_one(sweep, source, CORRUPTED, metric))


def test_a_sweep_measures_metrics_of_all_positions():
    metric = circuits.repeat_loss(CLEAN, 9)
    sweep = circuits.patching(MODEL, CORRUPTED, CLEAN, metric, last_only=False)
    source = circuits.run(MODEL, CLEAN, "*")
    close(sweep.per_prompt, one_by_one(sweep, source, CORRUPTED, metric, last_only=False))


def test_patching_everything_of_the_source_gives_the_source():
    sweep = circuits.patching(MODEL, CORRUPTED, CLEAN, METRIC, "resid_post")
    close(sweep.normalized[2, -1], 1.0, 1e-4)
    close(sweep.normalized[2, :-1], np.zeros(11), 1e-4)


def test_the_share_that_ablation_removes_is_1_where_nothing_is_left_of_the_metric():
    sweep = circuits.ablation(MODEL, CLEAN, METRIC)
    close(sweep.normalized, 1 - sweep.values / sweep.base.mean())
    nothing_left = circuits.Sweep("z", ("layer",), np.zeros((1, 3)), sweep.base, None, CLEAN, False)
    close(nothing_left.normalized, [1.0])


@pytest.mark.parametrize("mode", circuits.MODES)
@pytest.mark.parametrize("what", ["z", "mlp_out"])
def test_an_ablation_sweep_equals_a_forward_pass_for_every_cell(what, mode):
    sweep = circuits.ablation(MODEL, CLEAN, METRIC, what, mode, reference=CORRUPTED,
                              by_position=False)
    source = None
    if mode != "zero":
        source = circuits.run(MODEL, CORRUPTED, "*").activations
        if mode == "mean":
            source = {name: array.mean(axis=0, keepdims=True) for name, array in source.items()}
    close(sweep.per_prompt, one_by_one(sweep, source))


def test_a_sweep_of_some_layers_leaves_the_others_out():
    sweep = circuits.patching(MODEL, CORRUPTED, CLEAN, METRIC, layers=[1])
    assert np.isnan(sweep.values[[0, 2]]).all()
    whole = circuits.patching(MODEL, CORRUPTED, CLEAN, METRIC)
    close(sweep.values[1], whole.values[1])


def test_a_sweep_shows_its_progress_on_stderr_only_when_asked(capsys):
    for progress in (False, True):
        circuits.patching(MODEL, CORRUPTED, CLEAN, METRIC, progress=progress)
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
    circuits.patching(MODEL, CORRUPTED, CLEAN, METRIC, layers=[2])
    runs = 2 * 3 * CLEAN.size
    # Four heads of the last layer, and of their stream only the last position.
    assert sum(computed) == runs + 4 * 3
    computed.clear()
    circuits.patching(MODEL, CORRUPTED, CLEAN, METRIC, layers=[1])
    # The first four tokens are the same in every pair: eight positions of each prompt are left.
    assert sum(computed) == runs + 4 * 3 * 8 + 4 * 3


def frozen_path(sender, receivers, through_mlps, position=slice(None)):
    """Path patching by its definition, one whole pass after another."""
    layer, head = sender
    clean, other = (circuits.run(MODEL, tokens, "*") for tokens in (CLEAN, CORRUPTED))
    edits = {}
    for n in range(3):
        name = f"blocks.{n}.attn.hook_z"
        edits[name] = [circuits.patch(clean[name])]
        if not through_mlps:
            name = f"blocks.{n}.hook_mlp_out"
            edits[name] = clean[name]
    name = f"blocks.{layer}.attn.hook_z"

    def send(array, _):
        array[:] = clean[name]
        array[:, position, head] = other[name][:, position, head]

    edits = {key: edit[0] if isinstance(edit, list) else edit for key, edit in edits.items()}
    edits[name] = send
    first = circuits.run(MODEL, CLEAN, "*", edits=edits)
    if receivers == "logits":
        return METRIC(first.logits)
    edits = {circuits.activation_name(kind, n): circuits.patch(
        first[circuits.activation_name(kind, n)], h) for n, h, kind in receivers if n > layer}
    return METRIC(circuits.run(MODEL, CLEAN, edits=edits).logits)


@pytest.mark.parametrize("through_mlps", [True, False])
@pytest.mark.parametrize("receivers", ["logits", [(2, 1, "q"), (1, 3, "k"), (2, 0, "v")]])
def test_path_patching_equals_its_definition(receivers, through_mlps):
    sweep = circuits.path_patching(MODEL, CLEAN, CORRUPTED, METRIC, receivers,
                                   through_mlps=through_mlps)
    for index in np.ndindex(3, 4):
        close(sweep.per_prompt[index], frozen_path(index, receivers, through_mlps))
    assert np.ptp(sweep.values) > 0.01


def test_path_patching_of_one_position_equals_its_definition():
    for position, receivers in ((7, [(2, 1, "k")]), (-1, "logits")):
        sweep = circuits.path_patching(MODEL, CLEAN, CORRUPTED, METRIC, receivers,
                                       position=position)
        for index in np.ndindex(3, 4):
            close(sweep.per_prompt[index], frozen_path(index, receivers, True, position))
    with pytest.raises(Error, match="position 12 does not exist"):
        circuits.path_patching(MODEL, CLEAN, CORRUPTED, METRIC, position=12)


def test_a_later_sender_reaches_no_receiver():
    sweep = circuits.path_patching(MODEL, CLEAN, CORRUPTED, METRIC, [(1, 0, "q")])
    close(sweep.effect[1:], np.zeros((2, 4)))


def test_knocked_out_attention_is_gone_and_the_rest_shares_its_weight():
    scores, pattern = "blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern"
    cut = circuits.run(MODEL, CLEAN, [pattern], edits={scores: circuits.knock_out(-1, [2, 3], 1)})
    plain = circuits.run(MODEL, CLEAN, [pattern])[pattern]
    expected = plain.copy()
    expected[:, 1, -1, [2, 3]] = 0
    expected[:, 1, -1] /= expected[:, 1, -1].sum(axis=-1, keepdims=True)
    close(cut[pattern], expected)
    with pytest.raises(Error, match="without any key"):
        circuits.run(MODEL, CLEAN, edits={scores: circuits.knock_out(0, 0)})


@pytest.mark.parametrize("mode", circuits.MODES)
def test_ablating_a_set_of_nodes_replaces_each_of_them(mode):
    nodes = ["L0H1", "0.3", (1, 0), "MLP2"]
    edits = circuits.ablated(MODEL, nodes, mode, reference=CORRUPTED)
    seen = circuits.run(MODEL, CLEAN, "*", edits=edits)
    plain, other = (circuits.run(MODEL, t, "*") for t in (CLEAN, CORRUPTED))
    name = "blocks.0.attn.hook_z"
    expected = {"zero": 0 * other[name], "mean": other[name].mean(axis=0, keepdims=True),
                "resample": other[name]}[mode]
    close(seen[name][:, :, [1, 3]], np.broadcast_to(expected, seen[name].shape)[:, :, [1, 3]])
    close(seen[name][:, :, [0, 2]], plain[name][:, :, [0, 2]])
    if mode == "zero":
        assert not seen["blocks.2.hook_mlp_out"].any()


# --- weights ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(4, 9), st.integers(1, 6))
def test_a_low_rank_product_equals_the_matrix_it_stands_for(seed, rank, n, rank_2):
    rng = np.random.default_rng(seed)
    a = circuits.LowRank(rng.standard_normal((n, rank)), rng.standard_normal((rank, n)))
    b = circuits.LowRank(rng.standard_normal((n, rank_2)), rng.standard_normal((rank_2, n)))
    full, m = a.full(), rng.standard_normal((n, n))
    close(a.norm(), np.linalg.norm(full), 1e-9)
    close(a.T.full(), full.T, 1e-9)
    close((a @ b).full(), full @ b.full(), 1e-9)
    assert (a @ b).left.shape[-1] == min(rank, rank_2)
    close((m @ a).full(), m @ full, 1e-9)
    close(a @ m[0], full @ m[0], 1e-9)
    close(m[0] @ a, m[0] @ full, 1e-9)
    close((a @ m).full(), full @ m, 1e-9)
    close(a.entries([0, 2], [1]), full[[0, 2]][:, [1]], 1e-9)
    u, s, vt = a.svd()
    close(u * s @ vt, full, 1e-8)
    close(s, np.linalg.svd(full, compute_uv=False)[:rank], 1e-8)
    close(a.eigenvalues().sum(), np.trace(full), 1e-8)


def test_a_batch_of_low_rank_products_times_a_vector_is_a_batch_of_vectors():
    left, right = RNG.standard_normal((5, 4, 2)), RNG.standard_normal((5, 2, 3))
    stack = circuits.LowRank(left, right)
    vector = RNG.standard_normal(4)
    close(stack @ vector[:3], left @ right @ vector[:3])
    close(vector @ stack, vector @ (left @ right))
    for wrong in (lambda: stack @ vector, lambda: vector[:3] @ stack, lambda: stack @ stack):
        with pytest.raises(Error, match="columns do not meet"):
            wrong()


WEIGHTS = {
    "ov": lambda m: circuits.ov(m, 1, 1).svd()[1],
    "norm": lambda m: circuits.qk(m, 1, 1).norm(),
    "eigenvalues": lambda m: np.sort_complex(circuits.ov(m, 2, 0, folded=True).eigenvalues()),
    "full circuit": lambda m: circuits.full_ov(m, 1, 1, extended=True).svd()[1],
    "copying": circuits.copying_scores,
    "composition": lambda m: circuits.composition(m, "K"),
    "singular": lambda m: circuits.singular_tokens(m, 1, 2)[0]["writes"][1],
    "neuron": lambda m: circuits.neuron_tokens(m, 1, 5, folded=True)["reads"][1],
}  # fmt: skip


@pytest.mark.parametrize("tool", WEIGHTS)
def test_weights_in_float16_give_what_the_same_numbers_give_in_float32(tool):
    half = map_params(lambda x: x.astype(np.float16), MODEL.params)
    single = map_params(lambda x: x.astype(np.float32), half)
    found, expected = (WEIGHTS[tool](Model(TINY, params)) for params in (half, single))
    assert np.asarray(found).dtype != np.float16
    close(found, expected, 1e-6)


def test_nothing_is_folded_unless_it_is_asked_for():
    defaults = {name: inspect.signature(getattr(circuits, name)).parameters.get("folded")
                for name in circuits.__all__ if callable(getattr(circuits, name))}
    folding = {name for name, default in defaults.items() if default}
    assert {"ov", "copying_scores", "singular_tokens", "neuron_tokens"} < folding
    assert all(defaults[name].default is False for name in folding)


TOKEN_LISTS = {
    "lens": lambda m: list(vars(circuits.lens(m, TEXT[:40], keep_logits=True)).values())[1:-1],
    "copying": lambda m: [circuits.copying_scores(m), circuits.copying_scores(m, folded=True)],
    "full circuit": lambda m: [circuits.full_ov(m, 1, 1, folded=True).full(),
                               circuits.full_qk(m, 1, 1, extended=True).full()],
    "singular": lambda m: circuits.singular_tokens(m, 1, 1)[0]["writes"],
    "neuron": lambda m: [*circuits.neuron_tokens(m, 1, 1)["reads"],
                         *circuits.neuron_tokens(m, 1, 1)["lowers"]],
    "measure": lambda m: [circuits.measure(m, [TEXT[:40], TEXT[:9]]).reliability],
    "task": lambda m: [circuits.repeated_tokens(m, 15).corrupted.tokens],
    "metric": lambda m: [circuits.log_probability(m, " the")(
        circuits.run(m, TEXT[:40], last_only=True).logits)],
}  # fmt: skip


@pytest.mark.parametrize("tool", TOKEN_LISTS)
def test_rows_that_pad_the_embedding_are_in_no_distribution_and_no_list(tool, speaking, padded):
    for found, expected in zip(TOKEN_LISTS[tool](padded), TOKEN_LISTS[tool](speaking), strict=True):
        close(found, expected, 1e-4)


def test_gradients_of_a_log_probability_leave_the_padding_out(speaking, padded):
    def gradient(model):
        metric = circuits.log_probability(model, " the")
        return circuits.gradients(model, TEXT[:30], metric)["blocks.0.hook_resid_pre"]

    close(gradient(padded), gradient(speaking))


def test_an_id_that_only_pads_the_embedding_is_no_token(speaking, padded):
    n = speaking.config.n_vocab
    for wrong in (lambda: circuits.run(padded, [1, n]), lambda: circuits.lens(padded, [1, 2], n)):
        with pytest.raises(Error, match=f"token {n} is outside the vocabulary of {n}"):
            wrong()
    assert circuits.labels_of(padded, [0, n]) == [speaking.tokenizer.decode([0]), str(n)]


def test_head_circuits_are_what_the_forward_pass_computes():
    seen = circuits.run(MODEL, CLEAN, "*")
    x = seen["blocks.1.ln1.hook_normalized"][0]
    bare = random_params(TINY, 0, scale=0.3)
    weights = bare["blocks"][1]["attn"]["c_attn"]
    weights["b"][:] = 0
    model = Model(TINY, bare)
    scores = circuits.run(model, CLEAN, "blocks.1.attn.hook_attn_scores", edits={
        "blocks.1.ln1.hook_normalized": seen["blocks.1.ln1.hook_normalized"],
    })["blocks.1.attn.hook_attn_scores"][0, 2]
    expected = x @ circuits.qk(MODEL, 1, 2).full() @ x.T / np.sqrt(5)
    lower = np.tri(12, dtype=bool)
    close(scores[lower], expected[lower], 1e-4)
    pattern = seen["blocks.1.attn.hook_pattern"][0, 2]
    moved = pattern @ x @ circuits.ov(MODEL, 1, 2).full()
    attn = MODEL.params["blocks"][1]["attn"]
    bias = attn["c_attn"]["b"].reshape(3, 4, 5)[2, 2] @ attn["c_proj"]["w"].reshape(4, 5, 20)[2]
    close(seen["blocks.1.attn.hook_result"][0, :, 2], moved + bias, 1e-4)


def test_folded_circuits_give_the_same_attention_and_the_same_logit_differences():
    """Gains in the weights, means taken out: x needs only to be normalised, without gain."""
    x = RNG.standard_normal((6, 20))
    x -= x.mean(axis=1, keepdims=True)
    gain = MODEL.params["blocks"][1]["ln_1"]["g"]
    plain, folded = (circuits.ov(MODEL, 1, 2, f).full() for f in (False, True))
    written = x * gain @ plain
    close(x @ folded, written - written.mean(axis=1, keepdims=True), 1e-5)
    plain, folded = (circuits.qk(MODEL, 1, 2, f).full() for f in (False, True))
    close(x @ folded @ x.T, x * gain @ plain @ (x * gain).T, 1e-5)


def test_full_circuits_and_copying_scores_equal_their_products():
    w_e = MODEL.params["wte"]
    full = w_e @ circuits.ov(MODEL, 1, 0).full() @ w_e.T
    close(circuits.full_ov(MODEL, 1, 0).full(), full, 1e-5)
    close(circuits.full_ov(MODEL, 1, 0).entries([5, 6], [7]), full[[5, 6]][:, [7]], 1e-5)
    eigenvalues = np.linalg.eigvals(full.astype(float))
    score = (eigenvalues.sum() / np.abs(eigenvalues).sum()).real
    close(circuits.copying_scores(MODEL)[1, 0], score, 1e-3)
    close(circuits.full_qk(MODEL, 1, 0).full(), w_e @ circuits.qk(MODEL, 1, 0).full() @ w_e.T, 1e-5)


def test_extended_embeddings_include_the_first_mlp():
    x = MODEL.params["wte"]
    close(circuits.full_ov(MODEL, 1, 0, extended=True).left,
          (x + circuits.gpt2_np.mlp(gpt2_np.layer_norm(
              x[None], **MODEL.params["blocks"][0]["ln_2"], tap=gpt2_np.NO_TAP),
              **MODEL.params["blocks"][0]["mlp"], tap=gpt2_np.NO_TAP)[0])
          @ circuits.ov(MODEL, 1, 0).left, 1e-5)


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_scores_are_ratios_of_frobenius_norms(kind):
    scores = circuits.composition(MODEL, kind, baseline=False)
    first = circuits.ov(MODEL, 0, 3).full()
    second = {"Q": circuits.qk(MODEL, 2, 1).full(), "K": circuits.qk(MODEL, 2, 1).full().T,
              "V": circuits.ov(MODEL, 2, 1).full()}[kind]
    norm = np.linalg.norm
    close(scores[0, 3, 2, 1], norm(first @ second) / norm(first) / norm(second))
    for later in range(3):
        assert not scores[later:, :, later].any()


def test_random_weights_compose_no_more_than_the_baseline():
    scores = circuits.composition(random_model(Config(5, 4, 120, 4, 2), scale=1), "K")
    assert np.abs(scores[0, :, 1]).max() < 0.02


def test_singular_and_neuron_directions_rank_the_whole_vocabulary():
    found = circuits.singular_tokens(MODEL, 1, 2, n=2, top=4)
    u, s, vt = np.linalg.svd(circuits.ov(MODEL, 1, 2).full())
    assert found[0]["value"] == pytest.approx(s[0], rel=1e-4)
    reads = MODEL.params["wte"] @ u[:, 0]
    sign = 1 if reads.max() >= -reads.min() else -1
    assert found[0]["reads"][0].tolist() == np.argsort(-sign * reads)[:4].tolist()
    writes = sign * vt[0] @ MODEL.params["wte"].T
    assert found[0]["writes"][0].tolist() == np.argsort(-writes)[:4].tolist()
    ends = circuits.neuron_tokens(MODEL, 1, 5, top=3)
    logits = MODEL.params["wte"] @ MODEL.params["blocks"][1]["mlp"]["c_proj"]["w"][5]
    assert ends["raises"][0].tolist() == np.argsort(-logits)[:3].tolist()
    assert ends["lowers"][0].tolist() == np.argsort(logits)[:3].tolist()


# --- gradients and edges ---------------------------------------------------------------

GRADIENTS = ["resid_pre", "resid_mid", "q", "k", "v", "z", "attn_out", "mlp_out"]


@pytest.mark.parametrize("metric", ["difference", "log-probability"])
@pytest.mark.parametrize("short", GRADIENTS)
def test_gradients_are_the_slopes_of_the_metric(short, metric):
    model = Model(TINY, random_params(TINY, 0, np.float64, scale=0.3))
    metric = METRIC if metric == "difference" else circuits.log_probability(model, ANSWERS)
    found = circuits.gradients(model, CLEAN, metric)
    for layer in range(3):
        name = circuits.activation_name(short, layer)
        step = 1e-5 * np.random.default_rng(layer).standard_normal(found[name].shape)
        up, down = (metric(circuits.run(model, CLEAN, edits={
            name: lambda x, _, s=sign, d=step: x + s * d}).logits) for sign in (1, -1))
        slope = (found[name] * step).sum(axis=tuple(range(1, step.ndim)))
        np.testing.assert_allclose((up - down) / 2, slope, rtol=1e-5, atol=1e-12)


def test_patching_no_edge_is_the_base_and_every_edge_the_source():
    _, _, exist = circuits.edge_names(TINY)
    base, source = (circuits.run(MODEL, t, last_only=True).logits for t in (CLEAN, CORRUPTED))
    close(circuits.patch_edges(MODEL, CLEAN, CORRUPTED, ~exist & exist), base)
    close(circuits.patch_edges(MODEL, CLEAN, CORRUPTED, exist), source)


def test_patching_a_senders_every_edge_is_patching_the_sender():
    senders, _, exist = circuits.edge_names(TINY)
    sweep = circuits.patching(MODEL, CLEAN, CORRUPTED, METRIC)
    for label, index in (("L0H1", (0, 1)), ("L2H3", (2, 3))):
        patched = np.zeros_like(exist)
        patched[senders.index(label)] = exist[senders.index(label)]
        close(METRIC(circuits.patch_edges(MODEL, CLEAN, CORRUPTED, patched)),
              sweep.per_prompt[index])


def test_patching_one_edge_is_path_patching_without_mlps():
    senders, receivers, exist = circuits.edge_names(TINY)
    for sender, receiver, target in (("L0H1", "L2H2.k", [(2, 2, "k")]),
                                     ("L1H0", "logits", "logits")):
        patched = np.zeros_like(exist)
        patched[senders.index(sender), receivers.index(receiver)] = True
        layer, head = circuits.parse_node(TINY, sender)
        sweep = circuits.path_patching(MODEL, CLEAN, CORRUPTED, METRIC, target, through_mlps=False)
        close(METRIC(circuits.patch_edges(MODEL, CLEAN, CORRUPTED, patched)),
              sweep.per_prompt[layer, head])


def test_edge_attribution_is_exact_for_small_changes():
    """First order: with 'source' close to 'base' it is what patching one edge does."""
    params = random_params(TINY, 0, np.float64, scale=0.3)
    params["wte"][1] = params["wte"][0] + 1e-6 * RNG.standard_normal(20)
    model, base, source = Model(TINY, params), [[2, 0, 5, 0, 9]], [[2, 1, 5, 0, 9]]
    metric = circuits.logit_difference(model, 3, 6)
    scores = circuits.edge_attribution(model, base, source, metric)
    senders, receivers, exist = circuits.edge_names(TINY)
    before = metric(circuits.run(model, base).logits)
    for sender, receiver in (("embed", "L0H2.v"), ("embed", "MLP1"), ("L0H1", "L1H0.q"),
                             ("MLP0", "L2H1.k"), ("L1H3", "MLP1"), ("MLP1", "logits")):
        at = senders.index(sender), receivers.index(receiver)
        patched = np.zeros_like(exist)
        patched[at] = True
        change = metric(circuits.patch_edges(model, base, source, patched)) - before
        np.testing.assert_allclose(scores[at], change, rtol=1e-3, atol=1e-14)


def test_the_search_for_edges_takes_no_more_passes_than_it_says(monkeypatch):
    passes, original = [], circuits._patch_edges
    monkeypatch.setattr(circuits, "_patch_edges", lambda *a: passes.append(1) or original(*a))
    found = circuits.find_edges(MODEL, CLEAN, CORRUPTED, METRIC, 0.7, checks=12, subsets=3)
    assert found.kept
    assert len(passes) <= np.log2(found.n_all) + 12 + 2 * 3 + 4 + len(found.kept)
    assert circuits.edge_names(gpt2_np.SIZES["124M"])[2].sum() == 32491


# --- measures --------------------------------------------------------------------------


def test_measures_are_means_over_tokens_with_intervals_over_texts(speaking):
    texts = ["The cat sat on the mat", "the dog sat", "on the cat the dog and the cat"]
    found = circuits.measure(speaking, texts)
    losses, n_bytes, p = [], 0, []
    for text in texts:
        ids = [speaking.tokenizer.end_of_text, *speaking.tokenizer.encode(text)]
        losses += (-gpt2_np.score(speaking, ids).astype(float)).tolist()
        n_bytes += len(text.encode())
        logits = gpt2_np.forward(speaking.params, speaking.config, ids).astype(float)[:-1]
        p.append(np.exp(logits - logits.max(-1, keepdims=True)))
    loss = np.mean(losses)
    assert found.loss.value == pytest.approx(loss, rel=1e-5)
    assert found.perplexity.value == pytest.approx(np.exp(loss), rel=1e-4)
    bits = np.sum(losses) / np.log(2) / n_bytes
    assert found.bits_per_byte.value == pytest.approx(bits, rel=1e-5)
    p = np.concatenate([rows / rows.sum(-1, keepdims=True) for rows in p])
    assert found.entropy.value == pytest.approx(-(p * np.log(p)).sum(-1).mean(), rel=1e-4)
    assert found.loss.low < found.loss.value < found.loss.high
    assert found.bos and found.n_tokens == len(losses) == found.reliability[:, 2].sum()


def test_calibration_is_the_distance_of_accuracy_from_confidence():
    """A model that gives 61 tokens the same probability is right by chance, and says so."""
    params = random_params(TINY, scale=0.0)
    rng = np.random.default_rng(1)
    flat = circuits.measure(Model(TINY, params), list(rng.integers(0, 61, (4, 20))))
    assert flat.loss.value == pytest.approx(np.log(61), rel=1e-5)
    assert flat.entropy.value == pytest.approx(np.log(61), rel=1e-5)
    confidence, accuracy, n = flat.reliability[0]
    assert confidence == pytest.approx(1 / 61, rel=1e-5)
    assert n == 4 * 19
    assert flat.calibration_error.value == pytest.approx(abs(confidence - accuracy))
    assert flat.bits_per_byte is None


def test_a_text_longer_than_the_context_is_measured_in_overlapping_windows():
    tokens = RNG.integers(0, TINY.n_vocab, 70)
    found = circuits.measure(MODEL, [tokens])
    assert found.loss.value == pytest.approx(-gpt2_np.score(MODEL, tokens).mean(), rel=1e-5)
    assert found.n_tokens == 69


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(100):
        sample = rng.standard_normal(40)
        found = circuits.bootstrap(lambda i, x=sample: x[i].mean(), 40, resamples=150, seed=trial)
        hits += found.low <= 0 <= found.high
    assert 86 <= hits <= 100


def test_what_has_no_interval_says_so_instead_of_one_of_no_width():
    found = circuits.bootstrap(lambda i: i.mean() + 3, 1)
    assert found.value == 3 and np.isnan([found.low, found.high]).all()
    assert str(found) == "3 [no interval]"
    effect = np.array([0.0, 1.0])  # a share of nothing in every fourth resample
    found = circuits.bootstrap(lambda i: effect[i].sum() / effect[i].sum(), 2)
    assert found.value == 1 and np.isnan(found.low)
    one = circuits.find(MODEL, CLEAN[:1], CORRUPTED[:1], circuits.logit_difference(MODEL, 3, 6))
    assert np.isnan([one.share.low, one.incompleteness.high]).all()
    assert all(np.isnan(lost.low) for lost in one.minimality.values())
    assert np.isnan(circuits.measure(MODEL, [CLEAN[0]]).loss.low)


def test_bootstrap_is_repeatable():
    first, second = (circuits.bootstrap(lambda i: i.mean(), 20, seed=4) for _ in range(2))
    assert first == second
    assert str(first).startswith("9.5 [")

"""The forward pass beside its definition: shapes, cache, tiled attention, taps and bad input."""
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import TINY, map_params, random_model, random_params

import gpt2_np
from gpt2_np import KVCache, backend, forward

MODEL = random_model()
TOKENS = np.random.default_rng(7).integers(0, TINY.n_vocab, TINY.n_ctx)


def run(tokens, **options):
    return forward(MODEL.params, MODEL.config, tokens, **options)


def relative_error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def assert_same(a, b):
    assert a.shape == b.shape
    assert relative_error(a, b) < 1e-5


# --- beside the definition -------------------------------------------------------------


def test_logits_equal_a_plain_float64_evaluation():
    exact = reference.logits(map_params(lambda w: w.astype(np.float64), MODEL.params), TINY, TOKENS)
    assert relative_error(run(TOKENS), exact) < 2e-6


def test_float64_weights_give_float64_logits():
    params = random_params(TINY, dtype=np.float64)
    logits = forward(params, TINY, TOKENS)
    assert logits.dtype == np.float64
    assert relative_error(logits, reference.logits(params, TINY, TOKENS)) < 1e-13


def test_every_activation_of_float32_weights_is_float32():
    dtypes = {}

    def tap(name, array):
        dtypes[name] = array.dtype

    assert run(TOKENS, tap=tap, cache=KVCache(TINY)).dtype == np.float32
    assert set(dtypes.values()) == {np.dtype(np.float32)}


def test_a_later_token_changes_no_earlier_logits():
    changed = TOKENS.copy()
    changed[10] = (changed[10] + 1) % TINY.n_vocab
    before, after = run(TOKENS), run(changed)
    np.testing.assert_array_equal(before[:10], after[:10])
    assert (before[10:] != after[10:]).any(axis=1).all()


# --- shapes ----------------------------------------------------------------------------


def test_logits_have_the_rank_of_the_tokens():
    batch = TOKENS.reshape(2, -1)
    assert run(TOKENS).shape == (24, 61)
    assert run(TOKENS.tolist()).shape == (24, 61)
    assert run(batch).shape == (2, 12, 61)
    assert run(TOKENS, last_only=True).shape == (1, 61)
    assert run(batch, last_only=True).shape == (2, 1, 61)
    assert run([3]).shape == (1, 61)


def test_last_only_gives_the_last_position():
    assert_same(run(TOKENS, last_only=True), run(TOKENS)[-1:])


def test_batched_equals_single():
    batch = TOKENS.reshape(3, 8)
    assert_same(run(batch), np.stack([run(row) for row in batch]))


# --- the cache -------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, TINY.n_ctx), min_size=1, max_size=8), st.integers(1, 3))
def test_cached_forward_equals_uncached_however_it_is_split(lengths, n_rows):
    ends = [end for end in np.cumsum(lengths) if end <= TINY.n_ctx]
    batch = np.stack([np.roll(TOKENS, row) for row in range(n_rows)])
    cache, pieces, start = KVCache(TINY, n_rows, TINY.n_ctx), [], 0
    for end in ends:
        pieces.append(run(batch[:, start:end], cache=cache))
        start = end
    if pieces:
        assert_same(np.concatenate(pieces, axis=1), run(batch[:, :start]))
        assert cache.lengths.tolist() == [start] * n_rows


def test_a_cache_rolls_back_to_any_length():
    cache = KVCache(TINY)
    run(TOKENS[:20], cache=cache)
    cache.lengths[:] = 9
    assert_same(run(TOKENS[9:15], cache=cache), run(TOKENS[:15])[9:])


def test_rows_of_different_lengths_continue_as_each_would_alone():
    lengths = [3, 9, 1]
    padded = np.zeros((3, 9), int)
    for row, n in enumerate(lengths):
        padded[row, :n] = TOKENS[:n]
    cache = KVCache(TINY, batch=3)
    run(padded, cache=cache)
    cache.lengths[:] = lengths
    following = np.array([[5, 6, 7]] * 3)
    logits = run(following, cache=cache)
    for row, n in enumerate(lengths):
        alone = run([*TOKENS[:n], 5, 6, 7])[n:]
        assert_same(logits[row], alone)


def test_selected_rows_continue_unchanged():
    batch = TOKENS.reshape(4, 6)
    cache = KVCache(TINY, batch=4)
    run(batch[:, :5], cache=cache)
    cache.select([3, 1])
    assert_same(run(batch[[3, 1], 5:], cache=cache), run(batch[[3, 1]])[:, 5:])


def test_a_failed_pass_leaves_the_cache_as_it_was():
    cache = KVCache(TINY)
    run(TOKENS[:5], cache=cache)

    def breaks(name, array):
        if name == "blocks.1.attn.hook_z":
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(TOKENS[5:8], cache=cache, tap=breaks)
    assert_same(run(TOKENS[5:8], cache=cache), run(TOKENS[:8])[5:])


def test_threads_with_their_own_caches_get_the_same_result():
    expected, results = run(TOKENS), {}

    def work(number):
        cache = KVCache(TINY)
        results[number] = np.concatenate([run([t], cache=cache) for t in TOKENS])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert_same(results[number], expected)


# --- tiled attention -------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 4 * 24 * 5, 1 << 18])
def test_tiled_attention_equals_whole_attention(monkeypatch, elements):
    config = gpt2_np.Config(n_vocab=61, n_ctx=200, n_embd=16, n_head=4, n_layer=2)
    model = random_model(config)
    tokens = np.random.default_rng(1).integers(0, 61, (2, 150))
    whole = forward(model.params, config, tokens, tap=lambda name, array: None)
    monkeypatch.setattr(backend, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(backend, "TILE_QUERIES", 32)
    assert_same(forward(model.params, config, tokens), whole)


def test_attention_tiles_are_small_and_skip_masked_keys():
    config = gpt2_np.Config(n_vocab=61, n_ctx=1024, n_embd=16, n_head=16, n_layer=1)
    positions = np.arange(1024)[None]
    sizes = [
        math.prod(len(range(*part.indices(1024))) for part in (tile.queries, tile.keys))
        * len(range(*tile.heads.indices(config.n_head)))
        for tile in backend.attention_tiles(positions, config.n_head, np)
    ]
    assert max(sizes) < config.n_head * 1024 * 1024 / 16
    assert sum(sizes) < 0.6 * config.n_head * 1024 * 1024


# --- taps ------------------------------------------------------------------------------


BLOCK_NAMES = [
    "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k",
    "attn.hook_v", "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out",
    "hook_resid_mid", "ln2.hook_scale", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post",
    "hook_mlp_out", "hook_resid_post",
]  # fmt: skip
ALL_NAMES = [
    "hook_embed",
    "hook_pos_embed",
    *(f"blocks.{layer}.{name}" for layer in range(TINY.n_layer) for name in BLOCK_NAMES),
    "ln_final.hook_scale",
    "ln_final.hook_normalized",
]


class Record:
    """A tap that keeps copies of the named activations, or of all if no names are given."""

    def __init__(self, *names):
        self.seen = {}
        if names:
            self.wants = lambda name: name in names

    def __call__(self, name, array):
        assert name not in self.seen
        self.seen[name] = array.copy()


def test_a_tap_sees_every_name_in_order_and_changes_nothing():
    record = Record()
    np.testing.assert_allclose(run(TOKENS, tap=record), run(TOKENS), rtol=1e-4, atol=1e-5)
    assert list(record.seen) == ALL_NAMES


def test_activations_have_the_documented_shapes():
    record = Record()
    run(TOKENS.reshape(2, 12), tap=record)
    b, q, d, h, e, m = 2, 12, TINY.n_embd, TINY.n_head, 5, 4 * TINY.n_embd
    shapes = {name.rpartition(".")[2]: array.shape for name, array in record.seen.items()}
    assert shapes == {
        "hook_embed": (b, q, d), "hook_pos_embed": (b, q, d),
        "hook_resid_pre": (b, q, d), "hook_resid_mid": (b, q, d), "hook_resid_post": (b, q, d),
        "hook_scale": (b, q, 1), "hook_normalized": (b, q, d),
        "hook_q": (b, q, h, e), "hook_k": (b, q, h, e), "hook_v": (b, q, h, e),
        "hook_attn_scores": (b, h, q, q), "hook_pattern": (b, h, q, q), "hook_z": (b, q, h, e),
        "hook_attn_out": (b, q, d), "hook_pre": (b, q, m), "hook_post": (b, q, m),
        "hook_mlp_out": (b, q, d),
    }  # fmt: skip


def test_activations_are_related_as_their_names_say():
    record = Record()
    logits = run(TOKENS, tap=record)
    seen = record.seen
    for layer in range(TINY.n_layer):
        at = f"blocks.{layer}."
        mid = seen[at + "hook_resid_pre"] + seen[at + "hook_attn_out"]
        np.testing.assert_allclose(seen[at + "hook_resid_mid"], mid, rtol=1e-5, atol=1e-6)
        post = mid + seen[at + "hook_mlp_out"]
        np.testing.assert_allclose(seen[at + "hook_resid_post"], post, rtol=1e-5, atol=1e-6)
        pattern, scores = seen[at + "attn.hook_pattern"], seen[at + "attn.hook_attn_scores"]
        np.testing.assert_allclose(pattern.sum(axis=-1), 1, rtol=1e-5)
        future = np.triu(np.ones(pattern.shape[-2:], bool), 1)
        assert (pattern[..., future] == 0).all()
        assert (scores[..., future] == -np.inf).all()
    gain, bias = MODEL.params["ln_f"]["g"], MODEL.params["ln_f"]["b"]
    last = seen["ln_final.hook_normalized"] * gain + bias
    np.testing.assert_allclose(logits, (last @ MODEL.params["wte"].T)[0], rtol=1e-4, atol=1e-5)


def test_arrays_that_a_tap_keeps_are_not_overwritten():
    kept, copies = {}, {}

    def keep(name, array):
        kept[name], copies[name] = array, array.copy()

    run(TOKENS, tap=keep)
    for name, array in kept.items():
        np.testing.assert_array_equal(array, copies[name], err_msg=name)


@pytest.mark.parametrize("name", [*ALL_NAMES, "blocks.1.attn.hook_result"])
def test_an_edit_changes_the_logits(name):
    class Edit:
        def wants(self, hook):
            return hook == name

        def __call__(self, hook, array):
            assert hook == name
            return array * 1.5 + np.linspace(0.1, 0.2, array.shape[-1])

    assert relative_error(run(TOKENS, tap=Edit()), run(TOKENS)) > 1e-4


def test_patching_the_stream_of_another_text_gives_its_logits():
    other = (TOKENS + 3) % TINY.n_vocab
    record = Record("blocks.1.hook_resid_post")
    expected = run(other, tap=record)
    patched = run(TOKENS, tap=lambda name, array: record.seen.get(name))
    assert_same(patched, expected)


def test_edited_keys_and_values_reach_the_cache():
    cache = KVCache(TINY)

    def no_values(name, array):
        return np.zeros_like(array) if name.endswith("hook_v") else None

    run(TOKENS[:5], cache=cache, tap=no_values)
    record = Record("blocks.0.attn.hook_pattern", "blocks.0.attn.hook_z", "blocks.0.attn.hook_v")
    run(TOKENS[5:6], cache=cache, tap=record)
    own = record.seen["blocks.0.attn.hook_pattern"][..., -1].transpose(0, 2, 1)[..., None]
    np.testing.assert_allclose(
        record.seen["blocks.0.attn.hook_z"], own * record.seen["blocks.0.attn.hook_v"], atol=1e-6
    )


def test_results_per_head_sum_to_the_attention_output():
    record = Record("blocks.2.attn.hook_result", "blocks.2.hook_attn_out")
    assert_same(run(TOKENS, tap=record), run(TOKENS))
    total = record.seen["blocks.2.attn.hook_result"].sum(axis=2)
    total += MODEL.params["blocks"][2]["attn"]["c_proj"]["b"]
    np.testing.assert_allclose(record.seen["blocks.2.hook_attn_out"], total, rtol=1e-4, atol=1e-5)
    assert record.seen["blocks.2.attn.hook_result"].shape == (1, 24, 4, 20)


def test_attention_stays_tiled_unless_the_tap_wants_whole_patterns(monkeypatch):
    layers_in_tiles = []
    original = backend.attention_tiles

    def spy(*arguments):
        layers_in_tiles[-1] += 1
        return original(*arguments)

    monkeypatch.setattr(backend, "attention_tiles", spy)
    for name in "blocks.0.hook_resid_post", "blocks.1.attn.hook_pattern":
        layers_in_tiles.append(0)
        run(TOKENS, tap=Record(name))
    assert layers_in_tiles == [TINY.n_layer, TINY.n_layer - 1]


def test_an_edit_that_changes_the_shape_is_an_error():
    def tap(name, array):
        return np.zeros((2, 2)) if name == "blocks.0.attn.hook_z" else None

    with pytest.raises(gpt2_np.Error, match=r"0\.attn\.hook_z .*\(2, 2\).*\(1, 24, 4, 5\)"):
        run(TOKENS, tap=tap)


# --- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "no tokens"),
        ([[], []], "no tokens"),
        ([61], "61 is outside the vocabulary of 61"),
        ([-1], "-1 is outside"),
        ([1.5], "float64"),
        ([True], "bool"),
        (["a"], "must be integers"),
        ([[1, 2], [3]], "differ in length"),
        ([[[1]]], r"shape \(1, 1, 1\)"),
        (7, "must be integers of shape"),
    ],
)
def test_bad_tokens_are_rejected(tokens, message):
    with pytest.raises(gpt2_np.Error, match=message):
        run(tokens)


def test_positions_past_n_ctx_raise_an_error_that_names_the_limit():
    with pytest.raises(gpt2_np.Error, match=r"25 positions.*n_ctx = 24"):
        run(np.zeros(25, int))
    cache = KVCache(TINY, capacity=100)
    run(TOKENS, cache=cache)
    with pytest.raises(gpt2_np.Error, match=r"25 positions.*n_ctx = 24"):
        run([1], cache=cache)


def test_a_full_cache_and_a_wrong_batch_size_are_rejected():
    cache = KVCache(TINY, batch=2, capacity=8)
    with pytest.raises(gpt2_np.Error, match="2 rows, the tokens are 1"):
        run(TOKENS[:4], cache=cache)
    run(TOKENS[:8].reshape(2, 4), cache=cache)
    with pytest.raises(gpt2_np.Error, match="a cache of 8 cannot hold 9 positions"):
        run(TOKENS[:10].reshape(2, 5), cache=cache)


def test_parameters_that_do_not_match_the_sizes_are_rejected():
    params = random_params(TINY)
    for changes, message in (
        ({"n_layer": 2}, r"params has 3 blocks, expected 2"),
        ({"n_vocab": 60}, r"params\['wte'\] is \(61, 20\): these sizes need .* \(60, 20\)"),
        ({"n_head": 3}, "3 heads do not divide n_embd = 20"),
    ):
        with pytest.raises(gpt2_np.Error, match=message):
            gpt2_np.Model(replace(TINY, **changes), params)
    del params["blocks"][1]["mlp"]["c_fc"]["b"]
    path = r"params\['blocks'\]\[1\]\['mlp'\]\['c_fc'\]\['b'\]"
    with pytest.raises(gpt2_np.Error, match=path + r" is missing: .* \(80,\)"):
        gpt2_np.Model(TINY, params)


def test_blocks_may_be_a_tuple_and_what_is_missing_is_named():
    params = random_params(TINY)
    model = gpt2_np.Model(TINY, {**params, "blocks": tuple(params["blocks"])})
    assert_same(forward(model.params, TINY, TOKENS), forward(params, TINY, TOKENS))
    for wrong, found in ({"ln_f": {"g": params["ln_f"]["g"]}}, "missing"), ({"wte": 3}, "int"):
        with pytest.raises(gpt2_np.Error, match=f"is {found}: these sizes need"):
            gpt2_np.Model(TINY, {**params, **wrong})


def test_models_compare_by_identity():
    params = random_params(TINY)
    assert gpt2_np.Model(TINY, params) != gpt2_np.Model(TINY, params)
    assert len({gpt2_np.Model(TINY, params)}) == 1

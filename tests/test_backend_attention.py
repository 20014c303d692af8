"""The fast versions of the reference's functions on the host change nothing but rounding."""
import itertools

import numpy as np
import pytest
import strict_arrays
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from random_model import TINY, random_model

import gpt2_np
from gpt2_np import backend
from gpt2_np.gpt2_np import NO_TAP, attend, gelu, mask_future, softmax

ROUNDING = {"float32": 1e-6, "float64": 1e-14}
DTYPES = st.sampled_from([np.dtype("float32"), np.dtype("float64")])


def numbers(shapes, lowest=-30.0, highest=30.0):
    """Arrays of float32 or float64, whose numbers float32 holds exactly."""
    values = st.floats(lowest, highest, width=32)
    return DTYPES.flatmap(lambda dtype: arrays(dtype, shapes, elements=values))


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Make blocks and tiles so small that tiny arrays need several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "BLOCK_ELEMENTS", 60)
        patch.setattr(backend, "DEVICE_BLOCK_ELEMENTS", 90)
        patch.setattr(backend, "TILE_QUERIES", 4)
        yield


# --- elementwise functions -------------------------------------------------------------


def test_every_accelerated_function_has_a_version_for_the_host_and_one_for_the_gpu():
    names = {"gelu", "mask_future", "softmax"}
    assert set(backend.ON_HOST) == set(backend.elementwise.FUNCTIONS) == names
    for function in (gelu, mask_future, softmax):
        assert function.__wrapped__ is not backend.ON_HOST[function.__name__]


@given(numbers(array_shapes(max_dims=4, max_side=9)), st.integers(0, 3))
def test_softmax_on_the_host_equals_the_references(x, n_hidden):
    x[..., max(1, x.shape[-1] - n_hidden) :] = -np.inf
    before, result = x.copy(), softmax(x)
    assert result.dtype == x.dtype and (x == before).all()
    np.testing.assert_allclose(result, softmax.__wrapped__(x), rtol=ROUNDING[x.dtype.name])


@given(numbers(array_shapes(max_dims=4, max_side=9)), st.booleans())
@example(np.linspace(-4, 4, 301, dtype=np.float32), False)
def test_gelu_on_the_host_equals_the_references(x, strided):
    x = np.repeat(x, 2, -1)[..., ::2] if strided else x
    before, result = x.copy(), gelu(x)
    assert result.dtype == x.dtype and (x == before).all()
    rounding = ROUNDING[x.dtype.name]
    np.testing.assert_allclose(result, gelu.__wrapped__(x), rtol=4 * rounding, atol=4 * rounding)


@given(numbers(array_shapes(min_dims=4, max_dims=4, max_side=6)), st.data())
def test_the_mask_on_the_host_equals_the_references(scores, data):
    n_rows, _, n_queries, n_keys = scores.shape
    positions = np.array(data.draw(st.lists(
        st.lists(st.integers(0, n_keys - 1), min_size=n_queries, max_size=n_queries),
        min_size=n_rows, max_size=n_rows)))  # fmt: skip
    expected = mask_future.__wrapped__(scores, positions)
    result = mask_future(scores, positions)
    assert result.dtype == scores.dtype and (result == expected).all()


def test_what_a_tap_keeps_or_returns_is_not_changed_behind_its_back():
    kept, model = [], random_model()

    def keep(name, array):
        kept.append((name, array, array.copy()))
        if name.endswith(("hook_q", "hook_attn_scores", "hook_pre")):
            kept.append((name, array * 0.5, array * 0.5))
            return kept[-1][1]
        return None

    for _ in range(2):
        gpt2_np.forward(model.params, TINY, np.arange(20).reshape(2, 10), tap=keep)
    for name, array, before in kept:
        np.testing.assert_array_equal(array, before, err_msg=name)


# --- attention in tiles ----------------------------------------------------------------


def random_heads(*shapes):
    """Return random queries, keys or values [b, position, 3 heads, 2] of float64."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((*shape, 3, 2)) for shape in shapes]


def untiled(q, k, v, positions):
    return attend.__wrapped__(q, k, v, positions, NO_TAP)


def on(xp, *host):
    return host if xp is np else [xp.asarray(array) for array in host]


KINDS = pytest.mark.parametrize("xp", [np, strict_arrays], ids=["host", "device"])


@KINDS
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=7), n_new=st.integers(1, 30))
@example(lengths=[0], n_new=100)  # a long text
@example(lengths=[0] * 40, n_new=3)  # many short ones
@example(lengths=[5] * 3, n_new=20)  # that continue a cache
@example(lengths=[0, 17, 3], n_new=2)  # rows of a cache that differ in length
def test_attention_in_tiles_equals_attention_of_all_rows_and_cached_positions(xp, lengths, n_new):
    positions = np.array(lengths)[:, None] + np.arange(n_new)
    shape = (len(lengths), positions.max() + 1)
    q, k, v = random_heads(positions.shape, shape, shape)
    z = backend.to_host(attend(*on(xp, q, k, v), positions, NO_TAP))
    np.testing.assert_allclose(z, untiled(q, k, v, positions), rtol=1e-12, atol=1e-14)


@st.composite
def packed_rows(draw):
    """Lengths of the texts in each row; rows are equally long."""
    n = draw(st.integers(1, 40))
    cuts = st.lists(st.integers(1, n), max_size=5).map(lambda cuts: sorted({0, n, *cuts}))
    rows = draw(st.lists(cuts, min_size=1, max_size=3))
    return [[end - start for start, end in itertools.pairwise(row)] for row in rows]


@KINDS
@given(rows=packed_rows())
@example(rows=[[1] * 40])
@example(rows=[[30, 2, 8]])
@example(rows=[[3, 3], [6]])
def test_packed_texts_attend_to_themselves_only(xp, rows):
    positions = np.array([np.concatenate([np.arange(n) for n in row]) for row in rows])
    q, k, v = random_heads(positions.shape, positions.shape, positions.shape)
    z = backend.to_host(attend(*on(xp, q, k, v), positions, NO_TAP))
    for row, lengths in enumerate(rows):
        for start, end in itertools.pairwise(np.cumsum([0, *lengths])):
            text = slice(row, row + 1), slice(start, end)
            alone = untiled(q[text], k[text], v[text], positions[text])
            np.testing.assert_allclose(z[text], alone, rtol=1e-12, atol=1e-14)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=7), st.integers(2, 30))
def test_tiles_cover_every_query_of_every_head_once_and_stay_small(lengths, n_new):
    positions = np.array(lengths)[:, None] + np.arange(n_new)
    covered = np.zeros((*positions.shape, 3), int)
    for rows, heads, queries, keys in backend.attention_tiles(positions, 3, np):
        part = covered[rows, queries, heads]
        part += 1
        n_keys = keys.stop - keys.start
        assert keys.start == 0 and n_keys == positions[rows, queries].max() + 1
        one_head_of_a_row = part.shape[0] == part.shape[2] == 1 and part.shape[1] <= 4
        assert one_head_of_a_row or part.size * n_keys <= backend.BLOCK_ELEMENTS
    assert (covered == 1).all()


def test_a_tap_that_wants_patterns_gets_them_whole():
    shapes, model = [], random_model()

    class Patterns:
        def wants(self, name):
            return name.endswith(("hook_pattern", "hook_attn_scores"))

        def __call__(self, name, array):
            shapes.append(array.shape)

    tokens = np.arange(20)
    with_tap = gpt2_np.forward(model.params, TINY, tokens, tap=Patterns())
    assert set(shapes) == {(1, TINY.n_head, 20, 20)}
    plain = gpt2_np.forward(model.params, TINY, tokens)  # in tiles
    np.testing.assert_allclose(plain, with_tap, rtol=1e-4, atol=1e-5)

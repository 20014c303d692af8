import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_np import backend

FORWARD = [
    "bqd,dche->bqche", "bqhe,bkhe->bhqk", "bhqk,bkhe->bqhe", "bqhe,hed->bqd", "bqhe,hed->bqhd",
    "bqd,dm->bqm", "bqm,md->bqd", "bqd,vd->bqv", "bqd,bqd->bq",
]  # fmt: skip
SIZES = dict(zip("bqkdhemvc", (2, 3, 5, 8, 4, 2, 6, 7, 3), strict=True))


def operands(specification, seed=0, sizes=SIZES):
    rng = np.random.default_rng(seed)
    inputs = specification.partition("->")[0].split(",")
    return [rng.standard_normal([sizes[x] for x in part]) for part in inputs]


@pytest.mark.parametrize("specification", FORWARD)
def test_the_forward_pass_lowers_every_contraction_to_one_product(specification):
    assert backend.make_plan(specification) is not None
    pair = operands(specification)
    expected = np.einsum(specification, *pair)
    np.testing.assert_allclose(backend.einsum(specification, *pair), expected, rtol=1e-12)


@st.composite
def specifications(draw):
    letters = "abcdef"
    left = draw(st.permutations(letters).map(lambda p: "".join(p)[: draw(st.integers(0, 4))]))
    right = draw(st.permutations(letters).map(lambda p: "".join(p)[: draw(st.integers(0, 4))]))
    letters_used = sorted(set(left + right))
    output = draw(st.permutations(letters_used))[: draw(st.integers(0, len(letters_used)))]
    return f"{left},{right}->{''.join(output)}"


@settings(deadline=None, max_examples=200)
@given(specifications(), st.lists(st.integers(1, 3), min_size=6, max_size=6), st.booleans())
def test_any_contraction_of_two_arrays_equals_numpys(specification, sizes, strided):
    pair = operands(specification, sizes=dict(zip("abcdef", sizes, strict=True)))
    if strided:  # the same numbers as views with other strides
        pair = [np.asfortranarray(np.stack([a, a], axis=-1))[..., 0] for a in pair]
    expected = np.einsum(specification, *pair)
    result = backend.einsum(specification, *pair)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-10)
    assert not any(np.shares_memory(result, array) for array in pair)  # it may be written to


@pytest.mark.parametrize(
    ("specification", "shapes"),
    [
        ("ab->ba", [(2, 3)]),
        ("aa,ab->b", [(2, 2), (2, 3)]),
        ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)]),
        ("ab,cd->ac", [(2, 3), (4, 5)]),
    ],
)
def test_a_contraction_that_is_no_matrix_product_goes_to_numpy(specification, shapes):
    arrays = [np.random.default_rng(0).standard_normal(shape) for shape in shapes]
    np.testing.assert_allclose(
        backend.einsum(specification, *arrays), np.einsum(specification, *arrays), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("specification", "left", "right"),
    [
        ("ab,bc->ac", (2, 3), (4, 5)),
        ("abc,abd->acd", (2, 3, 4), (2, 5, 4)),
        ("ahe,hed->ad", (2, 3, 4), (4, 3, 5)),
    ],
)
def test_sizes_that_disagree_are_an_error(specification, left, right):
    with pytest.raises(ValueError, match="disagree"):
        backend.einsum(specification, np.ones(left), np.ones(right))


def test_weights_and_cache_are_multiplied_where_they_lie(monkeypatch):
    """No operand is copied: the arrays that reach the product share memory with the operands."""
    seen = []

    class Spy(np.ndarray):
        def __matmul__(self, other):
            seen.append((np.asarray(self), np.asarray(other)))
            return np.asarray(self) @ np.asarray(other)

    qkv = np.ones((2, 3, 3, 4, 2))
    cached = np.ones((2, 4, 9, 2))[:, :, :5].swapaxes(1, 2)  # [b, k, h, e] in head order
    weight = np.ones((8, 3 * 4 * 2))
    cases = [
        ("bqd,dche->bqche", np.ones((2, 3, 8)), weight.reshape(8, 3, 4, 2)),
        ("bqhe,bkhe->bhqk", qkv[:, :, 0], cached),
        ("bhqk,bkhe->bqhe", np.ones((2, 4, 3, 5)), cached),
        ("bqhe,hed->bqd", np.ones((2, 3, 4, 2)), np.ones((8, 8)).reshape(4, 2, 8)),
        ("bqd,vd->bqv", np.ones((2, 3, 8)), np.ones((7, 8))),
    ]
    for specification, left, right in cases:
        backend.einsum(specification, left.view(Spy), right)
        used_left, used_right = seen.pop()
        assert np.shares_memory(used_left, left), specification
        assert np.shares_memory(used_right, right), specification


@settings(deadline=None, max_examples=100)
@given(
    st.integers(2, backend.FEW_ROWS), st.integers(1, 40), st.integers(1, 40), st.integers(1, 300),
    st.sampled_from(["rows", "columns", "neither"]), st.sampled_from(["float32", "float64"]),
)  # fmt: skip
def test_a_few_rows_are_multiplied_block_by_block(m, k, n, block, order, dtype):
    rng = np.random.default_rng(0)
    left = rng.standard_normal((m, k)).astype(dtype)
    right = rng.standard_normal((k, n)).astype(dtype)
    expected = left @ right
    right = {
        "rows": right,
        "columns": np.asfortranarray(right),
        "neither": np.repeat(np.repeat(right, 2, axis=0), 3, axis=1)[::2, ::3],
    }[order]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "BLOCK_OF_MATRIX", block)
        product = backend.few_rows_product(left, right)
    assert product.shape == expected.shape and product.dtype == expected.dtype
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(product, expected, rtol=0, atol=tolerance)


@pytest.fixture
def few(monkeypatch):
    """The numbers of rows that few_rows_product was called with, with blocks of 100 numbers."""
    rows = []

    def spy(left, right, product=backend.few_rows_product):
        rows.append(len(left))
        return product(left, right)

    monkeypatch.setattr(backend, "few_rows_product", spy)
    monkeypatch.setattr(backend, "BLOCK_OF_MATRIX", 100)
    return rows


@pytest.mark.parametrize(
    ("specification", "by_rows"), [("bqd,dm->bqm", True), ("bqd,vd->bqv", False)]
)
def test_a_few_rows_of_a_large_matrix_are_multiplied_one_by_one(specification, by_rows, few):
    for n_rows in range(1, 20):
        for width in (5, 6):  # 20 times 5 is no large matrix
            matrix = np.ones((20, width) if by_rows else (width, 20))
            product = backend.einsum(specification, np.ones((1, n_rows, 20)), matrix)
            assert (product == 20).all() and product.shape == (1, n_rows, width)
    most = backend.FEW_ROWS if by_rows else backend.FEW_ROWS_BY_COLUMNS
    assert few == list(range(2, most + 1))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(FORWARD), st.lists(st.integers(1, 40), min_size=9, max_size=9))
def test_every_road_to_a_product_gives_the_same(specification, sizes):
    pair = operands(specification, sizes=dict(zip("bqkdhemvc", [*sizes[:-1], 3], strict=True)))
    expected = np.einsum(specification, *pair, optimize=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "SMALL_RESULT", 50)
        patch.setattr(backend, "BLOCK_OF_MATRIX", 90)
        product = backend.einsum(specification, *pair)
    np.testing.assert_allclose(product, expected, rtol=1e-10, atol=1e-10)

"""A low-rank product equals the matrix that it stands for."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_pair import close

from gpt2_np import Error, circuits


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
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((5, 4, 2)), rng.standard_normal((5, 2, 3))
    stack = circuits.LowRank(left, right)
    vector = rng.standard_normal(4)
    close(stack @ vector[:3], left @ right @ vector[:3])
    close(vector @ stack, vector @ (left @ right))
    for wrong in (lambda: stack @ vector, lambda: vector[:3] @ stack, lambda: stack @ stack):
        with pytest.raises(Error, match="columns do not meet"):
            wrong()

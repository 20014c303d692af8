"""Products by cuBLAS: on a stand-in that reads memory as its manual says, or on a GPU."""
import contextvars

import numpy as np
import pytest
import strict_arrays

from gpt2_np import backend
from gpt2_np.cuda.products import COMPUTE_32F, COMPUTE_32F_FAST_TF32, device_product


def test_tf32_is_used_only_if_it_is_requested():
    def compute_types():
        strict_arrays.calls.clear()
        ones = strict_arrays.asarray(np.ones((2, 2), np.float32))
        backend.einsum("bq,qd->bd", ones, ones)
        return [call.compute for call in strict_arrays.calls]

    assert compute_types() == [COMPUTE_32F]
    contextvars.copy_context().run(backend.allow_tf32)
    assert compute_types() == [COMPUTE_32F]
    requested = contextvars.copy_context()
    requested.run(backend.allow_tf32)
    assert requested.run(compute_types) == [COMPUTE_32F_FAST_TF32]


LAYOUTS = {
    "rows": lambda a: a,
    "columns": lambda a: a.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "sliced": lambda a: np.concatenate([a, a], -1)[..., : a.shape[-1]],
    "sliced columns": lambda a: np.concatenate([a, a], -2)[..., : a.shape[-2], :],
    "every other": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "stack inside": lambda a: np.moveaxis(np.moveaxis(a, 0, -2).copy(), -2, 0),
}


@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_a_product_reads_every_layout(arrays, left, right):
    rng = np.random.default_rng(0)
    for stack in ((), (3,), (2, 3)):
        for m, k, n in ((2, 3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 1), (1, 1, 1), (2, 3, 1025)):
            a, b = rng.normal(size=(*stack, m, k)), rng.normal(size=(*stack, k, n))
            a, b = LAYOUTS[left](a), LAYOUTS[right](b)
            for dtype, error in ((np.float64, 1e-14), (np.float32, 1e-6), (np.float16, 1e-3)):
                here = strided(arrays, a.astype(dtype), LAYOUTS[left])
                there = strided(arrays, b.astype(dtype), LAYOUTS[right])
                product = device_product(here, there, arrays)
                assert product.dtype == np.promote_types(dtype, np.float32)
                assert np.linalg.norm(product.get() - a @ b) < error * np.linalg.norm(a @ b)


def strided(xp, array, arrange):
    """Return the array on the device, laid out as `arrange` leaves it."""
    if xp is strict_arrays:
        return strict_arrays.ndarray(arrange(array))
    base = xp.zeros(tuple(2 * n for n in array.shape), array.dtype)
    view = base[tuple(slice(0, n) for n in array.shape)]
    view[...] = xp.asarray(array)
    return view

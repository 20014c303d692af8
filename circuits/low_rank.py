"""Products of two thin matrices, never multiplied out.

A head's circuits have the rank of its width, 64 at 124M, and the size of the stream or of the
vocabulary. As two factors they cost a thousandth, and norms, eigenvalues and singular values come
from matrices as small as the rank. TransformerLens calls this FactoredMatrix.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bpe import shown
from ..gpt2_np import Error
from .inputs import check_numbers
from .short_reprs import Result


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Result):
    """A matrix [n, m] as the product left [n, r] @ right [r, m].

    Leading axes are batches. Row vectors multiply from the left, as in the model: x @ W_V @ W_O.
    A product with a vector is a vector, with a matrix a LowRank.
    """

    left: np.ndarray
    right: np.ndarray
    __array_ufunc__ = None  # array @ LowRank is our __rmatmul__, not NumPy's

    def __post_init__(self):
        check_product(self.left, self.right)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def T(self) -> LowRank:
        return LowRank(self.right.swapaxes(-1, -2), self.left.swapaxes(-1, -2))

    def full(self) -> np.ndarray:
        """Multiply out, [n, m]: a full circuit of 124M takes 10 GB."""
        return self.left @ self.right

    def entries(self, rows: Any, columns: Any) -> np.ndarray:
        """Return the entries of some rows and columns, [rows, columns], each an int or a list.

        Rows and columns of a full circuit are tokens, by id.
        """
        rows, columns = (checked_indices(name, given, n) for name, given, n in
                         zip(("rows", "columns"), (rows, columns), self.shape[-2:], strict=True))
        return self.left[..., rows, :] @ self.right[..., :, columns]

    def __matmul__(self, other: Any) -> LowRank | np.ndarray:
        """Multiply. The product with another LowRank has the smaller of the two ranks."""
        other = other if isinstance(other, LowRank) else np.asarray(other)
        check_product(self, other)
        if not isinstance(other, LowRank):
            right = self.right @ other
            if other.ndim > 1:
                return LowRank(self.left, right)
            return (self.left @ right[..., None])[..., 0]  # a batch gives a batch of vectors
        middle = self.right @ other.left
        if self.left.shape[-1] <= other.left.shape[-1]:
            return LowRank(self.left, middle @ other.right)
        return LowRank(self.left @ middle, other.right)

    def __rmatmul__(self, other: Any) -> LowRank | np.ndarray:
        return self.T @ other if np.ndim(other) == 1 else (self.T @ np.swapaxes(other, -1, -2)).T

    def eigenvalues(self) -> np.ndarray:
        """Return the r eigenvalues that can differ from 0, complex: those of right @ left.

        Raises Error if the matrix is not square.
        """
        if self.shape[-2] != self.shape[-1]:
            raise Error(f"a matrix of shape {self.shape} has no eigenvalues: it is not square")
        inner = self.right @ self.left
        check_numbers("the matrix's factors", inner)
        return np.linalg.eigvals(inner)

    def svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return u [n, r], singular values [r] from the largest, and vt [r, m]."""
        q_left, r_left = np.linalg.qr(self.left)
        q_right, r_right = np.linalg.qr(self.right.swapaxes(-1, -2))
        inner = r_left @ r_right.swapaxes(-1, -2)
        check_numbers("the matrix's factors", inner)
        u, values, vt = np.linalg.svd(inner, full_matrices=False)
        return q_left @ u, values, vt @ q_right.swapaxes(-1, -2)

    def norm(self) -> np.ndarray:
        """Return the Frobenius norm."""
        inner = triangle(self.left) @ triangle(self.right.swapaxes(-1, -2)).swapaxes(-1, -2)
        return np.linalg.norm(inner, axis=(-2, -1))


def checked_indices(name, given, n):
    """Return an int or a list of ints as an array of indices below n."""
    found = np.atleast_1d(given)
    if found.dtype.kind not in "iu":
        raise Error(f"{name} are {shown(given)}: give integers, for tokens token_id(model, text)")
    for index in found[(found < -n) | (found >= n)].tolist()[:1]:
        raise Error(f"there is no {name[:-1]} {index} of {n}, counted from 0")
    return found


def check_product(left, right):
    n_rows = right.shape[-2:][0]  # a vector's length
    if left.shape[-1] != n_rows:
        raise Error(f"no product of shapes {left.shape} and {right.shape}: {left.shape[-1]} "
                    f"columns do not meet {n_rows} rows")


def triangle(matrix):
    """Return R of QR. The orthogonal factor that it leaves out changes no norm."""
    return np.linalg.qr(matrix, mode="r")

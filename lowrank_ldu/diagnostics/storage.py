"""Measure what half precision changes, at every rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.factorization import scaled_product
from lowrank_ldu.decomposition.gram import blocks_of_rows
from lowrank_ldu.diagnostics.measures import frobenius_norm

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend
    from lowrank_ldu.diagnostics.terms import Terms

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
# As for the errors of the terms: the sum of the inner products is accurate unless it is far below their magnitudes.
_SHARE = 1e-6


class StorageErrors:
    r"""Measure the change of L diag(z) U by rounding L and U.

    The change is a sum of two sets of r terms, dL diag(z) U and L' diag(z) dU, with L' = L + dL: its square is a sum
    over the Gram matrices of these, of which a lower rank is the leading part.

    Parameters
    ----------
    terms : Terms
    dtype : {"float16", "bfloat16"}
    backend : Backend
    """

    def __init__(self, terms: Terms, dtype: str, backend: Backend) -> None:
        self._terms, self._backend, self._largest = terms, backend, _LARGEST[dtype]
        self._left, self._right = (self._rounded(array, dtype) for array in (terms.left, terms.right))
        self._products = self._inner_products() if terms.exact and not terms.extreme else None

    def _rounded(self, array: Array, dtype: str) -> Array:
        # From float64 a library may round to float32 first, and rounding twice gives other numbers.
        native = self._backend.rounded(array, dtype) if self._terms.single else None
        return round_to(array, dtype, self._backend) if native is None else native

    def _inner_products(self) -> Array:
        terms = self._terms
        left, right = self._left - terms.left, self._right - terms.right
        cross, own = left.T @ terms.left, left.T @ left
        rounded_gram = terms.left_gram + cross + cross.T + own
        right_cross = terms.right @ right.T
        products = own * terms.right_gram + rounded_gram * (right @ right.T) + 2 * (cross + own) * right_cross
        return products * terms.z[:, None] * terms.z[None, :]

    def at(self, rank: int) -> float:
        """Return the Frobenius norm of the change at a rank.

        inf if an entry of the first `rank` terms overflows the dtype.
        """
        xp, terms = self._backend.xp, self._terms
        left, right = terms.left[:, :rank], terms.right[:rank, :]
        if max(float(xp.max(xp.abs(left))), float(xp.max(xp.abs(right)))) > self._largest:
            return math.inf
        if self._products is not None:
            products = self._products[:rank, :rank]
            square, summed = float(xp.sum(products)), float(xp.sum(xp.abs(products)))
            if square > _SHARE * summed:  # not if it is NaN
                return math.sqrt(square)
        return self._by_difference(rank)

    def _by_difference(self, rank: int) -> float:
        # Two products of small differences: the difference of two products would cancel.
        terms, backend = self._terms, self._backend
        left, z, right = terms.left[:, :rank], terms.z[:rank], terms.right[:rank, :]
        rounded_left, rounded_right = self._left[:, :rank], self._right[:rank, :]
        norms = [
            frobenius_norm(
                scaled_product(rounded_left[rows, :] - left[rows, :], z, right)
                + scaled_product(rounded_left[rows, :], z, rounded_right - right),
                backend,
            )
            for rows in blocks_of_rows((int(left.shape[0]), int(right.shape[1])))
        ]
        return frobenius_norm(backend.xp.asarray(norms, dtype=left.dtype), backend)


def round_to(array: Array, dtype: str, backend: Backend) -> Array:
    """Round an array to the numbers of `dtype`.

    To the nearest, ties to even; the result has the array's own dtype.

    NumPy has no bfloat16, so both are rounded by arithmetic: to a multiple of the spacing at each entry's magnitude.
    """
    xp = backend.xp
    digits, smallest_exponent = {"float16": (11, -14), "bfloat16": (8, -126)}[dtype]
    magnitude = xp.where(array == 0, xp.ones_like(array), xp.abs(array))
    exponent = xp.maximum(xp.floor(xp.log2(magnitude)), xp.full_like(array, smallest_exponent))
    spacing = 2.0 ** (exponent - (digits - 1))
    return xp.round(array / spacing) * spacing

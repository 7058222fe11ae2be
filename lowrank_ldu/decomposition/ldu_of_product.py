"""Factor products of two thin matrices by LDU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.backend import backend_of, full_precision
from lowrank_ldu.backend.pivots import index_vector, order_from
from lowrank_ldu.decomposition.blocks import matrices_of, replace_leading, restore_rows, stacked, take_rows, unit_lower
from lowrank_ldu.decomposition.elimination import Elimination, ZeroPivotError
from lowrank_ldu.decomposition.ldu import LDU, split_and_fold
from lowrank_ldu.decomposition.ldu_at_pivots import check_pivots, eliminate_in_order
from lowrank_ldu.decomposition.powers import balanced, times_power
from lowrank_ldu.validation import check_like, check_matrix, check_representable, dtype_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.backend import Array, ArrayType, Backend

    Pivots = tuple[Sequence[int], Sequence[int]]
    Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
    CheckedPivots = tuple[Indices, Indices]

# What a column may hold that is nothing but rounding, and of what pivots make of it in the whole product.
_ROUNDINGS = 1000
# Units of rounding, in each of r sums of r products, up to which a pivot's column is what a dependent one leaves.
_NOISE = 32
# Share of the product that pivots may lose to rounding, however much it grows with them.
_LOST = 0.01
# Random vectors that the factors are compared by: 4 of them show a tenth of what is lost in all but 2 of 10,000 draws.
_VECTORS = 4


@full_precision()
def ldu_of_product(left: ArrayType, right: ArrayType, *, pivots: Pivots | None = None) -> LDU[ArrayType]:
    """Factor the product left @ right by LDU.

    The product itself, of size m x n, is not formed. Any matrix of rank r is one: what an SVD, a LoRA pair, PiSSA or
    a gradient gives.

    Parameters
    ----------
    left : array, shape (..., m, r)
        Finite, of a library and dtype as for `ldu`.
    right : array, shape (..., r, n)
        Likewise, of the library and dtype of `left`; r is at most min(m, n).
    pivots : (rows, columns), optional
        Two sequences of r indices: the pivots of an earlier factorization, `permutation[:r]` and
        `column_permutation[:r]`, to rebuild it without a search. For a single product.

    Returns
    -------
    LDU
        Of rank r, with origin "product". `reconstruct()` equals left @ right to rounding, also where that has a lower
        rank or is zero. Entries of `lower` are at most 1 in magnitude, but for given pivots.

    Raises
    ------
    TypeError
        An argument is not an array of a supported library, or of another dtype; the two are of different libraries or
        dtypes.
    ValueError
        Shapes do not fit, r is above min(m, n), or entries are not finite; a pivot of the product is beyond the largest
        number of the dtype; `pivots` are out of range, repeated, of another number than r, or not possible in it: a
        pivot is zero above entries that are not, or the factors at them lose a part of the product.

    Notes
    -----
    Cost O(r^2 (m + n)). The columns are those that LU with partial pivoting of right^T takes as its pivots: they span
    all columns of the product. LU with partial pivoting of these r columns, left @ right[:, columns], gives L, and one
    triangular solve the rest of the pivot rows.

    Examples
    --------
    >>> import numpy as np
    >>> factors = ldu_of_product(np.array([[1.0], [2.0]]), np.array([[3.0, 4.0]]))
    >>> factors.permutation, factors.column_permutation, factors.diagonal
    (array([1, 0]), array([1, 0]), array([8.]))
    >>> factors.reconstruct()
    array([[3., 4.],
           [6., 8.]])
    """
    left, backend = check_matrix(left, "left")
    right, _ = check_like(right, left, "right")
    if left.dtype != right.dtype:
        raise TypeError(f"right has dtype {dtype_name(right)}; accepted: {dtype_name(left)}, as left")
    _check_shapes(tuple(left.shape), tuple(right.shape))
    chosen = None if pivots is None else checked_pivots(pivots, left, int(right.shape[-1]), int(left.shape[-1]))
    return product_ldu(left, right, chosen, backend)


def _check_shapes(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    *stack, m, r = left
    if right[:-1] != (*stack, r):
        shown = ", ".join(str(size) for size in (*stack, r, "n"))
        raise ValueError(f"right has shape {right}; accepted: ({shown}), for left of shape {left}")
    if r > min(m, right[-1]):
        raise ValueError(
            f"left has shape {left} and right {right}, r = {r}; accepted: at most {min(m, right[-1])} columns of left"
        )


def checked_pivots(pivots: Pivots, left: Array, n: int, rank: int) -> CheckedPivots:
    """Return rows and columns of pivots as int64 vectors.

    Raises
    ------
    ValueError
        They are no pivots for `rank` steps of a single matrix with the rows of `left` and n columns.
    """
    if left.ndim != 2:
        raise ValueError(f"pivots are given for a stack of shape {tuple(left.shape[:-2])}; accepted: a single matrix")
    try:
        rows, columns = pivots
    except (TypeError, ValueError) as error:
        raise ValueError(f"pivots is {pivots!r}; accepted: a pair (rows, columns)") from error
    checked = []
    for given, size, name in ((rows, int(left.shape[0]), "pivots[0], rows,"), (columns, n, "pivots[1], columns,")):
        checked.append(check_pivots(given, size, name))
        if len(checked[-1]) != rank:
            raise ValueError(f"{name} holds {len(checked[-1])} pivots; accepted: {rank}, the rank")
    return checked[0], checked[1]


def product_ldu(left: Array, right: Array, pivots: CheckedPivots | None, backend: Backend) -> LDU:
    """Return the LDU of left @ right, of checked arguments."""
    if left.ndim > 2:
        pairs = zip(matrices_of(left, backend), matrices_of(right, backend), strict=True)
        parts = [product_ldu(*pair, None, backend) for pair in pairs]
        arrays = ("left", "diagonal", "right", "permutation", "column_permutation")
        stacks = {name: stacked([getattr(part, name) for part in parts], left, backend) for name in arrays}
        return replace(parts[0], **stacks)
    xp = backend.xp
    left, right, exponents = balanced(left, right, backend)
    exponent = xp.max(exponents)
    right = times_power(right, (exponents - exponent)[:, None], backend)
    on_host: list[Array] = []

    def eliminate(right: Array, library: Backend) -> Elimination:
        if library is backend:
            return _eliminate_product(left, right, pivots, backend)
        if not on_host:
            on_host.append(np.asarray(backend.to_numpy(left)).astype(np.float64))
        return _eliminate_product(on_host[0], right, pivots, library)

    factors = split_and_fold(right, eliminate, "partial", backend)
    if pivots is not None:
        _check_nothing_lost(left, right, factors, backend)
    with np.errstate(over="ignore"):
        diagonal = times_power(factors.diagonal, exponent, backend)
    check_representable(diagonal, backend, "the diagonal", "a product whose entries are smaller")
    return replace(factors, diagonal=diagonal, origin="product")


def _check_nothing_lost(left: Array, right: Array, factors: LDU, backend: Backend) -> None:
    """Refuse factors at given pivots that are not the product.

    Their error is estimated from its products with a few random vectors, in O(r (m + n)). Rounding in the product is
    that of its terms, and grows with the entries of the factors.
    """
    parts = (left, right, factors.left, factors.diagonal, factors.right)
    left, right, lower, diagonal, upper = (
        np.asarray(backend.to_numpy(backend.detach(part))).astype(np.float64) for part in parts
    )
    eps = float(backend.xp.finfo(factors.left.dtype).eps)
    vectors = np.random.default_rng(0).standard_normal((right.shape[1], _VECTORS))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        terms = float(np.linalg.norm(left, axis=0) @ np.linalg.norm(right, axis=1))
        images = left @ (right @ vectors) - lower @ (diagonal[:, None] * (upper @ vectors))
        lost = float(np.linalg.norm(images)) / _VECTORS**0.5
        growth = max(1.0, float(np.abs(lower).max())) * max(1.0, float(np.abs(upper).max()))
    # NaN as well.
    if not lost <= min(_ROUNDINGS * eps * growth, _LOST) * terms:
        raise ZeroPivotError(
            f"pivots give factors that are {lost:.3g} off, of a product with terms of size {terms:.3g}; accepted: "
            "pivots that were chosen for this matrix"
        )


def _eliminate_product(left: Array, right: Array, pivots: CheckedPivots | None, backend: Backend) -> Elimination:
    xp = backend.xp
    rank, n = (int(size) for size in right.shape)
    if pivots is None:
        _, order = backend.lu(xp.matrix_transpose(right))
        columns = backend.to_numpy(order)[:rank]
    else:
        columns = pivots[1]
    column_permutation = index_vector(order_from(columns, n), right, backend)
    right = xp.take(right, column_permutation, axis=1)
    panel = left @ right[:, :rank]
    if pivots is None:
        packed, permutation = backend.lu(panel)
        corner = xp.triu(packed[:rank, :])
        lower = unit_lower(packed, backend)
    else:
        permutation = index_vector(order_from(pivots[0], int(left.shape[0])), left, backend)
        lower, corner = _eliminate_panel(take_rows(panel, permutation, backend), backend)
    rows = take_rows(left, permutation[:rank], backend) @ right
    if n > rank:
        rows = backend.solve_triangular(lower[:rank, :], rows, lower=True, unit_diagonal=True)
    # Exact zeros below the diagonal.
    rows = replace_leading(rows, corner, backend)
    return Elimination(permutation, column_permutation, restore_rows(lower, permutation, backend), rows)


def _eliminate_panel(panel: Array, backend: Backend) -> tuple[Array, Array]:
    """Return L (m, r) and D U (r, r) of a panel whose pivots are on its diagonal."""
    # Of many shapes, each of which JAX would compile anew.
    host = panel if backend.in_place else np.asarray(backend.to_numpy(panel))
    library = backend_of(host)
    m, rank = (int(size) for size in host.shape)
    finfo = library.xp.finfo(host.dtype)
    rounding = m * float(finfo.eps) * float(library.xp.max(library.xp.abs(host)))
    noise = rounding * _NOISE * rank / m
    negligible = max(rounding, noise, float(finfo.smallest_normal))
    lower, corner = eliminate_in_order(host, rank, negligible, library, noise=noise)
    # A pivot that would be zero is rounding in a product; so is all of its column where it was chosen for it.
    sizes = np.abs(np.diagonal(library.to_numpy(corner)))
    below = np.abs(library.to_numpy(lower)).max(axis=0) * sizes
    if ((sizes <= rounding) & (below > _ROUNDINGS * rounding)).any():
        raise ZeroPivotError(
            "pivots hold one that is zero to rounding, above entries that are not; accepted: pivots that were chosen "
            "for this matrix"
        )
    if backend.in_place:
        return lower, corner
    return backend.from_numpy(lower, panel), backend.from_numpy(corner, panel)

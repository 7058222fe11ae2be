"""From L and D U to L, diag(z) and U, for every finite matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.blocks import replace_leading

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.backend import Array, Backend


def split_diagonal(
    rows: Array,
    backend: Backend,
    *,
    ceiling: float = math.inf,
    largest_number: float | None = None,
    rounded: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """Split rows (..., r, n) = diag(z) U into z (..., r) and U (..., r, n), written over the rows where that works.

    z is the pivot and U has a unit diagonal, except where no finite U has one: where the pivot is zero and the row is
    not, or so small beside its row that the squares of U would overflow, or where z cannot hold it. There z is
    the row's own largest entry, at most `ceiling`, and U carries pivot / z on its diagonal. A row that is zero
    altogether gets z = 0 and the unit row, so that U stays unit upper trapezoidal.

    Parameters
    ----------
    rows : array
        Upper trapezoidal.
    ceiling : float
        Largest magnitude allowed in z.
    largest_number : float, optional
        Of the dtype that U is meant for; that of `rows` if not given.
    rounded : callable, optional
        Rounds z to what can be stored. U is what remains of the rows then, so that the rounding of z is not enlarged.
    """
    xp = backend.xp
    rank, n = rows.shape[-2:]
    pivot = xp.linalg.diagonal(rows[..., :rank])
    # Reductions without the temporaries of abs(): at this shape fresh memory costs as much as the arithmetic.
    highest, lowest = xp.max(rows, axis=-1), xp.min(rows, axis=-1)
    largest = xp.where(highest >= -lowest, highest, lowest)
    steepest = (float(largest_number or xp.finfo(rows.dtype).max) / (4 * n)) ** 0.5
    ordinary = (xp.abs(largest) / steepest < xp.abs(pivot)) & (xp.abs(pivot) <= ceiling)
    fallback = xp.clip(largest, -ceiling, ceiling)
    if rounded is not None:
        pivot, fallback = rounded(pivot), rounded(fallback)
        ordinary &= pivot != 0
    scale = xp.where(ordinary, pivot, fallback)
    empty = scale == 0
    # A row that z rounds away becomes zero.
    divisor = xp.where(empty, xp.full_like(scale, math.inf), scale)[..., None]
    if backend.in_place:
        rows /= divisor
        upper = rows
    else:
        upper = rows / divisor
    # Written, not left to the division: JAX multiplies by the reciprocal, and x * (1 / x) is not always 1.
    leading = upper[..., :rank]
    unit = xp.eye(rank, dtype=xp.bool, device=scale.device) & (ordinary | empty)[..., None]
    return scale, replace_leading(upper, xp.where(unit, xp.ones_like(leading), leading), backend)

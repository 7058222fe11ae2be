"""From L and D U to L, diag(z) and U, for every finite matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.blocks import replace_leading

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend


def split_diagonal(rows: Array, ceiling: float, backend: Backend) -> tuple[Array, Array]:
    """Split rows (..., r, n) = diag(z) U into z (..., r) and U (..., r, n), written over the rows where that works.

    z is the pivot and U has a unit diagonal, except where no finite U has one: where the pivot is zero and the row is
    not, or so small beside its row that the squares of U would overflow, or where it exceeds `ceiling`. There z is
    the row's own largest entry, at most `ceiling`, and U carries pivot / z on its diagonal. A row that is zero
    altogether gets z = 0 and the unit row, so that U stays unit upper trapezoidal.

    Parameters
    ----------
    rows : array
        Upper trapezoidal.
    ceiling : float
        Largest magnitude allowed in z.
    """
    xp = backend.xp
    rank, n = rows.shape[-2:]
    pivot = xp.linalg.diagonal(rows[..., :rank])
    # Reductions without the temporaries of abs(): at this shape fresh memory costs as much as the arithmetic.
    highest, lowest = xp.max(rows, axis=-1), xp.min(rows, axis=-1)
    largest = xp.where(highest >= -lowest, highest, lowest)
    steepest = (float(xp.finfo(rows.dtype).max) / (4 * n)) ** 0.5
    ordinary = (xp.abs(largest) / steepest < xp.abs(pivot)) & (xp.abs(pivot) <= ceiling)
    scale = xp.where(ordinary, pivot, xp.clip(largest, -ceiling, ceiling))
    empty = largest == 0
    divisor = xp.where(empty, xp.ones_like(scale), scale)[..., None]
    if backend.in_place:
        rows /= divisor
        upper = rows
    else:
        upper = rows / divisor
    # Written, not left to the division: JAX multiplies by the reciprocal, and x * (1 / x) is not always 1.
    leading = upper[..., :rank]
    unit = xp.eye(rank, dtype=xp.bool, device=scale.device) & (ordinary | empty)[..., None]
    return scale, replace_leading(upper, xp.where(unit, xp.ones_like(leading), leading), backend)

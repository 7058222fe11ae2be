"""Convert pivots between permutations and LAPACK's interchanges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.backend.base import Array, Backend


class SubnormalPivotError(ArithmeticError):
    """A pivot of LU is subnormal.

    The matrix has to be scaled first.
    """


def check_pivots(packed: Array, backend: Backend) -> None:
    """Refuse packed factors (..., m, r) with a subnormal pivot.

    Some LAPACKs multiply by its reciprocal, which is infinite. OpenBLAS skips its column, but reports the interchange
    that it has not made: what is left then is below the diagonal, where zeros are below a pivot that is zero.
    """
    rank = packed.shape[-1]
    pivots = np.abs(backend.to_numpy(backend.xp.linalg.diagonal(packed[..., :rank, :])))
    small = pivots < np.finfo(pivots.dtype).smallest_normal
    if small.any():
        below = (np.tril(backend.to_numpy(packed), k=-1) != 0).any(axis=-2)
        if (small & ((pivots != 0) | below)).any():
            raise SubnormalPivotError


def permutation_from_interchanges(interchanges: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """Return p (..., m) with (interchanged A) = A[p].

    Parameters
    ----------
    interchanges : int array, shape (..., r)
        Zero-based: at step j, row j was exchanged with row `interchanges[j]`.
    rows : int
        m, the number of rows.

    Returns
    -------
    int64 array, shape (..., m)

    Examples
    --------
    >>> permutation_from_interchanges(np.array([2, 2]), 3)
    array([2, 0, 1])
    """
    flat = interchanges.reshape(-1, interchanges.shape[-1]).tolist()
    permutations = np.empty((len(flat), rows), dtype=np.int64)
    identity = np.arange(rows)
    for target, swaps in zip(permutations, flat, strict=True):
        # Python integers, and only those that move: r exchanges of array elements would cost ten times as much.
        moved: dict[int, int] = {}
        for step, other in enumerate(swaps):
            moved[step], moved[other] = moved.get(other, other), moved.get(step, step)
        target[:] = identity
        target[list(moved)] = list(moved.values())
    return permutations.reshape(*interchanges.shape[:-1], rows)


def order_from(chosen: Sequence[int] | np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Return the permutation that starts with `chosen` indices.

    The rest of 0..size-1 keeps its order.

    Examples
    --------
    >>> order_from([2, 0], 4)
    array([2, 0, 1, 3])
    """
    first = np.asarray(chosen, dtype=np.int64)
    rest = np.ones(size, dtype=bool)
    rest[first] = False
    return np.concatenate([first, np.flatnonzero(rest)])


def inverse_permutation(order: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the inverse q (..., m) of permutations p (..., m).

    q[p] = 0..m-1 for each of them.

    Examples
    --------
    >>> inverse_permutation(np.array([2, 0, 1]))
    array([1, 2, 0])
    """
    return np.argsort(order, axis=-1)


def index_vector(positions: Sequence[int] | np.ndarray[Any, Any], like: Array, backend: Backend) -> Array:
    """Return positions as int64 on the device of `like`."""
    return backend.from_numpy(np.asarray(positions, dtype=np.int64), like)

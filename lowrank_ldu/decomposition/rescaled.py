"""Factor a matrix whose numbers leave the range of its dtype.

In float64, scaled first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.backend.numpy_backend import NumpyBackend
from lowrank_ldu.backend.pivots import SubnormalPivotError
from lowrank_ldu.decomposition.blocks import split_diagonal
from lowrank_ldu.decomposition.elimination import ElementGrowthError, Elimination, ZeroPivotError
from lowrank_ldu.validation import dtype_name, is_finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.backend import Array, Backend

    _Host = np.ndarray[Any, Any]

# Where the largest entry is brought to, tried in this order. High up nothing is subnormal, and there is room for
# elements to grow a few thousand times; then lower, for those that grow more. float64 holds all that float32 can.
_EXPONENTS = {"float32": (0,), "float64": (1008, 512, 0, -512, -1000)}
# LAPACK multiplies by reciprocals of pivots, which are subnormal for still larger pivots.
_LARGEST_PIVOT = float(np.finfo(np.float64).max) / 8


class DividingBackend(NumpyBackend):
    """Divide by pivots whose reciprocals overflow.

    NumPy's backend, with an LU of single steps where LAPACK's is of no use.
    """

    def lu(self, matrix: Array) -> tuple[Array, Array]:
        """Return packed factors and row permutation of a matrix (m, r)."""
        try:
            return super().lu(matrix)
        except SubnormalPivotError:
            packed = np.array(matrix)
        m, r = packed.shape
        permutation = np.arange(m)
        for step in range(min(m, r)):
            chosen = step + int(np.argmax(np.abs(packed[step:, step])))
            pivot = packed[chosen, step]
            if pivot == 0.0:
                continue
            packed[[step, chosen]], permutation[[step, chosen]] = packed[[chosen, step]], permutation[[chosen, step]]
            packed[step + 1 :, step] /= pivot
            packed[step + 1 :, step + 1 :] -= np.outer(packed[step + 1 :, step], packed[step, step + 1 :])
        return packed, permutation


def eliminate_rescaled(
    W: Array, eliminate: Callable[[Array, Backend], Elimination], backend: Backend
) -> tuple[Elimination, Array, Array] | None:
    """Eliminate W (m, n) in float64 and split the diagonal off.

    On the host, scaled by a power of two.

    Parameters
    ----------
    W : array, shape (m, n)
        float32 or float64.
    eliminate : callable
        From a matrix and its backend to the elimination.
    backend : Backend
        Of W.

    Returns
    -------
    elimination : Elimination
        In W's dtype, but for its rows.
    diagonal : array, shape (r,)
    upper : array, shape (r, n)
        All on W's device. None instead of the three where some number is beyond W's dtype at every scale.
    """
    host = np.asarray(backend.to_numpy(W))
    library = DividingBackend()
    largest = int(np.frexp(np.abs(host).max())[1])
    for target in _EXPONENTS[dtype_name(host)]:
        # The entries of float32 stay as they are.
        exponent = target - largest if host.dtype == np.float64 else 0
        try:
            elimination = eliminate(np.ldexp(host.astype(np.float64), exponent), library)
        except (ElementGrowthError, ZeroPivotError):  # at the other end of the range
            continue
        rows = elimination.rows
        if not is_finite(elimination.left, library) or not is_finite(rows, library):
            continue
        if np.abs(rows).max() > _LARGEST_PIVOT:
            continue
        parts = elimination.left.astype(host.dtype), *_split(rows, exponent, host.dtype, library)
        if all(is_finite(part, library) for part in parts):
            left, diagonal, upper = (backend.from_numpy(part, W) for part in parts)
            return _brought_back(replace(elimination, left=left), host.dtype, W, backend), diagonal, upper
    return None


def _split(rows: _Host, exponent: int, dtype: np.dtype[Any], library: Backend) -> tuple[_Host, _Host]:
    """Return z and U in `dtype`.

    Both come from rows that are scaled by 2 ** exponent.
    """
    largest_number = float(np.finfo(dtype).max)

    def stored(z: _Host) -> _Host:
        return np.ldexp(z, -exponent).astype(dtype)

    z, upper = split_diagonal(
        rows,
        library,
        ceiling=float(np.ldexp(largest_number, exponent)),
        largest_number=largest_number,
        rounded=lambda z: np.ldexp(stored(z).astype(np.float64), exponent),
    )
    return stored(z), upper.astype(dtype)


def _brought_back(elimination: Elimination, dtype: np.dtype[Any], W: Array, backend: Backend) -> Elimination:
    columns, runner_up = elimination.column_permutation, elimination.runner_up
    return replace(
        elimination,
        permutation=backend.from_numpy(elimination.permutation, W),
        column_permutation=None if columns is None else backend.from_numpy(columns, W),
        runner_up=None if runner_up is None else backend.from_numpy(runner_up.astype(dtype), W),
    )

"""Measure what is left with the best core between leading terms' factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from lowrank_ldu.decomposition.gram import blocks_of_rows
from lowrank_ldu.diagnostics.measures import frobenius_norm, independent_cholesky

if TYPE_CHECKING:
    import numpy.typing as npt

    from lowrank_ldu.backend import Array
    from lowrank_ldu.diagnostics.rank_errors import RankErrors
    from lowrank_ldu.diagnostics.target import Target
    from lowrank_ldu.diagnostics.terms import Terms

# As for the other errors: below this share of sums of squares, float64 leaves too few digits of their difference.
_SHARE = 1e-4
# A unit column that stands out of the span of the earlier ones by less than this (squared) is left to QR: Cholesky
# factors of Gram matrices lose as many digits as it has zeros, so that ten are left.
_INDEPENDENT = 1e-6


class CoreErrors:
    r"""Measure min over K (r, r) of \|W - L K U\|_F for the first r terms.

    With orthonormal bases A of the columns of L and B of the rows of U, K is best where L K U = A C B^T with
    C = A^T W B, and the squared error is \|W\|^2 - \|C\|^2. Bases whose leading columns span the leading columns serve
    every lower rank: C of a lower rank is its leading part. The Cholesky factors of the Gram matrices give such a C
    from L^T W U^T, without the bases; QR gives them where columns depend on each other or little is left.

    Parameters
    ----------
    target : Target
        What was factored.
    terms : Terms
        All of its terms.
    errors : RankErrors
        Of the same terms: it has W's products with them.
    """

    def __init__(self, target: Target, terms: Terms, errors: RankErrors) -> None:
        self._target, self._terms, self._errors, self._backend = target, terms, errors, target.backend
        self._bases: tuple[Array, Array, Array] | None = None
        self._held: npt.NDArray[np.float64] = np.empty(0)
        self._looked_at = 0

    def at(self, rank: int) -> float:
        """Return the Frobenius error at a rank, in the target's unit."""
        if self._target.in_range:
            held = self._held_up_to(rank)
            if rank <= len(held):
                square = self._target.energy - float(held[rank - 1])
                if square > _SHARE * self._target.energy:
                    return float(square**0.5)
        return self._by_bases(rank)

    def squares(self, least: float) -> npt.NDArray[np.float64]:
        """Return the squared errors at all ranks.

        Rounding may take all of an error below about 1e-7 of W's norm, and leave less than nothing of it. NaN where it
        is not looked for: from where an error is at most `least`, in the target's unit; and for the zero matrix.
        """
        rank = int(self._terms.unit_z.shape[0])
        found = np.full(rank, np.nan)
        if not self._target.in_range:
            return found
        energy = self._target.energy
        held = self._held_up_to(rank)
        squares = energy - held
        # Errors do not increase along the rank.
        clear = int(np.count_nonzero(squares > _SHARE * energy))
        found[:clear] = squares[:clear]
        if clear < rank and not (clear and squares[clear - 1] <= least**2):
            core = np.asarray(self._backend.to_numpy(self._bases_of(rank)[1]))[:rank, :rank]
            found[clear:] = (energy - _leading_energies(core))[clear:]
        return found

    def _held_up_to(self, rank: int) -> npt.NDArray[np.float64]:
        if rank > self._looked_at:
            self._held, self._looked_at = self._energies(rank), rank
        return self._held

    def _energies(self, rank: int) -> npt.NDArray[np.float64]:
        """Return |C|^2 at the ranks 1, 2, ... up to `rank`, as far as columns are independent."""
        to_numpy = self._backend.to_numpy
        cross = np.asarray(to_numpy(self._errors.cross))[:rank, :rank]
        for gram in (self._terms.unit_left_gram, self._terms.unit_right_gram):
            triangle, size = independent_cholesky(np.asarray(to_numpy(gram))[:rank, :rank], _INDEPENDENT)
            count = len(triangle)
            if not count:
                return np.empty(0)
            # The second time around the columns are in the rows.
            solved = scipy.linalg.solve_triangular(
                triangle, cross[:count] / size[:count, None], lower=True, check_finite=False
            )
            cross = solved.T
        count = min(cross.shape)
        return _leading_energies(cross[:count, :count])

    def _by_bases(self, rank: int) -> float:
        left, core, right = self._bases_of(rank)
        left, core, right = left[:, :rank], core[:rank, :rank], right[:, :rank]
        target, backend = self._target, self._backend
        if target.in_range:
            square = target.energy - float(backend.xp.sum(core * core))
            if square > _SHARE * target.energy:
                return float(square**0.5)
        norms = [
            frobenius_norm(target.block(rows) - left[rows, :] @ core @ right.T, backend)
            for rows in blocks_of_rows(target.W.shape)
        ]
        return frobenius_norm(backend.xp.asarray(norms, dtype=left.dtype), backend)

    def _bases_of(self, rank: int) -> tuple[Array, Array, Array]:
        """Return A (m, s), C (s, s) and B (n, s) for some s >= rank."""
        if self._bases is None or int(self._bases[1].shape[0]) < rank:
            left = self._orthonormal(self._terms.unit_left[:, :rank])
            right = self._orthonormal(self._terms.unit_right[:rank, :].T)
            core = sum(
                left[rows, :].T @ (self._target.block(rows) @ right) for rows in blocks_of_rows(self._target.W.shape)
            )
            self._bases = left, core, right
        return self._bases

    def _orthonormal(self, columns: Array) -> Array:
        """Return orthonormal columns, zeros for those that depend on the ones before."""
        xp = self._backend.xp
        basis, triangle = xp.linalg.qr(columns)
        sizes = xp.sqrt(xp.sum(triangle * triangle, axis=0))
        rounding = float(xp.finfo(columns.dtype).eps) * max(columns.shape)
        independent = xp.abs(xp.linalg.diagonal(triangle)) > rounding * sizes
        return basis * xp.astype(independent, columns.dtype)


def _leading_energies(core: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sums of squares of the leading 1 x 1, 2 x 2, ... parts of a square matrix."""
    squares = core * core
    return np.diagonal(squares.cumsum(axis=0).cumsum(axis=1))

"""Measure what is left with the best core between leading terms' factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.gram import blocks_of_rows
from lowrank_ldu.diagnostics.measures import frobenius_norm

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array
    from lowrank_ldu.diagnostics.target import Target
    from lowrank_ldu.diagnostics.terms import Terms

# As for the other errors: below this share of sums of squares, float64 leaves too few digits of their difference.
_SHARE = 1e-4


class CoreErrors:
    r"""Measure min over K (r, r) of \|W - L K U\|_F for the first r terms.

    With the orthonormal bases A of the columns of L and B of the rows of U, K is best where L K U = A C B^T with
    C = A^T W B, and the squared error is \|W\|^2 - \|C\|^2. QR gives bases whose leading columns span the leading
    columns, so that those of one rank serve every lower one: C of a lower rank is its leading part.

    Parameters
    ----------
    target : Target
        What was factored.
    terms : Terms
        All of its terms.
    """

    def __init__(self, target: Target, terms: Terms) -> None:
        self._target, self._terms, self._backend = target, terms, target.backend
        self._bases: tuple[Array, Array, Array] | None = None

    def at(self, rank: int) -> float:
        """Return the Frobenius error at a rank, in the target's unit."""
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

"""Measure the errors of leading terms at many ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from lowrank_ldu.decomposition.factorization import scaled_product
from lowrank_ldu.decomposition.gram import blocks_of_rows, refit_diagonal, wide
from lowrank_ldu.diagnostics.measures import frobenius_norm, independent_cholesky, largest_eigenvalue, spectral_norm

if TYPE_CHECKING:
    import numpy.typing as npt

    from lowrank_ldu.backend import Array
    from lowrank_ldu.decomposition import Factorization
    from lowrank_ldu.diagnostics.target import Target
    from lowrank_ldu.diagnostics.terms import Terms

# A squared error is the difference of sums of squares. Where it is more than this share of them, float64 leaves at
# least ten digits of it; below, it is taken from the difference of the matrices itself.
_FROBENIUS_SHARE = 1e-4
# The same for spectral errors, with eight digits: they are often much smaller than Frobenius errors.
_SPECTRAL_SHARE = 1e-6
# A unit term that stands out of the span of the earlier ones by less than this (squared) is hardly independent: the
# square root of eps leaves a Cholesky factor half of its digits.
_INDEPENDENT = 1e-8

# Products of float32 are a projection to about 1e-6: this leaves four digits of a squared error.
_PROJECTED_SHARE = 1e-2

# Largest entries of weights whose best diagonal float32 can be expected to hold.
_ORDINARY = (2.0**-100, 2.0**100)


@dataclass(frozen=True)
class Norms:
    """Hold the norms of W minus some terms.

    The spectral one is None if it was not asked for.
    """

    frobenius: float
    spectral: float | None


class ProjectedErrors:
    r"""Measure the error of factors whose product is a projection of W.

    On its own columns or rows: no matrix of these columns, or rows, is nearer to W, so that neither another diagonal
    nor a core is. The squared error is \|W\|^2 - z^T G z, without a product with W.

    Parameters
    ----------
    target : Target
        What was factored.
    factors : Factorization
        Of `ldu_lowrank`.
    terms : Terms
    """

    def __init__(self, target: Target, factors: Factorization, terms: Terms) -> None:
        self._target, self._factors, self._terms = target, factors, terms

    def at(self, rank: int) -> tuple[Norms, Norms]:
        """Return the norms of the error at the rank of the factors, twice: with their own and the best diagonal."""
        z = self._terms.unit_z
        if rank == int(z.shape[0]) and self._target.in_range:
            square = self._target.energy - float(z @ self._terms.unit_gram @ z)
            if square > _PROJECTED_SHARE * self._target.energy:
                return (Norms(square**0.5, None),) * 2
        return RankErrors(self._target, self._factors, self._terms).at(rank)


class RankErrors:
    r"""Measure the errors of the first r terms, for any r.

    With G the Gram matrix of the terms and h_i = l_i^T W u_i, the squared error is \|W\|^2 - 2 z^T h + z^T G z, for
    the factorization's own z and for the best one, G^-1 h. For other ranks these are leading parts of the same arrays.
    The spectral norm follows from the smaller Gram matrix of the error, which is that of W with a change of rank 2 r.

    Parameters
    ----------
    target : Target
        What was factored.
    factors : Factorization
    terms : Terms
        All of its terms.
    """

    def __init__(self, target: Target, factors: Factorization, terms: Terms) -> None:
        self._target, self._factors, self._terms = target, factors, terms
        self._W, self._backend, self._spectral = target.W, target.backend, target.spectral

    def at(self, rank: int) -> tuple[Norms, Norms]:
        """Return the norms of the error at a rank.

        Of the first `rank` terms, with their own and with their best diagonal.
        """
        plain = self._by_gram(rank, self._terms.unit_z[:rank])
        best = self._best_diagonal(rank)
        refit = None if best is None else self._by_gram(rank, best)
        if plain is None:
            plain = self._by_difference(self._terms.unit_z[:rank])
        if refit is None:
            refit = self._by_difference(self._refit(rank))
        return plain, refit

    def squares(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the squared Frobenius errors at all ranks.

        Of the first 1, 2, ... r terms, with their own and with the best diagonal.

        Rounding may take all of an error below about 1e-8, and leave less than nothing of it. NaN from where terms
        depend on each other too closely, and for the zero matrix.
        """
        unknown = np.full(int(self._terms.unit_z.shape[0]), np.nan)
        if not self._target.in_range:
            return unknown, unknown
        energy = self._target.energy
        z, gram, overlap = (
            np.asarray(self._backend.to_numpy(array))
            for array in (self._terms.unit_z, self._terms.unit_gram, self._overlap)
        )
        products = gram * z[:, None] * z[None, :]
        steps = np.diagonal(products) + 2 * np.tril(products, -1).sum(axis=1) - 2 * z * overlap
        refit = unknown.copy()
        refit[: len(self._held)] = energy - self._held
        return energy + np.cumsum(steps), refit

    def shares(self) -> npt.NDArray[np.float64]:
        """Return the shares of W's energy at all ranks.

        Of the first 1, 2, ... r terms with their best diagonal.

        NaN from where terms depend on each other too closely, and for the zero matrix.
        """
        shares = np.full(int(self._terms.unit_z.shape[0]), np.nan)
        if self._target.in_range:
            shares[: len(self._held)] = np.clip(self._held / self._target.energy, 0.0, 1.0)
        return shares

    def residual(self, rank: int) -> float:
        """Return the Frobenius error at a rank.

        Of the first `rank` terms with their best diagonal.

        From the difference of the matrices, by least squares of least norm: it answers whatever the terms are.
        """
        return self._difference_norm(self._refit(rank))

    @cached_property
    def _projection(self) -> Array:
        """T (k, r): W U^T or W^T L, whichever is smaller."""
        backend = self._backend
        parts: list[Array] = []
        for rows in blocks_of_rows(self._W.shape):
            block = self._target.block(rows)
            if self._by_rows:
                parts.append(block @ self._terms.unit_right.T)
            else:
                part = block.T @ self._terms.unit_left[rows, :]
                parts = [parts[0] + part] if parts else [part]
        return backend.xp.concat(parts) if self._by_rows else parts[0]

    @property
    def _by_rows(self) -> bool:
        return bool(self._W.shape[0] <= self._W.shape[1])

    @cached_property
    def _side(self) -> tuple[Array, Array]:
        """The factor (k, r) of the projection's side.

        With it comes the Gram matrix (r, r) of the other factor. The side is that of `_projection`.
        """
        if self._by_rows:
            return self._terms.unit_left, self._terms.unit_right_gram
        return self._terms.unit_right.T, self._terms.unit_left_gram

    @cached_property
    def cross(self) -> Array:
        """L^T W U^T of the unit factors, shape (r, r)."""
        cross = self._side[0].T @ self._projection
        return cross if self._by_rows else cross.T

    @cached_property
    def _overlap(self) -> Array:
        """h, shape (r,)."""
        return self._backend.xp.sum(self._side[0] * self._projection, axis=0)

    @cached_property
    def _cholesky(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Cholesky factor of the unit terms' Gram matrix, and norms.

        Of as many leading terms as are independent of each other by far more than rounding.
        """
        return independent_cholesky(np.asarray(self._backend.to_numpy(self._terms.unit_gram)), _INDEPENDENT)

    @cached_property
    def _held(self) -> npt.NDArray[np.float64]:
        """Squares of W's projections on the leading terms.

        On the first 1, 2, ... terms, as many as `_cholesky` answers for.
        """
        triangle, size = self._cholesky
        count = len(triangle)
        overlap = np.asarray(self._backend.to_numpy(self._overlap))[:count]
        solved = scipy.linalg.solve_triangular(triangle, overlap / size[:count], lower=True)
        return np.cumsum(solved * solved)

    def _best_diagonal(self, rank: int) -> Array | None:
        """Return the best diagonal G^-1 h of the leading terms.

        None where they depend on each other too closely for this way.
        """
        if not self._target.in_range:
            return None
        triangle, size = self._cholesky
        if len(triangle) < rank:
            return None
        overlap = np.asarray(self._backend.to_numpy(self._overlap))[:rank]
        solved = scipy.linalg.cho_solve((triangle[:rank, :rank], True), overlap / size[:rank], check_finite=False)
        return self._backend.from_numpy(solved / size[:rank], self._terms.unit_z)

    def _by_gram(self, rank: int, z: Array) -> Norms | None:
        """Return the norms of the error for a diagonal z (rank,).

        None where rounding would leave too little of them.
        """
        if not self._target.in_range:
            return None
        xp = self._backend.xp
        overlap, gram = self._overlap[:rank], self._terms.unit_gram[:rank, :rank]
        square = self._target.energy - 2 * float(z @ overlap) + float(z @ gram @ z)
        magnitude = xp.abs(z)
        summed = (
            self._target.energy
            + 2 * float(xp.sum(magnitude * xp.abs(overlap)))
            + float(magnitude @ xp.abs(gram) @ magnitude)
        )
        if not square > _FROBENIUS_SHARE * summed:  # NaN as well
            return None
        if not self._spectral:
            return Norms(square**0.5, None)
        factor, other = self._side
        scaled = factor[:, :rank] * z[None, :]
        half = self._projection[:, :rank] - 0.5 * (scaled @ other[:rank, :rank])
        change = half @ scaled.T
        top = largest_eigenvalue(self._target.gram - change - change.T, self._backend)
        return Norms(square**0.5, top**0.5) if top > _SPECTRAL_SHARE * summed else None

    def _refit(self, rank: int) -> Array:
        """Return the best diagonal (rank,) as `Factorization.refit` finds it."""
        terms, target = self._terms, self._target
        if target.exponent == 0 and not terms.extreme and _ORDINARY[0] < target.largest < _ORDINARY[1]:
            return wide(self._factors.truncate(rank).refit(self._W).diagonal, self._backend)
        # The factors' dtype may not hold the diagonal, so it is not rounded to it.
        return refit_diagonal(target.wide, terms.unit_left[:, :rank], terms.unit_z[:rank], terms.unit_right[:rank, :])

    def _by_difference(self, z: Array) -> Norms:
        backend, terms = self._backend, self._terms
        rank = int(z.shape[0])
        left, right = terms.unit_left[:, :rank], terms.unit_right[:rank, :]
        if self._spectral:
            error = self._target.wide - scaled_product(left, z, right)
            return Norms(frobenius_norm(error, backend), spectral_norm(error, backend))
        return Norms(self._difference_norm(z), None)

    def _difference_norm(self, z: Array) -> float:
        backend, terms = self._backend, self._terms
        rank = int(z.shape[0])
        left, right = terms.unit_left[:, :rank], terms.unit_right[:rank, :]
        norms = [
            frobenius_norm(self._target.block(rows) - scaled_product(left[rows, :], z, right), backend)
            for rows in blocks_of_rows(self._W.shape)
        ]
        return frobenius_norm(backend.xp.asarray(norms, dtype=left.dtype), backend)

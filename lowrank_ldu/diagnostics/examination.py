"""Examine one factorization beside its target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from lowrank_ldu.backend import Array, Backend, backend_of, full_precision
from lowrank_ldu.decomposition import LDU, Factorization
from lowrank_ldu.decomposition.gram import wide
from lowrank_ldu.diagnostics.core_errors import CoreErrors
from lowrank_ldu.diagnostics.cost import apply_flops, factor_flops
from lowrank_ldu.diagnostics.measures import (
    condition_number,
    condition_of_factor,
    frobenius_norm,
    orthogonality_defect,
    quiet,
)
from lowrank_ldu.diagnostics.rank_errors import Norms, ProjectedErrors, RankErrors
from lowrank_ldu.diagnostics.record import Diagnostics
from lowrank_ldu.diagnostics.storage import StorageErrors
from lowrank_ldu.diagnostics.terms import Terms
from lowrank_ldu.validation import check_rank, dtype_name

if TYPE_CHECKING:
    import numpy.typing as npt

    from lowrank_ldu.diagnostics.target import Target


_BFLOAT16_TIE = 2.0**-8


class Examination:
    """Measure a factorization of a target at any rank.

    Parameters
    ----------
    target : Target
        What was factored.
    factors : Factorization
        From `ldu`, `svd` or `pissa`.
    projected : bool
        Whether the factors of `ldu_lowrank` are measured as what they are to rounding, a projection of W, so that
        neither another diagonal nor a core does better. Without a product with W: for their own rank, without curves.

    Raises
    ------
    TypeError, ValueError
        `factors` is no factorization, of another library, or of another shape; the target knows fewer singular values
        than the factorization has terms.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_ldu import ldu
    >>> from lowrank_ldu.diagnostics import Target
    >>> W = np.array([[4.0, 0.0], [0.0, 3.0]])
    >>> examination = Examination(Target(W), ldu(W))
    >>> examination.at(1).frobenius_error
    0.6
    >>> examination.curve()[0]
    array([0.6, 0. ])
    """

    @full_precision()
    def __init__(self, target: Target, factors: Factorization, *, projected: bool = False) -> None:
        factors = target.matching(factors)
        self._target, self._factors, self._backend = target, factors, target.backend
        with quiet():
            self._terms = Terms(factors, self._backend, target.exponent)
            self._errors = RankErrors(target, factors, self._terms)
            self._cores = CoreErrors(target, self._terms, self._errors)
            self._projected = ProjectedErrors(target, factors, self._terms) if projected else None
            self._storage = {
                dtype: StorageErrors(self._terms, dtype, self._backend) for dtype in ("float16", "bfloat16")
            }

    @full_precision()
    def at(self, rank: int, *, core: bool = True) -> Diagnostics:
        """Return the figures of the first `rank` terms.

        Without `core`, all but the error with the best core, which takes two QR decompositions.

        Raises
        ------
        TypeError, ValueError
            `rank` is no integer from 1 to the rank of the factorization; the target does not know as many values.
        """
        rank = check_rank(rank, self._factors.rank)
        known = int(self._target.scaled_values.shape[0])
        if known < rank:
            raise ValueError(f"rank is {rank}; accepted: at most {known}, the leading_values that are known")
        with quiet():
            figures = self._measure(rank, core=core)
        unknown = [name for name, value in vars(figures).items() if isinstance(value, float) and math.isnan(value)]
        if unknown:
            raise ValueError(
                f"{unknown[0]} at rank {rank} cannot be measured: numbers leave the range of float64; accepted: a "
                "matrix and factors of moderate numbers"
            )
        return figures

    @property
    @full_precision()
    def gram(self) -> Array:
        """G (r, r), the metric of the diagonal, as `gram_matrix` gives it."""
        return self._terms.gram

    @full_precision()
    def curve(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        r"""Return the relative Frobenius errors at all ranks.

        Of the first 1, 2, ... terms, with their own and with the best diagonal.

        From sums of squares at all ranks at once: rounding below about 1e-7. NaN where terms depend on each other so
        closely that this way has no answer; 0 for the zero matrix.
        """
        norm = self._target.scaled_frobenius_norm
        if norm == 0.0:
            nothing = np.zeros(self._factors.rank)
            return nothing, nothing.copy()
        with quiet():
            plain, refit = (np.sqrt(np.maximum(squares, 0.0)) / norm for squares in self._errors.squares())
        return plain, refit

    @full_precision()
    def core_curve(self, least: float = 0.0) -> npt.NDArray[np.float64]:
        r"""Return the relative Frobenius errors with the best core, at all ranks.

        From sums of squares at all ranks at once: rounding below about 1e-7. 0 for the zero matrix.

        Parameters
        ----------
        least : float
            The least error of interest: what comes after an error of at most this may be NaN, which saves two QR
            decompositions.

        Examples
        --------
        >>> import numpy as np
        >>> from lowrank_ldu import ldu
        >>> from lowrank_ldu.diagnostics import Target
        >>> W = np.array([[4.0, 0.0], [0.0, 3.0]])
        >>> Examination(Target(W), ldu(W)).core_curve()
        array([0.6, 0. ])
        """
        norm = self._target.scaled_frobenius_norm
        if norm == 0.0:
            return np.zeros(self._factors.rank)
        with quiet():
            squares = self._cores.squares(least * norm)
        return np.sqrt(np.maximum(squares, 0.0)) / norm

    def _measure(self, rank: int, *, core: bool) -> Diagnostics:
        m, n = self._factors.shape
        target, terms = self._target, self._terms
        size = int(self._backend.xp.finfo(self._factors.left.dtype).bits) // 8
        norm = target.scaled_frobenius_norm
        leading = self._factors.truncate(rank)
        errors = _errors(rank, target, self._errors if self._projected is None else self._projected)
        best_core: float | None = None
        if core:
            # Square factors span everything, so that a core has nothing to add to what is rounding.
            full = rank == target.full_rank or self._projected is not None
            best_core = errors["refit_frobenius_error"] if full else _relative(self._cores.at(rank), norm)
        return Diagnostics(
            method=_method(leading),
            pivoting=leading.pivoting if isinstance(leading, LDU) and leading.origin == "weight" else None,
            m=m,
            n=n,
            rank=rank,
            dtype=dtype_name(leading.left),
            **errors,
            core_frobenius_error=best_core,
            **_conditioning(rank, terms, self._backend),
            **_pivots(target, leading, terms.z[:rank], self._backend),
            storage_error_float16=_relative(self._storage["float16"].at(rank), norm),
            storage_error_bfloat16=_relative(self._storage["bfloat16"].at(rank), norm),
            factor_flops=factor_flops(leading, rank),
            apply_flops=apply_flops(m, n, rank),
            dense_apply_flops=2 * m * n,
            factor_bytes=size * (rank * (m + n) + rank),
            dense_bytes=size * m * n,
        )


def _method(factors: Factorization) -> str:
    """Return the name of the method that gave some factors."""
    if isinstance(factors, LDU) and factors.origin != "weight":
        return {"product": "ldu_of_product", "lowrank": "ldu_lowrank"}[factors.origin]
    return type(factors).__name__.lower()


def _relative(value: float, norm: float) -> float:
    return 0.0 if value == 0.0 else value / norm if norm else math.inf


class _Errors(TypedDict):
    frobenius_norm: float
    spectral_norm: float
    frobenius_error: float
    spectral_error: float | None
    refit_frobenius_error: float
    refit_spectral_error: float | None
    zero_frobenius_error: float
    zero_spectral_error: float
    svd_frobenius_error: float
    svd_spectral_error: float | None


def _errors(rank: int, target: Target, errors: RankErrors | ProjectedErrors) -> _Errors:
    frobenius, spectral = target.scaled_frobenius_norm, target.scaled_spectral_norm
    plain, refit = errors.at(rank)

    def of_spectral(value: float | None) -> float | None:
        return None if value is None else _relative(value, spectral)

    best = _best(rank, target)
    return _Errors(
        frobenius_norm=target.frobenius_norm,
        spectral_norm=target.unscaled(spectral),
        frobenius_error=_relative(plain.frobenius, frobenius),
        spectral_error=of_spectral(plain.spectral),
        refit_frobenius_error=_relative(refit.frobenius, frobenius),
        refit_spectral_error=of_spectral(refit.spectral),
        zero_frobenius_error=_relative(frobenius, frobenius),
        zero_spectral_error=_relative(spectral, spectral),
        svd_frobenius_error=_relative(best.frobenius, frobenius),
        svd_spectral_error=of_spectral(best.spectral),
    )


def _best(rank: int, target: Target) -> Norms:
    """Return the norms of the truncated SVD's error."""
    values, norm = target.scaled_values, target.scaled_frobenius_norm
    if int(values.shape[0]) == target.full_rank:
        tail = values[rank:]
        return Norms(frobenius_norm(tail, target.backend), float(tail[0])) if tail.shape[0] else Norms(0.0, 0.0)
    # The energy beyond the leading values is that of the rest.
    held = _relative(frobenius_norm(values[:rank], target.backend), norm)
    return Norms(norm * math.sqrt(max(1.0 - held * held, 0.0)), None)


class _Conditioning(TypedDict):
    condition_left: float
    condition_right: float
    condition_gram: float
    orthogonality_left: float
    orthogonality_right: float


def _conditioning(rank: int, terms: Terms, backend: Backend) -> _Conditioning:
    left_gram, right_gram = terms.left_gram[:rank, :rank], terms.right_gram[:rank, :rank]
    return _Conditioning(
        condition_left=condition_of_factor(left_gram, terms.even_left[:, :rank], backend),
        condition_right=condition_of_factor(right_gram, terms.even_right[:rank, :], backend),
        condition_gram=condition_number(backend.xp.linalg.eigvalsh(left_gram * right_gram), rank, backend),
        orthogonality_left=orthogonality_defect(terms.unit_left_gram[:rank, :rank], backend),
        orthogonality_right=orthogonality_defect(terms.unit_right_gram[:rank, :rank], backend),
    )


class _Pivots(TypedDict):
    growth_factor: float | None
    smallest_pivot: float | None
    largest_pivot: float | None
    zero_pivots: int | None
    closest_runner_up: float | None
    near_ties: int | None
    near_ties_bfloat16: int | None


def _pivots(target: Target, factors: Factorization, z: Array, backend: Backend) -> _Pivots:
    if not isinstance(factors, LDU):
        return _Pivots(
            growth_factor=None,
            smallest_pivot=None,
            largest_pivot=None,
            zero_pivots=None,
            closest_runner_up=None,
            near_ties=None,
            near_ties_bfloat16=None,
        )
    xp = backend.xp
    upper = wide(factors.upper, backend)
    largest_row_entry = float(xp.max(xp.abs(z) * xp.max(xp.abs(upper), axis=1)))
    largest_entry = math.ldexp(target.largest, -target.exponent)
    pivots = xp.abs(z * xp.linalg.diagonal(upper[:, : factors.rank]))
    ratios = xp.where(factors.zero_pivots, xp.zeros_like(pivots), _runner_up(factors, backend))
    tie = factors.rank * float(xp.finfo(factors.left.dtype).eps)
    return _Pivots(
        growth_factor=max(1.0, _relative(largest_row_entry, largest_entry)),
        smallest_pivot=target.unscaled(float(xp.min(pivots))),
        largest_pivot=target.unscaled(float(xp.max(pivots))),
        zero_pivots=_count(factors.zero_pivots, backend),
        closest_runner_up=float(xp.max(ratios)),
        near_ties=_count(ratios >= 1 - tie, backend),
        near_ties_bfloat16=_count(ratios >= 1 - _BFLOAT16_TIE, backend),
    )


def _runner_up(factors: LDU, backend: Backend) -> Array:
    if factors.runner_up is not None:
        return wide(factors.runner_up, backend)
    # With partial pivoting the entries of L below the diagonal are the candidates over the pivot.
    xp = backend_of(factors.lower).xp
    return wide(xp.max(xp.abs(xp.tril(factors.lower, k=-1)), axis=0), backend)


def _count(mask: Array, backend: Backend) -> int:
    return int(backend.xp.sum(backend.xp.astype(mask, backend.xp.int32)))

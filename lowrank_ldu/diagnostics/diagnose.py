"""The figures of a factorisation at each rank asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

from lowrank_ldu.backend import Array, Backend, backend_of
from lowrank_ldu.decomposition import LDU, Factorization, gram_matrix
from lowrank_ldu.decomposition.factorization import scaled_product
from lowrank_ldu.decomposition.gram import wide
from lowrank_ldu.diagnostics.cost import apply_flops, factor_flops
from lowrank_ldu.diagnostics.measures import (
    condition_number,
    frobenius_norm,
    orthogonality_defect,
    spectral_norm,
    storage_error,
)
from lowrank_ldu.diagnostics.record import Diagnostics
from lowrank_ldu.validation import check_like, check_rank, dtype_name

if TYPE_CHECKING:
    from collections.abc import Iterable

_BFLOAT16_TIE = 2.0**-8


def diagnose(
    W: Array, factors: Factorization, ranks: Iterable[int] | None = None, *, singular_values: Array | None = None
) -> list[Diagnostics]:
    """Measure a factorisation of W at each rank, beside the zero matrix and the best possible.

    Parameters
    ----------
    W : array, shape (m, n)
        The matrix that was factored.
    factors : Factorization
        Of W: from `ldu`, `svd` or `pissa`.
    ranks : iterable of int, optional
        Each from 1 to `factors.rank`; the latter alone if not given.
    singular_values : array, shape (k,), optional
        Of W, not increasing, where they are known already; they are the dearest part.

    Returns
    -------
    list of Diagnostics
        In the order of `ranks`.

    Raises
    ------
    TypeError, ValueError
        W as for `ldu`, or a stack; W has another shape than the factors; a rank is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_ldu import ldu
    >>> W = np.array([[4.0, 0.0], [0.0, 3.0]])
    >>> (figures,) = diagnose(W, ldu(W), ranks=[1])
    >>> round(figures.frobenius_error, 3), round(figures.svd_frobenius_error, 3)
    (0.6, 0.6)
    """
    if not isinstance(factors, Factorization):
        raise TypeError(f"factors is a {type(factors).__name__}; accepted: what ldu, svd or pissa returned")
    W, backend = check_like(W, factors.left)
    if W.ndim != 2:
        raise ValueError(f"W has shape {tuple(W.shape)}; accepted: a single matrix (m, n)")
    if tuple(W.shape) != factors.shape:
        raise ValueError(f"W has shape {tuple(W.shape)}; accepted: {factors.shape}, the shape that was factored")
    checked = _check_ranks(ranks, factors.rank)
    target = wide(W, backend)
    if singular_values is None:
        values = backend.xp.linalg.svdvals(target)
    elif backend_of(singular_values, "singular_values") is backend and tuple(singular_values.shape) == (min(W.shape),):
        values = wide(singular_values, backend)
    else:
        raise ValueError(
            f"singular_values has shape {tuple(singular_values.shape)}; accepted: all {min(W.shape)} of W, in an array "
            "of its library"
        )
    norms = (frobenius_norm(target, backend), spectral_norm(target, backend))
    return [_measure(target, factors.truncate(rank), values, norms, backend) for rank in checked]


def _check_ranks(ranks: Iterable[int] | None, largest: int) -> list[int]:
    if ranks is None:
        return [largest]
    try:
        listed = list(ranks)
    except TypeError:
        raise TypeError(f"ranks is {ranks!r}; accepted: an iterable of integers from 1 to {largest}") from None
    if any(rank is None for rank in listed):
        raise TypeError(f"ranks holds None; accepted: integers from 1 to {largest}")
    return [check_rank(rank, largest, "ranks") for rank in listed]


def _measure(
    target: Array, factors: Factorization, values: Array, norms: tuple[float, float], backend: Backend
) -> Diagnostics:
    m, n = factors.shape
    rank = factors.rank
    left, diagonal, right = (wide(array, backend) for array in (factors.left, factors.diagonal, factors.right))
    size = int(backend.xp.finfo(factors.left.dtype).bits) // 8
    return Diagnostics(
        method=type(factors).__name__.lower(),
        pivoting=factors.pivoting if isinstance(factors, LDU) else None,
        m=m,
        n=n,
        rank=rank,
        dtype=dtype_name(factors.left),
        frobenius_norm=norms[0],
        spectral_norm=norms[1],
        **_errors(target, factors, values, norms, backend),
        **_conditioning(left, right, backend),
        **_pivots(target, factors, backend),
        storage_error_float16=_relative(storage_error(left, diagonal, right, "float16", backend), norms[0]),
        storage_error_bfloat16=_relative(storage_error(left, diagonal, right, "bfloat16", backend), norms[0]),
        factor_flops=factor_flops(factors, rank),
        apply_flops=apply_flops(m, n, rank),
        dense_apply_flops=2 * m * n,
        factor_bytes=size * (rank * (m + n) + rank),
        dense_bytes=size * m * n,
    )


def _relative(value: float, norm: float) -> float:
    return 0.0 if value == 0.0 else value / norm if norm else math.inf


class _Errors(TypedDict):
    frobenius_error: float
    spectral_error: float
    refit_frobenius_error: float
    refit_spectral_error: float
    zero_frobenius_error: float
    zero_spectral_error: float
    svd_frobenius_error: float
    svd_spectral_error: float


def _errors(
    target: Array, factors: Factorization, values: Array, norms: tuple[float, float], backend: Backend
) -> _Errors:
    def relative_errors(of: Factorization) -> tuple[float, float]:
        error = target - scaled_product(*(wide(array, backend) for array in (of.left, of.diagonal, of.right)))
        return (
            _relative(frobenius_norm(error, backend), norms[0]),
            _relative(spectral_norm(error, backend), norms[1]),
        )

    plain, refit = relative_errors(factors), relative_errors(factors.refit(target))
    tail = values[factors.rank :]
    best = (frobenius_norm(tail, backend), float(tail[0])) if tail.shape[0] else (0.0, 0.0)
    return _Errors(
        frobenius_error=plain[0],
        spectral_error=plain[1],
        refit_frobenius_error=refit[0],
        refit_spectral_error=refit[1],
        zero_frobenius_error=_relative(norms[0], norms[0]),
        zero_spectral_error=_relative(norms[1], norms[1]),
        svd_frobenius_error=_relative(best[0], norms[0]),
        svd_spectral_error=_relative(best[1], norms[1]),
    )


class _Conditioning(TypedDict):
    condition_left: float
    condition_right: float
    condition_gram: float
    orthogonality_left: float
    orthogonality_right: float


def _conditioning(left: Array, right: Array, backend: Backend) -> _Conditioning:
    xp = backend.xp
    return _Conditioning(
        condition_left=condition_number(xp.linalg.svdvals(left), max(left.shape), backend),
        condition_right=condition_number(xp.linalg.svdvals(right), max(right.shape), backend),
        condition_gram=condition_number(xp.linalg.eigvalsh(gram_matrix(left, right)), left.shape[1], backend),
        orthogonality_left=orthogonality_defect(left.T @ left, backend),
        orthogonality_right=orthogonality_defect(right @ right.T, backend),
    )


class _Pivots(TypedDict):
    growth_factor: float | None
    smallest_pivot: float | None
    largest_pivot: float | None
    zero_pivots: int | None
    closest_runner_up: float | None
    near_ties: int | None
    near_ties_bfloat16: int | None


def _pivots(target: Array, factors: Factorization, backend: Backend) -> _Pivots:
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
    diagonal, upper = wide(factors.diagonal, backend), wide(factors.upper, backend)
    largest_entry = float(xp.max(xp.abs(target)))
    largest_row_entry = float(xp.max(xp.abs(diagonal) * xp.max(xp.abs(upper), axis=1)))
    pivots = xp.abs(diagonal * xp.linalg.diagonal(upper[:, : factors.rank]))
    ratios = xp.where(factors.zero_pivots, xp.zeros_like(pivots), _runner_up(factors, backend))
    tie = factors.rank * float(xp.finfo(factors.left.dtype).eps)
    return _Pivots(
        growth_factor=max(1.0, _relative(largest_row_entry, largest_entry)),
        smallest_pivot=float(xp.min(pivots)),
        largest_pivot=float(xp.max(pivots)),
        zero_pivots=_count(factors.zero_pivots, backend),
        closest_runner_up=float(xp.max(ratios)),
        near_ties=_count(ratios >= 1 - tie, backend),
        near_ties_bfloat16=_count(ratios >= 1 - _BFLOAT16_TIE, backend),
    )


def _runner_up(factors: LDU, backend: Backend) -> Array:
    if factors.runner_up is not None:
        return wide(factors.runner_up, backend)
    # Partial pivoting: what stands below the diagonal of L is each candidate over the pivot.
    xp = backend_of(factors.lower).xp
    return wide(xp.max(xp.abs(xp.tril(factors.lower, k=-1)), axis=0), backend)


def _count(mask: Array, backend: Backend) -> int:
    return int(backend.xp.sum(backend.xp.astype(mask, backend.xp.int32)))

"""The figures of a factorisation at each rank asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from lowrank_ldu.backend import Array, Backend, backend_of
from lowrank_ldu.decomposition import LDU, Factorization
from lowrank_ldu.decomposition.gram import wide
from lowrank_ldu.diagnostics.cost import apply_flops, factor_flops
from lowrank_ldu.diagnostics.measures import (
    condition_number,
    condition_of_factor,
    frobenius_norm,
    orthogonality_defect,
)
from lowrank_ldu.diagnostics.rank_errors import Norms, RankErrors
from lowrank_ldu.diagnostics.record import Diagnostics
from lowrank_ldu.diagnostics.storage import StorageErrors
from lowrank_ldu.diagnostics.target import Target
from lowrank_ldu.diagnostics.terms import Terms
from lowrank_ldu.validation import check_like, check_rank, dtype_name

if TYPE_CHECKING:
    from collections.abc import Iterable

_BFLOAT16_TIE = 2.0**-8


def diagnose(
    W: Array | Target,
    factors: Factorization,
    ranks: Iterable[int] | None = None,
    *,
    singular_values: Array | None = None,
) -> list[Diagnostics]:
    """Measure a factorisation of W at each rank, beside the zero matrix and the best possible.

    Parameters
    ----------
    W : array, shape (m, n), or Target
        The matrix that was factored. A `Target` spares measuring it again for each of several factorisations.
    factors : Factorization
        Of W: from `ldu`, `svd` or `pissa`.
    ranks : iterable of int, optional
        Each from 1 to `factors.rank`; the latter alone if not given.
    singular_values : array, shape (k,), optional
        Of W, as for `Target`; not for a target, which has them.

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
    if isinstance(W, Target):
        if singular_values is not None:
            raise ValueError("singular_values is given with a Target; accepted: to make the Target with them")
        check_like(W.W, factors.left)
        target = W
    else:
        target = Target(check_like(W, factors.left)[0], singular_values=singular_values)
    if tuple(target.W.shape) != factors.shape:
        raise ValueError(f"W has shape {tuple(target.W.shape)}; accepted: {factors.shape}, the shape that was factored")
    checked = _check_ranks(ranks, factors.rank)
    if int(target.values.shape[0]) < max(checked):
        raise ValueError(
            f"leading_values has {int(target.values.shape[0])} of them; accepted: at least {max(checked)}, the "
            "largest rank"
        )
    backend = target.backend
    terms = Terms(factors, backend)
    # NumPy's warnings would speak of what is looked for there, and taken another way.
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        errors = RankErrors(target, factors, terms)
        storage = {dtype: StorageErrors(terms, dtype, backend) for dtype in ("float16", "bfloat16")}
        return [_measure(rank, target, factors, terms, errors=errors, storage=storage) for rank in checked]


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
    rank: int,
    target: Target,
    factors: Factorization,
    terms: Terms,
    *,
    errors: RankErrors,
    storage: dict[str, StorageErrors],
) -> Diagnostics:
    m, n = factors.shape
    size = int(target.backend.xp.finfo(factors.left.dtype).bits) // 8
    norm = target.frobenius_norm
    leading = factors.truncate(rank)
    return Diagnostics(
        method=type(factors).__name__.lower(),
        pivoting=factors.pivoting if isinstance(factors, LDU) else None,
        m=m,
        n=n,
        rank=rank,
        dtype=dtype_name(factors.left),
        **_errors(rank, target, errors),
        **_conditioning(rank, terms, target.backend),
        **_pivots(target.largest, leading, target.backend),
        storage_error_float16=_relative(storage["float16"].at(rank), norm),
        storage_error_bfloat16=_relative(storage["bfloat16"].at(rank), norm),
        factor_flops=factor_flops(leading, rank),
        apply_flops=apply_flops(m, n, rank),
        dense_apply_flops=2 * m * n,
        factor_bytes=size * (rank * (m + n) + rank),
        dense_bytes=size * m * n,
    )


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


def _errors(rank: int, target: Target, errors: RankErrors) -> _Errors:
    frobenius, spectral = target.frobenius_norm, target.spectral_norm
    plain, refit = errors.at(rank)

    def of_spectral(value: float | None) -> float | None:
        return None if value is None else _relative(value, spectral)

    best = _best(rank, target)
    return _Errors(
        frobenius_norm=frobenius,
        spectral_norm=spectral,
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
    """Return the norms of what the truncated SVD leaves."""
    values, norm = target.values, target.frobenius_norm
    if int(values.shape[0]) == target.full_rank:
        tail = values[rank:]
        return Norms(frobenius_norm(tail, target.backend), float(tail[0])) if tail.shape[0] else Norms(0.0, 0.0)
    # What is not in the leading values is in the rest.
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
        condition_left=condition_of_factor(left_gram, terms.left[:, :rank], backend),
        condition_right=condition_of_factor(right_gram, terms.right[:rank, :], backend),
        condition_gram=condition_number(backend.xp.linalg.eigvalsh(left_gram * right_gram), rank, backend),
        orthogonality_left=orthogonality_defect(left_gram, backend),
        orthogonality_right=orthogonality_defect(right_gram, backend),
    )


class _Pivots(TypedDict):
    growth_factor: float | None
    smallest_pivot: float | None
    largest_pivot: float | None
    zero_pivots: int | None
    closest_runner_up: float | None
    near_ties: int | None
    near_ties_bfloat16: int | None


def _pivots(largest_entry: float, factors: Factorization, backend: Backend) -> _Pivots:
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

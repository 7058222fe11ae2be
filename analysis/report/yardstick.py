"""The least error that is possible, as far as it is known, and what to call what says so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.formatting import interval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_ldu.analysis.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.needed_rank import NeededRank


def least_error(matrix: MatrixAnalysis, rank: int) -> tuple[float, float]:
    """Return bounds of the least relative Frobenius error at min(rank, k): equal if the SVD is exact."""
    rank = min(rank, matrix.m, matrix.n)
    figures = (measurement.diagnostics for measurement in matrix.measurements)
    high = next(item.svd_frobenius_error for item in figures if item.rank == rank)
    if matrix.svd_niter is None:
        return high, high
    # Both are of the same bounds of the energy; rounding may exchange them where they meet.
    return min(math.sqrt(max(1.0 - matrix.spectrum.energy_bound[rank], 0.0)), high), high


def energy(matrix: MatrixAnalysis, rank: int) -> str:
    """Return the share of the energy that the best terms of a measured rank hold, as an interval if it is not known."""
    return interval(matrix.spectrum.energy[rank], matrix.spectrum.energy_bound[rank])


def needed_in_words(needed: NeededRank, matrix: MatrixAnalysis) -> str:
    """Return the smallest rank for a target error, or what is known of it."""
    if needed.rank is None:
        return f"> {needed.looked_at}" if needed.method == "ldu" or matrix.svd_niter is None else "unknown"
    return f"≤ {needed.rank}" if needed.method == "svd" and matrix.svd_niter is not None else str(needed.rank)


def svd_name(matrices: Iterable[MatrixAnalysis]) -> str:
    """Return what the SVD of these matrices is: exact, randomised, or of both kinds."""
    kinds = {matrix.svd_niter is None for matrix in matrices}
    if kinds == {True}:
        return "exact SVD"
    return "randomised SVD" if kinds == {False} else "randomised or exact SVD"


def best_name(matrices: Iterable[MatrixAnalysis]) -> str:
    """Return what the error of that SVD is to the least error possible, for a legend."""
    name = svd_name(matrices)
    return f"{name} (best possible)" if name == "exact SVD" else "SVD (upper bound of best)"

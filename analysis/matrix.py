"""Everything that is measured on one weight matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.curves import Curve, ldu_curve, sample_ranks, svd_curve
from lowrank_ldu.analysis.spectrum import Spectrum, summarise_spectrum
from lowrank_ldu.analysis.starts import StartChange, start_changes
from lowrank_ldu.analysis.timing import timed
from lowrank_ldu.decomposition import Pivoting, ldu, pissa, svd
from lowrank_ldu.diagnostics import Diagnostics, diagnose

if TYPE_CHECKING:
    import torch

    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.initialization import Initialization

# As in PEFT's "pissa_niter_4", the quick start that its users take.
PISSA_ITERATIONS = 4


@dataclass(frozen=True)
class Measurement:
    """One method at one rank.

    Attributes
    ----------
    diagnostics : Diagnostics
    seconds : float
        To compute the factors of that rank alone.
    starts : dict of str to StartChange
        LDU only: what each start of a trained diagonal makes of the weight. Empty for other methods.
    """

    diagnostics: Diagnostics
    seconds: float
    starts: dict[Initialization, StartChange] = field(default_factory=dict)


@dataclass(frozen=True)
class MatrixAnalysis:
    """The results for one matrix; plain numbers only, so that the weight itself can go.

    Attributes
    ----------
    m, n : int
        Shape in which the weight was factored.
    spectrum : Spectrum
        Its energy is at the ranks measured.
    svd_seconds : float
        Of the exact SVD, vectors included.
    measurements : list of Measurement
        LDU for each pivoting at each rank, then quick PiSSA at each rank asked for.
    curve_ranks : list of int
        The ranks that the curves are sampled at.
    svd_curve : list of float or None
        Least possible relative Frobenius error there.
    curves : dict of str to Curve
        For each pivoting.
    """

    m: int
    n: int
    spectrum: Spectrum
    svd_seconds: float
    measurements: list[Measurement]
    curve_ranks: list[int]
    svd_curve: list[float | None]
    curves: dict[Pivoting, Curve]

    @property
    def size(self) -> int:
        """Number of entries of the matrix."""
        return self.m * self.n

    def at(self, method: str, rank: int, pivoting: Pivoting | None = None) -> Measurement:
        """Return the measurement of a method at min(rank, k)."""
        wanted = (method, pivoting, min(rank, self.m, self.n))
        found = (
            measurement
            for measurement in self.measurements
            if (measurement.diagnostics.method, measurement.diagnostics.pivoting, measurement.diagnostics.rank)
            == wanted
        )
        return next(found)


def analyse_matrix(W: torch.Tensor, options: SurveyOptions) -> MatrixAnalysis:
    """Factor one matrix by every method and measure the factors.

    Parameters
    ----------
    W : torch.Tensor, shape (m, n)
        Finite, float32 or float64, on the CPU.
    options : SurveyOptions
        Which ranks and pivoting strategies.

    Returns
    -------
    MatrixAnalysis

    Raises
    ------
    RuntimeError
        LAPACK did not converge, or memory ran out.
    """
    m, n = (int(size) for size in W.shape)
    k = min(m, n)
    ranks = options.ranks_of(k)
    exact, svd_seconds = timed(svd, W)
    values = exact.diagonal
    del exact  # its vectors are as large as W
    curve_ranks = sample_ranks(k)
    measurements: list[Measurement] = []
    curves: dict[Pivoting, Curve] = {}
    for pivoting in options.pivoting:
        measured, curves[pivoting] = _ldu(W, pivoting, values, curve_ranks, options)
        measurements += measured
    for rank in sorted({min(rank, k) for rank in options.ranks}):
        measurements.append(_pissa(W, rank, values, options.seed))
    return MatrixAnalysis(
        m=m,
        n=n,
        spectrum=summarise_spectrum(values, ranks),
        svd_seconds=svd_seconds,
        measurements=measurements,
        curve_ranks=curve_ranks,
        svd_curve=svd_curve(values, curve_ranks),
        curves=curves,
    )


def _ldu(
    W: torch.Tensor, pivoting: Pivoting, values: torch.Tensor, curve_ranks: list[int], options: SurveyOptions
) -> tuple[list[Measurement], Curve]:
    """Measure the leading terms of the full factorisation; the time at lower ranks is that of stopping there."""
    ranks, seed = options.ranks_of(min(W.shape)), options.seed
    seconds = [timed(ldu, W, rank, pivoting=pivoting, seed=seed)[1] for rank in ranks[:-1]]
    factors, full_seconds = timed(ldu, W, pivoting=pivoting, seed=seed)
    figures = diagnose(W, factors, ranks, singular_values=values)
    starts = start_changes(factors, ranks, figures[0].frobenius_norm, seed)
    measurements = [Measurement(*measured) for measured in zip(figures, [*seconds, full_seconds], starts, strict=True)]
    return measurements, ldu_curve(W, factors, curve_ranks)


def _pissa(W: torch.Tensor, rank: int, values: torch.Tensor, seed: int) -> Measurement:
    factors, seconds = timed(pissa, W, rank, niter=PISSA_ITERATIONS, seed=seed)
    (diagnostics,) = diagnose(W, factors, singular_values=values)
    return Measurement(diagnostics, seconds)

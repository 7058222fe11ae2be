"""Factor and measure one weight matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lowrank_ldu.analysis.measures.curves import Curve, sample_ranks, sampled
from lowrank_ldu.analysis.measures.estimate import NITER, sketch_width
from lowrank_ldu.analysis.measures.initialization_change import InitializationChange, initialization_changes
from lowrank_ldu.analysis.measures.needed import NeededRank, needed_ranks
from lowrank_ldu.analysis.measures.placed import Placed, host_values
from lowrank_ldu.analysis.measures.recommendation import Recommendation, recommend
from lowrank_ldu.analysis.measures.spectrum import Spectrum  # noqa: TC001  # journals are decoded by the annotations
from lowrank_ldu.analysis.measures.yardstick import (
    cheap_yardstick,
    exact_yardstick,
    fast_yardstick,
    measure_near_best,
)
from lowrank_ldu.decomposition import Pivoting, ldu, pissa
from lowrank_ldu.decomposition.powers import largest_exponent, scaled_by
from lowrank_ldu.diagnostics import Diagnostics, Examination
from lowrank_ldu.diagnostics.record import times_power_of_two
from lowrank_ldu.initialization import Initialization  # noqa: TC001  # journals are decoded by the annotations
from lowrank_ldu.validation import check_count

if TYPE_CHECKING:
    import numpy as np

    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.diagnostics import Target

# As in PEFT's "pissa_niter_4", the quick start that its users take.
PISSA_ITERATIONS = 4


class MethodAtRank(NamedTuple):
    """Identify a method at a rank; the fields are those of its figures."""

    method: str
    pivoting: str | None
    rank: int
    exact: bool = False

    def __str__(self) -> str:
        pivoting = [repr(self.pivoting)] if self.pivoting else []
        return f"({', '.join([repr(self.method), str(self.rank), *pivoting, *['exact=True'] * self.exact])})"


@dataclass(frozen=True)
class Measurement:
    """Hold the figures of one method at one rank.

    Attributes
    ----------
    diagnostics : Diagnostics
    seconds : float or None
        To compute the factors of that rank alone, of a matrix of this shape (`lowrank_ldu.analysis.measures.timing`).
        None if methods were not timed.
    exact : bool
        PiSSA only: from the exact SVD, whose time is part of `seconds`.
    starts : dict of str to InitializationChange
        LDU only: what each start of a trained diagonal makes of the weight. Empty for other methods, and in mode
        "fast" below the largest rank.
    """

    diagnostics: Diagnostics
    seconds: float | None = None
    exact: bool = False
    starts: dict[Initialization, InitializationChange] = field(default_factory=dict)

    @property
    def of(self) -> MethodAtRank:
        """What was measured."""
        figures = self.diagnostics
        return MethodAtRank(figures.method, figures.pivoting, figures.rank, self.exact)


@dataclass(frozen=True)
class MatrixAnalysis:
    """Hold the results for one matrix.

    Plain numbers only, so that the weight itself can be freed.

    Attributes
    ----------
    m, n : int
        Shape in which the weight was factored.
    spectrum : Spectrum
        Its energy is at the ranks measured.
    svd_seconds : float or None
        Of the SVD of a matrix of this shape, vectors included. None if methods were not timed.
    svd_niter : int or None
        Power iterations of the SVD; None if all singular values are known.
    measurements : list of Measurement
        LDU for each pivoting at each rank, then quick PiSSA at each rank asked for, then exact PiSSA if the SVD is,
        then near-best LDU ("ldu_lowrank") at each rank asked for. Mode "fast" has no PiSSA.
    curve_ranks : list of int
        The ranks that the curves are sampled at.
    svd_curve : list of float or None
        Least possible relative Frobenius error there; upper bounds of it if the SVD is not exact.
    curves : dict of str to Curve
        For each pivoting.
    needed : list of NeededRank
        For each target error: of the SVD, of the near-best LDU, and for each pivoting of LDU without and with refit
        and of the best core between its factors.
    recommendation : Recommendation
        For the largest of the target errors.
    """

    m: int
    n: int
    spectrum: Spectrum
    svd_seconds: float | None
    svd_niter: int | None
    measurements: list[Measurement]
    curve_ranks: list[int]
    svd_curve: list[float | None]
    curves: dict[Pivoting, Curve]
    needed: list[NeededRank]
    recommendation: Recommendation

    def __repr__(self) -> str:
        ranks = ", ".join(str(rank) for rank in sorted({each.diagnostics.rank for each in self.measurements}))
        return f"MatrixAnalysis {self.m} x {self.n}, at ranks {ranks}\n  {self.recommendation.reason}"

    @property
    def reaches_full_rank(self) -> bool:
        """Whether LDU was measured to the full rank."""
        return self.curve_ranks[-1] == min(self.m, self.n)

    @property
    def size(self) -> int:
        """Number of entries of the matrix."""
        return self.m * self.n

    def at(self, method: str, rank: int, pivoting: Pivoting | None = None, *, exact: bool = False) -> Measurement:
        """Return the measurement of a method at min(rank, k).

        Raises
        ------
        KeyError
            It was not measured; the message lists what was.
        """
        wanted = MethodAtRank(method, pivoting, min(check_count(rank, "rank"), self.m, self.n), exact)
        for measurement in self.measurements:
            if measurement.of == wanted:
                return measurement
        known = dict.fromkeys(str(measurement.of) for measurement in self.measurements)
        raise KeyError(f"{wanted} was not measured; accepted: {', '.join(known)}")


def analyze_matrix(W: torch.Tensor, options: SurveyOptions) -> MatrixAnalysis:
    """Factor one matrix by every method and measure the factors.

    Parameters
    ----------
    W : torch.Tensor, shape (m, n)
        Finite, float32 or float64, on the device that is to do the work (`lowrank_ldu.analysis.measures.placed`). Where
        its numbers are so large or small that figures would suffer, it is scaled by a power of two first, which is
        exact, and figures in its unit are scaled back.
    options : SurveyOptions
        Which ranks, pivoting strategies and target errors; exact or cheap, and in which dtype.

    Returns
    -------
    MatrixAnalysis

    Raises
    ------
    RuntimeError
        LAPACK did not converge, or memory ran out.
    ValueError
        An entry is not representable in the dtype asked for.
    """
    measured = Placed.of(W).measured
    if options.dtype is not None:
        measured = _converted(measured, options.dtype)
    exponent = _exponent(measured)
    if exponent:
        measured = scaled_by(measured, -exponent)
    analysis = _analyze(Placed(measured.to(W.device), measured), options, exponent)
    return _scaled_back(analysis, exponent) if exponent else analysis


def _exponent(W: torch.Tensor) -> int:
    """Return the exponent e of the largest entry of W.

    It is from 2 ** (e - 1) to 2 ** e; 0 where a few products of such entries stay in range.
    """
    exponent = math.frexp(float(W.abs().max()))[1]
    return exponent if abs(exponent) > largest_exponent(torch, W.dtype) // 2 else 0


def _scaled_back(analysis: MatrixAnalysis, exponent: int) -> MatrixAnalysis:
    """Scale the figures of an analysis by 2 ** exponent."""
    half = exponent // 2
    return replace(
        analysis,
        spectrum=analysis.spectrum.scaled(2.0**half).scaled(2.0 ** (exponent - half)),
        measurements=[
            replace(measurement, diagnostics=measurement.diagnostics.scaled(exponent))
            for measurement in analysis.measurements
        ],
        curves={
            pivoting: replace(curve, pivot=[times_power_of_two(pivot, exponent) for pivot in curve.pivot])
            for pivoting, curve in analysis.curves.items()
        },
    )


def _analyze(placed: Placed, options: SurveyOptions, exponent: int) -> MatrixAnalysis:
    """Analyze a matrix, which is the weight divided by 2 ** exponent."""
    W, measured = placed.factored, placed.measured
    m, n = (int(size) for size in W.shape)
    k = min(m, n)
    asked = sorted({min(rank, k) for rank in options.ranks})
    fast = options.mode == "fast"
    ranks = asked
    if fast:
        known, near_best = fast_yardstick(placed, asked, options.seed)
    else:
        if options.mode == "exact" or sketch_width(asked) >= k:
            ranks = options.ranks_of(k)
            known = exact_yardstick(measured, ranks, asked)
        else:
            known = cheap_yardstick(measured, asked, options.seed)
        near_best = measure_near_best(W, known, asked, options.seed)
    exact, errors = known.exact, known.errors
    last = None if fast else ranks[-1]
    curve_ranks = sample_ranks(ranks[-1])
    measurements: list[Measurement] = []
    curves: dict[Pivoting, Curve] = {}
    needed = needed_ranks(errors[:last], options.targets, (m, n), exact=exact)
    needed += needed_ranks(
        near_best.errors[:last], options.targets, (m, n), method="ldu_lowrank", exact=near_best.exact[:last]
    )
    candidates = list(near_best.measured)
    for pivoting in options.pivoting:
        items, curves[pivoting], found, candidate = _ldu(
            # The same memory, in NumPy, whose small steps cost less; torch is what users would factor with.
            known.target.W if fast and placed.on_host else W,
            known.target,
            pivoting,
            options,
            ranks=ranks,
            curve_ranks=curve_ranks,
            exponent=exponent,
        )
        measurements += items
        needed += found
        candidates.append(candidate)
    if not fast:
        measurements += [_pissa(measured, known.target, rank, options.seed) for rank in asked]
        measurements += [Measurement(figures, exact=True) for figures in known.pissa]
    measurements += map(Measurement, near_best.measured)
    return MatrixAnalysis(
        m=m,
        n=n,
        spectrum=known.spectrum,
        svd_seconds=None,
        svd_niter=None if exact else NITER,
        measurements=measurements,
        curve_ranks=curve_ranks,
        svd_curve=sampled(errors, curve_ranks),
        curves=curves,
        needed=needed,
        recommendation=recommend(needed, candidates, max(options.targets)),
    )


def _converted(W: torch.Tensor, dtype: str) -> torch.Tensor:
    converted = W.to(getattr(torch, dtype))
    if not bool(torch.isfinite(converted).all()):
        raise ValueError(f"it holds entries that are not representable in {dtype}")
    return converted


def _ldu(
    W: torch.Tensor | np.ndarray[Any, Any],
    target: Target,
    pivoting: Pivoting,
    options: SurveyOptions,
    *,
    ranks: list[int],
    curve_ranks: list[int],
    exponent: int,
) -> tuple[list[Measurement], Curve, list[NeededRank], Diagnostics]:
    """Measure the leading terms of one LDU factorization.

    In mode "fast" starts are measured at the largest rank alone.

    The last of what is returned are the figures at the rank that the largest target needs with the best diagonal, or at
    the largest rank if it is not reached.
    """
    seed = options.seed
    fast = options.mode == "fast"
    factors = ldu(W, ranks[-1], pivoting=pivoting, seed=seed)
    examination = Examination(target, factors)
    core_errors = examination.core_curve(least=min(options.targets))
    figures = [examination.at(rank) for rank in ranks]
    diagonal = torch.as_tensor(factors.diagonal).to("cpu")
    starts = initialization_changes(
        diagonal,
        torch.from_numpy(host_values(examination.gram, target)),
        ranks[-1:] if fast else ranks,
        target.frobenius_norm,
        seed,
        exponent=exponent,
    )
    without: list[dict[Initialization, InitializationChange]] = [{}] * (len(ranks) - len(starts))
    measurements = [
        Measurement(measured, starts=changes) for measured, changes in zip(figures, [*without, *starts], strict=True)
    ]
    errors, refit_errors = examination.curve()
    curve = Curve(
        error=sampled(errors, curve_ranks),
        refit_error=sampled(refit_errors, curve_ranks),
        pivot=[abs(float(diagonal[rank - 1])) for rank in curve_ranks],
    )
    # Small errors along a curve lose digits by rounding; the measured figures do not, and replace them.
    for figure in figures:
        errors[figure.rank - 1] = figure.frobenius_error
        refit_errors[figure.rank - 1] = figure.refit_frobenius_error
        core_errors[figure.rank - 1] = figure.core_frobenius_error
    shape = figures[0].m, figures[0].n
    needed = needed_ranks(errors, options.targets, shape, method="ldu", pivoting=pivoting)
    refit = needed_ranks(refit_errors, options.targets, shape, method="ldu", pivoting=pivoting, refit=True)
    core = needed_ranks(core_errors, options.targets, shape, method="ldu_core", pivoting=pivoting)
    wanted = refit[0].rank or ranks[-1]
    candidate = next((figure for figure in figures if figure.rank == wanted), None)
    if candidate is None:
        candidate = examination.at(wanted, core=False)
    return measurements, curve, needed + refit + core, candidate


def _pissa(W: torch.Tensor, target: Target, rank: int, seed: int) -> Measurement:
    factors = pissa(W, rank, niter=PISSA_ITERATIONS, seed=seed)
    return Measurement(Examination(target, factors).at(rank))

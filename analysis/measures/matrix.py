"""Factor and measure one weight matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowrank_ldu.analysis.measures.curves import Curve, best_errors, sample_ranks, sampled
from lowrank_ldu.analysis.measures.estimate import NITER, estimate_spectrum, sketch_width
from lowrank_ldu.analysis.measures.initialization_change import InitializationChange, initialization_changes
from lowrank_ldu.analysis.measures.placed import Placed, host_values
from lowrank_ldu.analysis.measures.recommendation import NeededRank, Recommendation, needed_ranks, recommend
from lowrank_ldu.analysis.measures.spectrum import Spectrum, leading_spectrum, summarize_spectrum
from lowrank_ldu.backend import backend_of
from lowrank_ldu.decomposition import Pivoting, ldu, ldu_lowrank, pissa, svd
from lowrank_ldu.decomposition.krylov import Sketch
from lowrank_ldu.decomposition.ldu_lowrank import near_best
from lowrank_ldu.decomposition.pissa import split_evenly
from lowrank_ldu.decomposition.powers import largest_exponent, scaled_by
from lowrank_ldu.diagnostics import Diagnostics, Examination, Target
from lowrank_ldu.diagnostics.record import times_power_of_two
from lowrank_ldu.initialization import Initialization  # noqa: TC001  # journals are decoded by the annotations
from lowrank_ldu.validation import check_count, check_matrix

if TYPE_CHECKING:
    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.backend import Array, Backend

# Shorter sides up to which mode "fast" computes all singular values: from there on a sketch is cheaper than the
# eigenvalues of a Gram matrix.
_WHOLE_SPECTRUM = 1024
# Share of the largest singular value down to which those by the Gram matrix of float32 have three digits. Where one is
# below, all are computed without squaring.
_ROUNDED = 1e-6
# Share of the energy of a matrix that the values of a sketch in float32 have to leave: products of float32 have it to
# about 1e-6, which would be all of the error where less is left. Then they are computed in float64.
_LITTLE = 1e-2
# As in PEFT's "pissa_niter_4", the quick start that its users take.
PISSA_ITERATIONS = 4


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
        For each target error: of the SVD, and of LDU for each pivoting without and with refit.
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
        wanted = (method, pivoting, min(check_count(rank, "rank"), self.m, self.n), exact)
        for measurement in self.measurements:
            if _key(measurement) == wanted:
                return measurement
        known = [_described(*_key(measurement)) for measurement in self.measurements]
        raise KeyError(f"{_described(*wanted)} was not measured; accepted: {', '.join(dict.fromkeys(known))}")


def _described(method: str, pivoting: str | None, rank: int, exact: bool) -> str:
    how = [repr(method), str(rank), *([repr(pivoting)] if pivoting else []), *(["exact=True"] if exact else [])]
    return f"({', '.join(how)})"


def _key(measurement: Measurement) -> tuple[str, str | None, int, bool]:
    figures = measurement.diagnostics
    return figures.method, figures.pivoting, figures.rank, measurement.exact


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
    if fast:
        known, ranks = _quickly(placed, asked, options.seed), asked
    elif options.mode == "exact" or sketch_width(asked) >= k:
        ranks = options.ranks_of(k)
        known = _exactly(measured, ranks, asked)
    else:
        known, ranks = _cheaply(measured, asked, options.seed), asked
    values = torch.from_numpy(host_values(known.target.values, known.target))
    exact = len(values) == k
    errors = best_errors(values, None if exact else known.target.frobenius_norm)
    if not fast:
        errors = errors[: ranks[-1]]
    curve_ranks = sample_ranks(ranks[-1])
    measurements: list[Measurement] = []
    curves: dict[Pivoting, Curve] = {}
    needed = needed_ranks(errors, options.targets)
    candidates = []
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
    recommendation = recommend(needed, candidates, max(options.targets), exact=exact)
    if fast:
        measurements += known.near_best
    else:
        measurements += [_pissa(measured, known.target, rank, options.seed) for rank in asked] + known.pissa
        measurements += [_near_best(W, known.target, rank, options.seed) for rank in asked]
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
        recommendation=recommendation,
    )


def _converted(W: torch.Tensor, dtype: str) -> torch.Tensor:
    converted = W.to(getattr(torch, dtype))
    if not bool(torch.isfinite(converted).all()):
        raise ValueError(f"it holds entries that are not representable in {dtype}")
    return converted


@dataclass(frozen=True)
class _Known:
    """Hold the SVD's figures of a matrix."""

    spectrum: Spectrum
    target: Target
    pissa: list[Measurement] = field(default_factory=list)
    near_best: list[Measurement] = field(default_factory=list)


def _exactly(W: torch.Tensor, ranks: list[int], asked: list[int]) -> _Known:
    exact = svd(W)
    # The yardstick is computed in float64, to be right for small errors too.
    values = torch.linalg.svdvals(W.to(torch.float64))
    target = Target(W, singular_values=values)
    examination = Examination(target, split_evenly(exact.truncate(asked[-1])))
    measured = [Measurement(examination.at(rank), exact=True) for rank in asked]
    return _Known(summarize_spectrum(values.to("cpu"), ranks), target, measured)


def _quickly(placed: Placed, asked: list[int], seed: int) -> _Known:
    """Return the figures of one sketch, or of all singular values where they cost no more.

    On the CPU in NumPy, whose small steps cost the least. Values are given to the target as leading ones: then it does
    without spectral norms of errors, each of which costs as much as all of them.
    """
    k = min(placed.measured.shape)
    whole = k <= _WHOLE_SPECTRUM
    W, backend = check_matrix(placed.measured.numpy() if placed.on_host else placed.measured)
    xp = backend.xp
    wide = partial(xp.astype, W, xp.float64)
    # A whole spectrum is the work of float64; a sketch is of the weight's own dtype.
    sketched = W if whole or placed.on_host else placed.factored
    found = near_best(sketched, asked[-1], Sketch(seed=seed), backend_of(sketched), whole=whole)
    values = np.ldexp(found.values, found.exponent)
    if (whole or len(values) == k) and not (len(values) == k and values[-1] > _ROUNDED * values[0]):
        values = np.asarray(backend.to_numpy(xp.linalg.svdvals(wide())))
    target = _with_leading(W, values, backend)
    if W.dtype == xp.float32 and len(values) < k:
        rest = target.scaled_frobenius_norm**2 - float(np.sum(host_values(target.scaled_values, target) ** 2))
        if rest < _LITTLE * target.scaled_frobenius_norm**2:
            again = near_best(wide(), asked[-1], Sketch(seed=seed), backend)
            values = np.ldexp(again.values, again.exponent)
            target = _with_leading(W, values, backend)
    examined = [Examination(target, found.factor(rank), projected=True).at(rank) for rank in asked]
    return _Known(
        summarize_spectrum(torch.from_numpy(values), asked)
        if len(values) == k
        else leading_spectrum(values, target.frobenius_norm, asked),
        target,
        near_best=[Measurement(figures) for figures in examined],
    )


def _with_leading(W: Array, values: np.ndarray[Any, Any], backend: Backend) -> Target:
    # A lower bound of a smaller value may round to more than that of a larger one.
    return Target(W, leading_values=backend.from_numpy(np.minimum.accumulate(values), W))


def _cheaply(W: torch.Tensor, asked: list[int], seed: int) -> _Known:
    estimate = estimate_spectrum(W, asked, seed)
    return _Known(estimate.spectrum, estimate.target)


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
    needed = needed_ranks(errors, options.targets, pivoting=pivoting)
    refit = needed_ranks(refit_errors, options.targets, pivoting=pivoting, refit=True)
    wanted = refit[0].rank or ranks[-1]
    candidate = next((figure for figure in figures if figure.rank == wanted), None)
    if candidate is None:
        candidate = examination.at(wanted, core=False)
    return measurements, curve, needed + refit, candidate


def _pissa(W: torch.Tensor, target: Target, rank: int, seed: int) -> Measurement:
    factors = pissa(W, rank, niter=PISSA_ITERATIONS, seed=seed)
    return Measurement(Examination(target, factors).at(rank))


def _near_best(W: torch.Tensor, target: Target, rank: int, seed: int) -> Measurement:
    factors = ldu_lowrank(W, rank, seed=seed)
    return Measurement(Examination(target, factors).at(rank))

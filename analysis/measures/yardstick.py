"""Measure what LDU is held against: the SVD of a matrix, and its near-best LDU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowrank_ldu.analysis.measures.curves import best_errors
from lowrank_ldu.analysis.measures.estimate import estimate_spectrum
from lowrank_ldu.analysis.measures.placed import Placed, host_values
from lowrank_ldu.analysis.measures.spectrum import Spectrum, leading_spectrum, summarize_spectrum
from lowrank_ldu.backend import backend_of, full_precision
from lowrank_ldu.decomposition import svd
from lowrank_ldu.decomposition.krylov import Sketch
from lowrank_ldu.decomposition.ldu_lowrank import near_best
from lowrank_ldu.decomposition.pissa import split_evenly
from lowrank_ldu.diagnostics import Diagnostics, Examination, Target
from lowrank_ldu.validation import check_matrix

if TYPE_CHECKING:
    import numpy.typing as npt

    from lowrank_ldu.backend import Array, Backend
    from lowrank_ldu.decomposition.ldu_lowrank import NearBest

# Shorter sides up to which mode "fast" computes all singular values: from there on a sketch is cheaper than the
# eigenvalues of a Gram matrix.
_WHOLE_SPECTRUM = 1024
# Share of the largest singular value down to which those by the Gram matrix of float32 have three digits. Where one is
# below, all are computed without squaring.
_ROUNDED = 1e-6
# Share of the energy of a matrix that the values of a sketch in float32 have to leave: products of float32 have it to
# about 1e-6, which would be all of the error where less is left. Then they are computed in float64.
_LITTLE = 1e-2


@dataclass(frozen=True)
class Yardstick:
    """Hold the SVD's figures of a matrix.

    Attributes
    ----------
    spectrum : Spectrum
    target : Target
        The matrix with its singular values, or the leading ones.
    pissa : list of Diagnostics
        Of PiSSA by the exact SVD, at each rank asked for.
    """

    spectrum: Spectrum
    target: Target
    pissa: list[Diagnostics] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether all singular values are known."""
        return int(self.target.values.shape[0]) == self.target.full_rank

    @property
    def errors(self) -> list[float]:
        """Relative errors of the SVD at the ranks 1, 2, ...; upper bounds where it is not exact."""
        values = torch.from_numpy(host_values(self.target.values, self.target))
        return best_errors(values, None if self.exact else self.target.frobenius_norm)


@dataclass(frozen=True)
class NearBestFigures:
    """Hold what the near-best LDU of a matrix leaves.

    Attributes
    ----------
    measured : list of Diagnostics
        At each rank asked for.
    errors : numpy.ndarray
        Relative Frobenius errors at the ranks 1, 2, ..., as far as they are known: from the sketch of the largest rank
        asked for, whose values are those of all lower ranks, and from the SVD, where a sketch would be the whole space.
        In between upper bounds, those of the same sketch, or NaN beyond its columns.
    exact : numpy.ndarray of bool
        Where they are no bounds.
    """

    measured: list[Diagnostics]
    errors: npt.NDArray[np.float64]
    exact: npt.NDArray[np.bool_]


def exact_yardstick(W: torch.Tensor, ranks: list[int], asked: list[int]) -> Yardstick:
    """Return the figures of the whole SVD."""
    exact = svd(W)
    # The yardstick is computed in float64, to be right for small errors too.
    values = torch.linalg.svdvals(W.to(torch.float64))
    target = Target(W, singular_values=values)
    examination = Examination(target, split_evenly(exact.truncate(asked[-1])))
    return Yardstick(summarize_spectrum(values.to("cpu"), ranks), target, [examination.at(rank) for rank in asked])


def cheap_yardstick(W: torch.Tensor, asked: list[int], seed: int) -> Yardstick:
    """Return the figures of a randomized SVD."""
    estimate = estimate_spectrum(W, asked, seed)
    return Yardstick(estimate.spectrum, estimate.target)


def fast_yardstick(placed: Placed, asked: list[int], seed: int) -> tuple[Yardstick, NearBestFigures]:
    """Return the figures of one sketch, or of all singular values where they cost no more.

    On the CPU in NumPy, whose small steps cost the least. Values are given to the target as leading ones: then it does
    without spectral norms of errors, each of which costs as much as all of them.
    """
    k = min(placed.measured.shape)
    whole = k <= _WHOLE_SPECTRUM
    sketch = Sketch(seed=seed)
    W, backend = check_matrix(placed.measured.numpy() if placed.on_host else placed.measured)
    xp = backend.xp
    # A whole spectrum is the work of float64; a sketch is of the weight's own dtype.
    sketched = W if whole or placed.on_host else placed.factored
    found = near_best(sketched, asked[-1], sketch, backend_of(sketched), whole=whole)
    values = _in_unit(found)
    if (whole or len(values) == k) and not (len(values) == k and values[-1] > _ROUNDED * values[0]):
        values = np.asarray(backend.to_numpy(xp.linalg.svdvals(xp.astype(W, xp.float64))))
    target = _with_leading(W, values, backend)
    own = _values_of(found, target, sketch)
    if len(values) < k and not np.array_equal(own, values):
        target = _with_leading(W, own, backend)
        values = own
    yardstick = Yardstick(
        summarize_spectrum(torch.from_numpy(values), asked)
        if len(values) == k
        else leading_spectrum(values, target.frobenius_norm, asked),
        target,
    )
    measured = [Examination(target, found.factor(rank), projected=True).at(rank) for rank in asked]
    return yardstick, _with_errors(measured, own, yardstick, sketch)


@full_precision()
def measure_near_best(W: torch.Tensor, yardstick: Yardstick, asked: list[int], seed: int) -> NearBestFigures:
    """Measure the near-best LDU of each rank, from a sketch of its own."""
    sketch = Sketch(seed=seed)
    checked, backend = check_matrix(W)
    measured = []
    for rank in asked:
        found = near_best(checked, rank, sketch, backend)
        measured.append(Examination(yardstick.target, found.factor(rank)).at(rank))
    own = _values_of(found, yardstick.target, sketch)
    return _with_errors(measured, own, yardstick, sketch)


def _with_leading(W: Array, values: np.ndarray[Any, Any], backend: Backend) -> Target:
    # A lower bound of a smaller value may round to more than that of a larger one.
    return Target(W, leading_values=backend.from_numpy(np.minimum.accumulate(values), W))


def _values_of(found: NearBest, target: Target, sketch: Sketch) -> npt.NDArray[np.float64]:
    """Return the singular values of W's projection on a sketch.

    What is left of the energy has digits enough, however little it is.
    """
    values, xp = _in_unit(found), target.backend.xp
    if target.W.dtype != xp.float32 or len(values) == target.full_rank:
        return values
    rest = target.frobenius_norm**2 - float(np.sum(values**2))
    if rest >= _LITTLE * target.frobenius_norm**2:
        return values
    again = near_best(xp.astype(target.W, xp.float64), int(found.left.shape[1]), sketch, target.backend)
    return _in_unit(again)


def _in_unit(found: NearBest) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = np.ldexp(found.values, found.exponent)
    return values


def _with_errors(
    measured: list[Diagnostics], values: npt.NDArray[np.float64], yardstick: Yardstick, sketch: Sketch
) -> NearBestFigures:
    k, own = yardstick.target.full_rank, best_errors(torch.from_numpy(values), yardstick.target.frobenius_norm)
    errors = np.full(k if yardstick.exact else len(own), np.nan)
    errors[: len(own)] = own
    ranks = np.arange(1, len(errors) + 1)
    known = (ranks <= measured[-1].rank) | (len(own) == k)
    least = np.asarray(yardstick.errors)
    if yardstick.exact:
        spanning = sketch.spanning_rank(k) - 1
        errors[spanning:], known[spanning:] = least[spanning:], True
    for figures in measured:
        errors[figures.rank - 1] = figures.frobenius_error
    if yardstick.exact:
        # No matrix of that rank is nearer to W; rounding of the two differs.
        errors = np.maximum(errors, least)
    return NearBestFigures(measured, errors, known)

"""The leading singular values of a weight by a randomised SVD, and how far they can be from the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.spectrum import Spectrum, zero_spectrum
from lowrank_ldu.analysis.timing import timed
from lowrank_ldu.analysis.value_bounds import value_bounds
from lowrank_ldu.decomposition import svd
from lowrank_ldu.diagnostics import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

# Power iterations. Columns of the sketch: twice the largest rank, and this many more at least; the bounds come from
# what the sketch has beyond it.
NITER = 2
OVERSAMPLING = 16


@dataclass(frozen=True)
class Estimate:
    """What a randomised SVD says of a matrix.

    Attributes
    ----------
    spectrum : Spectrum
    target : Target
        The matrix with its leading singular values, for the figures of factorisations.
    seconds : float
        Of the randomised SVD, without its bound.
    """

    spectrum: Spectrum
    target: Target
    seconds: float


def sketch_width(ranks: Sequence[int]) -> int:
    """Return the columns of the sketch for the largest of `ranks`.

    Examples
    --------
    >>> sketch_width([2, 8]), sketch_width([64])
    (24, 128)
    """
    largest = max(ranks)
    return max(2 * largest, largest + OVERSAMPLING)


def estimate_spectrum(W: torch.Tensor, ranks: Sequence[int], seed: int) -> Estimate:
    r"""Estimate the leading singular values of a matrix, with bounds (`value_bounds`).

    Parameters
    ----------
    W : torch.Tensor, shape (m, n)
        float32 or float64, on the CPU.
    ranks : sequence of int
        Where the energy is wanted; `sketch_width` of them is below min(m, n).
    seed : int
        Draws the sketch and the start of the bound's iteration.
    """
    factors, seconds = timed(svd, W, sketch_width(ranks), niter=NITER, oversampling=0, seed=seed)
    largest = float(W.abs().max())
    if largest == 0.0:
        return Estimate(zero_spectrum(ranks), Target(W, leading_values=factors.diagonal), seconds)
    # By a power of two, which is exact, to entries whose squares neither overflow nor vanish.
    scale = 2.0 ** math.frexp(largest)[1]
    lower, upper = value_bounds(W / scale, factors.right.T, max(ranks), seed)
    target = Target(W, leading_values=lower.sqrt() * scale)
    norm = target.frobenius_norm / scale
    held, at_most = lower.cumsum(0) / norm**2, upper.cumsum(0) / norm**2
    rest = max(1.0 - float(held[-1]), 0.0)
    energy = {rank: min(float(held[rank - 1]), 1.0) for rank in ranks}
    return Estimate(
        Spectrum(
            largest=float(lower[0]) ** 0.5 * scale,
            smallest=None,
            stable_rank=norm**2 / float(lower[0]),
            entropy=None,
            effective_rank=None,
            energy=energy,
            # What the subspace has not is in the rest, all of it at most.
            energy_bound={rank: min(float(at_most[rank - 1]), held_ + rest, 1.0) for rank, held_ in energy.items()},
        ),
        target,
        seconds,
    )

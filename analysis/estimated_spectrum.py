"""The leading singular values of a weight by a randomised SVD, and how far they can be from the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.residual_bound import residual_bound
from lowrank_ldu.analysis.spectrum import Spectrum, zero_spectrum
from lowrank_ldu.analysis.timing import timed
from lowrank_ldu.decomposition import svd
from lowrank_ldu.diagnostics import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

# Power iterations, and columns of the sketch beyond the largest rank.
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


def sketch_is_smaller(k: int, ranks: Sequence[int]) -> bool:
    """Return whether the sketch for the largest of `ranks` has fewer columns than the smaller side k of a matrix."""
    return max(ranks) + OVERSAMPLING < k


def estimate_spectrum(W: torch.Tensor, ranks: Sequence[int], seed: int) -> Estimate:
    r"""Estimate the spectrum of a matrix, with bounds.

    With orthonormal Q, W^T W = (Q^T W)^T (Q^T W) + E^T E. So the sum of the first r squared singular values of W is no
    less than that of Q^T W, and by Ky Fan's inequality no more than that plus the same sum of E: at most r \|E\|_2^2
    (`residual_bound`), and at most \|E\|_F^2.

    Parameters
    ----------
    W : torch.Tensor, shape (m, n)
        float32 or float64, on the CPU.
    ranks : sequence of int
        Where the energy is wanted; `sketch_is_smaller` for them.
    seed : int
        Draws the sketch and the start of the bound's iteration.
    """
    width = max(ranks) + OVERSAMPLING
    factors, seconds = timed(svd, W, width, niter=NITER, oversampling=0, seed=seed)
    target = Target(W, leading_values=factors.diagonal)
    norm = target.frobenius_norm
    if norm == 0.0:
        return Estimate(zero_spectrum(ranks), target, seconds)
    shares = (target.values / norm) ** 2
    rest = max(1.0 - float(shares.sum()), 0.0)
    worst = (residual_bound(W, factors, seed) / norm) ** 2
    energy = {rank: min(float(shares[:rank].sum()), 1.0) for rank in ranks}
    largest = float(target.values[0])
    return Estimate(
        Spectrum(
            largest=largest,
            smallest=None,
            stable_rank=(norm / largest) ** 2,
            entropy=None,
            effective_rank=None,
            energy=energy,
            energy_bound={rank: min(held + min(rank * worst, rest), 1.0) for rank, held in energy.items()},
        ),
        target,
        seconds,
    )

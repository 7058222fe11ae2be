"""Measure the update of one weight matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.analysis.measures.curves import sample_ranks
from lowrank_ldu.analysis.measures.placed import Placed
from lowrank_ldu.analysis.measures.spectrum import Spectrum, summarize_spectrum
from lowrank_ldu.decomposition import Pivoting, ldu, svd
from lowrank_ldu.diagnostics import Expression, Target, express
from lowrank_ldu.formatting import figure

if TYPE_CHECKING:
    from lowrank_ldu.analysis.options import CompareOptions


@dataclass(frozen=True)
class MatrixComparison:
    r"""Hold the results for one matrix.

    Plain numbers only, so that the weights themselves can be freed.

    Attributes
    ----------
    m, n : int
        Shape in which the weight was factored.
    base_norm, update_norm : float
        Frobenius norms, in the weight's unit.
    relative_norm : float
        \|update\|_F / \|base\|_F; inf if the base is zero.
    spectrum : Spectrum
        Of the update. Its energy at rank r, also kept at rank 1, is what LoRA of that rank can express at best.
    ldu : dict of str to Expression
        In the base's LDU terms, for each pivoting.
    svd : Expression
        In the base's singular vectors, with a diagonal as well.
    curve_ranks : list of int
        The ranks that the curves are sampled at.
    lora_curve : list of float
        The energy of the update there.
    """

    m: int
    n: int
    base_norm: float
    update_norm: float
    relative_norm: float
    spectrum: Spectrum
    ldu: dict[Pivoting, Expression]
    svd: Expression
    curve_ranks: list[int]
    lora_curve: list[float]

    @property
    def size(self) -> int:
        """Number of entries of the matrix."""
        return self.m * self.n

    @property
    def full_rank(self) -> int:
        """k, the lesser of m and n."""
        return min(self.m, self.n)

    @property
    def least_lora(self) -> int:
        """Numbers that LoRA of rank 1 trains: m + n."""
        return self.m + self.n

    def __repr__(self) -> str:
        return f"MatrixComparison {self.m} x {self.n}: update of relative norm {figure(self.relative_norm)}"

    def random(self, independent: int) -> float:
        """Return the expected share of a random update in a space.

        The entries are independent, of mean 0 and one variance: every direction holds the same, whether the terms that
        span the space are orthogonal or not.
        """
        return independent / self.size


def compare_matrices(base: torch.Tensor, update: torch.Tensor, options: CompareOptions) -> MatrixComparison:
    """Measure an update beside the weight that it is added to.

    Parameters
    ----------
    base : torch.Tensor, shape (m, n)
        Finite, float32 or float64, on the device that is to do the work (`lowrank_ldu.analysis.measures.placed`).
    update : torch.Tensor, shape (m, n)
        As `base`, and not zero.
    options : CompareOptions
        Which ranks and pivoting strategies.

    Returns
    -------
    MatrixComparison

    Raises
    ------
    RuntimeError
        LAPACK did not converge, or memory ran out.
    """
    m, n = (int(size) for size in base.shape)
    k = min(m, n)
    ranks, curve_ranks = options.ranks_of(k), sample_ranks(k)
    placed, update = Placed.of(base), Placed.of(update).measured
    target = Target(update)
    ldu_terms = {
        pivoting: express(target, ldu(placed.factored, pivoting=pivoting, seed=options.seed), ranks, curve_ranks)
        for pivoting in options.pivoting
    }
    # Singular vectors do not depend on the scale, and numbers near the end of the range are refused.
    svd_terms = express(target, svd(_scaled(placed.measured)), ranks, curve_ranks)
    values = torch.linalg.svdvals(_scaled(update)).to("cpu")
    spectrum = summarize_spectrum(values, sorted({1, *ranks}))
    base_norm, update_norm = Target(placed.measured).frobenius_norm, target.frobenius_norm
    return MatrixComparison(
        m=m,
        n=n,
        base_norm=base_norm,
        update_norm=update_norm,
        relative_norm=update_norm / base_norm if base_norm else math.inf,
        spectrum=spectrum.scaled(target.largest),
        ldu=ldu_terms,
        svd=svd_terms,
        curve_ranks=curve_ranks,
        lora_curve=list(summarize_spectrum(values, curve_ranks).energy.values()),
    )


def _scaled(matrix: torch.Tensor) -> torch.Tensor:
    """Scale a matrix so that its largest entry is 1.

    Its squares then neither overflow nor vanish.
    """
    largest = matrix.abs().max()
    return matrix / torch.where(largest > 0, largest, torch.ones_like(largest))

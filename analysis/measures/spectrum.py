"""Summarize the singular values of a weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt


@dataclass(frozen=True)
class Spectrum:
    r"""Hold a summary of singular values s.

    Attributes
    ----------
    largest : float
        In the weight's unit. Of a randomized SVD a lower bound, as close as its power iterations bring it.
    smallest : float or None
        None where only the leading ones are known, as `entropy` and `effective_rank` are.
    stable_rank : float
        \|W\|_F^2 / \|W\|_2^2, from 1 to k; 0 for the zero matrix. Where `largest` is a lower bound, an upper one.
    entropy : float or None
        Of s / sum(s), in nats, from 0 to ln k; 0 for the zero matrix.
    effective_rank : float or None
        exp of the entropy, from 1 to k (Roy and Vetterli, EUSIPCO 2007); 0 for the zero matrix.
    energy : dict of int to float
        For each rank r asked for, the share of \|W\|_F^2 that the first r singular values hold; 1 for the zero matrix.
        Of a randomized SVD a lower bound: what its own r terms hold.
    energy_bound : dict of int to float
        Upper bound of the same, equal to it where all singular values are known: the least error of any matrix of rank
        r, squared, is from 1 - energy_bound to 1 - energy.
    """

    largest: float
    smallest: float | None
    stable_rank: float
    entropy: float | None
    effective_rank: float | None
    energy: dict[int, float]
    energy_bound: dict[int, float]

    def scaled(self, scale: float) -> Spectrum:
        """Return the summary of the matrix times `scale`, a positive number."""
        smallest = None if self.smallest is None else self.smallest * scale
        return replace(self, largest=self.largest * scale, smallest=smallest)


def summarize_spectrum(values: torch.Tensor, ranks: Iterable[int]) -> Spectrum:
    """Summarize singular values.

    Parameters
    ----------
    values : torch.Tensor, shape (k,)
        All of them, not increasing, not negative.
    ranks : iterable of int
        Where the energy is wanted, each from 1 to k.
    """
    values = values.to(torch.float64)
    largest, smallest = float(values[0]), float(values[-1])
    if largest == 0.0:
        return zero_spectrum(ranks)
    squares = (values / largest) ** 2
    share = values / values.sum()
    entropy = -float(torch.special.xlogy(share, share).sum())
    held = (torch.cumsum(squares, 0) / squares.sum()).clamp(max=1.0)  # the two sums round differently
    energy = {rank: float(held[rank - 1]) for rank in ranks}
    return Spectrum(
        largest=largest,
        smallest=smallest,
        stable_rank=float(squares.sum()),
        entropy=entropy,
        effective_rank=math.exp(entropy),
        energy=energy,
        energy_bound=dict(energy),
    )


def leading_spectrum(values: npt.NDArray[np.float64], norm: float, ranks: Iterable[int]) -> Spectrum:
    """Summarize lower bounds of the leading singular values.

    Parameters
    ----------
    values : array, shape (l,)
        Of the projection of the weight on a subspace, not increasing.
    norm : float
        Frobenius norm of the weight.
    ranks : iterable of int
        Where the energy is wanted, each from 1 to l. What the subspace leaves bounds what the values miss.
    """
    if norm == 0.0:
        return zero_spectrum(ranks)
    held = np.minimum(np.cumsum((values / norm) ** 2), 1.0)
    energy = {rank: float(held[rank - 1]) for rank in ranks}
    return Spectrum(
        largest=float(values[0]),
        smallest=None,
        stable_rank=(norm / float(values[0])) ** 2,
        entropy=None,
        effective_rank=None,
        energy=energy,
        energy_bound={rank: min(share + 1.0 - float(held[-1]), 1.0) for rank, share in energy.items()},
    )


def zero_spectrum(ranks: Iterable[int]) -> Spectrum:
    """Return the summary of the zero matrix."""
    energy = dict.fromkeys(ranks, 1.0)
    return Spectrum(0.0, 0.0, 0.0, 0.0, 0.0, energy, dict(energy))

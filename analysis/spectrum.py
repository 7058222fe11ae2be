"""What the singular values of a weight say about its rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Spectrum:
    r"""Summary of the singular values s of a matrix.

    Attributes
    ----------
    largest, smallest : float
        Extreme singular values, in the weight's unit.
    stable_rank : float
        \|W\|_F^2 / \|W\|_2^2, from 1 to k; 0 for the zero matrix.
    effective_rank : float
        exp of the entropy (natural logarithm) of s / sum(s), from 1 to k (Roy and Vetterli, EUSIPCO 2007); 0 for the
        zero matrix.
    energy : dict of int to float
        For each rank r asked for, the share of \|W\|_F^2 that the first r singular values hold; 1 for the zero matrix.
    """

    largest: float
    smallest: float
    stable_rank: float
    effective_rank: float
    energy: dict[int, float]


def summarise_spectrum(values: torch.Tensor, ranks: Iterable[int]) -> Spectrum:
    """Summarise singular values.

    Parameters
    ----------
    values : torch.Tensor, shape (k,)
        Not increasing, not negative.
    ranks : iterable of int
        Where the energy is wanted, each from 1 to k.
    """
    values = values.to(torch.float64)
    largest, smallest = float(values[0]), float(values[-1])
    if largest == 0.0:
        return Spectrum(0.0, 0.0, 0.0, 0.0, dict.fromkeys(ranks, 1.0))
    squares = (values / largest) ** 2
    share = values / values.sum()
    entropy = -float(torch.special.xlogy(share, share).sum())
    held = (torch.cumsum(squares, 0) / squares.sum()).clamp(max=1.0)  # the two sums round differently
    return Spectrum(
        largest, smallest, float(squares.sum()), math.exp(entropy), {rank: float(held[rank - 1]) for rank in ranks}
    )

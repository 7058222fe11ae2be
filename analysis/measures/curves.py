"""Sample errors along the rank for plots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Curve:
    r"""Hold an LDU factorization at sampled ranks.

    Attributes
    ----------
    error, refit_error : list of float or None
        \|W - L diag(z) U\|_F / \|W\|_F of the leading terms, with their own diagonal and with the one that is best for
        them; rounding below about 1e-7. None where terms depend on each other so closely that this method has no
        answer, and for the zero matrix.
    pivot : list of float
        Magnitude of the diagonal at that step, in the weight's unit.
    """

    error: list[float | None]
    refit_error: list[float | None]
    pivot: list[float]


def sample_ranks(k: int, count: int = 96) -> list[int]:
    """Return up to `count` ranks from 1 to k.

    Evenly spaced in their logarithm, both ends included.

    Examples
    --------
    >>> sample_ranks(1000, 4)
    [1, 10, 100, 1000]
    """
    return sorted({round(k ** (i / (count - 1))) for i in range(count)})


def best_errors(values: torch.Tensor, norm: float | None = None) -> list[float]:
    r"""Return the least relative Frobenius error at each rank.

    It is that of any matrix of rank 1, 2, ...

    Parameters
    ----------
    values : torch.Tensor, shape (l,)
        Singular values, all of them, or the leading ones; not increasing.
    norm : float, optional
        \|W\|_F, where only the leading ones are given.

    Returns
    -------
    list of float
        l of them; 0 for the zero matrix.

    Examples
    --------
    >>> best_errors(torch.tensor([4.0, 3.0]))
    [0.6, 0.0]
    """
    largest = float(values[0])
    if largest == 0.0:
        return [0.0] * len(values)
    # Relative to the largest, so that no square overflows.
    held = torch.cumsum((values.to(torch.float64) / largest) ** 2, 0)
    whole = float(held[-1])
    if norm is not None:
        whole = max(whole, (norm / largest) ** 2)  # the two sums round differently
    return [math.sqrt((whole - float(part)) / whole) for part in held]


def sampled(errors: Iterable[float], ranks: Sequence[int]) -> list[float | None]:
    """Return the errors at some ranks.

    From those at ranks 1, 2, ...; None where one is not finite.
    """
    listed = [float(error) for error in errors]
    return [listed[rank - 1] if math.isfinite(listed[rank - 1]) else None for rank in ranks]

"""Measure what initializations change before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.decomposition.powers import scaled_by
from lowrank_ldu.initialization import INITIALIZATIONS, Initialization, initial_diagonal

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class InitializationChange:
    r"""Hold the change of a layer by one initialization.

    \|W' - W\|_F / \|W\|_F at step 0.

    W' = W - sigma L diag(z_ref) U + sigma L diag(z_start) U, with sigma = 1.

    Attributes
    ----------
    algorithm_1 : float
        z_ref is the factorization's own diagonal: the residual is taken first, and the diagonal is overwritten then.
        inf where W is zero and W' is not, and where the start is not representable (draws about huge pivots).
    preserving : float
        z_ref is the start.
    """

    algorithm_1: float
    preserving: float


def initialization_changes(
    z: torch.Tensor, gram: torch.Tensor, ranks: Sequence[int], norm: float, seed: int, *, exponent: int = 0
) -> list[dict[Initialization, InitializationChange]]:
    """Return the change by each initialization at each rank.

    Parameters
    ----------
    z : torch.Tensor, shape (r,)
        The diagonal of an LDU factorization of W.
    gram : torch.Tensor, shape (r, r), float64
        Its metric, the Gram matrix of the terms.
    ranks : sequence of int
        Each from 1 to r.
    norm : float
        Frobenius norm of W.
    seed : int
        Of the random starts.
    exponent : int
        Of the unit 2 ** exponent that z and the norm are in; starts are in the unit 1.

    Examples
    --------
    >>> from lowrank_ldu import gram_matrix, ldu
    >>> factors = ldu(torch.diag(torch.tensor([3.0, 4.0])))
    >>> metric = gram_matrix(factors.left, factors.right)
    >>> (changes,) = initialization_changes(factors.diagonal, metric, [2], 5.0, 0)
    >>> changes["zeros"]
    InitializationChange(algorithm_1=1.0, preserving=0.0)
    """
    # The metric of the leading terms is the leading block of the whole metric.
    return [_changes(gram[:rank, :rank], z[:rank], norm, seed, exponent) for rank in ranks]


def _changes(
    gram: torch.Tensor, z: torch.Tensor, norm: float, seed: int, exponent: int
) -> dict[Initialization, InitializationChange]:
    if exponent:
        z = z.to(torch.float64)  # float32 might not hold it in its own unit
    own = scaled_by(z, exponent)
    starts = {init: initial_diagonal(init, own, seed) for init in INITIALIZATIONS}
    return {
        init: InitializationChange(
            _change(gram, scaled_by(start, -exponent), z, norm), _change(gram, start, start, norm)
        )
        for init, start in starts.items()
    }


def _change(gram: torch.Tensor, start: torch.Tensor, reference: torch.Tensor, norm: float) -> float:
    step = start.to(torch.float64) - reference.to(torch.float64)
    # Brought to at most 1 first, so that its squares can neither overflow nor vanish.
    largest = float(step.abs().max())
    if largest == 0.0:
        return 0.0
    if norm == 0.0 or not math.isfinite(largest):
        return math.inf
    unit = step / largest
    return math.sqrt(max(float(unit @ gram @ unit), 0.0)) * (largest / norm)

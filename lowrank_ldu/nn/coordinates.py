"""Choose the coordinates in which the diagonal is trained.

They are z itself, coefficients of unit terms, or those of an orthonormal frame of the terms.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal, get_args

import torch

from lowrank_ldu.decomposition.gram import gram_matrix

if TYPE_CHECKING:
    from torch import Tensor

Parametrization = Literal["diagonal", "normalized", "gram"]
PARAMETRIZATIONS: tuple[Parametrization, ...] = get_args(Parametrization)

# The unit-diagonal Gram matrix takes rounding errors of about r eps. Jitter starts there and grows until the pivots of
# the Cholesky factorization are beyond them.
_JITTER_GROWTH = 10.0


def coordinates_of(left: Tensor, right: Tensor, parametrization: Parametrization) -> tuple[Tensor | None, float]:
    r"""Return the matrix T of the trained coordinates, and its jitter.

    T gives z = z_start + T w for the coordinates w that are trained. The jitter is the number that was added to the
    diagonal of the Gram matrix.

    Parameters
    ----------
    left : Tensor, shape (m, r)
    right : Tensor, shape (r, n)
    parametrization : str
        "diagonal": w is the offset of z. "normalized": each rank-one term counts with unit Frobenius norm,
        T = diag(1 / (\|l_i\| \|u_i\|)). "gram": T = R^-1 with the Gram matrix G = R^T R of the terms, so that
        \|P L diag(T w) U\|_F = \|w\|: the gradient in w is the natural gradient of z in the weight's own metric.

    Returns
    -------
    T : Tensor or None
        None for "diagonal"; (r,) for "normalized"; (r, r), upper triangular, for "gram". float64 on left's device, or
        float32 where that has no float64.
    jitter : float
        What was added to the diagonal of the unit-diagonal Gram matrix, 0 for all but nearly dependent terms; a
        warning says so.

    Notes
    -----
    G is computed and factored in float64 after its terms are scaled to unit norm, which is what its condition number
    should not have to pay for. BasisFactors that are zero count with norm 1.
    """
    if parametrization == "diagonal":
        return None, 0.0
    # Squares of entries beyond 1e154, which float64 weights can have, would overflow even there.
    left_peak, right_peak = _peak(left, 0), _peak(right, 1)
    gram: Tensor = gram_matrix(left / left_peak, right / right_peak[:, None])
    size = gram.diagonal().sqrt()
    peak = torch.where(size > 0, left_peak.to(size) * right_peak.to(size), 1.0)
    size = torch.where(size > 0, size, 1.0)
    if parametrization == "normalized":
        return 1 / size / peak, 0.0
    unit = gram / size[:, None] / size[None, :]
    identity = torch.eye(len(size), dtype=unit.dtype, device=unit.device)
    unit = torch.where(identity.bool(), identity, unit)  # zero terms stand for themselves
    factor, jitter = _cholesky(unit, identity)
    inverse: Tensor = torch.linalg.solve_triangular(factor.mT, identity, upper=True)
    return inverse / size[:, None] / peak[:, None], jitter


def _peak(array: Tensor, dim: int) -> Tensor:
    """Return a power of two near the peak along a dimension.

    It is at or under the largest magnitude. Dividing by a power of two is exact.
    """
    _, exponent = torch.frexp(array.abs().amax(dim))
    return torch.ldexp(torch.ones_like(exponent, dtype=array.dtype), exponent - 1)


def _cholesky(matrix: Tensor, identity: Tensor) -> tuple[Tensor, float]:
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps
    jitter = 0.0
    factor, failed = torch.linalg.cholesky_ex(matrix)
    # A pivot within rounding of zero is noise that happened to be positive: a division by it would enlarge the noise.
    while bool(failed) or float(factor.diagonal().min()) ** 2 < rounding:
        jitter = jitter * _JITTER_GROWTH or rounding
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * identity)
    if jitter:
        warnings.warn(
            f"the {len(matrix)} rank-one terms are linearly dependent to rounding: {jitter:.1e} was added to the "
            "diagonal of their Gram matrix; a smaller rank, or parametrization 'normalized', avoids it",
            stacklevel=3,
        )
    return factor, jitter


def to_diagonal(coordinates: Tensor, frame: Tensor | None) -> Tensor:
    """Return T w, shape (..., r), for coordinates w (..., r).

    T is as `coordinates_of` gives it.
    """
    if frame is None:
        return coordinates
    if frame.ndim == 1:
        return coordinates * frame
    return coordinates @ frame.mT


def from_diagonal(offset: Tensor, frame: Tensor | None) -> Tensor:
    """Return the coordinates w (r,) with T w = offset (r,)."""
    if frame is None:
        return offset
    if frame.ndim == 1:
        return offset / frame
    solution: Tensor = torch.linalg.solve_triangular(frame, offset[:, None], upper=True)
    return solution[:, 0]

"""Choose the coordinates in which the core is trained.

They are its own entries, coefficients of unit terms, or those of an orthonormal frame of the terms.
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

# Numbers that an orthonormal frame of blocks may have: its Gram matrix takes their square, 1 GB in float64.
_LARGEST_FRAME = 11_000
# Dimensions of blocks (g, b, b), and of two triangles for each of them (2, g, b, b).
BLOCKS, _TRIANGLES = 3, 4

# The unit-diagonal Gram matrix takes rounding errors of about r eps. Jitter starts there and grows until the pivots of
# the Cholesky factorization are beyond them.
_JITTER_GROWTH = 10.0


def coordinates_of(
    left: Tensor, right: Tensor, parametrization: Parametrization, shape: tuple[int, ...] | None = None
) -> tuple[Tensor | None, float]:
    r"""Return the frame T of the trained coordinates, and its jitter.

    T gives the core K = K_start + T w for the coordinates w that are trained. The jitter is the number that was added
    to the diagonal of a Gram matrix.

    Parameters
    ----------
    left : Tensor, shape (m, r)
    right : Tensor, shape (r, n)
    parametrization : str
        "diagonal": w is the offset of K. "normalized": each term, or each block of terms, is orthonormal in itself: for
        a diagonal, T = diag(1 / (\|l_i\| \|u_i\|)). "gram": all of them together, so that
        \|left (T w) right\|_F = \|w\|: the gradient in w is the natural gradient of K in the weight's own metric. For
        a diagonal, T = R^-1 with the Gram matrix G = R^T R of the terms.
    shape : tuple of int, optional
        Of the core, `core_shape`; a diagonal if not given.

    Returns
    -------
    T : Tensor or None
        None for "diagonal". Of a diagonal core (r,) for "normalized", and (r, r), upper triangular, for "gram". Of
        blocks (2, g, b, b), an upper triangle A and a lower triangle B for each of them with T w = A w B; for "gram" of
        several blocks (g b b, g b b). float64 on left's device, or float32 where that has no float64.
    jitter : float
        What was added to the diagonal of a unit-diagonal Gram matrix, 0 for all but nearly dependent terms; a warning
        says so.

    Raises
    ------
    ValueError
        The orthonormal frame of several blocks would have too many numbers.

    Notes
    -----
    The Gram matrix of the terms of a diagonal is (L^T L) * (U U^T), elementwise; that of a dense core is the Kronecker
    product of the two, whose Cholesky factor is that of theirs: two triangles of r x r are all that it takes. All are
    computed and factored in float64 after terms are scaled to unit norm, which is what the condition number should not
    have to pay for. Terms that are zero count with norm 1.
    """
    if parametrization == "diagonal":
        return None, 0.0
    # Squares of entries beyond 1e154, which float64 weights can have, would overflow even there.
    left_peak, right_peak = _peak(left, 0), _peak(right, 1)
    left, right = left / left_peak, right / right_peak[:, None]
    if shape is not None and len(shape) == BLOCKS:
        return _of_blocks((left, left_peak), (right.mT, right_peak), parametrization, shape)
    gram: Tensor = gram_matrix(left, right)
    size = gram.diagonal().sqrt()
    peak = torch.where(size > 0, left_peak.to(size) * right_peak.to(size), 1.0)
    size = torch.where(size > 0, size, 1.0)
    if parametrization == "normalized":
        return 1 / size / peak, 0.0
    inverse, jitter = _inverse_root(gram, f"the {len(size)} rank-one terms")
    return inverse / peak[:, None], jitter


def _of_blocks(
    left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], parametrization: Parametrization, shape: tuple[int, ...]
) -> tuple[Tensor, float]:
    """Return the frame of blocks for columns (size, r) and their powers of two (r,)."""
    groups, block, _ = shape
    count = groups * block * block
    if parametrization == "gram" and groups > 1:
        if count > _LARGEST_FRAME:
            raise ValueError(
                f"parametrization is 'gram' for a core of {groups} blocks of {block} x {block}, whose frame would be a "
                f"matrix of {count} x {count}; accepted: up to {_LARGEST_FRAME} numbers, or parametrization "
                "'normalized', which makes each block orthonormal in itself"
            )
        grams = [_wide_gram(columns).reshape(groups, block, groups, block) for columns, _ in (left, right)]
        gram = torch.einsum("jakd,jcke->jackde", *grams).reshape(count, count)
        inverse, jitter = _inverse_root(gram, f"the {count} entries of the blocks")
        peaks = [peak.to(gram).reshape(groups, block) for _, peak in (left, right)]
        return inverse / (peaks[0][:, :, None] * peaks[1][:, None, :]).reshape(count, 1), jitter
    triangles, jitter = [], 0.0
    for columns, peak in (left, right):
        gram = _wide_gram(columns)
        parts = []
        for start in range(0, groups * block, block):
            own = slice(start, start + block)
            inverse, added = _inverse_root(gram[own, own], f"{block} columns or rows of the factors")
            parts.append(inverse / peak[own, None].to(inverse))
            jitter = max(jitter, added)
        triangles.append(torch.stack(parts))
    return torch.stack([triangles[0], triangles[1].mT]), jitter


def _wide_gram(columns: Tensor) -> Tensor:
    """Return columns^T columns (r, r) in float64 where there is one."""
    ones = torch.ones(columns.shape[1], 1, dtype=columns.dtype, device=columns.device)
    gram: Tensor = gram_matrix(columns, ones)
    return gram


def _inverse_root(gram: Tensor, what: str) -> tuple[Tensor, float]:
    """Return the upper triangular R^-1 for a Gram matrix R^T R, and the jitter."""
    size = gram.diagonal().sqrt()
    size = torch.where(size > 0, size, 1.0)
    unit = gram / size[:, None] / size[None, :]
    identity = torch.eye(len(size), dtype=unit.dtype, device=unit.device)
    unit = torch.where(identity.bool(), identity, unit)  # zero terms stand for themselves
    factor, jitter = _cholesky(unit, identity, what)
    inverse: Tensor = torch.linalg.solve_triangular(factor.mT, identity, upper=True)
    return inverse / size[:, None], jitter


def _peak(array: Tensor, dim: int) -> Tensor:
    """Return a power of two near the peak along a dimension.

    It is at or under the largest magnitude. Dividing by a power of two is exact.
    """
    _, exponent = torch.frexp(array.abs().amax(dim))
    return torch.ldexp(torch.ones_like(exponent, dtype=array.dtype), exponent - 1)


def _cholesky(matrix: Tensor, identity: Tensor, what: str) -> tuple[Tensor, float]:
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps
    jitter = 0.0
    factor, failed = torch.linalg.cholesky_ex(matrix)
    # A pivot within rounding of zero is noise that happened to be positive: a division by it would enlarge the noise.
    while bool(failed) or float(factor.diagonal().min()) ** 2 < rounding:
        jitter = jitter * _JITTER_GROWTH or rounding
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * identity)
    if jitter:
        warnings.warn(
            f"{what} are linearly dependent to rounding: {jitter:.1e} was added to the diagonal of their Gram matrix; "
            "a smaller rank, or parametrization 'normalized' or 'diagonal', avoids it",
            stacklevel=4,
        )
    return factor, jitter


def to_core(coordinates: Tensor, frame: Tensor | None) -> Tensor:
    """Return T w, of the core's shape, for coordinates w of that shape.

    T is as `coordinates_of` gives it; both may have a dimension of adapters in front.
    """
    if frame is None:
        return coordinates
    if frame.ndim == 1:
        return coordinates * frame
    if frame.ndim == _TRIANGLES:
        return frame[0] @ coordinates @ frame[1]
    if coordinates.ndim >= BLOCKS:
        return (coordinates.flatten(-3) @ frame.mT).reshape(coordinates.shape)
    return coordinates @ frame.mT


def from_core(offset: Tensor, frame: Tensor | None) -> Tensor:
    """Return the coordinates w with T w = offset, for one core."""
    if frame is None:
        return offset
    if frame.ndim == 1:
        return offset / frame
    if frame.ndim == _TRIANGLES:
        inner = torch.linalg.solve_triangular(frame[0], offset, upper=True)
        inside: Tensor = torch.linalg.solve_triangular(frame[1], inner, upper=False, left=False)
        return inside
    solution: Tensor = torch.linalg.solve_triangular(frame, offset.reshape(-1, 1), upper=True)
    return solution.reshape(offset.shape)

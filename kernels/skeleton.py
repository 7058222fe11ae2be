r"""Find the triangles by which factors are rows and columns of W.

The right factor of W's own LDU is right = triangle W[rows], with the pivots' rows. So the projection needs no product
with it: a = x right^T = (x W^T)[:, rows] triangle^T is gathered from the base's own output. In the same way left =
W[:, columns] column_triangle, and on the way back b = g left is gathered from g W. (These are the skeletons, or
pseudo-skeletons, of Goreinov, Tyrtyshnikov and Zamarashkin, Linear Algebra and its Applications 261, 1997.)

What that costs in digits: an entry z_j of x W^T is off by the rounding of a sum of n products, and once more where it
is stored. Both are within c u \|x\| \|W_j\|, with u the unit roundoff and c about 1 in a stored number of half
precision and at most n in a sum. Then a_i = sum_j triangle_ij z_j is off by at most c u \|x\| sum_j |triangle_ij|
\|W_j\|, where the product x right_i^T itself would be off by c u \|x\| \|right_i\|. The largest ratio of the two is the
amplification. A bias that is in y before the gather adds u |bias_j| to the error of z_j; what that makes of it depends
on the size of x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lowrank_ldu.kernels.torch_modes import has_values, is_stand_in

if TYPE_CHECKING:
    from torch import Tensor

# Rows of x that its size is taken from.
_SAMPLED = 16
# By how many roundings, amplified, a factor may be off what the triangle makes of W: elimination leaves 0.3 to 0.5 of
# them on random matrices and on those of all-MiniLM-L6-v2, at ranks 20 to 256. Another weight's factor is off by 1.
TOLERANCE = 32


class Skeleton(NamedTuple):
    """Hold the rows and columns of W that its factors are made of.

    Attributes
    ----------
    rows : Tensor, shape (r,), int64
    triangle : Tensor, shape (r, r)
        right = triangle W[rows]; of float32 at least.
    amplification : float
        By how much the rounding of entries of x W^T is enlarged in x right^T, at most, and that of g W in g left.
    columns : Tensor, shape (r,), int64, optional
    column_triangle : Tensor, shape (r, r), optional
        left = W[:, columns] column_triangle. Without them g left is a product.
    """

    rows: Tensor
    triangle: Tensor
    amplification: float
    columns: Tensor | None = None
    column_triangle: Tensor | None = None


@torch.no_grad()
def skeleton_of(
    weight: Tensor, right: Tensor, rows: Tensor, left: Tensor | None = None, columns: Tensor | None = None
) -> Skeleton:
    """Return the skeleton of a weight's factors, which plans use.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    right : Tensor, shape (r, n)
        U of W's LDU, in any scaling of its rows.
    rows : Tensor, shape (r,), integers
        Pivot rows, in any order.
    left : Tensor, shape (m, r), optional
        P L, in any scaling of its columns.
    columns : Tensor, shape (r,), integers, optional
        Pivot columns; the first r of them with partial pivoting.

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes do not belong together, rows or columns do not exist, or a factor is not made of them.

    Notes
    -----
    2 n r^2 multiply-adds in float64, and 2 m r^2 for left.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 2.0], [2.0, 8.0]])
    >>> found = skeleton_of(weight, torch.tensor([[1.0, 4.0]]), torch.tensor([1]))
    >>> found.triangle, round(found.amplification, 6)
    (tensor([[0.5000]]), 1.0)
    """
    triangle, amplification = _solved(weight, right, rows, ("right", "rows"))
    if left is None or columns is None:
        return Skeleton(rows.to(torch.int64), triangle, amplification)
    mirrored, other = _solved(weight.T, left.T, columns, ("left's transpose", "columns"))
    amplification = max(amplification, other)
    return Skeleton(rows.to(torch.int64), triangle, amplification, columns.to(torch.int64), mirrored.T.contiguous())


def _solved(weight: Tensor, factor: Tensor, chosen: Tensor, names: tuple[str, str]) -> tuple[Tensor, float]:
    """Return the triangle with factor = triangle weight[chosen], and its amplification."""
    (m, n), (name, numbers) = weight.shape, names
    if factor.ndim != 2 or factor.shape[1] != n or factor.dtype != weight.dtype:
        kind = f"{tuple(factor.shape)} and dtype {str(factor.dtype).removeprefix('torch.')}"
        raise ValueError(f"{name} has shape {kind}; accepted: (r, {n}) of weight's dtype")
    rank = len(factor)
    if tuple(chosen.shape) != (rank,) or chosen.is_floating_point():
        raise ValueError(f"{numbers} has shape {tuple(chosen.shape)}; accepted: ({rank},), integers")
    if rank and not (int(chosen.min()) >= 0 and int(chosen.max()) < m):
        low, high = int(chosen.min()), int(chosen.max())
        raise ValueError(f"{numbers} reaches from {low} to {high}; accepted: 0 to {m - 1}")
    picked, target = weight[chosen.to(weight.device, torch.int64)].double(), factor.double()
    basis, upper = torch.linalg.qr(picked.T)
    if rank > n or bool((upper.diagonal() == 0).any()):
        raise ValueError(f"weight's {numbers} depend on each other; accepted: independent ones, as pivots are")
    triangle = torch.linalg.solve_triangular(upper.T, target @ basis, upper=False, left=False)
    sizes = torch.linalg.vector_norm(target, dim=1)
    enlarged = triangle.abs() @ torch.linalg.vector_norm(picked, dim=1)
    residual = torch.linalg.vector_norm(triangle @ picked - target, dim=1)
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    # The factor was computed in the wide dtype, and then rounded to weight's.
    allowed = TOLERANCE * torch.finfo(wide).eps * enlarged + torch.finfo(weight.dtype).eps * sizes
    if not bool((residual <= allowed).all()):
        worst = int((residual / allowed).nan_to_num(torch.inf).argmax())
        raise ValueError(
            f"row {worst} of {name} is off the span of weight's {numbers} by {float(residual[worst]):.1e}; accepted: "
            f"up to {float(allowed[worst]):.1e}, as of a factor of this weight's LDU and its pivots"
        )
    ratios = torch.where(sizes > 0, enlarged / sizes, 1.0)
    return triangle.to(wide), float(ratios.max()) if rank else 1.0


@torch.no_grad()
def relative_bias(x: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
    """Return |bias| of some outputs over the norm of a row of x.

    Parameters
    ----------
    x : Tensor, shape (T, n)
        Some of its rows are looked at.
    bias : Tensor, shape (m,)
    rows : Tensor, shape (r,)
        Numbers of the outputs.

    Returns
    -------
    Tensor, shape (r,), float64
        Zeros where x is zero: then y is the bias, and nothing is left when it is subtracted.
    """
    sampled = x[:: max(1, len(x) // _SAMPLED)].double()
    size = torch.linalg.vector_norm(sampled) / max(1, len(sampled)) ** 0.5
    return torch.where(size > 0, bias.index_select(0, rows).double().abs() / size, 0.0)


@torch.no_grad()
def amplification_of(x: Tensor, skeleton: Skeleton, right: Tensor, bias: Tensor | None) -> float:
    """Return the amplification of a skeleton, a layer's bias included.

    Parameters
    ----------
    x : Tensor, shape (T, n)
    skeleton : Skeleton
    right : Tensor, shape (r, n)
    bias : Tensor, shape (m,), optional
    """
    # In a graph, and while a GPU's stream is recorded, no number can be read.
    unread = not has_values(x) or is_stand_in(x) or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    if bias is None or unread:
        return skeleton.amplification
    offsets = skeleton.triangle.double().abs() @ relative_bias(x, bias, skeleton.rows)
    sizes = torch.linalg.vector_norm(right, dim=1).double()
    return skeleton.amplification + float(torch.where(sizes > 0, offsets / sizes, 0.0).max())


def largest_amplification(dtype: torch.dtype) -> float:
    """Return how large an amplification may be in a dtype.

    Half of the dtype's digits have to remain in the projection: 11 in bfloat16, 32 in float16, 2,900 in float32. It is
    stricter in half precision by itself, where y is rounded before the gather, though sums are accumulated in float32.

    Examples
    --------
    >>> round(largest_amplification(torch.float16))
    32
    """
    return float(torch.finfo(dtype).eps ** -0.5)

"""Compute the packed plan.

It takes triangular products of the factors, where they are the whole weight (r = min(m, n)).

Products with a unit upper trapezoidal factor U (r, n) leave its zero blocks out. P L in its pivoted order is L, and L^T
is an upper trapezoidal matrix as well: both factors go through `project` and `expand`. These take many small products;
each thread therefore computes rows of its own (`lowrank_ldu.kernels.row_threads`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.kernels.row_threads import run_pieces, thread_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Narrow blocks skip more zeros, and products of narrow blocks are slower. In processor time of one thread of an AMD
# EPYC, 64 to 192 are within 10 % of each other for r of 384 to 1536.
BLOCK = 96

# Rows that are permuted and multiplied at a time: their scratch memory stays in the cache, and is not paid for in fresh
# pages at every call. Few rows are shared out to all threads, in pieces of at least `_LEAST_ROWS`.
_ROWS, _LEAST_ROWS = 512, 64

# Of the weight's own norm, by the dtype's eps: what elimination with partial pivoting leaves of W - P L D U. Its growth
# is small on real weights (1 to 5 eps measured on all-MiniLM-L6-v2); a factorization that is off by more than this is
# not W's.
TOLERANCE = 1e3


@dataclass(frozen=True)
class Packing:
    r"""Hold what replaces the weight in the packed plan.

    Attributes
    ----------
    diagonal : Tensor, shape (r,)
        d with W = left diag(d) right.
    order : Tensor, shape (m,), int64
        Rows of left in the order of elimination: left[order] is L, lower trapezoidal.
    inverse : Tensor, shape (m,), int64
        The inverse permutation.
    residual : float
        \|W - left diag(d) right\|_F over \|W\|_F.
    """

    diagonal: Tensor
    order: Tensor
    inverse: Tensor
    residual: float


@torch.no_grad()
def pack(weight: Tensor, left: Tensor, right: Tensor, diagonal: Tensor, pivots: Tensor) -> Packing:
    """Return the packing of a weight, which the packed plan needs.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        float32 or float64: in lower precisions the factors do not hold a weight (3 to 5 % off in bfloat16).
    left, right : Tensor, shapes (m, r) and (r, n)
        P L and U with r = min(m, n), by partial pivoting.
    diagonal : Tensor, shape (r,)
        D.
    pivots : Tensor, shape (r,), integers
        Pivot rows.

    Raises
    ------
    TypeError, ValueError
        The factors are not triangular at these pivots, are not of this weight, or do not hold it to rounding.

    Examples
    --------
    >>> import torch
    >>> weight = torch.tensor([[1.0, 2.0], [2.0, 8.0]])
    >>> left, right = torch.tensor([[0.5, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 4.0], [0.0, 1.0]])
    >>> pack(weight, left, right, torch.tensor([2.0, -2.0]), torch.tensor([1, 0])).residual
    0.0
    """
    (m, n), r = weight.shape, min(weight.shape)
    if weight.dtype not in {torch.float32, torch.float64}:
        raise TypeError(
            f"weight has dtype {str(weight.dtype).removeprefix('torch.')}; accepted: float32, float64 (in lower "
            "precisions packed factors do not hold a weight)"
        )
    shapes = {"left": left, "right": right, "diagonal": diagonal, "pivots": pivots}
    for (name, tensor), shape in zip(shapes.items(), ((m, r), (r, n), (r,), (r,)), strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; accepted: {shape}, of a weight {(m, n)} at full rank"
            )
    rows = pivots.to(weight.device, torch.int64)
    taken = torch.zeros(m, dtype=torch.bool, device=weight.device)
    if r and (int(rows.min()) < 0 or int(rows.max()) >= m):
        raise ValueError(f"pivots reach from {int(rows.min())} to {int(rows.max())}; accepted: rows 0 to {m - 1}")
    taken[rows] = True
    if int(taken.sum()) != r:
        raise ValueError("pivots has a row twice; accepted: different rows")
    order = torch.cat([rows, torch.nonzero(~taken)[:, 0]])
    if bool(left[order].triu(1).any()) or bool(right.tril(-1).any()):
        raise ValueError(
            "the factors are not trapezoidal at these pivots; accepted: left[pivots] lower and right upper triangular, "
            "as partial pivoting makes them"
        )
    size = torch.linalg.matrix_norm(weight)
    residual = (
        float(torch.linalg.matrix_norm(weight - (left * diagonal.to(left.dtype)) @ right) / size) if size else 0.0
    )
    limit = TOLERANCE * torch.finfo(weight.dtype).eps
    if not residual <= limit:
        raise ValueError(
            f"left diag(diagonal) right differs from weight by {residual:.1e} of its norm; accepted: up to {limit:.1e}"
        )
    return Packing(diagonal.to(weight.dtype), order, torch.argsort(order), residual)


def packed_forward(
    x: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, diagonal: Tensor, order: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and a = x right^T (T, r).

    y = x (left diag(diagonal) right)^T + b; a is the projection.
    """
    (tokens, _), (m, r) = x.shape, left.shape
    lower = (left.index_select(0, order) * diagonal).T
    ordered = None if bias is None else bias[order]
    projected, y = x.new_empty(tokens, r), x.new_empty(tokens, m)
    threads = thread_count(x.device)
    step = rows_at_a_time(tokens, threads)
    scratch = x.new_empty(threads, min(step, tokens), m)

    def piece(start: int, stop: int, thread: int) -> None:
        rows, chunk = slice(start, stop), scratch[thread, : stop - start]
        project(x[rows], right, out=projected[rows])
        expand(projected[rows], lower, out=chunk, bias=ordered)
        torch.gather(chunk, 1, inverse.expand(len(chunk), m), out=y[rows])

    run_pieces(piece, tokens, step, threads)
    return y, projected


def packed_backward(
    gradient: Tensor, projected: Tensor, left: Tensor, right: Tensor, diagonal: Tensor, order: Tensor, *, need_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Return dx (T, n) and the diagonal's gradient (r,).

    dx is None if not needed.
    """
    (tokens, m), (r, n) = gradient.shape, right.shape
    lower = left.index_select(0, order).T
    upper = right * diagonal[:, None]
    dx = gradient.new_empty(tokens, n) if need_x else None
    threads = thread_count(gradient.device)
    step = rows_at_a_time(tokens, threads)
    scratch = gradient.new_empty(threads, min(step, tokens), m)
    expanded = gradient.new_empty(threads, min(step, tokens), r)
    # Summed in the order of the rows, whichever thread was first.
    totals = gradient.new_empty(-(-tokens // step), r)

    def piece(start: int, stop: int, thread: int) -> None:
        rows, size = slice(start, stop), stop - start
        ordered, chunk = scratch[thread, :size], expanded[thread, :size]
        torch.gather(gradient[rows], 1, order.expand(size, m), out=ordered)
        project(ordered, lower, out=chunk)
        if dx is not None:
            expand(chunk, upper, out=dx[rows])
        torch.sum(chunk.mul_(projected[rows]), dim=0, out=totals[start // step])

    run_pieces(piece, tokens, step, threads)
    return dx, totals.sum(dim=0)


def rows_at_a_time(tokens: int, threads: int) -> int:
    """Return the rows of a piece: as many pieces for each thread."""
    rounds = -(-tokens // (_ROWS * threads))
    return max(min(_LEAST_ROWS, _ROWS), -(-tokens // max(1, rounds * threads)))


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)


def multiply_adds(r: float, n: float) -> float:
    """Return the multiply-adds of one row of either product."""
    return r * n - r * r / 2 + r * min(BLOCK, r) / 2


def overhead(tokens: float, r: float, threads: int, call: float) -> float:
    """Return the seconds of one pass's calls, beyond those of a single piece.

    Threads share one interpreter, which makes their calls one after the other. Handing the pieces out and meeting again
    takes some ten calls for each thread.
    """
    pieces = torch.sym_max(tokens / _ROWS, 1.0 * threads)  # type: ignore[no-untyped-call]
    return call * ((pieces - 1) * (2 * r / BLOCK + 1) + (10.0 * threads if threads > 1 else 0.0))  # type: ignore[no-any-return]


def project(x: Tensor, upper: Tensor, out: Tensor) -> Tensor:
    """Write x U^T into `out`.

    Parameters
    ----------
    x : Tensor, shape (T, n)
    upper : Tensor, shape (r, n)
        U: zero left of its diagonal, which is not read there.
    out : Tensor, shape (T, r)
    """
    for start, end in _blocks(len(upper)):
        torch.mm(x[:, start:], upper[start:end, start:].T, out=out[:, start:end])
    return out


def expand(projected: Tensor, upper: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """Write `projected` U, plus a bias if there is one, into `out`.

    Parameters
    ----------
    projected : Tensor, shape (T, r)
    upper : Tensor, shape (r, n)
        U: zero left of its diagonal, which is not read there.
    out : Tensor, shape (T, n)
    bias : Tensor, shape (n,), optional
    """
    r, n = upper.shape
    for start, end in [*_blocks(r), (r, n)] if n > r else _blocks(r):
        columns, terms = slice(start, end), slice(0, min(end, r))
        if bias is None:
            torch.mm(projected[:, terms], upper[terms, columns], out=out[:, columns])
        else:
            torch.addmm(bias[columns], projected[:, terms], upper[terms, columns], out=out[:, columns])
    return out

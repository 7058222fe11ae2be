r"""Choose rows and columns of a weight whose span holds a target.

An update at pivots (I, J) is W[:, J] K W[I, :]. Of a target G it can hold \|Q_C^T G Q_R\|_F^2, with Q_C an orthonormal
basis of W[:, J] and Q_R one of W[I, :]^T. Choosing J for given rows is the generalized column subset selection problem:
columns of one matrix for the columns of another, G Q_R. Its greedy solution, orthogonal least squares for several
right-hand sides, takes the column that adds most to what is held; the recurrences for that are those of Farahat,
Elgohary, Ghodsi and Kamel (Greedy column subset selection for large-scale data sets, arXiv 1312.6838), also of Maung
and Schweitzer (Improved greedy algorithms for sparse approximation of a matrix in terms of another matrix).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from lowrank_ldu.decomposition import ldu

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# A column whose part beyond the chosen ones is smaller than this, relative to the column, is taken for dependent.
_DEPENDENT = 1e-5
# Norms that were brought down by subtraction to less than this, relative to where that began, are computed anew.
_DOWNDATED = 1e-3
# A pivot of the chosen block that is smaller than this, relative to the largest, is replaced.
_NEAR_SINGULAR = 1e-4


class Chosen(NamedTuple):
    """Hold chosen columns in the order of choice.

    Attributes
    ----------
    indices : list of int
    basis : Tensor, shape (m, r)
        Orthonormal: the first k columns span the first k chosen ones.
    """

    indices: list[int]
    basis: Tensor


def greedy_columns(
    W: Tensor, moment: Callable[[Tensor], Tensor], energies: Callable[[Tensor], Tensor], count: int
) -> Chosen:
    """Choose columns of W whose span holds most of a target B.

    Each step takes the column that adds most to the energy of B in the span, in two products with W and one with the
    target's moment: O(m n) a step.

    Parameters
    ----------
    W : Tensor, shape (m, n)
    moment : callable
        From q (m,) to B B^T q (m,).
    energies : callable
        From A (m, n) to a_j^T B B^T a_j for each column a_j.
    count : int
        r.

    Returns
    -------
    Chosen
        Fewer than r columns where the others depend on those.
    """
    m, n = W.shape
    least = _DEPENDENT * torch.linalg.vector_norm(W, dim=0)
    least = torch.clamp(least, min=_DEPENDENT * least.max()) ** 2
    left, energy = (W * W).sum(dim=0), energies(W)
    size = left
    free = left > least
    basis, coefficients = W.new_zeros(m, count), W.new_zeros(count, n)
    indices: list[int] = []
    fresh = 0  # coefficients of the steps since W was last freed of the chosen columns
    while len(indices) < count:
        step = len(indices)
        exact = free & (left > _DOWNDATED**2 * size)
        score = torch.where(exact, energy.clamp_min(0) / left.clamp_min(torch.finfo(W.dtype).tiny), -1.0)
        best = int(score.argmax())
        if not bool(exact[best]):
            if fresh == step:
                break
            # What is left of the columns has been subtracted from until rounding shows: it is computed anew.
            done = basis[:, :step]
            W = W - done @ (done.T @ W)
            W = W - done @ (done.T @ W)
            left, energy = (W * W).sum(dim=0), energies(W)
            size, fresh = left, step
            free &= left > least
            continue
        done, used = basis[:, :step], slice(fresh, step)
        q = W[:, best] - basis[:, used] @ coefficients[used, best]
        # Twice is enough (Kahan).
        q = q - done @ (done.T @ q)
        q = q / torch.linalg.vector_norm(q)
        v = moment(q)
        products = torch.stack([q, v]) @ W
        along, across = products[0], products[1] - (basis[:, used].T @ v) @ coefficients[used]
        energy = energy + along * (along * (q @ v) - 2 * across)
        left = left - along * along
        basis[:, step], coefficients[step] = q, along
        free[best] = False
        indices.append(best)
    return Chosen(indices, basis[:, : len(indices)])


def columns_for(W: Tensor, target: Tensor, count: int) -> Chosen:
    """Choose columns of W (m, n) for a target B (m, k)."""

    def energies(A: Tensor) -> Tensor:
        return ((target.T @ A) ** 2).sum(dim=0)

    if len(target) <= target.shape[1]:
        # A product with the moment (m, m) takes no longer than one with B, of which each step has two.
        moment = target @ target.T
        return greedy_columns(W, moment.__matmul__, energies, count)
    return greedy_columns(W, lambda q: target @ (q @ target), energies, count)


def columns_for_moment(W: Tensor, moment: Tensor, count: int) -> Chosen:
    """Choose columns of W (m, n) for B of a known moment B B^T (m, m)."""
    return greedy_columns(W, moment.__matmul__, lambda A: (A * (moment @ A)).sum(dim=0), count)


def usable_pivots(W: Tensor, rows: list[int], columns: list[int]) -> tuple[list[int], list[int]]:
    """Return pivots in an order that can be eliminated in.

    It is the order of complete pivoting of W[rows][:, columns]. Rows at which that finds no pivot of a usable size are
    replaced by those that partial pivoting finds for the columns that are left.

    Parameters
    ----------
    W : Tensor, shape (m, n)
    rows, columns : list of int
        As many of each. The columns are independent.

    Returns
    -------
    rows, columns : list of int

    Raises
    ------
    ValueError
        W has too low a rank.
    """
    count = len(columns)
    block = W[rows][:, columns]
    if bool((block == 0).all()):
        good, order_rows, order_columns = 0, list(range(count)), list(range(count))
    else:
        factors = ldu(block, pivoting="complete")
        pivots = factors.diagonal.abs()
        usable = (pivots >= _NEAR_SINGULAR * W.abs().max()) & ~factors.zero_pivots
        good = int(usable.to(torch.int64).cumprod(0).sum())
        order_rows, order_columns = factors.permutation.tolist(), cast("Tensor", factors.column_permutation).tolist()
    kept_rows = [rows[i] for i in order_rows[:good]]
    ordered = [columns[j] for j in order_columns]
    if good == count:
        return kept_rows, ordered
    rest = W[:, ordered[good:]].double()
    if good:
        head = W[:, ordered[:good]].double()
        rest = rest - head @ torch.linalg.solve(head[kept_rows], rest[kept_rows])
    for step in range(count - good):
        column = rest[:, step].abs()
        column[kept_rows] = 0
        row = int(column.argmax())
        if float(column[row]) <= _NEAR_SINGULAR**2 * float(W.abs().max()):
            raise ValueError(f"rank is {count}; accepted: at most {good + step}, the rank of the weight")
        kept_rows.append(row)
        rest = rest - torch.outer(rest[:, step] / rest[row, step], rest[row])
    return kept_rows, ordered

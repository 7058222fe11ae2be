"""Products with a unit upper trapezoidal factor U (r, n) that leave its zero blocks out, in torch.

P L in its pivoted order is L, and L^T is an upper trapezoidal matrix as well: both factors go through the same two
functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Narrow blocks skip more zeros, and products of narrow blocks are slower. Of 48 to 384, 96 was the best or within 3 %
# of it for x of 512 to 6304 rows and r = 768 (two threads of an AMD EPYC): 0.62 to 0.65 of the dense product's time.
BLOCK = 96


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)


def multiply_adds(r: float, n: float) -> float:
    """Return the multiply-adds that one row of either product takes."""
    return r * n - r * r / 2 + r * min(BLOCK, r) / 2


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

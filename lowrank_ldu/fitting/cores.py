"""Count the numbers of a core, and the energy that it can hold.

A core is what an adapter trains: with LDU factors L and U of a weight the update is L K U, and K is dense, of blocks on
the diagonal, or diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.nn.cores import CORES, Core, core_shape
from lowrank_ldu.validation import check_choice, check_count

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.fitting.energy import Energy

# Terms that depend on each other but for rounding share what they hold.
_JITTER = 1e-12


@dataclass(frozen=True)
class CoreShape:
    """Hold the shape of the cores of a model.

    Attributes
    ----------
    core : str
        "dense": r^2 numbers. "block": blocks of `block_size` on the diagonal, r times that. "diagonal": r.
    block_size : int
        1 unless core is "block".
    """

    core: Core
    block_size: int = 1

    @classmethod
    def checked(cls, core: Core, block_size: int | None) -> CoreShape:
        """Return a shape of checked arguments.

        Raises
        ------
        TypeError, ValueError
        """
        check_choice(core, "core", CORES)
        if core != "block":
            if block_size is not None:
                raise ValueError(f"block_size is {block_size!r} with core {core!r}; accepted: None")
            return cls(core)
        return cls(core, check_count(block_size, "block_size", 1))

    def numbers(self, rank: int) -> int:
        """Return the trained numbers of a core of some rank.

        Raises
        ------
        ValueError
            The rank is no multiple of the block size.

        Examples
        --------
        >>> CoreShape("dense").numbers(8), CoreShape("block", 4).numbers(8), CoreShape("diagonal").numbers(8)
        (64, 32, 8)
        """
        return prod(core_shape(self.core, rank, self.block_size))

    def rank_of(self, step: int, limit: int) -> int:
        """Return the rank of a number of blocks, at most a limit's."""
        return min(step, self.steps(limit)) * self.block_size

    def steps(self, limit: int) -> int:
        """Return the number of blocks that a rank has room for."""
        return limit // self.block_size

    def held_by_rank(self, left: Tensor, right: Tensor, energy: Energy) -> Tensor:
        """Return the share that cores of rank 1, 2, ... hold.

        Parameters
        ----------
        left, right : Tensor, shapes (m, r) and (r, n)
            The first k terms are those of rank k.
        energy : Energy

        Returns
        -------
        Tensor, shape (r,), float64
            Shares of the target's energy in the cores' spans.
        """
        if self.core == "dense":
            squares = energy.grid(torch.linalg.qr(left).Q, torch.linalg.qr(right.T).Q)
            return squares.cumsum(0).cumsum(1).diagonal()
        left, right = (part / torch.linalg.vector_norm(part, dim=0) for part in (left, right.T))
        block = torch.arange(left.shape[1], device=left.device) // self.block_size
        pairs = (block[:, None] == block).nonzero()
        # In the order of the larger index, so that the terms of each rank are the first ones.
        later = pairs.max(dim=1).values
        rows, columns = pairs[later.argsort(stable=True)].T
        gram = (left.T @ left).double()[rows][:, rows] * (right.T @ right).double()[columns][:, columns]
        gram.diagonal().add_(_JITTER)
        factor, _ = torch.linalg.cholesky_ex(gram)
        half = torch.linalg.solve_triangular(factor, energy.moment(left[:, rows], right[:, columns]), upper=False)
        along = torch.linalg.solve_triangular(factor, half.T, upper=False).diagonal()
        ends = torch.bincount(later, minlength=left.shape[1]).cumsum(0) - 1
        held: Tensor = along.cumsum(0)[ends]
        return held

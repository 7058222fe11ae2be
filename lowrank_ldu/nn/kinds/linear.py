"""Read the weight of nn.Linear and its relatives as W."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch.nn.functional import linear

from lowrank_ldu.nn.cores import apply_core

if TYPE_CHECKING:
    from torch import Tensor, nn


class LinearKind:
    """Linear layer y = x W^T + b with W (out_features, in_features)."""

    name: ClassVar[str] = "linear"
    linear: ClassVar[bool] = True

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """Return the weight."""
        return weight

    @staticmethod
    def as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
        """Return the matrix."""
        return matrix.reshape(weight.shape)

    @staticmethod
    def update(module: nn.Module, x: Tensor, left: Tensor, right: Tensor, core: Tensor) -> Tensor:
        """Return x right^T K^T left^T for x (..., n)."""
        del module
        return linear(apply_core(linear(x, right), core), left)

    @staticmethod
    def lora_pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return right (r, n) and left (m, r)."""
        return right, left

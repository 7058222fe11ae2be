"""Read the weight of transformers' Conv1D as W transposed.

Conv1D is GPT-2's linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lowrank_ldu.nn.kinds.linear import LinearKind

if TYPE_CHECKING:
    from torch import Tensor


class TransposedLinearKind(LinearKind):
    """Linear layer y = x W^T + b that stores W^T (in_features, out_features)."""

    name: ClassVar[str] = "transposed linear"

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """Return the weight's transpose."""
        return weight.T

    @staticmethod
    def as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
        """Return the matrix's transpose."""
        return matrix.T.reshape(weight.shape)

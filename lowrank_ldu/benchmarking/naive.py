"""The paper's formula as it stands, in dense matrices: what published code computes at every forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from lowrank_ldu.nn import LoLDULayer


class NaiveLayer(nn.Module):
    """y = x (RSM + sigma P L diag(z) U)^T + b with a dense permutation matrix P and diag(z) as a matrix.

    Parameters
    ----------
    layer : LoLDULayer
        Of the same weight, for its factors and its present z.

    Notes
    -----
    Equations (6) to (9) of arXiv 2410.13618, product by product.
    """

    permutation: Tensor
    lower: Tensor
    upper: Tensor
    residual: Tensor
    bias: Tensor

    def __init__(self, layer: LoLDULayer) -> None:
        super().__init__()
        weight: Tensor = layer.base_layer.weight  # type: ignore[assignment]
        factors, m = layer.factors, len(weight)
        pivots = factors.pivot_rows
        assert pivots is not None  # noqa: S101  # of partial pivoting
        rest = torch.ones(m, dtype=torch.bool, device=weight.device)
        rest[pivots] = False
        order = torch.cat([pivots, rest.nonzero()[:, 0]])
        permutation = torch.eye(m, dtype=weight.dtype, device=weight.device)[:, order]
        self.register_buffer("permutation", permutation)
        self.register_buffer("lower", permutation.T @ factors.left)
        self.register_buffer("upper", factors.right)
        self.register_buffer("bias", layer.base_layer.bias.detach())  # type: ignore[operator]
        scale = factors.scale.to(weight.dtype)
        reference = (factors.diagonal * factors.scale).to(weight.dtype)
        self.register_buffer("residual", weight - factors.left @ torch.diag(reference) @ factors.right)
        self.diagonal = nn.Parameter(layer.z.detach().to(weight.dtype) * scale)
        self.sigma = nn.Parameter(torch.ones(1, dtype=weight.dtype, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x (..., n)."""
        trained = self.permutation @ self.lower @ torch.diag(self.diagonal) @ self.upper
        return linear(x, self.residual + self.sigma * trained, self.bias)

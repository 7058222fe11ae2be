"""A few numbers that tell whether a rebuilt update is the one that was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.nn.factors import Factors

PROBES = 32


@torch.no_grad()
def update_sketch(factors: Factors, delta: Tensor) -> Tensor:
    r"""Return a_k^T (P L diag(delta) U) b_k for fixed vectors of signs a_k and b_k, shape (PROBES,), float32.

    The mean square of a sketch is that of the update's Frobenius norm, so that the relative distance of two sketches
    estimates that of two updates. Costs PROBES r (m + n) multiply-adds; nothing of size m n is formed.

    Parameters
    ----------
    factors : Factors
    delta : Tensor, shape (r,)
    """
    left, right = factors.left, factors.right
    wide = torch.promote_types(left.dtype, torch.float32)
    # The legacy generator, whose stream is frozen: a file has to meet the same signs under any NumPy.
    generator = np.random.RandomState(0)

    def signs(size: int) -> Tensor:
        drawn = generator.randint(0, 2, (PROBES, size), dtype=np.int8)
        return torch.from_numpy(drawn).to(left.device, wide) * 2 - 1

    rows = signs(left.shape[0]) @ left.to(wide)
    columns = signs(right.shape[1]) @ right.to(wide).mT
    return (rows * (delta.detach() * factors.scale).to(wide) * columns).sum(dim=1).float().cpu()

"""The constraints of section III-D, applied after an optimiser's step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.nn.host import hosts
from lowrank_ldu.validation import check_positive

if TYPE_CHECKING:
    from torch import nn


@torch.no_grad()
def project_(model: nn.Module, epsilon: float | None = None) -> None:
    r"""Project the parameters of every LoLDU adapter of a model onto \|z\| <= epsilon and 0 < sigma <= 1, in place.

    Parameters
    ----------
    model : nn.Module
    epsilon : float, optional
        Largest Euclidean norm of each layer's diagonal z, to rounding; positive. No limit if not given.

    Raises
    ------
    TypeError, ValueError
        epsilon is not a positive finite number.

    Notes
    -----
    What is frozen stays as it is, a sigma of `train_sigma=False` included. Section III-D of arXiv 2410.13618, which
    leaves epsilon open. The set 0 < sigma <= 1 has no nearest point to a sigma <= 0; it becomes the smallest normal
    number of its dtype.

    Examples
    --------
    >>> from lowrank_ldu.nn import LoLDULayer
    >>> layer = LoLDULayer(torch.nn.Linear(4, 4), rank=2)
    >>> with torch.no_grad():
    ...     _ = layer.sigma.fill_(3.0)
    >>> project_(layer, epsilon=0.5)
    >>> layer.sigma.item(), bool(layer.z.norm() <= 0.5 + 1e-6)
    (1.0, True)
    """
    limit = None if epsilon is None else check_positive(epsilon, "epsilon")
    for _, host in hosts(model):
        for _, adapter, factors in host.diagonals():
            # Each for itself: one may be trained and the other not.
            if adapter.sigma.requires_grad:
                adapter.sigma.clamp_(torch.finfo(adapter.sigma.dtype).tiny, 1.0)
            if limit is None or not adapter.offset.requires_grad:
                continue
            z = adapter.z(factors)
            norm = torch.linalg.vector_norm(z)
            if norm > limit:
                adapter.set_z(z * (limit / norm), factors)

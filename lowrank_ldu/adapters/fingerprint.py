"""Fingerprint of a base weight: whether an adapter's factors will be what they were in training."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def fingerprint(weight: Tensor) -> str:
    """Return the SHA-256 of a weight's dtype, shape and bytes, as hexadecimal digits.

    Examples
    --------
    >>> fingerprint(torch.zeros(2, 2))[:8] == fingerprint(torch.zeros(2, 2))[:8]
    True
    >>> fingerprint(torch.zeros(2, 2)) == fingerprint(torch.zeros(1, 4))
    False
    """
    contiguous = weight.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)} ".encode())
    digest.update(contiguous.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

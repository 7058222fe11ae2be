"""What stands in the two files of an adapter."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "adapter.json"
FORMAT = "lowrank-ldu adapter"
VERSION = 1


@dataclass(frozen=True)
class LayerRecord:
    """One layer's entry in the configuration; its tensors are `{name}.offset` and so on.

    Attributes
    ----------
    shape : tuple of int
        (m, n) of the base weight.
    rank : int
    alpha : float
    init, pivoting : str
    preserving : bool
    base_sha256 : str
        `fingerprint` of the base weight.
    """

    shape: tuple[int, int]
    rank: int
    alpha: float
    init: str
    preserving: bool
    pivoting: str
    base_sha256: str

"""What stands in the two files of an adapter."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "adapter.json"
FORMAT = "lowrank-ldu adapter"
VERSION = 2


@dataclass(frozen=True)
class LayerRecord:
    """One layer's entry in the configuration; its tensors are `{name}.offset` and so on.

    Attributes
    ----------
    kind : str
        `LayerKind.name` of the base layer.
    shape : tuple of int
        (m, n) of the base weight as a matrix.
    base_dtype : str
        Of the base weight, "float32".
    base_sha256 : str
        `fingerprint` of that matrix; empty where it is not known.
    rank, seed : int
    alpha : float
    init, pivoting, basis, parametrization : str
    preserving, train_sigma : bool
        Options of `LoLDULayer`.
    lora_obstacle : str
        Why a LoRA pair beside the base layer would compute something else than the update; empty, and then not
        written, if it would not. Files of earlier versions have none.
    """

    kind: str
    shape: tuple[int, int]
    base_dtype: str
    base_sha256: str
    rank: int
    alpha: float
    init: str
    preserving: bool
    pivoting: str
    basis: str
    parametrization: str
    train_sigma: bool
    seed: int
    lora_obstacle: str = ""

"""Matrices whose analysis this machine's memory cannot hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.selection import matrix_shape

if TYPE_CHECKING:
    from lowrank_ldu.analysis.readers import TensorInfo

_GIBIBYTE = 2**30


def size_reason(info: TensorInfo, bytes_per_entry: int, memory: int) -> str | None:
    """Return why a matrix is too large to analyse, None if it is not: the kernel would end the whole analysis.

    Parameters
    ----------
    info : TensorInfo
        Of a matrix.
    bytes_per_entry : int
        That the analysis needs at its peak.
    memory : int
        Bytes of the machine, half of which may be used.

    Examples
    --------
    >>> from lowrank_ldu.analysis.readers import TensorInfo
    >>> print(size_reason(TensorInfo("w", (2**17, 2**13), "float32", "a.safetensors", 2**32), 96, 2**34))
    131072 x 8192: too large, since its analysis takes about 96.0 GiB; accepted: up to 8.0 GiB, half of the memory
    """
    m, n = matrix_shape(info.shape, info.order)
    need = math.prod((m, n, bytes_per_entry))
    if 2 * need <= memory:
        return None
    return (
        f"{m} x {n}: too large, since its analysis takes about {need / _GIBIBYTE:.1f} GiB; accepted: up to "
        f"{memory / 2 / _GIBIBYTE:.1f} GiB, half of the memory"
    )

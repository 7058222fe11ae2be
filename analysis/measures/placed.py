"""Say on which device a matrix is factored, and on which it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.backend import backend_of
from lowrank_ldu.decomposition.elimination import in_host_memory

if TYPE_CHECKING:
    import torch

    from lowrank_ldu.diagnostics import Target


@dataclass(frozen=True)
class Placed:
    """Hold one matrix where it is factored, and where its figures are computed.

    The two are one tensor, but on a device without float64: there figures, and what needs float64 or a decomposition
    that torch has not there (QR, SVD, eigenvalues), are the CPU's.

    Attributes
    ----------
    factored : torch.Tensor, shape (m, n)
        What LDU and the sketches of the near-best LDU are computed of.
    measured : torch.Tensor, shape (m, n)
        The same numbers on a device that has float64.
    """

    factored: torch.Tensor
    measured: torch.Tensor

    @classmethod
    def of(cls, W: torch.Tensor) -> Placed:
        """Return the places of a matrix that is where it is to be factored.

        Examples
        --------
        >>> import torch
        >>> W = torch.eye(2)
        >>> Placed.of(W).measured is W
        True
        """
        return cls(W, W if backend_of(W).has_float64(W) else W.to("cpu"))

    @property
    def on_host(self) -> bool:
        """Whether all is done on the CPU."""
        return in_host_memory(self.factored)


def host_values(array: Any, target: Target) -> np.ndarray[Any, Any]:
    """Return an array of a target's library in the host's memory, where small steps cost the least."""
    return np.asarray(target.backend.to_numpy(array))

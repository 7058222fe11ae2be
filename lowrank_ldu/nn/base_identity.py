"""Compare a weight with the base that an adapter was trained on.

Three measures, from the exact one to the cheap one: a fingerprint of all bits, a sample of the weight's entries, and a
sketch of the update that the factors give. Their results are a `Deviation`. Where the weight is another one, `outcome`
makes an error, a warning or nothing of it, by one of three policies.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from lowrank_ldu.diagnostics.cost import PROBES, SAMPLES
from lowrank_ldu.nn.cores import scaled_core, times_core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lowrank_ldu.nn.factors import Factors

BaseCheck = Literal["error", "warn", "ignore"]


# Relative differences of samples. Rounding a weight to bfloat16 changes it by 0.2 %, to 4 bits by some 10 %; another
# weight is off by 100 %. No rounded or quantized copy is as far off as UNRELATED.
ROUNDED, QUANTIZED, UNRELATED = 0.01, 0.2, 0.5
# Relative difference of updates. Rebuilt float32 factors agree to 1e-5 and those of bfloat16 bases to 3e-4; where terms
# are nothing but rounding (a rank above the base's own) or singular vectors came out turned, they agree to 1 or worse.
UPDATE_AGREES = 0.01


def fingerprint(weight: Tensor) -> str:
    """Return the SHA-256 of a weight as hexadecimal digits.

    It covers the weight's dtype, shape and bytes.

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


def sample_of(matrix: Tensor) -> Tensor:
    """Return evenly spaced entries of a weight (m, n), in float32.

    They tell the weight from another one.
    """
    m, n = matrix.shape
    positions = torch.arange(SAMPLES, device=matrix.device) * (m * n - 1) // (SAMPLES - 1)
    # Numbers beyond float32 count as its largest number: infinities could not be compared.
    return matrix[positions // n, positions % n].detach().float().nan_to_num()


@torch.no_grad()
def update_sketch(factors: Factors, delta: Tensor) -> Tensor:
    r"""Return products of an update with vectors of signs.

    These are a_k^T (P L K U) b_k for fixed vectors of signs a_k and b_k, shape (PROBES,), float32. The mean
    square of a sketch is that of the update's Frobenius norm, so that the relative distance of two sketches estimates
    that of two updates. Costs PROBES r (m + n) multiply-adds; nothing of size m n is formed.

    Parameters
    ----------
    factors : Factors
    delta : Tensor
        The core K, (r,) or (g, b, b).
    """
    left, right = factors.left, factors.right
    wide = torch.promote_types(left.dtype, torch.float32)
    # The stream of NumPy's legacy generator is frozen: a file has to meet the same signs under any NumPy.
    generator = np.random.RandomState(0)

    def signs(size: int) -> Tensor:
        drawn = generator.randint(0, 2, (PROBES, size), dtype=np.int8)
        return torch.from_numpy(drawn).to(left.device, wide) * 2 - 1

    rows = signs(left.shape[0]) @ left.to(wide)
    columns = signs(right.shape[1]) @ right.to(wide).mT
    core = scaled_core(delta.detach(), factors.scale).to(wide)
    return (times_core(rows, core) * columns).sum(dim=1).float().cpu()


def relative_difference(saved: Tensor, present: Tensor) -> float:
    """Return the relative difference from a saved sample or sketch.

    Parameters
    ----------
    saved, present : Tensor, of one shape

    Returns
    -------
    float
        0 for the same, about 1 for another base or update.

    Examples
    --------
    >>> relative_difference(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    0.1
    """
    saved, present = saved.detach().double().cpu(), present.detach().double().cpu()
    size = float(saved.norm())
    difference = float((present - saved).norm())
    if size == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / size


@dataclass(frozen=True)
class Deviation:
    """Hold the deviations of one layer's base and of its update.

    Attributes
    ----------
    layer : str
    base : float or None
        Relative difference of the base weight where it was sampled; None if the base is the one of training.
    dtypes : tuple of str
        Dtype of the weight, and that of training, if they differ.
    update : float or None
        Estimated relative Frobenius error of the update; None where there is no sketch of it.
    """

    layer: str
    base: float | None = None
    dtypes: tuple[str, str] | None = None
    update: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.base is not None:
            seen = f"by {_percent(self.base)} % where it was sampled" if self.base else "but not where it was sampled"
            dtypes = "" if self.dtypes is None else f", and is {self.dtypes[0]} for {self.dtypes[1]}"
            parts.append(f"the weight is not the one that the adapter was trained on: it differs, {seen}{dtypes}")
        if self.update is not None:
            parts.append(f"the update comes out about {_percent(self.update)} % off")
        return f"layer {self.layer!r}: {'; '.join(parts)}"

    @property
    def size(self) -> float:
        """Return the largest deviation of the layer.

        Layers are ordered by it, to name the worst one.
        """
        return max(self.base or 0.0, self.update or 0.0)


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if share < 1 else f"{100 * share:.0f}"


def outcome(deviation: Deviation | None, policy: BaseCheck, *, tolerated: float | None = None) -> BaseCheck:
    """Return a policy's decision on a deviation.

    Parameters
    ----------
    deviation : Deviation, optional
        None where the base is the one of training.
    policy : str
        What is to be done on another base.
    tolerated : float, optional
        Deviation up to which the policy "error" only warns; none if not given.

    Returns
    -------
    str
        "error", "warn", or "ignore" where nothing is to be said.

    Examples
    --------
    >>> outcome(Deviation("query", base=0.1), "error", tolerated=QUANTIZED)
    'warn'
    """
    if deviation is None or policy == "ignore":
        return "ignore"
    if policy == "error" and (tolerated is None or not deviation.size <= tolerated):
        return "error"
    return "warn"


def warn_of(deviations: Sequence[Deviation], stacklevel: int = 2) -> None:
    """Warn once of the layer that deviates most, if any."""
    if not deviations:
        return
    worst = max(deviations, key=lambda deviation: deviation.size)
    others = len(deviations) - 1
    more = f" (and {others} more layer{'' if others == 1 else 's'}, by no more than that)" if others else ""
    warnings.warn(f"{worst}{more}", UserWarning, stacklevel=stacklevel + 1)

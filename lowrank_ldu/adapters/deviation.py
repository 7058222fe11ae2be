"""How far a base is from the one of training, and a rebuilt update from the one that was trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Deviation:
    """What `force` let pass in one layer.

    Attributes
    ----------
    layer : str
    base : float or None
        Relative difference of the base weight where it was sampled; None if the base is the one of training.
    dtypes : tuple of str
        Dtype of the weight, and that of training, if they differ.
    update : float or None
        Estimated relative Frobenius error of the update; None where the file has no sketch of it.
    """

    layer: str
    base: float | None
    dtypes: tuple[str, str] | None
    update: float | None

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
        """What layers are ordered by, to name the worst one."""
        return max(self.base or 0.0, self.update or 0.0)


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if share < 1 else f"{100 * share:.0f}"


def warn_of(deviations: Sequence[Deviation], stacklevel: int = 2) -> None:
    """Warn once, of the worst layer, if there is any."""
    if not deviations:
        return
    worst = max(deviations, key=lambda deviation: deviation.size)
    others = len(deviations) - 1
    more = f" (and {others} more layer{'' if others == 1 else 's'}, by no more than that)" if others else ""
    warnings.warn(f"{worst}{more}", UserWarning, stacklevel=stacklevel + 1)

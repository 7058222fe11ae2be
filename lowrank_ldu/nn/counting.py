"""Count trainable parameters as the paper counts them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.nn.host import hosts

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ParameterCount:
    """Hold the numbers of parameters of an adapted model.

    `str()` gives them as a sentence.

    Attributes
    ----------
    layers : int
        LoLDU layers.
    diagonal : int
        Trained numbers of the cores: of diagonals, the sum of the ranks.
    sigma : int
        Trained scales, one a layer.
    other : int
        Trained parameters outside the LoLDU layers: heads, norms, biases.
    total : int
        All parameters of the model without its adapters, trained or not.
    breakdown : str
        How the adapter's count comes about, "24 x (768 + 1)".
    """

    layers: int
    diagonal: int
    sigma: int
    other: int
    total: int
    breakdown: str

    @property
    def adapter(self) -> int:
        """Return the number of core entries and scales together.

        For diagonals it is the paper's count, which leaves out the classification head.
        """
        return self.diagonal + self.sigma

    def __str__(self) -> str:
        share = 100 * self.adapter / self.total if self.total else 0.0
        head = f"; {self.other:,} more outside them (heads)" if self.other else ""
        return (
            f"{self.adapter:,} trainable parameters in {self.layers} LoLDU "
            f"layer{'' if self.layers == 1 else 's'} = {self.breakdown}, "
            f"{share:.4g} % of {self.total:,}{head}"
        )


def trainable_parameters(model: nn.Module) -> ParameterCount:
    """Count the trainable parameters of `model`.

    Notes
    -----
    Tables I and IV of arXiv 2410.13618 count r + 1 a layer (18,456 = 24 x 769) and not the head.

    Examples
    --------
    >>> from torch import nn
    >>> from lowrank_ldu.nn import inject
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> _ = inject(model, ["0"], rank=4)
    >>> _ = model[1].requires_grad_(True)
    >>> print(trainable_parameters(model))
    5 trainable parameters in 1 LoLDU layer = 1 x (4 + 1), 5.556 % of 90; 18 more outside them (heads)
    """
    layers = [held.adapter for _, host in hosts(model) for held in host.held_adapters()]
    layers = [adapter for adapter in layers if adapter.offset.requires_grad or adapter.sigma.requires_grad]
    own = {
        id(numbers)
        for _, host in hosts(model)
        for _, adapter, _ in host.held_adapters()
        for numbers in adapter.parameters()
    }
    others = [parameter for parameter in model.parameters() if id(parameter) not in own]
    kinds = Counter(
        (layer.offset.numel() * layer.offset.requires_grad, layer.sigma.numel() * layer.sigma.requires_grad)
        for layer in layers
    )
    return ParameterCount(
        layers=len(layers),
        diagonal=sum(core * count for (core, _), count in kinds.items()),
        sigma=sum(sigma * count for (_, sigma), count in kinds.items()),
        other=sum(parameter.numel() for parameter in others if parameter.requires_grad),
        total=sum(parameter.numel() for parameter in others),
        breakdown=" + ".join(f"{count} x ({core} + {sigma})" for (core, sigma), count in kinds.items()) or "0",
    )

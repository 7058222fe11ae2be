"""Train block-diagonal mini LoRAs: MELoRA, arXiv 2402.17263."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods.method import Method, MethodRequest, Prepared, targets_of
from lowrank_ldu.finetuning.methods.modules import linear_targets, train_only, whole_modules
from lowrank_ldu.finetuning.methods.options import as_option_errors, check_dropout, check_names
from lowrank_ldu.finetuning.methods.whole import PreparedParameters
from lowrank_ldu.finetuning.seeding import seeded
from lowrank_ldu.nn.injection import replace_module
from lowrank_ldu.validation import check_count, check_positive

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULTS = {"r": 1, "n": 8, "lora_alpha": 1, "lora_dropout": 0.0, "target_modules": None}
_WHY = {
    "rank": "it is r here",
    "alpha": "it is lora_alpha here",
    "modules_to_save": "the task says what is trained whole: trained_whole",
}


class MeloraLinear(nn.Module):
    r"""Linear layer with n mini LoRAs on parts of its features.

    y = W x + b + (lora_alpha / r) B A x. A and B are block-diagonal: the i-th mini LoRA takes the i-th of n equal parts
    of the inputs to the i-th of n equal parts of the outputs, at rank r. B A then has rank n r, and r (in + out)
    numbers are trained, whatever n is.

    Parameters
    ----------
    base_layer : nn.Linear
        Frozen from here on.
    r : int
        Rank of each mini LoRA.
    n : int
        Number of mini LoRAs, a divisor of the layer's inputs and outputs. With 1 the layer is that of LoRA.
    lora_alpha : float
        The update is scaled by lora_alpha / r.
    lora_dropout : float
        Probability with which inputs of A are dropped in training.

    Attributes
    ----------
    lora_A : Parameter, shape (n, r, in / n)
        Starts as LoRA's does, each block for itself.
    lora_B : Parameter, shape (n, out / n, r)
        Starts at zero, so that the layer starts as its base.

    Raises
    ------
    ValueError
        n does not divide the inputs or the outputs, or r is larger than a part of them.

    Notes
    -----
    arXiv 2402.17263.

    Examples
    --------
    >>> layer = MeloraLinear(nn.Linear(8, 4), r=1, n=2)
    >>> [tuple(value.shape) for value in layer.parameters() if value.requires_grad]
    [(2, 1, 4), (2, 2, 1)]
    """

    def __init__(
        self, base_layer: nn.Linear, *, r: int, n: int, lora_alpha: float = 1.0, lora_dropout: float = 0.0
    ) -> None:
        super().__init__()
        rows, columns = base_layer.out_features, base_layer.in_features
        if rows % n or columns % n:
            raise ValueError(
                f"n is {n} and the layer has {columns} inputs and {rows} outputs; accepted: a divisor of "
                f"{math.gcd(rows, columns)}"
            )
        if r > min(rows, columns) // n:
            raise ValueError(
                f"r is {r} with {n} mini LoRAs of {columns // n} inputs and {rows // n} outputs; accepted: an integer "
                f"from 1 to {min(rows, columns) // n}"
            )
        self.base_layer = base_layer.requires_grad_(requires_grad=False)
        self.scaling = lora_alpha / r
        weight = base_layer.weight
        # In float32 at least, as PEFT keeps its adapters: steps are small beside bfloat16's spacing.
        wide = torch.promote_types(weight.dtype, torch.float32)
        bound = 1 / math.sqrt(columns // n)  # of LoRA's Kaiming start, for the inputs of one block
        # Drawn on the CPU, so that one seed gives the same numbers on every device.
        start = nn.init.uniform_(torch.empty(n, r, columns // n, dtype=wide), -bound, bound)
        self.lora_A = nn.Parameter(start.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(n, rows // n, r, dtype=wide, device=weight.device))
        self.lora_dropout = nn.Dropout(lora_dropout)

    @property
    def weight(self) -> Tensor:
        """Return the base layer's weight, at which models look for its dtype."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """Return the base layer's bias."""
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the base layer's output and the update's.

        Parameters
        ----------
        x : Tensor, shape (..., in)

        Returns
        -------
        Tensor, shape (..., out)
        """
        base: Tensor = self.base_layer(x)
        parts = self.lora_dropout(x.to(self.lora_A.dtype)).unflatten(-1, (len(self.lora_A), -1))
        update = torch.einsum("...gi,gri,gor->...go", parts, self.lora_A, self.lora_B).flatten(-2)
        return base + (self.scaling * update).to(base.dtype)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """Return the update of the weight, shape (out, in)."""
        blocks: Tensor = torch.block_diag(*(self.lora_B @ self.lora_A))  # type: ignore[no-untyped-call]
        return self.scaling * blocks

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Return a linear layer with the update in its weight.

        This layer and its base stay as they are.
        """
        layer = copy.deepcopy(self.base_layer)
        layer.weight.copy_(self.base_layer.weight.to(self.lora_A.dtype) + self.delta_weight())
        return layer


@dataclass
class _PreparedMelora(PreparedParameters):
    """Hold a model with mini LoRAs."""

    def merged(self) -> nn.Module:
        """Merge every layer of a copy; see `Prepared.merged`."""
        model = copy.deepcopy(self.model)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, MeloraLinear):
                replace_module(model, name, layer.merge())
        return model


@dataclass(frozen=True)
class MeloraMethod(Method):
    """Train mini LoRAs on linear layers.

    Options: r and n (see `MeloraLinear`), lora_alpha, lora_dropout, target_modules (the task's targets if None).
    """

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check r, n, lora_alpha and lora_dropout; see `Method.options`."""
        check_names(self.name, given, _DEFAULTS, _WHY)
        options = _DEFAULTS | dict(given)
        with as_option_errors(f"method {self.name!r}"):
            for name in ("r", "n"):
                check_count(options[name], name, 1)
            check_positive(options["lora_alpha"], "lora_alpha")
            check_dropout(options["lora_dropout"], "lora_dropout")
        return options

    def check_model(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> None:
        """Wrap the layers of a copy; see `Method.check_model`."""
        self.prepare(copy.deepcopy(model), options, request)

    def prepare(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> Prepared:
        """Wrap the linear layers that are targets; see `Method.prepare`."""
        checked = self.options(options)
        whole = whole_modules(model, request.trained_whole)
        targets = targets_of(checked, request)
        given = {name: checked[name] for name in ("r", "n", "lora_alpha", "lora_dropout")}
        layers: dict[str, MeloraLinear] = {}
        with seeded(request.seed):
            for name in linear_targets(model, targets, whole):
                base = model.get_submodule(name)
                if type(base) is not nn.Linear:
                    raise OptionError(f"target {name!r} is a {type(base).__name__}; accepted: nn.Linear")
                with as_option_errors(f"method {self.name!r}, layer {name!r}"):
                    layers[name] = MeloraLinear(base, **given)
        for name, layer in layers.items():
            replace_module(model, name, layer)
        train_only(model, (value for layer in layers.values() for value in (layer.lora_A, layer.lora_B)), whole)
        sizes = [layer.base_layer.weight.shape for layer in layers.values()]
        numbers = sum(checked["r"] * (rows + columns) for rows, columns in sizes)
        return _PreparedMelora(model, numbers, whole, method=self.name, options=checked)


MELORA = MeloraMethod("melora", "MELoRA")

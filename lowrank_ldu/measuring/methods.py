"""List the ways of computing a layer, others' methods among them."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lowrank_ldu.kernels import PLANS, ldu_linear_multi
from lowrank_ldu.nn import LDULayer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_ldu.kernels import Plan
    from lowrank_ldu.measuring.cases import Case


class NaiveLayer(nn.Module):
    """Compute the paper's formula as it stands, in dense matrices.

    y = x (RSM + sigma P L diag(z) U)^T + b, as published code computes it at every forward.

    Parameters
    ----------
    layer : LDULayer
        Of the same weight, for its factors and its present z.

    Notes
    -----
    Equations (6) to (9) of arXiv 2410.13618, product by product.
    """

    permutation: Tensor
    lower: Tensor
    upper: Tensor
    residual: Tensor
    bias: Tensor

    def __init__(self, layer: LDULayer) -> None:
        super().__init__()
        weight: Tensor = layer.base_layer.weight  # type: ignore[assignment]
        factors, m = layer.factors, len(weight)
        pivots = factors.pivot_rows
        assert pivots is not None  # noqa: S101  # of partial pivoting
        rest = torch.ones(m, dtype=torch.bool, device=weight.device)
        rest[pivots] = False
        order = torch.cat([pivots, rest.nonzero()[:, 0]])
        permutation = torch.eye(m, dtype=weight.dtype, device=weight.device)[:, order]
        self.register_buffer("permutation", permutation)
        self.register_buffer("lower", permutation.T @ factors.left)
        self.register_buffer("upper", factors.right)
        self.register_buffer("bias", layer.base_layer.bias.detach())  # type: ignore[operator]
        scale = factors.scale.to(weight.dtype)
        reference = (factors.diagonal * factors.scale).to(weight.dtype)
        self.register_buffer("residual", weight - factors.left @ torch.diag(reference) @ factors.right)
        self.diagonal = nn.Parameter(layer.z.detach().to(weight.dtype) * scale)
        self.sigma = nn.Parameter(torch.ones(1, dtype=weight.dtype, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x (..., n)."""
        trained = self.permutation @ self.lower @ torch.diag(self.diagonal) @ self.upper
        return linear(x, self.residual + self.sigma * trained, self.bias)


FROZEN = "frozen nn.Linear"
LORA_RANK = 16
# Relative noise of z: zeros would save work, and hide errors.
_OFFSET = 0.1


@dataclass
class LayerMethod:
    """Hold one way of computing the layer.

    Attributes
    ----------
    name : str
    plan : str
        This package's plan; empty for others' methods.
    module : nn.Module
    adapted : bool
        Whether its output has the update of z, rather than the base layer's only.
    """

    name: str
    plan: str
    module: nn.Module
    adapted: bool = False


class Batch(nn.Module):
    """Compute a mixed batch.

    Every row uses one of a number of adapters on the same base.

    Parameters
    ----------
    layer : LDULayer
        For its base layer and factors.
    adapters : int
    index : Tensor, shape (T,)
    """

    def __init__(self, layer: LDULayer, adapters: int, index: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.index = index
        delta = (layer.delta * layer.factors.scale).detach()
        self.deltas = nn.Parameter(delta.repeat(adapters, 1))
        layer.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x (T, n)."""
        base: Any = self.layer.base_layer
        factors = self.layer.factors
        return ldu_linear_multi(
            x,
            base.weight,
            base.bias,
            factors.left,
            factors.right,
            self.deltas,
            self.index,
            upper=factors.upper,
            check_values=False,
        )


def base_layer(case: Case, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """Return the layer that all methods start from."""
    torch.manual_seed(0)
    layer = nn.Linear(case.in_features, case.out_features, device=device)
    with torch.no_grad():
        layer.weight.normal_(0.0, case.in_features**-0.5)
    return layer.to(dtype)


def adapted_layer(base: nn.Linear, rank: int, plan: Plan) -> LDULayer:
    """Return the layer with an adapter that is not at its start.

    Its factors are computed in float32.
    """
    layer = LDULayer(_copy(base), rank=rank)
    z = layer.adapter.initial_diagonal
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(z), generator=generator).to(z)
    layer.adapter.set_z(z * (1 + _OFFSET * noise), layer.factors)
    layer.plan = plan
    return layer


def methods_of(
    base: nn.Linear, case: Case, adapters: int, compared: bool = True, lora_rank: int = LORA_RANK
) -> Iterator[LayerMethod]:
    """Yield the methods one by one.

    One that cannot be made does not stop the rest.

    Parameters
    ----------
    base : nn.Linear
        From `base_layer`; every method has a copy.
    case : Case
    adapters : int
        Of the mixed batch.
    compared : bool
        Whether to yield others' methods, too.
    lora_rank : int
        Of PEFT's LoRA.
    """
    yield LayerMethod(FROZEN, "", _copy(base).requires_grad_(requires_grad=False))
    if compared:
        yield LayerMethod("full fine-tuning", "", _copy(base).requires_grad_())
        if importlib.util.find_spec("peft") is not None:
            yield LayerMethod(f"PEFT LoRA r = {lora_rank}", "", _lora(base, lora_rank))
    layers: dict[str, LDULayer] = {}
    first: LDULayer | None = None
    for plan in PLANS:
        if first is None:
            first = adapted_layer(base, case.rank, plan)
            layers[plan] = first
        else:
            layers[plan] = _sharing(first, plan)
        yield LayerMethod("lowrank-ldu", plan, layers[plan], adapted=True)
    assert first is not None  # noqa: S101  # there are plans
    if compared:
        yield LayerMethod("naive (dense P, diag as a matrix)", "", NaiveLayer(first), adapted=True)
    generator = torch.Generator().manual_seed(2)
    for count in (1, adapters):
        index = torch.randint(0, count, (case.tokens,), generator=generator).to(base.weight.device)
        yield LayerMethod(
            f"lowrank-ldu, {count} adapter{'s' * (count > 1)} in a batch",
            "auto",
            Batch(_sharing(first, "auto"), count, index),
            adapted=True,
        )


def _copy(base: nn.Linear) -> nn.Linear:
    # All share one weight: copies would only take memory, and nothing is ever stepped.
    layer = nn.Linear(1, 1, device="meta")
    layer.in_features, layer.out_features = base.in_features, base.out_features
    layer.weight = nn.Parameter(base.weight.detach())
    layer.bias = nn.Parameter(base.bias.detach())
    return layer


def _sharing(layer: LDULayer, plan: Plan) -> LDULayer:
    """Return a layer with another one's factors.

    Its parameters are its own.
    """
    diagonal = next(layer.held_adapters())
    own = diagonal._replace(adapter=copy.deepcopy(diagonal.adapter))
    fresh = LDULayer.of(_copy(layer.base_layer), own)  # type: ignore[arg-type]
    fresh.plan = plan
    return fresh


def _lora(base: nn.Linear, rank: int) -> nn.Module:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # libraries that PEFT loads tell what they cannot load
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415  # an extra's
    finally:
        logging.disable(disabled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of models other than transformers
        config = LoraConfig(r=rank, target_modules=["0"])
        model: nn.Module = get_peft_model(nn.Sequential(_copy(base)), config, autocast_adapter_dtype=False)
    return model.get_submodule("base_model.model.0")

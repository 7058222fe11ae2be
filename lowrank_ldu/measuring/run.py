"""Measure one case, after checking every method."""

from __future__ import annotations

import datetime as dt
import importlib.util
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

import lowrank_ldu
from lowrank_ldu.measuring.memory import peak_bytes, saved_bytes
from lowrank_ldu.measuring.methods import FROZEN, LayerMethod, adapted_layer, base_layer, methods_of
from lowrank_ldu.measuring.table import Row
from lowrank_ldu.measuring.timing import measure
from lowrank_ldu.nn import LDULayer
from lowrank_ldu.nn.plan import planned

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from lowrank_ldu.measuring.cases import Case, StepMode

# Products of several hundred terms, of the largest entry: rounding comes to some eps, and TF32 where it is allowed to
# 1e-3. The dense formula subtracts and adds what the factorization leaves, with the growth of its rounding errors.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Rows of the output that are checked.
_ROWS = 64


def deviation(method: LayerMethod, base: nn.Linear, adapted: LDULayer, x: Tensor) -> float:
    """Return the relative error of a method's output.

    The largest error over the largest output, against float64.

    Parameters
    ----------
    method : LayerMethod
    base : nn.Linear
        The layer it started from.
    adapted : LDULayer
        The same with the adapter.
    x : Tensor, shape (T, n)
    """
    weight = base.weight.detach().double()
    if method.adapted:
        factors = adapted.factors
        delta = (adapted.delta * factors.scale).detach().double()
        weight = weight + (factors.left.double() * delta) @ factors.right.double()
    with torch.no_grad():
        rows = slice(None) if len(x) <= _ROWS else slice(0, _ROWS)
        expected = x[rows].double() @ weight.T + base.bias.detach().double()
        y = method.module(x)[rows].double()
    return float((y - expected).abs().max() / expected.abs().max())


def is_right(error: float, dtype: torch.dtype) -> bool:
    """Return whether a deviation is rounding."""
    return error <= _TOLERANCE[dtype]


@dataclass
class Result:
    """Hold the rows of a case.

    Attributes
    ----------
    rows : list of Row
    left_out : dict
        Names of methods that were not timed, with the reason.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def run_case(
    case: Case,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    adapters: int,
    device_name: str,
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Measure every method on one case.

    Parameters
    ----------
    case : Case
    device, dtype
        Where and in what.
    seconds : float
        For the rounds of each mode.
    adapters : int
        Of the mixed batch.
    device_name : str
        For the table.
    progress : callable
        Told what is being done.

    Returns
    -------
    Result
        Plans that cannot run, and methods whose output is not right, are among those left out.
    """
    result = Result()
    base = base_layer(case, dtype, device)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(case.tokens, case.in_features, generator=generator).to(device, dtype).requires_grad_()
    gradient = torch.randn(case.tokens, case.out_features, generator=generator).to(device, dtype)
    adapted = adapted_layer(base, case.rank, "reference")
    methods: list[LayerMethod] = []
    for method in methods_of(base, case, adapters):
        label = f"{method.name}, {method.plan}" if method.plan else method.name
        progress(f"{case.title}: checking {label}")
        try:
            error = deviation(method, base, adapted, x)
        except RuntimeError as reason:
            result.left_out[label] = " ".join(str(reason).split())
            continue
        if is_right(error, dtype):
            methods.append(method)
        else:
            result.left_out[label] = f"wrong: its output is off by {error:.1e} of the largest entry"
    stamp = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    for mode in case.modes:
        steps = {f"{method.name}|{method.plan}": _step(method, x, gradient, mode) for method in methods}
        progress(f"{case.title}: memory, {mode}")
        peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
        progress(f"{case.title}: timing, {mode}")
        times = measure(steps, device, seconds)
        frozen = times[f"{FROZEN}|"].p50
        for method in methods:
            name = f"{method.name}|{method.plan}"
            spent = times[name]
            result.rows.append(
                Row(
                    method=method.name,
                    plan=method.plan,
                    chosen=_chosen(method, x, mode),
                    mode=mode,
                    m=case.out_features,
                    n=case.in_features,
                    tokens=case.tokens,
                    rank=case.rank,
                    dtype=str(dtype).removeprefix("torch."),
                    device=device.type,
                    device_name=device_name,
                    threads=torch.get_num_threads(),
                    p20_ms=1e3 * spent.p20,
                    p50_ms=1e3 * spent.p50,
                    p80_ms=1e3 * spent.p80,
                    ratio=spent.p50 / frozen,
                    peak_bytes=peaks[name],
                    saved_bytes=saved_bytes(method.module, x) if mode == "training" else 0,
                    rounds=spent.rounds,
                    torch=torch.__version__,
                    triton=version("triton") if importlib.util.find_spec("triton") else "",
                    lowrank_ldu=lowrank_ldu.__version__,
                    date=stamp,
                )
            )
    return result


def _step(method: LayerMethod, x: Tensor, gradient: Tensor, mode: StepMode) -> Callable[[], None]:
    module = method.module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def forward() -> None:
        with torch.no_grad():
            module(x)

    def training() -> None:
        x.grad = None
        for parameter in trained:
            parameter.grad = None
        module(x).backward(gradient)

    return forward if mode == "forward" else training


def _chosen(method: LayerMethod, x: Tensor, mode: StepMode) -> str:
    """Return the plan that "auto" chooses."""
    if not isinstance(method.module, LDULayer):
        return ""
    with torch.set_grad_enabled(mode == "training"):
        return planned(method.module, x)

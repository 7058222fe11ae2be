"""Measure one case, after checking every method."""

from __future__ import annotations

import datetime as dt
import importlib.util
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

import lowrank_ldu
from lowrank_ldu.kernels import Problem, choose_plan
from lowrank_ldu.measuring.memory import peak_bytes, saved_bytes
from lowrank_ldu.measuring.methods import FROZEN, LORA_RANK, LayerMethod, adapted_layer, base_layer, methods_of
from lowrank_ldu.measuring.table import Row
from lowrank_ldu.measuring.timing import LEAST_ROUNDS, measure
from lowrank_ldu.nn import LDULayer
from lowrank_ldu.nn.plan import planned

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from lowrank_ldu.measuring.cases import Case, StepMode

# Products of several hundred terms, of the largest entry: rounding comes to some eps, and TF32 where it is allowed to
# 1e-3. The dense formula subtracts and adds what the factorization leaves, with the growth of its rounding errors.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Of an estimate: methods of a table, methods beside the plans, and seconds of the profiler for each.
_METHODS, _OTHERS, _MEMORY_SECONDS = 12, 7, 0.05
# Rows of the output that are checked.
_ROWS = 64


def expected_output(base: nn.Linear, adapted: LDULayer, x: Tensor) -> dict[bool, Tensor]:
    """Return the first rows of the output in float64, without and with the update.

    Parameters
    ----------
    base : nn.Linear
        The layer that the methods started from.
    adapted : LDULayer
        The same with the adapter.
    x : Tensor, shape (T, n)
    """
    weight, factors = base.weight.detach().double(), adapted.factors
    delta = (adapted.delta * factors.scale).detach().double()
    with torch.no_grad():
        rows = x[:_ROWS].double()
        plain = rows @ weight.T + base.bias.detach().double()
        return {False: plain, True: plain + (rows @ factors.right.double().T * delta) @ factors.left.double().T}


def deviation(method: LayerMethod, expected: dict[bool, Tensor], x: Tensor) -> float:
    """Return the relative error of a method's output.

    The largest error over the largest output, against float64.

    Parameters
    ----------
    method : LayerMethod
    expected : dict of bool to Tensor
        From `expected_output`.
    x : Tensor, shape (T, n)
    """
    right = expected[method.adapted]
    with torch.no_grad():
        y = method.module(x)[: len(right)].double()
    return float((y - right).abs().max() / right.abs().max())


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
    lora_rank: int = LORA_RANK,
    neighbors: int = 0,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> Result:
    """Measure every method on one case.

    Parameters
    ----------
    case : Case
    device, dtype
        Where and in what.
    seconds : float
        For each mode, checks and memory included, as far as three rounds allow.
    adapters : int
        Of the mixed batch.
    device_name : str
        For the table.
    lora_rank : int
        Of PEFT's LoRA.
    neighbors : int
        Busy processes beside this one, for the table.
    progress : callable
        Told what is being done, and the share of this case that is over.

    Returns
    -------
    Result
        Plans that cannot run, and methods whose output is not right, are among those left out.
    """
    result, end = Result(), time.perf_counter() + seconds
    base = base_layer(case, dtype, device)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(case.tokens, case.in_features, generator=generator).to(device, dtype).requires_grad_()
    gradient = torch.randn(case.tokens, case.out_features, generator=generator).to(device, dtype)
    progress(f"{case.title}: checking", 0.0)
    expected = expected_output(base, adapted_layer(base, case.rank, "reference"), x)
    methods: list[LayerMethod] = []
    for method in methods_of(base, case, adapters, lora_rank=lora_rank):
        label = f"{method.name}, {method.plan}" if method.plan else method.name
        try:
            error = deviation(method, expected, x)
        except RuntimeError as reason:
            result.left_out[label] = " ".join(str(reason).split())
            continue
        if is_right(error, dtype):
            methods.append(method)
        else:
            result.left_out[label] = f"wrong: its output is off by {error:.1e} of the largest entry"
    stamp = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    for number, mode in enumerate(case.modes):
        steps = {f"{method.name}|{method.plan}": _step(method, x, gradient, mode) for method in methods}
        progress(f"{case.title}: memory, {mode}", number / len(case.modes))
        peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
        saved = {
            f"{method.name}|{method.plan}": saved_bytes(method.module, x) if mode == "training" else 0
            for method in methods
        }

        def report(share: float, number: int = number, mode: str = mode) -> None:
            progress(f"{case.title}: timing, {mode}", (number + share) / len(case.modes))

        times = measure(steps, device, end - time.perf_counter(), progress=report)
        end = max(end, time.perf_counter()) + seconds
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
                    saved_bytes=saved[name],
                    rounds=spent.rounds,
                    neighbors=neighbors,
                    torch=torch.__version__,
                    triton=version("triton") if importlib.util.find_spec("triton") else "",
                    lowrank_ldu=lowrank_ldu.__version__,
                    date=stamp,
                )
            )
    return result


def expected_seconds(case: Case, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Return roughly how long `run_case` takes, by the planner's cost model.

    Notes
    -----
    Each method is called twice in a round, three times for its check and its memory. Others' methods take two or three
    times what the frozen layer takes, which is less than any plan does.
    """
    total = 0.0
    for mode in case.modes:
        trained = mode == "training"
        problem = Problem(
            case.tokens, case.out_features, case.in_features, case.rank, dtype, device, trained, trained, packing=True
        )
        costs = choose_plan(problem).costs.values()
        calls = 2 * LEAST_ROUNDS + 3
        total += max(seconds, calls * (sum(costs) + _OTHERS * min(costs)) + _MEMORY_SECONDS * _METHODS)
    return total


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

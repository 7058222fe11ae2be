r"""Which way of computing the layer is the cheapest: one cost model for every plan.

A plan is a list of products and passes. Each takes the larger of its arithmetic, multiply-adds over the machine's rate
for the dtype, and its traffic, bytes over the machine's bandwidth, plus the time of a call; a plan takes the sum. In
multiply-adds, with T rows, W (m, n) and rank r:

============  =====================================  ==========================================  ====================
plan          forward                                backward                                    passes beyond those
============  =====================================  ==========================================  ====================
reference     T m n + T r (m + n)                    T m n + T r (m + n)                         3 T m, 3 T n
factored      T m n + T r (m + n)                    T m n + T r (m + n)                         2 T m, 2 T n
hybrid        T m n + m n r + T r n                  T m n + m n r + T r m                       3 m n, twice
materialized  T m n + m n r                          2 T m n + m n r                             3 m n, twice
packed        T r (m + n) - T r^2 (1 - 96 / r)       the same                                    2 T m, twice
triton        T m n + T r (m + n) - T r^2 / 2        the same                                    T n, T m
============  =====================================  ==========================================  ====================

Without a gradient for x the backward pass has no T m n, and T r n less. Reading x, W and y is counted everywhere, which
is what decides for few rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from lowrank_ldu.kernels import trapezoid
from lowrank_ldu.kernels.triton_kernels.availability import interpreted, obstacle

Plan = Literal["auto", "reference", "factored", "hybrid", "materialized", "packed", "triton"]
PLANS: tuple[Plan, ...] = get_args(Plan)


@dataclass(frozen=True)
class Machine:
    """What a plan's time is made of.

    Attributes
    ----------
    rates : dict
        Multiply-adds a second of large products, by dtype.
    bandwidth : float
        Bytes a second.
    call : float
        Seconds that a call takes before it computes.
    operator : float
        Seconds that one of this package's operators takes beyond its calls, forward and backward together.
    """

    rates: dict[torch.dtype, float]
    bandwidth: float
    call: float
    operator: float

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        """Return rough figures of a device: only their ratios matter, and the plans are not that close.

        Notes
        -----
        The CPU's are of one core of an AMD EPYC (AVX2), times torch's threads, as measured; float16 and bfloat16 are
        what oneDNN reaches there. A GPU's are of its architecture, A100, H100 and B200, in proportion to its number of
        multiprocessors.
        """
        if device.type == "cuda":
            architecture, multiprocessors = _gpu(device)
            half, single, double, bandwidth, full = _GPUS[architecture]
            fast = torch.get_float32_matmul_precision() != "highest"
            share = min(1.0, multiprocessors / full)
            rates = {
                torch.float16: half * share,
                torch.bfloat16: half * share,
                torch.float32: (half / 2 if fast else single) * share,
                torch.float64: double * share,
            }
            # Launches are queued while others run: what is left is the gap between two.
            return cls(rates, bandwidth * share, call=2e-6, operator=1e-5)
        threads = _threads()
        rates = {
            torch.float32: 48e9 * threads,
            torch.float64: 24e9 * threads,
            torch.bfloat16: 48e9 * threads,
            torch.float16: 24e9 * threads,
        }
        return cls(rates, 8e9 * min(threads, 4), call=6e-6, operator=6e-5)


# Multiply-adds a second in half, single and double precision, bytes a second, multiprocessors: some two thirds of the
# data sheets' figures, and not measured by this project.
_GPUS = {
    8: (1.1e14, 0.9e13, 0.9e13, 1.6e12, 108),
    9: (2.5e14, 2.5e13, 2.5e13, 2.8e12, 132),
    10: (6.0e14, 3.5e13, 1.8e13, 6.5e12, 148),
}


# torch.compile takes these for what they are, constants of the process.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _threads() -> int:
    return torch.get_num_threads()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _gpu(device: torch.device) -> tuple[int, int]:
    """Return the key of `_GPUS` and the number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    architecture = 9 if torch.version.hip is not None else min(max(properties.major, 8), 10)
    return architecture, properties.multi_processor_count


class Problem(NamedTuple):
    """One call of the layer, as the cost model sees it.

    Attributes
    ----------
    tokens, out_features, in_features, rank : int
        T, m, n, r.
    dtype : torch.dtype
    device : torch.device
        Or its name.
    x_gradient, delta_gradient : bool
        What there will be a gradient of.
    rowwise : bool
        Whether rows have diagonals of their own.
    upper : bool
        Whether right is known to be upper trapezoidal.
    packing : bool
        Whether there is a packing.
    constant : bool
        Whether weight, left and right take no gradient.
    transformed : bool
        Whether a transform of torch.func or forward-mode differentiation is under way.
    """

    tokens: int
    out_features: int
    in_features: int
    rank: int
    dtype: torch.dtype
    device: torch.device
    x_gradient: bool = False
    delta_gradient: bool = False
    rowwise: bool = False
    upper: bool = False
    packing: bool = False
    constant: bool = True
    transformed: bool = False


@dataclass(frozen=True)
class Choice:
    """The plan, and how it was found.

    Attributes
    ----------
    plan : str
    costs : dict
        Estimated seconds of every plan that can run.
    reasons : dict
        Why the others cannot.
    """

    plan: Plan
    costs: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


_PACKED_DTYPES = (torch.float32, torch.float64)
_OPERATORS = ("factored", "hybrid", "packed", "triton")


def obstacles(problem: Problem) -> dict[str, str]:
    """Return the plans that cannot compute a problem, each with the reason."""
    found: dict[str, str] = {}
    if problem.rowwise:
        found["materialized"] = "rows with diagonals of their own have no common weight"
        found |= dict.fromkeys(("hybrid", "packed"), found["materialized"])
    elif problem.dtype not in _PACKED_DTYPES:
        found["packed"] = "in lower precisions than float32 packed factors do not hold a weight"
    elif problem.rank < min(problem.out_features, problem.in_features):
        full = min(problem.out_features, problem.in_features)
        found["packed"] = f"factors of rank {problem.rank} do not hold the weight; accepted: full rank, {full} here"
    elif not problem.packing:
        found["packed"] = "there is no packing of this weight: see lowrank_ldu.kernels.pack"
    if not problem.constant:
        reason = (
            "weight, left or right requires a gradient, which this plan does not compute (plans 'reference' and "
            "'materialized' do)"
        )
        found |= dict.fromkeys(_OPERATORS, reason)
    if problem.transformed:
        reason = "a transform of torch.func or forward-mode differentiation is under way (plan='reference' takes part)"
        found |= dict.fromkeys(_OPERATORS, reason)
    blocked = obstacle(problem.device, problem.dtype)
    if blocked is not None:
        found["triton"] = blocked
    return found


def plan_costs(problem: Problem, machine: Machine | None = None) -> dict[str, float]:
    """Return the estimated seconds of each plan, forward and backward, as far as gradients are wanted.

    Examples
    --------
    >>> problem = Problem(2048, 768, 768, 64, torch.float32, torch.device("cpu"), True, True)
    >>> costs = plan_costs(problem)
    >>> costs["hybrid"] < costs["factored"] < costs["materialized"]
    True
    """
    machine = machine or Machine.of(problem.device)
    rate = machine.rates.get(problem.dtype, machine.rates[torch.float32])
    bandwidth = machine.bandwidth / problem.dtype.itemsize
    trained = problem.x_gradient or problem.delta_gradient
    operator = machine.operator if trained else machine.operator / 8
    costs = {}
    for plan, works in _works(problem).items():
        larger = [torch.sym_max(adds / rate, entries / bandwidth) for adds, entries in works]  # type: ignore[no-untyped-call]
        seconds = sum(larger) + machine.call * len(works)
        costs[plan] = seconds + (operator if plan in _OPERATORS else 0.0)
    return costs


def _works(problem: Problem) -> dict[str, list[tuple[float, float]]]:
    """Return the products and passes of every plan: multiply-adds, and entries read and written, of each."""
    # Times 1.0, and not float(): a number of rows that is a symbol stays one.
    T, m, n, r = (1.0 * size for size in (problem.tokens, problem.out_features, problem.in_features, problem.rank))
    to_x, to_delta = problem.x_gradient, problem.delta_gradient
    base = (T * m * n, T * (m + n) + m * n)
    right, left = (T * r * n, T * (r + n) + r * n), (T * r * m, T * (r + m) + r * m)
    # The base product, the gradient's way back through it, and on both ways the thin products.
    factored = [base, right, left, (0.0, 3 * T * r)]
    again = T * m  # y, once more
    if to_x or to_delta:
        factored += [left, (0.0, 3 * T * r)]
    if to_x:
        factored += [base, right]
        again += T * n
    update = (r * m * n, 3 * m * n)
    materialized = [base, update]
    if to_x:
        materialized.append(base)
    if to_delta:
        materialized += [base, update]
    # Both sums again on the way back: none is kept.
    hybrid = [base, update, right]
    if to_x or to_delta:
        hybrid += [left, (0.0, 3 * T * r)]
    if to_x:
        hybrid += [base, update]
    thin = T * (trapezoid.multiply_adds(r, n) + trapezoid.multiply_adds(r, m))
    # Triangular products take a call for each block, and new memory for L in its order: pages that are written for the
    # first time count several times.
    blocks = [(0.0, 0.0)] * int(2 * r // trapezoid.BLOCK)
    packed = [(thin, T * (m + n) + r * (m + n)), (0.0, 2 * T * m), (0.0, 12 * r * m), *blocks]
    if to_x or to_delta:
        packed += [(thin if to_x else thin / 2, T * (m + n) + r * (m + n)), (0.0, 2 * T * m), (0.0, 3 * T * r)]
        packed += [(0.0, 12 * r * m + 2 * r * n), *blocks]
    skipped = T * r * r / 2 if problem.upper else 0.0
    fused = [(base[0] + right[0] + left[0] - skipped, base[1]), (0.0, T * n)]
    if to_x or to_delta:
        fused += [(0.0, T * m), (0.0, 4 * T * r)]
        fused.append((base[0] + right[0] + left[0] - skipped, base[1]) if to_x else left)
    return {
        "reference": [*factored, (0.0, 3 * again)],
        "factored": [*factored, (0.0, again)],
        "hybrid": hybrid,
        "materialized": materialized,
        "packed": packed,
        "triton": fused,
    }


# By how much the plans that sum W and its update have to be cheaper than the others: the model is not more exact than
# this, and they take memory. In half precision the sum is rounded to W's own grid, where updates below half a unit in
# the last place are lost: there they have to save multiply-adds, and not only passes and calls.
_SUMMING = ("hybrid", "materialized")
_TIE, _SAVED_IN_HALF_PRECISION = 1.05, 1.25


def choose_plan(problem: Problem, plan: Plan = "auto", machine: Machine | None = None) -> Choice:
    """Return the cheapest plan that can run, or the one that is asked for.

    Parameters
    ----------
    problem : Problem
    plan : str
        One of `PLANS`. "auto" leaves two out where they could surprise: "triton" on the CPU, where it would be
        interpreted, and "packed" unless a diagonal is trained, since it computes the base's own product anew: outputs
        agree with the base layer's to rounding, and not bit for bit as those of the other plans for the CPU do.
    machine : Machine, optional
        This device's if not given.

    Raises
    ------
    ValueError
        There is no such plan.
    RuntimeError
        The plan that is asked for cannot compute this problem; the message says why.

    Examples
    --------
    >>> choose_plan(Problem(6304, 768, 768, 64, torch.float32, torch.device("cpu"), True, True)).plan
    'hybrid'
    >>> choose_plan(Problem(6304, 768, 768, 64, torch.bfloat16, torch.device("cpu"), True, True)).plan
    'factored'
    """
    if plan not in PLANS:
        raise ValueError(f"plan is {plan!r}; accepted: {', '.join(map(repr, PLANS))}")
    if not isinstance(problem.device, torch.device):
        problem = problem._replace(device=torch.device(problem.device))  # type: ignore[unreachable]  # its name
    if machine is None and not torch.compiler.is_compiling() and type(problem.tokens) is int:
        # Layers ask the same thing again and again, and asking takes longer than small layers do.
        return _remembered(problem, plan, torch.get_num_threads(), torch.get_float32_matmul_precision(), interpreted())
    return _choose(problem, plan, machine)


@lru_cache(maxsize=4096)
def _remembered(problem: Problem, plan: Plan, *_: object) -> Choice:
    found = _choose(problem, plan, None)
    # What is remembered is given to every caller: none may change it.
    return Choice(found.plan, MappingProxyType(found.costs), MappingProxyType(found.reasons))  # type: ignore[arg-type]


def _choose(problem: Problem, plan: Plan, machine: Machine | None) -> Choice:
    reasons = obstacles(problem)
    if plan != "auto":
        if plan in reasons:
            raise RuntimeError(f"plan {plan!r} cannot run here: {reasons[plan]}")
        return Choice(plan, {}, reasons)
    if problem.device.type not in {"cpu", "cuda"}:
        # Nothing is known of its speed; the plain products run anywhere.
        return Choice("factored" if "factored" not in reasons else "reference", {}, reasons)
    if problem.device.type == "cpu":
        reasons.setdefault("triton", "on the CPU it would be interpreted; plan='triton' does so")
    if not problem.delta_gradient:
        reasons.setdefault("packed", "no diagonal is trained; plan='packed' takes it all the same")
    for name in _rounding(problem):
        reasons.setdefault(name, f"in half precision it would round small updates away; plan={name!r} does so")
    costs = plan_costs(problem, machine)
    possible = {name: cost for name, cost in costs.items() if name not in reasons}
    # Where the number of rows is a symbol of torch.compile or torch.export nothing is known of it, and the factored
    # plan stays, which suits most. A comparison would become a condition on the graph.
    best = "factored" if "factored" in possible else "reference"
    least = possible[best]
    for name, cost in possible.items():
        weighed = cost * _TIE if name in _SUMMING else cost
        if statically_known_true(weighed < least):
            best, least = name, weighed
    return Choice(best, possible, reasons)  # type: ignore[arg-type]  # names are plans


def _rounding(problem: Problem) -> list[str]:
    """Return the plans whose rounding of the sum of W and its update is not worth what they save."""
    if problem.dtype.itemsize != 2:
        return []
    adds = {name: sum(adds for adds, _ in works) for name, works in _works(problem).items()}
    return [name for name in _SUMMING if _SAVED_IN_HALF_PRECISION * adds[name] > adds["factored"]]

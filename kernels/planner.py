r"""Choose the cheapest plan of a call.

One cost model prices all of them.

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
skeleton      T m n + T r m + T r^2                  T m n + T r n + T r^2                       2 T m, 2 T n
packed        T r (m + n) - T r^2 (1 - 96 / r)       the same                                    2 T m, twice
triton        T m n + T r (m + n) - T r^2 / 2        the same                                    T n, T m
============  =====================================  ==========================================  ====================

With a skeleton hybrid takes T r^2 instead of T r n, and with its columns T r^2 instead of T r m; the skeleton plan
without columns takes T r m + T r n on the way back. A core of b x b blocks adds T r b to each way of the plans that
apply it to the projection, and for its gradient. Without a gradient for x the backward pass has no T m n, and T r n
less. Reading x, W and y is counted everywhere, which is what decides for few rows.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch

from lowrank_ldu.kernels import packed
from lowrank_ldu.kernels.cores import block_size
from lowrank_ldu.kernels.hybrid import gathering_pays
from lowrank_ldu.kernels.machine import Machine
from lowrank_ldu.kernels.measured import present_figures
from lowrank_ldu.kernels.plans import IMPLEMENTATIONS, PLANS, Plan
from lowrank_ldu.kernels.skeleton import amplification_of, largest_amplification
from lowrank_ldu.kernels.torch_modes import known_true, transformed
from lowrank_ldu.kernels.triton_kernels.availability import interpreted, obstacle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Layer
    from lowrank_ldu.kernels.packed import Packing


class Problem(NamedTuple):
    """Describe one call of the layer to the cost model.

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
        Whether rows have cores of their own.
    upper : bool
        Whether right is known to be upper trapezoidal.
    packing : bool
        Whether there is a packing.
    constant : bool
        Whether weight, left and right take no gradient.
    transformed : bool
        Whether a transform of torch.func or forward-mode differentiation is under way.
    block : int
        b of cores of b x b blocks: 1 of diagonals, r of dense ones.
    amplification : float, optional
        Of the skeleton and the layer's bias; None without one.
    columns : bool
        Whether the skeleton has columns.
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
    block: int = 1
    amplification: float | None = None
    columns: bool = False


@dataclass(frozen=True)
class Choice:
    """Hold the chosen plan, the costs, and why others cannot run.

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
_OPERATORS = [name for name, implementation in IMPLEMENTATIONS.items() if implementation.linear is None]
_SUMMING = [name for name, implementation in IMPLEMENTATIONS.items() if implementation.summing]
_OF_DIAGONALS = [name for name, implementation in IMPLEMENTATIONS.items() if not implementation.blocks]
_OF_ONE_CORE = [name for name, implementation in IMPLEMENTATIONS.items() if not implementation.rowwise]


def obstacles(problem: Problem) -> dict[str, str]:
    """Return the plans that cannot compute a problem, with reasons."""
    found: dict[str, str] = {}
    if problem.rowwise:
        found |= dict.fromkeys(_OF_ONE_CORE, "rows with cores of their own have no common weight")
    elif problem.block > 1:
        found |= dict.fromkeys(_OF_DIAGONALS, "the core is no diagonal, which is all that a packing holds")
    elif problem.dtype not in _PACKED_DTYPES:
        found["packed"] = "in lower precisions than float32 packed factors do not hold a weight"
    elif problem.rank < min(problem.out_features, problem.in_features):
        full = min(problem.out_features, problem.in_features)
        found["packed"] = f"factors of rank {problem.rank} do not hold the weight; accepted: full rank, {full} here"
    elif not problem.packing:
        found["packed"] = "there is no packing of this weight: see lowrank_ldu.kernels.pack"
    blocked = _skeleton_obstacle(problem)
    if blocked is not None:
        found["skeleton"] = blocked
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


def _skeleton_obstacle(problem: Problem) -> str | None:
    if problem.amplification is None:
        return "there is no skeleton of this weight: see lowrank_ldu.kernels.skeleton_of"
    limit = largest_amplification(problem.dtype)
    if problem.amplification <= limit:
        return None
    return (
        f"rounding would be enlarged {problem.amplification:.3g} times in the projection; accepted: up to {limit:.3g} "
        f"in {str(problem.dtype).removeprefix('torch.')}"
    )


def plan_costs(problem: Problem, machine: Machine | None = None) -> dict[str, float]:
    """Return the estimated seconds of each plan.

    They are of the forward pass, and of the backward pass as far as gradients are wanted.

    Notes
    -----
    A product or pass also takes what the threads take to begin it together and to meet at its end. The packed plan's
    threads meet once in a pass instead; its products run at the rate of narrow ones.

    Examples
    --------
    >>> problem = Problem(2048, 768, 768, 64, torch.float32, torch.device("cpu"), True, True)
    >>> costs = plan_costs(problem)
    >>> costs["hybrid"] < costs["factored"] < costs["materialized"]
    True
    """
    problem = _of_device(problem)
    machine = machine or Machine.of(problem.device)
    rate = machine.rates.get(problem.dtype, machine.rates[torch.float32])
    bandwidth = machine.bandwidth / problem.dtype.itemsize
    trained = problem.x_gradient or problem.delta_gradient
    operator = machine.operator if trained else machine.operator / 8
    costs = {}
    for plan, works in _works(problem).items():
        pace = rate * machine.narrow if plan == "packed" else rate
        larger = [torch.sym_max(adds / pace, entries / bandwidth) for adds, entries in works]  # type: ignore[no-untyped-call]
        seconds = sum(larger) + machine.call * len(works)
        if plan == "packed":
            # Its threads meet once in a pass, and each takes pieces of its own.
            seconds += (1 + trained) * packed.overhead(
                1.0 * problem.tokens, problem.rank, machine.threads, machine.call
            )
        elif machine.region:
            # Small products are not shared out.
            seconds += sum(torch.sym_min(machine.region, each) for each in larger)  # type: ignore[no-untyped-call]
        costs[plan] = seconds + (operator if plan in _OPERATORS else 0.0)
    return costs


def _works(problem: Problem) -> dict[str, list[tuple[float, float]]]:
    """Return every plan's products and passes: multiply-adds, and entries read and written."""
    # Times 1.0, and not float(): a number of rows that is a symbol stays one.
    T, m, n, r = (1.0 * size for size in (problem.tokens, problem.out_features, problem.in_features, problem.rank))
    to_x, to_delta = problem.x_gradient, problem.delta_gradient
    base = (T * m * n, T * (m + n) + m * n)
    right, left = (T * r * n, T * (r + n) + r * n), (T * r * m, T * (r + m) + r * m)
    core, gathered = _core_work(problem), (T * r * r, 4 * T * r)
    # The base product, the gradient's way back through it, and on both ways the thin products.
    factored = [base, right, left, core]
    # The same with a gather for a product.
    skeleton = [base, gathered, left, core, *_CALLS[:4]]
    again = T * m  # y, once more
    if to_x or to_delta:
        factored += [left, core]
        skeleton += [gathered if problem.columns and to_x else left, core]
    if to_x:
        factored += [base, right]
        skeleton += [base, right]
        again += T * n
    update = (r * m * n, 3 * m * n)
    materialized = [base, update]
    if to_x:
        materialized.append(base)
    if to_delta:
        materialized += [base, update]
    # Both sums again on the way back: none is kept.
    hybrid = [base, update]
    usable = problem.amplification is not None and problem.device.type == "cpu"
    inverse = [(gathered[0] + 6 * r**3, gathered[1] + r * n), *_CALLS]
    hybrid += inverse if usable and known_true(gathering_pays(T, r, n)) else [right]
    if to_x or to_delta:
        back = usable and problem.columns and to_x and known_true(gathering_pays(T, r, m))
        hybrid += [*(inverse if back else [left]), (0.0, 3 * T * r)]
    if to_x:
        hybrid += [base, update]
    thin = T * (packed.multiply_adds(r, n) + packed.multiply_adds(r, m))
    # Triangular products take a call for each block, and new memory for L in its order: pages that are written for the
    # first time count several times.
    blocks = [(0.0, 0.0)] * int(2 * r // packed.BLOCK)
    triangular = [(thin, T * (m + n) + r * (m + n)), (0.0, 2 * T * m), (0.0, 12 * r * m), *blocks]
    if to_x or to_delta:
        triangular += [(thin if to_x else thin / 2, T * (m + n) + r * (m + n)), (0.0, 2 * T * m), (0.0, 3 * T * r)]
        triangular += [(0.0, 12 * r * m + 2 * r * n), *blocks]
    skipped = T * r * r / 2 if problem.upper else 0.0
    triton = [(base[0] + right[0] + left[0] - skipped, base[1]), (0.0, T * n)]
    if to_x or to_delta:
        triton += [(0.0, T * m), (0.0, 4 * T * r)]
        triton.append((base[0] + right[0] + left[0] - skipped, base[1]) if to_x else left)
    own = 2 * T * r * problem.block if problem.rowwise and problem.block > 1 else 0.0  # of each row, gathered
    return {
        "reference": [*factored, (0.0, 3 * again + own)],
        "factored": [*factored, (0.0, again)],
        "hybrid": hybrid,
        "materialized": materialized,
        "packed": triangular,
        "skeleton": [*skeleton, (0.0, again)],
        "triton": triton,
    }


# Small products and copies, which take the time of their calls.
_CALLS = [(0.0, 0.0)] * 12


def _core_work(problem: Problem) -> tuple[float, float]:
    """Return the work of applying cores to a projection (T, r)."""
    T, r = 1.0 * problem.tokens, problem.rank
    return T * r * problem.block if problem.block > 1 else 0.0, 3 * T * r


# By how much the plans that sum W and its update have to be cheaper than the others: the model is not more exact than
# this, and they take memory. In half precision the sum is rounded to W's own grid, where updates below half a unit in
# the last place are lost: there they have to save multiply-adds, and not only passes and calls.
_TIE, _SAVED_IN_HALF_PRECISION = 1.05, 1.25


def plan_call(
    x: Tensor,
    layer: Layer,
    adapters: Adapters,
    plan: Plan = "auto",
    packing: Packing | Callable[[], Packing | None] | None = None,
) -> tuple[Plan, Packing | None]:
    """Return the plan of a call and its packing.

    The packing is None if the plan takes none.

    Parameters
    ----------
    x : Tensor, shape (T, n)
    layer : Layer
    adapters : Adapters
    plan : str
        One of `PLANS`.
    packing : Packing or callable, optional
        What returns one, or None if the weight has none, is called only where the packed plan would be taken.

    Raises
    ------
    ValueError, RuntimeError
        As for `choose_plan`.
    """
    recorded = torch.is_grad_enabled()
    weight, bias, left, right, upper, skeleton = layer
    problem = Problem(
        tokens=x.shape[0],
        out_features=weight.shape[0],
        in_features=weight.shape[1],
        rank=left.shape[1],
        dtype=x.dtype,
        device=x.device,
        x_gradient=recorded and x.requires_grad,
        delta_gradient=recorded and adapters.cores.requires_grad,
        rowwise=adapters.of_rows is not None,
        upper=upper,
        packing=packing is not None,
        transformed=transformed(),
        block=block_size(adapters),
        amplification=None if skeleton is None else amplification_of(x, skeleton, right, bias),
        columns=skeleton is not None and skeleton.columns is not None,
        constant=not (recorded and (weight.requires_grad or left.requires_grad or right.requires_grad)),
    )
    chosen = choose_plan(problem, plan).plan
    if chosen != "packed":
        return chosen, None
    made = packing() if callable(packing) else packing
    if made is None:
        return choose_plan(problem._replace(packing=False), plan).plan, None
    return chosen, made


def choose_plan(problem: Problem, plan: Plan = "auto", machine: Machine | None = None) -> Choice:
    """Return the cheapest plan that can run.

    If a plan is asked for, return that one.

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
    problem = _of_device(problem)
    if machine is None and not torch.compiler.is_compiling() and type(problem.tokens) is int:
        # Layers ask the same thing again and again, and asking takes longer than small layers do.
        watcher = _watcher.get()
        if watcher is not None:
            watcher(problem)
        # Only where speeds count are they measured.
        figures = present_figures() if plan == "auto" and problem.device.type == "cpu" else None
        setting = (torch.get_num_threads(), torch.get_float32_matmul_precision(), interpreted())
        return _remembered(problem, plan, figures, *setting)
    return _choose(problem, plan, machine)


# What is told of every problem, while plans are explained.
_watcher: ContextVar[Callable[[Problem], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Callable[[Problem], None]) -> Iterator[None]:
    """Tell `watcher` the problem of every call of this thread."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def _of_device(problem: Problem) -> Problem:
    """Return the problem with its device for the device's name."""
    if isinstance(problem.device, torch.device):
        return problem
    return problem._replace(device=torch.device(problem.device))  # type: ignore[unreachable]


@lru_cache(maxsize=4096)
def _remembered(problem: Problem, plan: Plan, *_: object) -> Choice:
    found = _choose(problem, plan, None)
    # Every caller gets the remembered choice: none may change it.
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
        if known_true(weighed < least):
            best, least = name, weighed
    return Choice(best, possible, reasons)  # type: ignore[arg-type]  # names are plans


def _rounding(problem: Problem) -> list[str]:
    """Return plans that round and save too little.

    They round the sum of W and its update.
    """
    if problem.dtype.itemsize != 2:
        return []
    adds = {name: sum(adds for adds, _ in works) for name, works in _works(problem).items()}
    return [name for name in _SUMMING if _SAVED_IN_HALF_PRECISION * adds[name] > adds["factored"]]

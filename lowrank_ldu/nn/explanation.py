"""Explain which plan each layer of a model takes, and why."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lowrank_ldu.formatting import figure, printable
from lowrank_ldu.kernels import PLANS, choose_plan
from lowrank_ldu.kernels.planner import watched
from lowrank_ldu.kernels.skeleton import largest_amplification
from lowrank_ldu.nn.calls import kept_notes
from lowrank_ldu.nn.forward import LEAST_GATHERED, bypassed
from lowrank_ldu.nn.host import hosts
from lowrank_ldu.nn.modules import check_model, innermost, unwrapped
from lowrank_ldu.nn.plan import check_adapted
from lowrank_ldu.nn.plan_timing import plan_seconds
from lowrank_ldu.validation import check_flag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_ldu.kernels import Problem
    from lowrank_ldu.nn.host import AdapterHost

_NOT_CALLED = "the model did not call the layer for this input"


@dataclass(frozen=True)
class LayerPlan:
    """Hold the plan of one layer, and what else there was.

    Attributes
    ----------
    layer : str
        Qualified name.
    plan : str
        What "auto" takes; "" where the layer computes by no plan.
    asked : str
        The layer's own `plan`, which it takes unless it is "auto".
    problem : Problem or None
        Of the call: rows, sizes, rank, dtype, device, and what there is a gradient of.
    estimated_ms : dict of str to float
        Of the plans that "auto" weighs, forward and backward as far as there are gradients.
    measured_ms : dict of str to float
        Of every plan that can run, if it was asked for.
    reasons : dict of str to str
        Why "auto" does not weigh the others. A plan that cannot run at all has no measured time either.
    note : str
        Why the layer computes by no plan, or by "reference" in any case.
    """

    layer: str
    plan: str
    asked: str
    problem: Problem | None = None
    estimated_ms: dict[str, float] = field(default_factory=dict)
    measured_ms: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        """Return the plans as a table."""
        return _table([self])


class PlanExplanation(Sequence[LayerPlan]):
    """Hold the plans of all adapted layers of a model.

    A sequence of `LayerPlan`, in the order of the model. Printed, it is a table; layers of the same problem stand
    together.

    Parameters
    ----------
    layers : sequence of LayerPlan
    """

    def __init__(self, layers: Sequence[LayerPlan]) -> None:
        self.layers = tuple(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        """Return a layer's plan, by number or qualified name."""
        if not isinstance(index, str):
            return self.layers[index]
        for layer in self.layers:
            if layer.layer == index:
                return layer
        raise KeyError(f"layer is {index!r}; accepted: {', '.join(repr(layer.layer) for layer in self.layers)}")

    def __repr__(self) -> str:
        counts = Counter(layer.plan or "none" for layer in self.layers)
        return f"PlanExplanation({', '.join(f'{plan}: {count}' for plan, count in counts.items())})"

    def __str__(self) -> str:
        groups: dict[object, list[LayerPlan]] = {}
        for layer in self.layers:
            groups.setdefault(
                (layer.problem and _alike(layer.problem), layer.plan, layer.asked, layer.note), []
            ).append(layer)
        return "\n\n".join(_table(group) for group in groups.values())

    def to_rows(self) -> list[dict[str, object]]:
        """Return a dict for each layer and plan, as pandas.DataFrame takes them.

        Examples
        --------
        >>> from lowrank_ldu.nn import LDULayer
        >>> rows = explain_plan(LDULayer(nn.Linear(6, 4), rank=2), torch.ones(3, 6)).to_rows()
        >>> [row["plan"] for row in rows if row["taken"]]
        ['materialized']
        """
        return [_row(layer, plan) for layer in self.layers for plan in PLANS if plan != "auto"]

    def to_frame(self) -> Any:
        """Return the rows as a pandas.DataFrame; pandas has to be installed."""
        return importlib.import_module("pandas").DataFrame(self.to_rows())  # no dependency, and without types


class _Call(NamedTuple):
    """Hold how a layer was called, and the problem that came of it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    problem: Problem | None
    autocast: tuple[bool, torch.dtype] | None


def explain_plan(model: nn.Module, x: Any, *, measure: bool = False) -> PlanExplanation:
    """Return the plan that "auto" takes in each adapted layer.

    The model is run forward once, in the present modes (training or not, gradients, autocast), for the inputs that its
    layers get.

    Parameters
    ----------
    model : nn.Module
        With layers of `inject`, of `LDULayer`, or of PEFT; or such a layer.
    x : Tensor, mapping or sequence
        The model's input; a mapping of keyword arguments; or a tuple or list of its arguments.
    measure : bool
        Also time every plan that can run, forward and backward as far as there are gradients: about half a second for
        each different problem. Layers with the same problem share the times.

    Returns
    -------
    PlanExplanation

    Raises
    ------
    TypeError
        model is no module, or x is none of the above.
    ValueError
        The model has no adapted layer.

    Notes
    -----
    Parameters, gradients, statistics of batch norms and random numbers are left as they were. Estimates are of the
    model that heads `lowrank_ldu.kernels.planner`, and only as good as it is. A layer that is called several times is
    explained by the call with the most rows.

    Examples
    --------
    >>> from lowrank_ldu.nn import LDULayer
    >>> model = nn.Sequential(LDULayer(nn.Linear(768, 768), rank=64))
    >>> explained = explain_plan(model, torch.ones(2048, 768, requires_grad=True))
    >>> explained
    PlanExplanation(hybrid: 1)
    >>> explained["0"].reasons["packed"]
    'factors of rank 64 do not hold the weight; accepted: full rank, 768 here'
    """
    check_model(model)
    measure = check_flag(measure, "measure")
    arguments, keywords = _arguments(x)
    layers = dict(hosts(model))
    check_adapted(layers, model)
    calls = _observed(model, layers, arguments, keywords)
    times: dict[Problem, dict[str, float]] = {}
    found = []
    for name, layer in layers.items():
        call = calls.get(name)
        if call is None or call.problem is None:
            found.append(_without_problem(name, layer, call))
            continue
        problem = call.problem
        choice = choose_plan(problem)
        alike = _alike(problem)
        if measure and alike not in times:
            with _autocast(problem.device.type, call.autocast), kept_notes(model):
                times[alike] = plan_seconds(layer, call.args, call.kwargs, problem)
        found.append(
            LayerPlan(
                name,
                choice.plan,
                layer.plan,
                problem,
                {plan: 1e3 * seconds for plan, seconds in choice.costs.items()},
                {plan: 1e3 * seconds for plan, seconds in times.get(alike, {}).items()},
                _reasons(layer, problem, choice.reasons),
            )
        )
    return PlanExplanation(found)


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, Tensor):
        return (x,), {}
    if isinstance(x, Mapping):
        return (), dict(x)
    if isinstance(x, (tuple, list)):
        return tuple(x), {}
    raise TypeError(
        f"x is a {type(x).__name__}; accepted: a tensor, a mapping of the model's keyword arguments, or a tuple of its "
        "arguments"
    )


def _observed(
    model: nn.Module, layers: dict[str, AdapterHost], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, _Call]:
    """Run the model, and return how it called its layers."""
    names = {id(layer): name for name, layer in layers.items()}
    running: list[list[Problem]] = []
    calls: dict[str, _Call] = {}

    def before(*_: Any) -> None:
        running.append([])

    def after(layer: nn.Module, taken: tuple[Any, ...], keywords: dict[str, Any], _: Any) -> None:
        problems, name = running.pop(), names[id(layer)]
        # Where a packing could not be made, the second problem is the one that was solved.
        problem, known = problems[-1] if problems else None, calls.get(name)
        if known is None or known.problem is None or (problem is not None and problem.tokens > known.problem.tokens):
            calls[name] = _Call(taken, keywords, problem, _autocast_state(taken, keywords))

    def watcher(problem: Problem) -> None:
        if running:
            running[-1].append(problem)

    with ExitStack() as stack:
        stack.enter_context(_undisturbed(model))
        stack.enter_context(watched(watcher))
        for layer in layers.values():
            stack.callback(layer.register_forward_pre_hook(before).remove)
            stack.callback(layer.register_forward_hook(after, with_kwargs=True, always_call=False).remove)
            stack.callback(setattr, layer, "plan", layer.plan)
            layer.plan = "auto"
        unwrapped(model)(*args, **kwargs)
    return calls


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Keep what a forward pass would change."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cuda"}
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.training]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device.index for device in devices]))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(kept_notes(model))
        for norm in norms:
            stack.callback(norm.train)
            norm.eval()
        yield


def _autocast_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, torch.dtype] | None:
    x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if x is None or not torch.amp.is_autocast_available(x.device.type):
        return None
    return torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)


@contextmanager
def _autocast(device_type: str, state: tuple[bool, torch.dtype] | None) -> Iterator[None]:
    if state is None:
        yield
        return
    with torch.autocast(device_type, enabled=state[0], dtype=state[1]):
        yield


def _without_problem(name: str, layer: AdapterHost, call: _Call | None) -> LayerPlan:
    """Return the explanation of a layer that asked for no plan."""
    if call is None:
        return LayerPlan(name, "", layer.plan, note=_NOT_CALLED)
    if layer.merged:
        return LayerPlan(name, "", layer.plan, note="the update is merged into the weight: the base layer is called")
    if getattr(layer, "disable_adapters", False):
        return LayerPlan(name, "", layer.plan, note="its adapters are disabled: the base layer is called")
    base = innermost(layer)
    x = next(value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor))
    held = next(layer.held_adapters(), None)
    reason = None if held is None else bypassed(base, layer.kind, x, held.factors)
    if reason is None:
        reason = (
            "it has no active adapter, or several that do not share their factors; or its base layer is another "
            "method's, or takes further arguments"
        )
    note = f"{reason}: the base layer is called, and the update added to its output or weight"
    return LayerPlan(name, "reference", layer.plan, note=note)


def _reasons(layer: AdapterHost, problem: Problem, reasons: Mapping[str, str]) -> dict[str, str]:
    """Return why plans are not weighed, with what the layer knows of them."""
    found = dict(reasons)
    held = next(layer.held_adapters(), None)
    if problem.amplification is not None or held is None:
        return found
    if problem.tokens >= LEAST_GATHERED or not held.factors.gathers():
        found["skeleton"] = held.factors.obstacle_to_gathering()
    else:
        found["skeleton"] = f"{problem.tokens} rows, and 'auto' gathers from {LEAST_GATHERED} on; set_plan does for any"
    return found


def _alike(problem: Problem) -> Problem:
    """Return a problem without the digits that a skeleton costs, which choose no plan while they are few."""
    if problem.amplification is None:
        return problem
    few = problem.amplification <= largest_amplification(problem.dtype)
    return problem._replace(amplification=1.0) if few else problem


def _row(layer: LayerPlan, plan: str) -> dict[str, object]:
    sizes = {} if layer.problem is None else layer.problem._asdict()
    return {
        "layer": layer.layer,
        "plan": plan,
        "taken": plan == layer.plan,
        "estimated_ms": layer.estimated_ms.get(plan),
        "measured_ms": layer.measured_ms.get(plan),
        "reason": layer.reasons.get(plan, layer.note),
        **{name: sizes.get(name) for name in ("tokens", "out_features", "in_features", "rank")},
    }


def _table(layers: Sequence[LayerPlan]) -> str:
    first = layers[0]
    name = printable(first.layer) or "the layer"
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    asked = "" if first.asked == "auto" else f" (the layer is set to {first.asked!r}; this is what 'auto' would take)"
    problem = first.problem
    if problem is None:
        return f"{name}{more}: {first.plan or 'no plan'}{asked}\n  {first.note}"
    gradients = [what for what, wanted in (("x", problem.x_gradient), ("the core", problem.delta_gradient)) if wanted]
    rows = "a core for each row, " if problem.rowwise else ""
    lines = [
        f"{name}{more}: {first.plan}{asked}",
        f"  {problem.out_features} x {problem.in_features}, r = {problem.rank}, T = {problem.tokens}, "
        f"{str(problem.dtype).removeprefix('torch.')} on {problem.device}; {rows}"
        + (f"forward and backward, gradients of {' and '.join(gradients)}" if gradients else "forward"),
    ]
    heading = f"  {'plan':14}{'estimated ms':>14}" + (f"{'measured ms':>14}" if first.measured_ms else "")
    lines.append(heading)
    plans = sorted((plan for plan in PLANS if plan != "auto"), key=lambda plan: first.estimated_ms.get(plan, torch.inf))
    for plan in plans:
        line = f"{'*' if plan == first.plan else ' '} {plan:14}{figure(first.estimated_ms.get(plan)):>14}"
        if first.measured_ms:
            line += f"{figure(first.measured_ms.get(plan)):>14}"
        lines.append(f"{line}  {first.reasons.get(plan, '')}".rstrip())
    return "\n".join(lines)

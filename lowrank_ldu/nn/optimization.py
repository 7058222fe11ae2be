"""Keep trained parameters within the constraints of section III-D.

They hold for a model as it is, or after every step of any torch optimizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from lowrank_ldu.nn.host import hosts
from lowrank_ldu.nn.modules import check_model
from lowrank_ldu.nn.plan import check_adapted
from lowrank_ldu.validation import check_positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from lowrank_ldu.nn.host import AdapterHost

# Attributes of this object; all others, set or read, are the wrapped optimizer's. LR schedulers and accelerate replace
# `step` by their own, which has to stay on the object that they were given.
_OWN = frozenset({"optimizer", "model", "epsilon", "step", "_handle"})


def project_(model: nn.Module, epsilon: float | None = None) -> None:
    r"""Project the parameters of every adapter, in place.

    Every LoLDU adapter of the model then has \|z\| <= epsilon and 0 < sigma <= 1.

    Parameters
    ----------
    model : nn.Module
    epsilon : float, optional
        Largest Euclidean norm of each layer's core z, to rounding; positive. No limit if not given.

    Raises
    ------
    TypeError, ValueError
        epsilon is not a positive finite number, or the model has no adapted layer.

    Notes
    -----
    What is frozen stays as it is, a sigma of `train_sigma=False` included. Section III-D of arXiv 2410.13618, which
    leaves epsilon open. The set 0 < sigma <= 1 has no nearest point to a sigma <= 0; it becomes the smallest normal
    number of its dtype.

    Examples
    --------
    >>> from lowrank_ldu.nn import LDULayer
    >>> layer = LDULayer(torch.nn.Linear(4, 4), rank=2)
    >>> with torch.no_grad():
    ...     _ = layer.sigma.fill_(3.0)
    >>> project_(layer, epsilon=0.5)
    >>> layer.sigma.item(), bool(layer.z.norm() <= 0.5 + 1e-6)
    (1.0, True)
    """
    limit = None if epsilon is None else check_positive(epsilon, "epsilon")
    check_model(model)
    layers = dict(hosts(model))
    check_adapted(layers, model)
    _project(layers.values(), limit)


@torch.no_grad()
def _project(layers: Iterable[AdapterHost], limit: float | None) -> None:
    for host in layers:
        for _, adapter, factors in host.held_adapters():
            # sigma and z are projected separately: one may be trained and the other not.
            if adapter.sigma.requires_grad:
                adapter.sigma.clamp_(torch.finfo(adapter.sigma.dtype).tiny, 1.0)
            if limit is None or not adapter.offset.requires_grad:
                continue
            z = adapter.z(factors)
            norm = torch.linalg.vector_norm(z)
            if norm > limit:
                adapter.set_z(z * (limit / norm), factors)


class ProjectedOptimizer(Optimizer):
    r"""Optimizer that projects the adapters after each step.

    Every LoLDU adapter then has \|z\| <= epsilon and 0 < sigma <= 1. This optimizer stands in for the one that it
    wraps: for LR schedulers, GradScaler, accelerate, the Trainer of transformers. Parameter groups, state and state
    dicts are the wrapped optimizer's own, so checkpoints are those without it. The projection is a hook on the wrapped
    optimizer, so that libraries that call that one's `step` get it as well.

    Parameters
    ----------
    optimizer : Optimizer
        Any torch optimizer.
    model : nn.Module
        Holds the adapters: LoLDU layers, or layers of PEFT. Adapters that are added later count; frozen ones are left
        alone.
    epsilon : float, optional
        As for `project_`.

    Attributes
    ----------
    optimizer, model, epsilon
        As given.

    Raises
    ------
    TypeError, ValueError
        `optimizer` is not a torch optimizer, or epsilon not a positive finite number.

    Notes
    -----
    The projection follows the step and does not enter the optimizer's moments. LBFGS keeps differences of points
    between its steps, which do not hold what the projection moved.

    Examples
    --------
    >>> from lowrank_ldu.nn import LDULayer
    >>> layer = LDULayer(torch.nn.Linear(4, 4), rank=2)
    >>> optimizer = ProjectedOptimizer(torch.optim.SGD(layer.adapter.parameters(), lr=100.0), layer, epsilon=0.5)
    >>> layer(torch.ones(4)).square().sum().backward()
    >>> optimizer.step()
    >>> bool(layer.z.norm() <= 0.5 + 1e-6), bool(0 < layer.sigma <= 1)
    (True, True)
    >>> optimizer.remove()  # from here on plain SGD
    """

    # Optimizer.__init__ is not called: groups and state are not to be made a second time.
    def __init__(self, optimizer: Optimizer, model: nn.Module, epsilon: float | None = None) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}; accepted: a torch.optim.Optimizer")
        check_model(model)
        self.optimizer = optimizer
        self.model = model
        self.epsilon = None if epsilon is None else check_positive(epsilon, "epsilon")
        self._handle = optimizer.register_step_post_hook(self._project)

    def _project(self, *_: Any) -> None:
        _project((host for _, host in hosts(self.model)), self.epsilon)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take the wrapped optimizer's step, and project."""
        # Without a closure no argument is passed: some optimizers' step takes none.
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of the wrapped optimizer's parameters."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state dict."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict with or without the projection.

        It is a state dict of the wrapped optimizer.
        """
        self.optimizer.load_state_dict(state_dict)

    def remove(self) -> None:
        """Remove the projection.

        This object and the wrapped optimizer then do the same.
        """
        self._handle.remove()

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:
            raise AttributeError(name)  # not there yet, while being unpickled
        return getattr(self.optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.optimizer, name, value)

    def __delattr__(self, name: str) -> None:
        if name in _OWN:
            object.__delattr__(self, name)
        else:
            delattr(self.optimizer, name)

    def __repr__(self) -> str:
        return f"ProjectedOptimizer(epsilon={self.epsilon}, {self.optimizer!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the optimizer with its projected model.

        torch's optimizers leave their hooks behind.
        """
        active = self._handle.id in self.optimizer._optimizer_step_post_hooks  # noqa: SLF001  # no public way to ask
        return type(self), (self.optimizer, self.model, self.epsilon), active

    def __setstate__(self, active: bool) -> None:  # type: ignore[override]
        if not active:
            self.remove()

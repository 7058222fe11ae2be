"""Which adapted layers a model has called: an adapter beside one that it never calls has no effect."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from lowrank_ldu.nn.host import Seen, hosts, note_sharers

if TYPE_CHECKING:
    from torch import nn

_NAMED = 5


class ForwardWatch(Seen):
    """Forward hook that notes whether a model has been called."""

    __slots__ = ()

    def __call__(self, *_: Any) -> None:
        """Note the call."""
        self.seen = True


def observe(model: nn.Module) -> None:
    """Note which modules share a weight with an adapted layer, and from now on whether the model is called."""
    note_sharers(model)
    if not _watches(model):
        model.register_forward_hook(ForwardWatch())


def unwatch(model: nn.Module) -> None:
    """Note no longer whether the model is called."""
    for key in _watches(model):
        del model._forward_hooks[key]  # noqa: SLF001  # the handle would have to be kept on the model


def never_called(model: nn.Module) -> list[str]:
    """Return the names of the adapted layers that no forward of the model has called; none before one has ended."""
    if not any(watch.seen for watch in _watches(model).values()):
        return []
    return [name for name, layer in hosts(model) if not layer.called.seen]


def warn_of_never_called(model: nn.Module, *, stacklevel: int = 3) -> None:
    """Warn, once for each layer, of those that `never_called` names."""
    layers = dict(hosts(model))
    names = [name for name in never_called(model) if not layers[name].warned]
    if not names:
        return
    for name in names:
        layers[name].warned = True
    listed = ", ".join(map(repr, names[:_NAMED])) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    warnings.warn(
        f"no forward of the model has called {listed}, of {len(layers)} adapted layers, so that their adapters had no "
        "effect. Experts and branches that nothing was sent to are like that; but where a model reads a weight without "
        "calling its layer, merging changes what it computes",
        UserWarning,
        stacklevel=stacklevel,
    )


def _watches(model: nn.Module) -> dict[int, ForwardWatch]:
    return {key: hook for key, hook in model._forward_hooks.items() if isinstance(hook, ForwardWatch)}  # noqa: SLF001

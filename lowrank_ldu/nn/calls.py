"""Find adapted layers that a model does not call.

Either no forward has called them, or a module reads their weight on another of its paths. An adapter beside such a
layer has no effect there.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lowrank_ldu.nn.host import Seen, hosts
from lowrank_ldu.nn.modules import innermost
from lowrank_ldu.nn.weight_reads import occasional_reader_of
from lowrank_ldu.nn.weights import users_of_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_NAMED = 5


class ForwardWatch(Seen):
    """Forward hook that notes a model's calls."""

    __slots__ = ()

    def __call__(self, *_: Any) -> None:
        """Note the call."""
        self.seen = True


def observe(model: nn.Module) -> None:
    """Prepare adapted layers to note other uses of their weights.

    From now on it is also noted whether the model is called.
    """
    layers = dict(hosts(model))
    for name, layer in layers.items():
        layer.reader = occasional_reader_of(model, name)
    bases = {name: innermost(layer) for name, layer in layers.items()}
    for name, users in users_of_weights(model, bases):
        # With this no layer is merged on its own into a weight that is another module's, too.
        layers[name].sharers = tuple(module for _, module in users if module is not bases[name])
    if not _watches(model):
        model.register_forward_hook(ForwardWatch())


def unwatch(model: nn.Module) -> None:
    """Stop noting whether the model is called."""
    for key in _watches(model):
        del model._forward_hooks[key]  # noqa: SLF001  # the handle would have to be kept on the model


@contextmanager
def kept_notes(model: nn.Module) -> Iterator[None]:
    """Forget the calls of a block that is no use of the model."""
    notes: list[Seen] = [*_watches(model).values()]
    for _, layer in hosts(model):
        notes += [layer.called, layer.weight_read]
    before = [note.seen for note in notes]
    try:
        yield
    finally:
        for note, seen in zip(notes, before, strict=True):
            note.seen = seen


def never_called(model: nn.Module) -> list[str]:
    """Return the names of the adapted layers that were never called.

    A layer counts once a forward of the model has ended; before that the list is empty.
    """
    if not _has_run(model):
        return []
    return [name for name, layer in hosts(model) if not layer.called.seen]


def read_past(model: nn.Module) -> list[str]:
    """Return the names of the adapted layers whose weight was read.

    The module that calls such a layer has read its weight on another of its paths.
    """
    if not _has_run(model):
        return []
    return [name for name, layer in hosts(model) if layer.reader is not None and layer.weight_read.seen]


def warn_of_passed_by(model: nn.Module, *, stacklevel: int = 3) -> None:
    """Warn of the layers that `never_called` and `read_past` name.

    Each layer is warned of once.
    """
    layers = dict(hosts(model))
    unused = [name for name in never_called(model) if not layers[name].warned]
    read = [name for name in read_past(model) if not layers[name].warned and name not in unused]
    for name in (*unused, *read):
        layers[name].warned = True
    if unused:
        warnings.warn(
            f"no forward of the model has called {_listed(unused)}, of {len(layers)} adapted layers, so that their "
            "adapters had no effect. Experts and branches that nothing was sent to are like that; but where a model "
            "reads a weight without calling its layer, merging changes what it computes",
            UserWarning,
            stacklevel=stacklevel,
        )
    if read:
        readers = ", ".join(sorted({str(layers[name].reader) for name in read}))
        warnings.warn(
            f"{readers} may have read the weight of {_listed(read)} without calling the layer, as on one of its paths: "
            "there the adapter has no effect, and merging changes what is computed",
            UserWarning,
            stacklevel=stacklevel,
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more


def _has_run(model: nn.Module) -> bool:
    return any(watch.seen for watch in _watches(model).values())


def _watches(model: nn.Module) -> dict[int, ForwardWatch]:
    return {key: hook for key, hook in model._forward_hooks.items() if isinstance(hook, ForwardWatch)}  # noqa: SLF001

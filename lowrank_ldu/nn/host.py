"""Hold adapters on a base layer, and merge updates into its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from lowrank_ldu.kernels.torch_modes import is_exporting
from lowrank_ldu.nn.kinds import kind_of
from lowrank_ldu.nn.merge_check import check_mergeable, tried_out
from lowrank_ldu.nn.modules import check_model, innermost
from lowrank_ldu.nn.offloading import onloaded
from lowrank_ldu.nn.quantized import is_quantized
from lowrank_ldu.nn.update import Update, merged_weight, updated_matrix
from lowrank_ldu.nn.weights import stored_weight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from lowrank_ldu.kernels import Plan
    from lowrank_ldu.nn.core import CoreAdapter
    from lowrank_ldu.nn.factors import Factors
    from lowrank_ldu.nn.kinds import LayerKind


class HeldAdapter(NamedTuple):
    """Hold one adapter of a layer with its factors.

    The adapter is expressed in these factors.
    """

    name: str
    adapter: CoreAdapter
    factors: Factors

    @property
    def delta(self) -> Tensor:
        """Return the difference sigma z - sigma_0 z_ref, of the core's shape."""
        return self.adapter.delta(self.factors)


class Seen:
    """Hold whether something has been called.

    Shallow copies of a module share it.
    """

    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen = False

    def note(self) -> None:
        """Note a call.

        Calls that torch.export makes to record a graph do not count: the graph has no place for a note.
        """
        if not is_exporting():
            self.seen = True


class KeptBase(NamedTuple):
    """Hold a base weight, and sums of the merged weight.

    The base weight is the one before the merge. The sums tell whether the merged weight is still as merging left it.

    Attributes
    ----------
    weight : Tensor
        The base.
    dtype : torch.dtype
        Of the merged weight.
    sums : tuple of Tensor
        Sums of its bits, by row and by column: every entry counts, however it was written to, and no copy of the merged
        weight is kept for it.
    """

    weight: Tensor
    dtype: torch.dtype
    sums: tuple[Tensor, ...]

    @classmethod
    def of(cls, weight: Tensor, merged: Tensor) -> KeptBase:
        """Keep a base weight, and sum up the merged one."""
        return cls(weight, merged.dtype, _sums_of_bits(merged))

    def check(self, merged: Tensor) -> None:
        """Refuse a merged weight with changed entries.

        Unmerging would lose the change. A weight of another dtype passes.

        Raises
        ------
        RuntimeError
        """
        if merged.dtype != self.dtype or merged.device.type == "meta":
            return  # cast or moved away since: the base that is put back is cast as well
        present = _sums_of_bits(merged)
        if not all(torch.equal(now, then.to(now.device)) for now, then in zip(present, self.sums, strict=True)):
            raise RuntimeError(
                "the merged weight has been changed since it was merged, which putting the base back would lose; "
                "accepted: the weight as merging left it"
            )


def _sums_of_bits(weight: Tensor) -> tuple[Tensor, ...]:
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.dtype.itemsize]
    bits = weight.detach().flatten(1).contiguous().view(integers)
    return tuple(bits.sum(axis, dtype=torch.int64) for axis in (0, 1))


class AdapterHost(nn.Module, ABC):
    """Module with LoLDU adapters of one base layer.

    Optimization, counting and saving ask for modules of this class. Attributes it lacks are those of its base layer:
    `weight`, `bias`, sizes, and whatever else a model looks at.

    Parameters
    ----------
    base_layer : nn.Module
        Of a kind that adapters fit, or another method's layer around one.

    Attributes
    ----------
    base_layer : nn.Module
        Written to by merging alone.
    kind : LayerKind
        Kind of the base layer.
    plan : str
        How the layer computes, one of `lowrank_ldu.kernels.PLANS`.
    called : Seen
        Whether the layer has been called.
    warned : bool
        Whether it was said that it has not.
    weight_read : Seen
        Whether the weight has been looked at through the layer.
    reader : str or None
        The method of the model that reads the weight on one of its paths, and calls the layer on another.
    sharers : tuple of nn.Module
        Modules that used the base layer's weight, too, when the adapter was made.
    """

    base_layer: nn.Module
    kind: type[LayerKind]
    plan: Plan = "auto"
    reader: str | None = None
    warned: bool = False
    sharers: tuple[nn.Module, ...] = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.kind = kind_of(base_layer)
        self.called, self.weight_read = Seen(), Seen()
        # The merged updates, a core each: the adapters' own numbers may change before they are unmerged.
        self._merged_updates: dict[str, Update] = {}
        self._kept_base: KeptBase | None = None

    @abstractmethod
    def held_adapters(self) -> Iterator[HeldAdapter]:
        """Yield the adapters of the layer."""

    @abstractmethod
    def merge(self) -> None:
        """Add the update to the base weight in place.

        Updates are summed in float32 and rounded once.
        """

    @abstractmethod
    def unmerge(self) -> None:
        """Put back the base weight."""

    @property
    def merged(self) -> bool:
        """Return whether an update is in the base weight at present."""
        return bool(self._merged_updates)

    def check_mergeable(self) -> None:
        """Refuse to merge into a weight that cannot be written to.

        Such a weight is not kept, or another module uses it, too.

        Raises
        ------
        TypeError
            The weight is computed from other tensors, or sharded.
        RuntimeError
            It is another module's, too.
        """
        check_mergeable(innermost(self), self.sharers)

    @torch.no_grad()
    def _add_to_weight(self, updates: Mapping[str, Update], *, keep_base: bool) -> None:
        """Add updates to the base weight.

        All that are merged are summed in float32 and rounded once.

        Parameters
        ----------
        updates : mapping of str to Update
            By the adapter's name; none that is merged already.
        keep_base : bool
            Keep a copy of the weight. What was merged without one is not to be had any more.

        Raises
        ------
        TypeError
            The base is quantized: no sum of its weight and an update is in its format. Or as for `check_mergeable`.
        RuntimeError
            As for `check_mergeable`; the merged weight was changed; or the merged layer, tried out where the base has
            hooks or a forward of its own, does not compute what this one does. The weight is not changed.
        OverflowError
            The sum is not finite in the weight's dtype. The weight is not changed then.
        """
        base, new = innermost(self), list(updates.values())
        if is_quantized(base):
            raise TypeError(
                f"the base layer is a quantized {type(base).__name__}, which would lose the update in rounding; "
                "accepted: a floating weight, or the adapter as it is beside the quantized base"
            )
        self.check_mergeable()
        with self._weight_to_write() as weight:
            kept = None if self._kept_base is None else self._kept_base.weight
            if self._kept_base is not None:
                self._kept_base.check(weight)
            elif keep_base and not self.merged:
                kept = weight.detach().clone()
            start, added = (weight, new) if kept is None else (kept, [*self._merged_updates.values(), *new])
            merged = merged_weight(start.detach(), self.kind, [_matrix(update) for update in added])
            # Updates that are merged already are in the weight that the new ones are added to.
            with tried_out(base, self.kind, weight, merged, new):
                _write(weight, merged)
            self._kept_base = None if kept is None else KeptBase.of(kept, weight)
        self._merged_updates |= {name: Update(update.factors, update.delta.clone()) for name, update in updates.items()}

    @torch.no_grad()
    def _restore_weight(self) -> None:
        """Put back the base weight.

        It is the kept copy. Without one the update is subtracted, which leaves rounding errors.

        Raises
        ------
        RuntimeError
            The merged weight was changed since.
        """
        with self._weight_to_write() as weight:
            if self._kept_base is None:
                updates = [-_matrix(update) for update in self._merged_updates.values()]
                _write(weight, merged_weight(weight, self.kind, updates))
            else:
                self._kept_base.check(weight)
                _write(weight, self._kept_base.weight)
        self._kept_base = None
        self._merged_updates.clear()

    @contextmanager
    def _weight_to_write(self) -> Iterator[Tensor]:
        """Bring the weight into memory, and keep the block's changes to it."""
        base = innermost(self)
        with onloaded(base, written=True):
            yield stored_weight(base)

    @property
    def weight(self) -> Any:
        """Return the base layer's weight."""
        self.weight_read.seen = True
        return self.__dict__["_modules"]["base_layer"].weight

    def __getattr__(self, name: str) -> Any:
        """Return a submodule, or an attribute of the base layer.

        Submodules are found as nn.Module finds them. The base layer gives the attributes that the layer itself lacks.
        """
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Names that begin with an underscore belong to this one module: flags and hooks of libraries, ways to copy
            # it.
            if name.startswith("_") or "base_layer" not in modules or not hasattr(modules["base_layer"], name):
                raise
            return getattr(modules["base_layer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; `weight` and `bias` are the base layer's.

        Raises
        ------
        RuntimeError
            The weight is another one than the adapter's factors are of.
        """
        base_layer = self.__dict__.get("_modules", {}).get("base_layer")
        if name not in {"weight", "bias"} or base_layer is None:
            super().__setattr__(name, value)
        elif name == "bias":
            base_layer.bias = value
        elif base_layer.weight is not value:
            raise RuntimeError(
                "weight is another tensor than the one that the layer's adapter was made on; accepted: the same one, "
                "or to set base_layer.weight and make the adapter anew"
            )


def _write(weight: Tensor, numbers: Tensor) -> None:
    # Tensors made in inference mode can be written to in it alone. Not through .data: autograd would not notice.
    with torch.inference_mode() if weight.is_inference() else nullcontext():
        weight.copy_(numbers)


def _matrix(update: Update) -> Tensor:
    # The layer may have moved since.
    return updated_matrix(update.factors, update.delta.to(update.factors.scale.device))


def hosts(model: nn.Module) -> Iterator[tuple[str, AdapterHost]]:
    """Yield the name and the module of every layer with adapters.

    These are the layers of `model` with LoLDU adapters, by qualified name; a shared one comes once.
    """
    check_model(model)
    for name, module in model.named_modules():
        if isinstance(module, AdapterHost):
            yield name, module

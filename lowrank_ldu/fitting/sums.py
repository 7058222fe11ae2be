"""Sum gradients or second moments of layers, in one pass or more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from lowrank_ldu.fitting.batches import as_it_was, taken_batches
from lowrank_ldu.fitting.gradients import GradientSum, InputMoment, one_pass
from lowrank_ldu.validation import check_count, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor, nn

    from lowrank_ldu.fitting.batches import Loss
    from lowrank_ldu.fitting.targets import TargetLayer

Source = Literal["gradient", "scaled_gradient", "activation"]
SOURCES: tuple[Source, ...] = get_args(Source)
_KINDS: dict[Source, type[GradientSum | InputMoment]] = {
    "gradient": GradientSum,
    "scaled_gradient": GradientSum,
    "activation": InputMoment,
}
# Bytes of a number of the sums.
_NUMBER = 4


class Sums:
    """Sums over some data, one for each layer.

    Parameters
    ----------
    model : nn.Module
    data, loss, batches, max_bytes
        As for `loss_gradients`.
    source : str
        One of SOURCES. The sums of "scaled_gradient" are gradients as they are.
    passes : int
        How often `of` will be called with all layers where not all sums are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        loss: Loss | None,
        *,
        source: Source,
        batches: int | None,
        max_bytes: int | None,
        passes: int = 1,
    ) -> None:
        if loss is not None and not callable(loss):
            raise TypeError(f"loss is {shown(loss)}; accepted: a function of the model and a batch, or None")
        self.source = source
        self._model, self._loss, self._kind = model, loss, _KINDS[source]
        self._max_bytes = None if max_bytes is None else check_count(max_bytes, "max_bytes", 1)
        self._batches: Iterable[Any] = taken_batches(data, batches)
        if self._max_bytes is not None and passes > 1:
            self._keep_batches()

    def of(self, layers: Sequence[TargetLayer]) -> Iterator[tuple[TargetLayer, Tensor]]:
        """Yield each layer with its sum, to which no reference is kept."""
        groups = self._groups(layers)
        if len(groups) > 1:
            self._keep_batches()
        for group in groups:
            sums = one_pass(self._model, group, self._batches, self._loss, self._kind)
            for layer in group:
                yield layer, sums.pop(layer.name)

    def _keep_batches(self) -> None:
        if not isinstance(self._batches, list):
            with as_it_was(self._model):  # a DataLoader draws its seed
                self._batches = list(self._batches)

    def _groups(self, layers: Sequence[TargetLayer]) -> list[list[TargetLayer]]:
        if self._max_bytes is None:
            return [list(layers)]
        groups: list[list[TargetLayer]] = []
        left = 0
        for layer in layers:
            size = _NUMBER * self._kind.entries(*layer.weight().shape)
            if not groups or size > left:
                groups.append([])
                left = self._max_bytes
            groups[-1].append(layer)
            left -= size
        return groups


def loss_gradients(
    model: nn.Module,
    layers: Sequence[TargetLayer],
    data: Iterable[Any],
    loss: Loss | None = None,
    *,
    batches: int | None = 16,
    max_bytes: int | None = None,
) -> Iterator[tuple[TargetLayer, Tensor]]:
    """Yield each layer with the sum of its gradients.

    Parameters
    ----------
    model : nn.Module
        Called in evaluation mode, with everything frozen, and as it was afterwards.
    layers : sequence of TargetLayer
    data : iterable
        Batches; tensors in them go to the model's device.
    loss : callable, optional
        loss(model, batch), a scalar; model(**batch).loss if not given.
    batches : int, optional
        How many batches are taken; all if None.
    max_bytes : int, optional
        Bytes of sums that are in memory at a time. Layers are then taken in several passes over the batches, one layer
        at a time at the least. The sums do not depend on it. One pass over all layers if not given.

    Yields
    ------
    layer : TargetLayer
    gradient : Tensor, shape (m, n)
        dLoss/dW, summed over batches and over the calls of the layer in each, in float32 (float64 for float64 layers).
        Nothing else holds it.

    Raises
    ------
    TypeError, ValueError
        There is no batch; the loss is no finite scalar; a layer is never called, its output does not reach the loss, or
        its gradient is zero or not finite (the message names the layer).
    """
    return Sums(model, data, loss, source="gradient", batches=batches, max_bytes=max_bytes).of(layers)


def input_moments(
    model: nn.Module,
    layers: Sequence[TargetLayer],
    data: Iterable[Any],
    loss: Loss | None = None,
    *,
    batches: int | None = 16,
    max_bytes: int | None = None,
) -> Iterator[tuple[TargetLayer, Tensor]]:
    """Yield each layer with the second moment X^T X of its inputs.

    No labels are needed: without `loss`, batches are given to the model as keywords (mappings), arguments (sequences)
    or the only argument. The rest is as for `loss_gradients`; the moment is (n, n).
    """
    return Sums(model, data, loss, source="activation", batches=batches, max_bytes=max_bytes).of(layers)

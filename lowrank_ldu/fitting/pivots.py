"""Choose pivots of a model's weights by gradients or activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from lowrank_ldu.backend import full_precision
from lowrank_ldu.decomposition import ldu_at_pivots
from lowrank_ldu.fitting.allocation import allocate, largest_useful_rank
from lowrank_ldu.fitting.cores import CoreShape
from lowrank_ldu.fitting.energy import energy_of
from lowrank_ldu.fitting.pivots_record import LayerPivots, Pivots
from lowrank_ldu.fitting.ranks import check_budget, check_one_given, checked_ranks
from lowrank_ldu.fitting.selection import usable_pivots
from lowrank_ldu.fitting.sums import SOURCES, Source, Sums
from lowrank_ldu.fitting.targets import naming, target_layers
from lowrank_ldu.validation import check_choice, check_rank

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from lowrank_ldu.fitting.batches import Loss
    from lowrank_ldu.fitting.energy import Energy
    from lowrank_ldu.fitting.targets import TargetLayer
    from lowrank_ldu.nn.cores import Core

Method = Literal["alternating", "separate"]
METHODS: tuple[Method, ...] = get_args(Method)


@full_precision()
def choose_pivots(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss | None = None,
    *,
    targets: Sequence[str] | str = "all-linear",
    rank: int | Mapping[str, int] | None = None,
    budget: int | None = None,
    core: Core = "dense",
    block_size: int | None = None,
    source: Source = "gradient",
    method: Method = "alternating",
    batches: int | None = 16,
    max_bytes: int | None = None,
) -> Pivots:
    r"""Choose rows and columns of weights as pivots, by a task.

    The update of an LDU at pivots (I, J) is W[:, J] K W[I, :]. The rows and columns are those whose span holds most of
    the energy of the loss's gradient, \|Q_C^T G Q_R\|_F^2, as a greedy choice finds them.

    Parameters
    ----------
    model : nn.Module
        Called in evaluation mode and without training anything; afterwards it is as it was.
    data : iterable
        Batches, such as a DataLoader.
    loss : callable, optional
        loss(model, batch), a scalar tensor; model(**batch).loss if not given. For activations, any call of the model.
    targets : sequence of str, or str
        As for `lowrank_ldu.nn.inject`: linear layers alone, which may have adapters.
    rank : int, or mapping of str to int, optional
        r of all layers, or of each by its name (a `rank_pattern`). Either this or `budget`.
    budget : int, optional
        Trained numbers of all layers together, which are shared out so that the energy held is large.
    core : {"dense", "block", "diagonal"}
        What will be trained in the factors: r^2, r * block_size or r numbers a layer.
    block_size : int, optional
        Of core "block"; ranks are multiples of it.
    source : {"gradient", "scaled_gradient", "activation"}
        "scaled_gradient" divides the gradient's rows and columns by their sizes first, so that a few that are far
        larger than all others do not have all the say. "activation" takes second moments of each layer's inputs x and
        outputs W x instead; no labels are needed.
    method : {"alternating", "separate"}
        "separate" chooses rows and columns for the gradient by themselves, "alternating" goes on to choose columns for
        the rows and rows for the columns.
    batches : int, optional
        How many batches are taken; all if None.
    max_bytes : int, optional
        Bytes of gradients in memory at a time. Layers are then taken in several passes over the batches, one at a time
        at the least; with a budget all passes are made twice. The pivots do not depend on it.

    Returns
    -------
    Pivots
        `lowrank_ldu.decomposition.ldu_at_pivots` succeeds at them.

    Raises
    ------
    TypeError
        An argument is of another type.
    ValueError
        A target matches nothing; rank or budget is out of range; the loss is not finite; a layer is never called, has
        no gradient or a zero one, or its weight has a lower rank than asked for (the message names the layer).

    Examples
    --------
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> batches = [(torch.randn(4, 6), torch.randn(4, 2)) for _ in range(2)]
    >>> loss = lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])
    >>> pivots = choose_pivots(model, batches, loss, budget=20)
    >>> pivots.rank_pattern, pivots.numbers
    ({'0': 4, '2': 2}, 20)
    """
    check_choice(source, "source", SOURCES)
    check_choice(method, "method", METHODS)
    shape = CoreShape.checked(core, block_size)
    layers = target_layers(model, targets)
    check_one_given(rank, budget)
    sums = Sums(
        model, data, loss, source=source, batches=batches, max_bytes=max_bytes, passes=1 if budget is None else 2
    )
    choice = _Choice(shape, method)
    if budget is None:
        ranks = checked_ranks(rank, layers, shape)
        for layer, W, energy in _energies(sums, layers):
            choice.add(layer, W, energy, ranks[layer.name])
    else:
        check_budget(budget, layers, shape)
        first: dict[str, list[int]] = {}
        curves: dict[str, list[float]] = {}
        kept: dict[str, Energy] = {}
        for layer, W, energy in _energies(sums, layers):
            top = _largest_rank(shape, budget, len(layers), min(W.shape))
            first[layer.name], curves[layer.name] = _curve(layer, W, energy, shape, top)
            if max_bytes is None:
                kept[layer.name] = energy
        steps = allocate(curves, lambda step: shape.numbers(step * shape.block_size), budget)
        again = ((layer, _scaled_weight(layer, None), kept.pop(layer.name)) for layer in layers)
        for layer, W, energy in again if kept else _energies(sums, layers):
            own = shape.rank_of(steps[layer.name], min(W.shape))
            choice.add(layer, W, energy, own, first.pop(layer.name))
    return Pivots(choice.pivots, choice.shapes, choice.held, shape.core, block_size, source, budget)


def _energies(sums: Sums, layers: Sequence[TargetLayer]) -> Iterator[tuple[TargetLayer, Tensor, Energy]]:
    for layer, total in sums.of(layers):
        W = _scaled_weight(layer, total)
        yield layer, W, energy_of(sums.source, W, total)


def _scaled_weight(layer: TargetLayer, total: Tensor | None) -> Tensor:
    """Return a layer's weight with a largest entry of 1."""
    weight = layer.weight().detach()
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    W = weight.to(weight.device if total is None else total.device, wide)
    if total is not None and total.shape[1] != W.shape[1]:
        raise ValueError(f"layer {layer.name!r} takes inputs of {total.shape[1]} numbers; accepted: {W.shape[1]}")
    largest = float(W.abs().max())
    if not 0 < largest < float("inf"):
        raise ValueError(f"layer {layer.name!r}: the weight is zero or not finite; accepted: a finite weight")
    return W / largest


def _largest_rank(shape: CoreShape, budget: int, layers: int, limit: int) -> int:
    """Return the rank up to which the energy of a layer is looked at."""
    steps = largest_useful_rank(lambda step: shape.numbers(step * shape.block_size), budget, layers, shape.steps(limit))
    return shape.rank_of(steps, limit)


def _curve(layer: TargetLayer, W: Tensor, energy: Energy, shape: CoreShape, top: int) -> tuple[list[int], list[float]]:
    """Return rows in a greedy order, and the energy held at each step."""
    columns, rows = energy.columns(W, top), energy.rows(W, top)
    with naming(layer):
        found = min(len(columns.indices), len(rows.indices))
        check_rank(shape.block_size, found, "the weight has dependent rows or columns, and the least rank")
        top = shape.rank_of(found, found)
    if shape.core == "dense":
        held = energy.grid(columns.basis[:, :top], rows.basis[:, :top]).cumsum(0).cumsum(1).diagonal()
    else:
        with naming(layer):
            pivots = usable_pivots(W, rows.indices[:top], columns.indices[:top])
        factors = ldu_at_pivots(W, *pivots)
        held = shape.held_by_rank(factors.left, factors.right, energy)
    return rows.indices, (energy.total * held[shape.block_size - 1 :: shape.block_size]).tolist()


class _Choice:
    """Pivots that are chosen so far."""

    def __init__(self, shape: CoreShape, method: Method) -> None:
        self._shape, self._method = shape, method
        self.pivots: dict[str, LayerPivots] = {}
        self.shapes: dict[str, tuple[int, int]] = {}
        self.held: dict[str, float] = {}

    def add(self, layer: TargetLayer, W: Tensor, energy: Energy, rank: int, rows: list[int] | None = None) -> None:
        """Choose a layer's pivots, beginning with rows in a greedy order."""
        rows = energy.rows(W, rank).indices if rows is None else rows[:rank]
        if self._method == "alternating":
            columns = energy.columns(W, rank, torch.linalg.qr(W[rows].T).Q)
            rows = energy.rows(W, rank, columns.basis).indices
        else:
            columns = energy.columns(W, rank)
        with naming(layer):
            check_rank(rank, min(len(rows), len(columns.indices)), "the weight has dependent rows or columns, and rank")
            rows, indices = usable_pivots(W, rows, columns.indices)
        if self._shape.core == "dense":
            held = energy.grid(columns.basis, torch.linalg.qr(W[rows].T).Q).sum()
        else:
            factors = ldu_at_pivots(W, rows, indices)
            held = self._shape.held_by_rank(factors.left, factors.right, energy)[-1]
        m, n = W.shape
        self.pivots[layer.name] = LayerPivots(tuple(rows), tuple(indices))
        self.shapes[layer.name], self.held[layer.name] = (m, n), float(held)

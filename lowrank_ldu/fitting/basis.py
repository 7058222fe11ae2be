"""Fit the factors of adapters to gradients or activations."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from lowrank_ldu.backend import full_precision
from lowrank_ldu.decomposition import Factorization
from lowrank_ldu.fitting.allocation import allocate, largest_useful_rank
from lowrank_ldu.fitting.cores import CoreShape
from lowrank_ldu.fitting.energy import GradientEnergy, energy_of
from lowrank_ldu.fitting.factoring import checked_method, finished, terms_of_gradient, terms_of_moments
from lowrank_ldu.fitting.fitted_basis import BASIS_DTYPES, FittedBasis, LayerBasis
from lowrank_ldu.fitting.ranks import check_budget, check_one_given, checked_ranks
from lowrank_ldu.fitting.sums import SOURCES, Sums
from lowrank_ldu.fitting.targets import target_layers
from lowrank_ldu.nn.base_identity import sample_of
from lowrank_ldu.validation import LARGEST_SEED, check_choice, check_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from lowrank_ldu.fitting.batches import Loss
    from lowrank_ldu.fitting.factoring import BasisMethod
    from lowrank_ldu.fitting.sums import Source

_DIAGONAL = CoreShape("diagonal")


@full_precision()
def fit_basis(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss | None = None,
    *,
    targets: Sequence[str] | str = "all-linear",
    rank: int | Mapping[str, int] | None = None,
    budget: int | None = None,
    source: Source = "gradient",
    method: BasisMethod | None = None,
    dtype: str = "float32",
    batches: int | None = 16,
    max_bytes: int | None = None,
    seed: int = 0,
) -> FittedBasis:
    """Fit factors to the gradients of a loss, or to activations.

    Each layer gets rank-one terms left[:, i] right[i, :], of which an adapter trains the diagonal: r numbers. The data
    need not be those that adapters are trained on later.

    Parameters
    ----------
    model, data, loss, targets, batches, max_bytes
        As for `choose_pivots`; with a budget, too, one pass over the batches is enough for the layers that are in
        memory together.
    rank : int, or mapping of str to int, optional
        r of all layers, or of each by its name, where the gradient has that rank. Either this or `budget`.
    budget : int, optional
        Numbers on the diagonals of all layers together.
    source : {"gradient", "scaled_gradient", "activation"}
        "gradient": terms of each layer's gradient. "scaled_gradient": of the gradient whose rows and columns are
        divided by their sizes, so that a few that are far larger than all others do not take most terms: better where
        terms are few. "activation": the layer's inputs' directions give right, its outputs' W x give left, by pivoted
        LDL^T of their second moments.
    method : str, optional
        Of gradients: "ldu_lowrank" (default), the LDU of the near-best approximation of rank r; "complete", "rook" or
        "randomized", the leading terms of the LDU itself; "svd". Of activations: "complete" (default) or "svd", their
        principal directions.
    dtype : {"float32", "bfloat16", "float16"}
        Of left and right as they are kept.
    seed : int
        Draws the sketches of "ldu_lowrank" and "randomized".

    Returns
    -------
    FittedBasis

    Raises
    ------
    TypeError, ValueError
        As for `choose_pivots`; the method is none of the source's.

    Warns
    -----
    UserWarning
        A gradient has a lower rank than asked for, of few batches, and so has the basis in that layer.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> batches = [(torch.randn(4, 6), torch.randn(4, 2)) for _ in range(2)]
    >>> loss = lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])
    >>> basis = fit_basis(model, batches, loss, rank=2)
    >>> basis.rank_pattern, basis.nbytes
    ({'0': 2, '2': 2}, 464)
    >>> basis.factors("0").left.shape
    torch.Size([8, 2])
    """
    check_choice(source, "source", SOURCES)
    chosen = checked_method(method, source)
    check_choice(dtype, "dtype", BASIS_DTYPES)
    check_count(seed, "seed", 0, LARGEST_SEED)
    layers = target_layers(model, targets)
    check_one_given(rank, budget)
    ranks: dict[str, int] = {}
    if budget is None:
        ranks = checked_ranks(rank, layers, _DIAGONAL)
    else:
        check_budget(budget, layers, _DIAGONAL)
    found: dict[str, _Fitted] = {}
    short: list[str] = []
    for layer, total in Sums(model, data, loss, source=source, batches=batches, max_bytes=max_bytes).of(layers):
        W = layer.weight().detach().to(total.device)
        own = ranks.get(layer.name) or largest_useful_rank(_DIAGONAL.numbers, budget or 0, len(layers), min(W.shape))
        found[layer.name] = _fitted(W, total, own, chosen, source=source, seed=seed)
        if ranks:
            ranks[layer.name] = found[layer.name].terms.rank
            short += [layer.name] * (ranks[layer.name] < own)
    if not ranks:
        ranks = allocate({name: fitted.energy for name, fitted in found.items()}, _DIAGONAL.numbers, budget or 0)
    if short:
        which = f"{len(short)} layer{'s' * (len(short) > 1)}, {short[0]!r} first,"
        warnings.warn(
            f"the {source.replace('_', ' ')}s of {which} have a lower rank than asked for, which the basis has there; "
            "more batches may raise it",
            UserWarning,
            stacklevel=3,
        )
    parts = {}
    for name, own in ranks.items():
        terms, energy, total_energy, sample = found.pop(name)
        parts[name] = LayerBasis(finished(terms.truncate(own), chosen), energy[own - 1] / total_energy, sample)
    return FittedBasis.of_layers(parts, source=source, method=chosen, dtype=dtype, budget=budget)


class _Fitted(NamedTuple):
    """Terms of a layer, the energy that each first few hold, and of all."""

    terms: Factorization[Tensor]
    energy: list[float]
    total: float
    base_sample: Tensor


def _fitted(W: Tensor, total: Tensor, rank: int, method: BasisMethod, *, source: Source, seed: int) -> _Fitted:
    """Return terms of a layer's sum, which is written to."""
    energy = energy_of(source, W, total)
    if isinstance(energy, GradientEnergy):
        terms = terms_of_gradient(energy.G, rank, method, seed)
        terms = Factorization(terms.left, terms.diagonal * energy.scale, terms.right)
    else:
        terms = terms_of_moments(energy.outputs, energy.inputs, rank, method)
    held = _DIAGONAL.held_by_rank(terms.left, terms.right, energy)
    return _Fitted(terms, (energy.total * held).tolist(), energy.total, sample_of(W))

"""Compute the rank-one terms whose coefficients are trained.

They are those of the weight's LDU factorization, of a basis that was fitted to a task, or of another one to compare
with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import numpy as np
import torch

from lowrank_ldu.decomposition import LDU, PIVOTING, Factorization, ldu, ldu_at_pivots, svd
from lowrank_ldu.validation import check_matrix, check_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lowrank_ldu.decomposition import Pivoting
    from lowrank_ldu.nn.options import AdapterOptions

Basis = Literal["ldu", "svd", "random", "fitted"]
BASES: tuple[Basis, ...] = get_args(Basis)
# Those that the weight determines, alone or with a seed.
WEIGHT_BASES: tuple[Basis, ...] = tuple(name for name in BASES if name != "fitted")


@dataclass(frozen=True)
class BasisFactors:
    """Hold rank-one terms of a weight, and pivots if any.

    There are pivots where the terms come from an elimination.

    Attributes
    ----------
    factors : Factorization
        left (m, r), diagonal (r,), right (r, n), as torch tensors of the weight's dtype, at least float32.
    rows, columns : Tensor or None
        Pivots, int64, shape (r,): rows for the LDU basis; columns where it was pivoted on columns, too.
    """

    factors: Factorization
    rows: Tensor | None = None
    columns: Tensor | None = None


def terms_of(matrix: Tensor, rank: int | None, basis: Basis, pivoting: Pivoting, seed: int) -> BasisFactors:
    """Return the leading terms of a weight in a basis.

    Parameters
    ----------
    matrix : Tensor, shape (m, n)
    rank : int, optional
        r; min(m, n) if not given.
    basis : str
        "ldu": P L_r and U_r with the leading diagonal. "svd": the leading singular vectors and values, by the exact
        decomposition. "random": orthonormal columns and rows that do not depend on W, with the diagonal that is best
        for them, diag(left^T W right^T).
    pivoting : str
        Of the LDU basis.
    seed : int
        Of randomized pivoting and of the random basis.

    Returns
    -------
    BasisFactors

    Raises
    ------
    TypeError, ValueError
        As for `ldu`.

    Examples
    --------
    >>> terms = terms_of(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), 1, "svd", "partial", 0)
    >>> terms.factors.diagonal
    tensor([3.])
    """
    if basis == "svd":
        return BasisFactors(svd(matrix, rank))
    if basis == "random":
        return BasisFactors(_random(matrix, rank, seed))
    return ldu_terms(ldu(matrix, rank, pivoting=pivoting, seed=seed))


class FittedBasis(Protocol):
    """Require what layers need of a fitted basis.

    Attributes
    ----------
    digest : str
        Names the basis by its content.
    rank_pattern : dict of str to int
        Rank of each layer that it has.
    """

    @property
    def digest(self) -> str: ...  # noqa: D102

    @property
    def rank_pattern(self) -> dict[str, int]: ...  # noqa: D102

    def factors(self, layer: str) -> Factorization:
        """Return left (m, r), diagonal (r,) and right (r, n) of a layer.

        Raises
        ------
        KeyError or ValueError
            It has no such layer.
        """
        ...

    def check(self, layer: str, matrix: Tensor) -> None:
        """Refuse a weight that the basis was not fitted beside.

        Raises
        ------
        ValueError
        """
        ...


# Bases of this process, by digest: adapters name theirs by that alone.
_KNOWN: dict[str, FittedBasis] = {}


def use_basis(basis: FittedBasis) -> str:
    """Make a fitted basis known to layers, and return its digest.

    Adapters name their basis by the digest; it stays known until the process ends.
    """
    _KNOWN[basis.digest] = basis
    return basis.digest


def fitted_basis(digest: str) -> FittedBasis | None:
    """Return the basis of a digest, or None if it is not known."""
    return _KNOWN.get(digest)


def fitted_terms(matrix: Tensor, layer: str, options: AdapterOptions) -> BasisFactors:
    """Return a layer's terms of the fitted basis that the options name.

    Raises
    ------
    ValueError
        No basis of that digest is known, it has no such layer or other sizes, or was fitted beside another weight.
    """
    digest, rank = cast("str", options.basis_digest), options.rank
    basis = _KNOWN.get(digest)
    if basis is None:
        raise ValueError(
            f"no basis of digest {digest} is known; accepted: to load its file before, "
            "lowrank_ldu.nn.use_basis(lowrank_ldu.fitting.FittedBasis.load(path))"
        )
    try:
        basis.check(layer, matrix)
    except ValueError as error:
        # The caller names the layer.
        raise type(error)(str(error).removeprefix(f"layer {layer!r}: ")) from error
    factors = basis.factors(layer)
    if rank is not None and rank > factors.rank:
        raise ValueError(f"rank is {rank}; accepted: up to {factors.rank}, the rank of the fitted basis in this layer")
    parts = factors if rank is None else factors.truncate(rank)
    wide = torch.promote_types(matrix.dtype, torch.float32)
    left, diagonal, right = (part.to(matrix.device, wide) for part in (parts.left, parts.diagonal, parts.right))
    return BasisFactors(Factorization(left, diagonal, right))


def terms_at_pivots(matrix: Tensor, rows: Tensor, columns: Tensor | None, pivoting: str) -> BasisFactors:
    """Return the terms of the LDU basis for known pivots.

    No pivots are searched.

    Raises
    ------
    ValueError
        The pivots are not possible in this matrix.
    """
    listed: Sequence[int] | None = None if columns is None else columns.tolist()
    # Those that were chosen from outside are of no strategy of ldu; complete pivoting takes any of them.
    strategy: Pivoting = pivoting if pivoting in PIVOTING else "complete"
    return ldu_terms(ldu_at_pivots(matrix, rows.tolist(), listed, pivoting=strategy))


def ldu_terms(factors: LDU) -> BasisFactors:
    """Return the terms of a given factorization."""
    rows, columns, r = factors.permutation, factors.column_permutation, factors.rank
    return BasisFactors(factors, rows[:r].clone(), None if columns is None else columns[:r].clone())


def _random(matrix: Tensor, rank: int | None, seed: int) -> Factorization:
    wide, _ = check_matrix(matrix)
    rank = check_rank(rank, min(matrix.shape))
    # The stream of NumPy's legacy generator is frozen: an adapter has to find the same basis under any NumPy. QR is
    # computed in float64 on the CPU, so that every device gets the same to rounding.
    generator = np.random.RandomState(seed)
    bases = [_orthonormal(generator.standard_normal((size, rank))) for size in matrix.shape]
    left, right = (torch.from_numpy(basis).to(matrix.device, wide.dtype) for basis in bases)
    diagonal = (left * (wide @ right)).sum(dim=0)
    if not bool(diagonal.isfinite().all()):
        raise ValueError(
            f"W has entries up to {float(wide.abs().max()):.3g}, whose sums in the random basis overflow; accepted: "
            "smaller ones, or basis 'ldu'"
        )
    return Factorization(left, diagonal, right.T.contiguous())


def _orthonormal(columns: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Any:
    """Return Q of a QR decomposition whose R has a positive diagonal.

    Each LAPACK chooses signs of its own.
    """
    q, r = np.linalg.qr(columns)
    return q * np.sign(np.diagonal(r))

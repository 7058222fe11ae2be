"""Measure a factorization at each rank asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lowrank_ldu.backend import full_precision
from lowrank_ldu.decomposition import Factorization
from lowrank_ldu.diagnostics.examination import Examination
from lowrank_ldu.diagnostics.target import Target
from lowrank_ldu.validation import check_like, check_rank, explain_keywords

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array
    from lowrank_ldu.diagnostics.record import Diagnostics


@explain_keywords(dict.fromkeys(("r", "k", "rank"), "it is ranks here"))
@full_precision()
def diagnose(
    W: Array | Target,
    factors: Factorization,
    ranks: Iterable[int] | int | None = None,
    *,
    singular_values: Array | None = None,
) -> list[Diagnostics]:
    """Measure a factorization of W at each rank.

    It is compared with the zero matrix and the best possible.

    Parameters
    ----------
    W : array, shape (m, n), or Target
        The matrix that was factored. A `Target` spares measuring it again for each of several factorizations.
    factors : Factorization
        Of W: from `ldu`, `ldu_lowrank`, `svd` or `pissa`.
    ranks : iterable of int or int, optional
        Each from 1 to `factors.rank`; the latter alone if not given.
    singular_values : array, shape (k,), optional
        Of W, as for `Target`; not for a target, which has them.

    Returns
    -------
    list of Diagnostics
        In the order of `ranks`.

    Raises
    ------
    TypeError, ValueError
        W as for `ldu`, or a stack; W has another shape than the factors; a rank is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_ldu import ldu
    >>> W = np.array([[4.0, 0.0], [0.0, 3.0]])
    >>> (figures,) = diagnose(W, ldu(W), ranks=[1])
    >>> round(figures.frobenius_error, 3), round(figures.svd_frobenius_error, 3)
    (0.6, 0.6)
    """
    if not isinstance(factors, Factorization):
        raise TypeError(f"factors is a {type(factors).__name__}; accepted: what ldu, svd or pissa returned")
    if not isinstance(W, Target):
        W = Target(check_like(W, factors.left)[0], singular_values=singular_values)
    elif singular_values is not None:
        raise ValueError("singular_values is given with a Target; accepted: to make the Target with them")
    examination = Examination(W, factors)
    return [examination.at(rank) for rank in _check_ranks(ranks, factors.rank)]


def _check_ranks(ranks: object, largest: int) -> list[int]:
    if ranks is None:
        return [largest]
    listed = [ranks] if isinstance(ranks, str) or not isinstance(ranks, Iterable) else list(ranks)
    return [check_rank(rank, largest, "ranks", optional=False) for rank in listed]

"""Factor weights into rank-one terms.

Arrays may be of any supported library.
"""

from lowrank_ldu.decomposition.error_estimate import ErrorEstimate, estimate_error
from lowrank_ldu.decomposition.factorization import Factorization
from lowrank_ldu.decomposition.gram import gram_matrix
from lowrank_ldu.decomposition.ldu import LDU, PIVOTING, Pivoting, ldu
from lowrank_ldu.decomposition.ldu_at_pivots import ldu_at_pivots
from lowrank_ldu.decomposition.ldu_lowrank import ldu_lowrank
from lowrank_ldu.decomposition.ldu_of_product import ldu_of_product
from lowrank_ldu.decomposition.pissa import PiSSA, pissa
from lowrank_ldu.decomposition.svd import SVD, svd

__all__ = [
    "LDU", "PIVOTING", "SVD", "ErrorEstimate", "Factorization", "PiSSA", "Pivoting", "estimate_error", "gram_matrix",
    "ldu", "ldu_at_pivots", "ldu_lowrank", "ldu_of_product", "pissa", "svd",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__

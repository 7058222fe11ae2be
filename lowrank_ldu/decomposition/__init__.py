"""Factorisations of a weight into rank-one terms, for arrays of any supported library."""

from lowrank_ldu.decomposition.factorization import Factorization
from lowrank_ldu.decomposition.gram import gram_matrix
from lowrank_ldu.decomposition.lower_diagonal_upper import LDU, PIVOTING, Pivoting, ldu
from lowrank_ldu.decomposition.principal import PiSSA, pissa
from lowrank_ldu.decomposition.skeleton import ldu_at_pivots
from lowrank_ldu.decomposition.truncated_svd import SVD, svd

__all__ = [
    "LDU", "PIVOTING", "SVD", "Factorization", "PiSSA", "Pivoting", "gram_matrix", "ldu", "ldu_at_pivots", "pissa",
    "svd",
]  # fmt: skip

"""The error with the best core, against its definition; and the near-best LDU among the methods."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import any_finite

from lowrank_ldu import diagnose, ldu, ldu_lowrank, ldu_of_product, svd
from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.diagnostics import Examination, Target
from lowrank_ldu.diagnostics.cost import factor_flops


@given(any_finite(), st.sampled_from(PIVOTING), st.data())
def test_the_best_core_is_between_the_best_diagonal_and_the_optimum(W, pivoting, data):
    rank = data.draw(st.integers(1, min(W.shape)))
    try:
        (figures,) = diagnose(W, ldu(W, rank, pivoting=pivoting))
    except ValueError:
        return  # no factors, or no figures, in this range
    core = figures.core_frobenius_error
    # Squares of an error below this share of W are formed from the matrix itself; rounding is in proportion to it.
    rounding = 1e-7 + 1e3 * np.finfo(W.dtype).eps
    assert core <= figures.refit_frobenius_error * (1 + 1e-6) + rounding
    assert core >= figures.svd_frobenius_error * (1 - 1e-6) - rounding


@pytest.mark.parametrize("shape", [(40, 25), (25, 40)])
def test_lower_ranks_share_the_bases_of_the_largest(shape):
    W = np.random.default_rng(0).standard_normal(shape)
    factors = ldu(W, 20)
    examination = Examination(Target(W), factors)
    shared = [examination.at(rank).core_frobenius_error for rank in (20, 11, 3)]
    alone = [Examination(Target(W), factors).at(rank).core_frobenius_error for rank in (20, 11, 3)]
    np.testing.assert_allclose(shared, alone, rtol=1e-10)
    assert examination.at(3, core=False).core_frobenius_error is None


def test_a_small_error_keeps_its_digits():
    generator = np.random.default_rng(0)
    W = generator.standard_normal((30, 5)) @ generator.standard_normal((5, 30))
    noise = 1e-9 * generator.standard_normal((30, 30))
    figures = diagnose(W + noise, ldu(W + noise, 5), 5)[0]
    factors = ldu(W + noise, 5)
    left, right = np.linalg.qr(factors.left)[0], np.linalg.qr(factors.right.T)[0]
    error = (W + noise) - left @ (left.T @ (W + noise) @ right) @ right.T
    assert figures.core_frobenius_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(W), rel=1e-3)


def test_the_near_best_ldu_is_a_method_of_its_own(library):
    W = np.random.default_rng(0).standard_normal((30, 20))
    array = library.array(W)
    (figures,) = diagnose(array, ldu_lowrank(array, 6))
    assert (figures.method, figures.pivoting, figures.rank) == ("ldu_lowrank", None, 6)
    assert figures.frobenius_error == pytest.approx(figures.svd_frobenius_error, rel=0.02)
    assert figures.core_frobenius_error == pytest.approx(figures.frobenius_error, rel=1e-6)
    left = svd(W, 6)
    (of_product,) = diagnose(W, ldu_of_product(left.left * left.diagonal, left.right))
    assert (of_product.method, of_product.pivoting) == ("ldu_of_product", None)
    assert of_product.frobenius_error == pytest.approx(of_product.svd_frobenius_error, rel=1e-9)


def test_operations_of_the_near_best_ldu():
    W = np.eye(50, 40)
    of_product = 4 * 90 * 4**2
    assert factor_flops(ldu_of_product(W[:, :4], W[:4]), 4) == of_product
    assert factor_flops(ldu_lowrank(W, 4), 4) == of_product + 10 * 50 * 40 * 12 + 18 * 12**2 * 90

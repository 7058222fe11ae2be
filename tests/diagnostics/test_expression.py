"""The share of a matrix that a diagonal expresses: known answers, and a dense least-squares reference."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from least_squares import dense_share, gaussian_pair, sizes
from matrices import any_finite
from weights import weight

from lowrank_ldu import ldu, svd
from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.diagnostics import Target, express


@given(sizes, st.sampled_from(PIVOTING), st.data())
def test_diagonal_of_a_constructed_update_is_recovered(sizes, pivoting, data):
    base, noise = gaussian_pair(sizes)
    rank = data.draw(st.integers(1, min(base.shape)))
    factors = ldu(base, rank, pivoting=pivoting)
    d = noise.ravel()[:rank]
    update = (factors.left * d) @ factors.right
    expression = express(Target(update), factors, [rank], [rank])
    assert expression.explained[rank] == pytest.approx(1, abs=1e-9)
    fitted = factors.fit(update)
    # By what it reproduces: d itself is as uncertain as the terms are dependent.
    np.testing.assert_allclose(fitted.reconstruct(), update, atol=1e-8 * float(update.abs().max()))
    if dense_share(update, factors, rank)[1] < 1e3:
        np.testing.assert_allclose(fitted.diagonal, d, atol=1e-8 * float(d.abs().max()))


@given(sizes, st.sampled_from(PIVOTING), st.sampled_from([np.float32, np.float64]), st.data())
def test_share_is_that_of_dense_least_squares(sizes, pivoting, dtype, data):
    base, update = gaussian_pair(sizes, dtype)
    k = min(base.shape)
    ranks = sorted({data.draw(st.integers(1, k)), k})
    factors = ldu(base, pivoting=pivoting)
    expression = express(Target(update), factors, ranks, ranks)
    for rank in ranks:
        expected, condition = dense_share(update, factors, rank)
        assert expression.explained[rank] == pytest.approx(expected, abs=1e-13 * condition**2 + 1e-12)
        assert expression.independent[rank] == rank


@given(any_finite(), st.sampled_from(PIVOTING), st.integers(0, 2**32 - 1))
def test_share_of_any_base_is_a_share_grows_with_rank_and_is_never_overstated(base, pivoting, seed):
    assume(min(base.shape) > 1)
    base = torch.from_numpy(base)
    update = torch.from_numpy(np.random.default_rng(seed).standard_normal(base.shape).astype(base.numpy().dtype))
    k = min(base.shape)
    factors = ldu(base, pivoting=pivoting)
    expression = express(Target(update), factors, range(1, k + 1), range(1, k + 1))
    shares = list(expression.explained.values())
    assert all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares)
    for rank in (1, k):
        expected, _ = dense_share(update, factors, rank)
        assert expression.explained[rank] <= expected + 1e-6
        assert 1 <= expression.independent[rank] <= rank


def test_update_orthogonal_to_all_terms_is_not_explained():
    base = weight(9, 7, dtype=torch.float64)
    for factors in (*(ldu(base, pivoting=pivoting) for pivoting in PIVOTING), svd(base)):
        terms = torch.stack([torch.outer(factors.left[:, i], factors.right[i]).ravel() for i in range(7)], dim=1)
        # y is orthogonal to every row of U but the first, and x to the first column of L.
        y = torch.linalg.pinv(factors.right)[:, 0]
        l_0 = factors.left[:, 0]
        x = torch.arange(9.0, dtype=torch.float64)
        x = x - l_0 * (l_0 @ x) / (l_0 @ l_0)
        update = torch.outer(x, y)
        assert float((terms.T @ update.ravel()).abs().max()) < 1e-10
        assert express(Target(update), factors, [3, 7], [1, 7]).explained == pytest.approx({3: 0, 7: 0}, abs=1e-16)


@pytest.mark.parametrize("pivoting", PIVOTING)
def test_terms_that_nearly_depend_on_each_other(pivoting):
    """Rows that differ by rounding: the Cholesky factor is of no use, and the residual decides."""
    generator = np.random.default_rng(0)
    base = torch.from_numpy(np.ones((8, 6)) + 1e-13 * generator.standard_normal((8, 6)))
    update = torch.from_numpy(generator.standard_normal((8, 6)))
    factors = ldu(base, pivoting=pivoting)
    ranks = range(1, 7)
    expression = express(Target(update), factors, ranks, ranks)
    shares = list(expression.explained.values())
    assert shares == sorted(shares)
    for rank in ranks:
        assert expression.explained[rank] == pytest.approx(dense_share(update, factors, rank)[0], abs=1e-3)


def test_equal_terms_fall_back_to_eigenvalues():
    one = svd(torch.ones(3, 2, dtype=torch.float64), 1)
    twice = type(one)(one.left.repeat(1, 2), torch.zeros(2, dtype=torch.float64), one.right.repeat(2, 1))
    expression = express(Target(torch.ones(3, 2)), twice, [1, 2], [1, 2])
    assert expression.explained == pytest.approx({1: 1.0, 2: 1.0})
    assert expression.independent == {1: 1, 2: 1}
    assert expression.curve == [pytest.approx(1.0), None]


def test_random_updates_hold_their_expectation():
    """Terms that are not orthogonal hold no more of a random update than orthogonal ones: their number over m n."""
    base = weight(10, 8, dtype=torch.float64)
    factors = ldu(base)
    updates = (weight(10, 8, seed=seed).double() for seed in range(1, 401))
    shares = [express(Target(update), factors, [8]).explained[8] for update in updates]
    # A share is Beta((r, mn - r) / 2): mean r / mn, standard deviation about sqrt(2 r) / mn = 0.05, of 400.
    assert np.mean(shares) == pytest.approx(8 / 80, abs=4 * 0.05 / 20)

"""The refitted diagonal is the least-squares solution."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from matrices import any_finite

from lowrank_ldu.decomposition import PIVOTING, gram_matrix, ldu, pissa, svd

sizes = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**32 - 1))


def gaussian(sizes):
    m, n, seed = sizes
    return np.random.default_rng(seed).standard_normal((m, n))


@given(sizes, st.sampled_from(PIVOTING), st.data())
def test_refit_is_the_least_squares_solution(sizes, pivoting, data):
    W = gaussian(sizes)
    factors = ldu(W, data.draw(st.integers(1, min(W.shape))), pivoting=pivoting)
    terms = np.stack([np.outer(factors.left[:, i], factors.right[i]).ravel() for i in range(factors.rank)], axis=1)
    reference = np.linalg.lstsq(terms, W.ravel(), rcond=None)[0]
    refit = factors.refit(W)
    # Compared by what they reproduce: the solution itself is as uncertain as the terms are dependent.
    np.testing.assert_allclose(refit.reconstruct(), (terms @ reference).reshape(W.shape), atol=1e-9)
    # No step away from it helps: the residual is orthogonal to every term.
    slopes = terms.T @ refit.residual(W).ravel() / np.linalg.norm(terms, axis=0)
    np.testing.assert_allclose(slopes, 0, atol=1e-10)


@given(any_finite(), st.sampled_from(PIVOTING), st.data())
def test_refit_is_never_worse(W, pivoting, data):
    W = W.astype(np.float64)
    largest = np.abs(W).max()
    if largest:
        W = W / largest
    factors = ldu(W, data.draw(st.integers(1, min(W.shape))), pivoting=pivoting)
    before, after = np.linalg.norm(factors.residual(W)), np.linalg.norm(factors.refit(W).residual(W))
    scale = np.linalg.norm((np.abs(factors.left) * np.abs(factors.diagonal)) @ np.abs(factors.right))
    assert after <= before + 100 * np.finfo(np.float64).eps * scale


def test_refit_of_an_exact_factorization_changes_nothing_beyond_rounding():
    W = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    factors = ldu(W)
    refit = factors.refit(W)
    error = np.linalg.norm(refit.residual(W)) / np.linalg.norm(W)
    # Both are a few roundings; the refitted diagonal is rounded to float32 once more.
    assert error <= 1.5 * np.linalg.norm(factors.residual(W)) / np.linalg.norm(W)


def test_dependent_terms_share_the_correction():
    W = np.ones((2, 2))
    factors = svd(W, 1)
    twice = type(factors)(
        np.concatenate([factors.left] * 2, axis=1), np.zeros(2), np.concatenate([factors.right] * 2, axis=0)
    )
    np.testing.assert_allclose(twice.refit(W).diagonal, [1.0, 1.0], atol=1e-12)


@given(sizes)
def test_gram_is_the_metric_of_the_diagonal(sizes):
    W = gaussian(sizes)
    factors = ldu(W)
    dz = np.random.default_rng(0).standard_normal(factors.rank)
    moved = np.linalg.norm((factors.left * dz) @ factors.right)
    np.testing.assert_allclose(np.sqrt(dz @ gram_matrix(factors.left, factors.right) @ dz), moved, rtol=1e-6)


def test_svd_terms_are_orthonormal_in_the_gram_metric():
    factors = svd(np.random.default_rng(0).standard_normal((9, 7)))
    np.testing.assert_allclose(gram_matrix(factors.left, factors.right), np.eye(7), atol=1e-13)
    W = factors.reconstruct()
    np.testing.assert_allclose(factors.refit(W).diagonal, factors.diagonal, rtol=1e-12)
    np.testing.assert_allclose(pissa(W).refit(W).diagonal, np.ones(7), rtol=1e-10)

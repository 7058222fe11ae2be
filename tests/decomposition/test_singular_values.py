"""SVD and PiSSA, exact and randomized."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import shapes, well_conditioned

from lowrank_ldu.decomposition import pissa, svd


@given(shapes(), st.integers(0, 2**32 - 1), st.data())
def test_exact_svd_is_optimal_and_orthonormal(shape, seed, data):
    W = np.random.default_rng(seed).standard_normal(shape)
    rank = data.draw(st.integers(1, min(shape)))
    factors = svd(W, rank)
    values = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(factors.diagonal, values[:rank], rtol=1e-10)
    np.testing.assert_allclose(factors.left.T @ factors.left, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(factors.right @ factors.right.T, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(factors.residual(W)), np.linalg.norm(values[rank:]), atol=1e-10)


def test_randomized_svd_reaches_the_optimum_where_the_spectrum_decays(library):
    W = well_conditioned(np.random.default_rng(0), 120, 80, condition=1e6)
    best = np.linalg.norm(np.linalg.svd(W, compute_uv=False)[10:])
    factors = svd(library.array(W), 10, niter=4)
    assert np.linalg.norm(library.numpy(factors.residual(library.array(W)))) <= 1.0001 * best
    assert factors.niter == 4
    assert svd(library.array(W), 10).niter is None


@pytest.mark.parametrize("oversampling", [0, 8, 1000])
def test_randomized_svd_at_full_width_is_exact(oversampling):
    W = np.random.default_rng(0).standard_normal((9, 6))
    np.testing.assert_allclose(svd(W, niter=0, oversampling=oversampling).reconstruct(), W, atol=1e-12)


def test_randomized_svd_is_reproducible_and_seeded():
    W = np.random.default_rng(0).standard_normal((30, 40))
    first, again, other = (svd(W, 3, niter=0, seed=seed).diagonal for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("niter", [None, 4])
def test_pissa_is_pefts_split(niter):
    """left and right are lora_B and lora_A as PEFT initializes them: U sqrt(S) and sqrt(S) V^T."""
    W = well_conditioned(np.random.default_rng(0), 30, 20, condition=1e8)
    factors = pissa(W, 5, niter)
    U, S, Vh = np.linalg.svd(W)
    np.testing.assert_array_equal(factors.diagonal, np.ones(5))
    # Four power iterations with singular values that fall by 2.6 a step leave about 2.6**-10 of the subspace's angle.
    atol = 1e-12 if niter is None else 1e-4
    np.testing.assert_allclose(factors.left @ factors.right, (U[:, :5] * S[:5]) @ Vh[:5], atol=atol)
    np.testing.assert_allclose(np.linalg.norm(factors.left, axis=0), np.sqrt(S[:5]), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(factors.right, axis=1), np.sqrt(S[:5]), rtol=1e-4)
    np.testing.assert_allclose(factors.residual(W) + factors.reconstruct(), W, atol=1e-12)


def test_stacks(library):
    W = np.random.default_rng(0).standard_normal((3, 6, 8))
    for factors in (svd(library.array(W)), svd(library.array(W), niter=1), pissa(library.array(W))):
        np.testing.assert_allclose(library.numpy(factors.reconstruct()), W, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"niter": -1}, "niter is -1; accepted: an integer from 0 on"),
        ({"niter": 1.5}, "niter is 1.5; accepted: an integer from 0 on"),
        ({"niter": 1, "oversampling": -2}, "oversampling is -2; accepted: an integer from 0 on"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        svd(np.eye(3), 2, **options)

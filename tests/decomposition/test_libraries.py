"""Every array library gives the same factors, stays on its own arrays, and leaves the caller's alone."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import LIBRARIES, Library, on_libraries

from lowrank_ldu.backend import backend_of
from lowrank_ldu.decomposition import PIVOTING, ldu, pissa, svd

# JAX's arrays have one layout, and none can be written to.
OF_STRIDES = [each for each in LIBRARIES if each.name != "jax"]


@pytest.mark.parametrize(
    ("library", "pivoting", "dtype", "shape"),
    [
        case
        for case in on_libraries(PIVOTING, [np.float32, np.float64], [(13, 5), (1, 1), (6, 6), (4, 9)])
        if case.values[0].name != "numpy"
    ],
)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_libraries_agree_with_numpy(library, pivoting, dtype, shape, seed):
    # Gaussian entries do not tie, so all libraries take the same pivots.
    W = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    reference, other = ldu(W, pivoting=pivoting), ldu(library.array(W), pivoting=pivoting)
    np.testing.assert_array_equal(reference.permutation, library.numpy(other.permutation))
    conditions = np.linalg.cond(reference.lower) * np.linalg.cond(reference.upper)
    for field in ("left", "diagonal", "right"):
        ours, theirs = getattr(reference, field), library.numpy(getattr(other, field))
        # First order: each factor's rounding is amplified by at most the condition of what is solved with.
        np.testing.assert_allclose(
            theirs, ours, rtol=0, atol=20 * np.finfo(dtype).eps * conditions * np.abs(ours).max()
        )
    np.testing.assert_allclose(
        library.numpy(other.refit(library.array(W)).reconstruct()),
        reference.refit(W).reconstruct(),
        atol=20 * np.finfo(dtype).eps * conditions * np.abs(W).max(),
    )


@pytest.mark.parametrize("pivoting", PIVOTING)
def test_results_are_arrays_of_the_callers_library(library, pivoting):
    W = library.array(np.random.default_rng(0).standard_normal((6, 9)))
    factors = ldu(W, 4, pivoting=pivoting).refit(W)
    for field in ("left", "diagonal", "right", "permutation", "lower", "upper", "zero_pivots"):
        assert type(getattr(factors, field)) is type(W), field
    for array in (factors.reconstruct(), factors.residual(W), svd(W, 2, niter=1).left, pissa(W, 2).right):
        assert type(array) is type(W)


@pytest.mark.parametrize("library", OF_STRIDES, ids=repr)
@pytest.mark.parametrize("pivoting", PIVOTING)
def test_input_is_not_changed(library, pivoting):
    original = np.random.default_rng(0).standard_normal((8, 8))
    W = library.array(original)
    ldu(W, pivoting=pivoting).refit(W)
    svd(W, 2, niter=1)
    np.testing.assert_array_equal(library.numpy(W), original)


@pytest.mark.parametrize(
    "W",
    [
        torch.randn(6, 4).to(torch.bfloat16),
        torch.randn(6, 4).to(torch.float16),
        np.ones((6, 4), np.float16),
        np.ones((6, 4), ml_dtypes.bfloat16),
    ],
    ids=["torch-bfloat16", "torch-float16", "numpy-float16", "numpy-bfloat16"],
)
def test_half_types_are_computed_in_float32(W):
    check_half_type(W)


def test_jax_half_types_are_computed_in_float32():
    jnp = pytest.importorskip("jax").numpy
    check_half_type(jnp.ones((6, 4), jnp.bfloat16))


def check_half_type(W):
    factors = ldu(W)
    xp = backend_of(W).xp
    assert factors.left.dtype == xp.float32
    same = ldu(xp.astype(W, xp.float32))
    np.testing.assert_array_equal(Library.numpy(factors.diagonal), Library.numpy(same.diagonal))


def test_torch_parameters_are_factored_without_gradients():
    weight = torch.nn.Linear(5, 3).weight
    factors = ldu(weight, 2)
    assert not factors.left.requires_grad
    assert not factors.refit(weight).diagonal.requires_grad


@pytest.mark.parametrize("library", OF_STRIDES, ids=repr)
def test_non_contiguous_and_transposed_input(library):
    base = np.random.default_rng(0).standard_normal((12, 20))
    for pivoting in PIVOTING:
        np.testing.assert_allclose(
            library.numpy(ldu(library.array(base).T[::1, 2:9], pivoting=pivoting).reconstruct()),
            base.T[:, 2:9],
            atol=1e-12,
        )


def test_randomized_pivoting_draws_the_same_sketch_everywhere():
    # More than one block of 64 columns.
    W = np.random.default_rng(3).standard_normal((80, 90))
    orders = [lib.numpy(ldu(lib.array(W), pivoting="randomized", seed=7).column_permutation) for lib in LIBRARIES]
    for order in orders[1:]:
        np.testing.assert_array_equal(order, orders[0])
    other = ldu(W, pivoting="randomized", seed=8).column_permutation
    assert (other != orders[0]).any()

"""The ends of the range: what is returned is finite and right, or an error says that it cannot be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import on_libraries
from matrices import spread_over_the_range, underflow_bound

from lowrank_ldu.decomposition import PIVOTING, Factorization, gram_matrix, ldu, ldu_at_pivots, pissa, svd

pivotings = st.sampled_from(PIVOTING)
in_library = st.sampled_from([np.array, torch.tensor])


def exact_product(factors):
    left, z, right = (np.asarray(a, np.longdouble) for a in (factors.left, factors.diagonal, factors.right))
    return (left * z) @ right


def assert_right(factors, W):
    for part in (factors.left, factors.diagonal, factors.right):
        assert np.isfinite(np.asarray(part)).all()
    error = np.abs(exact_product(factors) - W)
    assert (error <= underflow_bound(factors, W)).all()


def wilkinson(size):
    """Elements double in the last column, a step at a time, under partial pivoting."""
    W = np.eye(size) - np.tril(np.ones((size, size)), -1)
    W[:, -1] = 1
    return W


@given(spread_over_the_range(), pivotings, in_library)
def test_numbers_all_over_the_range(W, pivoting, convert):
    factors = ldu(convert(W), pivoting=pivoting)
    assert_right(factors, W)
    # The product rounds to infinity where an entry is within rounding of the largest number.
    if np.abs(exact_product(factors)).max() < np.finfo(W.dtype).max:
        error = np.abs(np.asarray(factors.reconstruct(), np.longdouble) - exact_product(factors))
        assert (error <= underflow_bound(factors, W)).all()


@given(spread_over_the_range(), pivotings, in_library, st.data())
def test_refit_is_finite_or_refused(W, pivoting, convert, data):
    factors = ldu(convert(W), data.draw(st.integers(1, min(W.shape))), pivoting=pivoting)
    try:
        diagonal = np.asarray(factors.refit(convert(W)).diagonal)
    except ValueError as error:
        assert "the diagonal that is best for W is beyond" in str(error)  # noqa: PT017  # either is right
    else:
        assert np.isfinite(diagonal).all()


@given(st.lists(st.integers(-1070, 1020), min_size=2, max_size=4), st.integers(0, 2**32 - 1), pivotings, in_library)
def test_stacks_of_mixed_scale_are_those_of_their_matrices(exponents, seed, pivoting, convert):
    W = np.clip(np.random.default_rng(seed).standard_normal((len(exponents), 7, 5)), -2, 2)
    W = np.ldexp(W, np.array(exponents)[:, None, None])
    stack = ldu(convert(W), 4, pivoting=pivoting)
    values = svd(convert(W), 3) if max(exponents) < 1000 else None
    for i, matrix in enumerate(W):
        single = ldu(convert(matrix), 4, pivoting=pivoting)
        for name in ("left", "diagonal", "right", "permutation"):
            np.testing.assert_array_equal(np.asarray(getattr(stack, name))[i], np.asarray(getattr(single, name)))
        if values is not None:
            expected = np.asarray(svd(convert(matrix), 3).diagonal)
            # To the last digit that a subnormal number has.
            np.testing.assert_allclose(np.asarray(values.diagonal)[i], expected, rtol=1e-13, atol=1e-323)


def test_stacks_of_mixed_scale_on_every_library(library):
    A = np.random.default_rng(0).standard_normal((9, 6))
    W = np.stack([np.ldexp(A / 8, 1023), A, np.ldexp(A, -900), np.zeros_like(A), A[::-1] * 1e-280])
    for pivoting in PIVOTING:
        factors = ldu(library.array(W), pivoting=pivoting)
        for i, matrix in enumerate(W):
            size = np.abs(matrix).max() or 1.0
            product = (library.numpy(factors.left)[i] * library.numpy(factors.diagonal)[i]) @ library.numpy(
                factors.right
            )[i]
            np.testing.assert_allclose(product / size, matrix / size, atol=1e-13)


@pytest.mark.parametrize(
    ("library", "pivoting", "dtype_and_sizes"),
    on_libraries(PIVOTING, [(np.float32, (2e-39, 3e-41, 1e-43)), (np.float64, (1e-309, 4e-318))]),
)
@pytest.mark.parametrize("shapes", [(1, 4), (5, 9), (12, 40)])
def test_subnormal_remainders(library, pivoting, dtype_and_sizes, shapes):
    """Below a block of ordinary numbers, under a zero block: nothing but subnormal numbers remains."""
    if library.name == "jax" and shapes != (5, 9):
        pytest.skip("JAX compiles anew for each shape")
    first, last = shapes
    dtype, sizes = dtype_and_sizes
    generator = np.random.default_rng(0)
    for size in sizes:
        W = np.zeros((first + last, first + last), dtype)
        W[:first, :] = generator.standard_normal((first, first + last))
        W[first:, first:] = generator.standard_normal((last, last)) * size
        factors = ldu(library.array(W), pivoting=pivoting)
        parts = [library.numpy(part) for part in (factors.left, factors.diagonal, factors.right)]
        assert all(np.isfinite(part).all() for part in parts)
        if library.name != "jax":  # XLA flushes what is below the smallest normal number to zero
            assert_right(Factorization(*parts), W)
            assert (parts[1] != 0).all()


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 130), (np.float32, 200), (np.float64, 1100)])
def test_growth_beyond_the_range(dtype, size):
    W = wilkinson(size).astype(dtype)
    for array in (W, torch.from_numpy(W)) if size < 1000 else (W,):
        factors = ldu(array)
        # What eliminates is powers of two; rows that are split at the largest number are rounded once or twice.
        left, z, right = (np.asarray(part, np.longdouble) for part in (factors.left, factors.diagonal, factors.right))
        assert all(np.isfinite(part).all() for part in (left, z, right))
        # But for the last column nothing has grown, so that products in double precision hold the rest.
        small = (z[:, None] * right[:, :-1]).astype(np.float64)
        assert np.isfinite(small).all()
        np.testing.assert_allclose(left.astype(np.float64) @ small, W[:, :-1], atol=4 * np.finfo(dtype).eps)
        grown = (z * right[:, -1])[: size - 1]
        np.testing.assert_allclose(np.log2(np.abs(grown)), np.arange(size - 1), atol=4 * np.finfo(dtype).eps)
        if size < 150:
            assert np.isfinite(np.asarray(factors.refit(array).diagonal)).all()


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 300), (np.float64, 2100)])
def test_growth_that_no_factors_hold(dtype, size):
    W = wilkinson(size).astype(dtype)
    with pytest.raises(ValueError, match=f"W grows beyond .* the largest number of {dtype.__name__}, when it is elim"):
        ldu(W)
    if size < 1000:
        assert_right(ldu(W, pivoting="complete"), W)


def test_known_pivots_that_let_numbers_grow(library):
    # The multiplier is beyond the largest number.
    W = np.array([[1e-160, 1.0], [1e160, 1.0]])
    with pytest.raises(
        ValueError, match=r"W grows beyond 1.8e\+308, the largest number of float64, when it is eliminated"
    ):
        ldu_at_pivots(library.array(W), [0, 1])


@given(spread_over_the_range(), pivotings)
def test_known_pivots_give_finite_factors(W, pivoting):
    found = ldu(W, pivoting=pivoting)
    columns = None if found.column_permutation is None else found.column_permutation[: found.rank]
    again = ldu_at_pivots(W, found.permutation[: found.rank], columns, pivoting=pivoting)
    for part in (again.left, again.diagonal, again.right):
        assert np.isfinite(part).all()
    # Beside the largest entry: what rounding may leave of a zero column is taken for one.
    largest = np.abs(W).max()
    scale = max(1.0, float(np.abs(again.left).max())) * len(W)
    if largest:
        error = np.abs(exact_product(again) - W).max() / largest
        grown = np.abs(again.left * again.diagonal.astype(np.longdouble)).max() * np.abs(again.right).max() / largest
        assert error <= 100 * np.finfo(W.dtype).eps * scale * max(1, grown)


def test_a_best_diagonal_that_its_dtype_does_not_hold():
    left, right = np.full((2, 1), 1e-30, np.float32), np.full((1, 2), 1e-30, np.float32)
    factors = Factorization(left, np.ones(1, np.float32), right)
    with pytest.raises(ValueError, match="the diagonal that is best for W is beyond 3.4e\\+38"):
        factors.refit(np.ones((2, 2), np.float32))
    # In float64 it is.
    np.testing.assert_allclose(factors.fit(np.ones((2, 2), np.float32)).diagonal, [1e60], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-160, 1e300])
def test_refit_of_factors_whose_squares_leave_the_range(library, scale):
    generator = np.random.default_rng(0)
    W = generator.standard_normal((9, 7))
    factors = ldu(library.array(W), 3)
    stretched = Factorization(factors.left * scale, factors.diagonal, factors.right * 1.0)
    expected = library.numpy(factors.refit(library.array(W)).diagonal)
    np.testing.assert_allclose(library.numpy(stretched.refit(library.array(W)).diagonal) * scale, expected, rtol=1e-12)


def test_products_that_leave_the_range(library):
    W = np.array([[1.0, -1.0], [1.0, 1.0]]) * 1.7e308
    left, right = library.array(np.ones((2, 1))), library.array(np.ones((1, 2)))
    with pytest.raises(ValueError, match="left @ diag\\(diagonal\\) @ right has entries beyond 1.8e\\+308"):
        Factorization(left, library.array(np.full(1, 1.7e308)), library.array(np.full((1, 2), 2.0))).reconstruct()
    with pytest.raises(ValueError, match="the residual has entries beyond 1.8e\\+308"):
        Factorization(left, library.array(np.full(1, -1.7e308)), right).residual(library.array(W))
    with pytest.raises(ValueError, match="the Gram matrix of the terms has entries beyond"):
        gram_matrix(left * 1e200, right)


def test_a_product_overflows_on_the_way_only():
    """Two terms beyond the largest number that cancel, beside an entry that is far below it."""
    huge = 1.7e308
    factors = Factorization(
        np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([huge, huge]), np.array([[1.0, 1e-310], [-1.0, 1e-310]])
    )
    expected = exact_product(factors)
    with pytest.raises(ValueError, match="has entries beyond"):
        factors.reconstruct()
    kept = Factorization(factors.left[:1], factors.diagonal, factors.right)
    np.testing.assert_allclose(kept.reconstruct(), expected[:1].astype(float), rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "exponents"), [(np.float32, (-140, -100, 0, 100)), (np.float64, (-1050, -600, 0, 600, 1000))]
)
@pytest.mark.parametrize("niter", [None, 2])
def test_singular_values_do_not_depend_on_the_scale(library, dtype, exponents, niter):
    A = np.random.default_rng(0).standard_normal((9, 7)).astype(dtype)
    expected = np.linalg.svd(A.astype(np.float64), compute_uv=False)[:3]
    for exponent in exponents:
        W = np.ldexp(A, exponent)
        # What a subnormal W has lost of A already.
        lost = 2.0 ** max(math.log2(float(np.finfo(dtype).smallest_subnormal)) - exponent, -60)
        factors = svd(library.array(W), 3, niter=niter, oversampling=4)
        values = np.ldexp(library.numpy(factors.diagonal).astype(np.float64), -exponent)
        np.testing.assert_allclose(values, expected, rtol=100 * np.finfo(dtype).eps, atol=20 * lost)
        for part in (pissa(library.array(W), 3).left, pissa(library.array(W), 3).right):
            assert np.isfinite(library.numpy(part)).all()

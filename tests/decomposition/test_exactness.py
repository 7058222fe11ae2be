"""Every finite matrix is reconstructed to rounding, by triangular factors, for every strategy and library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import on_libraries
from matrices import any_finite, elimination_bound

from lowrank_ldu.decomposition import PIVOTING, ldu

pivotings = st.sampled_from(PIVOTING)


def exact_product(factors):
    """left diag(z) right in extended precision, so that the test adds no rounding of its own."""
    left, z, right = (np.asarray(a, np.longdouble) for a in (factors.left, factors.diagonal, factors.right))
    return (left * z) @ right


@given(any_finite(), pivotings)
def test_full_rank_reconstructs_every_finite_matrix(W, pivoting):
    factors = ldu(W, pivoting=pivoting)
    for array in (factors.left, factors.diagonal, factors.right):
        assert np.isfinite(array).all()
        assert array.dtype == W.dtype
    error = np.abs(exact_product(factors) - W)
    assert (error <= elimination_bound(factors.left, factors.diagonal, factors.right, W)).all()


@given(any_finite(), pivotings)
def test_reconstruct_is_the_product_of_the_factors(W, pivoting):
    factors = ldu(W, pivoting=pivoting)
    error = np.abs(factors.reconstruct() - exact_product(factors))
    assert (error <= elimination_bound(factors.left, factors.diagonal, factors.right, W)).all()


@given(any_finite(), pivotings, st.data())
def test_factors_are_unit_triangular(W, pivoting, data):
    rank = data.draw(st.integers(1, min(W.shape)))
    factors = ldu(W, rank, pivoting=pivoting)
    lower, upper, ordinary = factors.lower, factors.upper, ~factors.zero_pivots
    assert lower.shape == (W.shape[0], rank)
    assert upper.shape == (rank, W.shape[1])
    assert (np.triu(lower, 1) == 0).all()
    assert (np.diagonal(lower) == 1).all()
    assert (np.tril(upper, -1) == 0).all()
    assert (np.diagonal(upper)[ordinary] == 1).all()
    assert (np.abs(lower) <= 1 + 4 * np.finfo(W.dtype).eps).all()


@given(any_finite(), pivotings, st.data())
def test_permutations_are_valid_and_folded_in(W, pivoting, data):
    rank = data.draw(st.integers(1, min(W.shape)))
    factors = ldu(W, rank, pivoting=pivoting)
    assert sorted(factors.permutation) == list(range(W.shape[0]))
    np.testing.assert_array_equal(factors.left[factors.permutation], factors.lower)
    if pivoting == "partial":
        assert factors.column_permutation is None
        np.testing.assert_array_equal(factors.right, factors.upper)
    else:
        assert sorted(factors.column_permutation) == list(range(W.shape[1]))
        np.testing.assert_array_equal(factors.right[:, factors.column_permutation], factors.upper)


@given(any_finite(), st.sampled_from(["partial", "complete", "rook"]), st.data())
def test_truncated_is_the_truncation_of_the_full_one(W, pivoting, data):
    rank = data.draw(st.integers(1, min(W.shape)))
    short, full = ldu(W, rank, pivoting=pivoting), ldu(W, pivoting=pivoting)
    cut = full.truncate(rank)
    bound = elimination_bound(full.left, full.diagonal, full.right, W)
    # The pivots agree wherever no two candidates tie to rounding; the terms, which a tie may exchange, where they do.
    if (short.permutation[:rank] == cut.permutation[:rank]).all() and not cut.zero_pivots.any():
        assert (np.abs(exact_product(short) - exact_product(cut)) <= 2 * rank * condition(cut) * bound.max()).all()


def condition(factors):
    """How much one rounding early in the elimination can grow by its end."""
    return float(np.linalg.cond(factors.lower.astype(np.float64)) * np.linalg.cond(factors.upper.astype(np.float64)))


@pytest.mark.parametrize(
    ("library", "shape", "dtype", "rank"),
    on_libraries([(96, 96), (70, 130), (130, 70), (200, 65)], [np.float32, np.float64], [1, 8, 65]),
)
def test_truncated_partial_equals_lapacks_full_lu(library, shape, dtype, rank):
    import scipy.linalg

    W = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    P, L, R = scipy.linalg.lu(W.astype(np.float64))
    z = np.diagonal(R)
    factors = ldu(library.array(W), rank)
    # 1e-5 and 1e-12: a thousand roundings of the dtype, which covers the growth at these sizes.
    tolerance = {np.float32: 1e-5, np.float64: 1e-12}[dtype]
    for ours, reference in [
        (factors.left, (P @ L)[:, :rank]),
        (factors.diagonal, z[:rank]),
        (factors.right, (R / z[:, None])[:rank]),
        (factors.reconstruct(), (P @ L)[:, :rank] @ R[:rank]),
    ]:
        difference = np.linalg.norm(library.numpy(ours) - reference) / np.linalg.norm(reference)
        assert difference <= tolerance


@pytest.mark.parametrize("pivoting", PIVOTING)
def test_zero_matrix(library, pivoting):
    factors = ldu(library.array(np.zeros((3, 5))), pivoting=pivoting)
    assert library.numpy(factors.zero_pivots).all()
    assert (library.numpy(factors.diagonal) == 0).all()
    np.testing.assert_array_equal(library.numpy(factors.upper), np.eye(3, 5))
    np.testing.assert_array_equal(library.numpy(factors.reconstruct()), np.zeros((3, 5)))


def test_zero_pivot_of_a_row_that_is_not_zero(library):
    W = np.array([[0.0, 1.0], [0.0, 0.0]])
    factors = ldu(library.array(W))
    np.testing.assert_array_equal(library.numpy(factors.diagonal), [1.0, 0.0])
    np.testing.assert_array_equal(library.numpy(factors.upper), [[0.0, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(library.numpy(factors.zero_pivots), [True, True])
    np.testing.assert_array_equal(library.numpy(factors.reconstruct()), W)


def test_a_pivot_too_small_for_its_row_is_not_divided_by(library):
    W = np.array([[1e-300, 1e300], [1e-300, -1e300]])
    factors = ldu(library.array(W))
    assert library.numpy(factors.zero_pivots).any()
    # To rounding of the largest entry: the first column is 600 orders of magnitude below it.
    np.testing.assert_allclose(library.numpy(factors.reconstruct()) / 1e300, W / 1e300, atol=1e-15)


@pytest.mark.parametrize("pivoting", PIVOTING)
def test_growth_beyond_the_largest_number(pivoting):
    huge = np.finfo(np.float64).max
    W = np.array([[huge, -huge], [huge, huge]])
    factors = ldu(W, pivoting=pivoting)
    assert np.isfinite(factors.diagonal).all()
    np.testing.assert_allclose(factors.reconstruct() / huge, W / huge, rtol=1e-15)


@pytest.mark.parametrize("end", ["max", "tiny"])
@pytest.mark.parametrize(("library", "pivoting", "dtype"), on_libraries(PIVOTING, [np.float32, np.float64]))
def test_the_ends_of_the_range(library, pivoting, dtype, end):
    """The Schur complement overflows at one end; at the other LAPACK's reciprocals of pivots do."""
    if library.name == "jax" and end == "tiny":
        pytest.skip("XLA flushes what is below the smallest normal number to zero, the input included")
    for seed in range(3):
        W = np.random.default_rng(seed).standard_normal((20, 20))
        limit = float(getattr(np.finfo(dtype), end))
        W = (W / np.abs(W).max() * limit).astype(dtype)
        factors = ldu(library.array(W), pivoting=pivoting)
        left, z, right = (
            library.numpy(a).astype(np.longdouble) for a in (factors.left, factors.diagonal, factors.right)
        )
        assert all(np.isfinite(part).all() for part in (left, z, right))
        error = np.abs((left * z) @ right - W).max() / limit
        # A few roundings, times the growth; pivots at the small end are subnormal and carry fewer digits.
        assert error < 1e4 * np.finfo(dtype).eps


@pytest.mark.parametrize("pivoting", PIVOTING)
def test_stacks_are_factored_matrix_by_matrix(library, pivoting):
    W = np.random.default_rng(0).standard_normal((2, 3, 7, 5))
    stack = ldu(library.array(W), 4, pivoting=pivoting)
    assert stack.shape == (2, 3, 7, 5)
    assert stack.reconstruct().shape == (2, 3, 7, 5)
    for position in np.ndindex(2, 3):
        single = ldu(W[position], 4, pivoting=pivoting)
        np.testing.assert_array_equal(library.numpy(stack.permutation)[position], single.permutation)
        for field in ("left", "diagonal", "right", "lower", "upper", "zero_pivots"):
            np.testing.assert_allclose(
                library.numpy(getattr(stack, field))[position], getattr(single, field), atol=1e-13
            )


@pytest.mark.parametrize(("library", "pivoting", "shape"), on_libraries(PIVOTING, [(6, 1), (1, 6), (1, 1)]))
def test_vectors(library, pivoting, shape):
    W = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_allclose(library.numpy(ldu(library.array(W), pivoting=pivoting).reconstruct()), W, rtol=1e-14)

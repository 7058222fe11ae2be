"""Near-best LDU: near the optimum for every spectrum, of unit triangular factors, the same on every library."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import LIBRARIES, on_libraries
from matrices import any_finite, spread_over_the_range

from lowrank_ldu.decomposition import LDU, SVD, estimate_error, ldu, ldu_lowrank, svd

SPECTRA = {
    "flat": np.ones,
    "power": lambda k: np.arange(1, k + 1) ** -0.5,
    "exponential": lambda k: 0.6 ** np.arange(k),
    "rank-deficient": lambda k: np.where(np.arange(k) < k // 3, 1.0 / np.arange(1, k + 1), 0.0),
    "ties": lambda k: np.where(np.arange(k) < k // 2, 2.0, 1.0),
    "cliff": lambda k: np.where(np.arange(k) < k // 4, 1.0, 1e-5),
}


def orthonormal(generator, rows, columns):
    return np.linalg.qr(generator.standard_normal((rows, columns)))[0]


def with_values(generator, shape, values):
    return (orthonormal(generator, shape[0], len(values)) * values) @ orthonormal(generator, shape[1], len(values)).T


def pivots(factors):
    """The final pivots, as lists."""
    library = next(each for each in LIBRARIES if isinstance(factors.left, type(each.array(np.zeros(1)))))
    orders = (factors.permutation, factors.column_permutation)
    return tuple(library.numpy(order)[: factors.rank].tolist() for order in orders)


def check_triangles(factors, tolerance=1e-6):
    """Unit lower, at most 1; unit upper but for pivots that do not serve; permutations."""
    lower, upper = (np.asarray(part, np.float64) for part in (factors.lower, factors.upper))
    rank = factors.rank
    np.testing.assert_array_equal(np.triu(lower[:rank]), np.eye(rank))
    assert np.abs(lower).max() <= 1 + tolerance
    np.testing.assert_array_equal(np.tril(upper[:, :rank], -1), np.zeros((rank, rank)))
    np.testing.assert_array_equal(np.diagonal(upper)[~np.asarray(factors.zero_pivots)], 1)
    for order, size in zip((factors.permutation, factors.column_permutation), factors.shape, strict=True):
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


@given(
    st.sampled_from(sorted(SPECTRA)),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([(40, 40), (70, 30), (30, 90), (200, 150)]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_the_error_is_near_the_optimum_for_every_spectrum(spectrum, dtype, shape, seed, data):
    generator = np.random.default_rng(seed)
    W = with_values(generator, shape, SPECTRA[spectrum](min(shape))).astype(dtype)
    rank = data.draw(st.integers(1, min(shape)))
    factors = ldu_lowrank(W, rank, seed=seed % 1000)
    assert isinstance(factors, LDU)
    assert factors.origin == "lowrank"
    assert factors.left.dtype == factors.right.dtype == dtype
    check_triangles(factors)
    values = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    error = np.linalg.norm(W - (factors.left.astype(np.float64) * factors.diagonal) @ factors.right)
    # A few thousandths in the mean (benchmarks/); the rest is rounding, in proportion to the sum of squares.
    assert error <= 1.05 * np.linalg.norm(values[rank:]) + 100 * np.finfo(dtype).eps * np.linalg.norm(values)


@given(any_finite(dtypes=(np.float32, np.float64)), st.data())
def test_at_full_width_it_is_the_best_approximation_of_any_matrix(W, data):
    # (niter + 1) (rank + oversampling) columns span everything here.
    rank = data.draw(st.integers(1, min(W.shape)))
    unit = float(np.abs(W).max()) or 1.0
    wide = W.astype(np.longdouble) / unit
    values = np.linalg.svd(wide.astype(np.float64), compute_uv=False)
    try:
        factors = ldu_lowrank(W, rank)
    except ValueError as error:
        assert "the diagonal has entries beyond" in str(error)  # noqa: PT017
        assert unit > np.finfo(W.dtype).max / 100
        return
    z = factors.diagonal.astype(np.longdouble) / unit
    assert all(np.isfinite(part).all() for part in (factors.left, factors.diagonal, factors.right))
    error = np.linalg.norm((wide - (factors.left * z) @ factors.right.astype(np.longdouble)).astype(np.float64))
    lost = np.finfo(W.dtype).smallest_normal / np.longdouble(unit) * np.abs(factors.right).max(initial=1)
    assert error <= np.linalg.norm(values[rank:]) * (1 + 1e-5) + 300 * np.finfo(W.dtype).eps * values[0] + 50 * lost


@given(spread_over_the_range())
def test_numbers_all_over_the_range_give_finite_factors(W):
    try:
        factors = ldu_lowrank(W, min(W.shape))
    except ValueError as error:
        assert "accepted" in str(error)  # noqa: PT017
        return
    assert all(np.isfinite(part).all() for part in (factors.left, factors.diagonal, factors.right))


@pytest.mark.parametrize(("library", "dtype", "shape"), on_libraries([np.float32, np.float64], [(60, 45), (45, 60)]))
def test_libraries_agree(library, dtype, shape):
    W = with_values(np.random.default_rng(0), shape, 0.8 ** np.arange(45)).astype(dtype)
    reference, other = ldu_lowrank(W, 8), ldu_lowrank(library.array(W), 8)
    assert type(other.left) is type(other.permutation) is type(library.array(W))
    np.testing.assert_array_equal(library.numpy(other.permutation), reference.permutation)
    np.testing.assert_array_equal(library.numpy(other.column_permutation), reference.column_permutation)
    for field in ("left", "diagonal", "right"):
        expected = getattr(reference, field)
        # The gap of the singular values, 0.2 of the eighth, is what rounding is amplified by.
        np.testing.assert_allclose(
            library.numpy(getattr(other, field)), expected, atol=1e3 * np.finfo(dtype).eps * np.abs(expected).max()
        )
    np.testing.assert_array_equal(library.numpy(library.array(W)), W)


def test_stacks_are_factored_one_by_one(library):
    W = np.random.default_rng(0).standard_normal((2, 3, 20, 15))
    stack = ldu_lowrank(library.array(W), 4)
    assert stack.shape == W.shape
    assert stack.origin == "lowrank"
    for place in np.ndindex(2, 3):
        single = ldu_lowrank(W[place], 4)
        for field in ("left", "diagonal", "right"):
            np.testing.assert_allclose(
                library.numpy(getattr(stack, field))[place], getattr(single, field), rtol=1e-9, atol=1e-9
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    W = torch.from_numpy(np.random.default_rng(0).standard_normal((20, 30))).to(dtype)
    factors, same = ldu_lowrank(W, 5), ldu_lowrank(W.float(), 5)
    assert factors.left.dtype == torch.float32
    np.testing.assert_array_equal(factors.left, same.left)


def test_gradients_are_not_recorded():
    weight = torch.nn.Linear(9, 7).weight
    assert not ldu_lowrank(weight, 3).left.requires_grad


class TestKnownPivots:
    """Factors rebuilt at the pivots of an earlier call depend on W continuously."""

    @pytest.fixture
    def W(self):  # noqa: N802
        return with_values(np.random.default_rng(0), (120, 90), np.arange(1, 91) ** -0.5).astype(np.float32)

    def test_another_library_rebuilds_the_same_factors(self, library):
        # Of a shape that JAX has compiled already.
        W = with_values(np.random.default_rng(0), (60, 45), 0.8 ** np.arange(45)).astype(np.float32)
        factors = ldu_lowrank(W, 8)
        rebuilt = ldu_lowrank(library.array(W), 8, pivots=pivots(factors))
        assert pivots(rebuilt) == pivots(factors)
        assert rebuilt.origin == "lowrank"
        for field in ("left", "diagonal", "right"):
            expected = getattr(factors, field)
            np.testing.assert_allclose(
                library.numpy(getattr(rebuilt, field)), expected, atol=3e-4 * np.abs(expected).max()
            )

    def test_a_rounded_copy_gives_factors_that_are_off_by_the_rounding(self, W):
        exact = torch.from_numpy(W)
        rounded = exact.to(torch.bfloat16)
        factors = ldu_lowrank(exact, 16)
        rebuilt = ldu_lowrank(rounded, 16, pivots=pivots(factors))
        searched = ldu_lowrank(rounded, 16)
        change = torch.from_numpy(np.random.default_rng(1).standard_normal(16).astype(np.float32))

        def update(of):
            return (of.left * (of.diagonal * change)) @ of.right

        rounding = float(torch.linalg.norm(rounded.float() - exact) / torch.linalg.norm(exact))
        off, anew = (
            float(torch.linalg.norm(update(other) - update(factors)) / torch.linalg.norm(update(factors)))
            for other in (rebuilt, searched)
        )
        # The gaps of the singular values are 3 % at the sixteenth, which the rounding is amplified by.
        assert off <= 50 * rounding <= 0.1
        assert pivots(searched) == pivots(factors) or anew > 5 * off

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (([0, 1],), "pivots is .*; accepted: a pair"),
            (([0, 1], [0]), r"pivots\[1\], columns, holds 1 pivots; accepted: 2"),
            (([0, 0], [0, 1]), "rows, holds an index twice"),
            (([0, 120], [0, 1]), "rows, holds indices from 0 to 120; accepted: 0 to 119"),
            (([0.5, 1], [0, 1]), "accepted: a sequence of at least one integer index"),
        ],
    )
    def test_pivots_that_are_none(self, W, given, message):
        with pytest.raises(ValueError, match=message):
            ldu_lowrank(W, 2, pivots=given)

    def test_pivots_for_a_stack(self):
        with pytest.raises(ValueError, match="accepted: a single matrix"):
            ldu_lowrank(np.ones((2, 3, 3)), 1, pivots=([0], [0]))

    def test_pivots_of_another_matrix(self):
        with pytest.raises(ValueError, match="pivots hold one that is zero to rounding"):
            ldu_lowrank(np.diag([3.0, 2.0, 1.0]), 2, pivots=([0, 1], [1, 0]))


def test_it_is_reproducible_and_seeded():
    W = np.random.default_rng(0).standard_normal((60, 80))
    first, again, other = (ldu_lowrank(W, 5, niter=0, seed=seed).diagonal for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_more_iterations_and_columns_bring_it_nearer():
    W = with_values(np.random.default_rng(0), (150, 120), np.arange(1, 121) ** -0.5)
    errors = [np.linalg.norm(ldu_lowrank(W, 10, niter=niter).residual(W)) for niter in range(4)]
    assert errors == sorted(errors, reverse=True)
    best = np.linalg.norm(svd(W, 10).residual(W))
    assert errors[2] <= 1.01 * best
    assert np.linalg.norm(ldu_lowrank(W, 10, oversampling=200).residual(W)) <= (1 + 1e-9) * best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0; accepted: an integer from 1 to 3"),
        ({"rank": 4}, "rank is 4; accepted: an integer from 1 to 3"),
        ({"rank": None}, "rank is None; accepted: an integer from 1 to 3"),
        ({"rank": 1, "niter": -1}, "niter is -1; accepted: an integer from 0 on"),
        ({"rank": 1, "oversampling": 1.5}, "oversampling is 1.5; accepted: an integer from 0 on"),
        ({"rank": 1, "seed": -1}, "seed is -1; accepted: an integer from 0 on"),
        ({"rank": 1, "q": 3}, "unexpected keyword argument 'q': it is rank here"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ldu_lowrank(np.eye(3), **arguments)


def test_a_diagonal_beyond_the_largest_number_is_refused():
    W = np.full((4, 4), np.finfo(np.float32).max, np.float32)
    assert np.isfinite(ldu_lowrank(W, 1).diagonal).all()
    with pytest.raises(ValueError, match="holds 4 entries that are not finite"):
        ldu_lowrank(W * np.array([1, 1, 1, np.nan], np.float32), 1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]))
def test_the_error_is_estimated_and_bounded(seed, dtype):
    generator = np.random.default_rng(seed)
    W = with_values(generator, (50, 40), 0.9 ** np.arange(40)).astype(dtype)
    for factors in (ldu_lowrank(W, 5), ldu(W, 5), svd(W, 5)):
        error = W - factors.reconstruct()
        estimate = estimate_error(W, factors, samples=6, seed=seed % 2**31)
        assert estimate.failure_probability == pytest.approx(1e-6)
        assert np.linalg.norm(error) <= estimate.frobenius_bound
        assert np.linalg.norm(error, 2) <= estimate.spectral_bound
        assert 0.3 < estimate.frobenius / np.linalg.norm(error) < 3


def test_the_estimate_of_nothing_is_nothing(library):
    # Of a shape that JAX has compiled already.
    zero = np.zeros((45, 60))
    W = zero.copy()
    W[0, 0], W[1, 1] = 2.0, 1.0
    W, zero = library.array(W), library.array(zero)
    assert estimate_error(W, ldu_lowrank(W, 8)).frobenius_bound < 1e-12
    assert estimate_error(zero, ldu_lowrank(zero, 8)).spectral_bound == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(3), "ldu"), "factors is of type str; accepted: Factorization"),
        ((np.eye(4), ldu(np.eye(3))), r"W has shape \(4, 4\); accepted: a matrix \(3, 3\)"),
        ((np.ones((2, 3, 3)), ldu(np.ones((2, 3, 3)))), r"W has shape \(2, 3, 3\); accepted: a single matrix"),
        ((torch.eye(3), ldu(np.eye(3))), "accepted: a numpy.ndarray"),
    ],
)
def test_what_has_no_error_to_estimate(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        estimate_error(*arguments)


def test_the_estimate_takes_at_least_one_sample():
    with pytest.raises(ValueError, match="samples is 0; accepted: an integer from 1 on"):
        estimate_error(np.eye(2), SVD(np.eye(2), np.ones(2), np.eye(2)), samples=0)

"""Factors rebuilt from stored pivots: the same as those that were searched for, on every library."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrices import any_finite, elimination_bound

from lowrank_ldu.decomposition import PIVOTING, ldu, ldu_at_pivots


def pivots(factors):
    columns = factors.column_permutation
    return factors.permutation[: factors.rank], None if columns is None else columns[: factors.rank]


@given(
    st.sampled_from(PIVOTING),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_rebuilt_factors_are_the_searched_ones(pivoting, m, n, seed, data):
    W = np.random.default_rng(seed).standard_normal((m, n))
    factors = ldu(W, data.draw(st.integers(1, min(m, n))), pivoting=pivoting)
    rebuilt = ldu_at_pivots(W, *pivots(factors), pivoting=pivoting)
    assert rebuilt.pivoting == pivoting
    np.testing.assert_array_equal(rebuilt.permutation[: factors.rank], factors.permutation[: factors.rank])
    scale = np.linalg.cond(factors.lower) * np.linalg.cond(factors.upper)
    for field in ("left", "diagonal", "right"):
        expected = getattr(factors, field)
        np.testing.assert_allclose(getattr(rebuilt, field), expected, atol=1e-14 * scale * np.abs(expected).max())


@given(any_finite(dtypes=(np.float64,)), st.sampled_from(PIVOTING))
def test_rebuilding_at_full_rank_is_exact_also_without_usable_pivots(W, pivoting):
    largest = np.abs(W).max()
    if largest:
        W = W / largest
    rebuilt = ldu_at_pivots(W, *pivots(ldu(W, pivoting=pivoting)))
    bound = elimination_bound(rebuilt.left, rebuilt.diagonal, rebuilt.right, W)
    # Rank-deficient weights end in pivots that are rounding; rebuilding rounds them anew, in proportion to the growth.
    growth = np.abs(rebuilt.left).max()
    assert (np.abs(rebuilt.reconstruct() - W) <= bound * max(1.0, growth)).all()


def test_a_weight_full_of_ties_is_rebuilt_alike_everywhere(library):
    """Where every pivot ties, libraries may search differently; rebuilt from stored pivots they cannot."""
    W = np.random.default_rng(0).choice([-1.0, 1.0], (64, 48)).astype(np.float32)
    rows, _ = pivots(ldu(W, 32))
    reference = ldu_at_pivots(W, rows)
    other = ldu_at_pivots(library.array(W), library.array(rows))
    for field in ("left", "diagonal", "right"):
        np.testing.assert_allclose(
            library.numpy(getattr(other, field)), getattr(reference, field), rtol=1e-3, atol=1e-3
        )


def test_a_rounded_copy_of_the_weight_keeps_the_factors():
    """A bfloat16 copy of the base changes what the diagonal means a little; a new search changes it altogether."""
    W = torch.randn(256, 256)
    rounded = W.to(torch.bfloat16)
    factors = ldu(W, 64)
    rows = factors.permutation[:64]
    delta = torch.linspace(0.5, 1.5, 64)

    def change(of):
        return (of.left * delta) @ of.right

    kept = torch.linalg.norm(change(ldu_at_pivots(rounded, rows)) - change(factors)) / torch.linalg.norm(
        change(factors)
    )
    assert kept < 0.2
    searched = ldu(rounded, 64)
    assert (searched.permutation[:64] != rows).any()
    lost = torch.linalg.norm(change(searched) - change(factors)) / torch.linalg.norm(change(factors))
    assert lost > 2 * kept


def test_hardly_normal_weights_are_rebuilt():
    W = np.random.default_rng(0).standard_normal((12, 12))
    W *= np.finfo(np.float64).tiny / np.abs(W).max()
    factors = ldu(W)
    rebuilt = ldu_at_pivots(W, *pivots(factors))
    np.testing.assert_allclose(rebuilt.left, factors.left, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], None, "rows is"),
        ([0.5], None, "rows is"),
        ([[0]], None, "rows is"),
        ([0, 0], None, "rows holds an index twice"),
        ([0, 3], None, "rows holds indices from 0 to 3; accepted: 0 to 2"),
        ([-1], None, "rows holds indices from -1 to -1"),
        ([0, 1], [0], "columns holds 1 pivots and rows 2"),
        ([0, 1], [0, 9], "columns holds indices from 0 to 9; accepted: 0 to 3"),
    ],
)
def test_bad_pivots(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        ldu_at_pivots(np.eye(3, 4), rows, columns)


def test_pivots_that_the_matrix_cannot_be_eliminated_with():
    with pytest.raises(ValueError, match="rows and columns hold a pivot that is zero in W"):
        ldu_at_pivots(np.array([[0.0, 1.0], [1.0, 0.0]]), [0, 1])


def test_weights_near_the_largest_number_are_rebuilt():
    W = np.random.default_rng(0).standard_normal((20, 20))
    W *= np.finfo(np.float64).max / np.abs(W).max()
    factors = ldu(W, pivoting="complete")
    rebuilt = ldu_at_pivots(W, *pivots(factors))
    for array in (rebuilt.left, rebuilt.diagonal, rebuilt.right):
        assert np.isfinite(array).all()
    np.testing.assert_allclose(rebuilt.left, factors.left, atol=1e-9)


def test_an_unknown_strategy():
    with pytest.raises(ValueError, match="pivoting is 'zzz'; accepted: 'partial'"):
        ldu_at_pivots(np.eye(2), [0, 1], pivoting="zzz")


def test_stacks_are_refused():
    with pytest.raises(ValueError, match="accepted: a single matrix"):
        ldu_at_pivots(np.zeros((2, 3, 3)), [0])

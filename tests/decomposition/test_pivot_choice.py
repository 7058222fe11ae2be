"""Each strategy against textbook elimination, written the slow and obvious way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import any_finite

from lowrank_ldu.backend import backend_of
from lowrank_ldu.decomposition import ldu
from lowrank_ldu.decomposition.randomized import eliminate_randomized


def textbook(W, rank, choose):
    """Eliminate in extended precision with explicit interchanges; `choose` returns the pivot's place in S."""
    S = np.array(W, np.longdouble)
    rows, columns, pivots, runners_up = list(range(S.shape[0])), list(range(S.shape[1])), [], []
    for step in range(rank):
        rest = S[step:, step:]
        i, j = choose(np.abs(rest))
        magnitudes = np.sort(np.abs(rest), axis=None)
        runners_up.append(magnitudes[-2] / magnitudes[-1] if magnitudes.size > 1 else 0)
        i, j = i + step, j + step
        S[[step, i]] = S[[i, step]]
        S[:, [step, j]] = S[:, [j, step]]
        rows[step], rows[i] = rows[i], rows[step]
        columns[step], columns[j] = columns[j], columns[step]
        pivots.append(S[step, step])
        S[step + 1 :, step + 1 :] -= np.outer(S[step + 1 :, step] / S[step, step], S[step, step + 1 :])
    return rows[:rank], columns[:rank], np.array(pivots, float), np.array(runners_up, float)


def largest_in_first_column(S):
    return int(np.argmax(S[:, 0])), 0


def largest_of_all(S):
    return np.unravel_index(np.argmax(S), S.shape)


gaussian = st.builds(
    lambda m, n, seed: np.random.default_rng(seed).standard_normal((m, n)),
    st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1),
)  # fmt: skip


@given(gaussian)
def test_partial_pivoting(W):
    k = min(W.shape)
    rows, _, pivots, _ = textbook(W, k, largest_in_first_column)
    factors = ldu(W)
    assert factors.permutation[:k].tolist() == rows
    np.testing.assert_allclose(factors.diagonal, pivots, rtol=1e-9)


@given(gaussian)
def test_complete_pivoting(W):
    k = min(W.shape)
    rows, columns, pivots, runners_up = textbook(W, k, largest_of_all)
    factors = ldu(W, pivoting="complete")
    assert factors.permutation[:k].tolist() == rows
    assert factors.column_permutation[:k].tolist() == columns
    np.testing.assert_allclose(factors.diagonal, pivots, rtol=1e-9)
    np.testing.assert_allclose(factors.runner_up, runners_up, rtol=1e-9)


@given(gaussian)
def test_complete_pivots_do_not_grow_and_bound_their_rows_and_columns(W):
    factors = ldu(W, pivoting="complete")
    assert (np.abs(factors.upper) <= 1 + 1e-12).all()
    assert (np.abs(factors.lower) <= 1 + 1e-12).all()


@given(any_finite())
def test_rook_pivots_are_largest_in_their_row_and_column(W):
    factors = ldu(W, pivoting="rook")
    # The bound allows an entry to round differently as part of its row and of its column.
    slack = 1 + 1e-3
    assert (np.abs(factors.lower) <= slack).all()
    # A pivot beyond the largest number is halved, and its row of U doubled.
    assert (np.abs(factors.upper[~factors.zero_pivots]) <= slack).all()
    assert (factors.runner_up <= slack).all()


@given(gaussian)
def test_rook_runner_up_is_the_largest_competitor(W):
    factors = ldu(W, pivoting="rook")
    beside = np.abs(np.triu(factors.upper, 1)).max(axis=1)
    below = np.abs(np.tril(factors.lower, -1)).max(axis=0)
    np.testing.assert_allclose(factors.runner_up, np.maximum(beside, below), rtol=1e-9, atol=1e-12)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from(["complete", "rook", "randomized"]))
def test_column_pivoting_finds_the_rank(rank, seed, pivoting):
    generator = np.random.default_rng(seed)
    W = generator.standard_normal((15, rank)) @ generator.standard_normal((rank, 18))
    W[:, :5] = 0  # where partial pivoting would look first
    factors = ldu(W, rank, pivoting=pivoting)
    assert np.linalg.norm(factors.residual(W)) <= 1e-9 * np.linalg.norm(W)


def test_randomized_pivoting_is_blocked_and_exact_across_blocks():
    W = np.random.default_rng(0).standard_normal((210, 190))
    factors = ldu(W, pivoting="randomized")
    np.testing.assert_allclose(factors.reconstruct(), W, atol=1e-10)
    # The sketch after each block is that of the Schur complement: the later blocks' pivots are as large as the first's.
    pivots = np.abs(factors.diagonal)
    assert np.median(pivots[128:]) > 0.3 * np.median(pivots[:64])


def test_column_pivoting_does_not_depend_on_which_columns_come_first():
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.standard_normal((200, 200)))[0] for _ in range(2))
    W = (left * 0.9 ** np.arange(200)) @ right
    W[:, :32] = W[:, :1]  # the columns that partial pivoting looks at are all the same
    errors = {
        pivoting: np.linalg.norm(ldu(W, 32, pivoting=pivoting).residual(W)) / np.linalg.norm(W)
        for pivoting in ("partial", "randomized", "rook", "complete")
    }
    assert errors["partial"] > 0.8
    assert max(errors["randomized"], errors["rook"], errors["complete"]) < 0.5


@pytest.mark.parametrize("rank", [1, 63, 64, 65, 128, 129])
def test_randomized_pivoting_at_block_boundaries(rank):
    W = np.random.default_rng(1).standard_normal((140, 150))
    elimination = eliminate_randomized(W, rank, backend_of(W), seed=0)
    p, q = elimination.permutation, elimination.column_permutation
    product = elimination.left[p] @ elimination.rows
    # What has been eliminated is reproduced exactly: the pivot rows and the pivot columns.
    np.testing.assert_allclose(product[:rank], W[p][:rank][:, q], atol=1e-10)
    np.testing.assert_allclose(product[:, :rank], W[p][:, q[:rank]], atol=1e-10)

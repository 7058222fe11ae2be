"""The smallest rank at which each method reaches a target, against textbook errors of every rank."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_ldu import ldu, ldu_lowrank
from lowrank_ldu.analysis import SurveyOptions
from lowrank_ldu.analysis.measures import yardstick
from lowrank_ldu.analysis.measures.matrix import analyze_matrix
from lowrank_ldu.analysis.measures.needed import needed_ranks
from lowrank_ldu.diagnostics import Examination, Target

TARGETS = (0.7, 0.5, 0.2)
# Errors by sums of squares and by the textbook differ by rounding: a target this near to one may be told either way.
CLOSE = 1e-6


def weight(m, n, decay, seed):
    generator = np.random.default_rng(seed)
    k = min(m, n)
    left, right = (np.linalg.qr(generator.standard_normal((size, k)))[0] for size in (m, n))
    return (left * decay ** np.arange(k)) @ right.T


def core_errors(W, factors):
    """By projections of W on the columns of L and on the rows of U, of each rank anew."""
    left = factors.left / np.linalg.norm(factors.left, axis=0)
    right = factors.right / np.linalg.norm(factors.right, axis=1)[:, None]
    found = []
    for rank in range(1, factors.rank + 1):
        across, along = np.linalg.qr(left[:, :rank])[0], np.linalg.qr(right[:rank].T)[0]
        found.append(np.linalg.norm(W - across @ (across.T @ W @ along) @ along.T))
    return np.array(found) / np.linalg.norm(W)


def refit_errors(W, factors):
    """By least squares over all entries."""
    found = []
    for rank in range(1, factors.rank + 1):
        terms = np.stack([np.outer(factors.left[:, i], factors.right[i]).ravel() for i in range(rank)], axis=1)
        z = scipy.linalg.lstsq(terms, W.ravel())[0]
        found.append(np.linalg.norm(W.ravel() - terms @ z))
    return np.array(found) / np.linalg.norm(W)


def svd_errors(W):
    values = np.linalg.svdvals(W)
    return np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1][1:], 0.0) / np.sum(values**2))


def assert_smallest(needed, errors):
    """`needed` is the first rank of `errors` at or below its target, where rounding leaves no doubt."""
    below = np.flatnonzero(errors <= needed.error + CLOSE)
    above = np.flatnonzero(errors <= needed.error - CLOSE)
    first = below[0] + 1 if below.size else None
    surely = above[0] + 1 if above.size else None
    if first == surely:
        assert needed.rank == first, needed
    else:
        assert needed.rank is None or first <= needed.rank


@given(
    m=st.integers(4, 20),
    n=st.integers(4, 20),
    decay=st.floats(0.4, 1.0),
    seed=st.integers(0, 2**20),
    mode=st.sampled_from(["exact", "fast", "cheap"]),
    pivoting=st.sampled_from(["partial", "complete"]),
)
def test_each_method_needs_the_smallest_rank_whose_error_reaches_the_target(m, n, decay, seed, mode, pivoting):
    W = weight(m, n, decay, seed)
    ranks = (1, 3, min(m, n)) if mode == "fast" else (1, 3)
    options = SurveyOptions(ranks=ranks, pivoting=pivoting, targets=TARGETS, mode=mode)
    matrix = analyze_matrix(torch.from_numpy(W), options)
    factors = ldu(W, pivoting=pivoting)
    plain = np.array([np.linalg.norm(factors.truncate(r).residual(W)) for r in range(1, min(m, n) + 1)])
    least = svd_errors(W)
    expected = {
        ("svd", False): least,
        # A sketch of these sizes is the whole space.
        ("ldu_lowrank", False): least,
        ("ldu", False): plain / np.linalg.norm(W),
        ("ldu", True): refit_errors(W, factors),
        ("ldu_core", False): core_errors(W, factors),
    }
    needed = {(item.method, item.refit, item.error): item for item in matrix.needed}
    assert len(needed) == len(matrix.needed) == len(expected) * len(TARGETS)
    for (method, refit, _), item in needed.items():
        assert not item.bound
        assert_smallest(item, expected[method, refit])
    for target in TARGETS:
        best, near, core, refitted = (
            needed[key].rank
            for key in (
                ("svd", False, target), ("ldu_lowrank", False, target), ("ldu_core", False, target),
                ("ldu", True, target),
            )
        )  # fmt: skip
        # The SVD is the best of all; a diagonal is a core; and of LDU no rank of its own diagonal is ahead of the best.
        assert best <= near
        assert best <= core <= refitted <= needed["ldu", False, target].rank


@given(st.integers(3, 16), st.integers(3, 16), st.floats(0.3, 1.0), st.integers(0, 2**20), st.booleans())
def test_core_errors_at_all_ranks_are_those_of_projections(m, n, decay, seed, dependent):
    W = weight(m, n, decay, seed)
    if dependent:
        W[:, 1] = W[:, 0] * (1 + 1e-9)  # the second step has next to nothing to eliminate
    factors = ldu(W, pivoting="partial")
    found = Examination(Target(W), factors).core_curve()
    # Rounding of sums of squares takes what is below 1e-7, and nearly dependent columns some digits of each.
    np.testing.assert_allclose(found, core_errors(W, factors), rtol=1e-6, atol=1e-6)
    assert (np.diff(found) <= 1e-7).all()


def test_core_errors_are_those_measured_at_each_rank_and_end_where_nothing_is_asked_for():
    W = weight(24, 20, 0.6, 0)
    examination = Examination(Target(W), ldu(W, pivoting="complete"))
    short = examination.core_curve(least=0.1)
    reached = int(np.flatnonzero(short <= 0.1)[0])
    measured = [examination.at(rank).core_frobenius_error for rank in range(1, 21)]
    np.testing.assert_allclose(short[: reached + 1], measured[: reached + 1], rtol=1e-9)
    assert np.isnan(short[-1])
    np.testing.assert_allclose(examination.core_curve(), measured, rtol=1e-6, atol=1e-7)


@given(st.integers(0, 2**20), st.floats(0.8, 1.0), st.sampled_from(["fast", "exact", "cheap"]))
def test_near_best_ranks_beyond_the_sketch_are_bounds(seed, decay, mode):
    """Of a matrix that no sketch of these ranks spans: 3 (4 + 8) columns of 120."""
    W = weight(130, 120, decay, seed)
    options = SurveyOptions(ranks=(2, 4), pivoting="partial", targets=(0.95, *TARGETS), mode=mode, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yardstick, "_WHOLE_SPECTRUM", 0)
        matrix = analyze_matrix(torch.from_numpy(W), options)
    least = svd_errors(W)
    sketched = ldu_lowrank(W, 4, seed=seed)
    known = np.linalg.norm(sketched.residual(W)) / np.linalg.norm(W)
    for item in matrix.needed:
        first = int(np.flatnonzero(least <= item.error)[0]) + 1
        if item.method not in {"svd", "ldu_lowrank"}:
            continue
        if item.rank is not None:
            # No rank is claimed at which even the best matrix misses the target.
            assert item.rank >= first
            assert item.bound == (item.rank > (1 if item.method == "svd" else 5)) or not item.bound
        if item.method == "ldu_lowrank":
            if item.rank is not None and item.rank > 5:
                # From 32 = 120 / 3 - 8 on a sketch is the whole space, so that the SVD's error is the near-best one's.
                assert item.bound
            if abs(known - item.error) > CLOSE:
                assert (item.rank is not None and item.rank <= 4) == (known <= item.error)
        elif mode == "exact":
            assert (item.rank, item.bound) == (first, False)


def test_a_near_best_rank_of_its_own_sketch_is_no_further_than_the_bound():
    """What is bounded is there: the factors of that rank reach the target."""
    W = weight(130, 120, 0.97, 3)
    options = SurveyOptions(ranks=(8, 16), pivoting="partial", targets=(0.3, 0.1), mode="exact")
    matrix = analyze_matrix(torch.from_numpy(W), options)
    for item in matrix.needed:
        if item.method == "ldu_lowrank":
            assert item.rank > 16
            error = np.linalg.norm(ldu_lowrank(W, item.rank).residual(W)) / np.linalg.norm(W)
            assert error <= item.error


def test_unknown_errors_make_bounds():
    nan = float("nan")
    found = needed_ranks([0.9, nan, 0.4], [0.5, 0.95, 0.1], (9, 9))
    assert [(item.rank, item.bound, item.numbers) for item in found] == [
        (3, True, 57),
        (1, False, 19),
        (None, True, None),
    ]
    assert [item.bound for item in needed_ranks([0.9, 0.4], [0.95, 0.5, 0.1], (9, 9), exact=False)] == [
        False,
        True,
        True,
    ]
    exact = np.array([True, False, True])
    assert [item.bound for item in needed_ranks([0.9, 0.6, 0.4], [0.6, 0.5], (9, 9), exact=exact)] == [False, True]


@pytest.mark.parametrize("mode", ["exact", "fast", "cheap"])
def test_the_zero_matrix_needs_one_term(mode):
    matrix = analyze_matrix(torch.zeros(40, 30), SurveyOptions(ranks=(2, 4), mode=mode))
    assert {(item.rank, item.bound) for item in matrix.needed} == {(1, False)}
    assert matrix.recommendation.method == "ldu"

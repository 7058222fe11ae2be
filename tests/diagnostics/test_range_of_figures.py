"""Figures at the ends of the range: those that are relative do not depend on the unit that W is in."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrices import spread_over_the_range

from lowrank_ldu import Factorization, diagnose, ldu, pissa, svd
from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.diagnostics import Examination, Target

IN_UNIT_OF_W = {"frobenius_norm", "spectral_norm", "smallest_pivot", "largest_pivot"}
# What says how large something is; beyond the largest number it is infinite. All else is finite.
MAY_BE_INFINITE = IN_UNIT_OF_W | {
    "condition_left",
    "condition_right",
    "condition_gram",
    "storage_error_float16",
    "storage_error_bfloat16",
}


def normal(seed, dtype=np.float64):
    return np.clip(np.random.default_rng(seed).standard_normal((9, 7)), -1.9, 1.9).astype(dtype)


def assert_same_but_for_the_unit(figures, reference, exponent, tolerance):
    for name, expected in dataclasses.asdict(reference).items():
        value = getattr(figures, name)
        if isinstance(expected, float) and name in IN_UNIT_OF_W:
            size = max(abs(math.frexp(expected)[1]) + exponent, -1073) if expected else 0
            if size > 1000:
                continue
            assert value == pytest.approx(math.ldexp(expected, exponent), rel=tolerance, abs=1e-322), name
        elif isinstance(expected, float):
            assert value == pytest.approx(expected, rel=tolerance, abs=tolerance), name
        else:
            assert value == expected, name


@given(
    st.integers(-960, 1020),
    st.sampled_from(PIVOTING),
    st.sampled_from([np.array, torch.tensor]),
    st.integers(0, 2**32 - 1),
)
def test_figures_of_float64_do_not_depend_on_the_unit(exponent, pivoting, convert, seed):
    A = normal(seed)
    W = np.ldexp(A, exponent)
    reference = diagnose(convert(A), ldu(convert(A), pivoting=pivoting), [1, 4, 7])
    figures = diagnose(convert(W), ldu(convert(W), pivoting=pivoting), [1, 4, 7])
    for one, other in zip(figures, reference, strict=True):
        # Pivots are chosen from the same digits; sums may be taken in another order by LAPACK.
        assert_same_but_for_the_unit(one, other, exponent, 1e-9)
    curve, expected = (
        Examination(Target(convert(matrix)), ldu(convert(matrix), pivoting=pivoting)).curve() for matrix in (W, A)
    )
    np.testing.assert_allclose(curve, expected, atol=1e-6)


@given(st.integers(-100, 120), st.sampled_from(PIVOTING), st.integers(0, 2**32 - 1))
def test_figures_of_float32_do_not_depend_on_the_unit(exponent, pivoting, seed):
    A = normal(seed, np.float32)
    W = np.ldexp(A, exponent)
    reference = diagnose(A, ldu(A, pivoting=pivoting), [2, 7])
    for one, other in zip(diagnose(W, ldu(W, pivoting=pivoting), [2, 7]), reference, strict=True):
        # Near the ends the factors are computed in float64 and rounded: some roundings of float32 apart, enlarged by
        # the conditions of the factors.
        tolerance = 100 * float(np.finfo(np.float32).eps) * other.condition_left * other.condition_right
        if tolerance < 0.01:
            assert_same_but_for_the_unit(one, other, exponent, tolerance)


@pytest.mark.parametrize("exponent", [-960, -500, 450, 1010])
@pytest.mark.parametrize("method", [svd, pissa])
def test_figures_of_other_factorizations(library, method, exponent):
    A = normal(0)
    W = np.ldexp(A, exponent)
    (reference,) = diagnose(library.array(A), method(library.array(A), 4))
    (figures,) = diagnose(library.array(W), method(library.array(W), 4))
    if method is pissa:  # its factors carry the root of the unit, so that storage is another matter
        names = ("storage_error_float16", "storage_error_bfloat16")
        figures = dataclasses.replace(figures, **{name: getattr(reference, name) for name in names})
    assert_same_but_for_the_unit(figures, reference, exponent, 1e-9)


@pytest.mark.parametrize("exponent", [-900, 900])
def test_known_values_are_in_the_unit_of_the_matrix(exponent):
    A = normal(1)
    W = np.ldexp(A, exponent)
    values = np.linalg.svd(A, compute_uv=False)
    reference = Target(A, leading_values=values[:4])
    target = Target(W, leading_values=np.ldexp(values[:4], exponent))
    expected, figures = Examination(reference, ldu(A)).at(3), Examination(target, ldu(W)).at(3)
    assert figures.svd_frobenius_error == pytest.approx(expected.svd_frobenius_error, rel=1e-12)
    assert figures.frobenius_norm == pytest.approx(math.ldexp(expected.frobenius_norm, exponent), rel=1e-12)
    np.testing.assert_array_equal(Target(W).values, np.ldexp(Target(A).values, exponent))


@given(spread_over_the_range(), st.sampled_from(PIVOTING), st.sampled_from([np.array, torch.tensor]))
def test_figures_are_numbers_or_refused(W, pivoting, convert):
    factors = ldu(convert(W), pivoting=pivoting)
    try:
        figures = diagnose(convert(W), factors, range(1, min(W.shape) + 1))
    except ValueError as error:
        assert "factors hold a term that is more than" in str(error) or "cannot be measured" in str(error)  # noqa: PT017
        return
    for one in figures:
        for name, value in dataclasses.asdict(one).items():
            if isinstance(value, float):
                assert not math.isnan(value), name
                assert name in MAY_BE_INFINITE or math.isfinite(value), name


def test_norms_beyond_the_largest_number_are_infinite_and_errors_right():
    W = np.array([[3.0, 0.0], [0.0, 4.0]]) * 2.0**1021
    W = np.vstack([W, W, W])
    (figures,) = diagnose(W, ldu(W), [1])
    assert figures.frobenius_norm == math.inf
    assert figures.svd_frobenius_error == pytest.approx(0.6)
    assert figures.growth_factor == 1.0


def test_terms_that_are_too_large_to_measure():
    factors = Factorization(np.full((2, 1), 1e150), np.full(1, 1e150), np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"factors hold a term that is more than 5.28e\+269 times as large as W"):
        diagnose(np.eye(2), factors)


def test_terms_that_are_much_larger_than_the_matrix_are_measured():
    # Two terms that cancel but for the second column.
    factors = Factorization(
        np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([1e150, -1e150]), np.array([[1.0, 0.0], [1.0, -1e-150]])
    )
    (figures,) = diagnose(np.array([[1e-9, 1.0], [0.0, 0.0]]), factors)
    assert figures.frobenius_error == pytest.approx(1e-9)
    assert figures.condition_gram == math.inf

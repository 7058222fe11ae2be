"""Every figure against its definition, written out with NumPy."""

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import any_finite

from lowrank_ldu import LDU, diagnose, ldu, pissa, svd
from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.diagnostics.cost import apply_flops, factor_flops


def relative(error, W, order):
    return np.linalg.norm(error, order) / np.linalg.norm(W, order)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (10, 10)])
@pytest.mark.parametrize("pivoting", PIVOTING)
def test_figures_are_what_they_are_defined_as(library, shape, pivoting):
    W = np.random.default_rng(0).standard_normal(shape)
    array = library.array(W)
    factors = ldu(array, pivoting=pivoting)
    values = np.linalg.svd(W, compute_uv=False)
    for figures, rank in zip(diagnose(array, factors, [1, 4, 9]), [1, 4, 9], strict=True):
        cut = factors.truncate(rank)
        L, z, U = (library.numpy(a) for a in (cut.left, cut.diagonal, cut.right))
        error = W - (L * z) @ U
        refit_error = library.numpy(cut.refit(array).residual(array))
        G = (L.T @ L) * (U @ U.T)
        columns, rows = L / np.linalg.norm(L, axis=0), U / np.linalg.norm(U, axis=1)[:, None]
        expected = {
            "frobenius_norm": np.linalg.norm(W),
            "spectral_norm": values[0],
            "frobenius_error": relative(error, W, "fro"),
            "spectral_error": relative(error, W, 2),
            "refit_frobenius_error": relative(refit_error, W, "fro"),
            "refit_spectral_error": relative(refit_error, W, 2),
            "core_frobenius_error": relative(W - L @ np.linalg.pinv(L) @ W @ np.linalg.pinv(U) @ U, W, "fro"),
            "zero_frobenius_error": 1.0,
            "zero_spectral_error": 1.0,
            "svd_frobenius_error": np.linalg.norm(values[rank:]) / np.linalg.norm(W),
            "svd_spectral_error": values[rank] / values[0] if rank < len(values) else 0.0,
            "growth_factor": max(1.0, np.abs(z[:, None] * U).max() / np.abs(W).max()),
            "condition_left": np.linalg.cond(L),
            "condition_right": np.linalg.cond(U),
            "condition_gram": np.linalg.cond(G),
            "orthogonality_left": np.linalg.norm(columns.T @ columns - np.eye(rank)) / np.sqrt(rank),
            "orthogonality_right": np.linalg.norm(rows @ rows.T - np.eye(rank)) / np.sqrt(rank),
            "smallest_pivot": np.abs(z).min(),
            "largest_pivot": np.abs(z).max(),
        }
        for field, value in expected.items():
            assert getattr(figures, field) == pytest.approx(value, rel=1e-8, abs=1e-12), field
        m, n = shape
        assert (figures.m, figures.n, figures.rank, figures.dtype) == (m, n, rank, "float64")
        assert (figures.method, figures.pivoting) == ("ldu", pivoting)
        assert figures.zero_pivots == 0
        assert figures.factor_bytes == 8 * (rank * (m + n) + rank)
        assert figures.dense_bytes == 8 * m * n
        assert figures.apply_flops == 2 * rank * (m + n) + rank
        assert figures.dense_apply_flops == 2 * m * n


@pytest.mark.parametrize(("name", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_storage_error_is_that_of_the_rounded_factors(library, name, dtype):
    W = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    factors = ldu(library.array(W))
    left, z, right = (library.numpy(a).astype(np.float64) for a in (factors.left, factors.diagonal, factors.right))
    rounded = (left.astype(dtype).astype(np.float64) * z) @ right.astype(dtype).astype(np.float64)
    (figures,) = diagnose(library.array(W), factors)
    assert getattr(figures, f"storage_error_{name}") == pytest.approx(
        np.linalg.norm(rounded - (left * z) @ right) / np.linalg.norm(W.astype(np.float64)), rel=1e-9
    )


def test_rounding_agrees_with_the_types_themselves_on_subnormals_and_ties():
    from lowrank_ldu.backend import backend_of
    from lowrank_ldu.diagnostics.storage import round_to

    generator = np.random.default_rng(0)
    values = generator.standard_normal(4000) * 2.0 ** generator.integers(-30, 14, 4000)
    values = np.concatenate([values, np.round(values * 64) / 64 + 2.0**-11, [0.0, -0.0, 2.0**-24, 2.0**-25]])
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        # Through float32 first, since ml_dtypes rounds float64 twice.
        exact = values.astype(np.float32).astype(np.float64)
        expected = exact.astype(np.float32).astype(dtype).astype(np.float64)
        np.testing.assert_array_equal(round_to(exact, name, backend_of(exact)), expected)


def test_an_entry_that_overflows_float16_makes_its_storage_error_infinite():
    W = np.array([[1e-3, 1e3], [1e-3, -1e3]])
    (figures,) = diagnose(W, ldu(W))
    assert figures.storage_error_float16 == math.inf
    assert figures.storage_error_bfloat16 < 0.02


def test_near_ties_are_counted():
    W = np.diag([4.0, 4.0, 1.0]) + np.diag([4.0 * (1 - 2**-10), 0.5], -1)
    figures = diagnose(W, ldu(W))[0]
    assert figures.near_ties == 0
    assert figures.near_ties_bfloat16 == 1
    assert figures.closest_runner_up == pytest.approx(1 - 2**-10)
    tied = np.array([[1.0, 2.0], [-1.0, 5.0]])
    assert diagnose(tied, ldu(tied))[0].near_ties == 1
    # Complete pivoting compares with the whole rest: the two fours tie there though they share no row or column.
    apart = np.diag([4.0, 4.0, 1.0])
    assert diagnose(apart, ldu(apart))[0].near_ties == 0
    assert diagnose(apart, ldu(apart, pivoting="complete"))[0].near_ties == 1


def test_zero_matrix_has_no_error_and_only_zero_pivots():
    W = np.zeros((4, 3))
    figures = diagnose(W, ldu(W))[0]
    assert figures.frobenius_error == figures.svd_frobenius_error == figures.zero_frobenius_error == 0.0
    assert figures.zero_pivots == 3
    assert figures.near_ties == 0


def test_dependent_terms_have_infinite_condition():
    W = np.ones((3, 3))
    doubled = LDU(
        left=np.ones((3, 2)), diagonal=np.ones(2), right=np.ones((2, 3)), permutation=np.arange(3),
        column_permutation=None, pivoting="partial",
    )  # fmt: skip
    figures = diagnose(W, doubled)[0]
    assert figures.condition_left == figures.condition_right == figures.condition_gram == math.inf


def test_svd_and_pissa_have_no_pivots_and_are_optimal():
    W = np.random.default_rng(0).standard_normal((8, 6))
    for factors in (svd(W), pissa(W)):
        for figures in diagnose(W, factors, [2, 6]):
            assert figures.frobenius_error == pytest.approx(figures.svd_frobenius_error, abs=1e-12)
            assert figures.spectral_error == pytest.approx(figures.svd_spectral_error, abs=1e-12)
            assert figures.pivoting is figures.growth_factor is figures.near_ties is figures.zero_pivots is None
    assert diagnose(W, svd(W))[0].condition_gram == pytest.approx(1.0)
    assert diagnose(W, svd(W))[0].orthogonality_left == pytest.approx(0.0, abs=1e-12)


def test_known_singular_values_are_taken_as_they_are():
    W = np.random.default_rng(0).standard_normal((8, 6))
    factors = ldu(W)
    values = svd(W).diagonal
    with_them, without = diagnose(W, factors, [3], singular_values=values), diagnose(W, factors, [3])
    for field in dataclasses.fields(with_them[0]):
        assert getattr(with_them[0], field.name) == pytest.approx(getattr(without[0], field.name)), field.name


@given(any_finite(), st.sampled_from(PIVOTING))
def test_no_figure_is_nan_and_the_optimum_is_least(W, pivoting):
    figures = diagnose(W, ldu(W, pivoting=pivoting), range(1, min(W.shape) + 1))
    for one in figures:
        for field, value in dataclasses.asdict(one).items():
            assert not (isinstance(value, float) and math.isnan(value)), field
        assert one.svd_frobenius_error <= one.refit_frobenius_error + 1e-5
        assert one.refit_frobenius_error <= one.frobenius_error + 1e-5
        assert one.growth_factor >= 1.0


@pytest.mark.parametrize(
    ("factors", "flops"),
    [
        (ldu(np.eye(100, 80), 10), 100 * 100 - 333 + 100 * 70),
        (ldu(np.eye(100, 80), 10, pivoting="rook"), 100 * 100 - 333 + 100 * 70),
        (ldu(np.eye(100, 80), 10, pivoting="complete"), 2 * 100 * 80 * 10),
        (ldu(np.eye(100, 80), 10, pivoting="randomized"), 100 * 100 - 333 + 100 * 70 + 2 * 18 * 100 * 80),
        (svd(np.eye(100, 80), 10), 6 * 100 * 80**2 + 20 * 80**3),
        (svd(np.eye(100, 80), 10, niter=4), 20 * 100 * 80 * 10),
        (pissa(np.eye(100, 80), 10, niter=4), 20 * 100 * 80 * 10),
    ],
    ids=["partial", "rook", "complete", "randomized", "svd", "svd-niter", "pissa-niter"],
)
def test_operations_of_each_method(factors, flops):
    assert factor_flops(factors, 10) == flops
    assert apply_flops(100, 80, 10) == 2 * 10 * 180 + 10

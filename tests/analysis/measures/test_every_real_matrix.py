"""The survey of all-MiniLM-L6-v2 beside NumPy and SciPy in float64, on every matrix.

Tolerances: the survey factors in float32 and measures in float64. Its figures differ from those of factors in float64
by rounding times the growth of the elimination (up to about 10) and, for condition numbers, times these; all of that
stays below the tolerance beside each figure.
"""

import minilm
import ml_dtypes
import numpy as np
import pytest
import scipy.linalg
from safetensors.numpy import load_file

from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint

pytestmark = pytest.mark.longer

RANKS = (8, 64)
# The wide embedding's textbook elimination is slow: its leading terms are enough, and so is each one's.
STEPS = 64


@pytest.fixture(scope="module")
def analysis():
    return analyze_checkpoint(
        minilm.checkpoint(), SurveyOptions(ranks=RANKS, mode="exact", pivoting=("partial", "complete"))
    )


@pytest.fixture(scope="module")
def weights():
    return load_file(minilm.checkpoint())


def partial(W):
    """SciPy's LU, its diagonal split off."""
    P, L, R = scipy.linalg.lu(W)
    z = np.diagonal(R)
    return P @ L, z, R / z[:, None]


def complete(W, steps=STEPS):
    """The textbook's: the largest entry of what is left, a step at a time."""
    rest, left, z, right = W.copy(), [], [], []
    for _ in range(min(steps, *W.shape)):
        row, column = np.unravel_index(np.argmax(np.abs(rest)), rest.shape)
        pivot = rest[row, column]
        left.append(rest[:, column] / pivot)
        right.append(rest[row] / pivot)
        z.append(pivot)
        rest -= np.outer(left[-1], rest[row])
    return np.stack(left, axis=1), np.array(z), np.stack(right)


def expected(W, left, z, right, values):
    """The definitions, one by one."""
    rank = len(z)
    norm = np.linalg.norm(W)
    error = W - (left * z) @ right
    gram = (left.T @ left) * (right @ right.T)
    best = scipy.linalg.solve(gram, np.sum((left.T @ W) * right, axis=1), assume_a="pos")
    refit = W - (left * best) @ right
    across, along = np.linalg.qr(left)[0], np.linalg.qr(right.T)[0]
    core = np.linalg.norm(W - across @ (across.T @ W @ along) @ along.T)
    rounded = {
        name: (left.astype(np.float32).astype(dtype).astype(float) * z)
        @ right.astype(np.float32).astype(dtype).astype(float)
        for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16))
    }
    columns, rows = left / np.linalg.norm(left, axis=0), right / np.linalg.norm(right, axis=1)[:, None]
    return {
        "frobenius_norm": (norm, 1e-6),
        "spectral_norm": (values[0], 1e-6),
        "frobenius_error": (np.linalg.norm(error) / norm, 1e-4),
        "spectral_error": (np.linalg.norm(error, 2) / values[0], 1e-4),
        "refit_frobenius_error": (np.linalg.norm(refit) / norm, 1e-4),
        "core_frobenius_error": (core / norm, 1e-4),
        "refit_spectral_error": (np.linalg.norm(refit, 2) / values[0], 1e-3),
        "svd_frobenius_error": (np.linalg.norm(values[rank:]) / norm, 1e-5),
        "svd_spectral_error": (values[rank] / values[0], 1e-5),
        "growth_factor": (max(1.0, np.abs(z[:, None] * right).max() / np.abs(W).max()), 1e-4),
        "condition_left": (np.linalg.cond(left), 1e-3),
        "condition_right": (np.linalg.cond(right), 1e-3),
        "condition_gram": (np.linalg.cond(gram), 1e-2),
        "orthogonality_left": (np.linalg.norm(columns.T @ columns - np.eye(rank)) / np.sqrt(rank), 1e-4),
        "orthogonality_right": (np.linalg.norm(rows @ rows.T - np.eye(rank)) / np.sqrt(rank), 1e-4),
        "smallest_pivot": (np.abs(z).min(), 1e-4),
        "largest_pivot": (np.abs(z).max(), 1e-6),
        # Factors that differ in the last bits are rounded to other neighbors here and there.
        **{
            f"storage_error_{name}": (np.linalg.norm(product - (left * z) @ right) / norm, 2e-2)
            for name, product in rounded.items()
        },
    }


def test_every_figure_of_every_matrix(analysis, weights):
    assert len(analysis.matrices) == 40
    for tensor, matrix in analysis.matrices:
        W = weights[tensor.name].astype(np.float64)
        k = min(W.shape)
        values = np.linalg.svd(W, compute_uv=False)
        for pivoting, (left, z, right) in {"partial": partial(W), "complete": complete(W)}.items():
            for rank in sorted({min(rank, k) for rank in RANKS}):
                if rank == k:
                    continue  # exact: its error is rounding, which is no figure to compare
                figures = matrix.at("ldu", rank, pivoting).diagnostics
                for name, (value, tolerance) in expected(W, left[:, :rank], z[:rank], right[:rank], values).items():
                    assert getattr(figures, name) == pytest.approx(value, rel=tolerance), (tensor.name, rank, name)
            # Full rank reproduces the matrix, to rounding in float32 times the growth.
            assert matrix.at("ldu", k, pivoting).diagnostics.frobenius_error < 2e-6


def test_every_spectrum(analysis, weights):
    for tensor, matrix in analysis.matrices:
        values = np.linalg.svd(weights[tensor.name].astype(np.float64), compute_uv=False)
        share = values / values.sum()
        entropy = -np.sum(share * np.log(share))
        held = np.cumsum(values**2) / np.sum(values**2)
        spectrum = matrix.spectrum
        found = (spectrum.largest, spectrum.stable_rank, spectrum.entropy, spectrum.effective_rank)
        assert found == pytest.approx(
            (values[0], 1 / (values[0] ** 2 / np.sum(values**2)), entropy, np.exp(entropy)), rel=1e-5
        )
        assert spectrum.smallest == pytest.approx(values[-1], abs=1e-6 * values[0])
        for rank, energy in spectrum.energy.items():
            assert energy == spectrum.energy_bound[rank] == pytest.approx(held[rank - 1], rel=1e-5)


def test_every_needed_rank(analysis, weights):
    for tensor, matrix in analysis.matrices:
        W = weights[tensor.name].astype(np.float64)
        values = np.linalg.svd(W, compute_uv=False)
        errors = np.sqrt(np.maximum(1 - np.cumsum(values**2) / np.sum(values**2), 0))
        for needed in matrix.needed:
            least = int(np.flatnonzero(errors <= needed.error)[0]) + 1
            if needed.method == "svd":
                assert needed.rank == least, tensor.name
            else:
                assert needed.rank >= least, (tensor.name, needed)


def test_quick_pissa_is_between_the_optimum_and_its_bound(analysis):
    for tensor, matrix in analysis.matrices:
        for rank in RANKS:
            quick = matrix.at("pissa", rank).diagnostics
            exact = matrix.at("pissa", rank, exact=True).diagnostics
            assert exact.frobenius_error == pytest.approx(quick.svd_frobenius_error, rel=1e-4, abs=1e-6), tensor.name
            assert quick.svd_frobenius_error - 1e-6 <= quick.frobenius_error <= 1.05 * quick.svd_frobenius_error + 1e-5

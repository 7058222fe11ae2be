"""Fast mode: its figures are those of exact mode, from one sketch or all singular values of a Gram matrix."""

import dataclasses
import math

import minilm
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lowrank_ldu import ldu, ldu_lowrank
from lowrank_ldu.analysis import SurveyOptions
from lowrank_ldu.analysis.measures import yardstick as module
from lowrank_ldu.analysis.measures.matrix import analyze_matrix
from lowrank_ldu.decomposition.krylov import gram_directions
from lowrank_ldu.diagnostics import Examination, Target

RANKS = (2, 8, 16)
# Of the same factors, computed by NumPy in place of torch: rounding of float32, times the condition number where a
# figure is one. Rounding to half precision can go to the other neighbor.
LOOSE = {
    "condition_left": 1e-3, "condition_right": 1e-3, "condition_gram": 1e-3, "storage_error_float16": 1e-2,
    "storage_error_bfloat16": 1e-2, "closest_runner_up": 1e-3, "smallest_pivot": 1e-3,
}  # fmt: skip
# Fast mode has no spectral norms of errors, whose yardstick it does have.
NOT_MEASURED = ("spectral_error", "refit_spectral_error")


def analyses(W, **options):
    return [
        analyze_matrix(W, SurveyOptions(ranks=RANKS, pivoting=("partial", "complete"), mode=mode, **options))
        for mode in ("fast", "exact")
    ]


def weight(m, n, seed, decay=0.8, dtype=torch.float32):
    generator = np.random.default_rng(seed)
    k = min(m, n)
    left, right = (np.linalg.qr(generator.standard_normal((size, k)))[0] for size in (m, n))
    return torch.from_numpy((left * decay ** np.arange(k)) @ right.T).to(dtype)


def assert_same_figures(fast, exact):
    for method in (("ldu", "partial"), ("ldu", "complete")):
        for rank in RANKS:
            found, expected = (each.at(method[0], rank, method[1]).diagnostics for each in (fast, exact))
            for field in dataclasses.fields(found):
                value, right = getattr(found, field.name), getattr(expected, field.name)
                if field.name in NOT_MEASURED:
                    assert value is None
                elif isinstance(right, float):
                    assert value == pytest.approx(right, rel=LOOSE.get(field.name, 1e-4)), (field.name, rank)
                else:
                    assert value == right, field.name


@pytest.mark.parametrize("shape", [(48, 40), (40, 48), (200, 30), (30, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_figures_are_those_of_exact_mode(shape, dtype):
    fast, exact = analyses(weight(*shape, seed=0, decay=0.9, dtype=dtype))
    assert_same_figures(fast, exact)
    for name in ("largest", "smallest", "stable_rank", "entropy", "effective_rank"):
        assert getattr(fast.spectrum, name) == pytest.approx(getattr(exact.spectrum, name), rel=1e-4), name
    assert fast.spectrum.energy == pytest.approx({rank: exact.spectrum.energy[rank] for rank in RANKS})
    assert fast.svd_niter is None
    # The SVD is known to the full rank, LDU as far as it was asked for.
    assert [each.rank for each in fast.needed if each.method == "svd"] == [
        each.rank for each in exact.needed if each.method == "svd"
    ]
    assert {each.looked_at for each in fast.needed if each.method == "ldu"} == {RANKS[-1]}


def test_figures_of_a_real_weight_are_those_of_exact_mode():
    W = load_file(minilm.checkpoint())["encoder.layer.3.attention.output.dense.weight"]
    fast, exact = analyses(W)
    assert_same_figures(fast, exact)
    for rank in RANKS:
        # One sketch for the largest rank is better for lower ones than their own.
        error = fast.at("ldu_lowrank", rank).diagnostics.frobenius_error
        assert error <= exact.at("ldu_lowrank", rank).diagnostics.frobenius_error * (1 + 1e-5)
        assert error >= exact.at("ldu_lowrank", rank).diagnostics.svd_frobenius_error * (1 - 1e-5)


@given(seed=st.integers(0, 2**20), decay=st.floats(0.3, 1.0), tall=st.booleans())
def test_a_sketch_bounds_the_energy(seed, decay, tall):
    W = weight(*((70, 60) if tall else (60, 70)), seed=seed, decay=decay)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WHOLE_SPECTRUM", 0)
        fast = analyze_matrix(W, SurveyOptions(ranks=(1, 3), pivoting="partial", mode="fast", seed=seed))
    values = np.linalg.svdvals(W.numpy().astype(np.float64))
    held = np.cumsum(values**2) / np.sum(values**2)
    assert fast.svd_niter is not None
    for rank in (1, 3):
        # Products of float32: the share of the energy is right to 1e-6.
        assert fast.spectrum.energy[rank] <= held[rank - 1] + 1e-6
        assert held[rank - 1] <= fast.spectrum.energy_bound[rank] + 1e-6
        figures = fast.at("ldu_lowrank", rank).diagnostics
        best = math.sqrt(max(1 - held[rank - 1], 0))
        assert best - 1e-3 <= figures.frobenius_error
        # What block Krylov iteration of 2 steps leaves above the best (Musco and Musco, 2015): a few per cent at most.
        assert figures.frobenius_error <= 1.1 * best + 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-4)])
def test_a_sketch_has_the_digits_of_a_small_error(monkeypatch, dtype, tolerance):
    # In float32 the share of the energy would be right to 1e-7, which is what is left here.
    values = np.append([3.0, 2.0, 1.0], np.full(197, 1e-4))
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.standard_normal((size, 200)))[0] for size in (220, 200))
    W = torch.from_numpy((left * values) @ right.T).to(dtype)
    monkeypatch.setattr(module, "_WHOLE_SPECTRUM", 0)
    fast = analyze_matrix(W, SurveyOptions(ranks=(2, 8), pivoting="partial", mode="fast"))
    values = np.linalg.svdvals(W.to(torch.float64).numpy())
    best = np.linalg.norm(values[8:]) / np.linalg.norm(values)
    found = fast.at("ldu_lowrank", 8).diagnostics
    assert fast.svd_niter is not None
    assert best * (1 - 1e-6) <= found.svd_frobenius_error <= best * (1 + tolerance)
    assert found.svd_frobenius_error <= found.frobenius_error * (1 + 1e-4)
    assert fast.spectrum.energy[8] - 1e-12 <= 1 - best**2 <= fast.spectrum.energy_bound[8] + 1e-12


def test_all_values_of_a_larger_matrix_are_computed_without_squaring_where_some_are_small(monkeypatch):
    W = weight(60, 50, seed=5, decay=0.6)
    monkeypatch.setattr(module, "_WHOLE_SPECTRUM", 0)
    fast = analyze_matrix(W, SurveyOptions(ranks=(20,), pivoting="partial", mode="fast"))
    assert fast.svd_niter is None
    values = np.linalg.svdvals(W.numpy().astype(np.float64))
    assert fast.spectrum.smallest == pytest.approx(values[-1], rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-40, 1e37])
@pytest.mark.parametrize("rank", [0, 3, 30])
def test_low_rank_and_extreme_numbers(scale, rank):
    W = torch.zeros(40, 30) if rank == 0 else weight(40, rank, 1) @ weight(rank, 30, 2)
    fast, exact = analyses(W.to(torch.float64).mul(scale).to(torch.float32))
    for place in RANKS:
        for method, pivoting in (("ldu", "complete"), ("ldu_lowrank", None)):
            found, expected = (each.at(method, place, pivoting).diagnostics for each in (fast, exact))
            # Of subnormal numbers few digits are left.
            assert found.frobenius_error == pytest.approx(expected.frobenius_error, rel=1e-3, abs=1e-5)
            assert found.core_frobenius_error == pytest.approx(expected.core_frobenius_error, rel=1e-3, abs=1e-5)
    assert fast.spectrum.largest == pytest.approx(exact.spectrum.largest, rel=1e-4)
    assert fast.spectrum.effective_rank == pytest.approx(exact.spectrum.effective_rank, rel=1e-3)


@given(seed=st.integers(0, 2**20), tall=st.booleans(), rank=st.integers(1, 12))
def test_a_projection_is_measured_without_the_weight(seed, tall, rank):
    W = weight(*((50, 20) if tall else (20, 50)), seed=seed, decay=0.95).numpy()
    factors = ldu_lowrank(W, rank, seed=seed)
    target = Target(W, leading_values=np.linalg.svdvals(W))
    short, whole = (dataclasses.asdict(Examination(target, factors, projected=each).at(rank)) for each in (True, False))
    for name, right in whole.items():
        # Products of float32 are a projection to about 1e-6, which a hundredth of the energy has to four digits.
        assert short[name] == (pytest.approx(right, rel=1e-4) if isinstance(right, float) else right), name


def test_a_gram_matrix_gives_singular_values_and_vectors():
    from lowrank_ldu.backend import backend_of

    for shape in ((60, 25), (25, 60)):
        W = weight(*shape, seed=3, decay=0.7).numpy()
        values, vectors = gram_directions(W, backend_of(W))
        expected = np.linalg.svdvals(W.astype(np.float64))
        # Squares are right to eps, so values to eps / 2 times the square of what they are below the largest.
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-8 * expected[0])
        short = W if shape[0] <= shape[1] else W.T
        # U^T W W^T U is diagonal.
        turned = vectors.T @ short.astype(np.float64)
        np.testing.assert_allclose(turned @ turned.T, np.diag(expected**2), atol=1e-12 * expected[0] ** 2)


def test_pissa_is_left_out():
    fast, _ = analyses(weight(40, 30, 0))
    assert {each.diagnostics.method for each in fast.measurements} == {"ldu", "ldu_lowrank"}
    assert repr(fast).startswith("MatrixAnalysis 40 x 30, at ranks 2, 8, 16\n  ")
    assert len(repr(fast)) < 400
    with pytest.raises(KeyError, match="'pissa', 8"):
        fast.at("pissa", 8)


def test_complete_pivoting_of_blocks_is_that_of_the_whole(monkeypatch):
    from lowrank_ldu.decomposition import complete

    for shape in ((33, 50), (50, 33)):
        W = np.random.default_rng(4).standard_normal(shape)
        whole = ldu(W, pivoting="complete")
        monkeypatch.setattr(complete, "_CACHED", 128)
        parts = ldu(W, pivoting="complete")
        monkeypatch.undo()
        for name in ("permutation", "column_permutation"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
        for name in ("runner_up", "left"):
            np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-12, atol=1e-12)

"""Cheap mode: its bounds hold, its figures are those of exact mode, and it looks no further than it is asked to."""

import dataclasses
import math

import minilm
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lowrank_ldu import ldu
from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint
from lowrank_ldu.analysis.measures.estimate import estimate_spectrum, largest_eigenvalue_bound
from lowrank_ldu.analysis.measures.matrix import analyze_matrix
from lowrank_ldu.analysis.measures.spectrum import summarize_spectrum

# The factors of the first steps are the same to rounding, which can go to the other neighbor in half precision.
SAME = {
    "frobenius_error": 1e-5, "refit_frobenius_error": 1e-5, "growth_factor": 1e-5, "condition_gram": 1e-4,
    "condition_left": 1e-4, "orthogonality_right": 1e-5, "storage_error_bfloat16": 1e-2, "storage_error_float16": 1e-2,
}  # fmt: skip
# Rounding of float32 sums over a few hundred numbers; of float64 it is far less.
SLACK = {torch.float32: 1e-5, torch.float64: 1e-12}


def with_values(values, m, n, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    left, _ = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))
    return ((left * torch.as_tensor(values, dtype=torch.float64)) @ right.T).to(dtype)


@st.composite
def spectra(draw):
    """Decays of every kind: flat (the hardest for a sketch), slow, fast, with a cliff, of low rank."""
    k = draw(st.integers(40, 90))
    place = np.arange(1, k + 1)
    kind = draw(st.sampled_from(["flat", "power", "exponential", "cliff", "low rank"]))
    values = {
        "flat": np.ones(k),
        "power": place ** -draw(st.floats(0.1, 2.0)),
        "exponential": np.exp(-place * draw(st.floats(0.01, 1.0))),
        "cliff": np.where(place < draw(st.integers(2, k)), 1.0, 1e-3),
        "low rank": np.where(place <= draw(st.integers(1, 30)), 1.0, 0.0),
    }[kind]
    scale = 10.0 ** draw(st.integers(-12, 12))
    return values * scale


@given(spectra(), st.sampled_from([torch.float32, torch.float64]), st.booleans(), st.integers(0, 10**6))
def test_the_truth_lies_between_the_bounds(values, dtype, tall, seed):
    k = len(values)
    m, n = (k + 30, k) if tall else (k, k + 30)
    W = with_values(values, m, n, seed, dtype)
    true = torch.linalg.svdvals(W.to(torch.float64))
    shares = np.cumsum((true.numpy() / np.linalg.norm(true.numpy())) ** 2)
    spectrum = estimate_spectrum(W, [1, 8, 16], seed).spectrum
    for rank in (1, 8, 16):
        assert spectrum.energy[rank] <= shares[rank - 1] + SLACK[dtype]
        assert spectrum.energy_bound[rank] >= shares[rank - 1] - SLACK[dtype]
    assert spectrum.largest <= float(true[0]) * (1 + SLACK[dtype])
    assert spectrum.stable_rank >= float((true**2).sum() / true[0] ** 2) * (1 - 2 * SLACK[dtype])


@given(spectra(), st.integers(0, 10**6))
def test_the_largest_eigenvalue_is_below_its_bound_and_near_it(values, seed):
    """The factor that the theorem leaves to 24 steps in a hundred dimensions."""
    W = with_values(values, len(values), len(values), seed)
    gram, top = W.T @ W, float(np.max(values)) ** 2
    bound = largest_eigenvalue_bound(lambda vector: gram @ vector, len(values), seed, 1e-13 * top)
    assert top * (1 - 1e-12) <= bound <= 1.2 * top


def test_a_bound_does_not_hang_on_a_lucky_start():
    """One eigenvalue hardly apart from all others: the iteration alone is below it, its bound is not."""
    diagonal = torch.ones(400, dtype=torch.float64)
    diagonal[::2] = torch.linspace(0.5, 1, 200, dtype=torch.float64)
    diagonal[25] = 1.001
    for seed in range(100):
        assert largest_eigenvalue_bound(lambda vector: diagonal * vector, 400, seed, 1e-14) >= 1.001


@pytest.mark.parametrize(
    "values",
    [
        np.where(np.arange(400) == 0, 1.0, 1e-5),
        np.exp(-np.arange(400) / 5),
        np.where(np.arange(400) < 4, 1.0, 1e-7),
        np.where(np.arange(400) == 0, 1.0, 0.0),
    ],
    ids=["spike", "decay", "four", "one"],
)
def test_small_errors_lie_between_the_bounds(values):
    """A millionth of the energy is a thousandth in the error: float32 sums of it would say nothing of it."""
    W = with_values(values, 400, 400, 0, torch.float32)
    true = torch.linalg.svdvals(W.to(torch.float64))
    options = SurveyOptions(ranks=(8, 32), pivoting=("partial",), targets=(1e-3, 1e-4), mode="cheap")
    analysis = analyze_matrix(W, options)
    for rank in (8, 32):
        truth = float(torch.linalg.vector_norm(true[rank:]) / torch.linalg.vector_norm(true))
        upper = analysis.at("ldu", rank, "partial").diagnostics.svd_frobenius_error
        lower = math.sqrt(1 - analysis.spectrum.energy_bound[rank])
        # Rounding in float64 of one minus an energy.
        assert lower - 3e-8 <= truth <= upper + 3e-8
        assert upper <= 1.05 * truth + 1e-6
    for needed in analysis.needed:
        if needed.method == "svd" and needed.rank is not None:
            reached = torch.linalg.vector_norm(true[needed.rank :]) / torch.linalg.vector_norm(true)
            assert float(reached) <= needed.error


def test_the_yardstick_of_exact_mode_is_beaten_by_nothing():
    for values in (np.where(np.arange(60) == 0, 1.0, 1e-7), np.where(np.arange(60) < 5, 1.0, 0.0)):
        W = with_values(values, 60, 60, 1, torch.float32)
        analysis = analyze_matrix(W, SurveyOptions(mode="exact", ranks=(8, 30), targets=(5e-7,)))
        for measurement in analysis.measurements:
            figures = measurement.diagnostics
            assert figures.refit_frobenius_error >= figures.svd_frobenius_error * (1 - 1e-6)
        ranks = {needed.method: needed.rank for needed in analysis.needed if needed.refit or needed.method == "svd"}
        assert ranks["svd"] <= ranks["ldu"]


@given(st.integers(0, 10**6), st.sampled_from([0.5, 1e-3, 1e-6]), st.sampled_from(["exact", "cheap"]))
def test_recommended_storage_keeps_the_target(seed, target, mode):
    # A few large entries, which LDU finds as well as the SVD does.
    W = with_values(np.exp(-np.arange(70) / 4), 70, 80, seed, torch.float32) * 1e-3
    W[range(70), torch.randperm(80, generator=torch.Generator().manual_seed(seed))[:70]] += torch.exp(
        -torch.arange(70) / 4
    )
    options = SurveyOptions(ranks=(4, 24), targets=(target,), pivoting="complete", mode=mode)
    advice = analyze_matrix(W, options).recommendation
    assert advice.method in ({"ldu"} if target == 0.5 else {"ldu", "ldu_lowrank", None})
    if advice.method != "ldu":
        return
    factors = ldu(W, pivoting=advice.pivoting).truncate(advice.rank).refit(W)
    dtype = getattr(torch, advice.storage)
    left, right = (part.to(dtype).to(torch.float64) for part in (factors.left, factors.right))
    error = W.to(torch.float64) - (left * factors.diagonal.to(torch.float64)) @ right
    # The two losses are all but orthogonal, not quite.
    assert float(torch.linalg.matrix_norm(error) / torch.linalg.matrix_norm(W.to(torch.float64))) <= 1.02 * target
    # L without its unit triangle and diag(z) U without its zeros, and the pivots.
    r, numbers = advice.rank, factors.left.numel() + factors.diagonal.numel() + factors.right.numel()
    assert advice.numbers == numbers - r * (r + 1) + 2 * r < W.numel()


def test_a_matrix_that_a_sketch_is_no_smaller_than_is_analyzed_exactly():
    W = with_values(np.arange(1, 41)[::-1].copy(), 40, 50, 0)
    cheap = SurveyOptions(ranks=(8, 20), mode="cheap")
    exact = SurveyOptions(ranks=(8, 20), mode="exact")
    one, other = analyze_matrix(W, cheap), analyze_matrix(W, exact)
    assert one.svd_niter is None
    assert one.spectrum == other.spectrum
    assert [m.diagnostics for m in one.measurements] == [m.diagnostics for m in other.measurements]


@pytest.mark.parametrize("shape", [(120, 150), (150, 120)])
def test_figures_are_those_of_exact_mode(shape):
    W = with_values(np.linspace(1, 0.01, 120), *shape, 1, torch.float32)
    options = SurveyOptions(ranks=(4, 20), pivoting=("partial", "complete", "rook"), mode="cheap")
    cheap, exact = analyze_matrix(W, options), analyze_matrix(W, dataclasses.replace(options, mode="exact"))
    assert cheap.svd_niter == 2
    assert [m.diagnostics.rank for m in cheap.measurements] == [4, 20] * 5
    for measurement in cheap.measurements:
        figures = measurement.diagnostics
        true = exact.at(figures.method, figures.rank, figures.pivoting).diagnostics
        assert figures.spectral_error is figures.refit_spectral_error is figures.svd_spectral_error is None
        assert figures.svd_frobenius_error >= true.svd_frobenius_error * (1 - 1e-6)
        bounds = cheap.spectrum
        assert math.sqrt(1 - bounds.energy_bound[figures.rank]) <= true.svd_frobenius_error
        for field, tolerance in SAME.items():
            expected = getattr(true, field)
            assert getattr(figures, field) == (expected and pytest.approx(expected, rel=tolerance)), field
    # LDU's curves end at the largest rank asked for, and say the same up to there.
    assert cheap.curve_ranks[-1] == 20
    assert {needed.looked_at for needed in cheap.needed} == {20}
    full = {(n.method, n.pivoting, n.refit, n.error): n.rank for n in exact.needed}
    for needed in cheap.needed:
        true = full[needed.method, needed.pivoting, needed.refit, needed.error]
        if needed.method == "ldu":
            assert needed.rank == (true if true is not None and true <= 20 else None)
        else:
            assert needed.rank is None or needed.rank >= true


def test_zero_and_extreme_matrices_have_figures():
    options = SurveyOptions(ranks=(2, 4), mode="cheap")
    zero = analyze_matrix(torch.zeros(60, 50), options)
    assert zero.spectrum == summarize_spectrum(torch.zeros(50), [2, 4])
    assert zero.at("ldu", 4, "partial").diagnostics.frobenius_error == 0
    for scale in (1e-160, 1e150):
        W = with_values(np.linspace(1, 0.5, 50), 60, 50, 0) * scale
        one, other = (analyze_matrix(matrix, options) for matrix in (W, W / scale))
        assert one.spectrum.energy == pytest.approx(other.spectrum.energy)
        figures, expected = (a.at("ldu", 4, "complete").diagnostics for a in (one, other))
        assert figures.frobenius_error == pytest.approx(expected.frobenius_error)
        assert figures.storage_error_bfloat16 == pytest.approx(expected.storage_error_bfloat16)


def test_real_weights_lie_between_their_bounds():
    weights = load_file(minilm.checkpoint())
    for name in ("encoder.layer.0.attention.self.query.weight", "encoder.layer.5.output.dense.weight"):
        W = weights[name]
        values = torch.linalg.svdvals(W.to(torch.float64))
        shares = torch.cumsum(values**2, 0) / (values**2).sum()
        spectrum = estimate_spectrum(W, [8, 64], 0).spectrum
        for rank in (8, 64):
            truth = float(shares[rank - 1])
            assert spectrum.energy[rank] - 1e-6 <= truth <= spectrum.energy_bound[rank]
            # What a user sees is the error: the interval is narrow.
            assert math.sqrt(1 - spectrum.energy[rank]) - math.sqrt(1 - spectrum.energy_bound[rank]) < 0.02


def test_the_compute_dtype_is_what_was_asked_for(tmp_path):
    path = tmp_path / "model.safetensors"
    W = with_values(np.linspace(1, 0.5, 30), 40, 30, 0, torch.float32)
    save_file({"single": W, "half": W.to(torch.bfloat16), "double": W.double(), "huge": W.double() * 1e100}, path)
    for dtype, found in ((None, ["float32", "float32", "float64", "float64"]), ("float64", ["float64"] * 4)):
        analysis = analyze_checkpoint(path, SurveyOptions(ranks=(4,), threads=1, dtype=dtype))
        dtypes = {t.name: {m.diagnostics.dtype for m in matrix.measurements} for t, matrix in analysis.matrices}
        assert [dtypes[name] for name in ("half", "single", "double", "huge")] == [{name} for name in found]
    analysis = analyze_checkpoint(path, SurveyOptions(ranks=(4,), threads=1, dtype="float32"))
    (skipped,) = analysis.skipped
    assert (skipped.name, skipped.reason) == ("huge", "it holds entries that are not representable in float32")


def test_figures_do_not_depend_on_defaults_of_torch(tmp_path):
    """As on a machine with a GPU, where a program may have made it the default."""
    path = tmp_path / "model.safetensors"
    save_file({"weight": with_values(np.linspace(1, 0.5, 60), 70, 60, 0, torch.float32)}, path)
    options = [SurveyOptions(ranks=(4,), threads=1, mode=mode) for mode in ("exact", "cheap")]
    before = [analyze_checkpoint(path, option).matrices[0][1] for option in options]
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float16)
        after = [analyze_checkpoint(path, option).matrices[0][1] for option in options]
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for one, other in zip(before, after, strict=True):
        assert one.spectrum == other.spectrum
        assert [m.diagnostics for m in one.measurements] == [m.diagnostics for m in other.measurements]
        assert (one.curves, one.needed, one.recommendation) == (other.curves, other.needed, other.recommendation)

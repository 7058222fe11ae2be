"""Figures of a matrix on a device: those of the CPU."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from pretend_device import DEVICE, NARROW, pretending

from lowrank_ldu.analysis import SurveyOptions
from lowrank_ldu.analysis.measures import yardstick as module
from lowrank_ldu.analysis.measures.matrix import analyze_matrix
from lowrank_ldu.backend import backend_of
from lowrank_ldu.decomposition.krylov import gram_directions
from lowrank_ldu.diagnostics.measures import largest_eigenvalue

RANKS = (2, 8)
REAL = [
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    pytest.param(
        "mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs a GPU of Apple's")
    ),
]
# Rounding of the factors' dtype, times some hundreds for sums and conditioning of these matrices.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
# Condition numbers multiply the rounding of factors; rounding to half precision can go to the other neighbor.
LOOSE = {
    "condition_left": 10, "condition_right": 10, "condition_gram": 10, "closest_runner_up": 10, "smallest_pivot": 10,
    "storage_error_float16": 100, "storage_error_bfloat16": 100,
}  # fmt: skip


def weight(m, n, dtype=torch.float32, decay=0.9, seed=0):
    generator = np.random.default_rng(seed)
    k = min(m, n)
    left, right = (np.linalg.qr(generator.standard_normal((size, k)))[0] for size in (m, n))
    return torch.from_numpy((left * decay ** np.arange(k)) @ right.T).to(dtype)


def assert_same(found, expected, tolerance):
    # Errors of all terms are rounding, of which the sum of squares takes the root.
    rounding = {"rel": tolerance, "abs": tolerance}
    assert len(found.measurements) == len(expected.measurements)
    for one, other in zip(found.measurements, expected.measurements, strict=True):
        assert (one.exact, one.starts.keys()) == (other.exact, other.starts.keys())
        for start, change in one.starts.items():
            assert dataclasses.astuple(change) == pytest.approx(dataclasses.astuple(other.starts[start]), **rounding)
        for field in dataclasses.fields(one.diagnostics):
            value, right = (getattr(each.diagnostics, field.name) for each in (one, other))
            if isinstance(right, float):
                loose = tolerance * LOOSE.get(field.name, 1)
                assert value == pytest.approx(right, rel=loose, abs=tolerance), (field.name, other.diagnostics)
            else:
                assert value == right, (field.name, other.diagnostics)
    assert found.curve_ranks == expected.curve_ranks
    assert found.needed == expected.needed
    assert found.recommendation.rank == expected.recommendation.rank
    assert found.svd_niter == expected.svd_niter
    spectra = [dataclasses.asdict(each.spectrum) for each in (found, expected)]
    for name, right in spectra[1].items():
        assert spectra[0][name] == (None if right is None else pytest.approx(right, **rounding)), name
    for pivoting, curve in expected.curves.items():
        # Sums of squares at all ranks at once are rounding below the root of eps.
        for name in ("error", "refit_error", "pivot"):
            values = [math.nan if each is None else each for each in getattr(found.curves[pivoting], name)]
            right = [math.nan if each is None else each for each in getattr(curve, name)]
            assert values == pytest.approx(right, rel=10 * tolerance, abs=1e-3 * tolerance**0.5, nan_ok=True), name


def options(mode, *pivoting, **others):
    return SurveyOptions(ranks=RANKS, mode=mode, pivoting=pivoting, threads=1, **others)


CASES = {
    "fast": (weight(48, 40), options("fast", "partial", "complete")),
    "fast, wide": (weight(30, 130), options("fast", "rook", "randomized")),
    "fast, float64": (weight(40, 24, torch.float64), options("fast", "partial", "complete")),
    "fast, asked for float64": (weight(40, 24), options("fast", "complete", dtype="float64")),
    "fast, small numbers": (weight(40, 24) * 2.0**-120, options("fast", "complete")),
    "fast, zero": (torch.zeros(12, 10), options("fast", "complete")),
    "cheap": (weight(60, 48), options("cheap", "partial", "rook")),
    "cheap, float64": (weight(40, 70, torch.float64), options("cheap", "complete")),
    "exact": (weight(30, 24), options("exact", "complete")),
    "exact, large enough for Lanczos": (weight(132, 130, decay=0.97), options("exact", "partial")),
    "exact, float64": (weight(20, 40, torch.float64), options("exact", "randomized")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_device_has_the_figures_of_the_cpu(case):
    W, asked = CASES[case]
    expected = analyze_matrix(W, asked)
    with pretending() as watched:
        found = analyze_matrix(W.to(DEVICE), asked)
    assert watched.operations > 100
    assert_same(found, expected, TOLERANCE[torch.float64 if asked.dtype else W.dtype])


@pytest.mark.parametrize("case", ["fast", "fast, wide", "fast, small numbers", "cheap", "exact"])
def test_a_device_without_float64_leaves_the_rest_to_the_cpu(case):
    W, asked = CASES[case]
    expected = analyze_matrix(W, asked)
    with pretending() as watched:
        found = analyze_matrix(W.to(NARROW), asked)
    assert watched.operations > 20
    assert_same(found, expected, TOLERANCE[W.dtype])


@pytest.mark.parametrize("device", [DEVICE, NARROW])
def test_sketches_of_fast_mode(monkeypatch, device):
    monkeypatch.setattr(module, "_WHOLE_SPECTRUM", 0)
    for W in (weight(90, 80), weight(80, 90, decay=0.7)):  # the second leaves less than float32 has digits of
        expected = analyze_matrix(W, options("fast", "partial"))
        with pretending():
            found = analyze_matrix(W.to(device), options("fast", "partial"))
        assert expected.svd_niter is not None
        assert_same(found, expected, TOLERANCE[W.dtype])


def test_what_the_tolerances_are_for_is_found():
    """A figure that is off by a thousandth is refused, so that equality here says something."""
    W, asked = CASES["fast"]
    expected = analyze_matrix(W, asked)
    with pytest.raises(AssertionError):
        assert_same(analyze_matrix(W * (1 + 1e-3), asked), expected, TOLERANCE[W.dtype])


def test_eigenvalues_stay_on_the_device():
    square = np.random.default_rng(0).standard_normal((150, 150))
    gram = torch.from_numpy(square @ square.T)
    with pretending():
        there = gram.to(DEVICE)
        found = largest_eigenvalue(there, backend_of(there))
        values, vectors = gram_directions(weight(50, 30).to(DEVICE), backend_of(there))
    assert found == pytest.approx(np.linalg.eigvalsh(gram.numpy())[-1], rel=1e-10)
    expected, _ = gram_directions(weight(50, 30), backend_of(gram))
    assert values == pytest.approx(expected, rel=1e-6)
    assert vectors.T @ vectors == pytest.approx(np.eye(30), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device", REAL)
def test_a_real_device_has_the_figures_of_the_cpu(case, device):
    W, asked = CASES[case]
    if device == "mps" and (W.dtype == torch.float64 or asked.dtype):
        pytest.skip("it has no float64")
    assert_same(analyze_matrix(W.to(device), asked), analyze_matrix(W, asked), TOLERANCE[W.dtype])

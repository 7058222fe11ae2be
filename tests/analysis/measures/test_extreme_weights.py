"""Weights whose numbers are at the ends of the range: measured like any other, in their own unit."""

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch

from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint, write_report
from lowrank_ldu.analysis.measures.matrix import analyze_matrix
from lowrank_ldu.analysis.report.chart import Series, draw_chart

IN_UNIT_OF_W = ("frobenius_norm", "spectral_norm", "smallest_pivot", "largest_pivot")


@pytest.fixture(scope="module")
def weight():
    return np.clip(np.random.default_rng(0).standard_normal((40, 30)), -1.9, 1.9)


@pytest.mark.parametrize("mode", ["exact", "cheap"])
@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [("float32", -120), ("float32", 110), ("float64", -1000), ("float64", -400), ("float64", 400), ("float64", 1015)],
)
def test_figures_are_those_of_the_same_weight_in_another_unit(weight, mode, dtype, exponent):
    options = SurveyOptions(ranks=(4,), mode=mode)
    # At the small end digits of the smallest entries are lost, of float32.
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    reference, analysis = (
        analyze_matrix(torch.from_numpy(np.ldexp(weight.astype(dtype), shift)), options) for shift in (0, exponent)
    )
    for name in ("stable_rank", "entropy", "effective_rank"):
        if (expected := getattr(reference.spectrum, name)) is not None:
            assert getattr(analysis.spectrum, name) == pytest.approx(expected, rel=tolerance)
    assert analysis.spectrum.energy == pytest.approx(reference.spectrum.energy, rel=tolerance)
    assert analysis.spectrum.largest == pytest.approx(math.ldexp(reference.spectrum.largest, exponent), rel=tolerance)
    assert [item.rank for item in analysis.needed] == [item.rank for item in reference.needed]
    assert analysis.recommendation.rank == reference.recommendation.rank
    assert analysis.svd_curve == pytest.approx(reference.svd_curve, rel=tolerance, abs=1e-7)
    for pivoting, curve in analysis.curves.items():
        expected = reference.curves[pivoting]
        assert curve.error == pytest.approx(expected.error, rel=tolerance, abs=1e-6)
        pivots = [math.ldexp(pivot, exponent) for pivot in expected.pivot]
        assert curve.pivot == pytest.approx(pivots, rel=tolerance, abs=0)
    for measured, expected in zip(analysis.measurements, reference.measurements, strict=True):
        figures, others = measured.diagnostics, expected.diagnostics
        for name in IN_UNIT_OF_W:
            if (value := getattr(others, name)) is not None:
                size = math.ldexp(value, exponent)
                assert getattr(figures, name) == pytest.approx(size, rel=tolerance, abs=0), name
        for name in ("frobenius_error", "refit_frobenius_error", "svd_frobenius_error", "condition_left"):
            assert getattr(figures, name) == pytest.approx(getattr(others, name), rel=tolerance, abs=1e-7), name
        for start in ("regular_ldu", "zeros", "constant_zmean"):
            if measured.starts:
                change, other = measured.starts[start], expected.starts[start]
                assert change.algorithm_1 == pytest.approx(other.algorithm_1, rel=tolerance)
                assert change.preserving == 0.0


def test_starts_keep_their_own_unit(weight):
    """Ones are ones whatever the weight is: beside a tiny weight they are enormous."""
    options = SurveyOptions(ranks=(4,))
    for exponent in (0, -400, 400):
        W = torch.from_numpy(np.ldexp(weight, exponent))
        (measured, *_) = analyze_matrix(W, options).measurements
        change = measured.starts["ones"].algorithm_1
        assert math.isfinite(change)
        if exponent == 400:  # nothing beside the weight
            assert change == pytest.approx(measured.starts["zeros"].algorithm_1)
        elif exponent == -400:
            assert change > 2.0**395


def test_a_norm_beyond_the_largest_number_is_infinite_and_no_figure_is_nan(weight):
    W = torch.from_numpy(np.ldexp(weight, 1022))
    analysis = analyze_matrix(W, SurveyOptions(ranks=(4,)))
    for measured in analysis.measurements:
        figures = dataclasses.asdict(measured.diagnostics)
        assert figures["frobenius_norm"] == math.inf
        assert not any(isinstance(value, float) and math.isnan(value) for value in figures.values())


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_weights_as_large_as_numbers_get_have_a_report(tmp_path):
    path = tmp_path / "large.npz"
    weight = np.random.default_rng(0).standard_normal((6, 6))
    np.savez(path, same=np.full((4, 4), 1e308), large=weight / 10 * 1e308, tiny=weight * 1e-310, plain=weight)
    analysis = analyze_checkpoint(path, SurveyOptions(ranks=(2,), threads=1))
    (tmp_path / "report").mkdir()
    write_report(analysis, tmp_path / "report")
    assert len(analysis.matrices) == 4
    assert (tmp_path / "report" / "report.html").exists()


def test_a_chart_leaves_out_what_is_at_the_end_of_the_numbers():
    figures = [1.0, 1.7e308, math.inf, 2.0]
    chart = draw_chart(("", "", ""), [1, 2, 3, 4], [Series("line", figures)], marked_ranks=[])
    assert chart.lines[0][1].count("M") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
def test_a_report_in_a_folder_whose_name_is_no_text(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(4))
    folder = tmp_path / "z\udcff"
    folder.mkdir()
    write_report(analyze_checkpoint(tmp_path / "a.npy", SurveyOptions(ranks=(2,), threads=1)), folder)
    assert (folder / "figures.parquet").exists()

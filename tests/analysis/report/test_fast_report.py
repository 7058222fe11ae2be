"""Reports of fast mode: what is not measured is missing in them, and nothing else."""

import pytest
import torch

from lowrank_ldu.analysis import Analysis, analyze, examine_claims
from lowrank_ldu.analysis.report.columns import columns
from lowrank_ldu.analysis.report.views import view_of
from lowrank_ldu.errors import OptionError
from lowrank_ldu.formatting import figure


@pytest.fixture(scope="module")
def analysis():
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"layers.{layer}.{name}.weight": torch.randn(40, 30, generator=generator)
        for layer in (0, 1)
        for name in ("q", "v")
    }
    return analyze(weights, ranks=(2, 8), mode="fast", threads=1)


def test_the_page_has_neither_times_nor_pissa(analysis, tmp_path):
    analysis.save(tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "PiSSA error" not in page
    assert "<h2>Time</h2>" not in page
    assert "near-best error" in page
    assert not list((tmp_path / "report" / "figures").glob("times*"))
    assert list((tmp_path / "report" / "figures").glob("error-partial*"))
    assert Analysis.load(tmp_path / "report") == analysis


def test_frames_have_what_was_measured(analysis):
    figures = analysis.figures
    assert set(figures["method"]) == {"ldu", "ldu_lowrank", "svd"}
    assert sorted(set(figures["rank"])) == [2, 8]
    assert figures["seconds"].isna().all()
    assert figures["frobenius_error"].notna().all()
    assert "fast" in repr(analysis)


def test_what_needs_times_or_the_full_rank_is_refused(analysis):
    with pytest.raises(OptionError, match="mode is 'fast' and times is None, so that nothing was timed; accepted"):
        analysis.plot_times()
    with pytest.raises(OptionError, match="mode is 'fast' and times is None; accepted: an analysis with mode='exact'"):
        examine_claims(analysis)
    assert analysis.plot_errors() is not None


def test_bounds_are_shown_as_such():
    weights = {"w": torch.randn(40, 30, generator=torch.Generator().manual_seed(0))}
    for mode, low, high in (("exact", "", ""), ("fast", "", ""), ("cheap", "≥ ", "≤ ")):
        analysis = analyze(weights, ranks=2, mode=mode, threads=1)
        ((_, matrix),) = analysis.matrices
        facts = dict(view_of(matrix, analysis).facts)
        assert facts["largest singular value"] == f"{low}{figure(matrix.spectrum.largest)}"
        shown = {column.label: column.cell(matrix).text for column in columns(analysis.options, 2)}
        assert facts["stable rank"] == shown["stable rank"] == f"{high}{figure(matrix.spectrum.stable_rank)}"

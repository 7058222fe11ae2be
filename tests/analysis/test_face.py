"""The face of the analysis refuses what it is given in the wrong place, and takes paths as text."""

import pytest

from lowrank_ldu.analysis import (
    Analysis,
    CheckpointComparison,
    Claims,
    CompareOptions,
    SurveyOptions,
    analyze,
    analyze_checkpoint,
    compare,
    compare_checkpoints,
    connect,
    examine_claims,
    write_claims,
    write_comparison,
    write_report,
)
from lowrank_ldu.analysis.report.panel import COLORS, MARKERS
from lowrank_ldu.decomposition import PIVOTING


@pytest.fixture(scope="module")
def analysis(checkpoint):
    return analyze_checkpoint(checkpoint, SurveyOptions(ranks=(3,), mode="exact", threads=1))


@pytest.fixture(scope="module")
def comparison(checkpoints):
    return compare_checkpoints(*checkpoints, CompareOptions(ranks=(3,), threads=1))


@pytest.mark.parametrize("options", [CompareOptions(ranks=(3,)), {"ranks": (3,)}, None])
def test_options_of_another_kind(checkpoint, options):
    with pytest.raises(TypeError, match=r"options is of type \w+; accepted: SurveyOptions"):
        analyze_checkpoint(checkpoint, options)


def test_results_of_another_kind(analysis, comparison, tmp_path):
    refused = {
        "ranks is given with an Analysis; accepted: with a source": lambda: examine_claims(analysis, ranks=3),
        "source is a int; accepted: a path": lambda: examine_claims(3),
        "analysis is of type CheckpointComparison; accepted: Analysis": lambda: write_report(comparison, tmp_path),
        "comparison is of type Analysis; accepted: CheckpointComparison": lambda: write_comparison(analysis, tmp_path),
        "analysis is of type Claims; accepted: Analysis": lambda: write_claims(
            analysis, examine_claims(analysis), tmp_path
        ),
    }
    for message, call in refused.items():
        with pytest.raises(TypeError, match=message):
            call()
    assert not list(tmp_path.iterdir())


def test_arguments_of_another_kind(checkpoint, analysis, comparison, tmp_path):
    out = tmp_path / "out"
    claims = examine_claims(analysis)
    refused = {
        "folder is a int; accepted: a path": [
            *(lambda result=result: result.save(3) for result in (analysis, comparison, claims)),
            *(lambda kind=kind: kind.load(3) for kind in (Analysis, CheckpointComparison, Claims)),
        ],
        # It would count as True.
        "overwrite is 'no'; accepted: True or False": [
            lambda result=result: result.save(out, overwrite="no") for result in (analysis, comparison, claims)
        ],
        "resume is 'no'; accepted: True or False": [
            lambda: analyze(checkpoint, journal=out, resume="no"),
            lambda: compare(checkpoint, checkpoint, journal=out, resume="no"),
            lambda: examine_claims(checkpoint, journal=out, resume="no"),
        ],
        "journal is a int; accepted: a path": [
            lambda: analyze(checkpoint, journal=3),
            lambda: compare(checkpoint, checkpoint, journal=3),
            lambda: examine_claims(checkpoint, journal=3),
        ],
        "engine is 'dask'; accepted: what lowrank_ldu.analysis.connect": [
            lambda: analyze(checkpoint, engine="dask"),
            lambda: examine_claims(checkpoint, engine="dask"),
        ],
        "journal, resume, engine is given with an Analysis; accepted: with a source": [
            lambda: examine_claims(analysis, journal=out, resume=True, engine="dask")
        ],
        "progress is 3; accepted: a callable": [
            lambda: analyze(checkpoint, progress=3, threads=1),
            lambda: compare(checkpoint, checkpoint, progress=3, threads=1),
        ],
        "scheduler is of type int; accepted: str": [lambda: connect(3).__enter__()],
        "rank is '3'; accepted: an integer": [lambda: analysis.matrices[0][1].at("ldu", "3", "partial")],
    }
    for message, calls in refused.items():
        for call in calls:
            with pytest.raises(TypeError, match=message):
                call()
    assert not out.exists()


def test_folders_as_text(analysis, comparison, tmp_path):
    assert isinstance(analysis, Analysis)
    write_report(analysis, str(tmp_path))
    write_comparison(comparison, str(tmp_path))
    write_claims(examine_claims(analysis), analysis, str(tmp_path))
    assert {"report.html", "compare.html", "claims.html"} < {file.name for file in tmp_path.iterdir()}


def test_every_strategy_has_a_color_and_a_marker():
    assert set(PIVOTING) <= COLORS.keys() & MARKERS.keys()

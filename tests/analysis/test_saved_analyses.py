"""What is saved reads back equal, and what is no such document is refused by name."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from lowrank_ldu.analysis import Analysis, DocumentError, analyze, analyze_checkpoint
from lowrank_ldu.analysis.document import ANALYSIS_FORMAT
from lowrank_ldu.analysis.report.page import analysis_json
from lowrank_ldu.diagnostics import Diagnostics
from lowrank_ldu.errors import OutputError

PAGE = Path(__file__).parents[2] / "docs" / "analysis.md"


@pytest.fixture(scope="module")
def analysis(checkpoint, options):
    return analyze_checkpoint(checkpoint, options)


@pytest.fixture(scope="module")
def saved(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "report"
    analysis.save(folder)
    return folder


def written(analysis, folder):
    path = folder / "analysis.json"
    path.write_text(analysis_json(analysis), encoding="utf-8")
    return path


def test_the_round_trip_is_exact(analysis, saved):
    assert Analysis.load(saved) == analysis
    assert Analysis.load(str(saved / "analysis.json")) == analysis
    # It is whole: it is saved again, bit for bit.
    assert analysis_json(Analysis.load(saved)) == (saved / "analysis.json").read_text(encoding="utf-8")


def test_a_loaded_analysis_has_the_same_frames(analysis, saved):
    loaded = Analysis.load(saved)
    for name in ("tensors", "figures", "curves", "targets"):
        assert getattr(loaded, name).equals(getattr(analysis, name))
    assert repr(loaded) == repr(analysis)


def test_a_randomized_one_reads_back_too(tmp_path, checkpoint):
    analysis = analyze(checkpoint, ranks=1, mode="cheap", select="tall|wide", dtype="float64", threads=1)
    assert Analysis.load(written(analysis, tmp_path)) == analysis


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "null", "=1", "a\ud800b", "\udcff", "<b>\x00", "größe", ""])
def test_texts_stay_texts(analysis, tmp_path, text):
    """Also those that stand for numbers that JSON lacks."""
    odd = dataclasses.replace(
        analysis,
        checkpoint=text,
        options=dataclasses.replace(analysis.options, select=text),
        results=[
            dataclasses.replace(result, name=text, dtype=text, reason=text if result.reason else None)
            for result in analysis.results
        ],
    )
    assert Analysis.load(written(odd, tmp_path)) == odd


@pytest.mark.parametrize("value", [math.inf, -math.inf, 5e-324, 1.7976931348623157e308, -0.0, 0.1, 1e22])
def test_figures_keep_every_bit(analysis, tmp_path, value):
    def changed(result):
        if result.analysis is None:
            return result
        matrix = result.analysis
        first = dataclasses.replace(matrix.measurements[0].diagnostics, condition_gram=value, spectral_error=None)
        measurements = [dataclasses.replace(matrix.measurements[0], diagnostics=first, seconds=value)]
        matrix = dataclasses.replace(matrix, measurements=measurements, svd_curve=[value, None], svd_niter=None)
        return dataclasses.replace(result, analysis=matrix, seconds=value)

    odd = dataclasses.replace(analysis, seconds=value, results=list(map(changed, analysis.results)))
    loaded = Analysis.load(written(odd, tmp_path))
    assert loaded == odd
    assert math.copysign(1, loaded.seconds) == math.copysign(1, value)


def test_nan_reads_back_as_nan(analysis, tmp_path):
    assert math.isnan(Analysis.load(written(dataclasses.replace(analysis, seconds=math.nan), tmp_path)).seconds)


def edit(change):
    def edited(text):
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edited


DAMAGED = {
    "empty": (lambda text: "", "cannot be read"),
    "cut off": (lambda text: text[: len(text) // 2], "cannot be read"),
    "twice": (lambda text: text.replace('"seconds":', '"seconds":1,"seconds":', 1), "the key 'seconds' is there twice"),
    "other": (lambda text: '{"format":"lowrank-ldu comparison 1"}', "is no document of an analysis"),
    "list": (lambda text: "[1]", "is no document of an analysis"),
    "newer": (lambda text: text.replace(ANALYSIS_FORMAT, "lowrank-ldu analysis 9"), "version 9; accepted: version 4"),
    "no seconds": (edit(lambda content: content.pop("seconds")), "is damaged"),
    "one more": (edit(lambda content: content.update(more=1)), "is damaged"),
    "words": (edit(lambda content: content.update(seconds="soon")), "is damaged"),
    "bad option": (edit(lambda content: content["options"].update(ranks=[0])), "is damaged"),
    "bad pattern": (edit(lambda content: content["options"].update(select="(")), "is damaged"),
    "other option": (edit(lambda content: content["options"].update(speed=1)), "is damaged"),
    "bad shape": (edit(lambda content: content["tensors"][0].update(shape="wide")), "is damaged"),
    "no tensors": (edit(lambda content: content.update(tensors=None)), "is damaged"),
    "bad figure": (
        edit(lambda content: next(filter(None, (t["analysis"] for t in content["tensors"]))).update(m=1.5)),
        "is damaged",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_documents_are_refused(saved, tmp_path, kind):
    change, message = DAMAGED[kind]
    path = tmp_path / "analysis.json"
    path.write_text(change((saved / "analysis.json").read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DocumentError, match=re.escape(message)) as error:
        Analysis.load(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DocumentError, match=r"analysis.json: no such file; accepted: a folder that Analysis.save"):
        Analysis.load(tmp_path)
    with pytest.raises(DocumentError, match="nowhere: no such file"):
        Analysis.load(tmp_path / "nowhere")


def test_folders_are_whole_or_absent(analysis, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.html").write_text("old")
    with pytest.raises(OutputError, match="is not empty; accepted: an empty or a new folder, or overwrite=True"):
        analysis.save(tmp_path / "full")
    analysis.save(tmp_path / "full", overwrite=True)
    assert (tmp_path / "full" / "report.html").read_text(encoding="utf-8") != "old"

    def broken(*_):
        raise RuntimeError("no more room")

    monkeypatch.setattr("lowrank_ldu.analysis.report.page.draw_plots", broken)
    with pytest.raises(RuntimeError, match="no more room"):
        analysis.save(tmp_path / "half")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def documented():
    """The keys of each object, from the page's table."""
    section = PAGE.read_text(encoding="utf-8").partition("### The document")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \|", section, re.MULTILINE)
    return {place: set(re.findall(r"`(\w+)`", keys)) for place, keys in rows}


def objects(value, place="."):
    """Every object of a document and its keys; places of lists and of tables by rank or name are one place."""
    if isinstance(value, list):
        for item in value:
            yield from objects(item, f"{place}[]")
    elif isinstance(value, dict):
        name = place.rpartition(".")[2]
        if name in {"energy", "energy_bound", "versions"}:
            return
        if name in {"curves", "starts"}:
            for item in value.values():
                yield from objects(item, f"{place}.*")
            return
        yield place, set(value)
        for key, item in value.items():
            yield from objects(item, f"{place.rstrip('.')}.{key}" if place != "." else key)


def test_the_page_has_the_keys_of_a_real_document(saved):
    content = json.loads((saved / "analysis.json").read_text(encoding="utf-8"))
    found = {}
    for place, keys in objects(content):
        short = place.replace("tensors[].analysis", "analysis").replace("analysis.measurements[]", "measurements[]")
        assert found.setdefault(short, keys) == keys
    page = documented()
    # What `Diagnostics` documents is not said again.
    assert found.pop("measurements[].diagnostics") == {field.name for field in dataclasses.fields(Diagnostics)}
    assert page == found
    assert f"`{ANALYSIS_FORMAT}`" in PAGE.read_text(encoding="utf-8")

"""What comparisons and claims save reads back equal, and is the same report when it is saved again."""

import dataclasses
import json
import math
import re

import pytest
import torch
from weights import weight

from lowrank_ldu.analysis import (
    Analysis,
    CheckpointComparison,
    Claims,
    DocumentError,
    analyze,
    compare,
    examine_claims,
    write_claims,
)
from lowrank_ldu.analysis.claims.report import claims_json
from lowrank_ldu.analysis.document import CLAIMS_FORMAT, COMPARISON_FORMAT, json_document, results_as_tensors
from lowrank_ldu.analysis.report.page import analysis_json

FILES = {CheckpointComparison: "compare.json", Claims: "claims.json"}
FRAMES = {CheckpointComparison: ("tensors", "figures"), Claims: ("findings", "figures")}
KINDS = pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def held(checkpoint, checkpoints):
    return {
        CheckpointComparison: compare(*checkpoints, ranks=(3, 8), threads=1),
        Claims: examine_claims(checkpoint, ranks=(3, 8), threads=1),
    }


@pytest.fixture(scope="module")
def saved(held, tmp_path_factory):
    folders = {kind: tmp_path_factory.mktemp("saved") / "report" for kind in held}
    for kind, results in held.items():
        results.save(folders[kind])
    return folders


def written(results, folder):
    """The document alone."""
    path = folder / FILES[type(results)]
    if isinstance(results, Claims):
        text = claims_json(results, results.analysis)
    else:
        text = json_document(COMPARISON_FORMAT, results_as_tensors(results))
    path.write_text(text, encoding="utf-8")
    return path


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@KINDS
def test_the_round_trip_is_exact(held, saved, kind):
    loaded = kind.load(saved[kind])
    assert loaded == held[kind]
    assert kind.load(str(saved[kind] / FILES[kind])) == loaded
    assert repr(loaded) == repr(held[kind])
    assert loaded._repr_html_() == held[kind]._repr_html_()
    for name in FRAMES[kind]:
        assert getattr(loaded, name).equals(getattr(held[kind], name))


@KINDS
def test_the_report_is_the_same_when_it_is_saved_again(saved, kind, tmp_path):
    """Page, plots, tables and document, in every byte."""
    kind.load(saved[kind]).save(tmp_path / "again")
    assert everything(tmp_path / "again") == everything(saved[kind])


def test_claims_come_with_their_analysis(saved):
    claims = Claims.load(saved[Claims])
    assert list(examine_claims(claims.analysis)) == list(claims)
    # Counts are shown in full, so they have to stay whole numbers.
    trained = next(finding for finding in claims[4].findings if finding.test == "trained")
    assert type(trained.cases[0].figures["numbers"]) is int


def test_claims_are_saved_as_they_are(held, tmp_path):
    """Also some of them, or of a caller's own making, with figures that JSON lacks and names that stand for such."""
    claim = held[Claims][1]
    finding = claim.findings[0]
    case = dataclasses.replace(finding.cases[0], tensor="inf", figures={"nan": math.inf, "count": 2}, holds=False)
    odd = dataclasses.replace(claim, name="=1", findings=[dataclasses.replace(finding, cases=[case], measured="nan")])
    write_claims([odd], held[Claims].analysis, tmp_path)
    loaded = Claims.load(tmp_path)
    assert list(loaded) == [odd]
    assert loaded[0].findings[0].verdict == "does not hold"


@pytest.mark.parametrize("text", ["inf", "nan", "null", "=1", "a\ud800b", "<b>\x00", "größe", ""])
def test_texts_stay_texts(held, tmp_path, text):
    """Also those that stand for numbers that JSON lacks."""
    comparison = held[CheckpointComparison]
    odd = dataclasses.replace(
        comparison,
        base=text,
        tuned=text,
        options=dataclasses.replace(comparison.options, select=text),
        results=[
            dataclasses.replace(result, name=text, base_dtype=text, reason=text if result.reason else None)
            for result in comparison.results
        ],
        prefixes=dataclasses.replace(comparison.prefixes, tuned=text),
        updates=True,
        seconds=math.inf,
    )
    assert CheckpointComparison.load(written(odd, tmp_path)) == odd


def test_an_update_of_nothing_reads_back(tmp_path):
    """Its relative norm is infinite."""
    comparison = compare({"w": torch.zeros(6, 5)}, {"w": weight(6, 5)}, ranks=2, threads=1)
    assert comparison.matrices[0][1].relative_norm == math.inf
    assert CheckpointComparison.load(written(comparison, tmp_path)) == comparison


def edit(change):
    def edited(text):
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edited


def finding_of(content):
    return content["claims"][1]["findings"][0]


def compared(content):
    return next(filter(None, (tensor["comparison"] for tensor in content["tensors"])))


COMPARISONS = {
    "empty": (lambda text: "", "cannot be read"),
    "cut off": (lambda text: text[: len(text) // 2], "cannot be read"),
    "other": (
        lambda text: f'{{"format":"{CLAIMS_FORMAT}"}}',
        "is no document of a comparison; accepted: a folder that",
    ),
    "list": (lambda text: "[1]", "is no document of a comparison"),
    "older": (lambda text: text.replace(COMPARISON_FORMAT, "lowrank-ldu comparison 1"), "1; accepted: version 2"),
    "newer": (lambda text: text.replace(COMPARISON_FORMAT, "lowrank-ldu comparison 9"), "9; accepted: version 2"),
    "no note": (edit(lambda content: content.pop("note")), "is damaged"),
    "no tuned": (edit(lambda content: content.pop("tuned")), "is damaged"),
    "one more": (edit(lambda content: content.update({"a\nb": 1, "results": []})), "is damaged (its keys are ["),
    "words": (edit(lambda content: content.update(seconds="soon")), "is damaged"),
    "no text": (edit(lambda content: content.update(base=3)), "is damaged"),
    "no flag": (edit(lambda content: content.update(updates=1)), "is damaged"),
    "other prefix": (edit(lambda content: content["prefixes"].update(both="a.")), "is damaged"),
    "survey option": (edit(lambda content: content["options"].update(mode="fast")), "is damaged"),
    "bad option": (edit(lambda content: content["options"].update(ranks=[0])), "is damaged"),
    "bad status": (edit(lambda content: content["tensors"][0].update(status="lost")), "is damaged"),
    "no tensors": (edit(lambda content: content.update(tensors=None)), "is damaged"),
    "nothing": (edit(lambda content: content.update(tensors=[])), "is damaged (no matrix in it was compared)"),
    "bad figure": (edit(lambda content: compared(content).update(m=1.5)), "is damaged"),
    "bad share": (edit(lambda content: compared(content)["svd"]["explained"].update(a=1.0)), "is damaged"),
}
CLAIMS = {
    "cut off": (lambda text: text[: len(text) // 2], "cannot be read"),
    "other": (lambda text: f'{{"format":"{COMPARISON_FORMAT}"}}', "is no document of claims; accepted: a folder that"),
    "older": (lambda text: text.replace(CLAIMS_FORMAT, "lowrank-ldu claims 1"), "1; accepted: version 2"),
    "other paper": (edit(lambda content: content.update(paper="arXiv 2106.09685")), "of another paper"),
    "no claims": (edit(lambda content: content.pop("claims")), "is damaged"),
    "null": (edit(lambda content: content.update(claims=None)), "is damaged"),
    "no claim": (edit(lambda content: content["claims"].append("holds")), "is damaged"),
    "no checkpoint": (edit(lambda content: content.pop("checkpoint")), "is damaged (its keys are ["),
    "another verdict": (edit(lambda content: finding_of(content).update(verdict="holds")), "do not follow from"),
    "another median": (edit(lambda content: finding_of(content)["medians"].update(left_defect=0.0)), "do not follow"),
    "a case less": (edit(lambda content: finding_of(content)["matrices"].pop(0)), "do not follow from"),
    "one more": (edit(lambda content: content["claims"][0].update(more=1)), "other fields"),
    "bad rank": (edit(lambda content: finding_of(content).update(rank="3")), "is damaged"),
    "bad figure": (edit(lambda content: finding_of(content)["matrices"][0]["figures"].update(left_defect=None)), "is"),
    "bad tensor": (edit(lambda content: content["tensors"][0].update(shape="wide")), "is damaged"),
}


@pytest.mark.parametrize(
    ("kind", "damage"), [(CheckpointComparison, each) for each in COMPARISONS] + [(Claims, each) for each in CLAIMS]
)
def test_damaged_documents_are_refused(saved, tmp_path, kind, damage):
    change, message = (COMPARISONS if kind is CheckpointComparison else CLAIMS)[damage]
    path = tmp_path / FILES[kind]
    text = (saved[kind] / FILES[kind]).read_text(encoding="utf-8")
    assert change(text) != text
    path.write_text(change(text), encoding="utf-8")
    with pytest.raises(DocumentError, match=re.escape(message)) as error:
        kind.load(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1
    assert "accepted: " in str(error.value) or "cannot be read" in str(error.value)


@KINDS
def test_what_is_not_there_is_named(tmp_path, kind):
    missing = f"{FILES[kind]}: no such file; accepted: a folder that {kind.__name__}.save wrote, or {FILES[kind]} in it"
    with pytest.raises(DocumentError, match=missing):
        kind.load(tmp_path)
    with pytest.raises(DocumentError, match="nowhere: no such file"):
        kind.load(tmp_path / "nowhere")


def test_a_report_of_another_kind_is_refused(saved, tmp_path):
    document = analysis_json(analyze({"w": weight(5, 4)}, threads=1))
    (tmp_path / "analysis.json").write_text(document, encoding="utf-8")
    with pytest.raises(DocumentError, match="analysis.json: is no document of a comparison"):
        CheckpointComparison.load(tmp_path / "analysis.json")
    with pytest.raises(DocumentError, match="claims.json: is no document of an analysis"):
        Analysis.load(saved[Claims] / "claims.json")
    with pytest.raises(DocumentError, match="compare.json: is no document of claims"):
        Claims.load(saved[CheckpointComparison] / "compare.json")

"""The report: whole or absent, valid, self-contained, and harmless whatever a checkpoint calls its tensors."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import pandas as pd
import pytest
import torch
from markupsafe import Markup
from pages import Page, assert_ids_are_unique, assert_loads_nothing
from safetensors.torch import save_file
from weights import HOSTILE, weight

from lowrank_ldu.analysis import NeededRank, SurveyOptions, analyze_checkpoint, headlines, write_report
from lowrank_ldu.analysis.report.page import analysis_json, render_report
from lowrank_ldu.analysis.report.plots import draw_plots
from lowrank_ldu.analysis.report.scope import least_error, needed_and_saved
from lowrank_ldu.errors import OutputError
from lowrank_ldu.files import check_target, whole_folder
from lowrank_ldu.formatting import cell, interval


@pytest.fixture(scope="module")
def analysis(checkpoint, options):
    return analyze_checkpoint(checkpoint, options)


@pytest.fixture(scope="module")
def folder(analysis, tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_report(analysis, path)
    return path


@pytest.fixture(scope="module")
def plots(analysis):
    return draw_plots(analysis)


def render(analysis, plots=None, sections=()):
    return render_report(analysis, plots or draw_plots(analysis), sections)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_names_that_are_not_unicode_are_written(analysis, tmp_path):
    tensors = [dataclasses.replace(tensor, name=f"layers.0.{tensor.name}\udc80") for tensor in analysis.results]
    write_report(dataclasses.replace(analysis, results=tensors), tmp_path)
    written = [f"layers.0.{tensor.name}\\udc80" for tensor in analysis.results]
    assert [row["tensor"] for row in read_csv(tmp_path / "tensors.csv")] == [cell(name) for name in written]
    assert pd.read_parquet(tmp_path / "tensors.parquet")["tensor"].tolist() == written
    assert written[-1] in "".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).text)


def test_every_plot_over_all_matrices_is_a_file(folder):
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {path.removesuffix(".png") for path in names if path.endswith(".png")} == {
        path.removesuffix(".svg") for path in names if path.endswith(".svg")
    }
    assert {"overview.png", "error-partial.png", "pivots-complete.svg", "condition-gram.png", "times.png"} <= names
    for path in (folder / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in (folder / "figures").glob("*.svg"):
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314  # our own


def test_each_matrix_has_a_view_that_the_table_opens(folder, analysis):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    count = len(analysis.matrices)
    identifiers = {value for name, value in page.attributes if name == "id"}
    links = [value for name, value in page.attributes if name == "href"]
    assert {f"matrix-{number}" for number in range(1, count + 1)} <= identifiers
    assert {link.removeprefix("#") for link in links} <= identifiers
    for number in range(1, count + 1):
        assert f"#matrix-{number}" in links


def test_json_is_strict_and_reads_back(folder, analysis):
    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((folder / "analysis.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["options"]["ranks"] == [3, 8]
    assert set(content["environment"]["versions"]) == {"lowrank_ldu", "torch", "numpy", "scipy", "python"}
    assert [tensor["name"] for tensor in content["tensors"]] == [tensor.name for tensor in analysis.results]
    (tall,) = (tensor["analysis"] for tensor in content["tensors"] if tensor["name"] == "tall")
    expected = next(matrix for tensor, matrix in analysis.matrices if tensor.name == "tall")
    assert tall["measurements"][0]["diagnostics"] == dataclasses.asdict(expected.measurements[0].diagnostics)


def test_json_writes_infinity_as_a_string(analysis):
    infinite = dataclasses.replace(analysis, seconds=math.inf)
    assert json.loads(analysis_json(infinite))["seconds"] == "inf"


def test_page_loads_nothing(folder):
    assert_loads_nothing(Page((folder / "report.html").read_text(encoding="utf-8")))


def test_ids_on_the_page_are_unique(folder):
    assert_ids_are_unique(Page((folder / "report.html").read_text(encoding="utf-8")))


def test_hostile_names_are_text(folder):
    source = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert page.elements.count("script") == 1  # the sorting of the table
    assert "\x1b" not in source
    assert HOSTILE.replace("\x1b", "\\x1b") in page.text


def test_hostile_path_is_text(analysis, plots):
    page = Page(render(dataclasses.replace(analysis, checkpoint="<b>dir</b>/<i>model</i>.pt"), plots))
    assert "b" not in page.elements
    assert "i" not in page.elements


def test_page_shows_what_was_skipped_and_on_what_machine(folder, analysis):
    text = "".join(Page((folder / "report.html").read_text(encoding="utf-8")).text)
    for tensor in analysis.skipped:
        assert tensor.reason in text
    assert analysis.environment.cpu in text
    assert torch.__version__ in text
    for sentence in headlines(analysis):
        assert sentence in text


def test_sections_come_before_the_analysis(analysis, plots):
    source = render(analysis, plots, [Markup("<p id='mine'>extra</p>")])
    assert source.index("id='mine'") < source.index("matrices analyzed")


@pytest.mark.parametrize(
    "state", [{"w": torch.zeros(3, 3)}, {"w": torch.eye(2)}, {"w": weight(5, 2), "v": weight(40, 40)}]
)
def test_page_of_degenerate_checkpoints(tmp_path, state):
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    pivoting = ("partial", "complete", "rook", "randomized")
    Page(render(analyze_checkpoint(path, SurveyOptions(ranks=(1, 9), pivoting=pivoting, threads=1))))


def test_headlines_count_what_the_figures_say(analysis):
    sentences = headlines(analysis)
    larger = [matrix for _, matrix in analysis.matrices if min(matrix.m, matrix.n) > 8]
    assert sentences[3].startswith(f"{len(larger)} of 5 matrices have a full rank above 8")
    worse = sum(matrix.at("ldu", 8, "partial").diagnostics.frobenius_error > 1 for matrix in larger)
    assert f"partial pivoting are worse than the zero matrix in {worse} of {len(larger)} matrices" in sentences[4]


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    path = tmp_path_factory.mktemp("cheap") / "model.safetensors"
    save_file({"layers.0.w": weight(60, 50), "layers.1.w": weight(50, 70, seed=1), "small": weight(9, 9)}, path)
    return analyze_checkpoint(path, SurveyOptions(ranks=(2, 4), mode="cheap", threads=1))


def test_cheap_page_gives_bounds(cheap):
    page = Page(render(cheap))
    text = "".join(page.text)
    assert "Cheap mode" in text
    assert "randomized or exact SVD" in text
    for _, matrix in cheap.matrices:
        low, high = least_error(matrix, 4)
        assert (low == high) == (matrix.svd_niter is None) == (matrix.m == 9)
        assert interval(low, high) in text
        assert matrix.recommendation.reason[1:] in text


def test_cheap_headlines_are_about_what_was_measured(cheap):
    sentences = headlines(cheap)
    assert not any("full rank the metric" in sentence for sentence in sentences)
    assert any(sentence.startswith("At rank 4 the metric") for sentence in sentences)
    assert any("randomized or exact SVD takes" in sentence for sentence in sentences)


def test_cheap_tables_hold_the_bounds(cheap, tmp_path):
    write_report(cheap, tmp_path)
    (row, *_) = read_csv(tmp_path / "tensors.csv")
    assert (row["svd_niter"], row["effective_rank"], row["recommended_rank"]) == ("2", "", "")
    (row,) = (
        row
        for row in read_csv(tmp_path / "figures.csv")
        if (row["tensor"], row["method"], row["rank"]) == ("layers.0.w", "svd", "4")
    )
    assert row["svd_is_bound"] == "True"
    assert float(row["energy"]) < float(row["energy_bound"])
    assert read_csv(tmp_path / "targets.csv")[0]["rank"] == ""
    frame = pd.read_parquet(tmp_path / "figures.parquet")
    estimated = frame["tensor"] != "small"
    assert frame["svd_spectral_error"].isna().tolist() == estimated.tolist()
    assert frame["svd_is_bound"].tolist() == estimated.tolist()


def test_ranks_for_targets_in_words(analysis):
    matrix = {tensor.name: matrix for tensor, matrix in analysis.matrices}["tall"]  # 30 x 12
    for rank, bound, numbers, words in (
        (3, False, 129, "3 (\N{MINUS SIGN}64%)"),
        (3, True, 129, "≤ 3 (\N{MINUS SIGN}64%)"),
        (11, False, 363, "11 (+1%)"),
        (12, False, 360, "12 (+0%)"),
        (None, False, None, "> 12"),
        (None, True, None, "unknown"),
    ):
        needed = NeededRank("svd", None, False, 0.5, rank, bound, numbers, 12)
        assert needed_and_saved(needed, matrix) == words


def test_headlines_at_full_rank_speak_of_rounding(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": weight(5, 5)}, path)
    sentences = headlines(analyze_checkpoint(path, SurveyOptions(ranks=(64,), threads=1)))
    assert sentences[3].startswith("At full rank LDU with partial pivoting reproduces the matrices")


def test_folder_appears_whole(tmp_path):
    target = tmp_path / "out"
    with whole_folder(target, overwrite=False) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_folder_vanishes_on_any_error(tmp_path, error):
    def fail():
        with whole_folder(tmp_path / "out", overwrite=False) as folder:
            (folder / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_came_while_the_work_was_done_is_not_replaced(tmp_path):
    target = tmp_path / "out"

    def work():
        with whole_folder(target, overwrite=False) as folder:
            (folder / "report.html").write_text("ours")
            target.mkdir()
            (target / "report.html").write_text("theirs")

    with pytest.raises(OutputError, match="not empty"):
        work()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (target / "report.html").read_text() == "theirs"


def test_places_that_can_be_no_folder_are_refused_before_the_work(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    for place, message in ((link, "is a link to what does not exist"), (Path("/"), "is the root")):
        with pytest.raises(OutputError, match=message):
            check_target(place, overwrite=True)


def test_folder_is_replaced_only_on_demand_and_other_files_stay(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    (target / "mine").write_text("mine")
    with pytest.raises(OutputError, match="not empty"), whole_folder(target, overwrite=False):
        pass
    with whole_folder(target, overwrite=True) as folder:
        (folder / "a").write_text("new")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "new", "mine": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_inside_are_merged(tmp_path):
    target = tmp_path / "out"
    (target / "inner").mkdir(parents=True)
    (target / "inner" / "a").write_text("old")
    (target / "inner" / "mine").write_text("mine")
    with whole_folder(target, overwrite=True) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("new")
        (folder / "other").mkdir()
        (folder / "other" / "b").write_text("b")
    found = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert found == {"inner/a": "new", "inner/mine": "mine", "other/b": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("there", "message"), [("inner", "is a file where"), ("z/file", "is a folder where")])
def test_nothing_is_replaced_where_a_file_meets_a_folder(tmp_path, there, message):
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    (target / there).parent.mkdir(exist_ok=True)
    (target / there).write_text("in the way")

    def write():
        with whole_folder(target, overwrite=True) as folder:
            (folder / "a").write_text("new")
            (folder / "inner").mkdir()
            (folder / "inner" / "b").write_text("b")
            (folder / "z").write_text("z")

    with pytest.raises(OutputError, match=message):
        write()
    assert (target / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_empty_folder_is_filled(tmp_path):
    with whole_folder(tmp_path, overwrite=False) as folder:
        (folder / "a").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for target, message in [("file", "not a folder"), ("missing/out", "does not exist"), ("x" * 300, "cannot be")]:
        with pytest.raises(OutputError, match=message), whole_folder(tmp_path / target, overwrite=True):
            pass

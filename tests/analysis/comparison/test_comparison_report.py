"""The report of a comparison: complete, valid, self-contained, and harmless whatever a tensor is called."""

import dataclasses
import json
from statistics import median

import pytest
import torch
from pages import Page, assert_ids_are_unique, assert_loads_nothing
from safetensors.torch import save_file
from weights import HOSTILE, weight

from lowrank_ldu.analysis import (
    CompareOptions,
    compare_checkpoints,
    comparison_headlines,
    summary_rows,
    write_comparison,
)
from lowrank_ldu.analysis.comparison.report import render_comparison
from lowrank_ldu.decomposition import PIVOTING


@pytest.fixture(scope="module")
def comparison(checkpoints):
    return compare_checkpoints(*checkpoints, CompareOptions(ranks=(3, 8), threads=1))


@pytest.fixture(scope="module")
def folder(comparison, tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_comparison(comparison, path)
    return path


def test_json_is_strict_and_holds_every_tensor(folder, comparison):
    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((folder / "compare.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["format"] == "lowrank-ldu comparison 1"
    assert [tensor["name"] for tensor in content["tensors"]] == [tensor.name for tensor in comparison.results]
    (tall,) = (tensor["comparison"] for tensor in content["tensors"] if tensor["name"] == "tall")
    expected = next(matrix for tensor, matrix in comparison.matrices if tensor.name == "tall")
    assert tall["ldu"]["partial"]["explained"] == {str(r): x for r, x in expected.ldu["partial"].explained.items()}


def test_page_loads_nothing_and_ids_are_unique(folder):
    page = Page((folder / "compare.html").read_text(encoding="utf-8"))
    assert_loads_nothing(page)
    assert_ids_are_unique(page)


def test_hostile_names_and_paths_are_text(comparison):
    source = render_comparison(
        dataclasses.replace(comparison, base="<b>dir</b>/<i>model</i>.pt", tuned="<u>\x1b[31m</u>")
    )
    page = Page(source)
    assert page.elements.count("script") == 1  # the sorting of the table
    assert not {"b", "i", "u"} & set(page.elements)
    assert "\x1b" not in source
    assert HOSTILE.replace("\x1b", "\\x1b") in page.text


def test_page_shows_what_was_found_and_left_out(folder, comparison):
    text = "".join(Page((folder / "compare.html").read_text(encoding="utf-8")).text)
    for tensor in comparison.others:
        assert tensor.reason in text
        assert tensor.status in text
    for sentence in comparison_headlines(comparison):
        assert sentence in text
    assert comparison.environment.cpu in text


def test_summary_is_over_the_matrices_that_the_rank_is_low_for(comparison):
    rows = {(row.place, row.method): row for row in summary_rows(comparison)}
    matrices = [matrix for _, matrix in comparison.matrices]
    larger = [matrix for matrix in matrices if matrix.full_rank > 8]
    row = rows["rank 8", "LDU, partial"]
    shares = [matrix.ldu["partial"].explained[8] for matrix in larger]
    assert row.matrices == len(larger) == 3
    assert (row.explained.least, row.explained.median, row.explained.greatest) == (
        min(shares),
        median(shares),
        max(shares),
    )
    assert row.numbers == 9
    assert rows["full rank", "SVD basis"].matrices == len(matrices)
    assert rows["rank 1", "LoRA, its least"].numbers == median(matrix.m + matrix.n for matrix in matrices)
    assert rows["rank 8", "LoRA"].numbers == median(8 * (matrix.m + matrix.n) for matrix in larger)


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        ({"w": torch.zeros(3, 3)}, {"w": torch.eye(3)}),
        ({"w": torch.eye(2)}, {"w": 2 * torch.eye(2)}),
        ({"w": weight(5, 2), "v": weight(40, 40)}, {"w": 2 * weight(5, 2), "v": weight(40, 40, seed=1)}),
    ],
)
def test_page_of_degenerate_checkpoints(tmp_path, base, tuned):
    paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_file(base, paths[0])
    save_file(tuned, paths[1])
    options = CompareOptions(ranks=(1, 9), pivoting=PIVOTING, threads=1)
    Page(render_comparison(compare_checkpoints(*paths, options)))

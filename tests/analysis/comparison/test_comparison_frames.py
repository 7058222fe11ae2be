"""Comparisons and claims as frames: documented columns, the figures of the objects, the same tables in the files."""

import csv
import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from pages import Page, assert_loads_nothing
from torch import nn
from weights import HOSTILE, weight

from lowrank_ldu.analysis import (
    CompareOptions,
    SurveyOptions,
    analyze,
    compare,
    compare_checkpoints,
    examine_claims,
    frame_columns,
)
from lowrank_ldu.errors import CheckpointError, OutputError
from lowrank_ldu.formatting import cell

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def comparison(checkpoints):
    return compare(*checkpoints, ranks=(3, 8), threads=1)


@pytest.fixture(scope="module")
def claims(checkpoint):
    return examine_claims(checkpoint, ranks=(3,), threads=1)


@pytest.mark.parametrize(
    ("of", "name", "page"),
    [
        ("comparison", "tensors", "compare.md"),
        ("comparison", "figures", "compare.md"),
        ("claims", "findings", "claims.md"),
        ("claims", "figures", "claims.md"),
    ],
)
def test_columns_and_dtypes_are_the_documented_ones(comparison, claims, of, name, page):
    held = comparison if of == "comparison" else claims
    empty = dataclasses.replace(held, **({"results": []} if of == "comparison" else {"claims": ()}))
    for frame in (getattr(held, name), getattr(empty, name)):
        assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == {
            column.name: column.dtype for column in frame_columns(name, of=of)
        }
    row = re.search(rf"^\| `{name}` \|(.*)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row[1])) - {"ldu", "svd_basis", "lora"} == set(getattr(held, name).columns)


def test_figures_are_those_of_the_matrices(comparison):
    rows = comparison.figures.set_index(["tensor", "method", "pivoting", "rank"]).sort_index()
    assert rows.index.is_unique
    count = 0
    for tensor, matrix in comparison.matrices:
        for pivoting, terms in matrix.ldu.items():
            for rank, explained in terms.explained.items():
                row = rows.loc[(tensor.name, "ldu", pivoting, rank)]
                assert (row["explained"], row["independent_terms"]) == (explained, terms.independent[rank])
                assert row["random_expected"] == matrix.random(terms.independent[rank])
                assert row["trained_numbers"] == rank + 1
                count += 1
        of_tensor = comparison.figures[comparison.figures["tensor"] == tensor.name]
        lora = of_tensor[of_tensor["method"] == "lora"].set_index("rank")
        assert lora["explained"].to_dict() == matrix.spectrum.energy
        assert (lora["trained_numbers"] == lora.index * matrix.least_lora).all()
        svd = of_tensor[of_tensor["method"] == "svd_basis"].set_index("rank")
        assert svd["explained"].to_dict() == matrix.svd.explained
        count += len(lora) + len(svd)
    assert count == len(rows)


def test_tensors_have_every_name_and_status(comparison):
    frame = comparison.tensors
    assert frame["tensor"].tolist() == [result.name for result in comparison.results]
    assert frame["status"].tolist() == [result.status for result in comparison.results]
    assert frame["relative_norm"].notna().sum() == len(comparison.matrices)
    half = frame.set_index("tensor").loc["half"]
    assert (half["base_dtype"], half["tuned_dtype"], half["base_shape"]) == ("bfloat16", "float32", "10x25")
    assert frame.set_index("tensor").loc["missing", "tuned_dtype"] is pd.NA


def test_saved_tables_are_the_frames(comparison, tmp_path):
    comparison.save(tmp_path / "out")
    with pytest.raises(OutputError, match="overwrite=True"):
        comparison.save(tmp_path / "out")
    for name, file in (("figures", "compare"), ("tensors", "compare-tensors")):
        frame = getattr(comparison, name)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / f"{file}.parquet"), frame)
        with (tmp_path / "out" / f"{file}.csv").open(encoding="utf-8", newline="") as read:
            rows = list(csv.DictReader(read))
        assert [row["tensor"] for row in rows] == [cell(tensor) for tensor in frame["tensor"]]
        assert list(rows[0]) == list(frame.columns)


def test_sources_may_be_mixed(tmp_path, checkpoints):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    tuned = {name: value + 0.1 * weight(*value.shape, seed=3) for name, value in base.state_dict().items()}
    torch.save(tuned, tmp_path / "tuned.pt")
    results = [compare(base, source, ranks=2, threads=1) for source in (tuned, tmp_path / "tuned.pt")]
    assert results[0].results == results[1].results
    assert [result.base for result in results] == ["Sequential in memory"] * 2
    options = CompareOptions(ranks=(3,), threads=1)
    assert compare(*checkpoints, options=options).results == compare_checkpoints(*checkpoints, options).results


def test_wrong_sources_and_options_are_named(checkpoints):
    with pytest.raises(TypeError, match="tuned is a int; accepted: a path"):
        compare(checkpoints[0], 3)
    with pytest.raises(TypeError, match=r"base\['w'\] is a int"):
        compare({"w": 1}, checkpoints[0])
    with pytest.raises(CheckpointError, match="hf://nobody/nothing"):
        compare("nobody/nothing", checkpoints[0])
    with pytest.raises(TypeError, match="'mode': comparisons have no such option"):
        compare(*checkpoints, mode="cheap")
    with pytest.raises(TypeError, match="options is given beside ranks"):
        compare(*checkpoints, options=CompareOptions(), ranks=3)
    with pytest.raises(TypeError, match="accepted: CompareOptions, or its fields by keyword"):
        compare(*checkpoints, options=SurveyOptions())


def test_claims_are_a_sequence_with_frames(claims, tmp_path):
    assert len(claims) == 5
    assert [claim.name for claim in claims] == claims.findings["claim"].drop_duplicates().tolist()
    cases = [case for claim in claims for finding in claim.findings for case in finding.cases]
    assert claims.findings["matrices"].sum() == len(cases)
    assert claims.findings["held"].sum() == sum(case.holds for case in cases)
    assert claims.figures["value"].tolist() == [value for case in cases for value in case.figures.values()]
    keys = ["claim", "test", "full_rank", "rank", "tensor", "figure"]
    assert not claims.figures.duplicated(keys).any()
    assert claims.findings["rank"].isna().any()
    claims.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"claims.json", "claims.html"}


def test_claims_of_an_analysis_are_its_own(checkpoint, claims):
    analysis = analyze(checkpoint, ranks=(3,), mode="exact", threads=1)
    examined = examine_claims(analysis)
    assert examined.analysis is analysis
    assert [claim.rule for claim in examined] == [claim.rule for claim in claims]


def test_representations_are_short_and_harmless(comparison, claims):
    for held, longest in ((comparison, 5), (claims, 7)):
        assert len(repr(held).splitlines()) <= longest
        assert len(repr(held)) < 1000
        page = Page(held._repr_html_())
        assert_loads_nothing(page)
        assert "script" not in page.elements
        assert "\x1b" not in repr(held) + held._repr_html_()
    assert HOSTILE.replace("\x1b", "\\x1b") in "".join(Page(comparison._repr_html_()).text)
    for inner in (comparison.results, comparison.matrices, [finding for claim in claims for finding in claim.findings]):
        assert all(len(repr(each)) < 400 for each in inner)
        assert "\x1b" not in repr(inner)
    assert "0 matrices changed" in repr(dataclasses.replace(comparison, results=[]))
    assert dataclasses.replace(comparison, results=[])._repr_html_()

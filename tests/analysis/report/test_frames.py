"""The frames: the documented columns and dtypes, a row for everything, and the same tables in the files."""

import csv
import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_ldu import Diagnostics
from lowrank_ldu.analysis import analyze_checkpoint, frame_columns
from lowrank_ldu.analysis.report.frame_columns import FRAME_COLUMNS
from lowrank_ldu.analysis.report.tables import write_tables
from lowrank_ldu.formatting import cell

FRAME_NAMES = list(FRAME_COLUMNS["analysis"])
PAGE = Path(__file__).parents[3] / "docs" / "analysis.md"


@pytest.fixture(scope="module")
def analysis(checkpoint, options):
    return analyze_checkpoint(checkpoint, options)


@pytest.fixture(scope="module")
def folder(analysis, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables")
    write_tables(analysis, path)
    return path


def matrix_of(analysis, name):
    return next(matrix for tensor, matrix in analysis.matrices if tensor.name == name)


@pytest.mark.parametrize("name", FRAME_NAMES)
def test_columns_and_dtypes_are_the_documented_ones(analysis, name):
    empty = dataclasses.replace(analysis, results=[])
    for frame in (getattr(analysis, name), getattr(empty, name)):
        assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == {
            column.name: column.dtype for column in frame_columns(name)
        }
        assert frame.attrs["units"] == {column.name: column.unit for column in frame_columns(name) if column.unit}
        assert frame.index.equals(pd.RangeIndex(len(frame)))


@pytest.mark.parametrize("name", FRAME_NAMES)
def test_the_page_has_every_column(name):
    """But for the fields of `Diagnostics`, to whose docstring it leads."""
    row = re.search(rf"^\| `{name}` \|(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", row[1])) - {"Diagnostics"}
    fields = {field.name for field in dataclasses.fields(Diagnostics)} if name == "figures" else set()
    assert named <= {column.name for column in frame_columns(name)}
    assert {column.name for column in frame_columns(name)} - named <= fields - {"method", "pivoting", "rank"}


def test_unknown_frames_are_refused():
    with pytest.raises(ValueError, match="name is 'measures'; accepted: 'tensors', 'figures', 'curves', 'targets'"):
        frame_columns("measures")
    with pytest.raises(ValueError, match="of is 'survey'; accepted: 'analysis', 'comparison', 'claims'"):
        frame_columns("figures", of="survey")


def test_figures_have_a_row_for_each_measurement(analysis):
    frame = analysis.figures
    measured = [(tensor, item) for tensor, matrix in analysis.matrices for item in matrix.measurements]
    rows = frame[frame["method"] != "svd"]
    assert len(rows) == len(measured)
    for (_, row), (tensor, item) in zip(rows.iterrows(), measured, strict=True):
        figures = item.diagnostics
        kind = {"pissa": "pissa_exact" if item.exact else "pissa_quick"}.get(figures.method, figures.method)
        assert (row["tensor"], row["method"], row["rank"]) == (tensor.name, kind, figures.rank)
        assert (row["pivoting"] if figures.pivoting else row["pivoting"] is pd.NA) in {figures.pivoting, True}
        assert row["frobenius_error"] == figures.frobenius_error
        assert row["condition_gram"] == figures.condition_gram
        assert row["near_ties"] is pd.NA if figures.near_ties is None else row["near_ties"] == figures.near_ties
        assert row["seconds"] == item.seconds


def test_svd_has_a_row_at_every_measured_rank(analysis):
    frame = analysis.figures
    for tensor, matrix in analysis.matrices:
        rows = frame[(frame["tensor"] == tensor.name) & (frame["method"] == "svd")]
        assert rows["rank"].tolist() == sorted({item.diagnostics.rank for item in matrix.measurements})
        for _, row in rows.iterrows():
            others = [item.diagnostics for item in matrix.measurements if item.diagnostics.rank == row["rank"]]
            assert row["frobenius_error"] == others[0].svd_frobenius_error
            assert row["spectral_error"] == others[0].svd_spectral_error
            assert row["energy"] == row["energy_bound"] == matrix.spectrum.energy[row["rank"]]
            assert row["seconds"] == matrix.svd_seconds
            assert math.isnan(row["refit_frobenius_error"])
            assert row["factor_flops"] is pd.NA
    # The least error of any matrix of that rank, whatever the method; float32 leaves about 1e-7 of it.
    least = frame[frame["method"] == "svd"].set_index(["tensor", "rank"])["frobenius_error"]
    others = frame[frame["method"] != "svd"].set_index(["tensor", "rank"])["frobenius_error"]
    assert (others - least.reindex(others.index) > -1e-6).all()


def test_a_key_is_there_once(analysis):
    assert not analysis.figures.duplicated(["tensor", "method", "pivoting", "rank"]).any()
    assert not analysis.curves.duplicated(["tensor", "method", "pivoting", "rank"]).any()
    assert not analysis.targets.duplicated(["tensor", "method", "pivoting", "refit", "target"]).any()
    assert not analysis.tensors["tensor"].duplicated().any()


def test_tensors_have_a_row_for_each_tensor(analysis):
    frame = analysis.tensors.set_index("tensor")
    assert frame.index.tolist() == [tensor.name for tensor in analysis.results]
    convolution = frame.loc["convolution"]
    assert (convolution["shape"], convolution["m"], convolution["n"]) == ("6x3x2x2", 6, 12)
    bias = frame.loc["bias"]
    assert (bool(bias["analyzed"]), bias["reason"]) == (False, "1-D: no matrix to factor")
    assert bias["recommended_method"] is bias["m"] is pd.NA
    assert math.isnan(bias["stable_rank"])
    advice, tall = matrix_of(analysis, "tall").recommendation, frame.loc["tall"]
    assert (tall["recommended_rank"], tall["recommendation"]) == (advice.rank, advice.reason)
    assert (tall["recommended_method"], tall["size_left"]) == (advice.method, advice.numbers / 360)
    assert tall["reason"] is tall["svd_niter"] is pd.NA


def test_curves_and_targets_are_those_of_the_matrices(analysis):
    matrix = matrix_of(analysis, "tall")
    curves = analysis.curves[analysis.curves["tensor"] == "tall"]
    for pivoting, curve in matrix.curves.items():
        rows = curves[(curves["method"] == "ldu") & (curves["pivoting"] == pivoting)]
        assert rows["rank"].tolist() == matrix.curve_ranks
        for column in ("error", "refit_error", "pivot"):
            assert rows[column].tolist() == getattr(curve, column)
    assert curves.loc[curves["method"] == "svd", "error"].tolist() == matrix.svd_curve
    targets = analysis.targets[analysis.targets["tensor"] == "tall"]
    found = [
        tuple(row[name] for name in ("method", "target", "refit", "rank", "rank_is_bound", "numbers"))
        for _, row in targets.iterrows()
    ]
    assert found == [
        (item.method, item.error, item.refit, item.rank, item.bound, item.numbers) for item in matrix.needed
    ]
    np.testing.assert_allclose(targets["saved"], [1 - item.numbers / 360 for item in matrix.needed])


def test_layers_and_modules_are_those_of_the_names(analysis):
    names = ["model.layers.3.mlp.up.weight", "embed.weight", "model.layers.12.mlp.up.weight"]
    results = [dataclasses.replace(analysis.matrices[0][0], name=name) for name in names]
    for name in ("tensors", "figures"):
        frame = getattr(dataclasses.replace(analysis, results=results), name).drop_duplicates("tensor")
        assert frame["layer"].tolist() == [3, pd.NA, 12]
        assert frame["module"].tolist() == ["mlp.up", "embed.weight", "mlp.up"]


def test_a_frame_may_be_changed(analysis):
    frame = analysis.tensors
    frame.loc[0, "tensor"] = "changed"
    frame.attrs["units"].clear()
    assert analysis.tensors.loc[0, "tensor"] == analysis.results[0].name
    assert analysis.tensors.attrs["units"]


@pytest.mark.parametrize("name", FRAME_NAMES)
def test_parquet_is_the_frame(analysis, folder, name):
    read, frame = pd.read_parquet(folder / f"{name}.parquet"), getattr(analysis, name)
    pd.testing.assert_frame_equal(read, frame)
    assert read.attrs == frame.attrs


@pytest.mark.parametrize("name", FRAME_NAMES)
def test_other_dtypes_are_a_readers_choice(analysis, folder, name):
    """As the page says: Arrow's types all over, null for every missing figure, and whole figures stay figures."""
    read = pd.read_parquet(folder / f"{name}.parquet", dtype_backend="pyarrow")
    assert all(isinstance(dtype, pd.ArrowDtype) for dtype in read.dtypes)
    assert read.isna().equals(getattr(analysis, name).isna())
    for column in frame_columns(name):
        assert (str(read.dtypes[column.name]) == "double[pyarrow]") == (column.dtype == "float64")


@pytest.mark.parametrize("name", FRAME_NAMES)
def test_csv_is_the_frame(analysis, folder, name):
    frame = getattr(analysis, name)
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(frame.columns)
    for column in frame.columns:
        for value, text in zip(frame[column].tolist(), (row[column] for row in rows), strict=True):
            # Text is made safe for spreadsheets; Parquet has it as it is.
            assert text == ("" if pd.isna(value) else str(cell(value)))


def test_infinite_figures_stay_infinite(analysis, folder):
    assert analysis.figures["condition_gram"].max() == math.inf  # the zero matrix
    assert pd.read_parquet(folder / "figures.parquet")["condition_gram"].max() == math.inf
    assert "inf" in (folder / "figures.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["=1+1", "a\ud800b", "a;=b", "\x1b[31m"])
def test_hostile_names_are_escaped_where_it_matters(analysis, tmp_path, text):
    held = dataclasses.replace(analysis, results=[dataclasses.replace(analysis.results[0], name=text)])
    write_tables(held, tmp_path)
    name = text.replace("\ud800", "\\ud800")
    assert held.tensors["tensor"].tolist() == pd.read_parquet(tmp_path / "tensors.parquet")["tensor"].tolist() == [name]
    with (tmp_path / "tensors.csv").open(encoding="utf-8", newline="") as file:
        assert [row["tensor"] for row in csv.DictReader(file)] == [cell(name)]

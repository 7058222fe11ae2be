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
from lowrank_ldu.analysis.comparison.heat_of_updates import heat_of_updates
from lowrank_ldu.analysis.comparison.plots import draw_comparison
from lowrank_ldu.analysis.comparison.report import render_comparison
from lowrank_ldu.analysis.comparison.scope import FEWEST, WHY_LEFT_OUT, sides_of
from lowrank_ldu.analysis.comparison.views import view_of_update
from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.formatting import figure


@pytest.fixture(scope="module")
def comparison(checkpoints):
    return compare_checkpoints(*checkpoints, CompareOptions(ranks=(3, 8), threads=1))


@pytest.fixture(scope="module")
def folder(comparison, tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_comparison(comparison, path)
    return path


def rendered(comparison):
    return render_comparison(comparison, draw_comparison(comparison))


def test_json_is_strict_and_holds_every_tensor(folder, comparison):
    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((folder / "compare.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["format"] == "lowrank-ldu comparison 2"
    assert [tensor["name"] for tensor in content["tensors"]] == [tensor.name for tensor in comparison.results]
    (tall,) = (tensor["comparison"] for tensor in content["tensors"] if tensor["name"] == "tall")
    expected = next(matrix for tensor, matrix in comparison.matrices if tensor.name == "tall")
    assert tall["ldu"]["partial"]["explained"] == {str(r): x for r, x in expected.ldu["partial"].explained.items()}


def test_page_loads_nothing_and_ids_are_unique(folder):
    page = Page((folder / "compare.html").read_text(encoding="utf-8"))
    assert_loads_nothing(page)
    assert_ids_are_unique(page)


def test_hostile_names_and_paths_are_text(comparison):
    source = rendered(dataclasses.replace(comparison, base="<b>dir</b>/<i>model</i>.pt", tuned="<u>\x1b[31m</u>"))
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
    Page(rendered(compare_checkpoints(*paths, options)))


@pytest.fixture(scope="module")
def layered(tmp_path_factory):
    """Two layers that are as wide as layers are, one matrix outside of them, and a head of two rows."""
    names = [f"layers.{layer}.{module}.weight" for layer in range(2) for module in ("query", "value")]
    base = {name: weight(20, 18, seed=seed) for seed, name in enumerate(names)}
    base |= {"embed.weight": weight(40, 18, seed=8), "head.weight": weight(2, 18, seed=9)}
    tuned = {
        name: W + (seed + 1) * 0.01 * weight(*W.shape, seed=20 + seed) for seed, (name, W) in enumerate(base.items())
    }
    tuned["head.weight"] = 50 * weight(2, 18, seed=30)
    folder = tmp_path_factory.mktemp("layered")
    paths = [folder / side / "model.safetensors" for side in ("before", "after")]
    for path, state in zip(paths, (base, tuned), strict=True):
        path.parent.mkdir()
        save_file(state, path)
    return compare_checkpoints(*paths, CompareOptions(ranks=(3, 8), pivoting="complete", threads=1))


def test_sides_are_named_so_that_they_are_told_apart(layered, tmp_path):
    assert sides_of(layered) == ("before/model.safetensors", "after/model.safetensors")
    assert sides_of(dataclasses.replace(layered, base="/a/one.pt", tuned="two.gguf")) == ("one.pt", "two.gguf")
    assert sides_of(dataclasses.replace(layered, base="x/m.pt", tuned="m.pt")) == ("x/m.pt", "m.pt")
    same = dataclasses.replace(layered, base="state dict in memory", tuned="state dict in memory")
    assert sides_of(same) == ("state dict in memory",) * 2
    assert "base before/model.safetensors and tuned after/model.safetensors" in repr(layered)
    plots = draw_comparison(layered)
    assert len(plots.panels) == 5
    for panel in plots.panels:
        (legend,) = panel.figure.legends
        assert legend.get_title().get_text() == "base: before/model.safetensors\ntuned: after/model.safetensors"
    hostile = dataclasses.replace(layered, base="$x_{<b>/m", tuned="$y$/m")
    panel = draw_comparison(hostile).overview
    assert "<b>" not in panel.to_svg()
    panel.save(tmp_path)


def test_every_table_says_which_side_is_which(folder, comparison):
    text = " ".join("".join(Page((folder / "compare.html").read_text(encoding="utf-8")).text).split())
    for words in (
        "in base base.safetensors",
        "in tuned tuned.safetensors",
        "dtype, base → tuned",
        "bfloat16 → float32",
    ):
        assert words in text
    assert text.count("Update from base base.safetensors to tuned tuned.safetensors") == len(comparison.matrices) + 1


def test_a_head_of_few_rows_is_listed_and_no_part_of_bands_and_extremes(layered):
    matrices = {tensor.name: matrix for tensor, matrix in layered.matrices}
    head = matrices.pop("head.weight")
    assert head.full_rank < FEWEST <= min(matrix.full_rank for matrix in matrices.values())
    rows = {(row.place, row.method): row for row in summary_rows(layered)}
    row = rows["rank 1", "LoRA, its least"]
    assert row.matrices == len(matrices)
    assert row.explained.greatest == max(matrix.spectrum.energy[1] for matrix in matrices.values())
    assert row.explained.greatest < head.spectrum.energy[1]
    assert all(row.matrices == len(matrices) for row in rows.values())
    first, second = comparison_headlines(layered)[:2]
    assert first.startswith("6 matrices were changed")
    assert "head.weight (2 x 18)" in second
    assert max(matrix.relative_norm for matrix in matrices.values()) < 0.1 < head.relative_norm
    assert WHY_LEFT_OUT in "".join(Page(rendered(layered)).text)
    for panel in draw_comparison(layered).shares[:2]:
        drawn = next(line for line in panel.axes.lines if line.get_label().startswith("LoRA"))
        assert drawn.get_ydata()[0] == pytest.approx(
            median(matrix.spectrum.energy[1] for matrix in matrices.values()), rel=1e-6
        )


def test_where_all_matrices_have_few_rows_all_count(comparison):
    assert all(matrix.full_rank < FEWEST for _, matrix in comparison.matrices)
    assert {row.matrices for row in summary_rows(comparison) if row.place == "full rank"} == {len(comparison.matrices)}
    assert WHY_LEFT_OUT not in rendered(comparison)
    assert not any("shorter" in sentence for sentence in comparison_headlines(comparison))


def test_rows_of_the_overview_are_in_the_order_of_layers(layered):
    axes = draw_comparison(layered).overview.axes
    marks = {marks.get_label(): marks.get_offsets() for marks in axes.collections if marks.get_label()[0] != "_"}
    matrices = {tensor.name: matrix for tensor, matrix in layered.matrices}
    order = ["embed", "layers.0.query", "layers.1.query", "layers.0.value", "layers.1.value"]
    drawn = marks["LDU of the base, complete"]
    assert [x for x, _ in drawn] == pytest.approx(
        [matrices[f"{name}.weight"].ldu["complete"].explained[8] for name in order]
    )
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)
    assert [text.get_text() for text in axes.texts] == ["embed.weight", "query (2)", "value (2)"]


def test_heat_map_has_every_matrix_at_its_place_and_its_colors_leave_heads_out(layered):
    heat = heat_of_updates(layered)
    norms = {tensor.name: matrix.relative_norm for tensor, matrix in layered.matrices}
    assert {key: cell.figure for key, cell in heat.cells.items()} == {
        (module, layer): norms[f"layers.{layer}.{module}.weight"] for module in ("query", "value") for layer in range(2)
    }
    assert {name: cell.figure for name, cell in heat.apart.items()} == {
        name: norms[name] for name in ("embed.weight", "head.weight")
    }
    # The head moved most of all, and the scale ends at the one that moved most of the others.
    assert heat.apart["head.weight"].at == heat.apart["embed.weight"].at == 0.0
    assert heat.cells["query", 0].at == 1.0
    ordered = sorted((*heat.cells.values(), heat.apart["embed.weight"]), key=lambda cell: cell.figure)
    places = [cell.at for cell in ordered]
    assert places == sorted(places, reverse=True)
    assert len(set(places)) == len(places)


def test_heat_of_weights_that_were_zero(tmp_path):
    base = {f"layers.{layer}.w": torch.zeros(3, 3) if layer else weight(3, 3) for layer in range(2)}
    tuned = {name: W + 0.1 * weight(3, 3, seed=1) for name, W in base.items()}
    paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    for path, state in zip(paths, (base, tuned), strict=True):
        save_file(state, path)
    found = compare_checkpoints(*paths, CompareOptions(ranks=(1,), threads=1))
    cells = heat_of_updates(found).cells
    assert (cells["w", 1].text, cells["w", 1].at) == ("∞", 0.0)
    write_comparison(found, tmp_path)


def test_every_matrix_has_a_view_with_its_own_figures(layered):
    page = Page(rendered(layered))
    identifiers = {value for name, value in page.attributes if name == "id"}
    links = {value[1:] for name, value in page.attributes if name == "href"}
    assert {f"matrix-{number}" for number in range(1, len(layered.matrices) + 1)} <= identifiers & links
    text = "".join(page.text)
    for _, matrix in layered.matrices:
        view = view_of_update(matrix, layered)
        assert dict(view.facts)["‖update‖_F / ‖base‖_F"] == figure(matrix.relative_norm)
        shares = dict(view.tables[0].rows)
        assert len(shares["LDU, complete"]) == len(view.tables[0].headings) - 1 == len(matrix.svd.explained)
        assert all(value in text for value in shares["LDU, complete"])
        for chart in view.charts:
            assert len(chart.lines) == len(view.legend)
    assert_ids_are_unique(page)
    assert_loads_nothing(page)


def test_plots_are_files_too(layered, tmp_path):
    write_comparison(layered, tmp_path)
    names = ("explained-linear", "explained-logarithmic", "explained-numbers", "heat-map", "overview")
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg")
    )
    for file in (tmp_path / "figures").glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    for file in (tmp_path / "figures").glob("*.svg"):
        assert "<svg" in file.read_text(encoding="utf-8")

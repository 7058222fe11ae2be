"""The heat map: every matrix once, in its place."""

import re

import pytest
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint
from lowrank_ldu.analysis.report.heat import heat_map, ink, shade
from lowrank_ldu.analysis.report.page import render_report
from lowrank_ldu.analysis.report.plots import draw_plots

HOSTILE_MODULE = 'model.layers.0.$a_{<b>"${}\u4e2d'


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    state = {"embed": weight(9, 7), "small": weight(2, 9), HOSTILE_MODULE: weight(8, 8, seed=5)}
    for layer in (0, 1, 10):
        state[f"model.layers.{layer}.up.weight"] = weight(12, 6, seed=layer)
    for expert in range(3):
        state[f"model.layers.1.experts.{expert}.down.weight"] = weight(6, 6, seed=expert)
    path = tmp_path_factory.mktemp("layers") / "model.safetensors"
    save_file(state, path)
    return analyze_checkpoint(path, SurveyOptions(ranks=(3,), threads=1))


def test_layers_and_modules(analysis):
    heat = heat_map(analysis)
    assert heat.layers == [0, 1, 10]
    assert set(heat.modules) == {"up", "experts.*.down", HOSTILE_MODULE.removeprefix("model.layers.0.")}
    assert list(heat.apart) == ["embed"]  # rank 3 is not low for "small"
    errors = {
        tensor.name: matrix.at("ldu", 3, "partial").diagnostics.frobenius_error for tensor, matrix in analysis.matrices
    }
    assert heat.cells["up", 10].error == errors["model.layers.10.up.weight"]
    experts = heat.cells["experts.*.down", 1]
    named = {name: error for name, error in errors.items() if "experts" in name}
    assert (experts.matrices, experts.error) == (3, sorted(named.values())[1])
    assert named[experts.worst] == max(named.values())
    assert ("experts.*.down", 0) not in heat.cells


def test_cells_open_their_matrix(analysis):
    source = render_report(analysis, draw_plots(analysis))
    numbers = {tensor.name: number for number, (tensor, _) in enumerate(analysis.matrices, 1)}
    table = source[source.index('<table class="heat"') :]
    table = table[: table.index("</table>")]
    assert set(re.findall(r"#matrix-(\d+)", table)) == {
        str(numbers[cell.worst]) for cell in heat_map(analysis).cells.values()
    }


def test_names_are_no_mathematics_and_no_markup(analysis):
    plots = draw_plots(analysis)
    for panel in (*plots.overview, *plots.heat):
        assert "<b>" not in panel.to_svg()


def test_no_layers_no_heat_map(tmp_path):
    save_file({"w": weight(5, 4)}, tmp_path / "model.safetensors")
    analysis = analyze_checkpoint(tmp_path / "model.safetensors", SurveyOptions(ranks=(2,), threads=1))
    plots = draw_plots(analysis)
    assert plots.heat == []
    assert "Outside layers" in render_report(analysis, plots)


def test_red_is_worse_than_zero():
    def red_over_blue(error):
        color = shade(error)
        return int(color[1:3], 16) - int(color[5:7], 16)

    assert red_over_blue(0.5) < red_over_blue(0.9) < red_over_blue(1.1) < red_over_blue(2.0)
    assert (ink(1.0), ink(4.0), ink(0.0)) == ("#222", "#fff", "#fff")

"""The heat map: every matrix once, in its place."""

import re

import pytest
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint
from lowrank_ldu.analysis.report.advice import advice_of
from lowrank_ldu.analysis.report.heat import ink, shade
from lowrank_ldu.analysis.report.heat_of_advice import LEFT, heat_map
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
    assert list(heat.apart) == ["embed", "small"]
    shares = {}
    for tensor, matrix in analysis.matrices:
        found = advice_of(matrix)
        # Packed factors and their pivots, both factors of the SVD, or the weight.
        sizes = matrix.m + matrix.n
        left = found.rank and found.rank * (sizes + 1 if found.method == "svd" else sizes - found.rank + 2)
        assert found.share == (left / matrix.size if left else 1)
        shares[tensor.name] = found.share
    assert len(set(shares.values())) > 2
    assert heat.cells["up", 10].figure == shares["model.layers.10.up.weight"]
    experts = heat.cells["experts.*.down", 1]
    named = {name: share for name, share in shares.items() if "experts" in name}
    assert (experts.matrices, experts.figure) == (3, sorted(named.values())[1])
    assert named[experts.most] == max(named.values())
    assert ("experts.*.down", 0) not in heat.cells


def test_cells_open_their_matrix(analysis):
    source = render_report(analysis, draw_plots(analysis))
    numbers = {tensor.name: number for number, (tensor, _) in enumerate(analysis.matrices, 1)}
    table = source[source.index('<table class="heat"') :]
    table = table[: table.index("</table>")]
    assert set(re.findall(r"#matrix-(\d+)", table)) == {
        str(numbers[cell.most]) for cell in heat_map(analysis).cells.values()
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


def test_dark_is_what_saves_most():
    def light(share):
        color = shade(share)
        return sum(int(color[place : place + 2], 16) for place in (1, 3, 5))

    assert light(0.0) < light(0.3) < light(0.6) < light(0.9) < light(1.0)
    assert (ink(0.0), ink(0.9), ink(1.0)) == ("#fff", "#222", "#222")
    assert LEFT.write(0.494) == "49%"
    assert LEFT.write(1.0) == "keep"

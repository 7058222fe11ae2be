"""Plots on axes of a caller: the report's own, drawn by the same code; and what a shell or a notebook shows."""

import dataclasses
import inspect
import math

import pytest
from axes import assert_same, drawn
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from pages import Page, assert_loads_nothing
from safetensors.torch import save_file
from weights import HOSTILE, weight

from lowrank_ldu.analysis import Analysis, analyze
from lowrank_ldu.analysis.report.plots import draw_plots

PLOTS = sorted(name for name in dir(Analysis) if name.startswith("plot_"))
OF_THE_REPORT = {
    "plot_overview": lambda plots: plots.overview[0],
    "plot_heat_map": lambda plots: plots.heat[0],
    "plot_errors": lambda plots: plots.errors[0],
    "plot_pivots": lambda plots: plots.pivots[0],
    "plot_conditioning": lambda plots: plots.conditioning[2],
    "plot_times": lambda plots: plots.times[0],
    "plot_speeds": lambda plots: plots.times[1],
}


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    state = {f"layers.{layer}.{HOSTILE}": weight(9, 7, seed=layer) for layer in range(3)}
    path = tmp_path_factory.mktemp("axes") / "<b>model.safetensors"
    save_file({**state, "bias": weight(3), "embed": weight(8, 6)}, path)
    return analyze(path, ranks=(2, 4), mode="exact", threads=1)


@pytest.fixture(autouse=True)
def figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.mark.parametrize("name", PLOTS)
def test_what_is_drawn_is_what_the_report_has(analysis, name):
    axes = plt.figure().subplots()
    assert getattr(analysis, name)(axes) is axes
    assert_same(drawn(axes), drawn(OF_THE_REPORT[name](draw_plots(analysis)).axes))
    axes.figure.canvas.draw()


def test_without_axes_there_is_a_new_figure(analysis):
    before = plt.get_fignums()
    axes = analysis.plot_errors()
    assert isinstance(axes, Axes)
    assert set(plt.get_fignums()) - set(before) == {axes.figure.number}
    axes.figure.canvas.draw()


def test_nothing_but_the_given_axes_is_touched(analysis):
    figure, (left, right) = plt.subplots(1, 2)
    before = drawn(right)
    for name in PLOTS:
        getattr(analysis, name)(left)
        left.clear()
    assert_same(drawn(right), before)
    assert len(figure.get_axes()) == 3  # and the bar of the heat map's colors
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("name", PLOTS)
def test_other_places_are_refused(analysis, name):
    with pytest.raises(TypeError, match="ax is of type Figure; accepted: matplotlib.axes.Axes, or None for a new"):
        getattr(analysis, name)(plt.figure())


@pytest.mark.parametrize("name", PLOTS)
def test_an_analysis_without_matrices_has_no_plots(analysis, name):
    with pytest.raises(ValueError, match="the analysis has no matrices"):
        getattr(dataclasses.replace(analysis, results=[]), name)()
    assert plt.get_fignums() == []


def test_a_mode_without_times_leaves_no_empty_figure():
    fast = analyze({"w": weight(12, 10)}, ranks=2, mode="fast", threads=1)
    for name in ("plot_times", "plot_speeds"):
        with pytest.raises(ValueError, match="so that nothing was timed"):
            getattr(fast, name)()
    assert plt.get_fignums() == []
    assert len(repr(fast).splitlines()) <= 5
    assert fast._repr_html_()


def test_choices_are_named(analysis):
    with pytest.raises(ValueError, match="pivoting is 'rook'; accepted: 'partial', 'complete'"):
        analysis.plot_errors(pivoting="rook")
    with pytest.raises(ValueError, match="factor is 'L'; accepted: 'left', 'right', 'gram'"):
        analysis.plot_conditioning(factor="L")
    with pytest.raises(ValueError, match="no matrix has a layer in its name"):
        analyze({"w": weight(5, 4)}, threads=1).plot_heat_map()
    assert "complete" in analysis.plot_pivots(pivoting="complete").get_title(loc="left")


def test_representations_are_a_few_lines(analysis):
    lines = repr(analysis).splitlines()
    assert len(lines) <= 5
    assert all(len(line) <= 200 for line in lines)
    assert lines[0].startswith("Analysis of <b>model.safetensors: 4 matrices, 1 other, ")
    assert "ranks 2, 4 and full; partial, complete pivoting; mode exact" in lines[1]
    assert str(analysis) == repr(analysis)
    for result in analysis.results:
        assert len(repr(result)) < 600
        assert "\x1b" not in repr(result)
    assert "1-D: no matrix to factor" in repr(analysis.skipped[0])


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0, 0.0])
def test_representations_of_anything_are_no_error(analysis, seconds):
    odd = dataclasses.replace(analysis, checkpoint="a\x1b\nb", seconds=seconds, results=[])
    assert len(repr(odd).splitlines()) == 3
    assert "\x1b" not in repr(odd) + odd._repr_html_()
    assert "0 matrices" in repr(odd)


def test_html_is_compact_and_harmless(analysis):
    source = analysis._repr_html_()
    page = Page(source)
    assert_loads_nothing(page)
    assert not {"script", "b"} & set(page.elements)
    assert "\x1b" not in source
    text = "".join(page.text)
    assert HOSTILE.replace("\x1b", "\\x1b") in text
    assert "1 tensors that were not analyzed are in .tensors." in text
    many = dataclasses.replace(analysis, results=analysis.results * 30)
    assert many._repr_html_().count("<tr>") == 21
    assert f"{4 * 30 - 20} more matrices" in many._repr_html_()


def test_plots_have_documentation():
    for name in PLOTS:
        assert list(inspect.signature(getattr(Analysis, name)).parameters)[1] == "ax"
        assert inspect.getdoc(getattr(Analysis, name))
    assert set(PLOTS) == OF_THE_REPORT.keys()

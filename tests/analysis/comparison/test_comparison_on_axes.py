"""A comparison's plots on axes of a caller: the report's own, drawn by the same code."""

import dataclasses
import inspect

import pytest
from axes import assert_same, drawn
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from weights import HOSTILE, weight

from lowrank_ldu.analysis import CheckpointComparison, compare
from lowrank_ldu.analysis.comparison.plots import draw_comparison

PLOTS = sorted(name for name in dir(CheckpointComparison) if name.startswith("plot_"))
OF_THE_REPORT = {
    "plot_overview": lambda plots: plots.overview,
    "plot_heat_map": lambda plots: plots.heat,
    "plot_shares": lambda plots: plots.shares[0],
    "plot_trained_numbers": lambda plots: plots.shares[2],
}


@pytest.fixture(scope="module")
def comparison():
    base = {f"layers.{layer}.{HOSTILE}": weight(9, 7, seed=layer) for layer in range(3)} | {"embed": weight(8, 6)}
    return compare(base, {name: values + weight(*values.shape, seed=9) for name, values in base.items()}, ranks=(2, 4))


@pytest.fixture(autouse=True)
def figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.mark.parametrize("name", PLOTS)
def test_what_is_drawn_is_what_the_report_has(comparison, name):
    axes = plt.figure().subplots()
    assert getattr(comparison, name)(axes) is axes
    assert_same(drawn(axes), drawn(OF_THE_REPORT[name](draw_comparison(comparison)).axes))
    axes.figure.canvas.draw()


def test_shares_on_a_logarithmic_axis(comparison):
    axes = comparison.plot_shares(logarithmic=True)
    assert axes.get_yscale() == "log"
    assert_same(drawn(axes), drawn(draw_comparison(comparison).shares[1].axes))
    assert comparison.plot_shares().get_yscale() == "linear"
    with pytest.raises(TypeError, match="logarithmic is 'yes'; accepted: True or False"):
        comparison.plot_shares(logarithmic="yes")


@pytest.mark.parametrize("name", PLOTS)
def test_without_axes_there_is_a_new_figure_that_names_the_sides(comparison, name):
    axes = getattr(comparison, name)()
    assert isinstance(axes, Axes)
    assert plt.get_fignums() == [axes.figure.number]
    (legend,) = axes.figure.legends
    assert legend.get_title().get_text().startswith("base: ")
    axes.figure.canvas.draw()


def test_nothing_but_the_given_axes_is_touched(comparison):
    figure, (left, right) = plt.subplots(1, 2)
    before = drawn(right)
    for name in PLOTS:
        getattr(comparison, name)(left)
        # A legend without entries would hide cells of the heat map.
        assert (left.get_legend() is None) == (name == "plot_heat_map")
        left.clear()
    assert_same(drawn(right), before)
    assert len(figure.get_axes()) == 3  # and the bar of the heat map's colors
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("name", PLOTS)
def test_other_places_are_refused(comparison, name):
    with pytest.raises(TypeError, match="ax is of type Figure; accepted: matplotlib.axes.Axes, or None for a new"):
        getattr(comparison, name)(plt.figure())


@pytest.mark.parametrize("name", PLOTS)
def test_a_comparison_without_matrices_has_no_plots(comparison, name):
    with pytest.raises(ValueError, match="the comparison has no matrices"):
        getattr(dataclasses.replace(comparison, results=[]), name)()
    assert plt.get_fignums() == []


def test_names_without_layers_have_no_heat_map():
    with pytest.raises(ValueError, match="no matrix has a layer in its name; accepted: names such as"):
        compare({"w": weight(5, 4)}, {"w": weight(5, 4, seed=1)}, threads=1).plot_heat_map()
    assert plt.get_fignums() == []


def test_plots_have_documentation():
    for name in PLOTS:
        assert list(inspect.signature(getattr(CheckpointComparison, name)).parameters)[1] == "ax"
        assert inspect.getdoc(getattr(CheckpointComparison, name))
    assert set(PLOTS) == OF_THE_REPORT.keys()

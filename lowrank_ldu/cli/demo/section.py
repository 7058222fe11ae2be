"""The comparison as a section of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowrank_ldu.analysis.report.plot_panel import Panel
from lowrank_ldu.cli.demo.summary import COLUMNS, comparison_rows, sentences

if TYPE_CHECKING:
    from lowrank_ldu.cli.demo.round_trip import RoundTrip
    from lowrank_ldu.finetune import Comparison

# Okabe and Ito's palette, in the order of the methods.
_COLOURS = ("#222222", "#D55E00", "#C78500", "#0072B2", "#009E73", "#B5488A")
_MARKERS = ("x", "o", "v", "s", "^", "D")


def comparison_section(comparison: Comparison, saved: RoundTrip) -> Markup:
    """Return the table, a plot of accuracy against trained parameters, and what was saved, as HTML."""
    environment = Environment(
        loader=PackageLoader("lowrank_ldu.cli.demo"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("comparison.html.j2").render(
        columns=COLUMNS,
        rows=comparison_rows(comparison),
        sentences=sentences(comparison, saved),
        plot=Markup(_accuracy_panel(comparison)),  # noqa: S704  # drawn from numbers and the methods' names
    )
    return Markup(html)  # noqa: S704  # escaped by the template


def _accuracy_panel(comparison: Comparison) -> str:
    panel = Panel(
        "accuracy", "Accuracy against trained parameters", "trained parameters, with the head", "test accuracy (%)"
    )
    for place, result in enumerate(comparison.results):
        panel.axes.errorbar(
            [result.total_parameters],
            [100 * result.mean_accuracy],
            yerr=[100 * result.standard_error],
            color=_COLOURS[place % len(_COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
            capsize=3,
            linestyle="none",
            label=result.method.name,
        )
    panel.make_logarithmic(x=True)
    panel.add_legend()
    return panel.to_svg()

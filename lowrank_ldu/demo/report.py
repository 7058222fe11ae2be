"""Report a comparison in a table, sentences and a section."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowrank_ldu.analysis import Panel
from lowrank_ldu.formatting import duration

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_ldu.demo import Comparison, MethodResult
    from lowrank_ldu.demo.round_trip import RoundTrip

# Okabe and Ito's palette, in the order of the methods.
_COLORS = ("#222222", "#D55E00", "#C78500", "#0072B2", "#009E73", "#B5488A")
_MARKERS = ("x", "o", "v", "s", "^", "D")


def comparison_section(comparison: Comparison, saved: RoundTrip) -> Markup:
    """Return the comparison as a section of HTML.

    The table, a plot of accuracy against trained parameters, and what was saved.
    """
    environment = Environment(
        loader=PackageLoader("lowrank_ldu.demo"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("comparison.html.j2").render(
        columns=HEADINGS,
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
            color=_COLORS[place % len(_COLORS)],
            marker=_MARKERS[place % len(_MARKERS)],
            capsize=3,
            linestyle="none",
            label=result.method.name,
        )
    panel.make_logarithmic(x=True)
    panel.add_legend()
    return panel.to_svg()


def percent(share: float) -> str:
    """Return a share in per cent, with one decimal.

    A dash where there is none.
    """
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def comparison_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the cells of the table, a row a method."""
    return [
        (
            result.method.name,
            f"{result.method.learning_rate:g}",
            f"{result.adapter_parameters:,}",
            f"{result.total_parameters:,}",
            f"{percent(result.mean_accuracy)} ± {percent(result.standard_error)}",
            percent(result.standard_deviation),
            duration(result.seconds),
        )
        for result in comparison.results
    ]


# Short, so that the table fits 80 columns.
HEADINGS = ("method", "lr", "adapter", "+ head", "accuracy %", "seed sd", "time")


def sentences(comparison: Comparison, saved: RoundTrip) -> list[str]:
    """Return the settings and results in sentences."""
    settings, start = comparison.settings, comparison.pretrained
    ranking = sorted(comparison.results, key=lambda result: -result.mean_accuracy)
    return [
        (
            f"Pre-trained on {len(comparison.split.pretraining)} upright digits: {percent(start.upright_accuracy)} % "
            f"of the upright test images are right, and {percent(start.shifted_accuracy)} % of the same images in the "
            f"rendering of the new task ({settings.shift})."
        ),
        (
            f"Every method: {len(comparison.split.training)} other images, {settings.fine_tuning.epochs} epochs, "
            f"{len(settings.seeds)} seeds, the same batches; accuracy on {ranking[0].test_images} test images after "
            "the last step. The learning rates were chosen on validation images."
        ),
        f"From most to least accurate: {', '.join(_brief(result) for result in ranking)}.",
        f"{saved.method}: {saved.parameters}.",
        (
            f"Adapter with head on disk: {saved.adapter_bytes:,} bytes, base: {saved.base_bytes:,}. Reloaded onto a "
            f"fresh base the largest difference of a logit is {saved.reloaded_difference:.1e} of the largest one, "
            f"merged {saved.merged_difference:.1e}; accuracy trained, reloaded, merged: "
            f"{', '.join(percent(share) for share in saved.accuracies)} %."
        ),
    ]


def _brief(result: MethodResult) -> str:
    return f"{result.method.name} {percent(result.mean_accuracy)}"


def write_results(comparison: Comparison, path: Path) -> None:
    """Write a row for each method and seed."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "method", "learning_rate", "adapter_parameters", "total_parameters", "seed", "initial_accuracy",
                "accuracy", "test_images", "seconds",
            ]
        )  # fmt: skip
        for result in comparison.results:
            for seed, run in zip(comparison.settings.seeds, result.runs, strict=True):
                writer.writerow(
                    [
                        result.method.name, result.method.learning_rate, result.adapter_parameters,
                        result.total_parameters, seed, run.initial_accuracy, run.accuracy, result.test_images,
                        run.seconds,
                    ]
                )  # fmt: skip

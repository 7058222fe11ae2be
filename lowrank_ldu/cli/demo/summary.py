"""What the demonstration prints and writes as a table."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING

from rich.table import Table

from lowrank_ldu.analysis.report.formatting import duration
from lowrank_ldu.analysis.report.headlines import headlines
from lowrank_ldu.cli.console import SafeConsole, say

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_ldu.analysis.run import Analysis
    from lowrank_ldu.cli.demo.round_trip import RoundTrip
    from lowrank_ldu.finetune import Comparison, MethodResult

_HEADLINES_SHOWN = 4


def percent(share: float) -> str:
    """Return a share in per cent, with one decimal; a dash where there is none."""
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
COLUMNS = ("method", "lr", "adapter", "+ head", "accuracy %", "seed sd", "time")


def sentences(comparison: Comparison, saved: RoundTrip) -> list[str]:
    """Say what was run and what came of it."""
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


def write_comparison(comparison: Comparison, path: Path) -> None:
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


def show_comparison(comparison: Comparison, saved: RoundTrip, analysis: Analysis, out: Path) -> None:
    """Write the table and the sentences to stdout."""
    console = SafeConsole()
    told = sentences(comparison, saved)
    console.print(told[0])
    console.print(told[1])
    table = Table()
    for place, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="right" if place else "left")
    for row in comparison_rows(comparison):
        table.add_row(*row)
    console.print(table)
    for sentence in (*told[2:], "The pre-trained weights:", *headlines(analysis)[:_HEADLINES_SHOWN]):
        console.print(sentence)
    say(f"Report: {out / 'report.html'}")

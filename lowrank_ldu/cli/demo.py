"""Run `lowrank-ldu demo`: the whole path on real data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lowrank_ldu.cli.console import SafeConsole, say
from lowrank_ldu.cli.errors import readable_errors

if TYPE_CHECKING:
    from lowrank_ldu.analysis import Analysis
    from lowrank_ldu.demo import Comparison
    from lowrank_ldu.demo.round_trip import RoundTrip

_RANKS = (8, 32)
_HEADLINES_SHOWN = 4


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the report, the weights and the adapter.")] = Path(
        "lowrank-ldu-demo"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier run left in the folder.")
    ] = False,
) -> None:
    """Run everything once on data that comes with scikit-learn.

    No download, about two minutes on two cores. A small vision transformer is pre-trained on handwritten digits and its
    weights are analyzed. It is then fine-tuned on other images, turned upside down and inverted, by linear probe,
    LoLDU, LoRA, PiSSA and full fine-tuning with the same batches. The LoLDU adapter is saved, reloaded and merged.
    """
    from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint, write_report  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_progress, show_steps  # noqa: PLC0415
    from lowrank_ldu.demo import compare_methods  # noqa: PLC0415
    from lowrank_ldu.demo.report import comparison_section, write_results  # noqa: PLC0415
    from lowrank_ldu.demo.round_trip import BASE_FILE, round_trip  # noqa: PLC0415
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415

    # A missing package of the extra is an ImportError, whose message names the extra.
    with (
        readable_errors(),
        whole_folder(out, overwrite=overwrite, otherwise="--overwrite") as folder,
    ):
        with show_steps() as on_progress:
            comparison = compare_methods(on_progress=on_progress)
        saved = round_trip(comparison, folder)
        with show_progress() as progress:
            analysis = analyze_checkpoint(folder / BASE_FILE, SurveyOptions(ranks=_RANKS), progress)
        # The folder gets its own name at the end.
        analysis = replace(analysis, checkpoint=str(out / BASE_FILE))
        write_results(comparison, folder / "comparison.csv")
        write_report(analysis, folder, sections=[comparison_section(comparison, saved)])
        _show(comparison, saved, analysis, out)


def _show(comparison: Comparison, saved: RoundTrip, analysis: Analysis, out: Path) -> None:
    """Print the table and the sentences of the demo."""
    from lowrank_ldu.analysis import headlines  # noqa: PLC0415
    from lowrank_ldu.demo.report import HEADINGS, comparison_rows, sentences  # noqa: PLC0415

    console = SafeConsole()
    told = sentences(comparison, saved)
    console.print(told[0])
    console.print(told[1])
    table = Table()
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if place else "left")
    for row in comparison_rows(comparison):
        table.add_row(*row)
    console.print(table)
    for sentence in (*told[2:], "The pre-trained weights:", *headlines(analysis)[:_HEADLINES_SHOWN]):
        console.print(sentence)
    say(f"Report: {out / 'report.html'}")

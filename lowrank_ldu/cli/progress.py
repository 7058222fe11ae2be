"""The progress bar of a survey."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lowrank_ldu.analysis.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowrank_ldu.analysis.survey import Progress as SurveyProgress


@contextmanager
def show_progress() -> Iterator[Callable[[SurveyProgress], None]]:
    """Show a bar on stderr, with the number of tensors, the time left and what is being analysed."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.fields[count]}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a log has no use for it
    )
    with bar:
        task = bar.add_task("reading the checkpoint", total=1.0, count="")

        def update(state: SurveyProgress) -> None:
            bar.update(
                task,
                completed=state.fraction,
                count=f"{state.finished}/{state.total}",
                description=printable(", ".join(state.running)),
            )

        yield update

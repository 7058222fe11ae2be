"""Show progress on stderr, where that is a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lowrank_ldu.cli.console import say
from lowrank_ldu.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowrank_ldu.analysis import Progress as SurveyProgress


def _bar(before: str, after: str) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn(before, markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        TextColumn(after, markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a log has no use for it
    )


@contextmanager
def show_stage(name: str) -> Iterator[None]:
    """Show what is done at present, where nobody knows how long it takes."""
    with _bar("", "{task.description}") as bar:
        bar.add_task(name, total=None)
        yield


@contextmanager
def show_progress() -> Iterator[Callable[[SurveyProgress], None]]:
    """Show how far a survey is, and the time left."""
    with _bar("{task.fields[count]}", "{task.description}") as bar:
        task = bar.add_task("reading the checkpoint", total=1.0, count="")

        def update(state: SurveyProgress) -> None:
            bar.update(
                task,
                completed=state.fraction,
                count=f"{state.finished}/{state.total}",
                description=printable(", ".join(state.running)),
            )

        yield update


@contextmanager
def show_items(total: int) -> Iterator[Callable[[str], None]]:
    """Show how many items are done, and the present one."""
    with _bar("{task.fields[count]}", "{task.description}") as bar:
        task = bar.add_task("", total=total, count=f"0/{total}")
        started = 0

        def update(name: str) -> None:
            nonlocal started
            bar.update(task, completed=started, count=f"{started}/{total}", description=printable(name))
            started += 1

        yield update


@contextmanager
def show_measuring(count: str) -> Iterator[Callable[[str, float], None]]:
    """Show the stage of a measurement, and the time left.

    Where stderr is no terminal, each stage is a line of its own.
    """
    with _bar("{task.fields[count]}", "{task.description}") as bar:
        task, shown = bar.add_task("starting", total=1.0, count=count), ""

        def update(stage: str, share: float) -> None:
            nonlocal shown
            bar.update(task, completed=share, description=stage)
            if bar.disable and stage != shown:
                say(f"{count} {stage}", err=True)
            shown = stage

        yield update

"""The progress bar of the comparison."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowrank_ldu.finetune import Progress as ComparisonProgress


@contextmanager
def show_steps() -> Iterator[Callable[[ComparisonProgress], None]]:
    """Show a bar on stderr, with the time left and what is being trained."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("loading", total=None)

        def update(state: ComparisonProgress) -> None:
            bar.update(task, completed=state.step, total=state.total, description=state.stage)

        yield update

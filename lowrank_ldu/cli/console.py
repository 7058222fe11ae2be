"""What the commands print, on any terminal or pipe and of any names."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from lowrank_ldu.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator


class SafeConsole(Console):
    """Print text with what would steer a terminal escaped, and lines that are as long as they are."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; text is one line however long it is."""
        if objects and all(isinstance(each, str) for each in objects):
            objects, options = tuple(map(printable, objects)), {"soft_wrap": True, **options}
        super().print(*objects, **options)


def say(text: str, *, err: bool = False) -> None:
    """Write a line to stdout or stderr."""
    typer.echo(printable(" ".join(text.splitlines())), err=err)


def print_anywhere() -> None:
    """Have stdout and stderr escape what their encoding has no bytes for, which would end the command."""
    for stream in (sys.stdout, sys.stderr):
        # Another program's stream may be anything.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each warning that is meant for users as a line of its own."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}", err=True)
        yield

"""What the user sees when something is wrong."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from lowrank_ldu.analysis.printable import printable
from lowrank_ldu.cli import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Iterator

USER_ERROR = 2


@contextmanager
def readable_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that the user can mend into one line and exit code 2, and Ctrl-C into a line and exit code 130.

    Parameters
    ----------
    *kinds : exception types
        What the user can mend. Everything else keeps its traceback: it is a bug.
    """
    try:
        yield
    except kinds as error:
        fail(str(error))
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


def fail(message: str) -> None:
    """Write `error: message` to stderr, on one line, and exit with code 2."""
    typer.echo(f"error: {printable(' '.join(message.splitlines()))}", err=True)
    raise typer.Exit(USER_ERROR) from None

"""What the user sees when something is wrong."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from lowrank_ldu.cli import INTERRUPTED
from lowrank_ldu.cli.console import say, warnings_as_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

USER_ERROR = 2


@contextmanager
def readable_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that the user can mend into one line and exit code 2, and Ctrl-C into a line and exit code 130.

    Warnings are lines, too.

    Parameters
    ----------
    *kinds : exception types
        What the user can mend. Everything else keeps its traceback: it is a bug.
    """
    try:
        with warnings_as_lines():
            yield
    except kinds as error:
        fail(str(error))
    except KeyboardInterrupt:
        say("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


def fail(message: str) -> NoReturn:
    """Write `error: message` to stderr, on one line, and exit with code 2."""
    say(f"error: {message}", err=True)
    raise typer.Exit(USER_ERROR) from None

"""Show what is wrong as one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from lowrank_ldu.cli import INTERRUPTED
from lowrank_ldu.cli.console import say, warnings_as_lines
from lowrank_ldu.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

USER_ERROR = 2


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn errors that the user can mend into one line.

    The exit code is 2 then, and 130 after Ctrl-C. Those are `lowrank_ldu.errors.UserError`. Everything else keeps its
    traceback: it is a bug. Warnings are lines, too.
    """
    try:
        with warnings_as_lines():
            yield
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        say("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


def fail(message: str) -> NoReturn:
    """Write one line to stderr and exit with code 2."""
    say(f"error: {message}", err=True)
    raise typer.Exit(USER_ERROR) from None

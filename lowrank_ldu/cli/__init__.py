"""The command `lowrank-ldu`."""

from __future__ import annotations

import os
import sys
import threading

INTERRUPTED = 130  # 128 + SIGINT, as shells count
_OF_THE_EXTRA = {"typer", "rich", "click"}


def main() -> None:
    """Run the command line; the console entry point."""
    try:
        from lowrank_ldu.cli.app import app  # noqa: PLC0415  # these packages come with an extra
    except ModuleNotFoundError as error:
        if error.name not in _OF_THE_EXTRA:
            raise
        sys.exit(_missing(error.name))
    try:
        app(prog_name="lowrank-ldu")
    except SystemExit as exit_:
        if isinstance(exit_.code, int) and exit_.code and threading.active_count() > 1:
            # Threads inside LAPACK cannot be stopped, and the interpreter would wait for them, or break down over them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_.code)
        raise


def _missing(package: str | None) -> int:
    sys.stderr.write(f"error: the command line needs {package}: pip install 'lowrank-ldu[analysis]'\n")
    return 2

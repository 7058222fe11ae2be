"""The command `lowrank-ldu`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import NoReturn

_SIGNALED = 128  # and the signal's number, as shells count
INTERRUPTED = _SIGNALED + signal.SIGINT
_OF_THE_EXTRA = {"typer", "rich", "click"}


def main() -> None:
    """Run the command line; the console entry point."""
    try:
        from lowrank_ldu.cli.app import app  # noqa: PLC0415  # these packages come with an extra
    except ModuleNotFoundError as error:
        if error.name not in _OF_THE_EXTRA:
            raise
        sys.exit(_missing(error.name))
    _unwind_on(signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    try:
        app(prog_name="lowrank-ldu")
    except SystemExit as exit_:
        if isinstance(exit_.code, int) and exit_.code and threading.active_count() > 1:
            # Threads inside LAPACK cannot be stopped, and the interpreter would wait for them, or break down over them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_.code)
        raise


def _unwind_on(*signals: signal.Signals) -> None:
    """Have signals that end the process do so as an exit does, which removes what is half written."""

    def leave(number: int, _frame: object) -> NoReturn:
        # Once: a second one while files are removed would leave them.
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(_SIGNALED + number)

    for each in signals:
        if signal.getsignal(each) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(each, leave)


def _missing(package: str | None) -> int:
    sys.stderr.write(f"error: the command line needs {package}: pip install 'lowrank-ldu[analysis]'\n")
    return 2

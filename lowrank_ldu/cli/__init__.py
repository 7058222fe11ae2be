"""Run the command `lowrank-ldu`, and end it cleanly."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]

_SIGNALED = 128  # and the signal's number, as shells count
INTERRUPTED = _SIGNALED + signal.SIGINT
_USAGE = 2
# Of what stdout goes to.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_OF_THE_EXTRA = {"typer", "rich", "click"}


def __dir__() -> list[str]:
    return __all__


def main() -> None:
    """Run the command line, as the installed command does."""
    try:
        from lowrank_ldu.cli.app import app  # noqa: PLC0415  # these packages come with an extra
        from lowrank_ldu.cli.console import print_anywhere  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in _OF_THE_EXTRA:
            raise
        sys.exit(_missing(error.name))
    _unwind_on(signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    print_anywhere()
    try:
        sys.exit(_run(app))
    except SystemExit as exit_:
        if isinstance(exit_.code, int) and exit_.code and threading.active_count() > 1:
            # Threads inside LAPACK cannot be stopped, and the interpreter would wait for them, or break down over them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_.code)
        raise


def _run(app: Callable[..., object]) -> int:
    """Run the commands and return the exit code.

    What is wrong with their arguments is said on one line.
    """
    from lowrank_ldu.cli.console import say  # noqa: PLC0415

    try:
        code = app(prog_name="lowrank-ldu", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            # What is left in the buffer is not to be tried again at the end.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            with contextlib.suppress(OSError):
                say(f"error: stdout cannot be written ({error.strerror})", err=True)
            return _USAGE
        # The classes are typer's own or click's, by typer's version.
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return _USAGE
        if not hasattr(error, "format_message"):
            raise
        say(f"error: {_said(error, error.format_message())}", err=True)
        return _USAGE
    return code if isinstance(code, int) else 0


def _said(error: Exception, message: str) -> str:
    """Return a usage error's message with what is accepted."""
    message = message.replace(": Value error, ", ": ")  # the kind of error, which some versions put before it
    command = getattr(getattr(error, "ctx", None), "command", None)
    parameter = getattr(error, "param", None)
    accepted = ""
    if message.startswith("No such command") and command is not None:
        accepted = ", ".join(command.commands)
    elif message.startswith("No such option") and command is not None:
        message = message.partition(" (Possible option")[0].partition(" Did you mean")[0]
        accepted = ", ".join(_longest(each) for each in command.params if each.param_type_name == "option")
    elif "unexpected extra argument" in message and command is not None:
        repeated = [_longest(each) for each in command.params if getattr(each, "multiple", False)]
        if repeated:
            accepted = f"one value after an option, and the option again for each further one ({', '.join(repeated)})"
    elif getattr(parameter, "multiple", False) and message.startswith("Invalid value"):
        accepted = f"one value, and {_longest(parameter)} again for each further one"
    return f"{message.rstrip('.')}; accepted: {accepted}" if accepted else message


def _longest(parameter: Any) -> str:
    """Return the full name of an option."""
    return str(max(parameter.opts, key=len))


def _unwind_on(*signals: signal.Signals) -> None:
    """Turn signals that end the process into an exit.

    Only an exit removes what is half written.
    """

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

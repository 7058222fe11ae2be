"""Print on any terminal or pipe, and any names."""

from __future__ import annotations

import codecs
import sys
import traceback
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lowrank_ldu.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_SPELLING = "lowrank_ldu.spelling"
# Symbols that figures, rules and rich's own tables hold.
_SPELLED = {
    "\N{MICRO SIGN}": "u", "\N{MULTIPLICATION SIGN}": "x", "±": "+-", "∞": "inf", "≤": "<=", "≥": ">=", "·": "*",
    "‖": "||", "√": "sqrt ", "²": "^2", "⁻": "^-", "⁸": "8", "ᵀ": "^T", "∘": "o", "…": "...",
}  # fmt: skip


class SafeConsole(Console):
    """Print text that cannot steer the terminal.

    Lines are as long as they are.
    """

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects; text is one line, however long."""
        if objects and all(isinstance(each, str) for each in objects):
            objects, options = tuple(map(printable, objects)), {"soft_wrap": True, **options}
        super().print(*objects, **options)


def say(text: str, *, err: bool = False) -> None:
    """Write a line to stdout or stderr, names escaped."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:  # closed by whoever started the process
        line, encoding = printable(" ".join(text.splitlines())), stream.encoding or "utf-8"
        # Not by typer, which takes a terminal of ASCII for one of UTF-8. Names are escaped, so that none looks like
        # another one.
        stream.write(f"{line.encode(encoding, 'backslashreplace').decode(encoding)}\n")
        stream.flush()


def print_anywhere() -> None:
    """Spell or escape what the streams' encoding lacks.

    It would end the command otherwise. Tracebacks are escaped as all else is: a message may hold a name from a file.
    """
    codecs.register_error(_SPELLING, _spelled)
    for stream in (sys.stdout, sys.stderr):
        # Another program's stream may be anything.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_SPELLING)
    sys.excepthook = _show_traceback


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding lacks.

    Symbols of the tables are spelled in ASCII, others escaped.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SPELLED.get(char, ascii(char)[1:-1]) for char in missing), error.end


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    for line in "".join(traceback.format_exception(kind, error, trace)).splitlines():
        say(line, err=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each warning for users as one line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}", err=True)
        yield

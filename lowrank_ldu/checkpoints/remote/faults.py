"""Ask servers again where that may help, and say what they did."""

from __future__ import annotations

from time import sleep
from typing import TYPE_CHECKING, TypeVar

from lowrank_ldu.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable

_Answer = TypeVar("_Answer")

# Seconds before each further attempt: a server that restarts is back by then, and a wrong name costs no minute.
PAUSES = (0.5, 2.0, 8.0)
_DENIED = (401, 403)
_ABSENT = (404, 410)
# Too early, too many requests, and what servers say that are busy or restart.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class Fault(Exception):  # noqa: N818  # of a server, not yet an error of the caller
    """Say what a server did, without its address.

    Parameters
    ----------
    said : str
        Ends with what to do about it, unless `again` is true.
    again : bool
        Whether asking once more may help.
    status : int, optional
        Of HTTP.
    """

    def __init__(self, said: str, *, again: bool = False, status: int | None = None) -> None:
        super().__init__(said)
        self.said = said
        self.again = again
        self.status = status

    @property
    def is_absent(self) -> bool:
        """Say whether there is no such file."""
        return self.status in _ABSENT

    @property
    def is_denied(self) -> bool:
        """Say whether the server wants other credentials."""
        return self.status in _DENIED


class AbsentError(RemoteError):
    """Say that a server has no such file."""


class DeniedError(RemoteError):
    """Say that a server does not give a file to this user."""


def fault_of_status(status: int, credentials: str) -> Fault:
    """Return what an HTTP status means.

    Parameters
    ----------
    status : int
    credentials : str
        Where this server's credentials come from, for the message.
    """
    if status in _DENIED:
        why = "wants credentials" if status == _DENIED[0] else "refuses access"
        return Fault(f"the server {why} ({status}); {credentials}", status=status)
    if status in _ABSENT:
        return Fault(f"the server has no such file ({status}); check the address", status=status)
    if status in _PASSING:
        return Fault(f"the server fails ({status})", again=True, status=status)
    return Fault(f"the server answers with status {status}; check the address", status=status)


def changed() -> Fault:
    """Return the fault of a file that is another one by now."""
    return Fault(
        "the file has been changed on the server since it was opened; accepted: begin anew, without the journal of the "
        "former file"
    )


def ask(shown: str, action: Callable[[], _Answer]) -> _Answer:
    """Ask a server, again after growing pauses where that may help.

    Parameters
    ----------
    shown : str
        The file, without secrets.
    action : callable
        Raises `Fault`.

    Raises
    ------
    RemoteError
        The server does not give what it is asked for; `AbsentError` and `DeniedError` where it is for that.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        except Fault as error:
            fault = error
        if not fault.again or pause is None:
            break
        sleep(pause)
    # Not in the `except` block: what the libraries raised has whole URLs in it, and would be shown with the traceback.
    kind = AbsentError if fault.is_absent else DeniedError if fault.is_denied else RemoteError
    tried = f", asked {len(PAUSES) + 1} times; try again later" if fault.again else ""
    raise kind(f"{shown}: {fault.said}{tried}")

"""Define what is asked of a server, whatever its kind."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lowrank_ldu.checkpoints.remote.faults import changed
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.checkpoints.remote.address import Address


class State(NamedTuple):
    """Hold what tells whether a file is still the same one.

    Attributes
    ----------
    size : int
        Bytes.
    version : str
        The server's mark of the content, the strongest it gives: a version, an ETag, or a time. Empty without any.
    first : bytes
        What came with it of the beginning of the file.
    """

    size: int
    version: str
    first: bytes = b""


class Files(Protocol):
    """Read files of one server.

    Everything raises `Fault`.
    """

    names: Sequence[str]  # to be asked for in folders that cannot be listed

    def look(self, address: Address) -> State:
        """Return the state of a file that is there."""

    def fill(self, address: Address, start: int, buffer: memoryview, known: State) -> None:
        """Read a range into a buffer, of the file in a known state."""

    def entries(self, address: Address) -> dict[str, bool] | None:
        """Return the names in a folder, and which are folders themselves; None where it cannot be listed."""

    def give_up(self) -> None:
        """End the request that another thread is at, where that can be done."""


def check_same(seen: State, known: State) -> None:
    """Refuse a file that is in another state than before.

    Raises
    ------
    Fault
        It has another size, or another mark where both have one.
    """
    if seen.size != known.size or (seen.version and known.version and seen.version != known.version):
        raise changed()


def library(shown: str, module: str, install: str) -> Any:
    """Import the library that reads from a kind of servers.

    Raises
    ------
    CheckpointError
        It is not installed; the message says how it is.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CheckpointError(
            f"{shown}: reading from there needs {module.partition('.')[0]}: pip install {install}"
        ) from error


EXTRA = "'lowrank-ldu[remote]'"

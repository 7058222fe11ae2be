"""Stand for a file or folder on a server, as a path does here."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.checkpoints.remote.address import OBJECTS, address_of, scheme_of
from lowrank_ldu.checkpoints.remote.faults import AbsentError, ask
from lowrank_ldu.checkpoints.remote.object_files import ObjectFiles
from lowrank_ldu.checkpoints.remote.web_files import WebFiles
from lowrank_ldu.untrusted import LENGTH_BYTES, header_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowrank_ldu.checkpoints.remote.address import Address
    from lowrank_ldu.checkpoints.remote.files import Files, State
    from lowrank_ldu.untrusted import Limit


class Server:
    """Hold what is known of one checkpoint's files.

    Parameters
    ----------
    files : Files
        How they are read.

    Attributes
    ----------
    files
        As given.
    states : dict of str to State, or None
        Of files that were looked at; None where there is none.
    listed : dict of str to dict, or None
        Of folders that were listed, the names in them and whether they are folders; None where that cannot be.
    paths : dict of str to RemotePath
        By their text.
    kept : dict of str to object
        Of `RemotePath.once`.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.states: dict[str, State | None] = {}
        self.listed: dict[str, dict[str, bool] | None] = {}
        self.paths: dict[str, RemotePath] = {}
        self.kept: dict[str, Any] = {}


class RemotePath:
    """Stand for a file or a folder on a server.

    The file that was looked at first is the one that is read: one that has been changed in between is refused.

    Parameters
    ----------
    address : Address
    server : Server
        Shared by the paths of one checkpoint.
    """

    def __init__(self, address: Address, server: Server) -> None:
        self.address = address
        self._server = server
        server.paths.setdefault(address.shown, self)

    def __str__(self) -> str:
        return self.address.shown

    def __repr__(self) -> str:
        return f"RemotePath({self.address.shown!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __truediv__(self, name: str) -> RemotePath:
        return self._at(self.address.joined(name))

    def _at(self, address: Address) -> RemotePath:
        return self._server.paths.get(address.shown) or RemotePath(address, self._server)

    @property
    def name(self) -> str:
        """Return the last component."""
        return self.address.name

    @property
    def suffix(self) -> str:
        """Return what follows the last dot of the name."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """Return the folder of this."""
        return self._at(self.address.parent)

    def file(self, shown: str) -> RemotePath:
        """Return the path of a file of the same checkpoint by its text."""
        return self._server.paths[shown]

    def is_file(self) -> bool:
        """Say whether there is such a file.

        The listing of its folder says so, where there is one; otherwise it is looked at, once.
        """
        listed = self._server.listed.get(str(self.parent))
        return self._state() is not None if listed is None else listed.get(self.name, True) is False

    def is_dir(self) -> bool:
        """Say whether this was listed as a folder."""
        return (self._server.listed.get(str(self.parent)) or {}).get(self.name, False)

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what is in the folder, which is listed once."""
        key, server = str(self), self._server
        if key not in server.listed:
            server.listed[key] = ask(key, lambda: server.files.entries(self.address))
        listed = server.listed[key]
        for path in map(self.__truediv__, server.files.names if listed is None else listed):
            if listed is not None or path.is_file():
                yield path

    def state(self) -> State:
        """Return the state in which the file was when it was looked at first.

        Raises
        ------
        RemoteError
            There is none, or it cannot be looked at.
        """
        found = self._state()
        if found is None:
            raise AbsentError(f"{self}: the server has no such file, or does not show it; check the address")
        return found

    def _state(self) -> State | None:
        states, key = self._server.states, str(self)
        if key not in states:
            try:
                states[key] = ask(key, lambda: self._server.files.look(self.address))
            except AbsentError:
                states[key] = None
        return states[key]

    def read_range(self, start: int, size: int) -> memoryview:
        """Read a range, by one request.

        Raises
        ------
        RemoteError
            The server does not give it.
        MemoryError
            There is no room for it.
        """
        known = self.state()
        if start + size <= len(known.first):
            return memoryview(bytearray(known.first[start : start + size]))
        # Its memory is taken as the bytes come: a server may promise more than there is.
        buffer = np.empty(size, np.uint8).data
        if size:
            ask(str(self), lambda: self._server.files.fill(self.address, start, buffer, known))
        return buffer

    def give_up(self) -> None:
        """End a reading that another thread is at, where that can be done."""
        self._server.files.give_up()

    def read_text(self, limit: Limit) -> bytes:
        """Read a file of JSON whole, at most one byte more than the limit."""
        return bytes(self.read_range(0, min(self.state().size, limit.size + 1)))

    def once(self, make: Callable[[], Any]) -> Any:
        """Return what is made of this file, made once for all readers of the checkpoint."""
        key = str(self)
        if key not in self._server.kept:
            self._server.kept[key] = make()
        return self._server.kept[key]

    @contextmanager
    def as_header(self) -> Iterator[Path]:
        """Give a file here that has the header of a safetensors file there.

        It is as long as the other one, and the rest of it is a hole: what checks a header against its file can check
        this one.

        Raises
        ------
        RemoteError
            The server does not give the header.
        ValueError
            The header is too long.
        OSError
            There can be no such file here.
        """
        size = self.state().size
        first = bytes(self.read_range(0, min(size, LENGTH_BYTES)))
        length = min(header_length(first), max(size - LENGTH_BYTES, 0))
        with tempfile.TemporaryDirectory(prefix="lowrank-ldu-") as folder:
            path = Path(folder, "header.safetensors")
            with path.open("xb") as file:
                file.write(first)
                file.write(self.read_range(len(first), length))
                file.truncate(size)
            yield path


Place = Path | RemotePath


def remote_path(url: str) -> RemotePath:
    """Return the path of a URL of a web server or an object store.

    Raises
    ------
    CheckpointError
        It is none, or the library that reads from there is not installed.
    """
    address = address_of(url)
    scheme = scheme_of(url)
    files = ObjectFiles(address.shown, scheme) if scheme in OBJECTS else WebFiles(address.shown)
    return RemotePath(address, Server(files))

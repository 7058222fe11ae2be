"""Keep the results of a run on disk as they come."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from filelock import BaseFileLock, FileLock, Timeout

import lowrank_ldu
from lowrank_ldu.analysis.document import decoded_record, finite_json
from lowrank_ldu.checkpoints.file_states import file_states
from lowrank_ldu.errors import JournalError
from lowrank_ldu.untrusted import CONFIGURATION, open_regular, strict_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from lowrank_ldu.analysis.options import CompareOptions, SurveyOptions
    from lowrank_ldu.checkpoints import CheckpointReader

JOURNAL_FORMAT = "lowrank-ldu journal 5"
# Every journal of any version begins so; no other file is opened for writing.
_BEGINNING = b'{"format":"lowrank-ldu journal'
# A result has some kilobytes.
_LINE = CONFIGURATION
_CHECKSUM = re.compile(rb'(.*),"crc32":"([0-9a-f]{8})"\}\n', re.DOTALL)


class Result(Protocol):
    """Be a dataclass that holds the result for one tensor."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Of the tensor."""


_Result = TypeVar("_Result", bound=Result)


@dataclass(frozen=True)
class ResultKind(Generic[_Result]):
    """Say what a journal's results are.

    Attributes
    ----------
    name : str
        Of the work, with its article.
    record : type
        The dataclass of a result.
    figures : str
        Its field that holds numbers, which may be infinite.
    is_final : callable
        Says of a result whether it is kept. Failures are not: they may be for want of memory, and are tried again.
    """

    name: str
    record: type[_Result]
    figures: str
    is_final: Callable[[_Result], bool]


@dataclass(frozen=True)
class Origin:
    """Identify the run that results belong to.

    The same work on the same files, done in the same way by the same version.

    Attributes
    ----------
    kind : str
        Of the work, as of `ResultKind`.
    version : str
        Of this package.
    options : dict
        Of the run, but for the number of threads.
    files : dict of str to dict of str to list of int or str
        For each argument that is a checkpoint what `lowrank_ldu.checkpoints.file_states.file_states` gives.
    """

    kind: str
    version: str
    options: dict[str, Any]
    files: dict[str, dict[str, list[int | str]]]

    @classmethod
    def of(
        cls,
        kind: ResultKind[Any],
        options: SurveyOptions | CompareOptions,
        readers: Mapping[str, CheckpointReader],
    ) -> Origin:
        """Return the origin of a run that is about to begin."""
        asked = asdict(options)
        del asked["threads"]
        files = {argument: file_states(reader) for argument, reader in readers.items()}
        return cls(kind.name, lowrank_ldu.__version__, json.loads(json.dumps(asked)), files)

    def difference(self, other: Origin) -> str | None:
        """Describe the first difference to another origin, None without one."""
        if self.kind != other.kind:
            return f"it is of {self.kind}, and this is {other.kind}"
        if self.version != other.version:
            return f"it is of version {self.version}, and this is {other.version}"
        for name in self.options | other.options:
            was, asked = self.options[name], other.options[name]
            if was != asked:
                return f"{name} was {was!r}, and is {asked!r}"
        for argument in self.files | other.files:
            held, states = self.files[argument], other.files[argument]
            if set(held) != set(states):
                files = sorted(set(held) ^ set(states))[:3]
                return f"its {argument} is of other files, {', '.join(files)} among them"
            changed = [file for file, state in held.items() if states[file] != state]
            if changed:
                return f"{changed[0]} has been changed since"
        return None


class Journal(Generic[_Result]):
    """Hold the results of an unfinished run on disk.

    A line each, after a line that says what they belong to.

    Parameters
    ----------
    path : pathlib.Path
        The file is made with the first result. Each line has a checksum.
    kind : ResultKind
    origin : Origin
    resume : bool
        Continue the journal that is there, if there is one; otherwise one that is there is an error.

    Attributes
    ----------
    results : list
        Those that were there, of the kind's record.
    seconds : float
        What they took.

    Raises
    ------
    JournalError
        Another process has the journal, or there is one that is not to be continued, or cannot be: it is of other
        work, of another checkpoint, of other options, or damaged. A last line that was not written whole is no damage:
        it is written again.
    """

    def __init__(self, path: Path, kind: ResultKind[_Result], origin: Origin, *, resume: bool) -> None:
        self.path = path
        self._kind = kind
        self.results: list[_Result] = []
        self.seconds = 0.0
        self._origin = origin
        self._file: IO[bytes] | None = None
        self._lock = _locked(path)
        try:
            if path.exists():
                self._reopen(resume=resume)
        except JournalError:
            self.close()
            raise

    def _reopen(self, *, resume: bool) -> None:
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise JournalError(f"{self.path}: cannot be read (it is no regular file)")
            with open_regular(self.path) as file:
                beginning = file.read(len(_BEGINNING))
            if beginning not in {b"", _BEGINNING}:
                raise JournalError(
                    f"{self.path}: is no journal of this program, and stays as it is; accepted: another name, or "
                    "remove the file"
                )
            if not resume:
                raise JournalError(
                    f"{self.path}: is the journal of a run that was not finished; accepted: --resume, to continue it, "
                    "or remove the file"
                )
            self._file = self.path.open("r+b")
            self._continue(self._file)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be read ({error.strerror})") from error

    def _continue(self, file: IO[bytes]) -> None:
        whole, names = 0, set()
        for number in itertools.count():
            line = file.readline(_LINE.size + 1)
            # A line that is too long is parsed, and refused.
            if not line.endswith(b"\n") and len(line) <= _LINE.size:
                break
            try:
                record = strict_json(line, _LINE)
                if number == 0:
                    self._check_format(record)
                _check_sum(line)
                if number == 0:
                    self._check(record)
                else:
                    result = decoded_record(record["result"], self._kind.record, numbers=(self._kind.figures,))
                    if result.name in names:
                        raise JournalError(
                            f"{self.path}: line {number + 1} has a second result of {result.name!r}; remove the file "
                            "to begin anew"
                        )
                    names.add(result.name)
                    self.results.append(result)
                    self.seconds = float(record["seconds"])
            except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                if isinstance(error, JournalError):
                    raise
                raise JournalError(
                    f"{self.path}: line {number + 1} is damaged; remove the file to begin anew"
                ) from error
            whole += len(line)
        file.seek(whole)
        file.truncate()
        if whole == 0:
            self._write(_line({"format": JOURNAL_FORMAT, **asdict(self._origin)}))

    def _check_format(self, record: dict[str, Any]) -> None:
        if record.pop("format", None) != JOURNAL_FORMAT:
            raise JournalError(f"{self.path}: is no journal of this version; remove the file to begin anew")

    def _check(self, record: dict[str, Any]) -> None:
        del record["crc32"]
        difference = decoded_record(record, Origin).difference(self._origin)
        if difference is not None:
            raise JournalError(f"{self.path}: cannot be continued: {difference}; remove the file to begin anew")

    def append(self, result: _Result, seconds: float) -> None:
        """Write a result to the disk.

        It outlives this process and a power cut.

        Parameters
        ----------
        result : dataclass
            Of the kind's record.
        seconds : float
            Since the run began.
        """
        try:
            if self._file is None:
                self._file = self.path.open("xb")
                self._write(_line({"format": JOURNAL_FORMAT, **asdict(self._origin)}))
            line = _line({"result": finite_json(asdict(result)), "seconds": self.seconds + seconds})
            # A result with a name of megabytes could not be read again: it is left out, and computed again.
            if len(line) <= _LINE.size:
                self._write(line)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _write(self, line: bytes) -> None:
        assert self._file is not None  # noqa: S101  # callers opened it
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and release the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None
        _let_go(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def lock_journal(path: Path) -> Iterator[None]:
    """Lock a journal for this process.

    Also before it is opened and after it is closed.

    Raises
    ------
    JournalError
        Another process has it.
    """
    lock = _locked(path)
    try:
        yield
    finally:
        _let_go(lock)


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()
    return b'%s,"crc32":"%08x"}\n' % (text[:-1], zlib.crc32(text))


def _check_sum(line: bytes) -> None:
    """Raise ValueError if a line is not as it was written."""
    match = _CHECKSUM.fullmatch(line)
    if match is None or zlib.crc32(match[1] + b"}") != int(match[2], 16):
        raise ValueError("the checksum does not fit")


def _let_go(lock: BaseFileLock) -> None:
    """Release a lock once.

    The last release in this process removes its file.
    """
    if lock.lock_counter == 1:
        # It is removed while it is held: a process that opened it before finds it unlinked, and makes a new one.
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
    if lock.is_locked:
        lock.release()


def _locked(path: Path) -> BaseFileLock:
    """Lock a journal by a file beside it.

    The journal need not exist yet. A process may lock it more than once.

    The system lets go of the lock when this process ends, however it ends; the empty file that is left then locks
    nothing.
    """
    if not path.parent.is_dir():  # the library would make it
        raise JournalError(f"{path}: cannot be written (there is no such folder)")
    beside = Path(f"{path.absolute()}.lock")
    lock = FileLock(beside, is_singleton=True)
    try:
        # The library empties it, and it is removed in the end.
        if beside.exists() and (not beside.is_file() or beside.stat().st_size):
            raise JournalError(f"{beside}: is no lock of a journal; accepted: another name, or remove the file")
        lock.acquire(blocking=False)
    except Timeout:
        if not beside.exists():  # the library raises this error for folders that take no files, too
            raise JournalError(f"{path}: cannot be created in this folder; accepted: another place") from None
        raise JournalError(f"{path}: is being written by another process; accepted: wait for it, or stop it") from None
    except OSError as error:
        raise JournalError(f"{path}: cannot be written ({error.strerror})") from error
    return lock

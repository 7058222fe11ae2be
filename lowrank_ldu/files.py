"""Write files and folders whole or not at all.

That holds whatever ends the process that writes them. A folder is written beside its place, under a hidden name with
the number of the process in it, and then exchanged with what is there in one step of the file system. The process holds
a lock on it, which the system lets go of when the process ends, however it ends; the next run that writes to the same
place removes what nobody holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import importlib
import importlib.util
import os
import re
import secrets
import shutil
import stat
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Not on Windows: nothing is locked there, and nothing tidied up.
_fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# Of file systems and systems that cannot exchange two folders.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
# Seconds: another process's copies and renames; a lock that is held for longer is something else's.
_LONGEST_WAIT = 30
# Of the 255 bytes that a name may have; the rest is for what stands around it.
_LONGEST_STEM = 200


@contextmanager
def whole_folder(target: Path, *, overwrite: bool, otherwise: str = "overwrite=True") -> Iterator[Path]:
    """Give a folder that becomes the target on success.

    If the body of the `with` statement fails, it vanishes.

    Parameters
    ----------
    target : pathlib.Path
        Where the files are to be. Its parent has to exist.
    overwrite : bool
        Whether `target` may hold anything yet. Files of the same names, in folders of the same names too, are then
        replaced, and new ones get the permissions of the old, their access lists, and where the system lets this
        process give files away their owners; other extended attributes are not kept. Others stay. At every moment the
        folder is the old one or the new one. Of two processes that write to it at once one comes after the other: the
        folder is the last one's, with what only the first one wrote beside it; without `overwrite` the last one fails.
    otherwise : str
        What the caller's user gives to have files replaced, for the message.

    Raises
    ------
    OutputError
        `target` is not a folder, is not empty (without `overwrite`), is the working folder or holds it, is a mount
        point, lies in a layer of an overlay whose folders cannot be renamed, holds a file where a folder is to be or a
        folder where a file is, or cannot be written.
    """
    check_target(target, overwrite=overwrite, otherwise=otherwise)
    place = target.resolve() if target.is_symlink() else target.absolute()
    try:
        _tidy(place)
        temporary, lock = _locked_folder(place)
    except OSError as error:
        raise OutputError(f"{target}: cannot be created ({error.strerror})") from error
    try:
        yield temporary
        with _alone(place.parent):
            check_target(target, overwrite=overwrite, otherwise=otherwise)  # the work may have taken hours
            if place.exists():
                _carry_over(place, temporary)
                _exchange(temporary, place)
                # What another process has put into the old folder in the meantime.
                _carry_over(temporary, place)
            else:
                temporary.rename(place)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def check_target(target: Path, *, overwrite: bool, otherwise: str = "overwrite=True") -> None:
    """Refuse a target that `whole_folder` could not write.

    Raises `OutputError`, as far as that can be told beforehand.
    """
    if not target.absolute().name:
        raise OutputError(f"{target}: is the root of all folders; accepted: one below it")
    try:
        if target.is_symlink() and not target.exists():
            raise OutputError(f"{target}: is a link to what does not exist")
        if not target.exists():
            if not target.absolute().parent.is_dir():
                raise OutputError(f"{target}: the folder that is to hold it does not exist")
        elif not target.is_dir():
            raise OutputError(f"{target}: is not a folder")
        elif not os.access(target, os.W_OK):
            raise OutputError(f"{target}: cannot be written to")
        elif not overwrite and any(target.iterdir()):
            raise OutputError(
                f"{target}: is not empty; accepted: an empty or a new folder, or {otherwise} to replace its files"
            )
        else:
            _check_replaceable(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be looked up ({error.strerror})") from error


def _check_replaceable(target: Path) -> None:
    """Refuse folders that cannot be exchanged for another."""
    mounts = _mounts()
    if os.path.ismount(target) or str(target.resolve()) in mounts:
        raise OutputError(f"{target}: is a mount point, which cannot be replaced whole; accepted: a folder in it")
    if not _can_be_renamed(target.resolve(), mounts):
        raise OutputError(
            f"{target}: is a folder of a lower layer of an overlay, such as a container's image, which cannot be "
            "replaced whole; accepted: a new folder"
        )
    if Path.cwd().is_relative_to(target.resolve()):
        raise OutputError(f"{target}: is the working folder, or holds it, and is replaced whole; accepted: another")


def _mounts() -> dict[str, str]:
    """Return the kind of file system at each mount point.

    Mount points of the same device are included.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return {}
    kinds = {}
    for line in lines:
        mount, _, rest = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), mount.split()[4])
        kinds[place] = rest.split()[0]
    return kinds


def _can_be_renamed(folder: Path, mounts: dict[str, str]) -> bool:
    """Say whether a folder of an overlay can be renamed.

    Those of lower layers cannot, and nothing says which those are.
    """
    if next((mounts[str(above)] for above in folder.parents if str(above) in mounts), None) != "overlay":
        return True
    # It is asked for what is refused for another reason if not for this one: no folder takes the place of a full one.
    full = _beside(folder, "tmp")
    (full / "inner").mkdir(parents=True)
    try:
        folder.rename(full)
    except OSError as error:
        return error.errno != errno.EXDEV
    finally:
        shutil.rmtree(full)
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file in one step.

    As `whole_file`, with the content given.

    Parameters
    ----------
    path : pathlib.Path
    data : bytes
    """
    with whole_file(path) as temporary, temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the place of a file that becomes another on success.

    The step is made when the body of the `with` statement has put the new content on disk. Permissions and owner are
    the old file's. What a dead process left of the same file is removed. If the body fails, nothing is left of it.

    Parameters
    ----------
    path : pathlib.Path
    """
    _tidy(path)
    folder, lock = _locked_folder(path)
    temporary = folder / "new"
    try:
        yield temporary
        with contextlib.suppress(FileNotFoundError):
            _make_like(path, temporary)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _beside(place: Path, ending: str) -> Path:
    """Return a new hidden name beside a place.

    The number of this process is in it.
    """
    return place.with_name(f".{_stem(place)}.{os.getpid()}-{secrets.token_hex(4)}.{ending}")


def _stem(place: Path) -> str:
    name = os.fsencode(place.name)
    return place.name if len(name) <= _LONGEST_STEM else hashlib.sha256(name).hexdigest()


def _locked_folder(place: Path) -> tuple[Path, int]:
    temporary = _beside(place, "tmp")
    if len(os.fsencode(place.name)) > os.pathconf(place.parent, "PC_NAME_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    temporary.mkdir()
    descriptor = os.open(temporary, os.O_RDONLY)
    _lock(descriptor)
    return temporary, descriptor


def _lock(descriptor: int) -> bool:
    if _fcntl is None:
        return False
    try:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to a folder.

    It does not wait for ever.
    """
    descriptor = None
    if _fcntl is not None:
        with contextlib.suppress(OSError):  # a folder may be written to and not listed
            descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + _LONGEST_WAIT
        while descriptor is not None and not _lock(descriptor) and time.monotonic() < end:
            time.sleep(0.02)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _tidy(place: Path) -> None:
    """Remove what dead processes left beside a place.

    What one of them had moved aside is put back.
    """
    pattern = re.compile(rf"\.{re.escape(_stem(place))}\.(\d+)-[0-9a-f]{{8}}\.(tmp|old)")
    with contextlib.suppress(OSError):
        for path in sorted(place.parent.iterdir()):
            match = pattern.fullmatch(path.name)
            if match is None or not _is_dead(path, int(match[1])):
                continue
            if match[2] == "old" and not place.exists():
                path.rename(place)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_dead(path: Path, process: int) -> bool:
    """Say whether the process that made a temporary is gone.

    Its number is free then, and nobody holds its lock.
    """
    if _fcntl is None or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        pass
    except OSError:
        return False
    else:
        return False
    try:
        # A pipe of this name would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


def _carry_over(old: Path, new: Path) -> None:
    """Put what only the old folder has into the new.

    What both have gets the old permissions.

    Raises
    ------
    OutputError
        One has a file where the other has a folder. The old folder is as it was.
    """
    for folder, _, files in os.walk(old):
        inside = new / Path(folder).relative_to(old)
        if not inside.exists():
            inside.mkdir()
        elif not inside.is_dir():
            raise OutputError(f"{folder}: is a folder where a file is to be")
        _make_like(Path(folder), inside)
        links = [name for name in os.listdir(folder) if (Path(folder) / name).is_symlink()]  # noqa: PTH208
        for name in {*files, *links}:
            _carry_file(Path(folder) / name, inside / name)


def _carry_file(old: Path, new: Path) -> None:
    if new.is_dir() and not new.is_symlink():
        raise OutputError(f"{old}: is a file where a folder is to be")
    if os.path.lexists(new):
        if old.is_file() and new.is_file():
            _make_like(old, new)
        return
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:  # not on every file system
        shutil.copy2(old, new, follow_symlinks=False)


def _make_like(old: Path, new: Path) -> None:
    """Give a new file or folder the old one's permissions.

    Its owner and access lists too, where that is allowed.
    """
    state, own = old.stat(), new.stat()
    if hasattr(os, "chown"):
        for user, group in ((-1, state.st_gid), (state.st_uid, -1)):
            if (user, group) not in {(-1, own.st_gid), (own.st_uid, -1)}:
                with contextlib.suppress(OSError):
                    os.chown(new, user, group)
    new.chmod(stat.S_IMODE(state.st_mode))
    if sys.platform == "linux":
        for name in _ACCESS_LISTS:
            with contextlib.suppress(OSError):
                os.setxattr(new, name, os.getxattr(old, name))


def _exchange(first: Path, second: Path) -> None:
    """Exchange two folders, in one step where possible.

    Where the system cannot, three renames do it. Between the first and the second of those the place is empty; the next
    run puts back what was there.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            done = libc.renameat2(
                _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)
            )
            if done == 0:
                return
            if ctypes.get_errno() not in _NO_EXCHANGE:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    aside = _beside(second, "old")
    second.rename(aside)
    try:
        first.rename(second)
    except BaseException:
        aside.rename(second)
        raise
    aside.rename(first)

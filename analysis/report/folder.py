"""A folder that is there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class OutputError(ValueError):
    """The report cannot be put where it was asked for; the message says why."""


@contextmanager
def whole_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `target` that takes its place if the body succeeds and vanishes if it does not.

    Parameters
    ----------
    target : pathlib.Path
        Where the files are to be. Its parent has to exist.
    overwrite : bool
        Whether `target` may hold anything yet. Files of the same names, in folders of the same names too, are then
        replaced; others are left alone.

    Raises
    ------
    OutputError
        `target` is not a folder, is not empty (without `overwrite`), holds a file where a folder is to be or a folder
        where a file is, or cannot be written.
    """
    check_target(target, overwrite=overwrite)
    absolute = target.absolute()
    temporary = absolute.parent / f".{absolute.name}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir()
    except OSError as error:
        raise OutputError(f"{target}: cannot be created ({error.strerror})") from error
    try:
        yield temporary
        check_target(target, overwrite=overwrite)  # the work may have taken hours
        if absolute.exists():
            _move_into(absolute, temporary)
        else:
            temporary.rename(absolute)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into(target: Path, temporary: Path) -> None:
    """Move every file to its place under `target`, after all places were found to be free for it."""
    files = [file.relative_to(temporary) for file in sorted(temporary.rglob("*")) if file.is_file()]
    for file in files:
        if (target / file).is_dir():
            raise OutputError(f"{target / file}: is a folder where a file is to be")
        for folder in file.parents:
            if (target / folder).exists() and not (target / folder).is_dir():
                raise OutputError(f"{target / folder}: is a file where a folder is to be")
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (temporary / file).replace(target / file)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if `whole_folder` could not put its files there, as far as can be told beforehand."""
    if not target.absolute().name:
        raise OutputError(f"{target}: is the root of all folders; accepted: one below it")
    try:
        if not target.exists():
            if target.is_symlink():
                raise OutputError(f"{target}: is a link to what does not exist")
            if not target.absolute().parent.is_dir():
                raise OutputError(f"{target}: the folder that is to hold it does not exist")
        elif not target.is_dir():
            raise OutputError(f"{target}: is not a folder")
        elif not os.access(target, os.W_OK):
            raise OutputError(f"{target}: cannot be written to")
        elif not overwrite and any(target.iterdir()):
            raise OutputError(
                f"{target}: is not empty; choose another folder, or ask for its files to be replaced (--help says how)"
            )
    except OSError as error:
        raise OutputError(f"{target}: cannot be looked up ({error.strerror})") from error

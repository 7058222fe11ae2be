"""Where an export is written: a folder that is there whole, checked, and apart from what it was made of."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.files import whole_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from lowrank_ldu.adapters.base_checkpoint import BaseCheckpoint
    from lowrank_ldu.adapters.file import AdapterFile


@contextmanager
def export_folder(
    adapter: AdapterFile, base: BaseCheckpoint, target: str | os.PathLike[str], *, overwrite: bool
) -> Iterator[Path]:
    """Give a temporary folder that takes the target's place if the body, which writes and checks, succeeds.

    Raises
    ------
    AdapterError
        A file of the adapter or of the base lies in the target, by whatever path or link.
    OutputError
        The target cannot be written, or holds something (without `overwrite`).
    """
    target = Path(target)
    _check_apart(adapter, base, target)
    with whole_folder(target, overwrite=overwrite, otherwise="overwrite=True (--overwrite of export)") as folder:
        yield folder


def _check_apart(adapter: AdapterFile, base: BaseCheckpoint, target: Path) -> None:
    try:
        place = target.resolve()
        inputs = {base.root / name: "base model" for name in base.files}
        if base.index is not None:
            inputs[base.index] = "base model"
        if base.path.is_dir():
            inputs[base.path] = "base model"
        if adapter.path is not None:
            inputs |= dict.fromkeys([adapter.path, *adapter.path.iterdir()], "adapter")
        inside = {what for path, what in inputs.items() if path.resolve().is_relative_to(place)}
    except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError
        raise AdapterError(f"{target}: cannot be looked up ({error})") from error
    if inside:
        what = "base model" if "base model" in inside else inside.pop()
        raise AdapterError(f"{target}: holds the {what}; accepted: another folder")

"""Find the files of a model beside its weights.

They are configuration, tokenizer, code, and the folders of further modules.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from lowrank_ldu.adapters.exports.output import ADAPTER_FILES, WEIGHTS
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.untrusted import CONFIGURATION, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lowrank_ldu.adapters.exports.base import BaseModel
    from lowrank_ldu.adapters.stored_layer import AdapterFile

# Loaded with a model by their names alone, if they are there.
_LOADED = re.compile(
    r"config\.json|.*_config\.json|modules\.json|.*\.py|chat_template.*"
    r"|(tokenizer|vocab|merges|special_tokens|added_tokens|spiece|sentencepiece|source|target)\b.*"
)


def other_files(base: BaseModel, adapter: AdapterFile, target: Path) -> dict[Path, Path]:
    """Return a model's files beside its weights, in one folder.

    Parameters
    ----------
    base : BaseModel
    adapter : AdapterFile
        sentence-transformers saves the other modules of its model beside it, trained or not.
    target : Path
        Where the model is to be written, which may be inside.

    Returns
    -------
    dict of Path to Path
        From the place in the folder to the file.

    Raises
    ------
    AdapterError
        A folder cannot be read.
    """
    apart = {target.resolve(), base.root.resolve()}
    pending: list[Path] = [base.root]
    found: dict[Path, Path] = {}
    modules = further_modules(base.root)
    try:
        while pending:
            folder = pending.pop()
            for path in sorted(folder.iterdir()):
                place = path.relative_to(base.root)
                if path.name.startswith(".") or path.resolve() in apart:
                    continue  # of version control, of a download or of another export; or a folder seen before
                if path.is_dir():
                    apart.add(path.resolve())
                    if place.parts[0] in modules or not _is_another_model(path):
                        pending.append(path)
                elif not path.is_file() or str(place) in base.files:
                    continue
                elif place.parts[0] in modules:
                    trained = None if adapter.path is None else adapter.path / place
                    found[place] = trained if trained is not None and trained.is_file() else path
                elif not _is_model_or_adapter(path):
                    found[place] = path
    except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError
        raise AdapterError(f"{base.root}: cannot be read ({error})") from error
    return found


def copy_files(files: Mapping[Path, Path], folder: Path) -> None:
    """Copy files to their places in a folder."""
    for place, source in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / place)


def refuse_left_over(target: Path, written: Iterable[str]) -> None:
    """Refuse a folder with left-over files of another model.

    They would be loaded with the model that is written into it.

    Raises
    ------
    AdapterError
    """
    kept = {path.name for path in target.iterdir() if path.is_file()} if target.is_dir() else set()
    left = sorted(name for name in kept - set(written) if _LOADED.fullmatch(name))
    if left:
        raise AdapterError(
            f"{target}: holds {left[0]}, which the base has not and which would be loaded with what is written; "
            "accepted: a folder without files of another model"
        )


def further_modules(root: Path) -> set[str]:
    """Return the folders of further modules of sentence-transformers.

    It puts these behind a model, with weights of their own.
    """
    try:
        modules = read_json(root / "modules.json", CONFIGURATION, lenient=True)
    except (OSError, ValueError):
        return set()
    entries = modules if isinstance(modules, list) else []
    return {str(entry["path"]) for entry in entries if isinstance(entry, dict) and entry.get("path")}


def _is_model_or_adapter(path: Path) -> bool:
    return path.name in ADAPTER_FILES or path.name.endswith(WEIGHTS)


def _is_another_model(folder: Path) -> bool:
    """Return whether a folder holds another model or adapter.

    The folder is inside of a model's.
    """
    return any(_is_model_or_adapter(path) for path in folder.iterdir())

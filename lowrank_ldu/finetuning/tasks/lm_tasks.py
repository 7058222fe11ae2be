"""Find tasks of lm-eval by their names."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

TASKS, INCLUDE = "lm_eval_tasks", "lm_eval_include_path"


def check_folder(folder: str | None) -> None:
    """Refuse a path of further tasks that is no folder."""
    if folder is not None and not Path(folder).is_dir():
        raise OptionError(f"{INCLUDE} is {folder!r}, and no folder; accepted: a folder of lm-eval's YAML files")


def task_manager(names: Sequence[str], folder: str | None) -> Any:
    """Return what loads tasks.

    lm-eval's own are thousands of files, and are parsed once in a process, where a task is not in the given folder.

    Parameters
    ----------
    names : sequence of str
    folder : str, optional
        Of YAML files of further tasks.

    Returns
    -------
    lm_eval.tasks.TaskManager
    """
    kind = require("lm_eval.tasks", "lm-eval").TaskManager
    if folder is not None:
        own = kind(include_path=folder, include_defaults=False)
        if set(names) <= set(own.all_subtasks):
            return own
    return _whole(kind, folder)


@lru_cache(maxsize=1)
def _whole(kind: Callable[..., Any], folder: str | None) -> Any:
    return kind(include_path=folder)


def unsafe_tasks(names: Sequence[str], folder: str | None) -> set[str]:
    """Return which tasks are marked to run code that a model writes.

    Parsing all of lm-eval's own takes ten times as long as searching their files for the names (docs/measurements.md):
    only the folders of files that have them are parsed.

    Parameters
    ----------
    names : sequence of str
    folder : str, optional

    Returns
    -------
    set of str

    Raises
    ------
    OptionError
        A task is unknown; the message has the nearest names.
    """
    tasks = require("lm_eval.tasks", "lm-eval")
    index: Mapping[str, Any] = {}
    folders = [] if folder is None else [folder]
    if folders:
        index = tasks.TaskManager(include_path=folders, include_defaults=False).task_index
    left = [name for name in names if name not in index]
    if left:
        folders = [*map(str, _folders(left, Path(tasks.__file__).parent)), *folders]
        index = tasks.TaskManager(include_path=folders, include_defaults=False).task_index
    if any(name not in index for name in names):
        index = task_manager(names, folder).task_index
    for name in names:
        if name not in index:
            near = difflib.get_close_matches(name, index, n=3)
            raise OptionError(f"{TASKS} has {name!r}; accepted: {', '.join(near) or 'names of lm-eval ls tasks'}")
    return {name for name in names if any(each.get("unsafe_code") for each in _parts(name, index, set()))}


def _folders(names: Collection[str], root: Path) -> set[Path]:
    """Return the folders of files that define one of the names."""
    either = "|".join(map(re.escape, names))
    line = re.compile(rf"""^(?:task|group):[ \t]*["']?(?:{either})["']?[ \t]*(?:#.*)?$""".encode(), re.MULTILINE)
    return {file.parent for file in root.rglob("*.yaml") if line.search(file.read_bytes())}


def _parts(name: str, index: Mapping[str, Any], seen: set[str]) -> Iterator[Mapping[str, Any]]:
    """Go through the configurations of a task, or of those of a group that are known."""
    if name not in index or name in seen:
        return
    seen.add(name)
    config = index[name].cfg or {}
    yield config
    members = config.get("task")
    for each in members if isinstance(members, list) else index[name].tags if not config else ():
        part = each if isinstance(each, str) else each.get("task", each.get("group"))
        if isinstance(part, str):
            yield from _parts(part, index, seen)

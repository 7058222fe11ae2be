"""Warn of names in a configuration that match nothing.

Such a name has no effect in the model.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

from peft.utils.other import get_pattern_key

from lowrank_ldu.nn.injection import ends_with, what_matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lowrank_ldu.peft.config import LolduConfig

# PEFT's own warning of patterns, from 0.21 on, which does not name keys that come close.
PEFT_ON_PATTERNS = r"The following (rank|alpha)_pattern keys did not match"
# Heads that PEFT adds to modules_to_save for these tasks, whether the model has them or not.
_HEADS = {"classifier", "score", "qa_outputs"}
_TASKS = {"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"}


def warn_of_unmatched(config: LolduConfig, modules: list[str], layers: list[str], *, targets_given: bool) -> None:
    """Warn of every name of a configuration that matches nothing.

    The warning has the names that come close.

    Parameters
    ----------
    config : LolduConfig
        Of an adapter that was made.
    modules : list of str
        Qualified names of the modules of the model before that.
    layers : list of str
        Those that got the adapter.
    targets_given : bool
        Whether target_modules are the user's own, and not what is usual for the architecture.

    Warns
    -----
    UserWarning
        One for each option.
    """
    saved = config.modules_to_save or ()
    saved_unmatched = _unmatched(saved, modules, _is_saved)
    # A list of the usual names of heads, such as PEFT's, means the head that the model has.
    any_head = config.task_type in _TASKS or len(saved_unmatched) < len(saved)
    missing = [name for name in saved_unmatched if not (any_head and name in _HEADS)]
    _warn("modules_to_save", missing, "module", modules)
    for option in ("rank_pattern", "alpha_pattern"):
        keys = getattr(config, option)
        _warn(option, _unmatched(keys, layers, _is_key_of), "layer with this adapter", layers)
    if targets_given and isinstance(config.target_modules, set):
        _warn("target_modules", _unmatched(config.target_modules, modules, ends_with), "module", modules)
    excluded = config.exclude_modules or ()
    one, matches = ([excluded], _is_all_of) if isinstance(excluded, str) else (sorted(excluded), ends_with)
    unmatched = _unmatched(one, modules, matches)
    # PEFT itself says so where no module at all was left out.
    if len(unmatched) < len(one) or len(saved_unmatched) < len(saved):
        _warn("exclude_modules", unmatched, "module", modules)


def _unmatched(keys: Iterable[str], names: list[str], matches: Callable[[str, str], bool]) -> list[str]:
    return sorted(key for key in keys if not any(matches(key, name) for name in names))


def _warn(option: str, keys: list[str], what: str, names: list[str]) -> None:
    if keys:
        listed = ", ".join(map(repr, keys))
        match = "matches" if len(keys) == 1 else "match"
        warnings.warn(
            f"{option}: {listed} {match} no {what}; {what_matches(keys[0], names)}", UserWarning, stacklevel=4
        )


# Names match as they do in PEFT.
def _is_saved(key: str, name: str) -> bool:
    return f"base_model.model.{name}".endswith(key)


def _is_key_of(key: str, name: str) -> bool:
    return str(get_pattern_key([key], name)) == key


def _is_all_of(key: str, name: str) -> bool:
    return re.fullmatch(key, name) is not None

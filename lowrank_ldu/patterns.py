"""Match names by strangers' patterns, in bounded time and memory."""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# The names of modules and the patterns for them are shorter by far; a match takes microseconds.
_LONGEST = 1000
_SECONDS = 1.0
_SECONDS_TOGETHER = 10.0
_PLAIN = re.compile(r"[\w.-]*")
# Text to PEFT; to the other library, a number of errors.
_APPROXIMATE = re.compile(r"\{[^}]*[a-z<][^}]*\}", re.IGNORECASE)
_COUNT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
# The library compiles a{3} as aaa, before any time limit counts.
_LONGEST_EXPANDED = 100_000


class PatternError(ValueError):
    """Say that a pattern cannot be used.

    The message goes on after "holds what".
    """


class Patterns:
    """Hold the patterns of one file, and their values.

    All together are matched in bounded time.

    Parameters
    ----------
    values : mapping of str to object
        Regular expressions, as PEFT has them in `rank_pattern` and `alpha_pattern`.

    Examples
    --------
    >>> Patterns({"q_proj": 4, "k_.*": 8}).value_for("layers.1.k_proj", 16)
    8
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self._compiled: dict[str, Any] = {}
        self._left = _SECONDS_TOGETHER

    def value_for(self, name: str, default: Any) -> Any:
        """Return the value of the first pattern that matches.

        Raises
        ------
        PatternError
            A pattern is one that `matches_end` refuses, or all of them have taken more than ten seconds.
        """
        start = time.monotonic()
        value = default
        for pattern, own in self._values.items():
            if pattern not in self._compiled:
                self._compiled[pattern] = _compiled(pattern)
            if _matches(self._compiled[pattern], pattern, name):
                value = own
                break
            if time.monotonic() - start > self._left:
                raise PatternError(f"takes more than {_SECONDS_TOGETHER:g} s to be matched, with the other patterns")
        self._left -= time.monotonic() - start
        return value


def matches_end(pattern: str, name: str) -> bool:
    r"""Say whether a name ends with what a pattern says.

    After a dot, or as a whole, as PEFT reads `rank_pattern` and `alpha_pattern`.

    Parameters
    ----------
    pattern : str
        A regular expression; a dot in it stands for any character, as it does there.
    name : str
        Of a module.

    Raises
    ------
    PatternError
        The pattern is no regular expression of Python's own or longer than 1000 characters, repeats characters too
        often, or matching takes more than a second.

    Examples
    --------
    >>> matches_end("q_proj", "layers.1.q_proj"), matches_end("q_proj", "layers.1.xq_proj")
    (True, False)
    >>> matches_end("^layers.[02].q_proj", "layers.1.q_proj")
    False
    """
    return _matches(_compiled(pattern), pattern, name)


def _compiled(pattern: str) -> Any:
    if not isinstance(pattern, str) or len(pattern) > _LONGEST:
        raise PatternError(f"is no text of at most {_LONGEST} characters: {str(pattern)[:40]!r}")
    whole = rf"(.*\.)?({pattern})$"
    try:
        # PEFT's own library, which repeats nothing as it compiles, and has no recursion and no approximate matches.
        own = re.compile(whole)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"is no regular expression: {pattern!r} ({error})") from error
    if _PLAIN.fullmatch(pattern):
        # Nothing in it repeats, and nothing is a choice: time grows with the length of the name alone.
        return own
    counts = [max(int(number or 0) for number in found.groups()) for found in _COUNT.finditer(pattern)]
    if len(pattern) * math.prod(max(count, 1) for count in counts) > _LONGEST_EXPANDED:
        raise PatternError(f"repeats characters more than {_LONGEST_EXPANDED} times: {pattern!r}")
    if _APPROXIMATE.search(pattern):
        raise PatternError(f"has braces that are no count: {pattern!r}")
    try:
        import regex  # noqa: PLC0415  # of an extra
    except ImportError as error:
        raise PatternError(f"needs regex, pip install 'lowrank-ldu[torch]': {pattern!r}") from error
    try:
        return regex.compile(whole)
    except (regex.error, RecursionError, MemoryError, OverflowError) as error:
        raise PatternError(f"is no regular expression that can be matched: {pattern!r} ({error})") from error


def _matches(compiled: Any, pattern: str, name: str) -> bool:
    if isinstance(compiled, re.Pattern):
        return compiled.match(name) is not None
    try:
        return compiled.match(name, timeout=_SECONDS) is not None
    except (TimeoutError, RecursionError, MemoryError, OverflowError) as error:
        raise PatternError(f"takes more than {_SECONDS:g} s to be matched: {pattern!r}") from error

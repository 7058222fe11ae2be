"""Match names by regular expressions that come from files, in bounded time."""

from __future__ import annotations

import re

# The names of modules and the patterns for them are shorter by far; a match takes microseconds.
_LONGEST = 1000
_SECONDS = 1.0
_PLAIN = re.compile(r"[\w.-]*")


class PatternError(ValueError):
    """A pattern that cannot be used; the message goes on after "holds what"."""


def matches_end(pattern: str, name: str) -> bool:
    r"""Whether a name is what a pattern says, or ends so after a dot: as PEFT reads `rank_pattern` and `alpha_pattern`.

    Parameters
    ----------
    pattern : str
        A regular expression; a dot in it stands for any character, as it does there.
    name : str
        Of a module.

    Raises
    ------
    PatternError
        The pattern is no regular expression or longer than 1000 characters, or matching takes more than a second.

    Examples
    --------
    >>> matches_end("q_proj", "layers.1.q_proj"), matches_end("q_proj", "layers.1.xq_proj")
    (True, False)
    >>> matches_end("^layers.[02].q_proj", "layers.1.q_proj")
    False
    """
    if not isinstance(pattern, str) or len(pattern) > _LONGEST:
        raise PatternError(f"is no text of at most {_LONGEST} characters: {str(pattern)[:40]!r}")
    whole = rf"(.*\.)?({pattern})$"
    if _PLAIN.fullmatch(pattern):
        # Nothing in it repeats, and nothing is a choice: time grows with the length of the name alone.
        return re.match(whole, name) is not None
    try:
        import regex  # noqa: PLC0415  # of an extra
    except ImportError as error:
        raise PatternError(f"needs regex, pip install 'lowrank-ldu[torch]': {pattern!r}") from error
    try:
        return regex.match(whole, name, timeout=_SECONDS) is not None
    except regex.error as error:
        raise PatternError(f"is no regular expression: {pattern!r} ({error})") from error
    except (TimeoutError, RecursionError, MemoryError, OverflowError) as error:
        raise PatternError(f"takes more than {_SECONDS:g} s to be matched: {pattern!r}") from error

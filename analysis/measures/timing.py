"""Time a computation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_SHORT = 0.002


def timed(
    compute: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> tuple[_Result, float]:
    """Return `compute(*args, **kwargs)` and its seconds.

    The best of three runs where one is under 2 ms.
    """

    def once() -> tuple[_Result, float]:
        start = time.perf_counter()
        result = compute(*args, **kwargs)
        return result, time.perf_counter() - start

    result, seconds = once()
    if seconds < _SHORT:
        seconds = min(seconds, *(once()[1] for _ in range(2)))
    return result, seconds

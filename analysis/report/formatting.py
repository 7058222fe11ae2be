"""Figures as people read them."""

from __future__ import annotations

import math


def figure(value: float | None) -> str:
    """Return three significant digits; a hyphen for a missing figure.

    Examples
    --------
    >>> [figure(x) for x in (0.65432, 12345.6, 2e-7, math.inf, None, 38)]
    ['0.654', '12,300', '2e-07', '∞', '-', '38']
    """
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if isinstance(value, int):
        return f"{value:,}"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def interval(low: float, high: float) -> str:
    """Return two bounds as people read them; one figure if they read the same.

    Examples
    --------
    >>> interval(0.6, 0.6), interval(0.61, 0.642)
    ('0.600', '0.610 to 0.642')
    """
    ends = figure(low), figure(high)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def duration(seconds: float) -> str:
    """Return seconds with a unit that suits them.

    Examples
    --------
    >>> [duration(x) for x in (0.00042, 0.051, 12.3, 754.0)]
    ['420 µs', '51.0 ms', '12.3 s', '12 min 34 s']
    """
    if seconds < 1e-3:
        return f"{figure(seconds * 1e6)} µs"
    if seconds < 1:
        return f"{figure(seconds * 1e3)} ms"
    if seconds < 100:
        return f"{figure(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"

"""The colour of an error: white at 1, what the zero matrix has; red is worse, blue is better."""

from __future__ import annotations

import math

from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize, to_hex

SHADES: Colormap = colormaps["RdBu_r"]
# In powers of two: from a quarter to four times the error of the zero matrix.
SCALE = Normalize(-2.0, 2.0, clip=True)


def shade(error: float) -> str:
    """Return the colour of an error.

    Examples
    --------
    >>> [shade(error) for error in (0.0, 1.0, float("inf"))]
    ['#053061', '#f7f6f6', '#67001f']
    """
    return to_hex(SHADES(SCALE(power_of_two(error))))


def ink(error: float) -> str:
    """Return the colour of text that is easy to read on `shade(error)`."""
    return "#fff" if abs(power_of_two(error)) > 1.2 else "#222"


def power_of_two(error: float) -> float:
    """Return the binary logarithm of an error, clipped to the scale."""
    if error <= 0.0:
        return -2.0
    return min(max(math.log2(error), -2.0), 2.0)

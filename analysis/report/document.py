"""The whole analysis as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank_ldu.analysis.run import Analysis

NOTE = (
    "JSON has no infinite numbers: they are the strings 'inf', '-inf' and 'nan', which float() in Python reads. "
    "null is a figure that the method does not have."
)


def to_json(analysis: Analysis) -> str:
    """Return the analysis as strict JSON, each dataclass an object with the names of its fields."""
    content = {"format": "lowrank-ldu analysis 1", "note": NOTE, **asdict(analysis)}
    return json.dumps(valid(content), allow_nan=False, separators=(",", ":"))


def valid(value: Any) -> Any:
    """Return plain data as strict JSON can hold it: infinite numbers as strings, keys as strings, tuples as lists.

    Examples
    --------
    >>> valid({1: (float("inf"), 2.0)})
    {'1': ['inf', 2.0]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [valid(item) for item in value]
    return value

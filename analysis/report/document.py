"""The whole analysis as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.strict_json import finite_json

if TYPE_CHECKING:
    from lowrank_ldu.analysis.run import Analysis

NOTE = (
    "JSON has no infinite numbers: they are the strings 'inf', '-inf' and 'nan', which float() in Python reads. "
    "null is a figure that the method does not have."
)


def to_json(analysis: Analysis) -> str:
    """Return the analysis as strict JSON, each dataclass an object with the names of its fields."""
    content = {"format": "lowrank-ldu analysis 1", "note": NOTE, **asdict(analysis)}
    return json.dumps(finite_json(content), allow_nan=False, separators=(",", ":"))

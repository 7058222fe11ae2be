"""The whole analysis as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.strict_json import finite_json

if TYPE_CHECKING:
    from lowrank_ldu.analysis.checkpoint import Analysis

_NOTE = (
    "JSON has no infinite numbers: they are the strings 'inf', '-inf' and 'nan', which float() in Python reads. "
    "null is a figure that the method does not have."
)


def to_json(analysis: Analysis) -> str:
    """Return the analysis as strict JSON, each dataclass an object with the names of its fields."""
    return strict_json("lowrank-ldu analysis 1", asdict(analysis))


def strict_json(kind: str, content: dict[str, Any]) -> str:
    """Return `content` as strict JSON under the name of its format, with a note on numbers that JSON lacks."""
    whole = {"format": kind, "note": _NOTE, **content}
    return json.dumps(finite_json(whole), allow_nan=False, separators=(",", ":"))

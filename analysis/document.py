"""Write results as strict JSON, and read its numbers back.

JSON has no infinite numbers: they are the strings "inf", "-inf" and "nan", which float() reads.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison
    from lowrank_ldu.analysis.result import Analysis

ANALYSIS_FORMAT = "lowrank-ldu analysis 4"
COMPARISON_FORMAT = "lowrank-ldu comparison 2"
CLAIMS_FORMAT = "lowrank-ldu claims 2"
_Record = TypeVar("_Record")
_Held = TypeVar("_Held", "Analysis", "CheckpointComparison")

_NOTE = (
    "JSON has no infinite numbers: they are the strings 'inf', '-inf' and 'nan', which float() in Python reads. "
    "null is a figure that the method does not have."
)
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def json_document(kind: str, content: dict[str, Any]) -> str:
    """Return a document as strict JSON.

    It begins with the name of its format and a note on numbers that JSON lacks.
    """
    whole = {"format": kind, "note": _NOTE, **content}
    return json.dumps(finite_json(whole), allow_nan=False, separators=(",", ":"))


def finite_json(value: Any) -> Any:
    """Replace numbers that are not finite by strings.

    In dicts, lists and tuples, however deep.

    Examples
    --------
    >>> finite_json({1: (2.5, float("inf"))})
    {'1': [2.5, 'inf']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return value


def floats_of(value: Any) -> Any:
    """Replace the strings of `finite_json` by numbers.

    Texts that are equal to one of them become numbers as well.

    Examples
    --------
    >>> floats_of({"1": [2.5, "inf"]})
    {'1': [2.5, inf]}
    """
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: floats_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [floats_of(item) for item in value]
    return value


def results_as_tensors(held: Analysis | CheckpointComparison) -> dict[str, Any]:
    """Return results as a dict, with the list called "tensors" that documents have."""
    content = asdict(held)
    return content | {"tensors": content.pop("results")}


def decoded_record(record: dict[str, Any], kind: type[_Record], numbers: tuple[str, ...] = ()) -> _Record:
    """Rebuild a dataclass from its record in a document.

    Only the fields in `numbers` have texts that stand for numbers: a tensor may be called "inf".

    Raises
    ------
    LookupError, TypeError, ValueError
        The record has other fields, or values of other types.
    """
    content = record | {name: floats_of(record[name]) for name in numbers}
    decoded = msgspec.convert(content, kind, str_keys=True)
    # The library passes over fields that are unknown, or missing where there is a default.
    if finite_json(asdict(decoded)) != record:  # type: ignore[call-overload]  # every kind is a dataclass
        raise ValueError("its fields are others")
    return decoded


def tensors_as_results(
    content: dict[str, Any], kind: type[_Held], record: type[Any], numbers: tuple[str, ...]
) -> _Held:
    """Rebuild results from what `results_as_tensors` gives.

    Parameters
    ----------
    content : dict
        Of a document, without the keys that every document begins with.
    kind : type
        Of the results.
    record : type
        The dataclass of the result for one tensor.
    numbers : tuple of str
        Its fields that have texts that stand for numbers.

    Raises
    ------
    LookupError, TypeError, ValueError
        As for `decoded_record`.
    """
    if set(content) != {each.name for each in fields(kind)} - {"results"} | {"tensors"}:
        raise ValueError(f"its keys are {shown(sorted(content))}")
    rest = {key: value for key, value in content.items() if key != "tensors"} | {"results": []}
    results = [decoded_record(tensor, record, numbers) for tensor in content["tensors"]]
    return replace(decoded_record(rest, kind, ("seconds",)), results=results)

"""Read a saved analysis back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.document import ANALYSIS_FORMAT, decoded_record, floats_of
from lowrank_ldu.analysis.engine.survey import TensorResult
from lowrank_ldu.analysis.options import SurveyOptions
from lowrank_ldu.analysis.result import Analysis
from lowrank_ldu.environment import Environment
from lowrank_ldu.errors import DocumentError
from lowrank_ldu.untrusted import Limit, check_regular, read_json
from lowrank_ldu.validation import check_path, shown

if TYPE_CHECKING:
    import os
    from pathlib import Path

ANALYSIS_FILE = "analysis.json"
_KIND, _, _VERSION = ANALYSIS_FORMAT.rpartition(" ")
# A matrix has about 50 kilobytes: some ten thousand of them.
_LARGEST = Limit(2**29, 2**26)
_KEYS = {"format", "note", "checkpoint", "options", "environment", "seconds", "tensors", "adapter_numbers"}
_ACCEPTED = f"a folder that Analysis.save wrote, or {ANALYSIS_FILE} in it"


def load_analysis(path: str | os.PathLike[str]) -> Analysis:
    """Read the document of an analysis.

    Parameters
    ----------
    path : str or os.PathLike
        The folder of a report, or the document in it.

    Returns
    -------
    Analysis

    Raises
    ------
    DocumentError
        There is no such document, it is damaged, or it is of another version.
    """
    file = check_path(path, "folder")
    try:
        file = file / ANALYSIS_FILE if file.is_dir() else file
        check_regular(file)
        content = read_json(file, _LARGEST, surrogates=True)
    except FileNotFoundError as error:
        raise DocumentError(f"{file}: no such file; accepted: {_ACCEPTED}") from error
    except OSError as error:
        raise DocumentError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DocumentError(f"{file}: cannot be read ({error}); accepted: {_ACCEPTED}") from error
    _check_format(content, file)
    try:
        return _analysis(content)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DocumentError(f"{file}: is damaged ({error}); accepted: {_ACCEPTED}") from error


def _check_format(content: Any, file: Path) -> None:
    kind = content.get("format") if isinstance(content, dict) else None
    if not isinstance(kind, str) or not kind.startswith(f"{_KIND} "):
        raise DocumentError(f"{file}: is no document of an analysis; accepted: {_ACCEPTED}")
    if kind != ANALYSIS_FORMAT:
        version = kind.removeprefix(f"{_KIND} ")[:20]
        raise DocumentError(f"{file}: is an analysis of version {version}; accepted: version {_VERSION}")


def _analysis(content: dict[str, Any]) -> Analysis:
    if set(content) != _KEYS:
        raise ValueError(f"its keys are {', '.join(sorted(content))}")
    if not isinstance(content["checkpoint"], str):
        raise TypeError("its checkpoint is no text")
    return Analysis(
        checkpoint=content["checkpoint"],
        options=decoded_record(content["options"], SurveyOptions),
        environment=decoded_record(content["environment"], Environment),
        seconds=float(floats_of(content["seconds"])),
        adapter_numbers=_count_or_none(content["adapter_numbers"]),
        results=[decoded_record(tensor, TensorResult, ("analysis", "seconds")) for tensor in content["tensors"]],
    )


def _count_or_none(value: Any) -> int | None:
    if value is None or (type(value) is int and value > 0):
        return value
    raise TypeError(f"its adapter_numbers is {shown(value)}")

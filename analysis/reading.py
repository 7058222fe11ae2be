"""Read saved results back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lowrank_ldu.analysis.document import ANALYSIS_FORMAT, tensors_as_results
from lowrank_ldu.analysis.engine.survey import TensorResult
from lowrank_ldu.analysis.result import Analysis
from lowrank_ldu.errors import DocumentError
from lowrank_ldu.untrusted import Limit, check_regular, read_json
from lowrank_ldu.validation import check_path

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

# A matrix has about 50 kilobytes: some ten thousand of them.
_LARGEST = Limit(2**29, 2**26)
_Held = TypeVar("_Held")


@dataclass(frozen=True)
class DocumentKind(Generic[_Held]):
    """Say what a document is of, and how it is decoded.

    Attributes
    ----------
    name : str
        Of what it is of, with an article if it has one.
    format : str
        With the version, which is its last word.
    file : str
        Its name in the folder of a report.
    writer : str
        What writes the folder.
    decode : callable
        From the content, without the keys that every document begins with, to the results. Errors of damaged content
        are those of `lowrank_ldu.analysis.document.decoded_record`.
    """

    name: str
    format: str
    file: str
    writer: str
    decode: Callable[[dict[str, Any]], _Held]

    @property
    def accepted(self) -> str:
        """What can be read, in words."""
        return f"a folder that {self.writer} wrote, or {self.file} in it"


def load_document(kind: DocumentKind[_Held], path: str | os.PathLike[str]) -> _Held:
    """Read a document.

    Parameters
    ----------
    kind : DocumentKind
    path : str or os.PathLike
        The folder of a report, or the document in it.

    Raises
    ------
    DocumentError
        There is no such document, it is damaged, or it is of another version.
    """
    file = check_path(path, "folder")
    try:
        file = file / kind.file if file.is_dir() else file
        check_regular(file)
        content = read_json(file, _LARGEST, surrogates=True)
    except FileNotFoundError as error:
        raise DocumentError(f"{file}: no such file; accepted: {kind.accepted}") from error
    except OSError as error:
        raise DocumentError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DocumentError(f"{file}: cannot be read ({error}); accepted: {kind.accepted}") from error
    _check_format(content, file, kind)
    try:
        del content["format"], content["note"]
        return kind.decode(content)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DocumentError(f"{file}: is damaged ({error}); accepted: {kind.accepted}") from error


def _check_format(content: Any, file: Path, kind: DocumentKind[Any]) -> None:
    word, _, version = kind.format.rpartition(" ")
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, str) or not found.startswith(f"{word} "):
        raise DocumentError(f"{file}: is no document of {kind.name}; accepted: {kind.accepted}")
    if found != kind.format:
        other = found.removeprefix(f"{word} ")[:20]
        raise DocumentError(f"{file}: is a document of {kind.name} of version {other}; accepted: version {version}")


def decoded_analysis(content: dict[str, Any]) -> Analysis:
    """Rebuild an analysis from the content of a document."""
    return tensors_as_results(content, Analysis, TensorResult, ("analysis", "seconds"))


_ANALYSES = DocumentKind("an analysis", ANALYSIS_FORMAT, "analysis.json", "Analysis.save", decoded_analysis)


def load_analysis(path: str | os.PathLike[str]) -> Analysis:
    """Read the document of an analysis, as of `load_document`."""
    return load_document(_ANALYSES, path)

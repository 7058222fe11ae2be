"""Read saved claims back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.claims.examined import Claims
from lowrank_ldu.analysis.claims.report import PAPER, claim_record
from lowrank_ldu.analysis.claims.verdict import Claim, Finding, MatrixCase
from lowrank_ldu.analysis.document import CLAIMS_FORMAT, decoded_record, finite_json
from lowrank_ldu.analysis.reading import DocumentKind, decoded_analysis, load_document

if TYPE_CHECKING:
    import os


def load_claims(path: str | os.PathLike[str]) -> Claims:
    """Read the document of claims, as of `load_document`."""
    return load_document(_CLAIMS, path)


def _claims(content: dict[str, Any]) -> Claims:
    paper, records = content.pop("paper"), content.pop("claims")
    if paper != PAPER:
        raise ValueError("its claims are of another paper")
    claims = tuple(_claim(record) for record in records)
    # Verdicts and medians are no fields: they have to be those of the cases.
    if finite_json([claim_record(claim) for claim in claims]) != records:
        raise ValueError("its claims have other fields, or verdicts that do not follow from their cases")
    return Claims(decoded_analysis(content), claims)


def _claim(record: dict[str, Any]) -> Claim:
    own = {"name": record["claim"], **{key: record[key] for key in ("statement", "source", "rule")}, "findings": []}
    return replace(decoded_record(own, Claim), findings=[_finding(finding) for finding in record["findings"]])


def _finding(record: dict[str, Any]) -> Finding:
    own = {key: record[key] for key in ("test", "rank", "measured", "counts")} | {"cases": []}
    cases = [decoded_record(case, MatrixCase, ("figures",)) for case in record["matrices"]]
    return replace(decoded_record(own, Finding), cases=cases)


_CLAIMS = DocumentKind("claims", CLAIMS_FORMAT, "claims.json", "Claims.save", _claims)

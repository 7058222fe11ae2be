"""Hold examined claims: a sequence, frames, files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from lowrank_ldu.analysis.claims.verdict import Claim, Finding
from lowrank_ldu.analysis.framed import Framed
from lowrank_ldu.files import whole_folder
from lowrank_ldu.validation import check_flag, check_path

if TYPE_CHECKING:
    import os

    import pandas as pd

    from lowrank_ldu.analysis.result import Analysis


@dataclass(frozen=True)
class Claims(Framed, Sequence[Claim]):
    """Hold the paper's claims, examined on one analysis.

    A sequence of `Claim`, in the paper's order.

    Attributes
    ----------
    analysis : Analysis
        What they were tested on.
    claims : tuple of Claim
    findings, figures : pandas.DataFrame
        The same as tables, new ones each time: a row for each test at a rank; for each figure of a matrix under a test.
        `lowrank_ldu.analysis.frame_columns` has their columns.
    """

    analysis: Analysis
    claims: tuple[Claim, ...]

    @overload
    def __getitem__(self, place: int) -> Claim: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Claim, ...]: ...

    def __getitem__(self, place: int | slice) -> Claim | tuple[Claim, ...]:
        return self.claims[place]

    def __len__(self) -> int:
        return len(self.claims)

    @property
    def findings(self) -> pd.DataFrame:
        """A row for each test at a rank."""
        return self._frame("findings")

    @property
    def figures(self) -> pd.DataFrame:
        """A row for each figure of a matrix under a test."""
        return self._frame("figures")

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write claims.json and claims.html into a folder, whole or not at all.

        Parameters
        ----------
        folder : str or os.PathLike
            Made if it is not there; the folder that it is in has to be.
        overwrite : bool
            Replace files of the same names in it; others stay. Without it the folder has to be empty.

        Raises
        ------
        OutputError
            The folder is not empty, without `overwrite`, or cannot be written.
        """
        from lowrank_ldu.analysis.claims.report import write_claims  # noqa: PLC0415

        overwrite = check_flag(overwrite, "overwrite")
        with whole_folder(check_path(folder, "folder"), overwrite=overwrite) as made:
            write_claims(self.claims, self.analysis, made)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Claims:
        """Read claims that were saved.

        Parameters
        ----------
        folder : str or os.PathLike
            What `save` wrote, or its `claims.json`.

        Returns
        -------
        Claims
            Equal to those that were saved.

        Raises
        ------
        DocumentError
            There is no such document, it is damaged, or it is of another version.
        """
        from lowrank_ldu.analysis.claims.reading import load_claims  # noqa: PLC0415

        return load_claims(folder)

    def __repr__(self) -> str:
        lines = [f"Claims of arXiv 2410.13618 on {len(self.analysis.matrices)} matrices"]
        lines += [f"{claim.name}: {_verdicts(claim)}" for claim in self.claims]
        return "\n  ".join([*lines, "frames: findings, figures; save(folder) writes the report"])

    def _repr_html_(self) -> str:
        from lowrank_ldu.analysis.report.templating import page_template  # noqa: PLC0415

        return page_template("summary.html.j2").render(
            title=f"Claims of arXiv 2410.13618 on {len(self.analysis.matrices)} matrices",
            headlines=[f"{claim.name}: {claim.statement}" for claim in self.claims],
            headings=["claim", "test", "at", "measured (medians)", "verdict"],
            rows=[
                [claim.name, finding.test, finding.place, finding.measured or "-", finding.verdict]
                for claim, finding in _findings(self.claims)
            ],
            more="",
        )

    def _build(self, name: str) -> pd.DataFrame:
        from lowrank_ldu.analysis.report.frames import build_frame  # noqa: PLC0415  # pandas takes a while

        return build_frame("claims", name, (_finding_rows if name == "findings" else _figure_rows)(self.claims))


def _findings(claims: Sequence[Claim]) -> Iterator[tuple[Claim, Finding]]:
    for claim in claims:
        for finding in claim.findings:
            yield claim, finding


def _verdicts(claim: Claim) -> str:
    cases = [case.holds for finding in claim.findings for case in finding.cases]
    return f"the rule is met in {sum(cases)} of {len(cases)} cases"


def _finding_rows(claims: Sequence[Claim]) -> Iterator[dict[str, Any]]:
    for claim, finding in _findings(claims):
        yield {
            "claim": claim.name,
            "test": finding.test,
            "rank": finding.rank,
            "matrices": len(finding.cases),
            "held": sum(case.holds for case in finding.cases),
            "verdict": finding.verdict,
            "measured": finding.measured or None,
        }


def _figure_rows(claims: Sequence[Claim]) -> Iterator[dict[str, Any]]:
    for claim, finding in _findings(claims):
        for case in finding.cases:
            for figure, value in case.figures.items():
                yield {
                    "claim": claim.name,
                    "test": finding.test,
                    "full_rank": finding.rank is None,
                    "rank": case.rank,
                    "tensor": case.tensor,
                    "holds": case.holds,
                    "figure": figure,
                    "value": value,
                }

"""What a survey is asked to do, checked before any weight is read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from lowrank_ldu.decomposition import PIVOTING, Pivoting
from lowrank_ldu.validation import check_count, check_rank

_LARGEST_RANK = 2**31 - 1


class OptionError(ValueError):
    """An option of a survey is out of its range; the message names it and says what is accepted."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass(frozen=True)
class SurveyOptions:
    """Options of a survey.

    Attributes
    ----------
    ranks : tuple of int
        Ranks to measure, at least 1 each; the full rank of each matrix is always measured too. Stored in ascending
        order, each once.
    pivoting : tuple of str
        Pivoting strategies of LDU, as for `lowrank_ldu.ldu`. Stored each once.
    select, exclude : str or None
        Regular expressions, searched anywhere in the name: analyse only the tensors that match `select`, and none
        that match `exclude`.
    seed : int
        Draws the sketches of randomised pivoting and of quick PiSSA, and random starts of the diagonal; at least 0.
    threads : int
        Cores to use, at least 1.

    Raises
    ------
    OptionError
        One of them is out of range.
    """

    ranks: tuple[int, ...] = (8, 64)
    pivoting: tuple[Pivoting, ...] = ("partial", "complete")
    select: str | None = None
    exclude: str | None = None
    seed: int = 0
    threads: int = field(default_factory=available_cores)

    def __post_init__(self) -> None:
        if not self.ranks:
            raise OptionError("ranks is empty; accepted: at least one rank")
        if not self.pivoting:
            raise OptionError(f"pivoting is empty; accepted: one or more of {', '.join(PIVOTING)}")
        try:
            ranks = tuple(sorted({check_rank(rank, _LARGEST_RANK) for rank in self.ranks}))
            check_rank(self.threads, _LARGEST_RANK, "threads")
            check_count(self.seed, "seed")
        except (TypeError, ValueError) as error:
            raise OptionError(str(error)) from error
        unknown = [strategy for strategy in self.pivoting if strategy not in PIVOTING]
        if unknown:
            raise OptionError(f"pivoting is {unknown[0]!r}; accepted: {', '.join(PIVOTING)}")
        for name, pattern in (("select", self.select), ("exclude", self.exclude)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise OptionError(f"{name} is {pattern!r}, not a regular expression: {error}") from error
        object.__setattr__(self, "ranks", ranks)
        object.__setattr__(self, "pivoting", tuple(dict.fromkeys(self.pivoting)))

    def ranks_of(self, k: int) -> list[int]:
        """Return the ranks to measure on a matrix of full rank k, the last one k; ranks above k become k."""
        return sorted({min(rank, k) for rank in self.ranks} | {k})

"""Check the options of surveys and comparisons."""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from lowrank_ldu.decomposition import PIVOTING, Pivoting
from lowrank_ldu.errors import OptionError
from lowrank_ldu.validation import check_count, check_rank, explain_keywords, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Mode = Literal["fast", "exact", "cheap"]
MODES: tuple[Mode, ...] = get_args(Mode)
ComputeDtype = Literal["float32", "float64"]
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = get_args(ComputeDtype)

_LARGEST_RANK = 2**31 - 1
# Systems refuse to start many more threads.
_MOST_THREADS = 1024
_LARGEST_SEED = 2**63 - 1
_DEVICE = re.compile(r"cpu|cuda(:(0|[1-9]\d?))?|mps")


def available_cores() -> int:
    """Count the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Hold the options that surveys and comparisons share.

    `SurveyOptions` says what they mean.
    """

    ranks: tuple[int, ...] = (8, 64)
    pivoting: tuple[Pivoting, ...] = ("partial", "complete")
    select: str | None = None
    exclude: str | None = None
    seed: int = 0
    threads: int = field(default_factory=available_cores)
    device: str = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", _checked_device(self.device))
        self._make_tuples("ranks", "pivoting")
        object.__setattr__(self, "ranks", _checked_ranks(self.ranks))
        _check_choices("pivoting", self.pivoting, PIVOTING)
        object.__setattr__(self, "pivoting", tuple(dict.fromkeys(self.pivoting)))
        for name in ("select", "exclude"):
            _check_pattern(name, getattr(self, name))
        with _option_errors():
            check_count(self.seed, "seed")
            if self.seed > _LARGEST_SEED:
                raise ValueError(f"seed is {self.seed}; accepted: at most {_LARGEST_SEED}")
            check_rank(self.threads, _MOST_THREADS, "threads", optional=False)

    def _make_tuples(self, *names: str) -> None:
        """Store single values as tuples of one."""
        for name in names:
            value = getattr(self, name)
            if value is None:
                raise OptionError(f"{name} is None; accepted: one or a sequence of them")
            single = isinstance(value, str) or not isinstance(value, Iterable)
            object.__setattr__(self, name, (value,) if single else tuple(value))

    def ranks_of(self, k: int) -> list[int]:
        """Return the ranks to measure on a matrix.

        Ranks above its full rank k become k, and the last one is k.
        """
        return sorted({min(rank, k) for rank in self.ranks} | {k})

    def headline_rank(self, largest: int) -> int:
        """Return the largest rank asked for below `largest`.

        The last rank where none is below.
        """
        return max((rank for rank in self.ranks if rank < largest), default=self.ranks[-1])


@dataclass(frozen=True, kw_only=True)
class SurveyOptions(_Options):
    """Options of a survey.

    Attributes
    ----------
    ranks : tuple of int
        Ranks to measure, at least 1 each; in mode "exact" the full rank of each matrix too. Stored in ascending order,
        each once.
    pivoting : tuple of str
        Pivoting strategies of LDU, as for `lowrank_ldu.ldu`. Stored each once.
    select, exclude : str or None
        Regular expressions, searched anywhere in the name: analyze only the tensors that match `select`, and none
        that match `exclude`.
    mode : {"exact", "cheap", "fast"}
        "exact": the whole SVD of every matrix, and LDU to the full rank. "cheap": neither; the leading singular values
        are those of a randomized SVD, with bounds, and ranks are measured as far as they are asked for. A matrix whose
        smaller side is hardly larger than the largest rank is analyzed exactly in both. "fast": as far as they are
        asked for, without PiSSA and without times where they are not asked for; all singular values come from a Gram
        matrix where the smaller side has at most 1,024 rows, or else the leading ones from the sketch of the near-best
        LDU.
    targets : tuple of float
        Relative Frobenius errors: the smallest rank that reaches each is looked for. Above 0 and below 1. Stored in
        descending order, each once.
    dtype : {"float32", "float64"} or None
        What factorizations are computed in; None: float64 for weights in float64, float32 for all others. Figures are
        computed in float64 always.
    device : str
        What computes: "cpu", "cuda" (the current one), "cuda:N" or "mps". Figures are the same to rounding. Whether it
        is there is looked at when a survey begins; a cluster's workers compute on their CPUs.
    seed : int
        Draws the sketches of randomized pivoting and of quick PiSSA, and random starts of the diagonal; at least 0.
    threads : int
        Cores to use, from 1 to 1024.
    times : bool or None
        Whether methods are timed, once for each shape, on a random matrix. None: in modes "exact" and "cheap".

    A single rank, strategy or error may be given for a tuple of one.

    Raises
    ------
    OptionError
        One of them is out of range.

    Examples
    --------
    >>> SurveyOptions(ranks=8, pivoting="partial").ranks
    (8,)
    """

    mode: Mode = "fast"
    targets: tuple[float, ...] = (0.5, 0.1)
    dtype: ComputeDtype | None = None
    times: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choices("mode", (self.mode,), MODES)
        self._make_tuples("targets")
        object.__setattr__(self, "targets", _checked_targets(self.targets))
        if self.dtype is not None:
            _check_choices("dtype", (self.dtype,), COMPUTE_DTYPES)
        if self.times is not None and not isinstance(self.times, bool):
            raise OptionError(f"times is {self.times!r}; accepted: True, False or None")

    @property
    def has_times(self) -> bool:
        """Whether methods are timed."""
        return self.mode != "fast" if self.times is None else self.times

    @property
    def has_pissa(self) -> bool:
        """Whether PiSSA is measured."""
        return self.mode != "fast"


@dataclass(frozen=True, kw_only=True)
class CompareOptions(_Options):
    """Options of a comparison.

    Attributes
    ----------
    ranks, pivoting, select, exclude, threads, device
        As of `SurveyOptions`.
    seed : int
        Draws the sketches of randomized pivoting; at least 0.

    Raises
    ------
    OptionError
        One of them is out of range.

    Examples
    --------
    >>> CompareOptions(ranks=8).headline_rank(largest=384)
    8
    """


# Dataclasses make their own __init__, which is wrapped here.
for _kind, _hints in (
    (
        SurveyOptions,
        {
            "target": "it is targets here",
            "target_error": "it is targets here",
            "target_errors": "it is targets here",
        },
    ),
    (CompareOptions, dict.fromkeys(("mode", "targets", "dtype"), "comparisons have no such option")),
):
    _kind.__init__ = explain_keywords(  # type: ignore[method-assign]
        {"rank": "it is ranks here", "r": "it is ranks here", **_hints}
    )(_kind.__init__)


@contextmanager
def _option_errors() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error


def _checked_ranks(ranks: tuple[int, ...]) -> tuple[int, ...]:
    if not ranks:
        raise OptionError("ranks is empty; accepted: at least one rank")
    with _option_errors():
        return tuple(sorted({check_rank(rank, _LARGEST_RANK, optional=False) for rank in ranks}))


def _check_choices(name: str, given: Sequence[str], accepted: Sequence[str]) -> None:
    if not given:
        raise OptionError(f"{name} is empty; accepted: one or more of {', '.join(accepted)}")
    unknown = [value for value in given if value not in accepted]
    if unknown:
        raise OptionError(f"{name} is {unknown[0]!r}; accepted: {', '.join(accepted)}")


def _checked_device(device: object) -> str:
    """Return the name of a device, which torch's own kind has too."""
    name = device if isinstance(device, str) else str(device)
    if not _DEVICE.fullmatch(name):
        raise OptionError(f"device is {shown(device)}; accepted: cpu, cuda, cuda:N or mps")
    return name


def _check_pattern(name: str, pattern: str | None) -> None:
    if not isinstance(pattern, str | None):
        raise OptionError(f"{name} is {pattern!r}; accepted: a regular expression, or None")
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise OptionError(f"{name} is {pattern!r}, not a regular expression: {error}") from error


def _checked_targets(targets: Sequence[object]) -> tuple[float, ...]:
    if not targets:
        raise OptionError("targets is empty; accepted: at least one relative error")
    found = set()
    for target in targets:
        number = math.nan if isinstance(target, bool) or not isinstance(target, numbers.Real) else float(target)
        if not 0 < number < 1:
            raise OptionError(
                f"targets holds {target!r}; accepted: relative errors above 0 and below 1, which the zero matrix has"
            )
        found.add(number)
    return tuple(sorted(found, reverse=True))

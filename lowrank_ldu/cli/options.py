"""Declare the options that commands share."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from lowrank_ldu.cli.console import say
from lowrank_ldu.cli.errors import fail
from lowrank_ldu.decomposition import PIVOTING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowrank_ldu.analysis import CompareOptions, SurveyOptions
    from lowrank_ldu.decomposition import Pivoting
    from lowrank_ldu.finetuning.configuration import RunConfig

_Options = TypeVar("_Options", "SurveyOptions", "CompareOptions")


def choice(accepted: Sequence[str], **others: Any) -> Any:
    """Return an option that takes one of some words.

    They are shown and completed as such, and checked by whoever uses them.
    """

    def completed(incomplete: str) -> list[str]:
        return [word for word in accepted if word.startswith(incomplete)]

    # With room to break the line, where it would be broken inside a word.
    bar = "|" if len(accepted) < 4 else " | "
    return typer.Option(metavar=f"<{bar.join(accepted)}>", autocompletion=completed, **others)


CHECKPOINT = (
    "A .safetensors, .pt, .bin, .gguf, .onnx, .h5 or .npz file, an index, a directory, hf://OWNER/NAME, or the URL of "
    "safetensors (https, s3, gs)."
)

Rank = Annotated[
    list[int] | None,
    typer.Option(metavar="<int>", help="Rank to measure; repeat for more.", show_default="8, 64"),
]
PivotingNames = Annotated[
    list[str] | None,
    choice(PIVOTING, help="Pivoting strategy to measure; repeat for more.", show_default="partial, complete"),
]
Select = Annotated[str | None, typer.Option(help="Take only tensors whose name matches this regular expression.")]
Exclude = Annotated[str | None, typer.Option(help="Leave out tensors whose name matches this regular expression.")]
Seed = Annotated[int, typer.Option(help="Seed of randomized pivoting, quick PiSSA, sketches and random starts.")]
ThreadCount = Annotated[int | None, typer.Option(help="Cores to use, by threads of this process.", show_default="all")]

Device = Annotated[
    str,
    choice(("cpu", "cuda", "cuda:N", "mps"), help="Device to compute on, one matrix while the next is read."),
]


AcceptOtherBase = Annotated[
    bool,
    typer.Option(
        "--accept-other-base",
        help="Accept base weights that are not those of training, and say how far off they are.",
    ),
]
Basis = Annotated[
    Path | None,
    typer.Option(
        help="File of the fitted basis that an adapter's factors are of.",
        show_default="where the adapter says, or beside its folder",
    ),
]


class EngineKind(StrEnum):
    """Name what does the work."""

    LOCAL = "local"
    DASK = "dask"


EngineName = Annotated[EngineKind, typer.Option(help="local: threads of this process. dask: the workers of a cluster.")]
Scheduler = Annotated[
    str | None, typer.Option(help="With dask: the address of the scheduler, such as tcp://HOST:8786.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with a run that was stopped, if its journal is beside the folder.")
]

# Of fine-tuning, as in `lowrank_ldu.finetuning`, which is not imported for help.
REPORTS = ("none", "tensorboard", "wandb", "trackio")

Model = Annotated[str | None, typer.Option(help="Model: a folder, or OWNER/NAME on the hub.")]
Data = Annotated[str | None, typer.Option(help="Data: a folder or a file, or OWNER/NAME on the hub.")]
TaskNames = Annotated[
    list[str] | None, typer.Option(metavar="<str>", help="Task of the recipe; repeat for more.", show_default="all")
]
Variant = Annotated[str | None, typer.Option(help="Variant of the recipe.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe, for all runs; repeat for more."),
]
ReportTo = Annotated[str, choice(REPORTS, help="Where training is shown beside the logs.")]


def prefer_huge_pages() -> None:
    """Have torch allocate large buffers in huge pages.

    It must not be imported yet. On wide embeddings the kernel's page faults cost as much as the arithmetic.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def check_engine(engine: EngineKind, scheduler: str | None, threads: int | None, device: str) -> None:
    """Refuse options of one engine that are given with the other."""
    if engine is EngineKind.DASK and scheduler is None:
        fail("--engine dask is given without --scheduler; accepted: the scheduler's address, such as tcp://HOST:8786")
    if engine is not EngineKind.DASK and scheduler is not None:
        fail(f"--scheduler is given with --engine {engine.value}; accepted: with --engine dask")
    if engine is EngineKind.DASK and threads is not None:
        fail("--threads is given with --engine dask, whose workers have their own; accepted: with --engine local")
    if engine is EngineKind.DASK and device != "cpu":
        fail(f"--device is {device} with --engine dask, whose workers would share it; accepted: with --engine local")


def check_report(report_to: str) -> None:
    """Refuse a word that is none of `REPORTS`."""
    if report_to not in REPORTS:
        fail(f"--report-to is {report_to!r}; accepted: {', '.join(REPORTS)}")


def tell_unchecked(configs: Iterable[tuple[str, RunConfig]]) -> None:
    """Check targets and ranks of a dry run, and name models that cannot be looked at without their files."""
    from lowrank_ldu.finetuning.model_check import check_models  # noqa: PLC0415  # slow to import

    for model in check_models(configs, download=False):
        say(f"not checked: targets and ranks on {model}, whose layers are known when a run begins", err=True)


def options_of(
    kind: type[_Options],
    *,
    rank: list[int] | None,
    pivoting: list[str] | None,
    select: str | None,
    exclude: str | None,
    seed: int,
    threads: int | None,
    **others: Any,
) -> _Options:
    """Return the options of a survey or comparison from the command line's.

    None stands for the default.

    Raises
    ------
    OptionError
        One of them is out of its range.
    """
    for name in pivoting or []:
        if name not in PIVOTING:
            fail(f"--pivoting is {name!r}; accepted: {', '.join(PIVOTING)}, and --pivoting again for each further one")
    if threads is not None:
        others["threads"] = threads
    return kind(
        ranks=tuple(rank or kind.ranks),
        pivoting=cast("tuple[Pivoting, ...]", tuple(pivoting or kind.pivoting)),  # checked in there
        select=select,
        exclude=exclude,
        seed=seed,
        **others,
    )

"""Run `lowrank-ldu bench`: one layer, timed in every way."""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.table import Table

from lowrank_ldu.cli.console import SafeConsole, say
from lowrank_ldu.cli.errors import fail, readable_errors
from lowrank_ldu.cli.options import choice

if TYPE_CHECKING:
    import torch

    from lowrank_ldu.measuring import Case, Row
    from lowrank_ldu.measuring.run import Result

_MODES = {"forward": "forward, without gradients", "training": "forward and backward"}


def show_rows(case: Case, result: Result) -> None:
    """Print the tables of a case."""
    console = SafeConsole()
    for mode in case.modes:
        rows = [row for row in result.rows if row.mode == mode]
        first = rows[0]
        threads = f"{first.threads} thread{'s' * (first.threads > 1)}"
        where = f"{first.device_name}, {threads}" if first.device == "cpu" else first.device_name
        where += ", beside a busy process" if first.neighbors else ""
        table = Table(title=f"{case.title}, {first.dtype}: {_MODES[mode]}\n{where}", title_justify="left")
        table.add_column("method")
        for heading in ("ratio", "ms", "20 - 80 %", "peak MB", "kept MB"):
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(
                row.label,
                f"{row.ratio:.2f}",
                f"{row.p50_ms:.3g}",
                f"{row.p20_ms:.3g} - {row.p80_ms:.3g}",
                f"{row.peak_bytes / 1e6:.3g}",
                f"{row.saved_bytes / 1e6:.3g}" if mode == "training" else "",
            )
        console.print(table)
        console.print(_choice_line(rows))
        console.print()
    for name, reason in result.left_out.items():
        console.print(f"not run: {name}: {reason}")


def _choice_line(rows: list[Row]) -> str:
    """Say how far "auto" is from the fastest plan."""
    plans = [row for row in rows if row.plan and "batch" not in row.method]
    auto = next(row for row in plans if row.plan == "auto")
    best = min((row for row in plans if row.plan != "auto"), key=lambda row: row.p50_ms)
    return f"auto ({auto.chosen}) takes {auto.p50_ms / best.p50_ms:.2f} of the fastest plan's time ({best.plan})"


# As in `lowrank_ldu.measuring`, which is not imported for help.
PRESETS = ("base", "quick", "llama", "decode")
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_DEVICES = ("cpu", "cuda")
_THREADS = 2
_TOKENS, _LORA_RANK = 2048, 16
_SECONDS, _QUICK_SECONDS = 20.0, 3.0
# Until PEFT is loaded.
_LOADING = 5.0


def bench(
    *,
    preset: Annotated[
        list[str] | None,
        choice(
            PRESETS,
            help="base: 768, of RoBERTa and ViT-B. quick: one small layer, in 20 s. llama: 4096 and 11008. decode: 1 "
            "and 8 tokens. Repeat for more.",
            show_default="base",
        ),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="OUTxIN", help="A layer of your own instead of presets, such as 768x3072.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="With --shape: rows of the batch.", show_default=f"{_TOKENS}")
    ] = None,
    rank: Annotated[
        list[int] | None,
        typer.Option(metavar="<int>", help="With --shape: rank of the adapter; repeat for more.", show_default="64"),
    ] = None,
    device: Annotated[
        str | None,
        choice(_DEVICES, help="Device to measure on.", show_default="cuda where there is a GPU, cpu elsewhere"),
    ] = None,
    dtype: Annotated[
        str | None, choice(_DTYPES, help="Dtype of the layer.", show_default="bfloat16 on a GPU, float32 elsewhere")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads, at most as many as there are cores.")] = _THREADS,
    lora_rank: Annotated[int, typer.Option(metavar="<int>", help="Rank of PEFT's LoRA.")] = _LORA_RANK,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Time for each table with its checks, as far as three rounds allow.",
            show_default=f"{_SECONDS:g}; with --preset quick {_QUICK_SECONDS:g}",
        ),
    ] = None,
    busy: Annotated[bool, typer.Option("--busy", help="Measure beside a process that keeps a core busy.")] = False,
    adapters: Annotated[int, typer.Option(help="Adapters of the mixed batch.")] = 1000,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results.csv and the plots.", show_default="none is written")
    ] = None,
    append: Annotated[Path | None, typer.Option(help="A results.csv to add the new rows to, in --out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are in the folder.")] = False,
) -> None:
    """Time one linear layer in every way of computing it.

    Frozen, fully fine-tuned, by LoRA, by the paper's formula, and by every plan of this package. All take turns in one
    run, in an order drawn anew in each round, so that ratios mean something; each is checked against float64 first.
    Plans that cannot run on this machine are listed with the reason.
    """
    import os  # noqa: PLC0415

    # Before torch is loaded: its profiler, which tells the memory, warns of what was allocated before it began.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415
    from lowrank_ldu.measuring import read_rows, write_plots, write_rows  # noqa: PLC0415

    where, kind = _device(device, dtype)
    for name, number in (
        ("--tokens", _TOKENS if tokens is None else tokens),
        ("--threads", threads),
        ("--lora-rank", lora_rank),
        ("--adapters", adapters),
    ):
        if number < 1:
            fail(f"{name} is {number}; accepted: from 1 on")
    if seconds is None:
        seconds = _QUICK_SECONDS if preset == ["quick"] else _SECONDS
    if not 0 < seconds < float("inf"):
        fail(f"--seconds is {seconds:g}; accepted: a positive number")
    if append is not None and out is None:
        fail("--append is given without --out; accepted: both")
    cases = _cases(preset, shape, tokens, rank, where.type)
    for case in cases:
        _check_size(case, kind, adapters)
    settings = _Settings(where, kind, threads, seconds, adapters, lora_rank, busy)
    with readable_errors():
        before = [] if append is None else read_rows(append)
        if out is None:
            _measure(cases, settings)
            return
        with whole_folder(out, overwrite=overwrite, otherwise="--overwrite") as folder:
            rows = _measure(cases, settings)
            write_rows([*before, *rows], folder / "results.csv")
            write_plots(rows, folder)
        say(f"written to {out}: results.csv, ratios.png, ratios.svg")


def _device(device: str | None, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    import torch  # noqa: PLC0415

    if device is not None and device not in _DEVICES:
        fail(f"--device is {device!r}; accepted: {', '.join(_DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        fail("--device is 'cuda', and torch finds no such device; accepted: cpu")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    if name not in _DTYPES:
        fail(f"--dtype is {name!r}; accepted: {', '.join(_DTYPES)}")
    return where, getattr(torch, name)


def _check_size(case: Case, dtype: torch.dtype, adapters: int) -> None:
    """Refuse a layer that is larger than the memory.

    Its weight, batch and adapters alone are counted.
    """
    from lowrank_ldu.environment import physical_memory  # noqa: PLC0415

    m, n = case.out_features, case.in_features
    needed = dtype.itemsize * (m * n + case.tokens * (m + n) + adapters * case.rank)
    memory = physical_memory()
    if needed > memory:
        fail(
            f"{case.title}, {adapters} adapters: takes {needed / 1e9:.3g} GB; accepted: --shape, --tokens and "
            f"--adapters that fit the {memory / 1e9:.3g} GB of memory"
        )


def _cases(
    preset: list[str] | None, shape: str | None, tokens: int | None, rank: list[int] | None, device: str
) -> list[Case]:
    from lowrank_ldu.measuring import Case, cases_of  # noqa: PLC0415

    if shape is None:
        for name, given in (("--rank", rank), ("--tokens", tokens)):
            if given:
                fail(f"{name} is given without --shape; accepted: both, or a preset")
        with readable_errors():
            return [case for name in preset or ["base"] for case in cases_of(name, device)]
    if preset:
        fail("--shape and --preset are given; accepted: one of them")
    found = re.fullmatch(r"([1-9]\d{0,17})x([1-9]\d{0,17})", shape)
    if found is None:
        fail(f"--shape is {shape!r}; accepted: OUTxIN, such as 768x3072")
    m, n = map(int, found.groups())
    for each in rank or []:
        if not 1 <= each <= min(m, n):
            fail(f"--rank is {each}; accepted: 1 to {min(m, n)} for a layer {m} x {n}")
    return [Case(m, n, tokens or _TOKENS, each) for each in rank or [min(64, m, n)]]


class _Settings(NamedTuple):
    """Hold what is the same for all cases."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    seconds: float
    adapters: int
    lora_rank: int
    busy: bool


def _measure(cases: list[Case], settings: _Settings) -> list[Row]:
    import os  # noqa: PLC0415
    from contextlib import ExitStack  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from lowrank_ldu.cli.progress import show_measuring  # noqa: PLC0415
    from lowrank_ldu.environment import describe_environment  # noqa: PLC0415
    from lowrank_ldu.formatting import duration  # noqa: PLC0415
    from lowrank_ldu.measuring import busy_neighbor, expected_seconds, run_case  # noqa: PLC0415

    device, dtype, seconds = settings.device, settings.dtype, settings.seconds
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else describe_environment().cpu
    rows: list[Row] = []
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(min(settings.threads, os.cpu_count() or 1))
        tables = sum(len(case.modes) for case in cases)
        total = _LOADING + sum(expected_seconds(case, device, dtype, seconds) for case in cases)
        say(f"{tables} table{'s' * (tables > 1)}, about {duration(round(total))}", err=True)
        check = stack.enter_context(busy_neighbor()) if settings.busy else None
        for number, case in enumerate(cases, 1):
            with show_measuring(f"{number}/{len(cases)}") as progress:
                result = run_case(
                    case,
                    device=device,
                    dtype=dtype,
                    seconds=seconds,
                    adapters=settings.adapters,
                    device_name=name,
                    lora_rank=settings.lora_rank,
                    neighbors=int(settings.busy),
                    progress=progress,
                )
            if check is not None:
                check()
            show_rows(case, result)
            rows += result.rows
    return rows

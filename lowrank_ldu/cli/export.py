"""`lowrank-ldu export`: an adapter as a LoRA adapter, a merged model, or dense updates."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from lowrank_ldu.cli.errors import fail, readable_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowrank_ldu.adapters import AdapterFile, BaseCheckpoint


class Target(StrEnum):
    """What an adapter is turned into."""

    LORA = "lora"
    MERGED = "merged"
    DELTA = "delta"


def export(
    adapter: Annotated[
        Path, typer.Argument(help="Folder of the adapter: of save_adapter, or of PEFT's save_pretrained.")
    ],
    *,
    to: Annotated[Target, typer.Option(help="lora: pairs for plain PEFT. merged: the model. delta: dense updates.")],
    base: Annotated[Path, typer.Option(help="The base model: a .safetensors file, an index of shards, or a folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the result.")],
    compress: Annotated[
        int | None, typer.Option(help="With lora: truncate each pair to this rank, optimally, and print the error.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept base weights that are not those of training, and warn.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are in the folder.")] = False,
) -> None:
    """Turn a LoLDU adapter into something that needs no LoLDU.

    LoRA pairs are exact (rank r, alpha r) unless --compress truncates them. A merged model is written shard by shard,
    with one tensor in memory at a time; sums are float32 and rounded once.
    """
    from lowrank_ldu.adapters import AdapterError, BaseCheckpoint, read_adapter  # noqa: PLC0415
    from lowrank_ldu.analysis.report.folder import OutputError, whole_folder  # noqa: PLC0415

    if compress is not None and to is not Target.LORA:
        fail(f"--compress is given with --to {to.value}; accepted: with --to lora")
    if compress is not None and compress < 1:
        fail(f"--compress is {compress}; accepted: a rank from 1 on")
    with readable_errors(AdapterError, OutputError):
        source, checkpoint = read_adapter(adapter), BaseCheckpoint(base)
        if out.exists() and checkpoint.root.resolve() == out.resolve():
            fail(f"--out is {out}, which holds the base model; accepted: another folder")
        with whole_folder(out, overwrite=overwrite) as folder, _warnings_as_lines():
            lines = _export(to, source, checkpoint, folder, compress=compress, force=force)
        for line in lines:
            typer.echo(line)
        typer.echo(f"written to {out}")


def _export(
    to: Target, source: AdapterFile, checkpoint: BaseCheckpoint, folder: Path, *, compress: int | None, force: bool
) -> list[str]:
    from lowrank_ldu.adapters import export_delta, export_lora, export_merged  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_items  # noqa: PLC0415

    total = len(checkpoint.files) if to is Target.MERGED else len(source.layers)
    with show_items(total) as progress:
        if to is Target.LORA:
            result = export_lora(source, checkpoint, folder, rank=compress, force=force, progress=progress)
            ranks = sorted(set(result.ranks.values()))
            said = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
            lines = [f"{len(result.ranks)} LoRA pairs of {said}, {result.bytes / 1e3:.0f} kB"]
            if compress is not None:
                worst = max(result.errors, key=lambda name: result.errors[name])
                mean = sum(result.errors.values()) / len(result.errors)
                lines.append(
                    f"relative error of the updates: {mean:.2%} on average, at most {result.errors[worst]:.2%} "
                    f"({worst})"
                )
            return lines
        write: Callable[..., list[str]] = export_merged if to is Target.MERGED else export_delta
        names = write(source, checkpoint, folder, force=force, progress=progress)
        return [f"{len(names)} tensors {'merged' if to is Target.MERGED else 'of updates'}"]


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print warnings as lines of their own: what --force let pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: typer.echo(f"warning: {message}", err=True)
        yield

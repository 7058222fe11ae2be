"""Export an adapter by `lowrank-ldu export`.

It becomes a LoRA adapter, a merged model, or dense updates.
"""

from __future__ import annotations

import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowrank_ldu.cli.console import say
from lowrank_ldu.cli.errors import fail, readable_errors
from lowrank_ldu.cli.options import AcceptOtherBase, Basis  # noqa: TC001  # typer reads the annotations

if TYPE_CHECKING:
    from lowrank_ldu.adapters import AdapterFile
    from lowrank_ldu.checkpoints import CheckpointReader


class ExportFormat(StrEnum):
    """What an adapter is turned into."""

    LORA = "lora"
    MERGED = "merged"
    DELTA = "delta"


def export(
    adapter: Annotated[
        Path, typer.Argument(help="Folder of the adapter: of save_adapter, or of PEFT's save_pretrained.")
    ],
    *,
    to: Annotated[
        ExportFormat, typer.Option(help="lora: pairs for plain PEFT. merged: the model. delta: dense updates.")
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            help="The base model: a .safetensors file, an index of shards, or a folder.",
            show_default="the folder that PEFT's configuration names",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the result.")],
    compress: Annotated[
        int | None, typer.Option(help="With lora: truncate each pair to this rank, optimally, and print the error.")
    ] = None,
    keep_module_dtype: Annotated[
        bool,
        typer.Option(
            "--keep-module-dtype", help="With merged: write modules trained whole in their own dtype, not the base's."
        ),
    ] = False,
    accept_other_base: AcceptOtherBase = False,
    basis: Basis = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are in the folder.")] = False,
) -> None:
    """Turn a LoLDU adapter into something that needs no LoLDU.

    LoRA pairs are exact (rank r, alpha r) unless --compress truncates them. A merged model is written shard by shard,
    with one tensor in memory at a time; sums are float32 and rounded once. What was written is read again and compared
    with base and adapter before the folder gets its name.
    """
    from lowrank_ldu.adapters import read_adapter  # noqa: PLC0415
    from lowrank_ldu.checkpoints import open_checkpoint  # noqa: PLC0415

    if compress is not None and to is not ExportFormat.LORA:
        fail(f"--compress is given with --to {to.value}; accepted: with --to lora")
    if compress is not None and compress < 1:
        fail(f"--compress is {compress}; accepted: a rank from 1 on")
    if keep_module_dtype and to is not ExportFormat.MERGED:
        fail(f"--keep-module-dtype is given with --to {to.value}; accepted: with --to merged")
    with readable_errors():
        source = read_adapter(adapter)
        checkpoint = open_checkpoint(_base_of(source) if base is None else base)
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            lines = _export(
                to,
                source,
                checkpoint,
                out,
                compress=compress,
                keep_module_dtype=keep_module_dtype,
                accept_other_base=accept_other_base,
                basis=basis,
                overwrite=overwrite,
            )
        for line in lines:
            say(line)
        say(f"written to {out}")


def _base_of(source: AdapterFile) -> Path:
    if source.base_model is None:
        fail(
            "--base is not given, and the adapter does not name its base; accepted: --base with the base model's folder"
        )
    named = Path(str(source.base_model))
    if not named.exists():
        fail(
            f"--base is not given, and the base that the adapter names, {source.base_model!r}, is no folder or file "
            "here; accepted: --base with the base model's folder"
        )
    return named


def _export(
    to: ExportFormat,
    source: AdapterFile,
    checkpoint: CheckpointReader,
    out: Path,
    *,
    compress: int | None,
    keep_module_dtype: bool,
    accept_other_base: bool,
    basis: Path | None,
    overwrite: bool,
) -> list[str]:
    from lowrank_ldu.adapters import export_delta, export_lora, export_merged  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_items  # noqa: PLC0415

    files = {info.file for info in checkpoint.tensors}
    with show_items(len(files) if to is ExportFormat.MERGED else len(source.layers)) as progress:
        if to is ExportFormat.LORA:
            result = export_lora(
                source,
                checkpoint,
                out,
                rank=compress,
                accept_other_base=accept_other_base,
                basis=basis,
                overwrite=overwrite,
                progress=progress,
            )
            ranks = sorted(set(result.ranks.values()))
            said = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
            lines = [f"{len(result.ranks)} LoRA pairs of {said}, {result.bytes / 1e3:.0f} kB"]
            if compress is not None and compress > max(result.ranks.values()):
                lines.append(f"--compress {compress} changed nothing: no layer has a higher rank")
            elif compress is not None:
                worst = max(result.errors, key=lambda name: result.errors[name])
                mean = sum(result.errors.values()) / len(result.errors)
                lines.append(
                    f"relative error of the updates: {mean:.2%} on average, at most {result.errors[worst]:.2%} "
                    f"({worst})"
                )
            return lines
        if to is ExportFormat.DELTA:
            names = export_delta(
                source,
                checkpoint,
                out,
                accept_other_base=accept_other_base,
                basis=basis,
                overwrite=overwrite,
                progress=progress,
            )
            return [f"{len(names)} tensors of updates"]
        names = export_merged(
            source,
            checkpoint,
            out,
            keep_module_dtype=keep_module_dtype,
            accept_other_base=accept_other_base,
            basis=basis,
            overwrite=overwrite,
            progress=progress,
        )
        return [f"{len(names)} tensors merged"]

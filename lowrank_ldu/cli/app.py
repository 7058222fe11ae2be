"""The commands, each registered from its own file."""

from __future__ import annotations

from typing import Annotated

import typer

import lowrank_ldu
from lowrank_ldu.cli.analyze import analyze
from lowrank_ldu.cli.bench import bench
from lowrank_ldu.cli.claims import claims
from lowrank_ldu.cli.compare import compare
from lowrank_ldu.cli.demo import demo
from lowrank_ldu.cli.export import export

# Nothing here may import torch, matplotlib or the like: --help has to be quick. Commands import them when they run.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lowrank-ldu {lowrank_ldu.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        # The callback does the work.
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Pivoted LDU factorization of model weights: analyze it, fine-tune with it, compare it with SVD and PiSSA."""


app.command()(analyze)
app.command()(bench)
app.command()(claims)
app.command()(compare)
app.command()(demo)
app.command()(export)

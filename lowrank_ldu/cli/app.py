"""Register the commands, each from its own file."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import lowrank_ldu
from lowrank_ldu.cli.analyze import analyze
from lowrank_ldu.cli.bench import bench
from lowrank_ldu.cli.claims import claims
from lowrank_ldu.cli.compare import compare
from lowrank_ldu.cli.compare_methods import compare_methods
from lowrank_ldu.cli.demo import demo
from lowrank_ldu.cli.export import export
from lowrank_ldu.cli.finetune import finetune

if TYPE_CHECKING:
    _Help = TyperCommand
else:
    _Help = object


class _PlainHelp(_Help):
    """Show flags without a type, and arguments without braces."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [piece[1:-1].upper() if piece.startswith("{") else piece for piece in pieces]


class _Command(_PlainHelp, TyperCommand):
    """A command with plain help."""


class _Commands(_PlainHelp, TyperGroup):
    """The commands, with plain help."""


# Nothing here may import torch, matplotlib or the like: --help and completion have to be quick. Commands import them
# when they run.
app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


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


for _command in (analyze, bench, claims, compare, compare_methods, demo, export, finetune):
    # Typer wraps each line of a docstring by itself, and would break paragraphs in mid-sentence.
    _paragraphs = (inspect.getdoc(_command) or "").split("\n\n")
    app.command(cls=_Command, help="\n\n".join(" ".join(each.split()) for each in _paragraphs))(_command)

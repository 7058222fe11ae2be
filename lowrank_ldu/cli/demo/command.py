"""The command: pre-train, analyse, fine-tune by every method, save, reload, merge, report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lowrank_ldu.cli.errors import readable_errors

_RANKS = (8, 32)


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the report, the weights and the adapter.")] = Path(
        "lowrank-ldu-demo"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier run left in the folder.")] = False,
) -> None:
    """Run everything once on data that comes with scikit-learn: no download, about two minutes on two cores.

    A small vision transformer is pre-trained on handwritten digits and its weights are analysed. It is then fine-tuned
    on other images, turned upside down and inverted, by linear probe, LoLDU, LoRA, PiSSA and full fine-tuning with the
    same batches. The LoLDU adapter is saved, reloaded and merged.
    """
    from lowrank_ldu.analysis.options import SurveyOptions  # noqa: PLC0415
    from lowrank_ldu.analysis.report import write_report  # noqa: PLC0415
    from lowrank_ldu.analysis.run import analyse_checkpoint  # noqa: PLC0415
    from lowrank_ldu.cli.demo.round_trip import BASE_FILE, round_trip  # noqa: PLC0415
    from lowrank_ldu.cli.demo.section import comparison_section  # noqa: PLC0415
    from lowrank_ldu.cli.demo.summary import show_comparison, write_comparison  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_progress, show_steps  # noqa: PLC0415
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415
    from lowrank_ldu.finetune import compare_methods  # noqa: PLC0415

    # A missing package of the extra is an ImportError, whose message names the extra.
    with (
        readable_errors(),
        whole_folder(out, overwrite=force, otherwise="--force") as folder,
    ):
        with show_steps() as on_progress:
            comparison = compare_methods(on_progress=on_progress)
        saved = round_trip(comparison, folder)
        with show_progress() as progress:
            analysis = analyse_checkpoint(folder / BASE_FILE, SurveyOptions(ranks=_RANKS), progress)
        # The folder gets its own name at the end.
        analysis = replace(analysis, checkpoint=str(out / BASE_FILE))
        write_comparison(comparison, folder / "comparison.csv")
        write_report(analysis, folder, sections=[comparison_section(comparison, saved)])
        show_comparison(comparison, saved, analysis, out)

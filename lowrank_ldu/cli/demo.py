"""Run `lowrank-ldu demo`: the whole path on real data."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lowrank_ldu.cli.console import SafeConsole, say
from lowrank_ldu.cli.errors import readable_errors
from lowrank_ldu.cli.long_runs import LOADING, WRITING

_RECIPE, _COMPARISON = "digits", "demo"
_RANKS = (8, 32)
_HEADLINES_SHOWN = 5


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the report, the weights and the adapter.")] = Path(
        "lowrank-ldu-demo"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier run left in the folder.")
    ] = False,
) -> None:
    """Run everything once on data that comes with scikit-learn.

    No download, about three minutes. A small vision transformer is pre-trained on handwritten digits, the first time,
    and its weights are analyzed. It is then fine-tuned on other images, turned upside down and inverted, by linear
    probe, LoLDU, LoRA, PiSSA and full fine-tuning with the same batches. The LoLDU adapter is reloaded and merged.
    """
    from lowrank_ldu.cli.compare_methods import show_comparison  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_items, show_progress, show_stage  # noqa: PLC0415
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415

    with show_stage(LOADING):
        from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint, headlines, write_report  # noqa: PLC0415
        from lowrank_ldu.demo.report import comparison_section, saved_sentences, start_sentence  # noqa: PLC0415
        from lowrank_ldu.demo.round_trip import BASE_FILE, round_trip  # noqa: PLC0415
        from lowrank_ldu.finetuning import comparison as comparing  # noqa: PLC0415
        from lowrank_ldu.finetuning.digits.determinism import single_threaded  # noqa: PLC0415
        from lowrank_ldu.finetuning.recipe import load_recipe  # noqa: PLC0415

    # A missing package of the extra is an ImportError, whose message names the extra.
    with (
        readable_errors(),
        single_threaded(),
        whole_folder(out, overwrite=overwrite, otherwise="--overwrite") as folder,
    ):
        # PEFT asks transformers for it, and no user can change that.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # Gradients of a few layers have a lower rank, which is what their basis then has.
        warnings.filterwarnings("ignore", ".*a lower rank than asked for", UserWarning)
        recipe = load_recipe(_RECIPE)
        plan = comparing.plan_comparison(recipe, folder, comparing.select_entries(recipe, comparison=_COMPARISON))
        count = len(list(plan.pairs)) * (plan.trials * plan.trial_seeds + len(plan.seeds))
        with show_items(count) as tell:
            trained = comparing.compare_methods(plan, tell=tell)
        methods = comparing.write_comparison(plan, trained)
        saved = round_trip(trained, folder)
        with show_progress() as progress:
            analysis = analyze_checkpoint(folder / BASE_FILE, SurveyOptions(ranks=_RANKS), progress)
        # The folder gets its own name at the end.
        analysis = replace(analysis, checkpoint=str(out / BASE_FILE))
        with show_stage(WRITING):
            write_report(analysis, folder, sections=[comparison_section(plan, methods, saved)])
        console = SafeConsole()
        console.print(start_sentence())
        show_comparison(plan, methods)
        for sentence in (*saved_sentences(saved), "The pre-trained weights:", *headlines(analysis)[:_HEADLINES_SHOWN]):
            console.print(sentence)
        say(f"Report: {out / 'report.html'}")

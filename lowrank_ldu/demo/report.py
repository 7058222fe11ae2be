"""Report the demo's comparison as a section of the report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowrank_ldu.finetuning.comparison import score_panel, sentences, table_rows
from lowrank_ldu.finetuning.comparison.report import HEADINGS
from lowrank_ldu.finetuning.digits import DEFAULT_SHIFT, pretrained_digits_vit
from lowrank_ldu.finetuning.digits.data import load_digits_split
from lowrank_ldu.finetuning.digits.pretraining import accuracy

if TYPE_CHECKING:
    import pandas as pd

    from lowrank_ldu.demo.round_trip import RoundTrip
    from lowrank_ldu.finetuning.comparison import Plan


def comparison_section(plan: Plan, methods: pd.DataFrame, saved: RoundTrip) -> Markup:
    """Return the comparison as a section of HTML.

    The table, a plot of accuracy against trained numbers, and what was saved.
    """
    (task,) = plan.tasks
    environment = Environment(
        loader=PackageLoader("lowrank_ldu.demo"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template(
        "comparison.html.j2"
    ).render(
        columns=HEADINGS[:-1],  # no paper has these figures
        rows=[cells[:-1] for cells in table_rows(methods, task)],
        settings=[start_sentence(), *sentences(plan, methods, task)],
        sentences=saved_sentences(saved),
        plot=Markup(score_panel(methods, task).to_svg()),  # noqa: S704  # drawn from numbers and the entries' titles
    )
    return Markup(html)  # noqa: S704  # escaped by the template


def start_sentence() -> str:
    """Say what the pre-trained network gets right before any fine-tuning."""
    split, (model, _) = load_digits_split(), pretrained_digits_vit()
    upright, shifted = (100 * accuracy(model, images) for images in (split.upright_test, split.test))
    return (
        f"Pre-trained on {len(split.pretraining)} upright digits: {upright:.1f} % of the upright test images are "
        f"right, and {shifted:.1f} % of the same images in the rendering of the new task ({DEFAULT_SHIFT})."
    )


def saved_sentences(saved: RoundTrip) -> list[str]:
    """Say what came of saving, reloading and merging."""
    differences = ", ".join(f"{name} {value:.1e}" for name, value in saved.differences.items())
    accuracies = ", ".join(f"{name} {100 * share:.1f}" for name, share in saved.accuracies.items())
    return [
        f"{saved.method}: {saved.parameters}.",
        (
            f"Adapter with head on disk: {saved.adapter_bytes:,} bytes, base: {saved.base_bytes:,}. Largest difference "
            f"of a logit from the trained model's, over the largest logit: {differences}. Accuracy (%): {accuracies}."
        ),
    ]

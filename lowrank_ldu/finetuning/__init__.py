"""Fine-tune models by recipes, each a file of a task's options.

`run_recipe` is the entry (``finetune`` extra).
"""

from __future__ import annotations

from lowrank_ldu.finetuning.recipe import Choice, Recipe, list_recipes, load_recipe
from lowrank_ldu.finetuning.runner import run_recipe, train
from lowrank_ldu.finetuning.runs import Result, Run, median_scores, plan_runs

__all__ = [
    "Choice",
    "Recipe",
    "Result",
    "Run",
    "list_recipes",
    "load_recipe",
    "median_scores",
    "plan_runs",
    "run_recipe",
    "train",
]


def __dir__() -> list[str]:
    return __all__

"""Fine-tune models on tasks by recipes, by one of many methods.

`run_recipe` is the entry (``finetune`` extra). The methods are behind one interface: LoLDU in every form, those of
PEFT, and whole or partial fine-tuning.
"""

from __future__ import annotations

from lowrank_ldu.finetuning.digits import pretrained_digits_vit
from lowrank_ldu.finetuning.methods import METHODS, Method, MethodRequest, Prepared, get_method
from lowrank_ldu.finetuning.recipe import Choice, Recipe, list_recipes, load_recipe
from lowrank_ldu.finetuning.runner import run_recipe, train
from lowrank_ldu.finetuning.runs import Result, Run, median_scores, plan_runs

__all__ = [
    "METHODS",
    "Choice",
    "Method",
    "MethodRequest",
    "Prepared",
    "Recipe",
    "Result",
    "Run",
    "get_method",
    "list_recipes",
    "load_recipe",
    "median_scores",
    "plan_runs",
    "pretrained_digits_vit",
    "run_recipe",
    "train",
]


def __dir__() -> list[str]:
    return __all__

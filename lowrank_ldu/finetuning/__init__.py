"""Fine-tune models on tasks by recipes, by one of many methods.

`run_recipe` and `compare_methods` are the entries (``finetune`` extra). The methods are behind one interface: LoLDU in
every form, those of PEFT, and whole or partial fine-tuning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowrank_ldu.finetuning.digits import pretrained_digits_vit
from lowrank_ldu.finetuning.methods import METHODS, Method, MethodRequest, Prepared, get_method
from lowrank_ldu.finetuning.recipe import Choice, Recipe, list_recipes, load_recipe
from lowrank_ldu.finetuning.runner import run_recipe, train
from lowrank_ldu.finetuning.runs import Result, Run, median_scores, plan_runs

if TYPE_CHECKING:
    from lowrank_ldu.finetuning.comparison import (
        Plan,
        Selection,
        Trained,
        compare_methods,
        figures_frame,
        methods_frame,
        plan_comparison,
        runs_frame,
        select_entries,
        write_comparison,
    )

__all__ = [
    "METHODS",
    "Choice",
    "Method",
    "MethodRequest",
    "Plan",
    "Prepared",
    "Recipe",
    "Result",
    "Run",
    "Selection",
    "Trained",
    "compare_methods",
    "figures_frame",
    "get_method",
    "list_recipes",
    "load_recipe",
    "median_scores",
    "methods_frame",
    "plan_comparison",
    "plan_runs",
    "pretrained_digits_vit",
    "run_recipe",
    "runs_frame",
    "select_entries",
    "train",
    "write_comparison",
]
# pandas and matplotlib are imported when methods are compared.
_OF_COMPARISON = frozenset(
    {
        "Plan",
        "Selection",
        "Trained",
        "compare_methods",
        "figures_frame",
        "methods_frame",
        "plan_comparison",
        "runs_frame",
        "select_entries",
        "write_comparison",
    }
)


def __getattr__(name: str) -> Any:
    if name not in _OF_COMPARISON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.comparison"), name)
    return value


def __dir__() -> list[str]:
    return __all__

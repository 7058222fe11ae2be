"""Fine-tune models on tasks by recipes, by one of many methods.

`run_recipe` and `compare_methods` are the entries (``finetune`` extra). The methods are behind one interface: LoLDU in
every form, those of PEFT, and whole or partial fine-tuning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
# Imported when they are first asked for: torch, PEFT, pandas and matplotlib take seconds.
_MODULES = {
    "digits": {"pretrained_digits_vit"},
    "methods": {"METHODS", "Method", "MethodRequest", "Prepared", "get_method"},
    "recipe": {"Choice", "Recipe", "list_recipes", "load_recipe"},
    "runner": {"run_recipe", "train"},
    "runs": {"Result", "Run", "median_scores", "plan_runs"},
    "comparison": {
        "Plan", "Selection", "Trained", "compare_methods", "figures_frame", "methods_frame", "plan_comparison",
        "runs_frame", "select_entries", "write_comparison",
    },
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__

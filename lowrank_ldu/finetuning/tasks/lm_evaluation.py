"""Evaluate language models by tasks of lm-eval."""

from __future__ import annotations

import copy
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import MissingExtraError, OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.tasks.lm_tasks import INCLUDE, TASKS, check_folder, task_manager, unsafe_tasks
from lowrank_ldu.validation import is_several, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

LIMIT, FEWSHOT, UNSAFE = "lm_eval_limit", "lm_eval_num_fewshot", "lm_eval_run_unsafe_code"
OPTIONS: Mapping[str, Any] = {TASKS: [], LIMIT: None, FEWSHOT: None, INCLUDE: None, UNSAFE: False}
# What the library that runs generated code asks for.
_ALLOWED = "HF_ALLOW_CODE_EVAL"
# Of the splits of a run.
_TAKEN = "validation"


def check_lm_options(options: Mapping[str, Any]) -> None:
    """Check the types of the options of evaluation.

    Raises
    ------
    OptionError
        The message names the option.
    """
    names = options[TASKS]
    if not is_several(names) or not all(isinstance(each, str) and each for each in names):
        raise OptionError(f"{TASKS} is {shown(names)}; accepted: a list of names of lm-eval's tasks, [] for none")
    if len(set(names)) < len(names) or _TAKEN in names:
        raise OptionError(f"{TASKS} is {shown(names)}; accepted: each name once, and none is {_TAKEN!r}")
    limit, fewshot = options[LIMIT], options[FEWSHOT]
    if limit is not None and not _is_count(limit, 1):
        raise OptionError(f"{LIMIT} is {shown(limit)}; accepted: an integer from 1 on")
    if isinstance(fewshot, dict):
        wrong = next((name for name in fewshot if name not in names), None)
        if wrong is not None:
            raise OptionError(f"{FEWSHOT} has {wrong!r}; accepted: {', '.join(names) or f'none, {TASKS} is empty'}")
    counts = [*fewshot.values()] if isinstance(fewshot, dict) else [] if fewshot is None else [fewshot]
    if not all(_is_count(each, 0) for each in counts):
        raise OptionError(f"{FEWSHOT} is {shown(fewshot)}; accepted: an integer from 0 on, or a table of tasks to them")
    if options[INCLUDE] is not None and not isinstance(options[INCLUDE], str):
        raise OptionError(f"{INCLUDE} is {shown(options[INCLUDE])}; accepted: a folder of lm-eval's YAML files")
    if not isinstance(options[UNSAFE], bool):
        raise OptionError(f"{UNSAFE} is {shown(options[UNSAFE])}; accepted: true, false")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class LmEvaluations:
    """Evaluate models by tasks of lm-eval, which are loaded when they are first needed.

    Parameters
    ----------
    options : mapping
        Checked by `check_lm_options`.
    tokenizer : transformers.PreTrainedTokenizerBase
    batch_size : int

    Raises
    ------
    MissingExtraError
        lm-eval is not installed.
    OptionError
        A task is unknown, or marked to run code that nobody allowed.
    """

    def __init__(self, options: Mapping[str, Any], tokenizer: Any, batch_size: int) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._manager: Any = None
        names = options[TASKS]
        if not names:
            return
        try:
            require("lm_eval", "lm-eval")
        except MissingExtraError as error:
            raise MissingExtraError(f"{error}, or {TASKS}=[], which leaves it out") from error
        check_folder(options[INCLUDE])
        unsafe = unsafe_tasks(names, options[INCLUDE])
        for name in names:
            _check_code(name, options, unsafe=name in unsafe)

    @property
    def functions(self) -> dict[str, Callable[[nn.Module], dict[str, float]]]:
        """Return the name of each task with a function from a model to its metrics."""
        return {name: partial(self._evaluate, name) for name in self._options[TASKS]}

    def load(self) -> None:
        """Load the tasks and their data, to see that they can be.

        Raises
        ------
        OptionError
            A task cannot be loaded, or has code in it that nobody allowed.
        """
        names = self._options[TASKS]
        if self._manager is None and names:
            manager = task_manager(names, self._options[INCLUDE])
            for name in names:
                _load_task(manager, name, self._options)
            self._manager = manager

    def _evaluate(self, name: str, model: nn.Module) -> dict[str, float]:
        """Evaluate a model by one task."""
        self.load()
        lm_eval, models = require("lm_eval", "lm-eval"), require("lm_eval.models.huggingface", "lm-eval")
        fewshot = self._options[FEWSHOT]
        found = lm_eval.simple_evaluate(
            # It changes the tokenizer's padding.
            models.HFLM(pretrained=model, tokenizer=copy.deepcopy(self._tokenizer), batch_size=self._batch_size),
            tasks=[name],
            task_manager=self._manager,
            limit=self._options[LIMIT],
            num_fewshot=fewshot.get(name) if isinstance(fewshot, dict) else fewshot,
            log_samples=False,
            confirm_run_unsafe_code=self._options[UNSAFE],
        )
        return _metrics(found["results"], name)


def _load_task(manager: Any, name: str, options: Mapping[str, Any]) -> None:
    try:
        tasks = manager.load([name])["tasks"].values()
    except Exception as error:  # tasks have code and data of their own, from anywhere
        reason = " ".join(str(error).split())
        raise OptionError(
            f"{TASKS} has {name!r}, which lm-eval cannot load ({type(error).__name__}: {reason}); accepted: tasks "
            f"whose data are here or on the hub, or {TASKS}=[]"
        ) from error
    _check_code(name, options, unsafe=any(getattr(task, "UNSAFE_CODE", False) for task in tasks))


def _check_code(name: str, options: Mapping[str, Any], *, unsafe: bool) -> None:
    """Refuse to run generated code, unless it is allowed in both places."""
    if unsafe and not (options[UNSAFE] and os.environ.get(_ALLOWED) == "1"):
        raise OptionError(
            f"{TASKS} has {name!r}, which runs code that the model writes, on this machine; accepted: "
            f"{UNSAFE}=true with {_ALLOWED}=1 in the environment, or {TASKS} without it"
        )


def _metrics(results: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, float]:
    """Return a task's own figures, or those of its parts where it has none.

    lm-eval writes METRIC,FILTER; a filter "none" is left out.
    """
    figures = {
        (part, key.removesuffix(",none")): float(value)
        for part, values in results.items()
        for key, value in values.items()
        if "," in key and isinstance(value, int | float)
    }
    own = {key: value for (part, key), value in figures.items() if part == name}
    return own or {f"{part} {key}": value for (part, key), value in figures.items()}

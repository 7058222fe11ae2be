"""Check that methods fit their models, before anything is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods import MethodRequest, get_method
from lowrank_ldu.finetuning.tasks import get_kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_ldu.finetuning.configuration import RunConfig
    from lowrank_ldu.finetuning.tasks import MetaModel


def check_models(configs: Iterable[tuple[str, RunConfig]], *, download: bool) -> list[str]:
    """Refuse targets and ranks that a model has no place for.

    Models are built from their configurations, without numbers. What shows only with numbers, or is for PEFT to say, is
    told when a run begins.

    Parameters
    ----------
    configs : iterable of (str, RunConfig)
        With what messages begin with; may be empty.
    download : bool
        Whether configurations may be fetched from the hub.

    Returns
    -------
    list of str
        Models that could not be looked at so.

    Raises
    ------
    OptionError
        A target matches nothing, or a layer is too small for its rank.
    """
    meta_models: dict[str, MetaModel | None] = {}
    checked: set[str] = set()
    unknown: dict[str, None] = {}
    for before, config in configs:
        of_model = json.dumps([config.kind, config.task, config.model, config.modules_to_save])
        of_method = json.dumps([of_model, config.method, config.method_options, config.target_modules])
        if of_method in checked:
            continue
        checked.add(of_method)
        if of_model not in meta_models:
            meta_models[of_model] = get_kind(config.kind).meta_model(config, download=download)
        found = meta_models[of_model]
        if found is None:
            unknown[config.model] = None
            continue
        targets = [] if config.target_modules is None else config.target_modules
        request = MethodRequest(targets=targets, trained_whole=list(found.head), seed=config.seed)
        try:
            get_method(config.method).check_model(found.model, config.method_options, request)
        except OptionError as error:
            raise OptionError(f"{before}{error}") from error
    return list(unknown)

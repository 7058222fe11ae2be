"""Separate tied tensors of a merged model, or keep them one.

The base has them as one. Separate tensors get their own numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu.adapters.exports import configuration
from lowrank_ldu.adapters.exports.architecture import CONFIG, Architecture, read_config
from lowrank_ldu.adapters.exports.updates import is_of_base
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.kinds import EmbeddingKind

if TYPE_CHECKING:
    from lowrank_ldu.adapters.exports.base import BaseModel
    from lowrank_ldu.adapters.exports.merged import MergePlan
    from lowrank_ldu.adapters.exports.naming import BaseNames


def separate(plan: MergePlan, base: BaseModel, names: BaseNames) -> None:
    """Give separated tensors the numbers of the adapted model.

    They were tied to a tensor that has changed. A module that was trained whole may have stayed tied to others, as the
    adapter's file says. A layer with an adapter is tied to none any more. Where anything is no longer tied, the
    configuration says so, and the plan has all tensors that were tied.

    Parameters
    ----------
    plan : MergePlan
        Changed.
    base : BaseModel
    names : BaseNames

    Raises
    ------
    AdapterError
        It cannot be told what is tied to what.
    """
    changed = {name for name in plan if name in plan.layers or not is_of_base(plan.tensors[name], base, name)}
    together = {name: names.tied.get(name, ()) for name in changed} if names.tied is not None else {}
    for name, others in together.items():
        _set(plan, name, [other for other in others if other in base])
    _refuse_by_metadata(plan, base, together)
    config = read_config(base.root)
    if config is None or not configuration.is_tied(config):
        return
    # A base without the adapted model's prefix is of another class, which may tie less than the adapted one.
    if base.architecture is None or any(rule.strip for rule in names.rules):
        suspects = [name for name in plan if name in changed and _may_be_tied(plan, name, config)]
        suspect = next((name for name in suspects if not together.get(name)), None)
        if suspect is not None:
            raise AdapterError(
                f"tensor {suspect!r} may be tied to another one, by tie_word_embeddings of {base.root / CONFIG}, and "
                "nothing tells which; accepted: the base saved as the class of the adapted model, which the installed "
                'transformers knows, or "tie_word_embeddings": false'
            )
        return
    groups = [group for group in _groups(base.architecture, base) if changed & set(group)]
    if names.tied is None:
        _refuse_unknown(plan, changed, groups)
    if any(not _stays_one(plan, group, changed, together) for group in groups):
        _refuse_tie_reader(base.architecture, changed, groups)
        # The configuration unties all of them, and a tensor that is in no file would be drawn at random.
        plan.config = configuration.untied(config)
        for group in _groups(base.architecture, base):
            for name in changed & set(group):
                _set(plan, name, [other for other in together.get(name, ()) if other in group])
            kept = next((name for name in group if name in base), None)
            if kept is not None:
                plan.copies |= {name: kept for name in group if name != kept and name not in plan}


def _set(plan: MergePlan, name: str, others: list[str]) -> None:
    """Give others the numbers of a tensor.

    Others with numbers of their own keep them.
    """
    plan.tensors |= {other: plan.tensors[name] for other in others if other not in plan}


def _groups(architecture: Architecture, base: BaseModel) -> list[list[str]]:
    """Return the groups of tied tensors of the model.

    Their names are those that the base has, or would have, for them.
    """
    stored = {architecture.module_name(name): name for name in base}
    groups: dict[str, list[str]] = {}
    for target, source in architecture.tied.items():
        groups.setdefault(source, [source]).append(target)
    return [[stored.get(name, name) for name in group] for group in groups.values()]


def _stays_one(plan: MergePlan, group: list[str], changed: set[str], together: dict[str, tuple[str, ...]]) -> bool:
    trained = [name for name in group if name in changed]
    return all(name in plan.tensors and set(group) <= {name, *together.get(name, ())} for name in trained)


def _refuse_by_metadata(plan: MergePlan, base: BaseModel, together: dict[str, tuple[str, ...]]) -> None:
    metadata = {name: kept for file in base.files.values() for name, kept in file.metadata.items()}
    for name, shared in metadata.items():
        if shared in base and name not in base and shared in plan and name not in together.get(shared, ()):
            raise AdapterError(
                f"tensor {shared!r} is tied to {name!r}, as the base's file says; accepted: an adapter of others"
            )


def _refuse_tie_reader(architecture: Architecture, changed: set[str], groups: list[list[str]]) -> None:
    if architecture.tie_reader is not None:
        name = next(name for group in groups for name in group if name in changed)
        raise AdapterError(
            f"tensor {name!r} is tied to another one, and {architecture.tie_reader} computes something else where they "
            "are not; accepted: an adapter of other layers"
        )


def _refuse_unknown(plan: MergePlan, changed: set[str], groups: list[list[str]]) -> None:
    for group in groups:
        name = next((name for name in group if name in changed and name in plan.tensors), None)
        other = next((other for other in group if other not in plan), None)
        if name is not None and other is not None:
            raise AdapterError(
                f"module tensor {name!r}: the adapter, of an earlier version, does not say whether it was tied to "
                f"{other!r} in training; accepted: the adapter loaded into its model and saved again"
            )


def _may_be_tied(plan: MergePlan, name: str, config: dict[str, Any]) -> bool:
    if name in plan.layers and plan.layers[name][0].kind is EmbeddingKind:
        return True
    shape = tuple(plan.tensors[name].shape) if name in plan.tensors else plan.layers[name][0].record.shape
    return len(shape) == 2 and shape[0] == configuration.vocabulary(config)

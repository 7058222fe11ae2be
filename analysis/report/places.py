"""Tell layer and module type from the names of tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_ldu.analysis.comparison.result import CheckpointComparison
    from lowrank_ldu.analysis.result import Analysis

_SEPARATOR = re.compile(r"[./]")
_PARTS = re.compile(r"(?:\[[^\[\]]*\])+$")
_NUMBERED = re.compile(r"(.+)_(\d+)")
# The last component of most names: it says nothing of the module.
_WEIGHT = {"weight", "kernel"}


@dataclass(frozen=True)
class ModulePlace:
    """Hold the module type and the layer of a tensor.

    Attributes
    ----------
    module : str
        Type of the module, the same in every layer: "attention.self.query". The whole name outside layers.
    layer : int or None
        None outside layers.
    """

    module: str
    layer: int | None


def places_of(analysis: Analysis | CheckpointComparison) -> dict[str, ModulePlace]:
    """Return the place of every tensor of an analysis or comparison.

    Its matrices tell whether layers are counted in several places.
    """
    matrices = [tensor.name for tensor, _ in analysis.matrices]
    return module_places((tensor.name for tensor in analysis.results), among=matrices)


def module_places(names: Iterable[str], among: Iterable[str] | None = None) -> dict[str, ModulePlace]:
    """Return the place of each tensor of one checkpoint.

    Names are taken apart at dots and slashes. The layer is the first component that is a number; where none is, the
    number at the end of the first component such as "layers_3". The module type is what comes after the layer, without
    a last "weight" or "kernel" and with "*" for further numbers, those of experts say, and for the numbers of parts.
    If layers are counted in more than one place of the model, in an encoder and a decoder say, what comes before the
    number goes before the type; names in `among` tell that, if it is given.

    Examples
    --------
    >>> names = ["embed.weight", "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.experts.7.up.weight"]
    >>> for place in module_places(names).values():
    ...     print(place.layer, place.module)
    None embed.weight
    0 mlp.down_proj
    1 mlp.experts.*.up
    """
    split = {name: _split(name) for name in names}
    counted = split.values() if among is None else map(_split, among)
    prefixes = {found[0] for found in counted if found is not None}
    result = {}
    for name, found in split.items():
        if found is None:
            result[name] = ModulePlace(name, None)
            continue
        prefix, layer, rest = found
        components = [*(prefix if len(prefixes) > 1 or not rest else ()), *rest]
        result[name] = ModulePlace(".".join(components) or name, layer)
    return result


def _split(name: str) -> tuple[tuple[str, ...], int, tuple[str, ...]] | None:
    """Split a name at its layer.

    Return what is before the layer, the layer, and what is after it; None outside layers.
    """
    parts = _PARTS.search(name)
    components = _SEPARATOR.split(name[: parts.start()] if parts else name)
    for at, component in enumerate(components):
        if _is_number(component):
            before, layer, after = components[:at], int(component), components[at + 1 :]
            break
    else:
        numbered = [(at, match) for at, text in enumerate(components) if (match := _NUMBERED.fullmatch(text))]
        if not numbered:
            return None
        at, match = numbered[0]
        before, layer, after = [*components[:at], match[1]], int(match[2]), components[at + 1 :]
    if after and after[-1] in _WEIGHT:
        after = after[:-1]
    after = ["*" if _is_number(component) else component for component in after]
    if parts:
        ending = re.sub(r"\[\d+\]", "[*]", parts[0])
        after = [*after[:-1], after[-1] + ending] if after else [ending]
    return tuple(before), layer, tuple(after)


def _is_number(text: str) -> bool:
    # A longer number is a hash: no model has so many layers.
    return text.isascii() and text.isdigit() and len(text) <= 4

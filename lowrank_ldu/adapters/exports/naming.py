"""Map the tensors of an adapter to those of its base.

The base is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.base_identity import relative_difference, sample_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lowrank_ldu.adapters.exports.architecture import Architecture
    from lowrank_ldu.adapters.exports.base import BaseModel
    from lowrank_ldu.adapters.stored_layer import AdapterFile, StoredLayer

_ACCEPTED = "accepted: the base that the adapter is of"
# Components of names that have to agree where one prefix stands for another: the module's own and the weight's.
_COMMON = 2


class Rule(NamedTuple):
    """Hold a prefix of the model's names and the base's prefix.

    The model is the adapted one. Its prefix is replaced by the base's.
    """

    strip: str
    add: str


class Place(NamedTuple):
    """Hold the names that a tensor is read and written under.

    Attributes
    ----------
    read : str or None
        Tensor of the base that has its numbers before training; None if it is not in the base.
    write : str
        `read`, but for a tensor that the base has under the name of another one that it is tied to.
    """

    read: str | None
    write: str


@dataclass(frozen=True)
class BaseNames:
    """Hold the names of an adapter's tensors in its base.

    Attributes
    ----------
    layers : dict of str to Place
        Of the weight of each layer.
    modules : dict of str to Place
        Of each tensor that was trained whole.
    rules : tuple of Rule
        How names of the model become names of the base; empty where they are the same.
    tied : dict of str to tuple of str, optional
        Tensors that were trained whole and were tied to others in the adapted model, all by the names that they are
        written under; None where the adapter does not say.
    shared : dict of str to tuple of str
        Layers that stood in several places, and the other tensors of the base that their weights are.
    """

    layers: dict[str, Place]
    modules: dict[str, Place]
    rules: tuple[Rule, ...] = ()
    tied: dict[str, tuple[str, ...]] | None = None
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)


def names_in_base(adapter: AdapterFile, base: BaseModel) -> BaseNames:
    """Map every name of an adapter to its base by one prefix.

    All layers confirm the prefix. Names are taken as they are where the base has all of them. Otherwise transformers
    says, for a model that it knows, how names on disk become names of modules. One prefix may then be left out or
    added, the same for all layers. Several prefixes may fit, or one prefix may replace another: then the samples that
    the adapter keeps of its base's weights decide.

    Parameters
    ----------
    adapter : AdapterFile
    base : BaseModel

    Raises
    ------
    AdapterError
        A layer has no weight in the base, or it cannot be told which it is; two names would become one.
    """
    plain = {name: Place(name, name) for name in base}
    same = Rule("", "")
    names = _by_rule(adapter, base, plain, same)
    if names is None or any(place.read is None for place in names.modules.values()):
        if base.architecture is not None:
            plain = _module_names(base, base.architecture)
            names = _by_rule(adapter, base, plain, same) or names
        names = names or _by_one_prefix(adapter, base, plain) or _by_samples(adapter, base, plain)
    if names is None:
        raise AdapterError(_unknown(adapter, base))
    _refuse_collisions(names, base)
    if base.architecture is None:
        _refuse_look_alikes(names, base)
    return names


def _module_names(base: BaseModel, architecture: Architecture) -> dict[str, Place]:
    """Return the base's tensors by the names of the model's tensors.

    They are loaded under these names. Tied ones are included.
    """
    found: dict[str, list[str]] = {}
    for name in base:
        module_name = architecture.module_name(name)
        if module_name is not None:
            found.setdefault(module_name, []).append(name)
    table = {name: Place(sources[0], sources[0]) for name, sources in found.items() if len(sources) == 1}
    # A tied tensor that is trained becomes one of its own, under the name that the model has for it.
    tied = {
        target: Place(table[source].read, target) for target, source in architecture.tied.items() if source in table
    }
    return tied | table


def _by_rule(adapter: AdapterFile, base: BaseModel, table: Mapping[str, Place], rule: Rule) -> BaseNames | None:
    """Return the names by a rule, or None.

    None if a layer then has no weight that fits it.
    """
    layers = {}
    for name, layer in adapter.layers.items():
        place = table.get(_applied([rule], f"{name}.weight"))
        if place is None or not _fits(layer, adapter, base, str(place.read)):
            return None
        layers[name] = place
    return _with_modules(layers, adapter, table, [rule])


def _with_modules(
    layers: dict[str, Place], adapter: AdapterFile, table: Mapping[str, Place], rules: list[Rule]
) -> BaseNames:
    """Return the names of layers and of wholly trained modules."""

    def place(name: str) -> Place:
        known = _applied(rules, name)
        # A name without the prefix that the base leaves out is of a part that the base does not have.
        inside = any(name.startswith(rule.strip) for rule in rules)
        return table.get(known, Place(None, known)) if inside else Place(None, known)

    modules = {name: place(name) for name in adapter.module_tensors}
    tied = (
        None
        if adapter.tied is None
        else {
            modules[name].write: tuple(place(other).write for other in others) for name, others in adapter.tied.items()
        }
    )
    # A base that stores shared layers once has one name for them.
    shared = {
        name: tuple(
            read for other in others if (read := place(f"{other}.weight").read) not in {None, layers[name].read}
        )
        for name, others in adapter.shared.items()
    }
    return BaseNames(layers, modules, tuple(rule for rule in rules if rule != ("", "")), tied, shared)


def _applied(rules: Iterable[Rule], name: str) -> str:
    for strip, add in rules:
        if name.startswith(strip):
            return add + name.removeprefix(strip)
    return name


def _by_one_prefix(adapter: AdapterFile, base: BaseModel, table: Mapping[str, Place]) -> BaseNames | None:
    wanted = f"{next(iter(adapter.layers))}.weight"
    rules = _prefix_rules(wanted, table)
    found = [names for rule in rules if (names := _by_rule(adapter, base, table, rule)) is not None]
    if len(found) > 1:
        found = [names for names in found if _confirmed(adapter, base, names.layers)] or found
    if len(found) > 1:
        places = " and ".join(repr(str(next(iter(names.layers.values())).read)) for names in found[:3])
        raise AdapterError(
            f"layer {next(iter(adapter.layers))!r}: {base.path} has {places}, and nothing tells which it is; "
            f"{_ACCEPTED}"
        )
    return found[0] if found else None


def _prefix_rules(wanted: str, names: Iterable[str]) -> list[Rule]:
    """Return the rules that add or remove one prefix.

    By such a rule a name of the model becomes one of the base.
    """
    longer = [Rule("", name.removesuffix(wanted)) for name in names if name.endswith(f".{wanted}")]
    return longer + [Rule(wanted.removesuffix(name), "") for name in names if wanted.endswith(f".{name}")]


def _by_samples(adapter: AdapterFile, base: BaseModel, table: Mapping[str, Place]) -> BaseNames | None:
    """Find a prefix of the base for each prefix of the model.

    There the base has the numbers that the adapter has sampled.
    """
    rules: dict[str, str] = {}
    layers = {}
    for name in adapter.layers:
        wanted = f"{name}.weight"
        known = [text for rule in rules.items() if (text := _applied([Rule(*rule)], wanted)) in table]
        sure = [text for text in known or _alike(wanted, table) if _confirmed(adapter, base, {name: table[text]})]
        if len(sure) != 1:
            return None
        layers[name] = table[sure[0]]
        common = _common(wanted, sure[0])
        strip, add = wanted.removesuffix(common), sure[0].removesuffix(common)
        if rules.setdefault(strip, add) != add:
            return None
    ordered = [Rule(*rule) for rule in sorted(rules.items(), key=lambda rule: -len(rule[0]))]
    return _with_modules(layers, adapter, table, ordered)


def _alike(wanted: str, names: Iterable[str]) -> list[str]:
    """Return the names that end most like `wanted`.

    They have the most components in common with it.
    """
    lengths = {name: _common(wanted, name).count(".") for name in names}
    most = max(lengths.values(), default=0)
    return [name for name, length in lengths.items() if length == most] if most >= _COMMON - 1 else []


def _common(first: str, second: str) -> str:
    """Return the components that two names end with, joined by dots."""
    pairs = zip(reversed(first.split(".")), reversed(second.split(".")), strict=False)
    same = []
    for one, other in pairs:
        if one != other:
            break
        same.append(one)
    return ".".join(reversed(same))


def _fits(layer: StoredLayer, adapter: AdapterFile, base: BaseModel, name: str) -> bool:
    """Return whether a tensor of the base has the layer's shape."""
    try:
        matrix = tuple(layer.kind.as_matrix(torch.empty(base.shape(name), device="meta")).shape)
    except (RuntimeError, IndexError, TypeError):  # a TypeError for a shape beyond 64 bits
        return False
    # PEFT's files say nothing of shapes; a layer that comes with its own base weight need not have the base's.
    return len(matrix) == 2 and (layer.record.shape in {(0, 0), matrix} or layer.name in adapter.base_weights)


def _confirmed(adapter: AdapterFile, base: BaseModel, places: Mapping[str, Place]) -> bool:
    """Return whether the base has the sampled numbers in all places."""
    return all(_agrees(adapter, adapter.layers[name], base, str(place.read)) for name, place in places.items())


def _agrees(adapter: AdapterFile, layer: StoredLayer, base: BaseModel, name: str) -> bool:
    if not _fits(layer, adapter, base, name):
        return False
    weight = base.tensor(name)
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:
        return False
    return relative_difference(layer.tensors["base_sample"], sample_of(layer.kind.as_matrix(weight))) == 0.0


def _refuse_collisions(names: BaseNames, base: BaseModel) -> None:
    taken: dict[str, str] = {}
    for kind, places in (("layer", names.layers), ("module tensor", names.modules)):
        for name, (read, write) in places.items():
            what = f"{kind} {name!r}"
            if write in taken:
                raise AdapterError(f"{what} and {taken[write]} are both {write!r} in the base; accepted: each once")
            if read != write and write in base:
                raise AdapterError(f"{what}: {base.path} has another tensor of its name, {write!r}; {_ACCEPTED}")
            taken[write] = what


def _refuse_look_alikes(names: BaseNames, base: BaseModel) -> None:
    """Refuse a module that may have a longer name in the base.

    Nothing says how the base names its tensors.
    """
    for name, place in names.modules.items():
        alike = [other for other in base if other.endswith(f".{name}")] if place.read is None else []
        if names.rules and any(rule.strip and rule.add for rule in names.rules) and not place.read:
            alike = alike or _alike(name, base)
        if alike:
            raise AdapterError(
                f"module tensor {name!r}: {base.path} may have it as {alike[0]!r}, which nothing tells; accepted: a "
                "base that transformers knows, or an adapter without modules_to_save"
            )


def _unknown(adapter: AdapterFile, base: BaseModel) -> str:
    """Return the message on the first layer without a match.

    The layer breaks the rule that most layers follow.
    """
    names = list(base)
    rules = {Rule("", ""), *(rule for name in adapter.layers for rule in _prefix_rules(f"{name}.weight", names))}

    def strays(rule: Rule) -> dict[str, str]:
        known = {name: _applied([rule], f"{name}.weight") for name in adapter.layers}
        return {name: text for name, text in known.items() if text not in base}

    best = min(sorted(rules), key=lambda rule: len(strays(rule)))
    missing = strays(best)
    if not missing:
        layer, stored = next(
            (layer, stored)
            for layer in adapter.layers.values()
            if not _fits(layer, adapter, base, stored := _applied([best], f"{layer.name}.weight"))
        )
        return (
            f"layer {layer.name!r}: {base.path} has {stored!r} in shape {base.shape(stored)}; accepted: "
            f"{layer.record.shape if any(layer.record.shape) else 'a matrix'}, as in training"
        )
    layer_name, wanted = next(iter(missing.items()))
    alike = _alike(wanted, names)
    seen = f"it holds {', '.join(map(repr, alike[:3]))}" if alike else f"it holds none of its {len(names)} tensors"
    return f"layer {layer_name!r}: {base.path} has no {wanted!r} ({seen}); {_ACCEPTED}"


def shadowed(names: Iterator[str], layers: Iterable[str]) -> list[str]:
    """Return the modules whose names end as a layer's does.

    The layers themselves are left out. PEFT's lists would take these modules for layers.
    """
    wanted = set(layers)
    found = set()
    for name in names:
        module, _, last = name.rpartition(".")
        if last != "weight" or module in wanted:
            continue
        parts = module.split(".")
        if any(".".join(parts[index:]) in wanted for index in range(1, len(parts))):
            found.add(module)
    return sorted(found)

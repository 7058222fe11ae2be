"""Replace layers of a model by LoLDU layers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.nn.basis import use_basis
from lowrank_ldu.nn.calls import observe
from lowrank_ldu.nn.host import AdapterHost
from lowrank_ldu.nn.kinds import ACCEPTED_LAYERS, is_linear, supports
from lowrank_ldu.nn.layer import LDULayer
from lowrank_ldu.nn.modules import check_model, check_not_distributed, plain_name, set_trainable
from lowrank_ldu.nn.options import given_options, takes_options
from lowrank_ldu.nn.weight_reads import reader_of
from lowrank_ldu.nn.weights import weight_matrix
from lowrank_ldu.validation import (
    LORA_KEYWORDS,
    check_flag,
    check_names,
    check_pattern,
    explain_keywords,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import nn

    from lowrank_ldu.nn.basis import FittedBasis
    from lowrank_ldu.nn.options import AdapterOptions

ALL_LINEAR = "all-linear"
_ACCEPTED = f"a sequence of module names, a regular expression, or {ALL_LINEAR!r}"
_WAYS_OUT = "other targets, or clip_rank=True"


def lowrank_layers(model: nn.Module) -> Iterator[tuple[str, LDULayer]]:
    """Yield the qualified name and the layer of every LoLDU layer.

    A layer that stands in several places of `model` comes once.
    """
    check_model(model)
    for name, module in model.named_modules():
        if isinstance(module, LDULayer):
            yield name, module


@explain_keywords(
    LORA_KEYWORDS
    | {
        "target_modules": "it is targets here",
        "modules_to_save": "it is an option of save_adapter here",
        "bias": "biases stay as they are; accepted: leave it out",
        "rank_pattern": "call inject again for layers of another rank",
    }
)
@takes_options
def inject(
    model: nn.Module,
    targets: Sequence[str] | str | None = None,
    rank: int | None = None,
    *,
    clip_rank: bool = False,
    options: AdapterOptions | None = None,
    pivots: Mapping[str, tuple[Sequence[int], Sequence[int]]] | None = None,
    fitted_basis: FittedBasis | None = None,
    **fields: Any,
) -> list[str]:
    """Replace layers of `model` by LoLDU layers, in place.

    Every parameter but theirs is frozen. A further call adds layers, with other options if need be; those that are
    there already stay as they are.

    Parameters
    ----------
    model : nn.Module
        Changed in place: the layers are replaced, their weights are not touched.
    targets : sequence of str, or str, optional
        The layers of `pivots` or `fitted_basis` if not given. Names: a layer is taken if its qualified name is one of
        them or ends with "." and one of them. A module that stands under several names is taken if one of them is, and
        replaced in all of its places. A single string is a regular expression that has to match the whole qualified
        name; "all-linear" takes every linear layer (nn.Linear, Conv1D of transformers) that can be, classification
        heads included; convolutions and embeddings are taken by name. Not those whose weight is read without a call of
        the layer, so that an adapter would have no effect: inside nn.MultiheadAttention and nn.TransformerEncoderLayer,
        and wherever the source of a module around them shows it, as Mamba's does of conv1d.
    rank : int, optional
        r; each layer's own min(m, n) if not given.
    clip_rank : bool
        Give layers that are too small for the rank their own min(m, n), where they are refused otherwise.
    options : AdapterOptions, optional
        All options in one object, in place of rank and keywords.
    pivots : mapping of str to pairs of sequences of int, optional
        Pivot rows and columns of each layer, by its qualified name, as `lowrank_ldu.fitting.choose_pivots` finds them;
        their number is the layer's rank, and pivoting is "chosen". Of a `Pivots`, core and block_size are the ones that
        they were chosen for, unless others are given.
    fitted_basis : FittedBasis, optional
        Basis of `lowrank_ldu.fitting.fit_basis` that the factors of each layer come from; basis is "fitted" then, and a
        layer's rank the basis's, unless a smaller one is given.
    **fields
        Fields of `AdapterOptions`, by keyword: alpha, init, preserving, pivoting and so on. The i-th layer uses
        seed + i.

    Returns
    -------
    list of str
        Qualified names of the layers that were replaced, in the model's order; a layer that stands under several names
        has all of them here.

    Raises
    ------
    ValueError
        A target matches nothing (the message names what comes close), an option is not accepted, a weight cannot be
        factored (the message names the layer), or the model is wrapped by DistributedDataParallel or FSDP already. The
        model is then unchanged.
    TypeError
        A target matches modules, but none of them is of a kind that takes an adapter, or their weights are read without
        calling them.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> inject(model, ["0"], rank=4)
    ['0']
    >>> from lowrank_ldu.nn import trainable_parameters
    >>> trainable_parameters(model).adapter
    5
    """
    check_model(model)
    check_not_distributed(model)
    clip_rank = check_flag(clip_rank, "clip_rank")
    options = _with_fits(
        given_options(options, rank, fields | _of_fits(pivots, fitted_basis, options, fields)), fitted_basis
    )
    names = _matching(model, _fitted_layers(pivots, fitted_basis) if targets is None else targets)
    # All layers are built before any is replaced, so that a failure leaves the model as it was. A module that stands
    # under two names gets one layer, so that it stays shared.
    layers: dict[nn.Module, LDULayer] = {}
    with outside_inference_mode(), restore_trainable_on_error(model):
        for name, base in names.items():
            if base in layers:
                continue
            try:
                layer = plain_name(name, model)
                own_pivots = None if pivots is None else _pivots_of(pivots, layer, options.rank)
                rank = clipped_rank(options.rank, base) if clip_rank else options.rank
                own = replace(options, rank=rank, seed=options.seed + len(layers))
                layers[base] = LDULayer(base, options=own, pivots=own_pivots, name=layer)
            except (TypeError, ValueError) as error:
                check_limits({name: (base, options.rank) for name, base in names.items()}, _WAYS_OUT)
                raise type(error)(f"layer {name!r}: {error}") from error
    adapters = {id(parameter) for _, layer in lowrank_layers(model) for parameter in layer.adapter.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in adapters:
            parameter.requires_grad = False
    for name, base in names.items():
        layers[base].injected = True
        replace_module(model, name, layers[base])
    observe(model)
    return list(names)


def _of_fits(
    pivots: object, fitted_basis: FittedBasis | None, options: AdapterOptions | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options that pivots or a fitted basis stand for."""
    if pivots is not None and fitted_basis is not None:
        raise ValueError("pivots and fitted_basis are given; accepted: one of them, as each of them gives the factors")
    if pivots is not None and not isinstance(pivots, Mapping):
        raise TypeError(f"pivots is {shown(pivots)}; accepted: a mapping of names to (rows, columns), such as Pivots")
    if fitted_basis is not None and not all(hasattr(fitted_basis, name) for name in ("digest", "factors", "check")):
        raise TypeError(
            f"fitted_basis is {shown(fitted_basis)}; accepted: a FittedBasis, such as FittedBasis.load gives"
        )
    meant: dict[str, Any] = {}
    if fitted_basis is not None:
        meant = {"basis": "fitted", "basis_digest": fitted_basis.digest}
    elif pivots is not None:
        meant = {"pivoting": "chosen", "basis": "ldu"}
    if fitted_basis is not None and "pivoting" in fields:
        raise ValueError(f"pivoting is {shown(fields['pivoting'])} beside fitted_basis; accepted: leave it out")
    chosen_for = getattr(pivots, "core", None)
    if chosen_for is not None and not {"core", "block_size"} & set(fields):
        meant_core = {"core": chosen_for, "block_size": getattr(pivots, "block_size", None)}
    else:
        meant_core = {}
    given = fields if options is None else {name: getattr(options, name) for name in meant}
    for name, value in meant.items():
        if given.get(name, value) != value:
            source = "pivots" if fitted_basis is None else "fitted_basis"
            raise ValueError(f"{name} is {shown(given[name])} beside {source}; accepted: {value!r}")
    return meant | meant_core if options is None else {}


def _fitted_layers(pivots: Mapping[str, object] | None, fitted_basis: FittedBasis | None) -> str:
    """Return a pattern of the names that pivots or a fitted basis have."""
    if pivots is None and fitted_basis is None:
        raise TypeError(f"targets is None; accepted: {_ACCEPTED}, or none with pivots or a fitted_basis")
    names = pivots if fitted_basis is None else fitted_basis.rank_pattern
    if not names:
        raise ValueError("pivots is empty; accepted: a mapping of names to (rows, columns), such as Pivots")
    return "|".join(re.escape(name) for name in names)


def _with_fits(options: AdapterOptions, fitted_basis: FittedBasis | None) -> AdapterOptions:
    if fitted_basis is not None and use_basis(fitted_basis) != options.basis_digest:
        raise ValueError(
            f"fitted_basis has digest {fitted_basis.digest} and basis_digest is {options.basis_digest!r}; accepted: "
            "the same, with basis 'fitted'"
        )
    return options


def _pivots_of(
    pivots: Mapping[str, tuple[Sequence[int], Sequence[int]]], layer: str, rank: int | None
) -> tuple[Sequence[int], Sequence[int]]:
    """Return a layer's pivots, the first of them for a smaller rank."""
    if layer not in pivots:
        raise ValueError(
            f"pivots has none of this layer; accepted: a mapping with it, of which {len(pivots)} are there"
        )
    try:
        rows, columns = pivots[layer]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"pivots has {shown(pivots[layer])}; accepted: a pair of sequences, rows and columns"
        ) from error
    return rows[:rank], columns[:rank]


@contextmanager
def restore_trainable_on_error(model: nn.Module) -> Iterator[None]:
    """Put back requires_grad of every parameter if the block raises.

    Making a layer freezes its base at once; if a later layer cannot be made, the model is to be as it was.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for parameter, was in before:
            set_trainable(parameter, was)
        raise


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave inference mode, and no other mode.

    Tensors that are made in it cannot be trained.
    """
    grad = torch.is_grad_enabled()
    with torch.inference_mode(mode=False), torch.set_grad_enabled(grad):
        yield


def clipped_rank(rank: int | None, base_layer: nn.Module) -> int | None:
    """Return a rank, or a smaller layer's largest possible rank."""
    largest = min(weight_matrix(base_layer).shape)
    return largest if isinstance(rank, int) and rank > largest else rank


def check_limits(layers: Mapping[str, tuple[nn.Module, int | None]], otherwise: str) -> None:
    """Refuse ranks beyond the layers' sizes, and name all such layers.

    Parameters
    ----------
    layers : mapping of str to (nn.Module, int or None)
        With the rank that each is to have.
    otherwise : str
        Ways out, for the message.

    Raises
    ------
    ValueError
    """
    small: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for name, (layer, rank) in layers.items():
        with suppress(TypeError, ValueError):  # said of that layer where it is adapted
            largest = min(weight_matrix(layer).shape)
            if isinstance(rank, int) and rank > largest:
                small[name], ranks[name] = largest, rank
    if not small:
        return
    wanted = sorted(set(ranks.values()))
    if len(small) == 1:
        where = f"layer {next(iter(small))!r}"
    elif len(wanted) == 1:
        where = "layers " + ", ".join(f"{name!r} (at most {largest})" for name, largest in small.items())
    else:
        where = "layers " + ", ".join(f"{name!r} ({ranks[name]}, at most {small[name]})" for name in small)
    said = f"rank is {wanted[0]}" if len(wanted) == 1 else "ranks are too large"
    raise ValueError(f"{where}: {said}; accepted: an integer from 1 to {min(small.values())}, {otherwise}")


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of a qualified name by a module."""
    place, _, child = name.rpartition(".")
    parent = model.get_submodule(place)
    setattr(parent, child, module)
    call_replaced(parent)


def call_replaced(parent: nn.Module) -> None:
    """Make a compiled module call the layer that is in it now.

    torch.compile makes such a module of a layer, and the layer may have been replaced since.
    """
    compiled: Any = parent
    if "_orig_mod" in compiled._modules and hasattr(compiled, "_initialize"):  # noqa: SLF001
        compiled._initialize()  # noqa: SLF001  # it would go on calling its former layer


def target_tests(targets: Sequence[str] | str) -> dict[str, Callable[[str], object]]:
    """Return each target with the test of names that it stands for.

    Raises
    ------
    TypeError, ValueError
        They are neither names nor a regular expression, or there are none.
    """
    tests: dict[str, Callable[[str], object]]
    if isinstance(targets, str):
        tests = {targets: check_pattern(targets, "targets", _ACCEPTED).fullmatch}
    else:
        tests = {target: partial(ends_with, target) for target in check_names(targets, "targets", _ACCEPTED)}
    if not tests:
        raise ValueError(f"targets is empty; accepted: {_ACCEPTED}")
    return tests


def ends_with(target: str, name: str) -> bool:
    """Return whether a qualified name is or ends with the target.

    It ends with "." and `target`.
    """
    return f".{name}".endswith(f".{target}")


def _matching(model: nn.Module, targets: Sequence[str] | str) -> dict[str, nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))
    hosting = {module for module in modules.values() if isinstance(module, AdapterHost)}
    # The base of an adapted layer has an adapter wherever it stands.
    adapted = hosting | {module.base_layer for module in hosting}
    taken = [name for name, module in modules.items() if module in adapted]
    candidates = {
        name: module
        for name, module in modules.items()
        if name and not any(name == layer or name.startswith(f"{layer}.") for layer in taken)
    }
    supported = {name: module for name, module in candidates.items() if supports(module)}
    # A layer whose weight is read in one place is adapted in no other place: its adapter would have no effect there.
    read = {module: reader for name, module in supported.items() if (reader := reader_of(model, name)) is not None}
    readers = {name: read.get(module) for name, module in supported.items()}
    adaptable = {name: module for name, module in supported.items() if readers[name] is None}
    every_linear = isinstance(targets, str) and targets == ALL_LINEAR
    if every_linear:
        adaptable = {name: module for name, module in adaptable.items() if is_linear(module)}
    if not adaptable:
        raise ValueError(
            f"the model ({type(model).__name__}) holds no {'linear layer' if every_linear else 'layer'} that could be "
            f"replaced; accepted: a model with submodules of {ACCEPTED_LAYERS}, which are not LoLDU layers already"
        )
    if every_linear:
        return adaptable
    chosen: set[str] = set()
    for target, test in target_tests(targets).items():
        # Names match with the parts of wrappers, and without.
        matches, done = (
            [name for name in names if test(name) or test(plain_name(name, model))] for names in (candidates, taken)
        )
        if not matches and done:
            raise ValueError(f"target {target!r} matches layers that have an adapter already; accepted: other layers")
        _check_target(target, matches, candidates, adaptable, readers)
        chosen.update(matches)
    # A module is one layer in all of its places.
    layers = {module for name, module in adaptable.items() if name in chosen}
    return {name: module for name, module in adaptable.items() if module in layers}


def _check_target(
    target: str,
    matches: Sequence[str],
    candidates: dict[str, nn.Module],
    adaptable: dict[str, nn.Module],
    readers: dict[str, str | None],
) -> None:
    if any(name in adaptable for name in matches):
        return
    read = next((name for name in matches if name in readers), None)
    if read is not None:
        raise TypeError(
            f"target {target!r} matches {read!r}, whose weight {readers[read]} reads without calling the layer, so "
            "that an adapter would have no effect there; accepted: layers that are called"
        )
    if matches:
        kinds = ", ".join(sorted({type(candidates[name]).__name__ for name in matches}))
        raise TypeError(f"target {target!r} matches modules of type {kinds}; accepted: {ACCEPTED_LAYERS}")
    raise ValueError(f"target {target!r} matches no module; {what_matches(target, adaptable)}, or {ALL_LINEAR!r}")


def what_matches(target: str, names: Iterable[str]) -> str:
    """Return a message's words on the layers that a target could match.

    They name the layers that come close, or else any.
    """
    endings = sorted({name.rpartition(".")[2] for name in names})
    if not endings:
        return f"this model has no layer that it could match; accepted: {ACCEPTED_LAYERS}"
    close = difflib.get_close_matches(target.rpartition(".")[2], endings, n=3) or endings[:10]
    more = ", ..." if len(endings) > len(close) else ""
    return f"layers of this model that it could match end with: {', '.join(close)}{more}"

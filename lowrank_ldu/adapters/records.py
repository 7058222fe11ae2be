"""Check what a configuration says of a layer, and the numbers that come with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_type_hints

from lowrank_ldu.adapters.layout import LayerRecord
from lowrank_ldu.adapters.sketch import PROBES
from lowrank_ldu.decomposition.ldu import check_pivoting
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.initialization import INITIALIZATIONS, is_random
from lowrank_ldu.nn.basis import check_basis, check_seed
from lowrank_ldu.nn.coordinates import check_parametrization
from lowrank_ldu.nn.factors import SAMPLES, FactorOptions
from lowrank_ldu.nn.kinds import KINDS
from lowrank_ldu.validation import check_choice, check_count, check_positive, dtype_name

if TYPE_CHECKING:
    from torch import Tensor

_OPTIONAL = {"lora_obstacle"}


def checked_record(where: str, entry: Any) -> LayerRecord:
    """Return a layer's entry as a record.

    Parameters
    ----------
    where : str
        What the messages begin with: the file and the layer.
    entry : Any
        As JSON has it.

    Raises
    ------
    AdapterError
        A field is missing, unknown, of another type or of a value that is not accepted.
    """
    fields = get_type_hints(LayerRecord)
    if not isinstance(entry, dict) or set(entry) | _OPTIONAL != set(fields):
        raise AdapterError(f"{where}; accepted: an object with {', '.join(fields)}")
    shape = entry["shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size >= 0 for size in shape)):
        raise AdapterError(f"{where} has shape {shape!r}; accepted: two integers")
    for key, kind in fields.items():
        value = entry.get(key, "")
        if key != "shape" and (type(value) is not kind and not (kind is float and type(value) is int)):
            raise AdapterError(f"{where} has {key} {value!r}; accepted: {kind.__name__}")
    record = LayerRecord(**{**entry, "shape": (shape[0], shape[1])})
    try:
        _check_values(record)
    except (TypeError, ValueError, OverflowError) as error:
        raise AdapterError(f"{where}: {error}") from error
    return record


def _check_values(record: LayerRecord) -> None:
    check_choice(record.kind, "kind", KINDS)
    check_choice(record.init, "init", INITIALIZATIONS)
    check_basis(record.basis)
    check_pivoting(record.pivoting)
    check_parametrization(record.parametrization)
    check_positive(record.alpha, "alpha")
    check_count(record.rank, "rank", 1)
    check_seed(record.seed, record.basis)


def check_numbers(where: str, record: LayerRecord, tensors: dict[str, Tensor], *, sketched: bool) -> None:
    """Check that a layer has the tensors it needs and no others, in their shapes, finite, with possible pivots.

    Parameters
    ----------
    where : str
        What the messages begin with.
    record : LayerRecord
    tensors : dict of str to Tensor
    sketched : bool
        Whether the format keeps a sketch of the update.

    Raises
    ------
    AdapterError
        Naming the tensor.
    """
    sizes, limits = _expected(record, sketched=sketched)
    for key, size in sizes.items():
        if key not in tensors:
            raise AdapterError(f"{where}: the adapter holds no {key}")
        if tuple(tensors[key].shape) != (size,):
            raise AdapterError(f"{where}: {key} has shape {tuple(tensors[key].shape)}; accepted: {(size,)}")
        if key in limits:
            _check_pivots(where, key, tensors[key], limits[key])
        elif not tensors[key].is_floating_point():
            raise AdapterError(f"{where}: {key} is {dtype_name(tensors[key])}; accepted: floating")
        # Through float64, since 8-bit floating numbers cannot be asked.
        elif not bool(tensors[key].double().isfinite().all()):
            raise AdapterError(f"{where}: {key} holds entries that are not finite")
    unknown = sorted(set(tensors) - set(sizes))
    if unknown:
        raise AdapterError(f"{where}: unknown tensors {unknown[:5]}; accepted: {', '.join(sizes)}")


def _expected(record: LayerRecord, *, sketched: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Return the length of every tensor of a layer, and how many rows or columns pivots are chosen from."""
    options = factor_options(record)
    sizes = {"offset": record.rank, "sigma": 1, "initial_sigma": 1, "base_sample": SAMPLES}
    if sketched:
        sizes["update_sketch"] = PROBES
    if is_random(record.init):  # type: ignore[arg-type]
        sizes["initial_diagonal"] = record.rank
    limits = {"pivot_rows": record.shape[0]} if options.rows else {}
    if options.columns:
        limits["pivot_columns"] = record.shape[1]
    return sizes | dict.fromkeys(limits, record.rank), limits


def _check_pivots(where: str, key: str, pivots: Tensor, size: int) -> None:
    if pivots.is_floating_point() or pivots.is_complex():
        raise AdapterError(f"{where}: {key} is {dtype_name(pivots)}; accepted: integers")
    numbers = pivots.tolist()
    # PEFT's files do not say how many rows the weight has: it is found out when there is one.
    if min(numbers) < 0 or (size and max(numbers) >= size):
        largest = f" to {size - 1}" if size else " on"
        raise AdapterError(
            f"{where}: {key} holds indices from {min(numbers)} to {max(numbers)}; accepted: from 0{largest}"
        )
    if len(set(numbers)) != len(numbers):
        raise AdapterError(f"{where}: {key} holds an index twice; accepted: each at most once")


def factor_options(record: LayerRecord) -> FactorOptions:
    """Return what determines the layer's factors."""
    return FactorOptions(
        record.rank,
        record.basis,  # type: ignore[arg-type]
        record.pivoting,  # type: ignore[arg-type]
        record.parametrization,  # type: ignore[arg-type]
        record.seed,
    )

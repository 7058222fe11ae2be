"""Hold an adapter read from disk, and put it on a weight."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.base_identity import (
    UNRELATED,
    UPDATE_AGREES,
    BaseCheck,
    Deviation,
    fingerprint,
    outcome,
    relative_difference,
    sample_of,
    update_sketch,
    warn_of,
)
from lowrank_ldu.nn.core import CoreAdapter
from lowrank_ldu.nn.factors import Factors
from lowrank_ldu.nn.host import HeldAdapter
from lowrank_ldu.nn.kinds import kind_named
from lowrank_ldu.validation import check_flag, dtype_name

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.adapters.format import LayerRecord
    from lowrank_ldu.nn.kinds import LayerKind


def check_finite_update(name: str, factors: Factors, delta: Tensor) -> None:
    """Refuse numbers whose update overflows their dtype.

    Raises
    ------
    AdapterError
    """
    # A sketch is a signed sum of entries: where it is finite no entry is much beyond half of what the dtype holds.
    if not bool(delta.isfinite().all()) or not bool(update_sketch(factors, delta).isfinite().all()):
        raise AdapterError(
            f"layer {name!r}: its numbers give an update that is not finite in {dtype_name(delta)}; accepted: "
            "smaller ones"
        )


@dataclass(frozen=True)
class StoredLayer:
    """Hold one layer of an adapter.

    Attributes
    ----------
    name : str
        Qualified name of the base layer in its model.
    record : LayerRecord
    tensors : dict of str to Tensor
        offset, sigma, initial_sigma, base_sample and, where there are any, update_sketch, pivot_rows, pivot_columns,
        initial_diagonal.
    """

    name: str
    record: LayerRecord
    tensors: dict[str, Tensor]

    @property
    def kind(self) -> type[LayerKind]:
        """Return the kind of the base layer."""
        return kind_named(self.record.kind)

    def bind(self, matrix: Tensor, *, accept_other_base: bool = False) -> HeldAdapter:
        """Rebuild the factors, and put the stored numbers on them.

        They are made from the weight at the stored pivots, without a search.

        Parameters
        ----------
        matrix : Tensor, shape (m, n)
            The base weight, as its kind reads it.
        accept_other_base : bool
            Accept a weight that is not the one of training, and warn of how far off it and the update are.

        Raises
        ------
        TypeError
            `matrix` is no tensor, or `accept_other_base` no bool.
        AdapterError
            The weight has another shape; it cannot be eliminated at the pivots; or, without `accept_other_base`, it has
            other entries, or the update does not come out as it was trained.
        """
        if not isinstance(matrix, torch.Tensor):
            raise TypeError(f"matrix is a {type(matrix).__name__}; accepted: a torch.Tensor")
        held, deviation = self.rebuild(
            matrix, "warn" if check_flag(accept_other_base, "accept_other_base") else "error"
        )
        warn_of([] if deviation is None else [deviation])
        return held

    def rebuild(self, matrix: Tensor, policy: BaseCheck) -> tuple[HeldAdapter, Deviation | None]:
        """Do the work of `bind`, and return the deviation.

        It is the deviation that a policy other than "error" has let pass. No warning is given.
        """
        record = self.record
        # PEFT's files say nothing of shapes.
        if record.shape != (0, 0) and tuple(matrix.shape) != record.shape:
            raise AdapterError(
                f"layer {self.name!r} has shape {tuple(matrix.shape)} in the model; accepted: {record.shape}, as in "
                "training"
            )
        if matrix.device.type == "meta":
            raise AdapterError(f"layer {self.name!r} is on the meta device and has no data; accepted: a base with data")
        deviation = self._base_deviation(matrix)
        # This comes before the factorization, which has no meaning on another base and may fail there.
        if deviation is not None and outcome(deviation, policy) == "error":
            accepted = "the same base, or accept_other_base=True (--accept-other-base) for a rounded copy of it"
            if deviation.size > UNRELATED:
                # Rows that were added to an embedding move the rows that are sampled.
                accepted = (
                    "the same base, with as many rows (saved after its vocabulary was resized, if it was), or "
                    "accept_other_base=True (--accept-other-base) to take this one as it is"
                )
            raise AdapterError(f"{deviation}, so that its numbers mean something else; accepted: {accepted}")
        held = self._held(matrix)
        update = self._update_deviation(held)
        if deviation is None and (update is None or update <= UPDATE_AGREES):
            return held, None
        deviation = replace(deviation or Deviation(self.name), update=update)
        if outcome(deviation, policy) == "error":
            raise AdapterError(
                f"{deviation}: {self._reason()}; accepted: an adapter that can be rebuilt, or accept_other_base=True "
                "(--accept-other-base) to take it as it is"
            )
        return held, deviation

    def _held(self, matrix: Tensor) -> HeldAdapter:
        options = self.record.options
        try:
            factors = Factors(matrix, options, deferred=True, layer=self.name)
            factors.build(matrix, self.tensors.get("pivot_rows"), self.tensors.get("pivot_columns"))
            dtype = torch.promote_types(matrix.dtype, torch.float32)
            adapter = CoreAdapter(options, dtype=dtype, device=matrix.device)
            adapter.start_from(factors)
            if "initial_diagonal" in self.tensors:
                adapter.set_initial_diagonal(self.tensors["initial_diagonal"], factors)
        # torch raises RuntimeError for a number that the layer's dtype cannot hold.
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise AdapterError(f"layer {self.name!r}: {error}") from error
        with torch.no_grad():
            for name in ("offset", "sigma", "initial_sigma"):
                place = getattr(adapter, name)
                place.copy_(self.tensors[name])
                if not bool(place.isfinite().all()):
                    raise AdapterError(
                        f"layer {self.name!r}: {name} overflows {dtype_name(place)}, in which the layer computes; "
                        "accepted: numbers that fit"
                    )
        held = HeldAdapter(self.name, adapter, factors)
        check_finite_update(self.name, held.factors, held.delta)
        return held

    def _base_deviation(self, matrix: Tensor) -> Deviation | None:
        """Return the deviation of the sampled weight, or None.

        None if the weight is the one of training.
        """
        trained, present = self.record.base_dtype, dtype_name(matrix)
        if self.record.base_sha256 and fingerprint(matrix) == self.record.base_sha256:
            return None
        difference = relative_difference(self.tensors["base_sample"], sample_of(matrix))
        # Where there is no fingerprint, as in PEFT's files, a sample has to do.
        if not self.record.base_sha256 and difference == 0.0:
            return None
        return Deviation(self.name, difference, None if trained in {"", present} else (present, trained))

    def _update_deviation(self, held: HeldAdapter) -> float | None:
        if "update_sketch" not in self.tensors:
            return None
        return relative_difference(self.tensors["update_sketch"], update_sketch(held.factors, held.delta))

    def _reason(self) -> str:
        if self.record.options.basis == "svd":
            return "its singular vectors come out different here, as those of nearly equal singular values may"
        if self.record.options.basis == "random":
            return "its random basis comes out different here"
        if self.record.options.basis == "fitted":
            return "its numbers in its fitted basis are not those that were trained"
        return (
            f"the base does not determine all of its {self.record.options.rank} terms, some of which are rounding "
            "errors (its rank is smaller), or it was changed after the adapter was put on it"
        )


@dataclass(frozen=True)
class AdapterFile:
    """Hold an adapter read from disk.

    Attributes
    ----------
    layers : dict of str to StoredLayer
    module_names : list of str
        Modules that were trained and saved whole.
    module_tensors : dict of str to Tensor
        Their state and that of single parameters (biases) that were trained, by qualified name in the base model.
    base_model, task_type : str, optional
        As PEFT's configuration names them.
    base_weights : dict of str to Tensor
        The weight before training of layers whose base PEFT keeps beside the adapter, by the layer's name: embeddings,
        which may have got more rows than the base on disk has.
    path : Path, optional
        Folder that it was read from.
    tied : dict of str to list of str, optional
        Tensors of `module_tensors` that the model had under other names as well, and these names; None where the file
        does not say.
    shared : dict of str to list of str
        Layers that the model had in several places, and the names of the others.
    basis_file : str, optional
        Where its fitted basis was, as its configuration names it.
    """

    layers: dict[str, StoredLayer]
    module_names: list[str] = field(default_factory=list)
    module_tensors: dict[str, Tensor] = field(default_factory=dict)
    base_model: str | None = None
    task_type: str | None = None
    base_weights: dict[str, Tensor] = field(default_factory=dict)
    path: Path | None = None
    tied: dict[str, list[str]] | None = None
    shared: dict[str, list[str]] = field(default_factory=dict)
    basis_file: str | None = None

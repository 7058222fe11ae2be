"""An adapter that was read from disk: what is in it, and how it is put on a weight."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.adapters.fingerprint import fingerprint
from lowrank_ldu.nn.diagonal import DiagonalAdapter
from lowrank_ldu.nn.factors import FactorOptions, Factors, sample_deviation
from lowrank_ldu.nn.host import Diagonal
from lowrank_ldu.nn.initialization import is_random
from lowrank_ldu.nn.kinds import kind_named
from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.adapters.layout import LayerRecord
    from lowrank_ldu.nn.kinds import LayerKind

# Singular vectors of values that agree to rounding are not determined: the basis of another machine may be turned
# within their space. What rounding does to separate ones is far below this.
_TURNED = 0.01


@dataclass(frozen=True)
class StoredLayer:
    """One layer of an adapter.

    Attributes
    ----------
    name : str
        Qualified name of the base layer in its model.
    record : LayerRecord
    tensors : dict of str to Tensor
        offset, sigma, initial_sigma, base_sample and, where there are any, pivot_rows, pivot_columns,
        initial_diagonal, diagonal.
    """

    name: str
    record: LayerRecord
    tensors: dict[str, Tensor]

    @property
    def kind(self) -> type[LayerKind]:
        """Kind of the base layer."""
        return kind_named(self.record.kind)

    def bind(self, matrix: Tensor, *, force: bool = False) -> Diagonal:
        """Rebuild the factors from the weight at the stored pivots, without a search, and put the numbers on them.

        Parameters
        ----------
        matrix : Tensor, shape (m, n)
            The base weight, as its kind reads it.
        force : bool
            Accept a weight that is not the one of training, and warn of how far off it is.

        Raises
        ------
        AdapterError
            The weight has another shape or, without `force`, other entries; or it cannot be eliminated at the pivots.
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
        self._check_base(matrix, force=force)
        wide = torch.promote_types(matrix.dtype, torch.float32)
        try:
            options = FactorOptions(
                record.rank,
                record.basis,  # type: ignore[arg-type]
                record.pivoting,  # type: ignore[arg-type]
                record.parametrization,  # type: ignore[arg-type]
                record.seed,
            )
            factors = Factors(matrix, options, deferred=True)
            factors.build(matrix, self.tensors.get("pivot_rows"), self.tensors.get("pivot_columns"))
            adapter = DiagonalAdapter(
                record.rank,
                alpha=record.alpha,
                init=record.init,  # type: ignore[arg-type]
                preserving=record.preserving,
                train_sigma=record.train_sigma,
                seed=record.seed,
                dtype=wide,
                device=matrix.device,
            )
            adapter.start_from(factors)
            if "initial_diagonal" in self.tensors:
                adapter.set_initial_diagonal(self.tensors["initial_diagonal"], factors)
        except (TypeError, ValueError) as error:
            raise AdapterError(f"layer {self.name!r}: {error}") from error
        self._check_basis(factors, force=force)
        with torch.no_grad():
            for name in ("offset", "sigma", "initial_sigma"):
                getattr(adapter, name).copy_(self.tensors[name])
        return Diagonal(self.name, adapter, factors)

    def _check_base(self, matrix: Tensor, *, force: bool) -> None:
        if self.record.base_sha256 and fingerprint(matrix) == self.record.base_sha256:
            return
        # Where there is no fingerprint, as in PEFT's files, a sample has to do.
        deviation = sample_deviation(self.tensors["base_sample"], Factors.sample_of(matrix))
        if not self.record.base_sha256 and deviation == 0.0:
            return
        seen = f"by {100 * deviation:.2g} % where it was sampled" if deviation else "but not where it was sampled"
        dtype = dtype_name(matrix)
        changed = f", and is {dtype} for {self.record.base_dtype}" if self.record.base_dtype not in {"", dtype} else ""
        trained = f"layer {self.name!r}: the weight is not the one that the adapter was trained on"
        message = f"{trained}: it differs, {seen}{changed}"
        if not force:
            raise AdapterError(
                f"{message}, so that its diagonal means something else; accepted: the same base, or force for a "
                "rounded copy of it"
            )
        warnings.warn(message, UserWarning, stacklevel=4)

    def _check_basis(self, factors: Factors, *, force: bool) -> None:
        """Notice singular vectors that came out turned: for them, u_i^T W' v_i of the training's base is not s_i."""
        saved = self.tensors.get("signature")
        if saved is None:
            return
        deviation = sample_deviation(saved, basis_signature(factors))
        if deviation <= _TURNED:
            return
        message = (
            f"layer {self.name!r}: its singular vectors come out different here (by {100 * deviation:.2g} %), as those "
            "of nearly equal singular values may"
        )
        if not force:
            raise AdapterError(f"{message}; accepted: basis 'ldu', which is rebuilt from its pivots, or force")
        warnings.warn(message, UserWarning, stacklevel=4)


def basis_signature(factors: Factors) -> Tensor:
    """Return one number for each term that does not depend on the sign of its pair of vectors, shape (r,), float32.

    The sum of the term's entries under a fixed pattern of signs.
    """
    signs = [
        torch.where(torch.arange(size, device=factors.left.device) * 2654435761 % 7 < 4, 1.0, -1.0)
        for size in (factors.left.shape[0], factors.right.shape[1])
    ]
    rows = signs[0].to(factors.left) @ factors.left
    columns = factors.right @ signs[1].to(factors.right)
    return (rows * columns * factors.scale).float()


@dataclass(frozen=True)
class AdapterFile:
    """An adapter read from disk.

    Attributes
    ----------
    layers : dict of str to StoredLayer
    module_names : list of str
        Modules that were trained and saved whole.
    module_tensors : dict of str to Tensor
        Their state, by qualified name.
    base_model, task_type : str, optional
        As PEFT's configuration names them.
    """

    layers: dict[str, StoredLayer]
    module_names: list[str] = field(default_factory=list)
    module_tensors: dict[str, Tensor] = field(default_factory=dict)
    base_model: str | None = None
    task_type: str | None = None


def check_numbers(name: str, record: LayerRecord, tensors: dict[str, Tensor]) -> None:
    """Check that a layer has every tensor it needs, in its shape, and nothing that is not finite.

    Raises
    ------
    AdapterError
        Naming the layer and the tensor.
    """
    rows = record.basis == "ldu"
    expected = {
        "offset": (record.rank,),
        "sigma": (1,),
        "initial_sigma": (1,),
        "base_sample": None,
        **({"pivot_rows": (record.rank,)} if rows else {}),
        **({"pivot_columns": (record.rank,)} if rows and record.pivoting != "partial" else {}),
        **({"initial_diagonal": (record.rank,)} if is_random(record.init) else {}),  # type: ignore[arg-type]
    }
    for key, shape in expected.items():
        if key not in tensors:
            raise AdapterError(f"layer {name!r}: the adapter holds no {key}")
        if shape is not None and tuple(tensors[key].shape) != shape:
            raise AdapterError(f"layer {name!r}: {key} has shape {tuple(tensors[key].shape)}; accepted: {shape}")
        floating = not key.startswith("pivot")
        if tensors[key].is_floating_point() != floating:
            raise AdapterError(
                f"layer {name!r}: {key} is {dtype_name(tensors[key])}; accepted: "
                f"{'floating' if floating else 'integers'}"
            )
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise AdapterError(f"layer {name!r}: {key} holds entries that are not finite")

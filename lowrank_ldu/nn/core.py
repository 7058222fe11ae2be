"""Train the coordinates of a core and one scale.

They are the trained side of an adapter; with the constant factors they make the update.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lowrank_ldu.diagnostics.cost import SAMPLES
from lowrank_ldu.initialization import initial_diagonal, is_random
from lowrank_ldu.nn.coordinates import BLOCKS, from_core, to_core
from lowrank_ldu.nn.offloading import is_offloaded, onloaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.nn.factors import Factors
    from lowrank_ldu.nn.options import AdapterOptions


class CoreState(NamedTuple):
    """Hold the numbers of the update's core.

    The offset has the core's shape, the others (r,) or (1,); or all are stacked with a dimension of adapters in front.
    """

    offset: Tensor
    sigma: Tensor
    initial_sigma: Tensor
    initial_diagonal: Tensor
    reference_diagonal: Tensor


def delta_of(state: CoreState, frame: Tensor | None) -> Tensor:
    r"""Return sigma z - sigma_0 z_ref, of the core's shape.

    It is exactly zero at step 0 of the preserving form. Cores of blocks start at zero, and are sigma T w.

    Notes
    -----
    z = z_start + T w with the trained coordinates w ("offset") and T (`coordinates_of`). Equation (9) of arXiv
    2410.13618 less the frozen weight's part.
    """
    # At least float32 is used: the parameters are few enough to widen from bfloat16, and the differences below are
    # small. sigma is compared in its own dtype, in which it started as sigma_0.
    wide = torch.promote_types(state.offset.dtype, torch.float32)
    moved = to_core(state.offset.to(wide), None if frame is None else frame.to(wide))
    if state.offset.ndim >= BLOCKS:
        core: Tensor = state.sigma.to(wide).reshape(*state.sigma.shape, 1, 1) * moved
        return core
    step = state.sigma - state.initial_sigma.to(state.sigma.dtype)
    reference = state.reference_diagonal.to(wide)
    moved = moved + (state.initial_diagonal.to(wide) - reference)
    return step.to(wide) * reference + state.sigma.to(wide) * moved


class CoreAdapter(nn.Module):
    """Hold the trained numbers of one adapter in one layer.

    These are r + 1 numbers for a diagonal core. It also holds the constants that belong to them.

    Parameters
    ----------
    options : AdapterOptions
        Of this layer (`AdapterOptions.for_layer`).
    dtype, device
        Of offset and sigma.

    Attributes
    ----------
    offset : Parameter, shape (r,), or (g, b, b)
        Coordinates w of z - z_start, or of a core of blocks (`core_shape`).
    sigma : Parameter, shape (1,)
        A buffer where it is not trained.
    initial_sigma, initial_diagonal, reference_diagonal : Tensor
        sigma_0 (1,), the start of z (r,), z_ref (r,).
    pivot_rows, pivot_columns : Tensor or None
        int64, shape (r,): where the factors are rebuilt.
    base_sample : Tensor, float32
        `Factors.sample` of the base that the adapter was made on.

    Notes
    -----
    A state dict holds offset, sigma, sigma_0, the pivots in the smallest integer type, the sample of the base and, if
    it was drawn at random, the start of z.
    """

    initial_sigma: Tensor
    initial_diagonal: Tensor
    reference_diagonal: Tensor
    pivot_rows: Tensor | None
    pivot_columns: Tensor | None
    base_sample: Tensor

    def __init__(
        self,
        options: AdapterOptions,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        rank, alpha = self.rank, cast("float", options.alpha)
        self.offset = nn.Parameter(torch.zeros(options.core_shape, dtype=dtype, device=device))
        start = torch.full((1,), alpha / rank, dtype=dtype, device=device)
        if options.train_sigma:
            self.sigma = nn.Parameter(start)
        else:
            # sigma is no parameter here: it stays as it is where all parameters of an adapter are unfrozen.
            self.register_buffer("sigma", start)
        self._keep("initial_sigma", start.clone())
        self._keep("initial_diagonal", torch.zeros(rank, device=device), persistent=is_random(options.init))
        self._keep("reference_diagonal", torch.zeros(rank, device=device), persistent=False)
        self._keep("pivot_rows", torch.full((rank,), -1, device=device) if options.chooses_rows else None)
        self._keep("pivot_columns", torch.full((rank,), -1, device=device) if options.chooses_columns else None)
        self._keep("base_sample", torch.zeros(SAMPLES, device=device))
        self._start_is_given = False

    @property
    def rank(self) -> int:
        """Return the number r of the factors' terms."""
        return cast("int", self.options.rank)

    def choose_pivots(self, rows: Tensor, columns: Tensor) -> None:
        """Take pivots (r,) that were chosen, before there are factors."""
        for name, index in (("pivot_rows", rows), ("pivot_columns", columns)):
            self._keep(name, index.to(self.offset.device, torch.int64))

    def start_from(self, factors: Factors) -> None:
        """Take over the factors' pivots and the start of z.

        The start is the factors' diagonal, unless another start was given or loaded, or the core starts at zero.
        """
        if self.options.starts_at_zero:
            self._keep_start(torch.zeros_like(factors.diagonal))
        elif not self._start_is_given:
            start = initial_diagonal(self.options.init, factors.diagonal, self.options.seed)
            self._keep_start(start)
        self.initial_diagonal = self.initial_diagonal.to(factors.diagonal)
        self._set_reference(factors)
        self._keep("pivot_rows", None if factors.pivot_rows is None else factors.pivot_rows.clone())
        self._keep("pivot_columns", None if factors.pivot_columns is None else factors.pivot_columns.clone())
        self._keep("base_sample", factors.sample.clone())

    def set_initial_diagonal(self, start: Tensor, factors: Factors) -> None:
        """Give z another start (r,).

        It may have been drawn elsewhere. The offset from the start stays.
        """
        if tuple(start.shape) != (self.rank,):
            raise ValueError(f"start has shape {tuple(start.shape)}; accepted: {(self.rank,)}")
        self._keep_start(start.detach().to(factors.diagonal, copy=True))
        self._start_is_given = True
        self._set_reference(factors)

    def _set_reference(self, factors: Factors) -> None:
        reference = self.initial_diagonal if self.options.preserving else factors.diagonal
        self._keep("reference_diagonal", reference.clone(), persistent=False)

    @property
    def has_pivots(self) -> bool:
        """Return whether pivots have been chosen or loaded.

        A basis that has no pivots never has them.
        """
        return self.pivot_rows is not None and int(self.pivot_rows[0]) >= 0

    @property
    def state(self) -> CoreState:
        """Return the numbers of the update's core."""
        # This runs at every call of the layer, and there is hardly ever a hook.
        with onloaded(self) if "_hf_hook" in vars(self) else nullcontext():
            return CoreState(
                self.offset, self.sigma, self.initial_sigma, self.initial_diagonal, self.reference_diagonal
            )

    def delta(self, factors: Factors) -> Tensor:
        """Return sigma z - sigma_0 z_ref, of the core's shape."""
        return delta_of(self.state, factors.frame)

    def z(self, factors: Factors) -> Tensor:
        """Return the present diagonal z, shape (r,), or core, (g, b, b)."""
        core: Tensor = to_core(self.state.offset, factors.frame)
        return core if core.ndim >= BLOCKS else self.initial_diagonal + core

    @torch.no_grad()
    def set_z(self, z: Tensor, factors: Factors) -> None:
        """Set the coordinates so that the present diagonal or core is `z`."""
        self._set_offset(z if z.ndim >= BLOCKS else z - self.initial_diagonal, factors)

    @torch.no_grad()
    def set_delta(self, delta: Tensor, factors: Factors) -> None:
        """Set the coordinates so that the present difference is `delta`.

        The difference is sigma z - sigma_0 z_ref, with sigma at its start.
        """
        self.sigma.copy_(self.initial_sigma)
        moved = delta / self.initial_sigma.to(delta)
        if delta.ndim < BLOCKS:
            moved = moved - (self.initial_diagonal - self.reference_diagonal).to(delta)
        self._set_offset(moved, factors)

    def _check_in_memory(self) -> None:
        if is_offloaded(self):
            raise RuntimeError(
                "the adapter is offloaded by accelerate, so that what is written to it would be lost; accepted: "
                "accelerate.hooks.remove_hook_from_submodules(model) first"
            )

    def _set_offset(self, offset: Tensor, factors: Factors) -> None:
        self._check_in_memory()
        if offset.shape != self.offset.shape:  # it would be copied to every row of a core of blocks
            raise ValueError(
                f"numbers have shape {tuple(offset.shape)}; accepted: {tuple(self.offset.shape)}, the core's"
            )
        wide = torch.promote_types(self.offset.dtype, torch.float32)
        frame = None if factors.frame is None else factors.frame.to(wide)
        self.offset.copy_(from_core(offset.to(wide), frame))

    def _keep(self, name: str, tensor: Tensor | None, *, persistent: bool = True) -> None:
        self.register_buffer(name, tensor, persistent=persistent)

    def _keep_start(self, start: Tensor) -> None:
        self._keep("initial_diagonal", start, persistent=is_random(self.options.init))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        with onloaded(self):
            super()._save_to_state_dict(destination, prefix, keep_vars)
        # int64 in memory, which every collective of torch.distributed takes; the smallest type on disk.
        for name in ("pivot_rows", "pivot_columns"):
            if getattr(self, name) is not None:
                destination[f"{prefix}{name}"] = smallest_integers(getattr(self, name))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}offset" in state_dict:
            self._check_in_memory()
            # The options of the saved adapter decide which constants it has: make room for these.
            for name in ("initial_diagonal", "pivot_rows", "pivot_columns"):
                tensor = state_dict.get(f"{prefix}{name}")
                if name == "initial_diagonal":
                    self._start_is_given = tensor is not None
                    self._keep(name, self.initial_diagonal, persistent=tensor is not None)
                elif tensor is None:
                    self._keep(name, None)
                elif getattr(self, name) is None:
                    self._keep(name, torch.zeros_like(tensor, dtype=torch.int64, device=self.offset.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Describe the options, for printing the module."""
        return self.options.described()


def smallest_integers(index: Tensor) -> Tensor:
    """Return integers in a small type that holds them.

    It is the smallest type that every library computes with. Negative ones, which stand for pivots that are yet to
    come, stay as they are.
    """
    known = index.device.type != "meta" and index.numel() > 0
    if known and int(index.min()) < 0:
        return index
    largest = int(index.max()) if known else 0
    for dtype in (torch.uint8, torch.int16, torch.uint16):
        if largest <= torch.iinfo(dtype).max:
            return index.to(dtype)
    return index.to(torch.int32)


def stack_states(adapters: Sequence[CoreAdapter]) -> CoreState:
    """Return the stacked states of adapters of equal rank and core.

    Their shapes are (A, r) or (A, g, b, b), and (A, 1).
    """
    hooked = [each for each in adapters if "_hf_hook" in vars(each)]
    with onloaded(*hooked) if hooked else nullcontext():
        # Module.__getattr__ would be slow for each of them.
        parameters = [dict(each._parameters) for each in adapters]  # noqa: SLF001
        buffers = [each._buffers for each in adapters]  # noqa: SLF001

    def stack(name: str) -> Tensor:
        numbers = [own[name] if name in own else kept[name] for own, kept in zip(parameters, buffers, strict=True)]
        return torch.stack(numbers)  # type: ignore[arg-type]

    return CoreState(*(stack(name) for name in CoreState._fields))

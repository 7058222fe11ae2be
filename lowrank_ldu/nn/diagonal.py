"""The trained side of an adapter: r coordinates of the diagonal and one scale, and what they make of the factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lowrank_ldu.nn.coordinates import from_diagonal, to_diagonal
from lowrank_ldu.nn.initialization import INITIALIZATIONS, Initialization, initial_diagonal, is_random
from lowrank_ldu.validation import check_positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.nn.factors import Factors


class DiagonalState(NamedTuple):
    """The numbers that the update's diagonal is made of, each (r,) or (1,), or stacked with leading dimensions."""

    offset: Tensor
    sigma: Tensor
    initial_sigma: Tensor
    initial_diagonal: Tensor
    reference_diagonal: Tensor


def delta_of(state: DiagonalState, frame: Tensor | None) -> Tensor:
    r"""Return sigma z - sigma_0 z_ref, shape (..., r): exactly zero at step 0 of the preserving form.

    Notes
    -----
    z = z_start + T w with the trained coordinates w ("offset") and T (`coordinates_of`). Equation (9) of arXiv
    2410.13618 less the frozen weight's part.
    """
    # At least float32: in bfloat16 parameters are few enough to widen, and the differences below are small ones. sigma
    # is compared in its own dtype, in which it started as sigma_0.
    step = state.sigma - state.initial_sigma.to(state.sigma.dtype)
    wide = torch.promote_types(state.offset.dtype, torch.float32)
    reference = state.reference_diagonal.to(wide)
    moved = to_diagonal(state.offset.to(wide), None if frame is None else frame.to(wide))
    moved = moved + (state.initial_diagonal.to(wide) - reference)
    return step.to(wide) * reference + state.sigma.to(wide) * moved


class DiagonalAdapter(nn.Module):
    """What one adapter trains in one layer, r + 1 numbers, and the constants that belong to them.

    Parameters
    ----------
    rank : int
    alpha : float, optional
        sigma starts at alpha / r; r if not given.
    init : str
        Start of z, one of `INITIALIZATIONS`.
    preserving : bool
        Whether z_ref is the start of z (True) or the factorisation's own diagonal.
    train_sigma : bool
        Whether sigma is trained.
    seed : int
        Of random starts.
    rows, columns : bool
        Whether the factors have pivots of their own (`FactorOptions`), for a place to load them to.
    dtype, device
        Of offset and sigma.

    Attributes
    ----------
    offset : Parameter, shape (r,)
        Coordinates w of z - z_start.
    sigma : Parameter, shape (1,)
        A buffer where it is not trained.
    initial_sigma, initial_diagonal, reference_diagonal : Tensor
        sigma_0 (1,), the start of z (r,), z_ref (r,).
    pivot_rows, pivot_columns : Tensor or None
        int64, shape (r,): where the factors are rebuilt.

    Notes
    -----
    A state dict holds offset, sigma, sigma_0, the pivots in the smallest integer type and, if it was drawn at random,
    the start of z.
    """

    initial_sigma: Tensor
    initial_diagonal: Tensor
    reference_diagonal: Tensor
    pivot_rows: Tensor | None
    pivot_columns: Tensor | None

    def __init__(
        self,
        rank: int,
        *,
        alpha: float | None = None,
        init: Initialization = "regular_ldu",
        preserving: bool = True,
        train_sigma: bool = True,
        seed: int = 0,
        rows: bool = True,
        columns: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if init not in INITIALIZATIONS:
            raise ValueError(f"init is {init!r}; accepted: {', '.join(map(repr, INITIALIZATIONS))}")
        self.rank = rank
        self.alpha = float(rank) if alpha is None else check_positive(alpha, "alpha")
        self.init: Initialization = init
        self.preserving = preserving
        self.train_sigma = train_sigma
        self.seed = seed
        self.offset = nn.Parameter(torch.zeros(rank, dtype=dtype, device=device))
        start = torch.full((1,), self.alpha / rank, dtype=dtype, device=device)
        if train_sigma:
            self.sigma = nn.Parameter(start)
        else:
            # No parameter: whoever unfreezes an adapter's parameters is not to unfreeze this one.
            self.register_buffer("sigma", start)
        self._keep("initial_sigma", start.clone())
        for name in ("initial_diagonal", "reference_diagonal"):
            self._keep(name, torch.zeros(rank, device=device))
        self._keep("pivot_rows", torch.zeros(rank, dtype=torch.int64, device=device) if rows else None)
        self._keep("pivot_columns", torch.zeros(rank, dtype=torch.int64, device=device) if columns else None)
        self._start_is_given = False

    def start_from(self, factors: Factors) -> None:
        """Take over the factors' pivots, and their diagonal as the start of z unless one was given or loaded."""
        if not self._start_is_given:
            start = initial_diagonal(self.init, factors.diagonal, self.seed)
            self._keep("initial_diagonal", start)
        self.initial_diagonal = self.initial_diagonal.to(factors.diagonal)
        self._set_reference(factors)
        self._keep("pivot_rows", None if factors.pivot_rows is None else factors.pivot_rows.clone())
        self._keep("pivot_columns", None if factors.pivot_columns is None else factors.pivot_columns.clone())

    def set_initial_diagonal(self, start: Tensor, factors: Factors) -> None:
        """Give z another start (r,): one that was drawn elsewhere, say. The offset from it stays."""
        if tuple(start.shape) != (self.rank,):
            raise ValueError(f"start has shape {tuple(start.shape)}; accepted: {(self.rank,)}")
        self._keep("initial_diagonal", start.detach().to(factors.diagonal, copy=True))
        self._start_is_given = True
        self._set_reference(factors)

    def _set_reference(self, factors: Factors) -> None:
        self._keep("reference_diagonal", (self.initial_diagonal if self.preserving else factors.diagonal).clone())

    @property
    def state(self) -> DiagonalState:
        """The numbers that the update is made of."""
        return DiagonalState(
            self.offset, self.sigma, self.initial_sigma, self.initial_diagonal, self.reference_diagonal
        )

    def delta(self, factors: Factors) -> Tensor:
        """Return sigma z - sigma_0 z_ref, shape (r,)."""
        return delta_of(self.state, factors.frame)

    def z(self, factors: Factors) -> Tensor:
        """Return the present diagonal, shape (r,)."""
        return self.initial_diagonal + to_diagonal(self.offset, factors.frame)

    @torch.no_grad()
    def set_z(self, z: Tensor, factors: Factors) -> None:
        """Make `z` (r,) the present diagonal, by its coordinates."""
        wide = torch.promote_types(self.offset.dtype, torch.float32)
        frame = None if factors.frame is None else factors.frame.to(wide)
        self.offset.copy_(from_diagonal((z - self.initial_diagonal).to(wide), frame))

    def _keep(self, name: str, tensor: Tensor | None) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
        destination[f"{prefix}initial_sigma"] = self.initial_sigma
        if is_random(self.init):
            destination[f"{prefix}initial_diagonal"] = self.initial_diagonal
        for name in ("pivot_rows", "pivot_columns"):
            pivots = getattr(self, name)
            if pivots is not None:
                destination[f"{prefix}{name}"] = smallest_integers(pivots)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Taken out before the parameters are loaded: these are constants whose presence and dtype may differ from ours.
        found = {name: state_dict.pop(f"{prefix}{name}", None) for name in _CONSTANTS}
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]
        device = self.offset.device
        for name, tensor in found.items():
            if tensor is None:
                continue
            integer = name.startswith("pivot")
            self._keep(name, tensor.detach().to(device, torch.int64 if integer else tensor.dtype, copy=True))
        if found["initial_diagonal"] is not None:
            self._start_is_given = True

    def extra_repr(self) -> str:
        """Describe the options, for printing the module."""
        return (
            f"rank={self.rank}, alpha={self.alpha:g}, init={self.init}, preserving={self.preserving}, "
            f"train_sigma={self.train_sigma}"
        )


_CONSTANTS = ("initial_sigma", "initial_diagonal", "pivot_rows", "pivot_columns")


def smallest_integers(index: Tensor) -> Tensor:
    """Return non-negative integers in the smallest type that holds them and that every library computes with."""
    largest = 0 if index.device.type == "meta" or index.numel() == 0 else int(index.max())
    for dtype in (torch.uint8, torch.int16, torch.uint16):
        if largest <= torch.iinfo(dtype).max:
            return index.to(dtype)
    return index.to(torch.int32)


def stack_states(adapters: Sequence[DiagonalAdapter]) -> DiagonalState:
    """Return the states of adapters of equal rank, stacked: (A, r) and (A, 1)."""
    return DiagonalState(*(torch.stack(numbers) for numbers in zip(*(each.state for each in adapters), strict=True)))

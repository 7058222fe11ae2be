"""The layer: a frozen nn.Linear plus what its trained diagonal changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowrank_ldu.decomposition import LDU, Pivoting, ldu, ldu_at_pivots
from lowrank_ldu.kernels import ldu_update
from lowrank_ldu.nn.initialization import Initialization, initial_diagonal
from lowrank_ldu.validation import check_matrix, check_positive, dtype_name

if TYPE_CHECKING:
    from collections.abc import Mapping


# What a state dict has to bring along beside the numbers.
_OPTIONS = ("rank", "alpha", "init", "preserving", "pivoting")


class LoLDULinear(nn.Module):
    r"""Linear layer with frozen weight W0 = P L diag(z) U + residual, of which z_r and one scale sigma are trained.

    Computes `W0 x + b + P L_r diag(sigma z - sigma_0 z_ref) U_r x`. That is the paper's `RSM x + DSM x`, with the
    difference of the two diagonals taken before the products instead of the difference of two weights: W0 is never
    written to, can be shared, and at step 0 of the preserving form the output is the base layer's bit for bit.

    Parameters
    ----------
    linear : nn.Linear
        Base layer, weight (m, n) = (out_features, in_features). Kept, frozen, as `self.linear`.
    rank : int, optional
        r, from 1 to min(m, n); the latter if not given.
    alpha : float, optional
        Sets sigma's start, sigma_0 = alpha / r. r if not given, so that sigma_0 = 1.
    init : str
        Start of z, one of `INITIALIZATIONS`.
    preserving : bool
        True: z_ref is the start of z, so the layer starts as the base layer. False: z_ref is the factorisation's own
        diagonal, as Algorithm 1 has it (the residual is computed before z is overwritten), and any other start of z
        changes the model at step 0.
    pivoting : str
        As for `ldu`.
    train_sigma : bool
        Whether sigma is trained (True) or stays at alpha / r.
    seed : int
        Of random starts of z, and of randomised pivoting.
    factors : LDU, optional
        The weight's factorisation where it is known already, with `rank` terms if that is given; its pivoting counts.

    Attributes
    ----------
    offset : Parameter, shape (r,)
        z minus its start; zeros at step 0. Trained instead of z because it is small: in low precision z itself would
        lose it. float32, or float64 for a float64 base. Weight decay therefore draws z to its start.
    sigma : Parameter, shape (1,)
        Scale.
    pivot_rows, pivot_columns : int64 Tensor, shape (r,), or None
        Pivots, from which the factors are rebuilt without a search.
    initial_diagonal : Tensor, shape (r,)
        Start of z.

    Raises
    ------
    TypeError
        `linear` is not an nn.Linear, or its weight is not floating.
    ValueError
        The weight is not finite or on the meta device; rank, alpha, init or pivoting is not accepted.

    Notes
    -----
    Algorithm 1 and equations (6) to (9) of arXiv 2410.13618. A state dict holds the base layer, offset, sigma, the
    pivots, the start of z and the options, and no factors; loading it takes all of them over.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> base = nn.Linear(6, 4)
    >>> layer = LoLDULinear(base, rank=2)
    >>> x = torch.randn(3, 6)
    >>> torch.equal(layer(x), base(x))
    True
    >>> sorted(name for name, parameter in layer.named_parameters() if parameter.requires_grad)
    ['offset', 'sigma']
    """

    left: Tensor
    right: Tensor
    scale: Tensor
    reference_diagonal: Tensor
    initial_diagonal: Tensor
    initial_sigma: Tensor
    pivot_rows: Tensor
    pivot_columns: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        rank: int | None = None,
        *,
        alpha: float | None = None,
        init: Initialization = "regular_ldu",
        preserving: bool = True,
        pivoting: Pivoting = "partial",
        train_sigma: bool = True,
        seed: int = 0,
        factors: LDU | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is a {type(linear).__name__}; accepted: an nn.Linear")
        check_matrix(linear.weight, "linear.weight")
        if factors is None:
            factors = ldu(linear.weight, rank, pivoting=pivoting, seed=seed)
        _check_factors(factors, linear.weight, rank)
        self.rank = factors.rank
        self.alpha = float(self.rank) if alpha is None else check_positive(alpha, "alpha")
        self.init: Initialization = init
        self.preserving = preserving
        self.pivoting: Pivoting = factors.pivoting
        start = initial_diagonal(init, factors.diagonal, seed)
        # Every option is checked: from here on the base layer is this one's.
        self.linear = linear.requires_grad_(requires_grad=False)
        self._base_weight: Tensor | None = None
        self._merged = False

        self.offset = nn.Parameter(torch.zeros_like(start))
        self.sigma = nn.Parameter(torch.full_like(start[:1], self.alpha / self.rank), requires_grad=train_sigma)
        self.register_buffer("initial_sigma", self.sigma.detach().clone(), persistent=False)
        self.register_buffer("initial_diagonal", start)
        self.register_buffer("pivot_rows", factors.permutation[: self.rank].clone())
        columns = factors.column_permutation
        self.register_buffer("pivot_columns", None if columns is None else columns[: self.rank].clone())
        self._set_factors(factors)
        self.register_state_dict_pre_hook(_refuse_while_merged)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_rebuild_factors)  # type: ignore[no-untyped-call]

    def _set_factors(self, factors: LDU) -> None:
        """Keep the factors in the weight's dtype, as buffers that no checkpoint holds."""
        # Rows of U range over orders of magnitude. Scaled by powers of two (exact but for what float16 cannot hold) to
        # a sum of magnitudes of at most 1 they fit float16, and so does U x wherever x does: where x is finite no
        # infinity ever meets a delta of zero.
        _, exponent = torch.frexp(factors.right.abs().sum(dim=1))
        scale = torch.ldexp(torch.ones_like(factors.diagonal), exponent)
        dtype = self.linear.weight.dtype
        self.register_buffer("left", factors.left.to(dtype), persistent=False)
        self.register_buffer("right", (factors.right / scale[:, None]).to(dtype), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        reference = self.initial_diagonal if self.preserving else factors.diagonal
        self.register_buffer("reference_diagonal", reference.clone(), persistent=False)

    def get_extra_state(self) -> Tensor:
        """Return the options without which the parameters mean nothing: JSON in a tensor, which any format takes."""
        options = {key: getattr(self, key) for key in _OPTIONS}
        return torch.frombuffer(bytearray(json.dumps(options).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the options of the layer whose state is loaded."""
        options = json.loads(bytes(state.tolist()))
        for key in _OPTIONS:
            setattr(self, key, options[key])
        self.initial_sigma.fill_(self.alpha / self.rank)

    def set_initial_diagonal(self, start: Tensor) -> None:
        """Give z another start (r,): one that was drawn elsewhere, say. The offset from it stays."""
        if start.shape != self.initial_diagonal.shape:
            raise ValueError(f"start has shape {tuple(start.shape)}; accepted: {tuple(self.initial_diagonal.shape)}")
        self.initial_diagonal.copy_(start)
        if self.preserving:
            self.reference_diagonal.copy_(start)

    @property
    def in_features(self) -> int:
        """The base layer's n."""
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        """The base layer's m."""
        return self.linear.out_features

    @property
    def z(self) -> Tensor:
        """Present diagonal, shape (r,)."""
        return self.initial_diagonal + self.offset

    @property
    def delta(self) -> Tensor:
        """Difference sigma z - sigma_0 z_ref, shape (r,): exactly zero at step 0 of the preserving form."""
        moved = self.offset + (self.initial_diagonal - self.reference_diagonal)
        return (self.sigma - self.initial_sigma) * self.reference_diagonal + self.sigma * moved

    @property
    def merged(self) -> bool:
        """Whether the update is in the base weight at present."""
        return self._merged

    def delta_weight(self) -> Tensor:
        """Return the update of the weight, P L diag(delta) U, shape (m, n), in float32 (float64 for a float64 base)."""
        wide = self.offset.dtype if self.offset.dtype == torch.float64 else torch.float32
        diagonal = (self.delta * self.scale).to(wide)
        return (self.left.to(wide) * diagonal) @ self.right.to(wide)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x (..., n), shape (..., m)."""
        y: Tensor = self.linear(x)
        if self._merged:
            return y
        return y + ldu_update(x, self.left, self.right, self.delta * self.scale)

    @torch.no_grad()
    def merge(self, *, keep_base: bool = True) -> None:
        """Add the update to the base weight in place, summed in float32 and rounded once.

        Parameters
        ----------
        keep_base : bool
            Keep a copy of the weight (m n entries of its dtype), so that `unmerge` restores it bit for bit. Without
            it `unmerge` is not possible.

        Raises
        ------
        RuntimeError
            The layer is merged already.
        OverflowError
            The sum is not finite in the weight's dtype. The weight is not changed then.
        """
        if self._merged:
            raise RuntimeError("the layer is merged already; accepted: one merge, then unmerge")
        weight = self.linear.weight
        update = self.delta_weight()
        merged = (weight.to(update.dtype) + update).to(weight.dtype)
        if not bool(merged.isfinite().all()):
            raise OverflowError(
                f"the merged weight overflows {dtype_name(weight)}; accepted: a smaller update, or a wider base"
            )
        if keep_base:
            self._base_weight = weight.detach().clone()
        weight.copy_(merged)
        self._merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put back the base weight that `merge` kept.

        Raises
        ------
        RuntimeError
            The layer is not merged, or was merged without keeping the base.
        """
        if not self._merged:
            raise RuntimeError("the layer is not merged; accepted: unmerge after merge")
        if self._base_weight is None:
            raise RuntimeError("the base weight was not kept; accepted: unmerge after merge(keep_base=True)")
        self.linear.weight.copy_(self._base_weight)
        self._base_weight = None
        self._merged = False

    def extra_repr(self) -> str:
        """Describe the options, for printing the module."""
        return (
            f"rank={self.rank}, alpha={self.alpha:g}, init={self.init}, preserving={self.preserving}, "
            f"pivoting={self.pivoting}"
        )


def _check_factors(factors: LDU, weight: Tensor, rank: int | None) -> None:
    if not (isinstance(factors, LDU) and isinstance(factors.left, Tensor)):
        raise TypeError(f"factors is a {type(factors).__name__}; accepted: an LDU of torch tensors")
    if factors.shape != tuple(weight.shape):
        raise ValueError(f"factors are of a matrix {factors.shape}; accepted: of linear.weight, {tuple(weight.shape)}")
    if rank is not None and factors.rank != rank:
        raise ValueError(f"factors has rank {factors.rank} and rank is {rank}; accepted: the same, or no rank")


def _refuse_while_merged(module: nn.Module, *_: Any) -> None:
    if isinstance(module, LoLDULinear) and module.merged:
        raise RuntimeError(
            "a merged layer's state would pass the merged weight off as the base; accepted: unmerge it first, "
            "or take the plain layers with lowrank_ldu.nn.unload"
        )


def _rebuild_factors(module: nn.Module, _: Mapping[str, Any]) -> None:
    """After a state dict has been loaded: the factors of this weight at these pivots."""
    if isinstance(module, LoLDULinear) and module.linear.weight.device.type != "meta":
        columns = None if module.pivot_columns is None else module.pivot_columns.tolist()
        rows = module.pivot_rows.tolist()
        module._set_factors(ldu_at_pivots(module.linear.weight, rows, columns, pivoting=module.pivoting))  # noqa: SLF001

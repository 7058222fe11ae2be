"""Compute the constant factors of one base weight.

They are the constant side of an adapter. Every adapter that asks for the same ones shares them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from lowrank_ldu.diagnostics.cost import SAMPLES
from lowrank_ldu.kernels import operators, pack, skeleton_of
from lowrank_ldu.kernels.torch_modes import is_stand_in
from lowrank_ldu.nn.base_identity import sample_of
from lowrank_ldu.nn.basis import BasisFactors, fitted_terms, terms_at_pivots, terms_of
from lowrank_ldu.nn.coordinates import coordinates_of
from lowrank_ldu.nn.weights import stored_weight, weight_matrix

if TYPE_CHECKING:
    from lowrank_ldu.kernels import Packing, Skeleton
    from lowrank_ldu.nn.options import AdapterOptions


class Factors(nn.Module):
    """Hold P L_r, U_r and the other constants of a factorization.

    They are buffers that no checkpoint holds.

    Parameters
    ----------
    matrix : Tensor, shape (m, n)
        The weight W, floating. On the meta device the factors are left for `build`, on the meta device as well.
    options : AdapterOptions
        With the rank filled in; of them the part `options.factors` is kept.
    terms : BasisFactors, optional
        Where they are known already.
    deferred : bool
        Leave the factors for `build`, since their pivots are yet to be loaded.
    layer : str
        Qualified name of the layer, by which a fitted basis knows it.

    Attributes
    ----------
    left, right : Tensor, shapes (m, r) and (r, n)
        P L and U, rows of U over `scale`, in W's dtype.
    scale : Tensor, shape (r,)
        Powers of two.
    diagonal : Tensor, shape (r,)
        The factorization's own.
    frame : Tensor or None
        T of `coordinates_of`.
    pivot_rows, pivot_columns : Tensor or None
        int64, shape (r,).
    sample : Tensor, float32
        Evenly spaced entries of W.
    jitter : float
        Of `coordinates_of`.
    ready : bool
        Whether the factors are there.
    upper : bool
        Whether right is upper trapezoidal, as it is in the LDU basis with partial pivoting.
    """

    left: Tensor
    right: Tensor
    scale: Tensor
    diagonal: Tensor
    sample: Tensor
    frame: Tensor | None
    pivot_rows: Tensor | None
    pivot_columns: Tensor | None

    def __init__(
        self,
        matrix: Tensor,
        options: AdapterOptions,
        *,
        terms: BasisFactors | None = None,
        deferred: bool = False,
        layer: str = "",
    ) -> None:
        super().__init__()
        self.options = options.factors
        self.layer = layer
        self._built: AdapterOptions | None = None
        self.jitter = 0.0
        self.ready = False
        self.upper = False
        self._packing: Packing | None = None
        self._packed: tuple[object, ...] = ()
        self._packed_weight: Tensor = torch.empty(0)
        self._skeleton: Skeleton | None = None
        self._skeleton_key: tuple[object, ...] = ()
        if deferred or matrix.device.type == "meta":
            self._set_empty(matrix)
        else:
            self.build(matrix, terms=terms)

    @torch.no_grad()
    def build(
        self,
        matrix: Tensor,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        *,
        terms: BasisFactors | None = None,
    ) -> None:
        """Compute the factors of the weight, at given pivots if any.

        Raises
        ------
        TypeError, ValueError
            As for `ldu`, `ldu_at_pivots` and `fitted_terms`; or the pivots are to be chosen, and none are given.
        """
        matrix = matrix.detach()
        options = self.options
        if terms is None:
            terms = self._terms(matrix, rows, columns)
        factors = terms.factors
        left, right, diagonal = factors.left, factors.right, factors.diagonal
        # Rows of U range over orders of magnitude. Scaled by powers of two (exact but for what float16 cannot hold) to
        # a sum of magnitudes of at most 1 they fit float16, and so does U x wherever x does: where x is finite no
        # infinity ever meets a delta of zero.
        _, exponent = torch.frexp(right.abs().sum(dim=1))
        scale = torch.ldexp(torch.ones_like(diagonal), exponent)
        frame, self.jitter = coordinates_of(left, right, options.parametrization, options.core_shape)
        self._keep("left", left.to(matrix.dtype))
        self._keep("right", (right / scale[:, None]).to(matrix.dtype))
        self._keep("scale", scale)
        self._keep("diagonal", diagonal)
        self._keep("frame", None if frame is None else frame.to(diagonal.dtype))
        self._keep("pivot_rows", terms.rows)
        self._keep("pivot_columns", terms.columns)
        self._keep("sample", sample_of(matrix))
        self.ready, self._built = True, options
        self.upper = options.basis == "ldu" and terms.columns is None and not bool(self.right.tril(-1).any())
        self._packing, self._packed, self._packed_weight = None, (), torch.empty(0)
        self._skeleton, self._skeleton_key = None, ()

    def _terms(self, matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> BasisFactors:
        options = self.options
        if options.basis == "fitted":
            return fitted_terms(matrix, self.layer, options)
        if rows is not None and options.basis == "ldu":
            return terms_at_pivots(matrix, rows, columns, options.pivoting)
        if options.pivoting == "chosen":
            raise ValueError(
                "pivoting is 'chosen' and no pivots are given; accepted: those of lowrank_ldu.fitting.choose_pivots, "
                "or an adapter that is loaded"
            )
        return terms_of(matrix, options.rank, options.basis, options.pivoting, options.seed)

    def fitted(self) -> bool:
        """Return whether the factors are there, and are the fitted basis's that the options name.

        They do not depend on the weight then.
        """
        return self.ready and self.options.basis == "fitted" and self._built == self.options

    def at(self, rows: Tensor | None, columns: Tensor | None) -> bool:
        """Return whether the factors are those at these pivots."""
        if not self.ready:
            return False
        return _same(rows, self.pivot_rows) and _same(columns, self.pivot_columns)

    def packing(self, weight: Tensor) -> Packing | None:
        """Return the arrays of the packed plan, made once for a weight.

        None if the factors do not reproduce the weight to rounding.
        """
        full = self.options.rank == min(len(self.left), self.right.shape[1])
        if not (full and self.upper and self.right.dtype in {torch.float32, torch.float64}):
            return None
        if torch.compiler.is_compiling() or get_proxy_mode() is not None:
            # The packing is an earlier call's: none is made in the middle of a graph. The graph compares the weight
            # whenever it runs.
            known = self._packing
            if known is None or known.diagonal.dtype != weight.dtype:
                return None
            return replace(known, order=operators.unchanged(known.order, weight, self._packed_weight))
        # A weight can change unnoticed (by .data, a NumPy view, a foreign kernel). So every entry is compared, which is
        # one pass over the weight beside the products of all rows of x.
        key = (weight.device, weight.dtype, weight.shape, self.left.data_ptr(), self.left.device)
        if self._packed != key or not torch.equal(weight, self._packed_weight):
            try:
                pivots = cast("Tensor", self.pivot_rows)
                self._packing = pack(weight, self.left, self.right, self.diagonal * self.scale, pivots)
            except ValueError:
                self._packing = None
            self._packed, self._packed_weight = key, weight.detach().clone()
        return self._packing

    def skeleton(self, weight: Tensor) -> Skeleton | None:
        """Return the rows and columns of a weight that the factors are made of, found once for a weight.

        None if the factors are not of its own LDU, or have half of its rank or more, where gathering saves nothing.

        Notes
        -----
        A weight can change unnoticed (by .data, a NumPy view, a foreign kernel), and the projection would be of the
        changed rows. So every bit of these rows and columns counts in a checksum, at r / T of a pass over x and y. In a
        graph there is no skeleton, since nothing in it would notice.
        """
        alike = weight.dtype == self.right.dtype and weight.device.type != "meta"
        if not alike or not self.gathers():
            return None
        if torch.compiler.is_compiling() or get_proxy_mode() is not None or is_stand_in(weight):
            return None
        key = (weight.device, weight.dtype, weight.shape, weight.data_ptr(), self.left.data_ptr(), self.left.device)
        known = self._skeleton_key[: len(key)] == key
        if known and self._skeleton_key[-1] == _checksums(weight, self._skeleton):
            return self._skeleton
        self._skeleton = self._found_skeleton(weight)
        self._skeleton_key = (*key, _checksums(weight, self._skeleton))
        return self._skeleton

    def gathers(self) -> bool:
        """Return whether the factors are of the weight's own LDU, of at most half of its rank."""
        (m, rank), n = self.left.shape, self.right.shape[1]
        return self.pivot_rows is not None and 2 * rank <= min(m, n)

    def obstacle_to_gathering(self) -> str:
        """Return why there is no skeleton of the weight, and what is accepted."""
        where, (m, rank), n = f"layer {self.layer!r}: " if self.layer else "", self.left.shape, self.right.shape[1]
        if self.pivot_rows is None:
            reason = f"the factors are of basis {self.options.basis!r}; accepted: basis 'ldu', the weight's own LDU"
        elif not self.gathers():
            reason = f"r is {rank}; accepted: up to {min(m, n) // 2}, half of the least side of the weight"
        else:
            reason = (
                "the weight is not the one that the factors are of, or cannot be watched for changes in a graph; "
                "accepted: an unchanged weight, outside of torch.compile"
            )
        return f"there is no skeleton of this weight: {where}{reason}"

    def quantized_skeleton(self, base_layer: nn.Module) -> Skeleton | None:
        """Return the skeleton of a quantized layer's dequantized weight, found once.

        None as for `skeleton`.
        """
        stored = stored_weight(base_layer)
        version = 0 if stored.is_inference() else stored._version  # noqa: SLF001
        key = ("quantized", stored.device, stored.data_ptr(), version, self.left.data_ptr())
        if self._skeleton_key != key:
            matrix = weight_matrix(base_layer).to(self.left.dtype)
            self._skeleton, self._skeleton_key = self._found_skeleton(matrix) if self.gathers() else None, key
        return self._skeleton

    @torch.no_grad()
    def _found_skeleton(self, weight: Tensor) -> Skeleton | None:
        rows, columns = cast("Tensor", self.pivot_rows), self.pivot_columns
        if columns is None:
            columns = torch.arange(len(rows), device=rows.device)
        try:
            return skeleton_of(weight.detach(), self.right, rows, self.left, columns)
        except ValueError:
            return None

    def _keep(self, name: str, tensor: Tensor | None) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def _apply(self, *args: Any, **kwargs: Any) -> Factors:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self.left.device.type == "meta":
            self.ready = False  # the numbers are lost here, and no checkpoint holds them
        return self

    def _set_empty(self, matrix: Tensor) -> None:
        """Fill the factors with empty tensors.

        On the meta device they have the right shapes.
        """
        (m, n), r = matrix.shape if matrix.device.type == "meta" else (0, 0), cast("int", self.options.rank)
        wide = torch.float64 if matrix.dtype == torch.float64 else torch.float32
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "left": ((m, r), matrix.dtype),
            "right": ((r, n), matrix.dtype),
            "scale": ((r,), wide),
            "diagonal": ((r,), wide),
            "sample": ((SAMPLES,), torch.float32),
        }
        for name, (shape, dtype) in shapes.items():
            self._keep(name, torch.empty(shape, dtype=dtype, device=matrix.device))
        for name in ("frame", "pivot_rows", "pivot_columns"):
            self._keep(name, None)

    def extra_repr(self) -> str:
        """Describe the options, for printing the module."""
        options = self.options
        return (
            f"rank={options.rank}, basis={options.basis}, pivoting={options.pivoting}, core={options.core}, "
            f"parametrization={options.parametrization}"
        )


@torch.no_grad()
def _checksums(weight: Tensor, skeleton: Skeleton | None) -> tuple[int, int] | None:
    """Return checksums of the bits of a weight's pivot rows and columns."""
    if skeleton is None or skeleton.columns is None:
        return None
    rows, columns = skeleton.rows, skeleton.columns
    weight = weight.detach()
    return _checksum(weight.index_select(0, rows)), _checksum(weight.index_select(1, columns).T)


def _checksum(matrix: Tensor) -> int:
    """Return a sum of a matrix's bits, each entry times a number of its place.

    Modulo 2^64, with odd numbers below 2^31 for rows and columns: what moves entries or changes some of them changes
    the sum, but for one case in some 2^32.
    """
    small = torch.int16 if matrix.dtype.itemsize == 2 else torch.int32
    bits = matrix.contiguous().view(small)
    rows, columns = (_places(size, bits.device) for size in bits.shape)
    return int(((bits * columns).sum(dim=1) * rows).sum())


@lru_cache(maxsize=256)
def _places(size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    numbers = torch.randint(0, 2**30, (size,), generator=generator, dtype=torch.int64)
    return (2 * numbers + 1).to(device)


def _same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return torch.equal(ours.to(theirs), theirs)

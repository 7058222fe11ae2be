"""Add a trained core's update to a frozen base layer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lowrank_ldu.decomposition import LDU
from lowrank_ldu.nn.basis import BasisFactors, fitted_terms, ldu_terms, terms_at_pivots
from lowrank_ldu.nn.core import CoreAdapter
from lowrank_ldu.nn.factors import Factors
from lowrank_ldu.nn.forward import first_argument, layer_output
from lowrank_ldu.nn.host import AdapterHost, HeldAdapter
from lowrank_ldu.nn.modules import recorded_call
from lowrank_ldu.nn.offloading import is_offloaded
from lowrank_ldu.nn.options import AdapterOptions, given_options, takes_options
from lowrank_ldu.nn.update import Update, updated_matrix
from lowrank_ldu.nn.weights import stored_weight, weight_matrix
from lowrank_ldu.validation import LORA_KEYWORDS, check_flag, check_matrix, explain_keywords, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


# Name of the one adapter of the layer.
_ADAPTER = "default"


class LDULayer(AdapterHost):
    r"""Frozen layer with a trained core and scale.

    The weight is W0 = P L diag(z) U + residual, of which z_r and one scale sigma are trained. The layer computes
    `W0 x + b + P L_r diag(sigma z - sigma_0 z_ref) U_r x`. That is the paper's `RSM x + DSM x`, with the difference of
    the two diagonals taken before the products instead of the difference of two weights: W0 is never written to, can be
    shared or quantized, and at step 0 of the preserving form the output is the base layer's bit for bit.

    Parameters
    ----------
    base_layer : nn.Module
        nn.Linear, transformers' Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.Embedding, whose weight reads as W
        (m, n): (out, in) for linear layers, (out, in / groups * kernel) for convolutions, (num_embeddings,
        embedding_dim).
        Linear layers that bitsandbytes or torchao quantized are factored dequantized and stay quantized. Kept, frozen,
        as `self.base_layer`.
    rank : int, optional
        r, from 1 to min(m, n); the latter if not given.
    options : AdapterOptions, optional
        All options in one object, in place of rank and keywords.
    factors : LDU, optional
        The weight's factorization where it is known already, with `rank` terms if that is given; its pivoting counts.
    pivots : pair of sequences of int, optional
        Pivot rows and columns, r each, where they are known already: pivoting is "chosen" then.
    name : str
        Qualified name of the layer, by which a fitted basis knows it.
    **fields
        Fields of `AdapterOptions`, by keyword: alpha, init, preserving, pivoting and so on.

    Attributes
    ----------
    offset : Parameter, shape (r,), or (g, b, b) for cores of blocks
        Coordinates of z minus its start, or of the core; zeros at step 0. Trained instead of z because it is small: in
        low precision z itself would lose it. float32, or float64 for a float64 base. Weight decay therefore draws z to
        its start.
    sigma : Parameter, shape (1,)
        Scale.
    factors : Factors
        The constant factors.
    adapter : CoreAdapter
        Holds offset, sigma and the constants that belong to them.

    Raises
    ------
    TypeError
        No adapter fits this kind of layer, or its weight is neither floating nor in a known quantized format.
    ValueError
        The weight is not finite or on the meta device; rank, alpha or a named option is not accepted.

    Notes
    -----
    Algorithm 1 and equations (6) to (9) of arXiv 2410.13618. A state dict holds the base layer, offset, sigma, the
    pivots, the start of z if it was drawn at random, and the options, and no factors; loading it takes all of them
    over.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> base = nn.Linear(6, 4)
    >>> layer = LDULayer(base, rank=2)
    >>> x = torch.randn(3, 6)
    >>> torch.equal(layer(x), base(x))
    True
    >>> sorted(name for name, parameter in layer.named_parameters() if parameter.requires_grad)
    ['adapter.offset', 'adapter.sigma']
    """

    # Whether `inject` made the layer, which freezes the rest of the model: what trains there was unfrozen on purpose.
    injected: bool = False

    @explain_keywords(LORA_KEYWORDS)
    @takes_options
    def __init__(
        self,
        base_layer: nn.Module,
        rank: int | None = None,
        *,
        options: AdapterOptions | None = None,
        factors: LDU | None = None,
        pivots: tuple[Sequence[int], Sequence[int]] | None = None,
        name: str = "",
        **fields: Any,
    ) -> None:
        if pivots is not None and options is None:
            fields.setdefault("pivoting", "chosen")
        options = given_options(options, rank, fields)
        matrix = weight_matrix(base_layer)
        if matrix.device.type == "meta":
            raise ValueError(
                "base_layer.weight is on the meta device, where device_map, offloading and init_empty_weights leave "
                "weights without data; accepted: a weight that is loaded, or that accelerate's hook on its layer loads"
            )
        check_matrix(matrix, "base_layer.weight")
        if factors is not None:
            _check_factors(factors, matrix, options)
            options = replace(options, rank=factors.rank, pivoting=factors.pivoting)
        terms = None if factors is None else ldu_terms(factors)
        if pivots is not None:
            terms = _terms_at(pivots, matrix, options, factors)
            options = replace(options, rank=terms.factors.rank)
        if options.basis == "fitted" and options.rank is None:
            terms = fitted_terms(matrix, name, options)
            options = replace(options, rank=terms.factors.rank)
        options = options.for_layer(min(matrix.shape))
        dtype = torch.promote_types(torch.float32, matrix.dtype)
        adapter = CoreAdapter(options, dtype=dtype, device=matrix.device)
        constant = Factors(matrix, options, terms=terms, layer=name)
        adapter.start_from(constant)
        # Every option is checked: from here on the base layer is this one's.
        self._hold(base_layer, adapter, constant)

    @classmethod
    def of(cls, base_layer: nn.Module, held: HeldAdapter) -> LDULayer:
        """Return the layer of a given adapter with its factors."""
        layer = cls.__new__(cls)
        layer._hold(base_layer, held.adapter, held.factors)  # noqa: SLF001
        return layer

    def _hold(self, base_layer: nn.Module, adapter: CoreAdapter, factors: Factors) -> None:
        super().__init__(base_layer.requires_grad_(requires_grad=False))
        self.factors = factors
        self.adapter = adapter
        self.register_state_dict_pre_hook(_refuse_while_merged)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_rebuild_factors)  # type: ignore[no-untyped-call]

    @property
    def options(self) -> AdapterOptions:
        """Return the options that make the same layer of the same base."""
        return self.adapter.options

    def get_extra_state(self) -> Tensor:
        """Return the options as JSON in a tensor.

        Without them the parameters mean nothing. Any file format takes a tensor.
        """
        return torch.frombuffer(bytearray(json.dumps(self.options.to_json()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the options of a layer from its loaded state."""
        options = AdapterOptions.from_json(json.loads(bytes(state.tolist())))
        self.adapter.options, self.factors.options = options, options.factors

    @property
    def rank(self) -> int:
        """Return the number r of the factors' terms."""
        return self.adapter.rank

    @property
    def offset(self) -> Tensor:
        """Return the trained coordinates of z minus its start, or of the core."""
        return self.adapter.offset

    @property
    def sigma(self) -> Tensor:
        """Return the trained scale, shape (1,)."""
        return self.adapter.sigma

    @property
    def z(self) -> Tensor:
        """Return the present diagonal z, shape (r,), or core, (g, b, b)."""
        return self.adapter.z(self.factors)

    @property
    def delta(self) -> Tensor:
        """Return the difference sigma z - sigma_0 z_ref, of the core's shape.

        It is exactly zero at step 0 of the preserving form.
        """
        return self.adapter.delta(self.factors)

    def held_adapters(self) -> Iterator[HeldAdapter]:
        """Yield the one adapter."""
        yield HeldAdapter(_ADAPTER, self.adapter, self.factors)

    def delta_weight(self) -> Tensor:
        """Return the update P L K U of W, shape (m, n).

        It is in float32, or in float64 for a base in float64.
        """
        return updated_matrix(self.factors, self.delta)

    def forward(self, x: Tensor | None = None, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the update in its weight.

        All arguments are the base layer's.
        """
        if x is None:
            x = first_argument(self.base_layer, kwargs)
        if isinstance(x, Proxy):
            return recorded_call(self, x, args, kwargs)
        self.called.note()
        if self._merged_updates:
            y: Tensor = self.base_layer(x, *args, **kwargs)
            return y
        return layer_output(
            self.base_layer, self.kind, x, self.factors, self.delta, plan=self.plan, args=args, kwargs=kwargs
        )

    @torch.no_grad()
    def merge(self, *, keep_base: bool = True) -> None:
        """Add the update to the base weight in place.

        The sum is made in float32 and rounded once.

        Parameters
        ----------
        keep_base : bool
            Keep a copy of the weight (m n entries of its dtype), so that `unmerge` restores it bit for bit. Without
            it `unmerge` is not possible.

        Raises
        ------
        RuntimeError
            The layer is merged already; its weight is another module's, too; or the merged layer, tried out where the
            base has hooks or a forward of its own, does not compute what this one does. The weight is not changed.
        TypeError
            The base is quantized: no sum of its weight and an update is in its format. Or its weight is computed at
            each call (parametrized, weight-normed, pruned).
        OverflowError
            The sum is not finite in the weight's dtype. The weight is not changed then.
        """
        keep_base = check_flag(keep_base, "keep_base")
        if self.merged:
            raise RuntimeError("the layer is merged already; accepted: one merge, then unmerge")
        self._add_to_weight({_ADAPTER: Update(self.factors, self.delta)}, keep_base=keep_base)

    def unmerge(self) -> None:
        """Put back the base weight that `merge` kept.

        Raises
        ------
        RuntimeError
            The layer is not merged, or was merged without keeping the base; or the merged weight was changed since.
        """
        if not self.merged:
            raise RuntimeError("the layer is not merged; accepted: unmerge after merge")
        if self._kept_base is None:
            raise RuntimeError("the base weight was not kept; accepted: unmerge after merge(keep_base=True)")
        self._restore_weight()


def _check_factors(factors: LDU, matrix: Tensor, options: AdapterOptions) -> None:
    if not (isinstance(factors, LDU) and isinstance(factors.left, Tensor)) or options.basis != "ldu":
        raise TypeError(
            f"factors is a {type(factors).__name__} and basis is {options.basis!r}; accepted: an LDU of torch "
            "tensors, with basis 'ldu'"
        )
    if factors.shape != tuple(matrix.shape):
        raise ValueError(
            f"factors are of a matrix {factors.shape}; accepted: of base_layer.weight, {tuple(matrix.shape)}"
        )
    if factors.origin != "weight":
        raise ValueError(
            f"factors has origin {factors.origin!r}, whose pivots do not rebuild it from base_layer.weight; accepted: "
            "factors of the weight itself, as ldu gives"
        )
    if options.rank is not None and factors.rank != options.rank:
        raise ValueError(f"factors has rank {factors.rank} and rank is {options.rank}; accepted: the same, or no rank")


def _terms_at(
    pivots: tuple[Sequence[int], Sequence[int]], matrix: Tensor, options: AdapterOptions, factors: LDU | None
) -> BasisFactors:
    """Return the terms at pivots that were chosen."""
    if factors is not None or options.pivoting != "chosen":
        given = "factors" if factors is not None else f"pivoting {options.pivoting!r}"
        raise ValueError(f"pivots are given beside {given}; accepted: pivoting 'chosen', and no factors")
    try:
        rows, columns = (torch.as_tensor(each) for each in pivots)
    except (TypeError, ValueError) as error:
        raise TypeError(f"pivots is {shown(pivots)}; accepted: a pair of sequences, rows and columns") from error
    if options.rank is not None and options.rank != len(rows):
        raise ValueError(
            f"pivots has {len(rows)} rows and rank is {options.rank}; accepted: as many of each, or no rank"
        )
    return terms_at_pivots(matrix, rows, columns, options.pivoting)


def _refuse_while_merged(module: nn.Module, *_: Any) -> None:
    if isinstance(module, LDULayer) and module.merged:
        raise RuntimeError(
            "a merged layer's state would pass the merged weight off as the base; accepted: unmerge it first, "
            "or take the plain layers with lowrank_ldu.nn.unload"
        )


def _rebuild_factors(module: nn.Module, _: Mapping[str, Any]) -> None:
    """Rebuild the factors after a state dict has been loaded.

    They are those of this weight at the loaded pivots.
    """
    if isinstance(module, LDULayer) and (
        stored_weight(module.base_layer).device.type != "meta" or is_offloaded(module.base_layer)
    ):
        adapter = module.adapter
        pivots = (adapter.pivot_rows, adapter.pivot_columns)
        if any(each is not None and len(each) != module.rank for each in pivots):
            return  # of another rank: torch says which sizes do not fit once all modules are loaded
        if not module.factors.fitted():
            module.factors.build(weight_matrix(module.base_layer), adapter.pivot_rows, adapter.pivot_columns)
        adapter.start_from(module.factors)


# The former name, which scripts have.
LoLDULayer = LDULayer

"""Hold several LoLDU adapters on one layer under PEFT.

PEFT puts this layer in the place of a target, which is then its base layer.
"""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from torch.fx import Proxy

from lowrank_ldu.nn.core import CoreAdapter
from lowrank_ldu.nn.forward import first_argument, layer_output, output_with_updates
from lowrank_ldu.nn.host import AdapterHost, HeldAdapter
from lowrank_ldu.nn.kinds.own_forward import own_forward
from lowrank_ldu.nn.modules import recorded_call
from lowrank_ldu.nn.offloading import is_offloaded, offloading_hook, own_memory
from lowrank_ldu.nn.quantized import is_quantized
from lowrank_ldu.nn.sharing import SharedFactors
from lowrank_ldu.nn.update import Update, updated_matrix
from lowrank_ldu.nn.weights import stored_weight, weight_matrix, whole_matrix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lowrank_ldu.nn.factors import Factors
    from lowrank_ldu.peft.config import LolduConfig
    from lowrank_ldu.peft.fits import LayerFit

# Relative size of a random offset of z: it shows in the output, and is far too small to break a model.
_RANDOM_OFFSET = 0.1
# Key of the names of adapters in the state dict of a merged layer. It lacks PEFT's prefix, by which PEFT picks the
# tensors that it saves.
_MERGED = "merged_names"


class LolduLayer(AdapterHost, BaseTunerLayer):  # type: ignore[misc]  # peft has no types
    """Base layer with LoLDU adapters under PEFT.

    Parameters
    ----------
    base_layer : nn.Module
        Of a kind that `lowrank_ldu.nn.LDULayer` takes. Never written to but by merging.
    adapter_name : str
    config : LolduConfig
    r : int
    alpha : float, optional
    name : str
        Qualified name in the model, for messages.
    fit : LayerFit, optional
        Pivots that were chosen for the layer.
    """

    if TYPE_CHECKING:  # PEFT's, which has no types here
        active_adapters: list[str]
        disable_adapters: bool

        def get_base_layer(self) -> nn.Module: ...  # noqa: D102

    adapter_layer_names: tuple[str, ...] = ("loldu_adapter",)
    other_param_names: tuple[str, ...] = ("loldu_config",)

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        config: LolduConfig,
        r: int,
        alpha: float | None,
        name: str,
        fit: LayerFit | None = None,
    ) -> None:
        super().__init__(base_layer)
        self.name = name
        self.loldu_adapter = nn.ModuleDict()
        self.loldu_factors = SharedFactors(name)
        self.loldu_config: dict[str, LolduConfig] = {}
        self._disable_adapters = False
        self._active_adapter: str | list[str] = adapter_name
        self.in_features, self.out_features = _sizes(base_layer)
        self.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]
        self.update_layer(adapter_name, config=config, r=r, alpha=alpha, fit=fit)

    def update_layer(
        self, adapter_name: str, *, config: LolduConfig, r: int, alpha: float | None, fit: LayerFit | None = None
    ) -> None:
        """Add an adapter.

        Without chosen pivots, those of pivoting "chosen" are to come with its numbers.

        Raises
        ------
        TypeError, ValueError
            An option or the weight is not accepted, or an adapter is merged at present: the weight is not the base's
            then.
        """
        if self.merged:
            raise ValueError(
                f"layer {self.name!r}: adapters {self.merged_adapters} are merged, so that adapter {adapter_name!r} "
                "would be made for the merged weight; accepted: unmerge_adapter() first"
            )
        base = self.get_base_layer()
        # Tensors made in inference mode could not be trained, nor trained beside.
        with torch.inference_mode(mode=False), gather_params_ctx(stored_weight(base)), torch.no_grad():
            try:
                matrix = weight_matrix(base)
                _check_shape(matrix, fit)
                options = replace(config.options, rank=r, alpha=alpha).for_layer(min(matrix.shape))
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {self.name!r}: {error}") from error
            # PEFT creates an adapter in the base's dtype, and widens it afterwards unless told not to.
            adapter = CoreAdapter(options, dtype=matrix.dtype, device=matrix.device)
            # PEFT makes parameters on the meta device where numbers are to be loaded: the pivots come with them.
            deferred = adapter.offset.device.type == "meta"
            if deferred:
                adapter.to("meta")  # its buffers, too
            try:
                pivots = None if deferred or fit is None else _as_tensors(fit, adapter.offset.device)
                self.loldu_factors.assign(adapter_name, options, matrix, deferred=deferred, pivots=pivots)
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {self.name!r}: {error}") from error
        if pivots is not None:
            adapter.choose_pivots(*pivots)
        self.loldu_adapter[adapter_name] = adapter
        self.loldu_config[adapter_name] = config
        self._settle(adapter_name)
        factors = self.loldu_factors.of(adapter_name)
        if not deferred and factors.ready and not config.init_weights:
            _randomize(adapter, factors)

    def adapter(self, adapter_name: str) -> CoreAdapter:
        """Return the numbers of an adapter."""
        return self.loldu_adapter[adapter_name]  # type: ignore[return-value]  # what a ModuleDict holds

    def held_adapters(self) -> Iterator[HeldAdapter]:
        """Yield every adapter."""
        for name in self.loldu_adapter:
            yield self.held(name)

    def held(self, adapter_name: str) -> HeldAdapter:
        """Return one adapter with its factors.

        They are computed now if they were put off.
        """
        self._settle_new([adapter_name])
        return HeldAdapter(adapter_name, self.adapter(adapter_name), self.loldu_factors.of(adapter_name))

    def _settle_new(self, adapter_names: Iterable[str]) -> None:
        """Settle adapters with new numbers.

        These are the adapters whose numbers have come since they were settled, or that were never settled.
        """
        for name in self.loldu_factors.unsettled(self.loldu_adapter, adapter_names):
            if self.loldu_factors.waits(name, self.adapter(name)):
                raise ValueError(
                    f"layer {self.name!r}: adapter {name!r} has pivoting 'chosen' and no pivots; accepted: pivots_file "
                    "in its configuration, or to load its saved numbers, which have them"
                )
            self._settle(name)

    def _settle(self, adapter_name: str) -> None:
        """Check an adapter's numbers and base, and settle its factors.

        The factors are those of `SharedFactors.settle`. An adapter whose pivots are yet to come stays as it is.
        """
        if self.loldu_factors.waits(adapter_name, self.adapter(adapter_name)):
            self.loldu_factors.loaded.discard(adapter_name)
            return
        base = self.get_base_layer()
        away = stored_weight(base).device.type == "meta" and not is_offloaded(base)
        weight = None if away or self.merged else self._gathered_matrix()
        policy = self.loldu_config[adapter_name].base_check
        self.loldu_factors.settle(adapter_name, self.adapter(adapter_name), weight, policy)

    @contextmanager
    def _gathered_matrix(self) -> Iterator[Tensor]:
        base = self.get_base_layer()
        with gather_params_ctx(stored_weight(base)):
            yield whole_matrix(base)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and its factors if they are unused."""
        super().delete_adapter(adapter_name)
        self.loldu_factors.remove(adapter_name)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return an adapter's update in the layout of the base weight.

        Its dtype is that of the adapter's numbers.
        """
        _, adapter, factors = self.held(adapter_name)
        update = updated_matrix(factors, adapter.delta(factors)).to(adapter.offset.dtype)
        if is_quantized(self.get_base_layer()):
            return update  # the shape of its stored weight means nothing
        return self.kind.as_weight(update, stored_weight(self.get_base_layer()))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return whether PEFT's convert_to_lora can take the layer.

        It adds products to the output of linear layers.
        """
        del adapter_name
        return self.kind.linear and not own_forward(self.get_base_layer())

    def forward(self, x: Tensor | None = None, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the active adapters.

        Their updates are in its weight. All arguments are the base layer's.
        """
        if x is None:
            x = first_argument(self.get_base_layer(), kwargs)
        if isinstance(x, Proxy):
            return recorded_call(self, x, args, kwargs)
        self.called.note()
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is not None:
            self._check_mixed_batch(x, adapter_names)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            plain: Tensor = self.base_layer(x, *args, **kwargs)
            return plain
        adapters, shared = self.loldu_adapter, self.loldu_factors
        used = self.active_adapters if adapter_names is None else dict.fromkeys(adapter_names)
        names = [name for name in used if name in adapters]
        self._settle_new(names)
        updates = (
            shared.summed_updates(adapters, names)
            if adapter_names is None
            else shared.updates_by_row(adapters, adapter_names)
        )
        base = self.get_base_layer()
        if len(updates) == 1 and base is self.base_layer and not (args or kwargs):
            factors, delta, choice = updates[0]
            return layer_output(base, self.kind, x, factors, delta, plan=self.plan, index=choice)
        if updates and self.plan not in {"auto", "reference"}:
            raise RuntimeError(
                f"plan {self.plan!r} cannot run here: layer {self.name!r} adds up the updates of adapters that do not "
                "share their factors, or its base layer takes further arguments"
            )
        result: Tensor = output_with_updates(self.base_layer, base, self.kind, updates, x, args, kwargs)
        return result

    def _check_mixed_batch(self, x: Tensor, adapter_names: list[str]) -> None:
        if len(x) != len(adapter_names):
            raise ValueError(
                f"layer {self.name!r}: Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively; accepted: a name for each row of the batch, or to "
                "leave a layer whose input has other rows out with exclude_modules"
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight.

        All of them are summed in float32 and rounded once.

        Parameters
        ----------
        safe_merge : bool
            PEFT's; the sum is checked in any case.
        adapter_names : list of str, optional
            The active ones if not given.

        Raises
        ------
        ValueError
            The base is quantized, its weight is computed at each call (parametrized, weight-normed, pruned) or is
            another module's, too, the sum is not finite, or the merged layer, tried out where the base has hooks or a
            forward of its own, does not compute what this one does; the weight is unchanged then.
        """
        del safe_merge
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.loldu_adapter]
        if not names:
            return
        held = [self.held(name) for name in names]
        updates = {name: Update(factors, adapter.delta(factors)) for name, adapter, factors in held}
        try:
            with self._refusals_named():
                self._add_to_weight(updates, keep_base=all(self.loldu_config[name].keep_base for name in names))
        except OverflowError as error:
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken: layer "
                f"{self.name!r}: {error}"
            ) from error

    def unmerge(self) -> None:
        """Put back the base weight.

        It is the kept copy. Without one the updates are subtracted, which leaves rounding errors.
        """
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", UserWarning, stacklevel=2)
            return
        with self._refusals_named():
            self._restore_weight()

    def check_mergeable(self) -> None:
        """Refuse to merge into a weight that cannot be written to.

        It raises ValueError if the base weight is computed at each call, or is another module's, too.
        """
        with self._refusals_named():
            super().check_mergeable()

    @contextmanager
    def _refusals_named(self) -> Iterator[None]:
        """Raise refusals to merge as PEFT's ValueError.

        The message gets the layer's name.
        """
        try:
            yield
        except (TypeError, RuntimeError) as error:
            if type(error) not in {TypeError, RuntimeError}:
                raise  # torch's own, such as that memory ran out
            raise ValueError(f"layer {self.name!r}: {error}") from error

    @contextmanager
    def _weight_to_write(self) -> Iterator[Tensor]:
        base = self.get_base_layer()
        with gather_params_ctx(stored_weight(base)), super()._weight_to_write() as weight:
            own_memory(base)  # PEFT has brought it into memory, which a tied weight in accelerate's store may be in
            yield weight

    @property
    def merged_adapters(self) -> list[str]:
        """Return the names of the merged adapters, in the order of merging."""
        return list(self._merged_updates)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones."""
        # An adapter that was loaded on another base is refused here rather than in the next forward.
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            if name in self.loldu_adapter:
                self._settle(name)
        super().set_adapter(adapter_names, inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's own would cast the numbers to the base's dtype as well.
        base = self.get_base_layer()
        device = device or (
            offloading_hook(base).execution_device if is_offloaded(base) else stored_weight(base).device
        )
        if adapter_name in self.loldu_adapter and self.adapter(adapter_name).offset.device.type != "meta":
            self.loldu_adapter[adapter_name].to(device)
            self.loldu_factors.of(adapter_name).to(device)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            # The weight in the state dict is no base's. It is not refused: adapters are saved from the same state dict.
            names = bytearray(json.dumps(self.merged_adapters).encode())
            destination[f"{prefix}{_MERGED}"] = torch.frombuffer(names, dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # torch hands every module a dict of its own.
        stored = state_dict.pop(f"{prefix}{_MERGED}", None)
        merged = [] if stored is None else json.loads(bytes(stored.tolist()))
        holds_weight = any(key.startswith(f"{prefix}base_layer.") and key.endswith("weight") for key in state_dict)
        if holds_weight and merged != self.merged_adapters:
            raise ValueError(
                f"layer {self.name!r} has adapters {self.merged_adapters} merged, and the state dict's has {merged}, "
                "so that its weight is another one; accepted: to save and load after unmerge_adapter()"
            )
        for name in self.loldu_adapter:
            if f"{prefix}loldu_adapter.{name}.offset" in state_dict:
                self.loldu_factors.loaded.add(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Name the layer, for printing the module."""
        return f"name={self.name!r}"


class LolduLinear(LolduLayer):
    """Linear layer with LoLDU adapters under PEFT.

    PEFT's "all-linear" knows by the class's name that a layer has adapters already.
    """


def _after_load(module: nn.Module, _: Any) -> None:
    """Settle the adapters after a state dict has been loaded.

    Their factors are then those at the pivots that came with it.
    """
    if isinstance(module, LolduLayer):
        for name in sorted(module.loldu_factors.loaded):
            module._settle(name)  # noqa: SLF001


def _randomize(adapter: CoreAdapter, factors: Factors) -> None:
    if adapter.options.starts_at_zero:
        _randomize_core(adapter, factors)
        return
    z = adapter.initial_diagonal
    size = z.abs().mean().clamp_min(torch.finfo(z.dtype).tiny)
    # From the global generator, as PEFT's own methods do: two adapters come out different.
    adapter.set_z(z + _RANDOM_OFFSET * size * torch.randn_like(z), factors)


def _randomize_core(adapter: CoreAdapter, factors: Factors) -> None:
    """Set a core at random, so that the update has a share of the weight's norm."""
    m, n = factors.left.shape[0], factors.right.shape[1]
    core = torch.randn(adapter.options.core_shape, dtype=factors.scale.dtype, device=factors.scale.device)
    weight = factors.sample.square().mean().sqrt() * (m * n) ** 0.5
    size = torch.linalg.matrix_norm(updated_matrix(factors, core).float()).clamp_min(torch.finfo(torch.float32).tiny)
    adapter.set_delta(_RANDOM_OFFSET * core * (weight / size).to(core), factors)


def _check_shape(matrix: Tensor, fit: LayerFit | None) -> None:
    if fit is not None and fit.shape is not None and fit.shape != tuple(matrix.shape):
        raise ValueError(
            f"the weight has shape {tuple(matrix.shape)}; accepted: {fit.shape}, of which pivots_file has the pivots"
        )


def _as_tensors(fit: LayerFit, device: torch.device) -> tuple[Tensor, Tensor] | None:
    if fit.rows is None or fit.columns is None:
        return None
    return torch.tensor(fit.rows, device=device), torch.tensor(fit.columns, device=device)


def _sizes(base_layer: nn.Module) -> tuple[int | None, int | None]:
    """Return PEFT's in_features and out_features of a layer.

    Each kind has its own names for them.
    """
    inputs, outputs = (
        ("in_features", "in_channels", "num_embeddings", "nx"),
        ("out_features", "out_channels", "embedding_dim", "nf"),
    )

    def first(names: tuple[str, ...]) -> int | None:
        return next((getattr(base_layer, name) for name in names if hasattr(base_layer, name)), None)

    return first(inputs), first(outputs)

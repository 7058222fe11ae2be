"""The layer that PEFT puts in place of a target: a base layer with any number of LoLDU adapters."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import is_fake
from torch.fx import Proxy

from lowrank_ldu.backend import backend_of
from lowrank_ldu.initialization import is_random
from lowrank_ldu.nn.base_call import Update, first_argument, output_with_updates
from lowrank_ldu.nn.diagonal import DiagonalAdapter
from lowrank_ldu.nn.factors import Factors, sample_deviation
from lowrank_ldu.nn.functional import merged_weight, updated_matrix
from lowrank_ldu.nn.fusion import layer_output
from lowrank_ldu.nn.host import AdapterHost, Diagonal, MergedWeight, Seen, recorded_call, stored_weight, weight_matrix
from lowrank_ldu.nn.kinds import kind_of
from lowrank_ldu.nn.kinds.forward import own_forward
from lowrank_ldu.nn.merge_check import check_mergeable, tried_out
from lowrank_ldu.nn.offloading import is_offloaded, offloading_hook, own_memory
from lowrank_ldu.nn.quantized import is_quantized
from lowrank_ldu.peft.mixed_batch import mixed_output
from lowrank_ldu.validation import check_finite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_ldu.nn.options import AdapterOptions
    from lowrank_ldu.peft.config import LolduConfig

# Rounding a weight to bfloat16 changes it by 0.2 %, to 4 bits by some 10 %; another weight is off by 100 %.
_ROUNDED, _QUANTIZED = 0.01, 0.2
# Of z, where a random offset is asked for: seen in the output, and far from what breaks a model.
_RANDOM_OFFSET = 0.1
# Names of adapters, in the state dict of a merged layer. Without PEFT's prefix, by which it picks what it saves.
_MERGED = "merged_names"


class LolduLayer(AdapterHost, nn.Module, BaseTunerLayer):  # type: ignore[misc]  # peft has no types
    """A base layer with LoLDU adapters under PEFT.

    Parameters
    ----------
    base_layer : nn.Module
        Of a kind that `lowrank_ldu.nn.LoLDULayer` takes. Never written to but by merging.
    adapter_name : str
    config : LolduConfig
    r : int
    alpha : float, optional
    name : str
        Qualified name in the model, for messages.
    """

    if TYPE_CHECKING:  # PEFT's, which has no types here
        active_adapters: list[str]
        disable_adapters: bool
        merged: bool

        def get_base_layer(self) -> nn.Module: ...  # noqa: D102

    adapter_layer_names: tuple[str, ...] = ("loldu_adapter",)
    other_param_names: tuple[str, ...] = ("loldu_config", "loldu_terms")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        config: LolduConfig,
        r: int,
        alpha: float | None,
        name: str,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.kind = kind_of(base_layer)
        self.name = name
        self.called, self.weight_read = Seen(), Seen()
        self.loldu_adapter = nn.ModuleDict()
        # Adapters of equal options share their factors: what they differ in is r + 1 numbers.
        self.loldu_factors = nn.ModuleDict()
        self.loldu_terms: dict[str, str] = {}
        self.loldu_config: dict[str, LolduConfig] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = adapter_name
        self._base_weight: Tensor | None = None
        self._merged_weight: MergedWeight | None = None
        # What was merged, r numbers each: the adapters' own may change before they are unmerged.
        self._merged_updates: dict[str, Update] = {}
        self._loaded: set[str] = set()
        # Factors that each adapter was found to agree with.
        self._settled: dict[str, str] = {}
        # The tensor that was looked at then: a loader that sets tensors one by one puts another one in its place.
        self._seen: dict[str, Tensor] = {}
        self.in_features, self.out_features = _sizes(base_layer)
        self.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]
        self.update_layer(adapter_name, config=config, r=r, alpha=alpha)

    def update_layer(self, adapter_name: str, *, config: LolduConfig, r: int, alpha: float | None) -> None:
        """Add an adapter.

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
                options = replace(config.options, rank=r, alpha=alpha).for_layer(min(matrix.shape))
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {self.name!r}: {error}") from error
            # PEFT creates an adapter in the base's dtype, and widens it afterwards unless told not to.
            adapter = DiagonalAdapter(options, dtype=matrix.dtype, device=matrix.device)
            # PEFT makes parameters on the meta device where numbers are to be loaded: the pivots come with them.
            deferred = adapter.offset.device.type == "meta"
            if deferred:
                adapter.to("meta")  # its buffers, too
            try:
                terms = self._shared_terms(options, matrix, deferred=deferred)
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {self.name!r}: {error}") from error
        self.loldu_adapter[adapter_name] = adapter
        self.loldu_terms[adapter_name] = terms
        self.loldu_config[adapter_name] = config
        self._settle(adapter_name)
        factors = self.factors_of(adapter_name)
        if not deferred and factors.ready and not config.init_weights:
            _randomize(adapter, factors)

    def _shared_terms(self, options: AdapterOptions, matrix: Tensor, *, deferred: bool) -> str:
        """Return the key of factors of these options, computed if there are none."""
        for key, factors in self._factors():
            if factors.options == options.factors and (factors.ready or deferred):
                return key
        return self._add_factors(Factors(matrix, options, deferred=deferred))

    def _add_factors(self, factors: Factors) -> str:
        taken = [int(key.split()[1]) for key in self.loldu_factors]
        key = f"terms {max(taken, default=-1) + 1}"
        self.loldu_factors[key] = factors
        return key

    def factors_of(self, adapter_name: str) -> Factors:
        """Return the factors that an adapter is expressed in."""
        return self.loldu_factors[self.loldu_terms[adapter_name]]  # type: ignore[return-value]  # what a ModuleDict holds

    def _factors(self) -> Iterator[tuple[str, Factors]]:
        yield from self.loldu_factors.items()  # type: ignore[misc]

    def adapter(self, adapter_name: str) -> DiagonalAdapter:
        """Return an adapter's numbers."""
        return self.loldu_adapter[adapter_name]  # type: ignore[return-value]

    def diagonals(self) -> Iterator[Diagonal]:
        """Yield every adapter."""
        for name in self.loldu_adapter:
            yield self.diagonal(name)

    def diagonal(self, adapter_name: str) -> Diagonal:
        """Return one adapter with its factors, computed now if they were put off."""
        if not self.is_settled(adapter_name):
            self._settle(adapter_name)
        return Diagonal(adapter_name, self.adapter(adapter_name), self.factors_of(adapter_name))

    def is_settled(self, adapter_name: str) -> bool:
        """Whether an adapter's factors are there, and nothing was put in the place of its numbers since they were."""
        return not self.unsettled([adapter_name])

    def unsettled(self, adapter_names: list[str]) -> list[str]:
        """Return those adapters that `is_settled` is False of."""
        adapters, seen, terms = self.loldu_adapter._modules, self._seen, self.loldu_terms  # noqa: SLF001  # quick to find
        ready = {key for key, factors in self._factors() if factors.ready}
        samples: dict[str, Any] = {name: adapters[name]._buffers["base_sample"] for name in adapter_names}  # noqa: SLF001
        return [
            name
            for name, sample in samples.items()
            if terms[name] not in ready
            or (seen.get(name) is not sample and not _stand_in(sample, self.factors_of(name).sample))
        ]

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and its factors if no other one uses them."""
        super().delete_adapter(adapter_name)
        self._settled.pop(adapter_name, None)
        self._seen.pop(adapter_name, None)
        self._drop_unused_factors()

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return an adapter's update in the layout of the base weight, in the dtype of the adapter's numbers."""
        _, adapter, factors = self.diagonal(adapter_name)
        update = updated_matrix(factors, adapter.delta(factors)).to(adapter.offset.dtype)
        if is_quantized(self.get_base_layer()):
            return update  # its stored weight has no shape to speak of
        return self.kind.as_weight(update, stored_weight(self.get_base_layer()))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT's convert_to_lora can take the layer: it adds products to the output of linear layers."""
        del adapter_name
        return self.kind.linear and not own_forward(self.get_base_layer())

    def forward(self, x: Tensor | None = None, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the base layer makes of its arguments with the updates of the active adapters in its weight."""
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
        if adapter_names is not None:
            return mixed_output(self, x, adapter_names, *args, **kwargs)
        # The updates of adapters that share their factors add up before the products.
        deltas: dict[str, Tensor] = {}
        for name in self.active_adapters:
            if name in self.loldu_adapter:
                _, adapter, factors = self.diagonal(name)
                key, delta = self.loldu_terms[name], adapter.delta(factors)
                deltas[key] = deltas[key] + delta if key in deltas else delta
        base = self.get_base_layer()
        if len(deltas) == 1 and base is self.base_layer and not (args or kwargs):
            key, delta = deltas.popitem()
            return layer_output(base, self.kind, x, self.loldu_factors[key], delta, plan=self.plan)  # type: ignore[arg-type]
        self.check_unfused()
        updates = [Update(self.loldu_factors[key], delta) for key, delta in deltas.items()]  # type: ignore[arg-type]
        result: Tensor = output_with_updates(self.base_layer, base, self.kind, updates, x, args, kwargs)
        return result

    def check_unfused(self) -> None:
        """Raise RuntimeError if a fused plan was asked for where the updates have to be added one by one."""
        if self.plan not in {"auto", "reference"}:
            raise RuntimeError(
                f"plan {self.plan!r} cannot run here: layer {self.name!r} adds up the updates of adapters that do not "
                "share their factors, or its base layer takes further arguments"
            )

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
        """Add adapters to the base weight, all of them summed in float32 and rounded once.

        Parameters
        ----------
        safe_merge : bool
            PEFT's; the sum is checked in any case.
        adapter_names : list of str, optional
            The active ones if not given.

        Raises
        ------
        ValueError
            The base is quantised, its weight is computed at each call (parametrized, weight-normed, pruned) or is
            another module's, too, the sum is not finite, or the merged layer, tried out where the base has hooks or a
            forward of its own, does not compute what this one does; the weight is unchanged then.
        """
        del safe_merge
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.loldu_adapter]
        if not names:
            return
        base = self.get_base_layer()
        if is_quantized(base):
            raise ValueError(
                f"layer {self.name!r} is a quantised {type(base).__name__}, which would lose the update in rounding; "
                "accepted: a floating weight, or the adapter as it is beside the quantised base"
            )
        self.check_mergeable()
        keep = self._base_weight is not None or (
            not self.merged and all(self.loldu_config[name].keep_base for name in names)
        )
        with gather_params_ctx(stored_weight(base)):
            self._check_unchanged(base)
            start = stored_weight(base).detach() if self._base_weight is None else self._base_weight
            new = self._updates(names)
            added = [*self._merged_updates.values(), *new] if keep else new
            try:
                merged = merged_weight(start, self.kind, [_matrix(update) for update in added])
            except OverflowError as error:
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken: layer "
                    f"{self.name!r}: {error}"
                ) from error
            kept = stored_weight(base).detach().clone() if keep and self._base_weight is None else self._base_weight
            own_memory(base)
            try:
                # What is merged already is in the weight that the updates are added to.
                with tried_out(base, self.kind, stored_weight(base), merged, new):
                    stored_weight(base).data.copy_(merged)
            except RuntimeError as error:
                raise ValueError(f"layer {self.name!r}: {error}") from error
            self._base_weight = kept
            self._merged_weight = None if kept is None else MergedWeight.of(stored_weight(base))
        self._merged_updates |= {
            name: Update(update.factors, update.delta.clone()) for name, update in zip(names, new, strict=True)
        }
        self.merged_adapters.extend(names)

    def _check_unchanged(self, base: nn.Module) -> None:
        if self._merged_weight is not None:
            try:
                self._merged_weight.check(stored_weight(base))
            except RuntimeError as error:
                raise ValueError(f"layer {self.name!r}: {error}") from error

    def check_mergeable(self) -> None:
        """Raise ValueError if the base weight is computed at each call, or is another module's, too."""
        try:
            check_mergeable(self, self.get_base_layer())
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"layer {self.name!r}: {error}") from error

    def _updates(self, adapter_names: list[str]) -> list[Update]:
        diagonals = [self.diagonal(name) for name in adapter_names]
        return [Update(diagonal.factors, diagonal.delta) for diagonal in diagonals]

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put back the base weight: the kept copy, or without one the difference, with its rounding errors."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", UserWarning, stacklevel=2)
            return
        base = self.get_base_layer()
        with gather_params_ctx(stored_weight(base)):
            if self._base_weight is None:
                updates = [-_matrix(update) for update in self._merged_updates.values()]
                stored_weight(base).data.copy_(merged_weight(stored_weight(base), self.kind, updates))
            else:
                self._check_unchanged(base)
                stored_weight(base).data.copy_(self._base_weight)
        self._base_weight = self._merged_weight = None
        self._merged_updates.clear()
        self.merged_adapters.clear()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones."""
        # What was loaded on another base is refused here rather than in the next forward.
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
            self.factors_of(adapter_name).to(device)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            # The weight in it is no base's. Adapters are saved from the same state dict, so that it is not refused.
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
                self._loaded.add(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _settle(self, adapter_name: str) -> None:
        # The first call after loading may be in inference mode, and training come later.
        with torch.inference_mode(mode=False), torch.no_grad():
            self._settle_now(adapter_name)

    def _settle_now(self, adapter_name: str) -> None:
        """See to it that an adapter's factors are those at its pivots, which may have been loaded meanwhile.

        Raises
        ------
        ValueError
            The base weight is not the one that the adapter was made on, or cannot be eliminated at its pivots; or the
            adapter's numbers have just come and are not finite.
        """
        adapter, base = self.adapter(adapter_name), self.get_base_layer()
        tensors = {adapter: adapter.offset, base: stored_weight(base)}
        if self.merged or any(
            tensor.device.type == "meta" and not is_offloaded(module) for module, tensor in tensors.items()
        ):
            return
        if self._seen.get(adapter_name) is not adapter.base_sample:
            self._check_numbers(adapter_name)
        factors = self.factors_of(adapter_name)
        if (
            factors.ready
            and self._settled.get(adapter_name) == self.loldu_terms[adapter_name]
            and torch.equal(adapter.base_sample, factors.sample)
            and factors.at(adapter.pivot_rows, adapter.pivot_columns)
            # A loader may leave the type of the file, which not every collective takes.
            and (adapter.pivot_rows is None or adapter.pivot_rows.dtype == torch.int64)
        ):
            self._seen[adapter_name] = adapter.base_sample
            return
        pivots = (adapter.pivot_rows, adapter.pivot_columns) if adapter.has_pivots else (None, None)
        if not (factors.ready and not adapter.has_pivots) and not factors.at(*pivots):
            try:
                with gather_params_ctx(stored_weight(base)):
                    factors = self._factors_at(adapter_name, weight_matrix(base), *pivots)
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {self.name!r}, adapter {adapter_name!r}: {error}") from error
        self._check_base(adapter_name, adapter, factors)
        if adapter_name in self._seen and is_random(adapter.options.init):
            # Loaded without load_state_dict, which would have told the adapter so: its start is not to be drawn anew.
            adapter.set_initial_diagonal(adapter.initial_diagonal, factors)
        adapter.start_from(factors)
        self._settled[adapter_name] = self.loldu_terms[adapter_name]
        self._seen[adapter_name] = adapter.base_sample

    def _factors_at(self, adapter_name: str, matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> Factors:
        """Give an adapter the factors at its pivots: another adapter's if they are the same, or built anew."""
        present = self.factors_of(adapter_name)
        for key, factors in self._factors():
            if factors.options == present.options and factors.at(rows, columns):
                self.loldu_terms[adapter_name] = key
                self._drop_unused_factors()
                return factors
        users = [name for name, key in self.loldu_terms.items() if key == self.loldu_terms[adapter_name]]
        if present.ready and len(users) > 1:
            # Another machine's pivots: the adapters that are here keep theirs.
            present = Factors(matrix, present.options, deferred=True)
            self.loldu_terms[adapter_name] = self._add_factors(present)
        present.build(matrix, rows, columns)
        return present

    def share_factors(self, adapter_name: str, other: str) -> None:
        """Express an adapter in another one's factors; its own numbers are to be set afterwards."""
        self.loldu_terms[adapter_name] = self.loldu_terms[other]
        self._drop_unused_factors()
        self.adapter(adapter_name).start_from(self.factors_of(adapter_name))

    def _drop_unused_factors(self) -> None:
        for key in set(self.loldu_factors) - set(self.loldu_terms.values()):
            del self.loldu_factors[key]

    @torch.no_grad()
    def _check_numbers(self, adapter_name: str) -> None:
        """Refuse an adapter's numbers that are not finite."""
        for number in ("offset", "sigma", "initial_sigma", "initial_diagonal"):
            tensor = getattr(self.adapter(adapter_name), number)
            if tensor.device.type == "meta":
                continue
            # Of a sharded one, this process's part; 8-bit floating numbers cannot be asked.
            part = tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()
            part = part.float() if part.itemsize == 1 else part
            check_finite(part, backend_of(part), f"layer {self.name!r}: {number} of adapter {adapter_name!r}")

    def _check_base(self, adapter_name: str, adapter: DiagonalAdapter, factors: Factors) -> None:
        check = self.loldu_config[adapter_name].base_check
        if check == "ignore" or not adapter.base_sample.any():
            return
        deviation = sample_deviation(adapter.base_sample, factors.sample)
        if deviation <= _ROUNDED:
            return
        message = (
            f"layer {self.name!r}: the base weight differs by {100 * deviation:.2g} % from the one that adapter "
            f"{adapter_name!r} was trained on, so its diagonal means something else; accepted: the same base, or "
            "base_check='warn' in the configuration"
        )
        if check == "error" and not deviation <= _QUANTIZED:
            raise ValueError(message)
        warnings.warn(message, UserWarning, stacklevel=2)

    def extra_repr(self) -> str:
        """Name the layer, for printing the module."""
        return f"name={self.name!r}"


class LolduLinear(LolduLayer):
    """The same on a linear layer: PEFT's "all-linear" knows those that have adapters already by the class's name."""


def _after_load(module: nn.Module, _: Any) -> None:
    """After a state dict has been loaded: the factors at the pivots that came with it."""
    if isinstance(module, LolduLayer):
        loaded, module._loaded = module._loaded, set()  # noqa: SLF001
        for name in sorted(loaded):
            module._settled.pop(name, None)  # noqa: SLF001
            module._check_numbers(name)  # noqa: SLF001
            module._settle(name)  # noqa: SLF001


def _stand_in(*tensors: Tensor) -> bool:
    """Whether torch.export or a transform of torch.func has put tensors without numbers in the place of all."""
    return all(is_fake(tensor) or is_functorch_wrapped_tensor(tensor) for tensor in tensors)


def _matrix(update: Update) -> Tensor:
    # The layer may have moved since.
    return updated_matrix(update.factors, update.delta.to(update.factors.scale.device))


def _randomize(adapter: DiagonalAdapter, factors: Factors) -> None:
    z = adapter.initial_diagonal
    size = z.abs().mean().clamp_min(torch.finfo(z.dtype).tiny)
    # From the global generator, as PEFT's own methods do: two adapters come out different.
    adapter.set_z(z + _RANDOM_OFFSET * size * torch.randn_like(z), factors)


def _sizes(base_layer: nn.Module) -> tuple[int | None, int | None]:
    """Return PEFT's in_features and out_features of a layer, whatever its kind calls them."""
    inputs, outputs = (
        ("in_features", "in_channels", "num_embeddings", "nx"),
        ("out_features", "out_channels", "embedding_dim", "nf"),
    )

    def first(names: tuple[str, ...]) -> int | None:
        return next((getattr(base_layer, name) for name in names if hasattr(base_layer, name)), None)

    return first(inputs), first(outputs)

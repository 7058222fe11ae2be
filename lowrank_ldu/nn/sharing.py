"""Share the factors of one base weight among adapters.

Adapters that ask for the same factors share them.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lowrank_ldu.backend import backend_of
from lowrank_ldu.initialization import is_random
from lowrank_ldu.kernels.torch_modes import is_stand_in
from lowrank_ldu.nn.base_identity import QUANTIZED, ROUNDED, BaseCheck, Deviation, outcome, relative_difference
from lowrank_ldu.nn.basis import terms_at_pivots
from lowrank_ldu.nn.core import delta_of, stack_states
from lowrank_ldu.nn.factors import Factors
from lowrank_ldu.nn.offloading import is_offloaded
from lowrank_ldu.nn.update import Update
from lowrank_ldu.validation import check_finite

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from lowrank_ldu.nn.core import CoreAdapter
    from lowrank_ldu.nn.options import AdapterOptions

_NUMBERS = ("offset", "sigma", "initial_sigma", "initial_diagonal")


class SharedFactors(nn.ModuleDict):
    """Hold the factors of one base weight for its adapters.

    Adapters of equal options share their factors: they differ in r + 1 numbers. An adapter is settled once its
    factors are known to be those at its pivots, of the base that it was trained on.

    Parameters
    ----------
    layer : str
        Qualified name of the layer, for messages.

    Attributes
    ----------
    key_of : dict of str to str
        Name of each adapter to the key of its factors.
    loaded : set of str
        Adapters whose numbers a state dict has just written over, in the tensors that were there.
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self.key_of: dict[str, str] = {}
        self.loaded: set[str] = set()
        # Key of the factors that each adapter was found to agree with.
        self._settled: dict[str, str] = {}
        # The sample tensor of that time: a loader that sets tensors one by one replaces it.
        self._seen: dict[str, Tensor] = {}

    def of(self, adapter_name: str) -> Factors:
        """Return the factors of an adapter.

        The adapter is expressed in them.
        """
        return cast("Factors", self[self.key_of[adapter_name]])

    def assign(
        self,
        adapter_name: str,
        options: AdapterOptions,
        matrix: Tensor,
        *,
        deferred: bool,
        pivots: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Give a new adapter the factors of its options.

        They are computed if there are none.

        Parameters
        ----------
        adapter_name : str
        options : AdapterOptions
        matrix : Tensor, shape (m, n)
            The weight.
        deferred : bool
            Leave the factors for later, since their pivots are yet to be loaded.
        pivots : pair of Tensor, optional
            Rows and columns (r,), of pivoting "chosen". Without them the factors wait for those that are loaded.

        Raises
        ------
        TypeError, ValueError
            As for `Factors.build`.
        """
        # Which factors they will share is known by their pivots alone.
        waits = options.pivoting == "chosen" and pivots is None

        def fits(factors: Factors) -> bool:
            if factors.options != options.factors or waits:
                return False
            return factors.ready or deferred if pivots is None else factors.at(*pivots)

        key = next((key for key, factors in self._each() if fits(factors)), None)
        if key is None:
            terms = None if pivots is None else terms_at_pivots(matrix.detach(), *pivots, options.pivoting)
            key = self._add(Factors(matrix, options, terms=terms, deferred=deferred or waits, layer=self.layer))
        self.key_of[adapter_name] = key

    def waits(self, adapter_name: str, adapter: CoreAdapter) -> bool:
        """Return whether an adapter's chosen pivots are yet to be loaded."""
        if self.of(adapter_name).options.pivoting != "chosen":
            return False
        return adapter.pivot_rows is None or not (adapter.pivot_rows.is_meta or adapter.has_pivots)

    def share(self, adapter_name: str, other: str) -> None:
        """Express an adapter in another one's factors."""
        self.key_of[adapter_name] = self.key_of[other]
        self._drop_unused()

    def remove(self, adapter_name: str) -> None:
        """Forget an adapter, and its factors if they are unused."""
        for known in (self.key_of, self._settled, self._seen):
            known.pop(adapter_name, None)
        self._drop_unused()

    def unsettled(self, adapters: nn.ModuleDict, adapter_names: Iterable[str]) -> list[str]:
        """Return the adapters that have to be settled.

        Their factors are not there, or their numbers were replaced since they were settled.
        """
        # This runs at every call of a layer, and a module's attributes are slow to find.
        modules: dict[str, Any] = adapters._modules  # noqa: SLF001
        held: dict[str, Any] = self._modules
        names = []
        for name in adapter_names:
            sample, factors = modules[name]._buffers["base_sample"], held[self.key_of[name]]  # noqa: SLF001
            replaced = self._seen.get(name) is not sample
            # torch.export and torch.func replace all tensors by tensors without numbers.
            if not factors.ready or (replaced and not (is_stand_in(sample) and is_stand_in(factors.sample))):
                names.append(name)
        return names

    def summed_updates(self, adapters: nn.ModuleDict, adapter_names: Iterable[str]) -> list[Update]:
        """Return the updates of adapters, one for each set of factors.

        The adapters that share their factors have one update. Their cores add up before the products.

        Parameters
        ----------
        adapters : nn.ModuleDict
            Of CoreAdapter.
        adapter_names : iterable of str
        """
        deltas: dict[str, Tensor] = {}
        for name in adapter_names:
            key, adapter = self.key_of[name], cast("CoreAdapter", adapters[name])
            delta = adapter.delta(self.of(name))
            deltas[key] = deltas[key] + delta if key in deltas else delta
        return [Update(cast("Factors", self[key]), delta) for key, delta in deltas.items()]

    def updates_by_row(self, adapters: nn.ModuleDict, adapter_names: list[str]) -> list[Update]:
        """Return the updates of a batch whose rows use different adapters.

        There is one update for all adapters that share their factors.

        Parameters
        ----------
        adapters : nn.ModuleDict
            Of CoreAdapter.
        adapter_names : list of str, length B
            Adapters; rows of other names stay as they are.

        Notes
        -----
        Adapters that share their factors, which is all of them where rank, basis and pivoting are the same, cost what
        one of them costs, but for B r numbers: one product with U, one diagonal for each row, one product with P L.
        """
        groups: dict[str, list[str]] = {}
        # Each adapter is looked up once: there may be thousands of rows, and a module's attributes are slow to find.
        for name in dict.fromkeys(adapter_names):
            if name in adapters:
                groups.setdefault(self.key_of[name], []).append(name)
        updates = []
        for names in groups.values():
            factors = self.of(names[0])
            deltas = delta_of(stack_states([adapters[name] for name in names]), factors.frame)  # type: ignore[misc]
            position = {name: index for index, name in enumerate(names)}
            choice = torch.tensor([position.get(name, len(names)) for name in adapter_names], device=deltas.device)
            # The last core is for rows that use no adapter.
            updates.append(Update(factors, torch.cat([deltas, deltas.new_zeros(1, *deltas.shape[1:])]), choice))
        return updates

    def settle(
        self,
        adapter_name: str,
        adapter: CoreAdapter,
        weight: AbstractContextManager[Tensor] | None,
        policy: BaseCheck,
    ) -> None:
        """Give an adapter the factors at its pivots.

        The pivots may have been loaded since the last time.

        Parameters
        ----------
        adapter_name : str
        adapter : CoreAdapter
        weight : context manager, optional
            In which the base weight W (m, n) is there; None while it is not to be had, which leaves the adapter as it
            is.
        policy : str
            What happens on a base that is not the one of training, beyond what a change of its dtype explains.

        Raises
        ------
        ValueError
            The base weight is not the one that the adapter was made on, or cannot be eliminated at its pivots; or the
            adapter's numbers have just come and are not finite.
        """
        # The first call after loading may be in inference mode, and training come later.
        with torch.inference_mode(mode=False), torch.no_grad():
            if adapter_name in self.loaded:
                self.loaded.discard(adapter_name)
                self._settled.pop(adapter_name, None)
                self._check_numbers(adapter_name, adapter)
            away = adapter.offset.device.type == "meta" and not is_offloaded(adapter)
            if weight is not None and not away:
                self._settle_on(adapter_name, adapter, weight, policy)

    def _settle_on(
        self, adapter_name: str, adapter: CoreAdapter, weight: AbstractContextManager[Tensor], policy: BaseCheck
    ) -> None:
        if self._seen.get(adapter_name) is not adapter.base_sample:
            self._check_numbers(adapter_name, adapter)
        factors = self.of(adapter_name)
        if (
            factors.ready
            and self._settled.get(adapter_name) == self.key_of[adapter_name]
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
                with weight as matrix:
                    factors = self._factors_at(adapter_name, matrix, *pivots)
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {self.layer!r}, adapter {adapter_name!r}: {error}") from error
        self._check_base(adapter_name, adapter, factors, policy)
        if adapter_name in self._seen and is_random(adapter.options.init):
            # The adapter was loaded without load_state_dict, which would have told it so: its start must not be drawn
            # anew.
            adapter.set_initial_diagonal(adapter.initial_diagonal, factors)
        adapter.start_from(factors)
        self._settled[adapter_name] = self.key_of[adapter_name]
        self._seen[adapter_name] = adapter.base_sample

    def _factors_at(self, adapter_name: str, matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> Factors:
        """Give an adapter shared or new factors at its pivots.

        They are another adapter's if it has the same ones, or else built anew.
        """
        present = self.of(adapter_name)
        for key, factors in self._each():
            if factors.options == present.options and factors.at(rows, columns):
                self.key_of[adapter_name] = key
                self._drop_unused()
                return factors
        users = [name for name, key in self.key_of.items() if key == self.key_of[adapter_name]]
        if present.ready and len(users) > 1:
            # The pivots are another machine's: the adapters that are here keep theirs.
            present = Factors(matrix, present.options, deferred=True, layer=self.layer)
            self.key_of[adapter_name] = self._add(present)
        present.build(matrix, rows, columns)
        return present

    def _add(self, factors: Factors) -> str:
        key = str(1 + max(map(int, self), default=-1))
        self[key] = factors
        return key

    def _drop_unused(self) -> None:
        for key in set(self) - set(self.key_of.values()):
            del self[key]

    def _each(self) -> Iterable[tuple[str, Factors]]:
        return cast("Iterable[tuple[str, Factors]]", self.items())

    def _check_numbers(self, adapter_name: str, adapter: CoreAdapter) -> None:
        """Refuse an adapter's numbers that are not finite."""
        for number in _NUMBERS:
            tensor: Any = getattr(adapter, number)
            if tensor.device.type == "meta":
                continue
            # Of a sharded tensor it is this process's part. torch cannot check whether 8-bit floating numbers are
            # finite.
            part = tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()
            part = part.float() if part.itemsize == 1 else part
            check_finite(part, backend_of(part), f"layer {self.layer!r}: {number} of adapter {adapter_name!r}")

    def _check_base(self, adapter_name: str, adapter: CoreAdapter, factors: Factors, policy: BaseCheck) -> None:
        if not adapter.base_sample.any():
            return  # the adapter is new, or was saved without a sample
        difference = relative_difference(adapter.base_sample, factors.sample)
        deviation = None if difference <= ROUNDED else Deviation(self.layer, difference)
        verdict = outcome(deviation, policy, tolerated=QUANTIZED)
        if verdict == "ignore":
            return
        message = (
            f"layer {self.layer!r}: the base weight differs by {100 * difference:.2g} % from the one that adapter "
            f"{adapter_name!r} was trained on, so its numbers mean something else; accepted: the same base, or "
            "base_check='warn' in the configuration"
        )
        if verdict == "error":
            raise ValueError(message)
        warnings.warn(message, UserWarning, stacklevel=2)

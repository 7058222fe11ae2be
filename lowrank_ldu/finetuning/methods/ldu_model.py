"""Hold models with LoLDU, and keep what was trained and fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_ldu.adapters.bases import find_basis
from lowrank_ldu.finetuning.methods.modules import groups_of
from lowrank_ldu.finetuning.methods.peft_model import ADAPTER, PreparedByPeft, adapted_layers, quiet
from lowrank_ldu.finetuning.methods.peft_numbers import value_of
from lowrank_ldu.nn import parameter_groups, project_
from lowrank_ldu.nn.cores import core_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.finetuning.methods.modules import AdaptedLayer
    from lowrank_ldu.fitting import FittedBasis


_SAVED = "saved"


@dataclass
class PreparedLdu(PreparedByPeft):
    """Hold a PeftModel with LoLDU.

    Attributes
    ----------
    projected : bool
        Whether `after_step` keeps 0 < sigma <= 1, as section III-D of the paper has it.
    basis : FittedBasis, optional
        Which `save` writes into the folder.
    """

    projected: bool = False
    basis: FittedBasis | None = None

    def parameter_groups(self, lr: float, *, head_lr: float | None, weight_decay: float) -> list[dict[str, Any]]:
        """Return groups with the rates of LDU's coordinates; see `Prepared.parameter_groups`.

        Cores have the rate lr and do not decay; a scale sigma has no higher rate than entries of the factorization's
        own diagonal have (`lowrank_ldu.nn.parameter_groups`).
        """
        groups = parameter_groups(self.model, lr, other_lr=lr)
        cores = [group for group in groups if group["name"] != "others"]
        held = {id(parameter) for group in cores for parameter in group["params"]}
        others = {name: value for name, value in self.trained().items() if id(value) not in held}
        own = [value for name, value in others.items() if not self.in_whole(name)]
        head = [value for name, value in others.items() if self.in_whole(name)]
        head_rate = lr if head_lr is None else head_lr
        return cores + groups_of("biases", own, lr, weight_decay) + groups_of("head", head, head_rate, weight_decay)

    def after_step(self) -> None:
        """Project the scales of the published form; see `Prepared.after_step`."""
        if self.projected:
            project_(self.model)

    def save(self, folder: Path) -> None:
        """Write the adapter, and the fitted basis into its folder; see `Prepared.save`."""
        super().save(folder)
        if self.basis is not None and not (folder / self.shared_files[0]).is_file():
            self.basis.save(folder / self.shared_files[0])

    def take_over(self, saved: Any, folder: Path) -> None:
        """Make the adapter anew where the saved one was fitted otherwise."""
        if (saved.basis_digest, saved.rank_pattern) == (self.config.basis_digest, self.config.rank_pattern):
            return
        model: Any = self.model
        before = core_numbers(adapted_layers(model), self.config)
        with quiet():
            # PEFT deletes no adapter that is the only one: another stands in until the name is free.
            for name, other in ((_SAVED, ADAPTER), (ADAPTER, _SAVED)):
                model.load_adapter(str(folder), name, is_trainable=True)
                model.set_adapter(name)
                model.delete_adapter(other)
        self.expected_numbers += core_numbers(adapted_layers(model), self.config) - before
        if saved.basis_digest is not None:
            self.basis = find_basis(saved.basis_digest, saved.basis_file, folder)  # type: ignore[assignment]
            self.shared_files = (Path(saved.basis_file).name,)


def core_numbers(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count the numbers of each layer's core, and sigma where it is trained."""
    ranks = [value_of(config.rank_pattern, layer.name, config.r) for layer in layers]
    cores = sum(math.prod(core_shape(config.core, rank, config.block_size)) for rank in ranks)
    return int(cores + len(layers) * config.train_sigma)

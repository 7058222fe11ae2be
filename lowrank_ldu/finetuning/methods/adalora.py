"""Train AdaLoRA, which shares out its rank while it trains: arXiv 2303.10512, by PEFT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods import peft_numbers
from lowrank_ldu.finetuning.methods.from_peft import UNUSABLE_OF_LORA, PeftMethod
from lowrank_ldu.finetuning.methods.peft_model import ADAPTER, PreparedByPeft

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from lowrank_ldu.finetuning.methods.method import MethodRequest, Prepared

# Fields of PEFT's allocator that change with each step: averages of each parameter's importance.
_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
# Stands for the number of steps while options are checked that leave it to the run.
_MANY_STEPS = 2**31


@dataclass
class PreparedAdaLora(PreparedByPeft):
    """Hold a PeftModel with AdaLoRA.

    The budget of ranks is allocated by `after_step`, from the gradients: it has to be called after each step of the
    optimizer, and before the gradients are set to zero. The regularization that keeps P and Q near orthogonal is in
    the loss that the model returns, not in a loss that is computed from its outputs.

    Attributes
    ----------
    steps : int
        Of the optimizer, so far.
    kept : dict, optional
        Ranks of the adapter that was loaded.
    """

    steps: int = 0
    kept: Any = field(default=None, repr=False)

    def after_step(self) -> None:
        """Update the importance of singular values, and mask the least important; see `Prepared.after_step`.

        Raises
        ------
        RuntimeError
            The gradients are set to zero already.
        """
        if all(parameter.grad is None for parameter in self.trained().values()):
            raise RuntimeError(
                "the gradients are None; accepted: after_step between the optimizer's step and its zero_grad"
            )
        self.steps += 1
        self.model.base_model.update_and_allocate(self.steps)  # type: ignore[operator, union-attr]

    def obstacle_to_sharding(self) -> str | None:
        """Say that ranks are shared out; see `Prepared.obstacle_to_sharding`."""
        return "AdaLoRA ranks all its singular values after each step, and a process has a part of them"

    def state_dict(self) -> dict[str, Any]:
        """Return steps, averages of importance and the ranks kept; see `Prepared.state_dict`."""
        allocator = self._allocator
        averages = {name: dict(getattr(allocator, name)) for name in _AVERAGES}
        return {"steps": self.steps, "rank_pattern": self.config.rank_pattern, "ipt": dict(allocator.ipt), **averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a number of steps, with averages and ranks; see `Prepared.load_state_dict`."""
        self.steps, self.config.rank_pattern = state["steps"], state["rank_pattern"]
        for name in ("ipt", *_AVERAGES):
            setattr(self._allocator, name, dict(state[name]))

    def load(self, folder: Path) -> None:
        """Read an adapter, and the ranks that it kept; see `Prepared.load`."""
        super().load(folder)
        self.config.rank_pattern = self.kept

    def take_over(self, saved: Any, folder: Path) -> None:  # noqa: ARG002
        """Make the layers as large as the saved adapter's ranks say, unless they are.

        PEFT would do it when it reads the numbers, a second time, too, and in the precision of the base.
        """
        from peft.tuners.tuners_utils import cast_adapter_dtype  # noqa: PLC0415  # peft may be absent

        self.kept, self.config.rank_pattern = saved.rank_pattern, None
        if self.kept is not None and not self._has(self.kept):
            self.model.base_model.resize_modules_by_rank_pattern(self.kept, ADAPTER)  # type: ignore[operator, union-attr]
            cast_adapter_dtype(self.model, ADAPTER)
            freeze_ranks(self.model)

    def _has(self, pattern: Mapping[str, list[bool]]) -> bool:
        """Return whether the layers have the ranks of a pattern."""
        values = dict(self.model.named_parameters())
        return all(len(values[f"base_model.model.{name}.{ADAPTER}"]) == sum(kept) for name, kept in pattern.items())

    @property
    def _allocator(self) -> Any:
        return self.model.base_model.rankallocator  # type: ignore[union-attr]


@dataclass(frozen=True)
class AdaLoraMethod(PeftMethod):
    """Train AdaLoRA.

    total_step is the number of optimizer steps, which the run tells (`MethodRequest.total_steps`) if it is None.
    """

    def config(self, options: Mapping[str, Any], **others: Any) -> Any:
        """Return a configuration; see `PeftMethod.config`."""
        return super().config({**options, "total_step": options["total_step"] or _MANY_STEPS}, **others)

    def completed(self, options: dict[str, Any], request: MethodRequest) -> dict[str, Any]:
        """Fill in the number of steps; see `PeftMethod.completed`."""
        steps = options["total_step"] or request.total_steps
        if steps is None:
            raise OptionError("total_step is None; accepted: the number of optimizer steps that training takes")
        return options | {"total_step": steps}

    def prepared(self, model: nn.Module, numbers: int, whole: tuple[str, ...]) -> Prepared:
        """Return what `prepare` does, with AdaLoRA's steps."""
        freeze_ranks(model)
        return PreparedAdaLora(model, numbers, whole)


def freeze_ranks(model: nn.Module) -> None:
    """Freeze the counts of ranks.

    PEFT's cast from half precision makes trained parameters of them.
    """
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad = False


ADALORA = AdaLoraMethod(
    "adalora",
    "AdaLoRA",
    "AdaLoraConfig",
    peft_numbers.adalora,
    unusable=UNUSABLE_OF_LORA
    | {
        "r": "the ranks are init_r and target_r",
        "rank_pattern": "the method finds the ranks",
        "alpha_pattern": "PEFT's AdaLoRA does not use it",
        "use_rslora": "PEFT's AdaLoRA does not use it",
        "lora_bias": "PEFT's AdaLoRA does not use it",
    },
    least={"init_r": 1, "target_r": 1, "tinit": 0, "tfinal": 0, "deltaT": 1, "total_step": 1},
    choices={"init_lora_weights": (True, False)},
)

"""Train AdaLoRA, which shares out its rank while it trains: arXiv 2303.10512, by PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods import peft_numbers
from lowrank_ldu.finetuning.methods.from_peft import UNUSABLE_OF_LORA, PeftMethod
from lowrank_ldu.finetuning.methods.peft_model import PreparedByPeft

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
    """

    steps: int = 0

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

    def take_over(self, saved: Any, folder: Path) -> None:  # noqa: ARG002
        """Take over the ranks that the saved adapter kept.

        PEFT makes the layers as large as the ranks say, when it reads the numbers.
        """
        self.config.rank_pattern = saved.rank_pattern

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
        for name, parameter in model.named_parameters():
            # PEFT's cast from half precision makes a trained parameter of this count of ranks.
            if ".ranknum." in name:
                parameter.requires_grad = False
        return PreparedAdaLora(model, numbers, whole)


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

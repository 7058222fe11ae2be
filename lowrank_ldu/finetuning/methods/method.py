"""Say what a fine-tuning method is told, and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn


@dataclass(frozen=True)
class MethodRequest:
    """Hold what a task tells a method."""

    targets: Sequence[str] | str
    trained_whole: Sequence[str]
    seed: int
    batches: Iterable[Any] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    task_type: str | None = None
    total_steps: int | None = None


@dataclass
class Prepared:
    """Hold a model that is ready to be trained."""

    model: nn.Module
    expected_numbers: int

    def parameter_groups(self, lr: float, *, head_lr: float | None, weight_decay: float) -> list[dict[str, Any]]:
        """Return the trained parameters in groups."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        head = [p for name, p in named if "modules_to_save" in name]
        own = [p for name, p in named if "modules_to_save" not in name]
        return [
            {"name": "adapter", "params": own, "lr": lr, "weight_decay": weight_decay},
            {"name": "head", "params": head, "lr": lr if head_lr is None else head_lr, "weight_decay": weight_decay},
        ]

    def after_step(self) -> None:
        """Do what follows an optimizer's step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the method needs, beside the model, to go on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""

    def save(self, folder: Path) -> None:
        """Write what was trained."""
        self.model.save_pretrained(str(folder))  # type: ignore[operator]

    def load(self, folder: Path) -> None:
        """Read what was trained."""
        from peft import load_peft_weights, set_peft_model_state_dict  # noqa: PLC0415

        set_peft_model_state_dict(self.model, load_peft_weights(str(folder), device="cpu"))

    def merged(self) -> nn.Module:
        """Return the plain model with the update in its weights."""
        model: nn.Module = self.model.merge_and_unload()  # type: ignore[operator]
        return model


class Method(ABC):
    """Offer one method of fine-tuning."""

    name: str
    title: str

    def unavailable(self) -> str | None:
        """Say why the method cannot be used here, if so."""
        return None

    @abstractmethod
    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check options, and fill in defaults."""

    @abstractmethod
    def prepare(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> Prepared:
        """Make a model ready to be trained."""

"""Train parameters of the model itself: all, the head, or the biases."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods.method import Method, MethodRequest, Prepared
from lowrank_ldu.finetuning.methods.modules import biases, train_only, whole_modules
from lowrank_ldu.finetuning.methods.options import check_names
from lowrank_ldu.finetuning.methods.trained_file import load_trained, save_trained

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

Part = Literal["all", "head", "biases"]


@dataclass
class PreparedParameters(Prepared):
    """Hold a model whose own parameters, or modules inside, are trained.

    Attributes
    ----------
    method : str
        Name of the method, which its files say.
    options : dict
        Which its files say, too.
    """

    method: str = field(kw_only=True)
    options: Mapping[str, Any] = field(kw_only=True)

    def save(self, folder: Path) -> None:
        """Write the trained parameters; see `Prepared.save`."""
        save_trained(folder, self.trained(), self.method, self.options)

    def load(self, folder: Path) -> None:
        """Read the trained parameters; see `Prepared.load`."""
        load_trained(folder, self.trained(), self.method)

    def merged(self) -> nn.Module:
        """Return a copy of the model; see `Prepared.merged`."""
        return copy.deepcopy(self.model)


@dataclass(frozen=True)
class WholeMethod(Method):
    """Train a part of the model's own parameters.

    Attributes
    ----------
    part : {"all", "head", "biases"}
        "head": what the task says is trained whole, and nothing else. "biases": those of all layers and norms.
    """

    part: Part
    adapts_layers: ClassVar[bool] = False

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Refuse every option; see `Method.options`."""
        check_names(self.name, given, (), {})
        return {}

    def check_model(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> None:
        """Freeze a copy; see `Method.check_model`."""
        self.prepare(copy.deepcopy(model), options, request)

    def prepare(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> Prepared:
        """Freeze what is not trained; see `Method.prepare`."""
        checked = self.options(options)
        whole = whole_modules(model, request.trained_whole)
        parameters: Mapping[str, nn.Parameter] = {}
        if self.part == "all":
            heads = tuple(f"{name}." for name in whole)
            parameters = {name: value for name, value in model.named_parameters() if not name.startswith(heads)}
        elif self.part == "biases":
            parameters = biases(model, whole)
            if not parameters:
                raise OptionError(
                    f"method {self.name!r}: the model ({type(model).__name__}) has no biases; accepted: one that has"
                )
        elif not whole:
            raise OptionError(f"trained_whole is empty with method {self.name!r}; accepted: names of modules")
        train_only(model, parameters.values(), whole)
        numbers = sum(parameter.numel() for parameter in parameters.values())
        return PreparedParameters(model, numbers, whole, method=self.name, options=checked)


WHOLE_METHODS = (
    WholeMethod("full", "full fine-tuning", "all"),
    WholeMethod("head", "linear probe", "head"),
    WholeMethod("bitfit", "BitFit", "biases"),
)

"""Prepare models by PEFT, and keep their adapters."""

from __future__ import annotations

import copy
import re
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_ldu.checkpoints.adapter_folder import PEFT_WEIGHTS
from lowrank_ldu.checkpoints.model_config import ADAPTER_CONFIGURATION
from lowrank_ldu.errors import AdapterError, MissingExtraError, OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.methods.method import Prepared
from lowrank_ldu.finetuning.methods.modules import AdaptedLayer, biases
from lowrank_ldu.finetuning.methods.options import as_option_errors
from lowrank_ldu.finetuning.seeding import seeded
from lowrank_ldu.nn.injection import replace_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from lowrank_ldu.finetuning.methods.method import MethodRequest

ADAPTER = "default"
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
# What is meant to be so, is no fault of the user's, or is an error here.
_KNOWN = (
    "Specified to not (save|load)",
    ".*`is_gradient_checkpointing` is deprecated",
    "Invalid `(r|oft_block_size)`",
    "Detected that the base layer has no bias term",
    "fan_in_fan_out is set to",
    # AdaLoRA leaves layers without a rank, which PEFT takes for parts of tensors.
    r"Adapter '\w+': \d+ LoRA tensor\(s\) have invalid shape",
)


@dataclass
class PreparedByPeft(Prepared):
    """Hold a PeftModel."""

    @property
    def config(self) -> Any:
        """Return the adapter's configuration."""
        return self.model.peft_config[ADAPTER]  # type: ignore[index]

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT does; see `Prepared.save`."""
        # With "auto" PEFT asks the hub whether embeddings were resized.
        with quiet():
            self.model.save_pretrained(str(folder), save_embedding_layers=False)  # type: ignore[operator]

    def load(self, folder: Path) -> None:
        """Read an adapter into the one that is prepared; see `Prepared.load`."""
        from peft import PeftConfig  # noqa: PLC0415  # peft may be absent
        from peft.utils import load_peft_weights, set_peft_model_state_dict  # noqa: PLC0415

        for name in (ADAPTER_CONFIGURATION, PEFT_WEIGHTS):
            # PEFT would look for it on the hub.
            if not (folder / name).is_file():
                raise AdapterError(f"{folder}: has no {name}; accepted: a folder that `save` wrote")
        try:
            with quiet():
                saved = PeftConfig.from_pretrained(str(folder))
                if saved.peft_type == self.config.peft_type:
                    self.take_over(saved, folder)
                    state = load_peft_weights(str(folder), device="cpu")
                    result = set_peft_model_state_dict(self.model, state, ADAPTER)
        except AdapterError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise AdapterError(
                f"{folder}: does not fit the prepared model ({reason}); accepted: an adapter of the same options and "
                "model"
            ) from error
        if saved.peft_type != self.config.peft_type:
            raise AdapterError(
                f"{folder}: is an adapter of {saved.peft_type.value}; accepted: {self.config.peft_type.value}"
            )
        # With bias "all" PEFT writes biases of a head a second time, by names that it does not read.
        unknown = [name for name in result.unexpected_keys if not name.endswith("modules_to_save.bias")]
        differing = [*self._not_in(result.missing_keys), *unknown]
        if differing:
            raise AdapterError(
                f"{folder}: {differing[0]!r} is in the file or in the model, and not in both; accepted: an adapter of "
                "the same options and model"
            )

    def _not_in(self, missing: Iterable[str]) -> list[str]:
        """Return the trained parameters all of whose names are missing in a file.

        A parameter that layers share has several names, and one of them is enough.
        """
        absent = set(missing)
        places = self.model.named_parameters(remove_duplicate=False)
        read = {id(value) for name, value in places if name not in absent}
        return [name for name, value in self.trained().items() if id(value) not in read]

    def obstacle_to_sharding(self) -> str | None:
        """Name a parameter that layers share; see `Prepared.obstacle_to_sharding`.

        FSDP2 shards the layers of a network one after the other, each parameter with one of them.
        """
        places: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad and not self.in_whole(name):
                places.setdefault(id(parameter), []).append(name)
        shared = next((names for names in places.values() if len(names) > 1), None)
        return None if shared is None else f"{shared[0]!r} and {shared[1]!r} are one trained parameter"

    def take_over(self, saved: Any, folder: Path) -> None:
        """Take over what a saved configuration has beside the options."""

    def merged(self) -> nn.Module:
        """Merge a copy by PEFT; see `Prepared.merged`."""
        from peft.utils import ModulesToSaveWrapper  # noqa: PLC0415  # peft may be absent

        quantized = next((layer.name for layer in adapted_layers(self.model) if layer.is_quantized), None)
        if quantized is not None:
            raise OptionError(
                f"the update cannot be merged: the weight of {quantized!r} is quantized, and would be rounded anew; "
                "accepted: a base that is not, or the adapter beside the base"
            )
        model = copy.deepcopy(self.model)
        # PEFT puts back heads of a single layer alone, for most of its methods.
        for name, module in list(model.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                replace_module(model, name, module.modules_to_save[ADAPTER])
        with as_option_errors("the update cannot be merged"):
            return model.merge_and_unload()  # type: ignore[no-any-return, operator]


def prepared_by_peft(
    model: nn.Module, config: Any, request: MethodRequest, method: str, whole: Sequence[str]
) -> tuple[nn.Module, list[AdaptedLayer], int]:
    """Add an adapter to a model.

    Parameters
    ----------
    model : nn.Module
    config : peft.PeftConfig
    request : MethodRequest
    method : str
        For messages.
    whole : sequence of str
        Qualified names of modules that are trained whole.

    Returns
    -------
    model : peft.PeftModel
    layers : list of AdaptedLayer
        Those that have the adapter.
    biases : int
        Numbers of biases that the configuration has trained beside the adapter.

    Raises
    ------
    OptionError
        PEFT refuses the configuration for this model.
    """
    from peft import get_peft_model  # noqa: PLC0415  # peft may be absent

    every = sum(parameter.numel() for parameter in biases(model, whole).values())
    with as_option_errors(f"method {method!r}"), seeded(request.seed), quiet():
        model = get_peft_model(model, config, ADAPTER)
    layers = adapted_layers(model)
    kind = getattr(config, "bias", "none")
    own = sum(layer.rows for layer in layers if layer.has_bias)
    return model, layers, {"none": 0, "all": every}.get(kind, own)


def adapted_layers(model: nn.Module) -> list[AdaptedLayer]:
    """Return the layers of a PeftModel that have the adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415  # peft may be absent

    return [
        AdaptedLayer.of(name, layer.get_base_layer())
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    ]


def of_task(model: nn.Module, request: MethodRequest, whole: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a configuration that the task says.

    Parameters
    ----------
    model : nn.Module
    request : MethodRequest
    whole : sequence of str
        Qualified names of modules that are trained whole.

    Raises
    ------
    OptionError
        PEFT would train another module whole, too.
    """
    inside = tuple(f"{name}." for name in whole)
    names = [name for name, _ in model.named_modules() if not f"{name}.".startswith(inside)]
    # PEFT looks at the ends of names, wherever a word begins.
    also = next((name for name in names if name.endswith(tuple(request.trained_whole))), None)
    if also is not None:
        raise OptionError(f"trained_whole names {also!r} to PEFT, too, by its end; accepted: {also!r} among the names")
    # These PEFT trains whole, whether it is asked to or not: the task type is left out where they are frozen.
    frozen = any(name.endswith(_HEADS.get(request.task_type or "", ())) for name in names)
    return {"modules_to_save": list(request.trained_whole) or None, "task_type": None if frozen else request.task_type}


def why_missing(module: str, name: str) -> str | None:
    """Return why a class of an optional library cannot be had, or None.

    The library is imported only where its text does not have the name: PEFT takes seconds, and methods are listed more
    often than used.
    """
    if module not in sys.modules and find_spec("peft") is not None:
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            text = Path(spec.origin).read_text(encoding="utf-8")
            if re.search(rf"\b{name}\b", text):
                return None
    return _why_not_had(module, name)


def _why_not_had(module: str, name: str) -> str | None:
    try:
        found = require(module)
    except MissingExtraError as error:
        return str(error)
    return None if hasattr(found, name) else f"the installed {module} {found.__version__} has no {name}"


def config_class(method: str, module: str, name: str) -> Any:
    """Return the class of a method's configuration.

    Raises
    ------
    OptionError
        It cannot be had; the message says why.
    """
    reason = _why_not_had(module, name)
    if reason is not None:
        raise OptionError(f"method {method!r} is unavailable: {reason}; accepted: another method")
    return getattr(require(module), name)


class quiet(warnings.catch_warnings):  # noqa: N801  # it is used as a function
    """Leave out warnings of what is meant to be so."""

    def __enter__(self) -> None:
        super().__enter__()
        for message in _KNOWN:
            warnings.filterwarnings("ignore", message=message)

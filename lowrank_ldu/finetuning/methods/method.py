"""Define what a method is, and what it makes of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank_ldu.finetuning.methods.modules import check_targets, groups_of, plain_name, whole_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn


@dataclass(frozen=True)
class MethodRequest:
    """Hold what a task tells a method.

    Attributes
    ----------
    targets : sequence of str, or str
        Layers that are adapted: names or ends of names, a regular expression, or "all-linear"; as PEFT's
        target_modules. Methods that adapt no layers do not look at them.
    trained_whole : sequence of str
        Modules beside the adapter that are trained whole, such as a new head: names, or ends of names.
    seed : int
        Of whatever the method draws at random. The global generator is left as it was.
    batches : iterable, optional
        A few training batches, for methods that are fitted to the task.
    loss : callable, optional
        loss(model, batch), a scalar tensor; model(**batch).loss if not given.
    task_type : str, optional
        PEFT's, such as "SEQ_CLS", which is for models that take input_ids.
    total_steps : int, optional
        Optimizer steps that training will take, for methods that follow a schedule of their own.
    """

    targets: Sequence[str] | str
    trained_whole: Sequence[str] = ()
    seed: int = 0
    batches: Iterable[Any] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    task_type: str | None = None
    total_steps: int | None = None


def targets_of(options: Mapping[str, Any], request: MethodRequest) -> list[str] | str:
    """Return the targets that a method's options name, or else the task's."""
    given = options.get("target_modules")
    targets = request.targets if given is None else given
    return targets if isinstance(targets, str) else list(targets)


@dataclass
class Prepared(ABC):
    """Hold a model that a method prepared for training.

    Exactly the parameters that are to be trained require a gradient.

    Attributes
    ----------
    model : nn.Module
        To train: the model that was given, or PEFT's around it.
    expected_numbers : int
        Trained numbers outside of the modules that are trained whole, by the method's own formula.
    whole : tuple of str
        Qualified names, in the plain model, of the modules that are trained whole.
    shared_files : tuple of str
        Files that `save` writes and that any number of adapters share, such as a fitted basis.
    """

    model: nn.Module
    expected_numbers: int
    whole: tuple[str, ...]
    shared_files: tuple[str, ...] = field(default=(), kw_only=True)

    def in_whole(self, name: str) -> bool:
        """Return whether a parameter is of a module that is trained whole."""
        return f"{plain_name(name)}.".startswith(tuple(f"{module}." for module in self.whole))

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name, those of heads included."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @property
    def trained_numbers(self) -> int:
        """Count the trained numbers outside of modules that are trained whole.

        `expected_numbers` is what a method's formula gives; this is what the model has.
        """
        return sum(value.numel() for name, value in self.trained().items() if not self.in_whole(name))

    def parameter_groups(self, lr: float, *, head_lr: float | None, weight_decay: float) -> list[dict[str, Any]]:
        """Return the trained parameters in groups, for torch.optim.AdamW.

        Parameters
        ----------
        lr : float
            Learning rate of what the method trains.
        head_lr : float, optional
            Of the modules that are trained whole; lr if not given.
        weight_decay : float
            Of matrices. Vectors (biases, norms, scales: all but one dimension are 1) do not decay.

        Returns
        -------
        list of dict
            With "name", "params", "lr" and "weight_decay"; empty groups are left out.
        """
        own = {name: value for name, value in self.trained().items() if not self.in_whole(name)}
        head = {name: value for name, value in self.trained().items() if self.in_whole(name)}
        return groups_of("adapter", own.values(), lr, weight_decay) + groups_of(
            "head", head.values(), lr if head_lr is None else head_lr, weight_decay
        )

    def obstacle_to_sharding(self) -> str | None:
        """Return why FSDP2 cannot shard the model, or None."""
        return None

    def after_step(self) -> None:  # noqa: B027  # most methods do nothing
        """Do what the method does after each step of the optimizer.

        It is called before the gradients are set to zero.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what the method needs, beside the model, to go on training.

        It is for checkpoints: tensors and plain values, as torch.save takes them; empty for most methods.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # most methods have no state
        """Take over what `state_dict` returned."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was trained, and nothing of the base, to a folder."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote, into a freshly prepared model.

        It comes before `parameter_groups`: where something else was fitted, parameters are made anew.

        Raises
        ------
        AdapterError
            The folder has no such file, or it is of another method, model or size.
        """

    @abstractmethod
    def merged(self) -> nn.Module:
        """Return a plain copy of the model with the update in its weights.

        The prepared model stays as it is.

        Raises
        ------
        OptionError
            The method's update does not fit into the weights of this model.
        """


@dataclass(frozen=True)
class Method(ABC):
    """Define a way of fine-tuning a model.

    Attributes
    ----------
    name : str
        As it is written in a recipe, "lora".
    title : str
        For tables, "LoRA".
    adapts_layers : bool
        Whether it looks at the targets of a request.
    """

    name: str
    title: str
    adapts_layers: ClassVar[bool] = True

    def unavailable(self) -> str | None:
        """Return why the method cannot be used here, or None."""
        return None

    @abstractmethod
    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options of the method, checked.

        Parameters
        ----------
        given : mapping of str to JSON value
            Options that differ from their defaults.

        Returns
        -------
        dict of str to JSON value
            Every option of the method, with defaults filled in.

        Raises
        ------
        OptionError
            A name is none of the method's options, or one that it cannot use; the message names the nearest. Or a value
            is not accepted, or the method is unavailable.
        """

    def check_model(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> None:
        """Refuse a model that has no place for the targets or the options.

        Only names and sizes of layers are looked at, so that a model on the meta device will do. What shows with its
        numbers alone is left to `prepare`.

        Parameters
        ----------
        model : nn.Module
            Stays as it is.
        options : mapping
        request : MethodRequest

        Raises
        ------
        OptionError
            As for `prepare`.
        """
        whole = whole_modules(model, request.trained_whole)
        if self.adapts_layers:
            check_targets(model, targets_of(options, request), whole)

    @abstractmethod
    def prepare(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> Prepared:
        """Prepare a model, in place, for training by this method.

        Parameters
        ----------
        model : nn.Module
            Give a copy if the original is still needed, also where this raises.
        options : mapping
            As for `options`; they are checked again.
        request : MethodRequest

        Raises
        ------
        OptionError
            As for `options`; or a target or a module of `trained_whole` matches nothing, or a layer does not fit the
            options.
        """

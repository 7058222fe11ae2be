"""Hold a model that is ready to be trained on digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowrank_ldu.nn.host import hosts

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

HEAD = "classifier"


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """Hold a model that is prepared for a method.

    Exactly the parameters that the method trains require a gradient.

    Attributes
    ----------
    model : torch.nn.Module
        The model to train; its head is the submodule ``classifier``.
    after_step : callable, optional
        Called with the model after each optimizer step, to put constrained parameters back into their set.
    """

    model: nn.Module
    after_step: Callable[[nn.Module], None] | None = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by qualified name.

        Returns
        -------
        dict of str to torch.nn.Parameter
            In the model's order.
        """
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Split the trained parameters into the optimizer's groups.

        Matrices decay. Vectors do not: the usual rule for biases and normalizations, which here also keeps decay from
        pulling LoLDU's sigma away from the value that leaves the pre-trained model unchanged. Nor do cores of blocks,
        which have three dimensions, and which decay would draw to zero.

        Parameters
        ----------
        weight_decay : float
            Decay of the matrices.

        Returns
        -------
        list of dict
            Groups for a `torch.optim.Optimizer`.
        """
        parameters = self.trainable().values()
        cores = {id(adapter.offset) for _, host in hosts(self.model) for _, adapter, _ in host.held_adapters()}
        decaying = {id(parameter) for parameter in parameters if parameter.ndim > 1} - cores
        matrices = [parameter for parameter in parameters if id(parameter) in decaying]
        vectors = [parameter for parameter in parameters if id(parameter) not in decaying]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    @property
    def total_parameters(self) -> int:
        """Number of trained scalars, the head's among them."""
        return sum(parameter.numel() for parameter in self.trainable().values())

    @property
    def adapter_parameters(self) -> int:
        """Number of trained scalars outside the head.

        This is the paper's count; LoLDU's sigma is in it.
        """
        head = sum(parameter.numel() for parameter in self.model.get_submodule(HEAD).parameters())
        return self.total_parameters - head

"""Prepare a model for each fine-tuning method.

Linear probe, LoLDU, an LDU that is fitted to the task, LoRA, PiSSA and full fine-tuning, behind one interface.

Every method trains the classification head too. Parameters are counted as the paper does (arXiv 2410.13618, section IV
and Table I: adapter with sigma, without the head), and with the head beside it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lowrank_ldu.finetuning.digits.prepared import HEAD, PreparedModel
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.seeding import seeded
from lowrank_ldu.fitting import choose_pivots, fit_basis
from lowrank_ldu.nn import inject, project_

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.finetuning.digits.data import Images

Batch = tuple[Tensor, Tensor]
# Images in a batch that pivots or a basis are fitted to.
_FITTED_ON = 128

# The query and value projections of a vision transformer are named differently before and after transformers 5.
_QUERY_AND_VALUE = frozenset({"query", "value", "q_proj", "v_proj"})


class Method(Protocol):
    """Define the interface of a fine-tuning method.

    The implementations are frozen dataclasses.
    """

    # Makes "is a dataclass" part of the type: the grid replaces the learning rate.
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Name for tables, the rank included."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of AdamW."""

    def prepare(self, model: nn.Module, images: Images, *, seed: int) -> PreparedModel:
        """Prepare ``model`` in place for training by this method.

        Parameters
        ----------
        model : torch.nn.Module
            A classifier whose head is the submodule ``classifier``; give a copy if the original is still needed.
        images : Images
            The training images, to which some methods fit what they train in.
        seed : int
            Seed of whatever the method initializes at random. The global generator is left as it was.

        Returns
        -------
        PreparedModel
            The model and what training it needs.
        """


@dataclass(frozen=True)
class LinearProbe:
    """Train the head alone.

    Attributes
    ----------
    learning_rate : float
        Peak learning rate.
    """

    learning_rate: float
    name: ClassVar[str] = "linear probe"

    def prepare(self, model: nn.Module, images: Images, *, seed: int) -> PreparedModel:  # noqa: ARG002
        """Freeze everything but the head; see `Method.prepare`."""
        model.requires_grad_(False)
        return _with_trained_head(model)


@dataclass(frozen=True)
class FullFineTuning:
    """Train every parameter.

    Attributes
    ----------
    learning_rate : float
        Peak learning rate.
    """

    learning_rate: float
    name: ClassVar[str] = "full fine-tuning"

    def prepare(self, model: nn.Module, images: Images, *, seed: int) -> PreparedModel:  # noqa: ARG002
        """Let every parameter train; see `Method.prepare`."""
        model.requires_grad_(True)
        return PreparedModel(model)


@dataclass(frozen=True)
class LoLDUMethod:
    """Train LoLDU on the query and value projections.

    arXiv 2410.13618, section III: r diagonal entries and sigma a layer.

    sigma starts at alpha / r = 1 and is kept in (0, 1] (section III-D).

    Attributes
    ----------
    learning_rate : float
        Peak learning rate.
    rank : int
        Rank-one terms trained in each layer; the paper's tables use the full rank of its backbones.
    """

    learning_rate: float
    rank: int

    @property
    def name(self) -> str:
        """Name for tables."""
        return f"LoLDU r={self.rank}"

    def prepare(self, model: nn.Module, images: Images, *, seed: int) -> PreparedModel:  # noqa: ARG002
        """Replace the query and value projections; see `Method.prepare`."""
        inject(model, query_and_value(model), self.rank, alpha=self.rank, seed=seed)
        return _with_trained_head(model, after_step=_keep_sigma_in_range)


@dataclass(frozen=True)
class LoRAMethod:
    """Train LoRA on the query and value projections.

    arXiv 2106.09685, by PEFT, with alpha = r.

    Attributes
    ----------
    learning_rate : float
        Peak learning rate.
    rank : int
        Rank of each update.
    """

    learning_rate: float
    rank: int

    @property
    def name(self) -> str:
        """Name for tables."""
        return f"LoRA r={self.rank}"

    def prepare(self, model: nn.Module, images: Images, *, seed: int) -> PreparedModel:  # noqa: ARG002
        """Add PEFT's LoRA layers; see `Method.prepare`."""
        return _add_peft_lora(model, self.rank, seed=seed, initialization=True)


@dataclass(frozen=True)
class PiSSAMethod:
    """Train PiSSA on the query and value projections.

    arXiv 2404.02948, by PEFT, with alpha = r.

    Attributes
    ----------
    learning_rate : float
        Peak learning rate.
    rank : int
        Number of leading singular triplets that are trained; the frozen weight keeps the rest.
    """

    learning_rate: float
    rank: int

    @property
    def name(self) -> str:
        """Name for tables."""
        return f"PiSSA r={self.rank}"

    def prepare(self, model: nn.Module, images: Images, *, seed: int) -> PreparedModel:  # noqa: ARG002
        """Split the weights by an exact SVD; see `Method.prepare`."""
        return _add_peft_lora(model, self.rank, seed=seed, initialization="pissa")


@dataclass(frozen=True)
class ChosenPivotsMethod:
    """Train a dense core between rows and columns of each weight.

    They are the pivots of the weight's LDU that the loss's gradient asks for (`lowrank_ldu.fitting.choose_pivots`), on
    the query and value projections; the adapter is their numbers and rank^2 numbers a layer.

    Attributes
    ----------
    learning_rate : float
        Peak learning rate.
    rank : int
        Rows, and columns, of each weight.
    """

    learning_rate: float
    rank: int

    @property
    def name(self) -> str:
        """Name for tables."""
        return f"chosen core r={self.rank}"

    def prepare(self, model: nn.Module, images: Images, *, seed: int) -> PreparedModel:  # noqa: ARG002
        """Choose pivots, and replace the layers; see `Method.prepare`."""
        targets = query_and_value(model)
        pivots = choose_pivots(model, _batches(images), _loss, targets=targets, rank=self.rank, batches=None)
        inject(model, targets, core="dense", parametrization="gram", train_sigma=False, pivots=pivots)
        return _with_trained_head(model)


@dataclass(frozen=True)
class FittedBasisMethod:
    """Train the diagonal of a near-best LDU of each layer's gradient.

    On all linear layers but the head, in a basis of `lowrank_ldu.fitting.fit_basis`.

    Attributes
    ----------
    learning_rate : float
        Peak learning rate.
    rank : int
        Rank-one terms trained in each layer.
    """

    learning_rate: float
    rank: int

    @property
    def name(self) -> str:
        """Name for tables."""
        return f"fitted LDU r={self.rank}"

    def prepare(self, model: nn.Module, images: Images, *, seed: int) -> PreparedModel:
        """Fit a basis, and replace the layers; see `Method.prepare`."""
        linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != HEAD]
        with warnings.catch_warnings():
            # Gradients of a few layers have a lower rank, which is what their basis then has.
            warnings.filterwarnings("ignore", message=".*a lower rank than asked for", category=UserWarning)
            basis = fit_basis(model, _batches(images), _loss, targets=linear, rank=self.rank, batches=None, seed=seed)
        inject(model, linear, parametrization="normalized", train_sigma=False, fitted_basis=basis)
        return _with_trained_head(model)


def default_methods() -> tuple[Method, ...]:
    """Return the methods of the comparison with their tuned learning rates.

    LoLDU runs at the network's full width, as in the paper, and at a third of it. Beside it stand two forms of as
    many numbers that are fitted to the task.

    Returns
    -------
    tuple of Method
        From the fewest trained parameters to the most.
    """
    # Each rate is the one of seven, 3e-4 to 3e-1 in half decades, with the best mean validation accuracy over two
    # seeds; `python -m lowrank_ldu.demo.grid` runs that search again and prints it.
    return (
        LinearProbe(learning_rate=1e-1),
        LoLDUMethod(learning_rate=1e-1, rank=32),
        LoLDUMethod(learning_rate=1e-1, rank=96),
        FittedBasisMethod(learning_rate=1e-1, rank=32),
        ChosenPivotsMethod(learning_rate=1e-1, rank=10),
        LoRAMethod(learning_rate=1e-2, rank=8),
        PiSSAMethod(learning_rate=3e-2, rank=8),
        FullFineTuning(learning_rate=1e-3),
    )


def query_and_value(model: nn.Module) -> list[str]:
    """Find the names of the query and value projections.

    Parameters
    ----------
    model : torch.nn.Module
        A vision transformer of transformers, version 4 or 5.

    Returns
    -------
    list of str
        ``["q_proj", "v_proj"]`` or ``["query", "value"]``: targets for `lowrank_ldu.nn.inject` and for PEFT.

    Raises
    ------
    ValueError
        The model has no such layers.
    """
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = sorted(linear & _QUERY_AND_VALUE)
    if not found:
        accepted = ", ".join(sorted(_QUERY_AND_VALUE))
        raise ValueError(f"the model has no query or value projection; accepted: linear layers named {accepted}")
    return found


def _batches(images: Images) -> list[Batch]:
    """Return the images in batches, in their order."""
    parts = (torch.split(tensor, _FITTED_ON) for tensor in (images.pixels, images.labels))
    return list(zip(*parts, strict=True))


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]).logits, batch[1])


def _with_trained_head(model: nn.Module, after_step: Callable[[nn.Module], None] | None = None) -> PreparedModel:
    model.get_submodule(HEAD).requires_grad_(True)
    return PreparedModel(model, after_step)


def _keep_sigma_in_range(model: nn.Module) -> None:
    project_(model, None)


def _add_peft_lora(model: nn.Module, rank: int, *, seed: int, initialization: bool | str) -> PreparedModel:
    peft = require("peft")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=query_and_value(model),
        init_lora_weights=initialization,
    )
    # Not get_peft_model: its wrapper reads an attribute that transformers 5 deprecates, and is not needed, since the
    # head is unfrozen in the same way for every method.
    with seeded(seed):
        peft.inject_adapter_in_model(config, model)
    return _with_trained_head(model)

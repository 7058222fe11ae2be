"""Run a model on batches, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowrank_ldu.backend import full_precision
from lowrank_ldu.nn.modules import set_trainable
from lowrank_ldu.validation import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Loss = Callable[[nn.Module, Any], Tensor]


def taken_batches(data: Iterable[Any], batches: int | None) -> Iterator[Any]:
    """Yield the first batches of some data.

    Raises
    ------
    TypeError
        `data` is no iterable of batches, such as one batch.
    """
    if isinstance(data, Tensor | Mapping | str | bytes) or not isinstance(data, Iterable):
        raise TypeError(f"data is a {type(data).__name__}; accepted: an iterable of batches, such as a DataLoader")
    return islice(iter(data), None if batches is None else check_count(batches, "batches", 1))


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device, without gradients.

    Tensors of inference mode are copied: autograd keeps none of them.
    """
    if isinstance(batch, Tensor):
        there = batch.detach().to(device)
        return there.clone() if there.is_inference() else there
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def check_differentiable(model: nn.Module) -> None:
    """Refuse a model that autograd cannot go through.

    Raises
    ------
    ValueError
        It holds a tensor that was made in inference mode, of which autograd keeps none.
    """
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_inference() and tensor.is_floating_point():
                raise ValueError(
                    f"{kind} {name!r} was made in torch.inference_mode(), so that no gradient goes through the model; "
                    "accepted: a model made outside of it, such as copy.deepcopy(model), or activations for gradients"
                )


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model takes its batches on."""
    devices = (tensor.device for tensor in (*model.parameters(), *model.buffers()))
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def loss_of(model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
    """Return the loss of a batch, a scalar.

    Parameters
    ----------
    model : nn.Module
    batch : object
    loss : callable, optional
        loss(model, batch); model(**batch).loss if not given.

    Raises
    ------
    TypeError
        The batch is no mapping, without `loss`; the loss is no tensor of one floating number.
    ValueError
        The model returned no loss, or one that is not finite.
    """
    value: Any
    if loss is not None:
        value = loss(model, batch)
    else:
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"loss is None and a batch is a {type(batch).__name__}; accepted: batches that are mappings, for "
                "model(**batch).loss, or a callable loss(model, batch)"
            )
        value = getattr(model(**batch), "loss", None)
        if value is None:
            raise ValueError(
                "loss is None and model(**batch) returned no loss; accepted: batches with what the model computes it "
                "from, such as labels, or a callable loss(model, batch)"
            )
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        shown = f"a tensor of {value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(type(value))
        raise TypeError(f"loss returned {shown}; accepted: a tensor of one floating number")
    if not bool(value.detach().isfinite().all()):
        raise ValueError(f"loss returned {float(value.detach())}; accepted: a finite number")
    scalar: Tensor = value.reshape(())
    return scalar


def call(model: nn.Module, batch: Any, loss: Loss | None) -> None:
    """Call a model on a batch, whatever it returns."""
    if loss is not None:
        loss(model, batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, list | tuple):
        model(*batch)
    else:
        model(batch)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Freeze a model and put it into evaluation mode for a while.

    What the caller set is back afterwards, whatever happens: requires_grad of parameters, the mode of every module, and
    the states of torch's random generators. Gradients are recorded inside, in full precision, whatever the context
    around it says.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = device_of(model)
    kind = device.type
    numbers = [device] if kind not in {"cpu", "meta"} else []
    with (
        torch.random.fork_rng(numbers, device_type=kind if numbers else "cuda", enabled=True),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        full_precision(),
    ):
        try:
            for parameter in trained:
                parameter.requires_grad = False
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter in trained:
                set_trainable(parameter, trainable=True)

"""Sum the gradients or the inputs of linear layers in one pass.

No weight is made trainable: what a layer takes in and the gradient of what it gives out make up its gradient, however
the weight is stored.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_ldu.fitting.batches import as_it_was, call, check_differentiable, device_of, loss_of, moved
from lowrank_ldu.nn.modules import unwrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lowrank_ldu.fitting.batches import Loss
    from lowrank_ldu.fitting.targets import TargetLayer

_NAMED = 5


class GradientSum:
    """Sum of dLoss/dW over calls and batches.

    Attributes
    ----------
    total : Tensor, shape (m, n), or None
        float32, or float64 for a layer of float64.
    """

    needs_gradient: ClassVar[bool] = True

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, x: Tensor, g: Tensor) -> None:
        """Add g^T x."""
        x, g = _wide(x), _wide(g)
        if self.total is None:
            self.total = g.T @ x
        else:
            self.total.addmm_(g.T, x)

    @staticmethod
    def entries(m: int, n: int) -> int:
        """Return the number of entries of the sum."""
        return m * n


class InputMoment:
    """Sum of x x^T over the inputs of a layer.

    Attributes
    ----------
    total : Tensor, shape (n, n), or None
    """

    needs_gradient: ClassVar[bool] = False

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, x: Tensor, g: Tensor) -> None:
        """Add x^T x; there is no gradient."""
        del g
        x = _wide(x)
        if self.total is None:
            self.total = x.T @ x
        else:
            self.total.addmm_(x.T, x)

    @staticmethod
    def entries(m: int, n: int) -> int:
        """Return the number of entries of the sum."""
        del m
        return n * n


def _wide(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.to(torch.promote_types(whole.dtype, torch.float32))


class _Tap(torch.autograd.Function):
    """Identity that hands on the gradient of its input.

    The layer's input is kept as any saved tensor is: checkpointing computes it anew, and a change in place is an error.
    The anchor requires a gradient, so that there is one where all weights are frozen.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, anchor: Tensor, total: GradientSum) -> Tensor:
        del anchor
        ctx.save_for_backward(x)
        ctx.total = total
        # No view: models change outputs in place.
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        (g,) = gradients
        with torch.no_grad():
            ctx.total.add(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))
        return g, None, None, None


def one_pass(
    model: nn.Module,
    layers: Sequence[TargetLayer],
    batches: Iterable[Any],
    loss: Loss | None,
    kind: type[GradientSum | InputMoment],
) -> dict[str, Tensor]:
    """Return the sum of each layer by its name.

    The errors are those of `loss_gradients`.
    """
    # Wrappers that average gradients, or that compiled the model without hooks, have no part in this.
    model = _inside(model)
    if kind.needs_gradient:
        check_differentiable(model)
    sums: dict[str, GradientSum | InputMoment] = {layer.name: kind() for layer in layers}
    calls: Counter[str] = Counter()
    count = 0
    device = device_of(model)
    with as_it_was(model), _watched(layers, sums, calls, device, record=kind.needs_gradient), _tapped_embedding(model):
        for batch in batches:
            count += 1
            batch = moved(batch, device)  # noqa: PLW2901
            if not kind.needs_gradient:
                with torch.no_grad():
                    call(model, batch, loss)
                continue
            value = loss_of(model, batch, loss)
            if not value.requires_grad:
                names = ", ".join(repr(layer.name) for layer in layers[:_NAMED])
                raise ValueError(
                    f"loss does not depend on the layers ({names}); accepted: a loss of the model's output"
                )
            value.backward()  # type: ignore[no-untyped-call]
    if not count:
        raise ValueError("data holds no batch; accepted: at least one")
    return {layer.name: _finished(layer, sums[layer.name], calls[layer.name], count) for layer in layers}


def _inside(model: nn.Module) -> nn.Module:
    """Return a model without the wrappers that are not needed.

    FSDP's wrapper gathers the weights, and stays.
    """
    if "_fsdp_wrapped_module" in model._modules:  # noqa: SLF001
        return model
    return unwrapped(model)


@contextmanager
def _watched(
    layers: Sequence[TargetLayer],
    sums: dict[str, GradientSum | InputMoment],
    calls: Counter[str],
    device: torch.device,
    *,
    record: bool,
) -> Iterator[None]:
    """Have the calls of layers added to their sums, by hooks."""
    anchor = torch.zeros((), device=device, requires_grad=True)

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Any:
            del module
            x = args[0] if args else next(iter(kwargs.values()))
            calls[name] += 1
            total = sums[name]
            if not isinstance(total, GradientSum):
                total.add(x.detach().reshape(-1, x.shape[-1]), x)
                return None
            if not (record and torch.is_grad_enabled()):
                return None  # the first of checkpointing's two passes
            return _Tap.apply(y, x.detach(), anchor, total)  # type: ignore[no-untyped-call]

        return hook

    handles = [layer.called.register_forward_hook(hook_of(layer.name), with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _tapped_embedding(model: nn.Module) -> Iterator[None]:
    """Have the input embeddings' output require a gradient.

    Reentrant checkpointing records nothing of blocks whose input requires none.
    """
    find = getattr(model, "get_input_embeddings", None)
    try:
        embedding = find() if callable(find) else None
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Module):
        yield
        return

    def hook(module: nn.Module, args: Any, y: Any) -> Any:
        del module, args
        if isinstance(y, Tensor) and torch.is_grad_enabled() and not y.requires_grad and y.is_floating_point():
            return y.detach().requires_grad_().clone()
        return None

    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _finished(layer: TargetLayer, total: GradientSum | InputMoment, calls: int, batches: int) -> Tensor:
    what = f"in {batches} batch{'' if batches == 1 else 'es'}"
    if not calls:
        raise ValueError(f"layer {layer.name!r} is never called {what}; accepted: layers that the batches reach")
    value = total.total
    if value is None:
        raise ValueError(
            f"layer {layer.name!r} is called, but its output has no effect on the loss {what}; accepted: layers that "
            "the loss depends on"
        )
    total.total = None
    if layer.sharded and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
    named = "gradient" if isinstance(total, GradientSum) else "sum of its inputs' squares"
    size = float(value.abs().max())
    if size == 0.0:
        raise ValueError(f"layer {layer.name!r}: the {named} is zero {what}; accepted: layers and data that give one")
    if not bool(value.isfinite().all()):
        raise ValueError(f"layer {layer.name!r}: the {named} is not finite {what}; accepted: finite sums")
    return value

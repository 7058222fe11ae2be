"""Refuse merges that would not last, and try out doubtful ones."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lowrank_ldu.kernels.torch_modes import is_fake
from lowrank_ldu.nn.forward import has_hooks, output_with_updates
from lowrank_ldu.nn.kinds import ConvolutionKind, EmbeddingKind
from lowrank_ldu.nn.kinds.own_forward import computed_weight, own_forward
from lowrank_ldu.nn.memory import share_memory
from lowrank_ldu.nn.modules import is_sharded
from lowrank_ldu.nn.offloading import is_offloaded
from lowrank_ldu.nn.quantized import is_quantized
from lowrank_ldu.nn.update import Update

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lowrank_ldu.nn.kinds import LayerKind
    from lowrank_ldu.nn.update import Update

_ROWS = 4
# The difference of outputs that is let pass, in roundings. Roundings of a weight are independent of each other, so that
# an output is off by about one, relative to its size. A lost update is off by more, unless it is as small as rounding
# errors.
_ROUNDINGS = 8


class Trial:
    """Hold an input of a layer and the adapted layer's output.

    The merged layer's output is compared with it.

    Parameters
    ----------
    base_layer : nn.Module
    kind : LayerKind
    updates : sequence of Update
        What is to be merged.
    """

    def __init__(self, base_layer: nn.Module, kind: type[LayerKind], updates: Sequence[Update]) -> None:
        self._layer, self._x = base_layer, _probe(base_layer, kind)
        self._before = self._run(base_layer)
        self._adapted = self._run(lambda x: output_with_updates(base_layer, base_layer, kind, updates, x))

    def failure(self, merged: Tensor) -> str | None:
        """Return the reason why the merged layer is wrong, or None.

        With `merged` for its weight, the layer then does not compute what the adapted one does.
        """
        used: list[bool] = []
        own, state = self._layer.forward, vars(self._layer)
        held = state.get("forward")

        def forward(*args: Any, **kwargs: Any) -> Any:
            used.append(torch.equal(cast("Tensor", self._layer.weight), merged))
            return own(*args, **kwargs)

        state["forward"] = forward
        try:
            after = self._run(self._layer)
        finally:
            if held is None:
                del state["forward"]
            else:
                state["forward"] = held
        if not all(used):
            return "a hook of the layer writes to its weight before each call"
        outputs = (self._before, self._adapted, after)
        if any(output is None for output in outputs):
            return None
        alike = len({len(output) for output in outputs}) == 1 and all(map(self._agree, *outputs))
        return None if alike else "the merged layer's output is not the adapted layer's"

    def _agree(self, before: Tensor, adapted: Tensor, after: Tensor) -> bool:
        if not before.shape == adapted.shape == after.shape:
            return False
        weight = cast("Tensor", self._layer.weight)
        rounding = max(torch.finfo(weight.dtype).eps, torch.finfo(after.dtype).eps)
        size = max(float(y.double().norm()) for y in (before, adapted, after))
        # An output that is not finite says nothing.
        return not float((after.double() - adapted.double()).norm()) > _ROUNDINGS * rounding * size

    def _run(self, call: Any) -> Any:
        """Return the floating tensors of the layer's output for the probe.

        None if it cannot be called with the probe. The layer's buffers and modes, and the generators of random numbers,
        stay as they are.
        """
        if self._x is None:
            return None
        modes = [(module, module.training) for module in self._layer.modules()]
        buffers = [(buffer, buffer.clone()) for buffer in self._layer.buffers()]
        device = self._x.device
        try:
            with (
                torch.no_grad(),
                torch.autocast(device.type, enabled=False),
                torch.random.fork_rng([device] if device.type == "cuda" else []),
            ):
                torch.manual_seed(0)
                self._layer.eval()
                output = call(self._x)
        except Exception:  # noqa: BLE001  # whatever a foreign forward or hook raises: it takes other inputs
            return None
        else:
            several = output if isinstance(output, (tuple, list)) else [output]
            return [y.clone() for y in several if isinstance(y, Tensor) and y.is_floating_point()]
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, kept in buffers:
                    buffer.copy_(kept)


def check_mergeable(base_layer: nn.Module, sharers: Iterable[nn.Module]) -> None:
    """Refuse to merge into a weight that cannot be written to.

    Such a weight is not kept, or another module uses it, too.

    Raises
    ------
    TypeError
        The weight is computed from other tensors, or sharded.
    RuntimeError
        It is another module's, too.
    """
    if is_sharded(base_layer):
        raise TypeError(
            "the weight is sharded by fully_shard; accepted: the whole model, with its full state dict loaded"
        )
    computed = computed_weight(base_layer)
    if computed is not None and not is_quantized(base_layer):
        raise TypeError(
            f"the weight of the {type(base_layer).__name__} is {computed}, which would undo the merge; accepted: the "
            "adapter unmerged, or a layer whose parametrization, norm or pruning was removed before it was adapted"
        )
    weight = base_layer._parameters.get("weight")  # noqa: SLF001
    for sharer in sharers:
        # Parameters may share their memory. Offloading puts another parameter in the place of each of them.
        away = is_offloaded(base_layer) or is_offloaded(sharer)
        if sharer is not base_layer and (away or _has_memory_of(sharer, weight)):
            raise RuntimeError(
                f"the weight is tied to that of a {type(sharer).__name__}, which merging would change; accepted: "
                "weights of their own (give one module a clone)"
            )


def _has_memory_of(module: nn.Module, weight: Tensor | None) -> bool:
    tensors = (*module._parameters.values(), *module._buffers.values())  # noqa: SLF001
    return weight is not None and any(own is not None and share_memory(own, weight) for own in tensors)


@contextmanager
def tried_out(
    base_layer: nn.Module, kind: type[LayerKind], weight: Tensor, merged: Tensor, updates: Sequence[Update]
) -> Iterator[None]:
    """Compare the layer after the block with the adapted one before it.

    The block writes `merged` to the layer's weight. A plain layer without hooks is not called: its output is made of
    its weight by torch alone.

    Raises
    ------
    RuntimeError
        It computes something else; the weight is then what it was.
    """
    plain = not own_forward(base_layer) and not has_hooks(base_layer)
    if plain or weight.device.type == "meta" or weight.numel() == 0 or not _is_local(weight):
        yield
        return
    trial, kept = Trial(base_layer, kind, updates), weight.detach().clone()
    yield
    failure = trial.failure(merged)
    if failure is not None:
        weight.data.copy_(kept)
        raise RuntimeError(
            f"{failure}, so that merging into the {type(base_layer).__name__} is refused; accepted: the adapter "
            "unmerged, or a layer without such hooks"
        )


def _is_local(weight: Tensor) -> bool:
    """Return whether a weight's numbers are all here to stay.

    Its class is then one of torch's own, which torch computes with itself.
    """
    # DeepSpeed's hooks would scatter a weight again that was gathered to be merged.
    return type(weight) in {Tensor, nn.Parameter} and not is_fake(weight) and not hasattr(weight, "ds_id")


def _probe(base_layer: Any, kind: type[LayerKind]) -> Tensor | None:
    """Return a small input for a layer.

    It is a few rows, a few tokens, or images as small as the kernel lets them be.
    """
    weight: Tensor = base_layer.weight
    generator = torch.Generator().manual_seed(0)
    if kind is EmbeddingKind:
        ids = torch.randint(0, len(weight), (2, min(_ROWS, len(weight))), generator=generator)
        return ids.to(weight.device)
    if kind is ConvolutionKind:
        reach = (d * (k - 1) + 1 for d, k in zip(base_layer.dilation, base_layer.kernel_size, strict=True))
        shape = (1, base_layer.in_channels, *(2 * size for size in reach))
    else:
        shape = (_ROWS, kind.as_matrix(weight).shape[1])
    return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)

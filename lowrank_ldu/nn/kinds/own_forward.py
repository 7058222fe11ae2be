"""Tell layers with a forward of their own from plain ones.

A plain layer computes by the formula of its kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from lowrank_ldu.nn.offloading import is_offloaded
from lowrank_ldu.nn.quantized import dense_weight, is_quantized

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_PLAIN_TENSORS = {torch.Tensor, nn.Parameter}
# Classes by name, so that no library is imported for them. Falcon's layer computes what nn.Linear does, in two steps.
_PLAIN_NAMES = {
    ("transformers.pytorch_utils", "Conv1D"),
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"),
}
# The layers of these libraries multiply by the weight that `dense_weight` reads, by kernels of their own.
_QUANTIZING_LIBRARIES = {"bitsandbytes", "torchao", "hqq"}
# All names in the forward of transformers' scaled embeddings: super().forward(x) * self.embed_scale.to(dtype).
_SCALING_NAMES = {"super", "forward", "embed_scale", "to", "weight", "dtype"}

# A relative difference. An output that is not the layer's product is off by about its own size.
_QUANTIZED = 0.2

_plain_classes: dict[type, bool] = {}


def own_forward(module: nn.Module) -> bool:
    """Return whether a layer computes by a forward of its own.

    Other code than its kind's formula makes its output then: a subclass's or an instance's forward.

    Examples
    --------
    >>> own_forward(nn.Linear(2, 2))
    False
    """
    # A quantized layer multiplies by the numbers that its integers stand for, whatever it calls (`check_forward`).
    if not _has_own_forward(module):
        return False
    # The quick test comes first: torch.compile follows it.
    return type(getattr(module, "weight", None)) in _PLAIN_TENSORS or not is_quantized(module)


def _has_own_forward(module: nn.Module) -> bool:
    state = vars(module)
    if "forward" in state:
        # accelerate's hooks put a forward on the instance that moves tensors and calls the former one.
        forward = state.get("_old_forward", state["forward"]) if "_hf_hook" in state else state["forward"]
        if getattr(forward, "__func__", None) is not type(module).forward:
            return True
    return not _is_plain(type(module))


def lora_obstacle(module: nn.Module) -> str:
    """Return the reason why no LoRA pair can replace an update.

    A pair beside such a layer computes something else than its product does in the weight. PEFT adds the pair's product
    to the output, and builds its convolutions with kernel, stride and padding alone.

    Returns
    -------
    str
        Empty if it computes the same.

    Examples
    --------
    >>> lora_obstacle(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    "Conv2d with padding_mode 'circular'"
    """
    if own_forward(module):
        return f"{type(module).__name__} with a forward of its own"
    for option, plain in (("groups", 1), ("dilation", 1), ("padding_mode", "zeros")):
        value = getattr(module, option, plain)
        if value != plain and (not isinstance(value, tuple) or any(each != plain for each in value)):
            return f"{type(module).__name__} with {option} {value!r}"
    return ""


def check_forward(module: nn.Module) -> None:
    """Refuse a layer that cannot be called with another weight.

    Such a layer has a forward of its own. Plain layers pass.

    Raises
    ------
    ValueError
        Its weight is quantized and its output is not the product with it, or its weight is computed at each call, or
        its gradient would be no gradient of the sum.
    """
    if not _has_own_forward(module):
        return
    name = f"the layer is a {type(module).__name__} with a forward of its own"
    if is_quantized(module):
        if not _multiplies_by_its_weight(module):
            raise ValueError(
                f"{name} and a quantized weight, whose output is not their product; accepted: a floating weight, or "
                "the quantizing library's own layer"
            )
        return
    if is_offloaded(module):
        raise ValueError(f"{name} and offloaded by accelerate (device_map); accepted: a weight that stays on a device")
    if computed_weight(module) is not None and not getattr(module, "_is_replica", False):
        raise ValueError(f"{name} and a weight that is {computed_weight(module)}; accepted: one of the two")
    for option in ("sparse", "scale_grad_by_freq"):
        if isinstance(module, nn.Embedding) and getattr(module, option):
            raise ValueError(f"{name} and {option}=True; accepted: {option}=False")


def computed_weight(module: nn.Module) -> str | None:
    """Return the way in which a layer's weight is computed, or None.

    None if the weight is a parameter; otherwise other tensors give it.

    Examples
    --------
    >>> computed_weight(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    'parametrized (torch.nn.utils.parametrize)'
    """
    weight = module._parameters.get("weight")  # noqa: SLF001  # not what a property of that name computes
    if weight is not None and module.weight is weight:
        return None
    if "parametrizations" in module._modules:  # noqa: SLF001
        return "parametrized (torch.nn.utils.parametrize)"
    writers = sorted({type(hook).__name__ for hook in _reparametrizations(module)})
    return f"computed at each call ({', '.join(writers)})" if writers else "computed at each call"


def refresh_weight(module: nn.Module) -> None:
    """Compute a weight anew that older reparametrizations write.

    torch's older weight_norm, spectral_norm and pruning leave the weight as of the last call.
    """
    if "weight" in module._parameters:  # noqa: SLF001
        return
    for hook in _reparametrizations(module):
        if hasattr(hook, "do_power_iteration"):
            module.weight = hook.compute_weight(module, do_power_iteration=False)
        else:
            hook(module, None)


def _multiplies_by_its_weight(module: nn.Module) -> bool:
    """Return whether a quantized layer multiplies by its weight.

    Its output is then that of its kind, but for the rounding of its input. True if it is unknown. An activation in 4
    bits is off by a tenth.
    """
    try:
        with torch.no_grad():
            weight = dense_weight(module)
            generator = torch.Generator().manual_seed(0)
            if isinstance(module, nn.Embedding):
                ids = torch.randint(0, len(weight), (2, 4), generator=generator).to(weight.device)
                expected, y = embedding(ids, weight), module(ids)
            else:
                x = torch.randn(4, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
                expected, y = linear(x, weight, getattr(module, "bias", None)), module(x)
            return bool((y.double() - expected.double()).norm() <= _QUANTIZED * expected.double().norm())
    except Exception:  # noqa: BLE001  # whatever a foreign forward raises: it takes other inputs
        return True


def _reparametrizations(module: nn.Module) -> Iterable[Any]:
    """Yield the hooks that write a weight before each call.

    They are those of torch.nn.utils: weight_norm, spectral_norm and prune.
    """
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001
        if any(kind.__module__.startswith("torch.nn.utils.") for kind in type(hook).__mro__):
            yield hook


def _is_plain(kind: type) -> bool:
    known = _plain_classes.get(kind)
    if known is None:
        known = _plain_classes[kind] = _computes_plainly(kind)
    return known


def _computes_plainly(kind: type) -> bool:
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    if owner.__module__.partition(".")[0] in _QUANTIZING_LIBRARIES:
        return True
    if kind.__call__ is not nn.Module.__call__:
        return False
    if (owner.__module__, owner.__name__) in _PLAIN_NAMES or _is_scaled_embedding(owner):
        return True
    # A convolution's forward leaves the work to a method, which a subclass may have changed.
    return owner in _PLAIN and getattr(kind, "_conv_forward", None) is getattr(owner, "_conv_forward", None)


def _is_scaled_embedding(owner: type) -> bool:
    """Return whether a module is a scaled embedding of transformers.

    Such an embedding scales the rows that it looks up, which `EmbeddingKind` knows.
    """
    named = owner.__module__.startswith("transformers.models.") and owner.__name__.endswith("ScaledWordEmbedding")
    code = getattr(owner.forward, "__code__", None)  # type: ignore[attr-defined]
    return named and code is not None and set(code.co_names) <= _SCALING_NAMES

"""Read the weight of a convolution as a matrix.

For nn.Conv1d, nn.Conv2d and nn.Conv3d it is W (out, in / groups * kernel), with the kernel folded into the columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch.nn.functional import conv1d, conv2d, conv3d

from lowrank_ldu.nn.cores import apply_core

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

_POINTWISE: dict[int, Callable[..., Tensor]] = {1: conv1d, 2: conv2d, 3: conv3d}


class ConvolutionKind:
    """Convolution with W (out, in / groups * kernel).

    The output is the products of W with the patches of the input.
    """

    name: ClassVar[str] = "convolution"
    linear: ClassVar[bool] = False

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """Return the weight with input channels and kernel in one dimension."""
        return weight.flatten(1)

    @staticmethod
    def as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
        """Return the matrix with channels and kernel in separate dimensions."""
        return matrix.reshape(weight.shape)

    @staticmethod
    def update(module: nn.Module, x: Tensor, left: Tensor, right: Tensor, core: Tensor) -> Tensor:
        """Return the convolution of x with `right`, times K, mixed by `left`.

        `left` mixes the channels at each point. With groups every group's patches are projected by the same r rows of
        `right`, and each output channel reads the projections of its own group.
        """
        conv: Any = module  # nn.Conv1d, nn.Conv2d and nn.Conv3d have these in common, and no base class that says so
        kernel, groups = conv.kernel_size, conv.groups
        ones = (1,) * len(kernel)
        filters = right.reshape(len(right), -1, *kernel).repeat(groups, 1, *ones)
        # The module's own method: it knows how to pad.
        projected = conv._conv_forward(x, filters, None)  # noqa: SLF001
        if core.ndim <= 2:
            diagonal = core.repeat(*(1,) * (core.ndim - 1), groups).reshape(*core.shape[:-1], -1, *ones)
            scaled = projected * diagonal.to(projected.dtype)
        else:
            channels = projected.ndim - 1 - len(kernel)
            last = projected.movedim(channels, -1)
            last = last.reshape(*last.shape[:-1], groups, len(right))
            scaled = apply_core(last, core).flatten(-2).movedim(-1, channels)
        return _POINTWISE[len(kernel)](scaled, left.reshape(*left.shape, *ones), groups=groups)

    @staticmethod
    def lora_pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return right (r, n) and left (m, r).

        The caller gives them the kernel's shape.
        """
        return right, left

"""nn.Conv1d, nn.Conv2d and nn.Conv3d: the weight is W (out, in / groups * kernel) with its kernel folded out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch.nn.functional import conv1d, conv2d, conv3d

if TYPE_CHECKING:
    from torch import Tensor, nn

_POINTWISE = {1: conv1d, 2: conv2d, 3: conv3d}


class ConvolutionKind:
    """Convolution, the products of W (out, in / groups * kernel) with the patches of the input."""

    name: ClassVar[str] = "convolution"
    linear: ClassVar[bool] = False

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """Return the weight with its input channels and kernel in one dimension."""
        return weight.flatten(1)

    @staticmethod
    def as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
        """Return the matrix with channels and kernel apart."""
        return matrix.reshape(weight.shape)

    @staticmethod
    def update(module: nn.Module, x: Tensor, left: Tensor, right: Tensor, delta: Tensor) -> Tensor:
        """Return the convolution of x with `right`, scaled, and mixed by `left` point by point.

        With groups every group's patches are projected by the same r rows of `right`, and each output channel reads
        the projections of its own group.
        """
        # nn.Conv2d and its relatives keep these under the same names.
        kernel, groups = module.kernel_size, module.groups
        spatial = len(kernel)  # type: ignore[arg-type]
        ones = (1,) * spatial
        filters = right.reshape(len(right), -1, *kernel).repeat(groups, *(1,) * (spatial + 1))  # type: ignore[operator, misc, arg-type]
        # The module's own: it knows how to pad.
        projected = module._conv_forward(x, filters, None)  # type: ignore[operator]  # noqa: SLF001
        scaled = projected * delta.repeat(*(1,) * (delta.ndim - 1), groups).reshape(*delta.shape[:-1], -1, *ones).to(  # type: ignore[call-overload]
            projected.dtype
        )
        result: Tensor = _POINTWISE[spatial](scaled, left.reshape(*left.shape, *ones), groups=groups)  # type: ignore[arg-type]
        return result

    @staticmethod
    def lora_pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return right (r, n) and left (m, r); the caller gives them the kernel's shape."""
        return right, left

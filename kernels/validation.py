"""Check the arguments of the public functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.kernels.packed import TOLERANCE, Packing
from lowrank_ldu.kernels.skeleton import TOLERANCE as SKELETON_TOLERANCE
from lowrank_ldu.kernels.skeleton import Skeleton
from lowrank_ldu.kernels.torch_modes import has_values

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Layer

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INDEX_DTYPES = (torch.int64, torch.int32)


def name_of(dtype: torch.dtype | torch.layout) -> str:
    """Return a dtype's or a layout's name as users write it."""
    return str(dtype).removeprefix("torch.")


def _shape(name: str, tensor: Tensor, accepted: tuple[int | str, ...]) -> None:
    fits = tensor.ndim == len(accepted)
    # Every call comes here, several times: a loop takes half the time of all() over a generator.
    for size, wanted in zip(tensor.shape, accepted, strict=False):
        fits = fits and (isinstance(wanted, str) or size == wanted)
    if not fits:
        wanted = f"({', '.join(map(str, accepted))}{',' if len(accepted) == 1 else ''})"
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted: {wanted}")


def _check_kind(name: str, tensor: object, x: Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; accepted: a torch tensor")
    if tensor.dtype not in _DTYPES:
        accepted = ", ".join(map(name_of, _DTYPES))
        raise TypeError(f"{name} has dtype {name_of(tensor.dtype)}; accepted: a floating dtype of {accepted}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} is {name_of(tensor.layout)}; accepted: a dense tensor")
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} has dtype {name_of(tensor.dtype)}; accepted: x's, {name_of(x.dtype)}")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}; accepted: x's device, {x.device}")


def check_call(x: Tensor, layer: Layer, adapters: Adapters, *, values: bool) -> None:
    """Check all tensors of a call, and their values if asked.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `_check_layer` and `_check_adapters`; or right is not upper trapezoidal where the layer says so.
    """
    _check_layer(x, layer)
    values = values and has_values(x)
    _check_adapters(x, layer, adapters, values=values)
    if layer.upper and values:
        _check_upper(layer.right)


def _check_layer(x: Tensor, layer: Layer) -> None:
    """Check that the layer's tensors belong together: shapes, dtype, device.

    Raises
    ------
    TypeError
        Something is not a tensor, or not of x's dtype.
    ValueError
        A shape or a device does not belong to the others'.
    """
    weight, bias, left, right, *_ = layer
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("left", left), ("right", right)):
        if tensor is not None or name != "bias":
            _check_kind(name, tensor, x)
    _shape("weight", weight, ("m", "n"))
    m, n = weight.shape
    if x.ndim == 0 or x.shape[-1] != n:
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted: (..., {n}), as weight is {(m, n)}")
    if bias is not None:
        _shape("bias", bias, (m,))
    _shape("left", left, (m, "r"))
    _shape("right", right, (left.shape[1], n))
    if left.shape[1] == 0:
        raise ValueError("left and right have no terms; accepted: a rank of at least 1")


def _check_adapters(x: Tensor, layer: Layer, adapters: Adapters, *, values: bool) -> None:
    """Check the cores, and which of them rows use.

    Parameters
    ----------
    x : Tensor, shape (..., n)
    layer : Layer
        Checked.
    adapters : Adapters
        As callers give them: one core, or with numbers of rows A of them.
    values : bool
        Also check that cores are finite and that there are such adapters, for which a GPU is waited for.

    Raises
    ------
    TypeError, ValueError
        A dtype, shape or device does not belong to the others', or a number is not finite.
    IndexError
        There is no such adapter.
    """
    cores, index, scales = adapters
    name = "delta" if index is None else "deltas"
    _check_floating(name, cores, x)
    _check_core_shape(name, cores, layer.left.shape[1], several=index is not None)
    if values:
        _check_finite(name, cores)
    if index is not None:
        _check_index(index, scales, x, len(cores), values=values)


def _check_core_shape(name: str, cores: Tensor, rank: int, *, several: bool) -> None:
    """Check that cores are diagonals, dense, or blocks for the rank."""
    shape = cores.shape[1:] if several else cores.shape
    fits = len(shape) in {1, 2, 3} and cores.ndim == len(shape) + several
    if fits and len(shape) == 3:
        fits = shape[1] == shape[2] and shape[0] * shape[1] == rank
    elif fits:
        fits = all(size == rank for size in shape)
    if not fits:
        some = "A, " if several else ""
        accepted = f"({some}{rank}{'' if several else ','}), ({some}{rank}, {rank}) or ({some}g, b, b)"
        raise ValueError(f"{name} has shape {tuple(cores.shape)}; accepted: {accepted} with g b = {rank}")


def _check_floating(name: str, tensor: Tensor, x: Tensor) -> None:
    """Check that trained numbers are a floating tensor on x's device."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        kind = name_of(tensor.dtype) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"{name} is {kind}; accepted: a torch tensor of a floating dtype")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}; accepted: x's device, {x.device}")


def _check_finite(name: str, tensor: Tensor) -> None:
    """Check that numbers are finite, for which a GPU is waited for."""
    if not bool(tensor.isfinite().all()):
        first = torch.nonzero(~tensor.isfinite())[0].tolist()
        raise ValueError(f"{name}{first} is {float(tensor[tuple(first)])}; accepted: finite values")


def check_index_dtype(index: Tensor) -> None:
    """Check that the numbers of adapters are a tensor of integers."""
    if not isinstance(index, torch.Tensor) or index.dtype not in _INDEX_DTYPES:
        kind = name_of(index.dtype) if isinstance(index, torch.Tensor) else type(index).__name__
        raise TypeError(f"adapter_index is {kind}; accepted: a torch tensor, int64 or int32")


def _check_index(index: Tensor, scales: Tensor | None, x: Tensor, adapters: int, *, values: bool) -> None:
    """Check the adapters that the rows use.

    With `values` also that there are such adapters.
    """
    if index.device != x.device:
        raise ValueError(f"adapter_index is on {index.device}; accepted: x's device, {x.device}")
    leading = tuple(x.shape[:-1])
    if not leading:
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted: (T, n), or more dimensions, where rows use adapters")
    rows = index.shape if scales is None else index.shape[:-1]
    if not rows or tuple(rows) != leading[: len(rows)]:
        mixed = " (and a last dimension for the adapters of a row)" if scales is not None else ""
        raise ValueError(
            f"adapter_index has shape {tuple(index.shape)}; accepted: x's leading dimensions, {leading}, or the first "
            f"of them{mixed}"
        )
    if scales is not None:
        _check_floating("scales", scales, x)
        _shape("scales", scales, tuple(index.shape))
        if values:
            _check_finite("scales", scales)
    if values and index.numel():
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= adapters:
            raise IndexError(
                f"adapter_index reaches from {low} to {high}; accepted: 0 to {adapters - 1}, deltas has {adapters} rows"
            )


def _check_upper(right: Tensor) -> None:
    """Check that right is upper trapezoidal.

    Half of it is left out afterwards.
    """
    if bool(right.tril(-1).any()):
        raise ValueError(
            "right has entries left of its diagonal; accepted with upper=True: an upper trapezoidal right, as partial "
            "pivoting makes it"
        )


def check_packing(packing: Packing, x: Tensor, layer: Layer, *, values: bool) -> None:
    """Check that a packing is of this layer.

    `values`: also that it is of this weight, on one random vector.

    Raises
    ------
    TypeError, ValueError
        It is no packing, is of another shape, dtype or device, or of another weight.
    """
    weight, _, left, right, *_ = layer
    if not isinstance(packing, Packing):
        raise TypeError(f"packing is a {type(packing).__name__}; accepted: what pack(weight, ...) returns")
    m, r = left.shape
    shapes = tuple(packing.diagonal.shape), tuple(packing.order.shape), tuple(packing.inverse.shape)
    if shapes != ((r,), (m,), (m,)):
        raise ValueError(f"packing is of a weight with {shapes[1]} rows and rank {shapes[0]}; accepted: ({m},), ({r},)")
    if packing.diagonal.dtype != x.dtype:
        dtype = name_of(packing.diagonal.dtype)
        raise TypeError(f"packing has dtype {dtype}; accepted: x's, {name_of(x.dtype)}: pack the weight anew")
    if packing.diagonal.device != x.device:
        raise ValueError(f"packing is on {packing.diagonal.device}; accepted: x's device, {x.device}")
    if not values:
        return
    # One pass over the weight. A vector of random signs meets every entry: another weight's result is another one.
    generator = torch.Generator().manual_seed(0)
    signs = (torch.randint(0, 2, (weight.shape[1],), generator=generator) * 2 - 1).to(weight)
    with torch.no_grad():
        error = torch.linalg.vector_norm(left @ (packing.diagonal * (right @ signs)) - weight @ signs)
        limit = 10 * TOLERANCE * torch.finfo(weight.dtype).eps * torch.linalg.matrix_norm(weight)
        if not bool(error <= limit):
            raise ValueError("packing is not of this weight and these factors; accepted: what pack made of them")


def check_skeleton(skeleton: Skeleton, x: Tensor, layer: Layer, *, values: bool) -> None:
    """Check that a skeleton is of this layer.

    `values`: also that it is of this weight and these factors, on one random vector each.

    Raises
    ------
    TypeError, ValueError
        It is no skeleton, is of another shape, dtype or device, or of another weight.
    """
    weight, _, left, right, *_ = layer
    if not isinstance(skeleton, Skeleton):
        raise TypeError(f"skeleton is a {type(skeleton).__name__}; accepted: what skeleton_of(weight, ...) returns")
    rank = len(right)
    sides = [("rows", "triangle", skeleton.rows, skeleton.triangle, weight, right)]
    if skeleton.columns is not None and skeleton.column_triangle is not None:
        triangle = skeleton.column_triangle.T
        sides.append(("columns", "column_triangle", skeleton.columns, triangle, weight.T, left.T))
    for numbers, name, chosen, triangle, matrix, factor in sides:
        if tuple(chosen.shape) != (rank,) or tuple(triangle.shape) != (rank, rank):
            raise ValueError(f"skeleton is of {len(chosen)} {numbers}; accepted: {rank}, the rank of the factors")
        if chosen.device != x.device or triangle.device != x.device:
            raise ValueError(f"skeleton.{numbers} is on {chosen.device}; accepted: x's device, {x.device}")
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if triangle.dtype != wide:
            raise TypeError(f"skeleton.{name} has dtype {name_of(triangle.dtype)}; accepted: {name_of(wide)}")
        if values:
            _check_triangle(chosen, triangle, matrix, factor)


@torch.no_grad()
def _check_triangle(chosen: Tensor, triangle: Tensor, matrix: Tensor, factor: Tensor) -> None:
    """Check that factor = triangle matrix[chosen], on one vector of random signs."""
    generator = torch.Generator().manual_seed(0)
    signs = (torch.randint(0, 2, (matrix.shape[1],), generator=generator) * 2 - 1).to(matrix.device, triangle.dtype)
    picked = matrix.index_select(0, chosen).to(triangle.dtype)
    error = (triangle @ (picked @ signs) - factor.to(triangle.dtype) @ signs).abs()
    # The sums are of n terms: in the worst case the errors of all entries add up.
    size = matrix.shape[1] ** 0.5
    enlarged = triangle.abs() @ torch.linalg.vector_norm(picked, dim=1)
    rounded = torch.linalg.vector_norm(factor.to(triangle.dtype), dim=1)
    eps, own = torch.finfo(triangle.dtype).eps, torch.finfo(factor.dtype).eps
    if not bool((error <= size * (SKELETON_TOLERANCE * eps * enlarged + own * rounded)).all()):
        raise ValueError("skeleton is not of this weight and these factors; accepted: what skeleton_of made of them")

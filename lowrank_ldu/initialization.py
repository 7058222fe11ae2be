"""Draw the initial diagonal in eight ways.

These are the initializations that the paper compares (its Table V).

Not in `nn`: analysis examines them, and needs no layer.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lowrank_ldu.validation import LARGEST_SEED, check_choice, check_count, shown

Initialization = Literal[
    "regular_ldu",
    "constant_zmean",
    "uniform_minus1_1",
    "uniform_zmean_half",
    "normal_0_1",
    "normal_zmean_zstd",
    "zeros",
    "ones",
]
INITIALIZATIONS: tuple[Initialization, ...] = get_args(Initialization)


def is_random(init: Initialization) -> bool:
    """Return whether the initialization draws numbers.

    If it does, the diagonal itself has to be stored.
    """
    return init.startswith(("uniform", "normal"))


def initial_diagonal(init: Initialization, z: Tensor, seed: int = 0) -> Tensor:
    """Return the diagonal that training starts from.

    Parameters
    ----------
    init : str
        "regular_ldu": z itself. "constant_zmean": its mean. "uniform_minus1_1": uniform on (-1, 1).
        "uniform_zmean_half": uniform between -mean(z) / 2 and mean(z) / 2. "normal_0_1": standard normal.
        "normal_zmean_zstd": normal with the mean and standard deviation of z. "zeros", "ones".
    z : Tensor, shape (r,)
        Diagonal of the factorization.
    seed : int
        Of the random ones. Drawn on the CPU in float64, so that every device starts from the same numbers.

    Returns
    -------
    Tensor, shape (r,), z's dtype and device

    Raises
    ------
    TypeError, ValueError
        `init` is none of the eight, `z` no vector, or `seed` no seed.

    Notes
    -----
    Table V and section III-C of arXiv 2410.13618.

    Examples
    --------
    >>> initial_diagonal("constant_zmean", torch.tensor([1.0, 3.0]))
    tensor([2., 2.])
    """
    check_choice(init, "init", INITIALIZATIONS)
    if not isinstance(z, Tensor) or z.ndim != 1:
        raise TypeError(f"z is {shown(z)}; accepted: a torch.Tensor of shape (r,)")
    seed = check_count(seed, "seed", largest=LARGEST_SEED)
    if init == "regular_ldu":
        return z.detach().clone()
    generator = torch.Generator("cpu").manual_seed(seed)
    values = z.detach().to("cpu", torch.float64)
    mean = values.mean()
    std = values.std() if len(values) > 1 else torch.zeros_like(mean)
    uniform = 2 * torch.rand(len(values), generator=generator, dtype=torch.float64, device="cpu") - 1
    normal = torch.randn(len(values), generator=generator, dtype=torch.float64, device="cpu")
    start = {
        "constant_zmean": mean.expand_as(values),
        "uniform_minus1_1": uniform,
        "uniform_zmean_half": uniform * mean / 2,
        "normal_0_1": normal,
        "normal_zmean_zstd": mean + std * normal,
        "zeros": torch.zeros_like(values),
        "ones": torch.ones_like(values),
    }[init]
    return start.to(z.device, z.dtype, copy=True)

"""Find the device of a survey, and bring matrices to it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import torch

from lowrank_ldu.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_Result = TypeVar("_Result")

CPU = torch.device("cpu")
# What Apple's devices and the libraries of CUDA say.
_WANT_OF_MEMORY = "out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory"


def usable_device(name: str) -> torch.device:
    """Return a device that torch can compute on here.

    Parameters
    ----------
    name : str
        As `SurveyOptions.device`, which says how it is written: "cuda" is the current one of them.

    Raises
    ------
    OptionError
        There is no such device, or torch was built without support of it.

    Examples
    --------
    >>> usable_device("cpu")
    device(type='cpu')
    """
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return CPU
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise OptionError(f"device is 'mps', and torch {torch.__version__} finds no GPU of Apple's; accepted: cpu")
        return torch.device("mps", 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise OptionError(f"device is {name!r}, and torch {torch.__version__} finds no CUDA device; accepted: cpu")
    if index and int(index) >= count:
        found = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise OptionError(f"device is {name!r}; accepted: {found}, or cpu")
    return torch.device("cuda", int(index) if index else torch.cuda.current_device())


def describe_device(device: torch.device) -> str:
    """Return a device in words, with its model where torch tells it.

    Examples
    --------
    >>> describe_device(CPU)
    'cpu'
    """
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def has_dtype(device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether a device computes in a dtype: Apple's have no float64."""
    return device.type != "mps" or dtype != torch.float64


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor in memory that a device copies from by itself, where it has such a way.

    Where the system gives no such memory the tensor is copied all the same, in more steps.
    """
    if device.type == "cuda":
        with suppress(RuntimeError):
            return tensor.pin_memory()
    return tensor


def brought(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device.

    Of pinned memory it is there before whatever the device is told to do next, and this process need not wait for it.
    """
    return tensor.to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is for want of a device's memory.

    Not all that its libraries raise then is of torch's own class.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WANT_OF_MEMORY)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def compute_there(
    compute: Callable[[list[torch.Tensor]], _Result],
    tensors: Sequence[torch.Tensor],
    device: torch.device,
    dtype: str | None = None,
) -> _Result | None:
    """Compute something from copies of tensors on a device, one at a time of a process.

    Parameters
    ----------
    compute : callable
        From the list of copies, which nothing else holds.
    tensors : sequence of torch.Tensor
        On the CPU.
    device : torch.device
    dtype : str, optional
        That is computed in, if another one than that of the tensors.

    Returns
    -------
    object or None
        None where the device has not the dtype or too little memory.

    Raises
    ------
    RuntimeError
        As of `compute`, but for want of memory.
    """
    if not has_dtype(device, torch.float64) and (
        dtype == "float64" or any(each.dtype == torch.float64 for each in tensors)
    ):
        return None
    try:
        with whole_products(device):
            return compute([brought(tensor, device) for tensor in tensors])
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # After the error, whose traceback holds tensors on the device.
    return None


@contextmanager
def whole_products(device: torch.device) -> Iterator[None]:
    """Have products of float32 on a GPU keep all digits for a while, whatever is set around it."""
    if device.type == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""A device that is none: tensors that say they are on a GPU, and compute on the CPU.

What the code does with tensors on a device is done in full, and refused where a device would refuse it: operations on
tensors of two devices, NumPy's look at their memory, more memory than there is; on Apple's float64, and the
decompositions that torch has not there.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE, NARROW = torch.device("cuda", 0), torch.device("mps", 0)
# A tensor of the host's may be copied to or from a device, and its numbers may be indices there.
_ACROSS = {torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.index, torch.ops.aten.index_put_}
# As torch says of MPS.
_MISSING = ("linalg_qr", "linalg_svd", "_linalg_svd", "linalg_eigh", "_linalg_eigh", "linalg_eigvalsh")


class PretendTensor(torch.Tensor):
    """A tensor that says it is elsewhere, around the one that holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held, device):
        # For torch itself it has no numbers, as there is no driver for the device.
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="meta", **layout)

    def __init__(self, held, device):
        self.held, self.place = held, device

    @property
    def device(self):
        return self.place

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    """Catch what makes tensors on the device from none that are there."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """Bring what is made of Python's numbers to the device, which torch does out of the other mode's sight."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in {torch.asarray, torch.tensor}:
            device = kwargs.pop("device", None)
            made = function(*args, **kwargs)
            return made if device is None else made.to(device)
        return function(*args, **kwargs)


class Watched:
    """How much memory the device has, and how many operations it was asked for."""

    def __init__(self):
        self.limit = float("inf")
        self.operations = 0


_watched = Watched()


def _compute(operation, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    pretended = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    device = pretended[0].place if pretended else torch.device("cpu")
    name = operation.overloadpacket.__name__
    if pretended and operation.overloadpacket not in _ACROSS:
        # A single number may be the host's.
        others = [each for each in tensors if getattr(each, "place", None) != device and each.dim()]
        assert not others, f"{operation} of tensors on {device} and elsewhere"
        if device == NARROW and name.startswith(_MISSING):
            raise NotImplementedError(f"The operator 'aten::{name}' is not currently implemented for the MPS device.")
    asked = kwargs.get("device")
    to = device if asked is None or torch.device(asked).type == "meta" else torch.device(asked)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = tree_map(lambda leaf: leaf.held if isinstance(leaf, PretendTensor) else leaf, (args, kwargs))
    found = operation(*held[0], **held[1])
    if torch.Tag.inplace_view in operation.tags:
        with no_dispatch():  # its shape changes with that of what it holds
            operation(*args, **kwargs)
    if to.type == "cpu":
        return found
    _watched.operations += 1
    return tree_map(lambda leaf: _dressed(leaf, to, pretended) if isinstance(leaf, torch.Tensor) else leaf, found)


def _dressed(tensor, device, pretended):
    if device == NARROW and tensor.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    if tensor.nbytes > _watched.limit:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tensor.nbytes} bytes.")
    # What was written to in place, or to `out`, is the tensor that was given.
    same = next((each for each in pretended if each.held is tensor), None)
    return PretendTensor(tensor, device) if same is None else same


@contextmanager
def pretending(*, limit=float("inf")):
    """Let this thread put tensors on the pretended devices, with so many bytes at most in each."""
    _watched.limit, _watched.operations = limit, 0
    with mock.patch.object(torch.cuda, "_lazy_init"), _Numbers(), _Pretending():
        yield _watched

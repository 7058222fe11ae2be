"""Read the initializers of an ONNX model."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo
from lowrank_ldu.checkpoints.safe_reading import LIBRARY_ERRORS, library_for, likely_cause, reason_of, refused_as
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

# torch's names of the types that it can hold.
_DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class OnnxReader(CheckpointReader):
    """Reader of the initializers of one ``.onnx`` file.

    The file itself is read whole, since a protocol buffer cannot be read otherwise; it holds at most 2 GB. Values that
    it keeps in files beside it are read one tensor at a time, and only from its own folder. Weights that the graph
    multiplies from the right, as ``MatMul`` and ``Gemm`` do, are stored as (in, out): `TensorInfo.order` says so.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    CheckpointError
        If the file is missing or not a whole ONNX model, or if the onnx library is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._onnx = library_for(path, "onnx")
        message = library_for(path, "google.protobuf.message")
        with refused_as(path, "ONNX model", (message.DecodeError, *LIBRARY_ERRORS)):
            graph = self._onnx.load(path, load_external_data=False).graph
        if not graph.node and not graph.initializer:
            # Any bytes that happen to be a message of unknown fields decode to an empty model.
            raise CheckpointError(f"{path}: not an ONNX model, or one without a graph; {likely_cause(path)}")
        orders = _orders(graph)
        self._stored: dict[str, Any] = {}
        tensors: list[TensorInfo] = []
        ignored = {_text(tensor.values.name): "sparse tensor" for tensor in graph.sparse_initializer}
        for tensor in graph.initializer:
            name, kind = _text(tensor.name), self._kind(tensor)
            if name in self._stored or name in ignored:
                raise CheckpointError(f"{path}: two initializers are called {name!r}")
            if kind not in _DTYPES or any(size < 0 for size in tensor.dims):
                ignored[name] = f"{kind} tensor of dimensions {list(tensor.dims)}"
                continue
            self._stored[name] = tensor
            dtype, shape = _DTYPES[kind], tuple(tensor.dims)
            order = orders.get(name, ())
            nbytes = math.prod(shape) * getattr(torch, dtype).itemsize
            tensors.append(
                TensorInfo(name, shape, dtype, str(path), nbytes, order=order if len(order) == len(shape) else ())
            )
        super().__init__(path, tensors, ignored)

    def _kind(self, tensor: Any) -> str:
        try:
            return str(self._onnx.TensorProto.DataType.Name(tensor.data_type))
        except ValueError:
            return f"type {tensor.data_type}"

    def _read(self, info: TensorInfo) -> torch.Tensor:
        self._check_length(info)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of keys that are not known; what matters is refused
                values = self._onnx.numpy_helper.to_array(self._stored[info.name], str(self.path.parent))
        except Exception as error:
            # The checker's own error has no public base; whatever it refuses, the tensor cannot be read.
            raise CheckpointError(f"{self.path}: tensor {info.name!r} cannot be read ({reason_of(error)})") from error
        if tuple(values.shape) != info.shape:
            raise CheckpointError(f"{self.path}: tensor {info.name!r} has shape {values.shape}, and not {info.shape}")
        if info.dtype == "bfloat16":
            return torch.from_numpy(values.view("int16").copy()).view(torch.bfloat16)
        return torch.from_numpy(values.copy())

    def _check_length(self, info: TensorInfo) -> None:
        """Refuse a tensor with too many or few bytes.

        The values are in another file, and the library reads as many as it is told.
        """
        tensor = self._stored[info.name]
        if tensor.data_location != self._onnx.TensorProto.EXTERNAL:
            return
        said = {entry.key: entry.value for entry in tensor.external_data}
        if "length" not in said:  # it would be all of the file
            tensor.external_data.add(key="length", value=str(info.nbytes))
        elif said["length"] != str(info.nbytes):
            raise CheckpointError(
                f"{self.path}: tensor {info.name!r} cannot be read (it has {info.nbytes} bytes, and is said to have "
                f"{said['length']!r} in another file)"
            )

    def close(self) -> None:
        """Let go of the model."""
        super().close()
        self._stored.clear()


def _text(name: Any) -> str:
    # Names that are no UTF-8 come as bytes.
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


def _orders(graph: Any) -> dict[str, tuple[int, ...]]:
    """Return the axes of weights in another order.

    The axes give the order (out, in, kernel...) of the weights that the graph uses in another one.
    """
    orders: dict[str, tuple[int, ...]] = {}
    for node in graph.node:
        if len(node.input) < 2:
            continue
        weight = node.input[1]
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not transposed):
            orders.setdefault(weight, (1, 0))
        elif node.op_type == "ConvTranspose":
            orders.setdefault(weight, (1, 0, 2, 3))
    return orders

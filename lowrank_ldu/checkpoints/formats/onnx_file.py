"""Read the weights of an ONNX model."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.checkpoints.reader import NO_WEIGHT, CheckpointReader, TensorInfo, Unread
from lowrank_ldu.checkpoints.safe_reading import LIBRARY_ERRORS, library_for, likely_cause, reason_of, refused_as
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
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


# Other types that nobody keeps weights in.
_NO_WEIGHTS = ("STRING", "UINT16", "UINT32", "UINT64")
_RECURRENT = ("LSTM", "GRU", "RNN")
# What takes a weight, and what it does as; the latter of ONNX Runtime's.
_OPERATIONS = {
    **{name: name for name in ("MatMul", "Gemm", "Conv", "ConvTranspose", *_RECURRENT)},
    "FusedMatMul": "MatMul",
    "FusedGemm": "Gemm",
    "FusedConv": "Conv",
}
_COPIES = ("Identity", "Cast")
_BIAS = "bias"
# There and back; a damaged file may say any number.
_MOST_DIRECTIONS = 2


class OnnxReader(CheckpointReader):
    """Reader of the initializers and constants of one ``.onnx`` file.

    The file itself is read whole, since a protocol buffer cannot be read otherwise; it holds at most 2 GB. Values that
    it keeps in files beside it are read one tensor at a time, and only from its own folder. Weights that the graph
    multiplies from the right, as ``MatMul`` and ``Gemm`` do, are stored as (in, out): `TensorInfo.order` says so, and
    what is a convolution. Weights of ``LSTM``, ``GRU`` and ``RNN`` are listed direction by direction, ``name[0]``.

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
        self._stored: dict[str, Any] = {}
        self._places: dict[str, tuple[str, int | None]] = {}
        tensors: list[TensorInfo] = []
        ignored: dict[str, str] = {}
        for prefix, part in self._graphs(graph):
            uses = _uses(part, self._onnx.AttributeProto.GRAPH)
            ignored |= {
                prefix + _text(tensor.values.name): Unread("sparse tensor") for tensor in part.sparse_initializer
            }
            for given, tensor in (*((tensor.name, tensor) for tensor in part.initializer), *self._constants(part)):
                name, kind = prefix + _text(given), self._kind(tensor)
                if name in self._stored or name in ignored:
                    raise CheckpointError(f"{path}: two initializers or constants are called {name!r}")
                if kind not in _DTYPES or any(size < 0 for size in tensor.dims):
                    what = f"{kind} tensor of dimensions {list(tensor.dims)}"
                    ignored[name] = what if kind in _NO_WEIGHTS or len(tensor.dims) < 2 else Unread(what)
                    continue
                self._stored[name] = tensor
                dtype, shape, use = _DTYPES[kind], tuple(tensor.dims), uses.get(given, "")
                nbytes = math.prod(shape) * getattr(torch, dtype).itemsize
                reason = f"biases of a recurrent layer{NO_WEIGHT}" if use == _BIAS else ""
                order = _order(use, len(shape))
                info = TensorInfo(name, shape, dtype, str(path), nbytes, order=order, reason=reason)
                tensors += self._parts(info, use)
        self.other_files = tuple(sorted(set(self._external_files(path))))
        super().__init__(path, tensors, ignored)

    def _external_files(self, path: Path) -> Iterator[Path]:
        """Yield the files in the model's folder that hold values of it; others are refused when they are read."""
        for tensor in self._stored.values():
            if tensor.data_location == self._onnx.TensorProto.EXTERNAL:
                location = next((_text(entry.value) for entry in tensor.external_data if entry.key == "location"), "")
                parsed = PureWindowsPath(location)
                if parsed.parts and not parsed.anchor and ".." not in parsed.parts:
                    with suppress(OSError, ValueError):  # of names that no file can have
                        if (path.parent / location).is_file():
                            yield path.parent / location

    def _graphs(self, graph: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Yield a graph and those that its nodes choose between or repeat, with what precedes their names."""
        yield prefix, graph
        times = Counter(node.name for node in graph.node)
        for place, node in enumerate(graph.node):
            named = node.name and times[node.name] == 1
            for attribute in node.attribute:
                if attribute.type == self._onnx.AttributeProto.GRAPH:
                    called = _text(node.name) if named else f"{node.op_type}_{place}"
                    yield from self._graphs(attribute.g, f"{prefix}{called}.{attribute.name}/")

    def _constants(self, graph: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the name and the tensor of constant nodes, as which some exporters write weights."""
        for node in graph.node:
            if node.op_type == "Constant" and len(node.output) == 1:
                for attribute in node.attribute:
                    if attribute.name == "value" and attribute.type == self._onnx.AttributeProto.TENSOR:
                        yield node.output[0], attribute.t

    def _parts(self, info: TensorInfo, use: str) -> Iterator[TensorInfo]:
        """Yield what a tensor is listed as: itself, or the directions of a recurrent layer."""
        if use not in _RECURRENT or len(info.shape) != 3 or not 1 <= info.shape[0] <= _MOST_DIRECTIONS:
            self._places[info.name] = info.name, None
            yield info
            return
        count, *shape = info.shape
        for row in range(count):
            part = f"{info.name}[{row}]"
            self._places[part] = info.name, row
            yield replace(info, name=part, shape=tuple(shape), nbytes=info.nbytes // count, order=(), part_of=info.name)

    def _kind(self, tensor: Any) -> str:
        try:
            return str(self._onnx.TensorProto.DataType.Name(tensor.data_type))
        except ValueError:
            return f"type {tensor.data_type}"

    def _read(self, info: TensorInfo) -> torch.Tensor:
        name, row = self._places[info.name]
        tensor = self._stored[name]
        shape = tuple(tensor.dims)
        self._check_length(info, tensor)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of keys that are not known; what matters is refused
                values = self._onnx.numpy_helper.to_array(tensor, str(self.path.parent))
        except Exception as error:
            # The checker's own error has no public base; whatever it refuses, the tensor cannot be read.
            raise CheckpointError(f"{self.path}: tensor {info.name!r} cannot be read ({reason_of(error)})") from error
        if tuple(values.shape) != shape:
            raise CheckpointError(f"{self.path}: tensor {name!r} has shape {values.shape}, and not {shape}")
        if row is not None:
            values = values[row]
        if info.dtype == "bfloat16":
            return torch.from_numpy(values.view("int16").copy()).view(torch.bfloat16)
        return torch.from_numpy(values.copy())

    def _check_length(self, info: TensorInfo, tensor: Any) -> None:
        """Refuse a tensor with too many or few bytes.

        The values are in another file, and the library reads as many as it is told.
        """
        if tensor.data_location != self._onnx.TensorProto.EXTERNAL:
            return
        said = {entry.key: entry.value for entry in tensor.external_data}
        nbytes = math.prod(tensor.dims) * getattr(torch, info.dtype).itemsize
        if "length" not in said:  # it would be all of the file
            tensor.external_data.add(key="length", value=str(nbytes))
        elif said["length"] != str(nbytes):
            raise CheckpointError(
                f"{self.path}: tensor {info.name!r} cannot be read (it has {nbytes} bytes, and is said to have "
                f"{said['length']!r} in another file)"
            )

    def close(self) -> None:
        """Let go of the model."""
        super().close()
        self._stored.clear()


def _text(name: Any) -> str:
    # Names that are no UTF-8 come as bytes.
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


def _uses(graph: Any, subgraph: int) -> dict[Any, str]:
    """Return the operation that uses a tensor as its weight, by the tensor's name.

    The first one. What an operation copies is used as the copy is.

    Parameters
    ----------
    graph : GraphProto
    subgraph : int
        The type of attributes that are graphs.
    """
    uses: dict[Any, str] = {}
    copies: dict[Any, Any] = {}
    for node in graph.node:
        for tensor, use in (*_used_inside(node, subgraph), *_used_by(node)):
            uses.setdefault(tensor, use)
        if node.op_type in _COPIES and node.input and node.output:
            copies[node.output[0]] = node.input[0]
    for copy in reversed(copies):  # a copy of a copy comes after it
        if copy in uses:
            uses.setdefault(copies[copy], uses[copy])
    return uses


def _used_inside(node: Any, subgraph: int) -> Iterator[tuple[Any, str]]:
    """Yield the uses of tensors by graphs inside a node, which see those around them, but for names of their own."""
    for attribute in node.attribute:
        if attribute.type == subgraph:
            own = {tensor.name for tensor in attribute.g.initializer}
            own |= {name for inner in attribute.g.node for name in inner.output}
            yield from ((name, use) for name, use in _uses(attribute.g, subgraph).items() if name not in own)


def _used_by(node: Any) -> Iterator[tuple[Any, str]]:
    """Yield the weights of a node, and their use; of a ``Gemm`` that takes its weight as (out, in), none."""
    operation = _OPERATIONS.get(node.op_type)
    weights = 3 if operation in _RECURRENT else 2
    if operation is None or any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        return
    yield from ((weight, operation) for weight in node.input[1:weights])
    if operation in _RECURRENT:
        yield from ((bias, _BIAS) for bias in node.input[weights : weights + 1])


def _order(use: str, dimensions: int) -> tuple[int, ...]:
    """Return the stored axes as (out, in, kernel...) of a weight with that use, where its use tells."""
    if use in {"MatMul", "Gemm"} and dimensions == 2:
        return (1, 0)
    if use == "ConvTranspose" and dimensions > 2:
        return (1, 0, *range(2, dimensions))
    # As it is stored, but said: a convolution of one dimension has as many axes as a stack of matrices.
    return tuple(range(dimensions)) if use == "Conv" and dimensions > 2 else ()

"""Find layers whose weight a model reads without calling them.

They are found in the source of the modules around them. An adapter beside such a layer never runs, or runs on one of
two paths: Mamba's mixers hand the weights of conv1d and dt_proj to a kernel, WavLM's attention those of its
projections.
"""

from __future__ import annotations

import ast
import inspect
import linecache
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lowrank_ldu.nn.kinds import READ_PAST_ADAPTERS
from lowrank_ldu.nn.modules import plain_name, unwrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

# Attributes of a weight that are the same with an adapter and without.
_NO_VALUES = {
    *(
        "device",
        "dtype",
        "dim",
        "element_size",
        "get_device",
        "is_contiguous",
        "is_cpu",
        "is_cuda",
        "is_floating_point",
    ),
    *("is_meta", "layout", "names", "ndim", "nelement", "numel", "requires_grad", "requires_grad_", "shape", "size"),
    *("stride", "untyped_storage", "data_ptr"),
}
_NO_VALUES_OF = {"hasattr", "id", "isinstance", "len", "type"}

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Read(NamedTuple):
    """Weight that a module reads.

    Attributes
    ----------
    path : tuple of str
        The attributes that lead to its layer from the module that reads it.
    method : str
        That reads it, with its class.
    called : bool
        Whether the layer is called as well, there or in another method.
    """

    path: tuple[str, ...]
    method: str
    called: bool


def reader_of(model: nn.Module, name: str) -> str | None:
    """Return the method that reads a layer's weight, or None.

    It runs in the forward of `model` and does not call the layer.

    Parameters
    ----------
    model : nn.Module
    name : str
        Qualified name of the layer.

    Returns
    -------
    str or None
        Such as "MambaMixer.slow_forward". None, too, where there is no source to look at.

    Examples
    --------
    >>> from torch import nn
    >>> attention = nn.MultiheadAttention(8, 2)
    >>> reader_of(attention, "out_proj")
    'MultiheadAttention.forward'
    """
    return next((read.method for read, always in _reads_of_layer(model, name) if always), None)


def occasional_reader_of(model: nn.Module, name: str) -> str | None:
    """Return the method that sometimes reads a layer's weight, or None.

    It reads the weight on one path and calls the layer on another. One is "RecurrentGemmaRecurrentBlock.forward", which
    calls a convolution for a prompt and reads its weight for the tokens that follow.
    """
    return next((read.method for read, always in _reads_of_layer(model, name) if not always), None)


def _reads_of_layer(model: nn.Module, name: str) -> Iterator[tuple[Read, bool]]:
    """Yield every read of a layer's weight.

    With it comes whether an adapter of the layer is passed by for certain.
    """
    # Another method's layer may stand around the one that the source speaks of.
    names, module = [child for child in plain_name(name, model).split(".") if child != "base_layer"], unwrapped(model)
    for depth, child in enumerate(names):
        rest = tuple(names[depth:])
        if len(rest) == 1 and isinstance(module, READ_PAST_ADAPTERS):
            yield Read(rest, f"{type(module).__name__}.forward", called=False), True
        reads = weight_reads(type(module))
        # A method that calls a layer may read its weight where a setting asks for it. A method that also reads the
        # weight of another layer, and never calls that one, hands both to a kernel on one path, and calls some layers
        # on the other.
        always = any(not read.called for read in reads)
        yield from ((read, always) for read in reads if read.path == rest)
        module = unwrapped(module.get_submodule(child))
        while "base_layer" in module._modules:  # noqa: SLF001
            module = unwrapped(module.get_submodule("base_layer"))


_reads: dict[type, tuple[Read, ...]] = {}


def weight_reads(kind: type) -> tuple[Read, ...]:
    """Return the weights of submodules that a class reads.

    They are read in its forward and in the methods that this uses.
    """
    found = _reads.get(kind)
    if found is None:
        found = _reads[kind] = () if _is_torchs(kind) else tuple(_reads_of(kind))
    return found


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _reads_of(kind: type) -> Iterator[Read]:
    pending, done = ["forward"], set()
    found: dict[tuple[str, ...], str] = {}
    called = set()
    while pending:
        method = pending.pop()
        if method in done:
            continue
        done.add(method)
        for function in _definitions(kind, method):
            own = function.args.posonlyargs + function.args.args
            if not own:
                continue
            parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
            for node in ast.walk(function):
                path = _path(node, own[0].arg)
                if len(path) == 1:
                    pending.append(path[0])
                elif len(path) > 1 and path[-1] == "weight" and _takes_values(node, parents):
                    found.setdefault(path[:-1], f"{kind.__name__}.{method}")
                if isinstance(node, ast.Call):
                    called.add(_path(node.func, own[0].arg))
    yield from (Read(path, where, path in called) for path, where in found.items())


def _path(node: ast.AST, start: str) -> tuple[str, ...]:
    """Return ("a", "b") for the expression start.a.b.

    Any other expression gives ().
    """
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    return tuple(attributes) if isinstance(node, ast.Name) and node.id == start else ()


def _takes_values(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    parent = parents[node]
    if isinstance(parent, ast.Attribute):
        return parent.attr not in _NO_VALUES
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name):
        return parent.func.id not in _NO_VALUES_OF
    if isinstance(parent, ast.Compare):
        return not all(isinstance(operator, ast.Is | ast.IsNot) for operator in parent.ops)
    # It is not read where it is written to, or stands as a statement of its own.
    return isinstance(getattr(node, "ctx", None), ast.Load) and not isinstance(parent, ast.Expr)


def _definitions(kind: type, method: str) -> Iterator[_Function]:
    """Yield the source of a method of a class.

    The methods that it may call by super() come with it.
    """
    for base in kind.__mro__:
        function = vars(base).get(method)
        if _is_torchs(base) or not callable(function):
            continue
        source = _source(function)
        if source is None:
            return
        yield source
        if not any(isinstance(node, ast.Name) and node.id == "super" for node in ast.walk(source)):
            return


def _source(function: Any) -> _Function | None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return None
    return _functions(code.co_filename).get((code.co_name, code.co_firstlineno))


@lru_cache(maxsize=4)
def _functions(file: str) -> dict[tuple[str, int], _Function]:
    """Return the functions of a source file by name and first line."""
    source = "".join(linecache.getlines(file))
    if ".weight" not in source:
        return {}
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    return {
        (node.name, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])): node
        for node in ast.walk(tree)
        if isinstance(node, _Function)
    }

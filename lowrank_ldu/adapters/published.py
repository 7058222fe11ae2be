"""Import adapters of the method's published code.

The code is github.com/SKDDJ/LoLDU. It saves the result of its `get_loldu_state_dict`, or a state dict.
"""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from lowrank_ldu.adapters.input_files import check_regular
from lowrank_ldu.adapters.stored_layer import check_finite_update
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.checkpoints.safe_reading import reason_of
from lowrank_ldu.decomposition import LDU, ldu
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn import AdapterOptions, LDULayer
from lowrank_ldu.nn.calls import observe
from lowrank_ldu.nn.injection import replace_module, restore_trainable_on_error
from lowrank_ldu.nn.kinds import EmbeddingKind, LinearKind, kind_of
from lowrank_ldu.nn.modules import check_model
from lowrank_ldu.nn.weights import weight_matrix
from lowrank_ldu.pickles import check_calls
from lowrank_ldu.untrusted import check_inflated
from lowrank_ldu.validation import check_choice, check_count, check_positive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from lowrank_ldu.nn import Initialization

PublishedInit = Literal["lu", "uniform", "s_uniform", "normal", "s_normal", "constant", "ones", "zeros"]
PUBLISHED_INITS: tuple[PublishedInit, ...] = get_args(PublishedInit)

# Starts of z that the residual was computed with. For these names the published code writes the start into the memory
# of the factorization's diagonal, and then computes the residual from that memory. For the other names it computes the
# residual from the diagonal itself, so that the start has no part in the weight once z is known.
_START_IN_RESIDUAL: dict[str, Initialization] = {
    "constant": "constant_zmean",
    "uniform": "uniform_zmean_half",
    "normal": "normal_zmean_zstd",
}
_DRAWN = ("uniform", "normal")
_KEY = re.compile(r"(?P<layer>.+)\.parametrizations\.weight\.(?P<index>\d+)\.vector_z")


@dataclass(frozen=True)
class _Published:
    """Hold a state's numbers of one layer.

    They are z and, in the state of a whole model, sigma and the residual.
    """

    name: str
    z: Tensor
    sigma: float | None
    residual: Tensor | None


def import_published(
    model: nn.Module,
    state: Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    init: PublishedInit = "lu",
    alpha: float = 1.0,
    rank: int | None = None,
    train_sigma: bool = False,
) -> list[str]:
    """Put LoLDU layers with published numbers into a base model.

    They compute the same as the published code's layers. The model is changed in place.

    Parameters
    ----------
    model : nn.Module
        The base model, as it was before `add_loldu`.
    state : dict of str to Tensor, or path
        What `get_loldu_state_dict` gave, which is `vector_z` of each layer and nothing else, or the state dict of the
        whole model; or a file of one, .safetensors or what torch.save wrote (read with weights_only). Entries that
        belong to no LoLDU layer are left aside: the model is to hold them already.
    init : str
        `init_method` of the training: "lu", "constant", "ones", "zeros", "s_uniform", "s_normal"; "uniform" and
        "normal" only with the state dict of the whole model.
    alpha : float
        `lora_alpha` of the training.
    rank : int, optional
        `rank` of the training, which with alpha gives the scale alpha / rank. The length of z if not given, which it is
        unless the rank was larger than the weight's smaller side.
    train_sigma : bool
        Whether sigma is to be trained from here on; the published code does not.

    Returns
    -------
    list of str
        Qualified names of the layers that were replaced.

    Raises
    ------
    TypeError, ValueError
        An option is not accepted.
    AdapterError
        The file cannot be read; it holds no `vector_z`; a layer is missing in the model, is no nn.Linear or
        nn.Embedding, or does not fit; the published code itself divides by zero on its weight; or the numbers do not
        determine the layer. The model is then unchanged.

    Notes
    -----
    A state has no pivots: they are searched again, by the same LU decomposition of the whole weight in float32. On a
    machine whose LAPACK decides near ties in another way z belongs to other terms, as it does in the published code.
    A state has no trace of its base, either: a changed one is not noticed.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(6, 4))
    >>> state = {"0.parametrizations.weight.0.vector_z": torch.ones(4)}
    >>> import_published(model, state)
    ['0']
    >>> [round(float(z), 4) for z in model[0].z.detach()]
    [1.0, 1.0, 1.0, 1.0]
    """
    check_model(model)
    check_choice(init, "init", PUBLISHED_INITS)
    alpha = check_positive(alpha, "alpha")
    rank = None if rank is None else check_count(rank, "rank", 1)
    options = AdapterOptions(init=_START_IN_RESIDUAL.get(init, "regular_ldu"), train_sigma=train_sigma)
    published = _published(_tensors(state))
    with restore_trainable_on_error(model):
        layers = {
            each.name: _layer(model, each, options, alpha / (rank or len(each.z)), drawn=init in _DRAWN)
            for each in published
        }
    for name, layer in layers.items():
        replace_module(model, name, layer)
    observe(model)
    return list(layers)


def _tensors(state: Mapping[str, Tensor] | str | os.PathLike[str]) -> Mapping[str, Tensor]:
    if isinstance(state, (str, os.PathLike)):
        path, where = Path(state), f"{state}: "
        check_regular(path, "a state dict in .safetensors or of torch.save")
        try:
            loaded = _stored_tensors(path) if path.suffix == ".safetensors" else _unpickled(path)
        except Exception as error:
            # A damaged pickle raises whatever its bytes lead to.
            raise AdapterError(
                f"{path}: not a state dict in .safetensors or of torch.save ({reason_of(error)})"
            ) from error
    else:
        loaded, where = state, ""
    if not hasattr(loaded, "items") or not all(
        isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in loaded.items()
    ):
        raise AdapterError(f"{where}the state is a {type(loaded).__name__}; accepted: a mapping of names to tensors")
    return loaded


def _stored_tensors(path: Path) -> dict[str, Tensor]:
    # The file is not mapped, as the library's function does it: a file that becomes shorter would end the process.
    with open_checkpoint(path) as reader:
        return {info.name: reader.load(info.name) for info in reader.tensors}


def _unpickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_inflated(archive, path.stat().st_size)
    check_calls(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _published(tensors: Mapping[str, Tensor]) -> list[_Published]:
    found = []
    for key, z in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            continue
        name, prefix = match["layer"], key.removesuffix("vector_z")
        if match["index"] != "0":
            raise AdapterError(f"layer {name!r} has parametrization {match['index']}; accepted: a single one, 0")
        if z.ndim != 1 or not len(z) or not z.is_floating_point() or not bool(z.float().isfinite().all()):
            raise AdapterError(
                f"layer {name!r}: vector_z is {tuple(z.shape)}; accepted: (r,), floating and finite in float32"
            )
        scale = tensors.get(f"{prefix}scaling_factor")
        residual = tensors.get(f"{name}.parametrizations.weight.original")
        found.append(_Published(name, z, None if scale is None else float(scale), residual))
    if not found:
        raise AdapterError(
            f"the state holds no vector_z among {len(tensors)} tensors; accepted: names such as "
            "'encoder.query.parametrizations.weight.0.vector_z'"
        )
    return found


def _layer(model: nn.Module, published: _Published, options: AdapterOptions, scale: float, *, drawn: bool) -> LDULayer:
    name, z = published.name, published.z
    try:
        base_layer = model.get_submodule(name)
    except AttributeError as error:
        raise AdapterError(f"layer {name!r}: the model ({type(model).__name__}) has no such module") from error
    try:
        if kind_of(base_layer) not in {LinearKind, EmbeddingKind}:
            raise AdapterError(f"layer {name!r} is a {type(base_layer).__name__}; accepted: nn.Linear, nn.Embedding")
        matrix = weight_matrix(base_layer)
        # The published code factors the whole matrix, and then takes the first terms. A search among fewer columns at
        # once rounds differently, and may decide near ties differently.
        whole = ldu(matrix)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"layer {name!r}: {error}") from error
    if not 1 <= len(z) <= whole.rank:
        raise AdapterError(f"layer {name!r}: vector_z has {len(z)} entries; accepted: 1 to {whole.rank}")
    if bool(whole.zero_pivots.any()):
        raise AdapterError(
            f"layer {name!r}: its weight has a pivot that is zero, where the published code divides by it and computes "
            "NaN; accepted: weights of full rank"
        )
    factors = whole.truncate(len(z))
    layer = LDULayer(base_layer, options=replace(options, alpha=scale * len(z)), factors=factors)
    if drawn:
        layer.adapter.set_initial_diagonal(_drawn_start(published, matrix, factors, scale), layer.factors)
    layer.adapter.set_z(z.to(layer.offset), layer.factors)
    if published.sigma is not None:
        with torch.no_grad():
            layer.sigma.fill_(published.sigma)
    check_finite_update(name, layer.factors, layer.delta)
    return layer


def _drawn_start(published: _Published, matrix: Tensor, factors: LDU, scale: float) -> Tensor:
    """Return the random start of z.

    Only the residual W - scale P L diag(start) U still has it.
    """
    name, residual = published.name, published.residual
    if residual is None:
        raise AdapterError(
            f"layer {name!r}: the start of z was drawn at random, and the weight depends on it; accepted: the state "
            "dict of the whole model, whose residual has it"
        )
    if residual.shape != matrix.shape:
        raise AdapterError(
            f"layer {name!r}: the residual has shape {tuple(residual.shape)}; accepted: {tuple(matrix.shape)}"
        )
    r = factors.rank
    removed = (matrix.double() - residual.to(matrix.device).double()) / scale
    lower, upper = factors.lower[:r].double(), factors.upper[:, :r].double()
    block = torch.linalg.solve_triangular(lower, removed[factors.permutation[:r], :r], upper=False, unitriangular=True)
    start: Tensor = torch.linalg.solve_triangular(upper, block, upper=True, left=False, unitriangular=True).diagonal()
    return start

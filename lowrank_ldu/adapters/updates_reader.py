"""Read the updates that a stored adapter makes of its base's weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.adapters.bases import find_bases_of
from lowrank_ldu.adapters.input_files import checked_path
from lowrank_ldu.adapters.loading import read_adapter
from lowrank_ldu.adapters.peft_folder import PEFT_CONFIG
from lowrank_ldu.checkpoints.adapter_folder import CONFIG_FILE, PEFT_WEIGHTS, WEIGHTS_FILE
from lowrank_ldu.checkpoints.reader import TensorInfo, Unread, Update, UpdatesReader
from lowrank_ldu.errors import AdapterError, CheckpointError
from lowrank_ldu.nn.update import updated_matrix
from lowrank_ldu.validation import check_flag, dtype_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.adapters.stored_layer import AdapterFile, StoredLayer
    from lowrank_ldu.nn.base_identity import BaseCheck
    from lowrank_ldu.nn.basis import FittedBasis


def open_updates(
    path: str | os.PathLike[str],
    *,
    basis: FittedBasis | str | os.PathLike[str] | None = None,
    accept_other_base: bool = False,
) -> AdapterUpdates:
    """Open a stored adapter for the updates that it makes, to be compared with its base.

    Parameters
    ----------
    path : path
        Folder that `save_adapter` wrote, or `save_pretrained` of a PEFT model with a `LolduConfig`.
    basis : FittedBasis or path, optional
        As for `load_adapter`.
    accept_other_base : bool
        Take weights that are not those of training as they are; what is compared with them says how far off they are.

    Returns
    -------
    AdapterUpdates
        For `lowrank_ldu.analysis.compare`, which closes it.

    Raises
    ------
    TypeError
        `path` is no path, `basis` no basis and no path, or `accept_other_base` no bool.
    AdapterError
        A file is missing, damaged or changed, or is not of such an adapter; or its fitted basis is not found.

    Examples
    --------
    >>> import tempfile
    >>> from torch import nn
    >>> from lowrank_ldu.adapters import save_adapter
    >>> from lowrank_ldu.nn import inject
    >>> model = nn.Sequential(nn.Linear(6, 5))
    >>> weight = model[0].weight.detach().clone()
    >>> _ = inject(model, ["0"], rank=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_adapter(model, folder)
    ...     with open_updates(folder) as updates:
    ...         print([(info.name, info.shape, info.stored_as) for info in updates.tensors])
    ...         update = updates.update_of("0", weight).matrix
    [('0', (5, 6), 'LoLDU of rank 2')]
    >>> update.shape
    torch.Size([5, 6])
    """
    folder, accepted = checked_path(path), check_flag(accept_other_base, "accept_other_base")
    adapter = read_adapter(folder)
    find_bases_of(adapter, basis)
    return AdapterUpdates(folder, adapter, accept_other_base=accepted)


class AdapterUpdates(UpdatesReader):
    """Reader of the updates of a LoLDU adapter: W_adapted - W_base of each layer, by the layer's name.

    PEFT's files say nothing of a weight's shape: there it is empty.

    Parameters
    ----------
    folder : Path
    adapter : AdapterFile
        Whose fitted bases layers know.
    accept_other_base : bool
        As for `open_updates`.
    """

    def __init__(self, folder: Path, adapter: AdapterFile, *, accept_other_base: bool = False) -> None:
        self.accepts_other_base = accept_other_base
        self._policy: BaseCheck = "warn" if accept_other_base else "error"
        of_peft = os.path.lexists(folder / PEFT_CONFIG)
        self.other_files = (folder / (PEFT_CONFIG if of_peft else CONFIG_FILE),)
        self._layers = dict(_by_every_name(adapter))
        file = str(folder / (PEFT_WEIGHTS if of_peft else WEIGHTS_FILE))
        infos = [_info(name, layer, adapter, file) for name, layer in self._layers.items()]
        whole = {
            name: Unread(f"{dtype_name(tensor)} tensor that was trained whole, and is no update")
            for name, tensor in adapter.module_tensors.items()
        }
        super().__init__(folder, infos, whole)

    def update_of(self, name: str, weight: Tensor) -> Update:
        """Return the update of one weight.

        Parameters
        ----------
        name : str
            Of a layer, as listed in `tensors`.
        weight : Tensor, shape (m, n)
            The base weight as a matrix (out, in), in the dtype in which it is stored.

        Returns
        -------
        Update
            In float32, or in float64 if `weight` is.

        Raises
        ------
        CheckpointError
            The weight is not the one that the adapter was trained on, or the update not the one of training, and that
            was not accepted; or the weight cannot be factored, or the update is not finite.
        """
        self.info(name)
        layer = self._layers[name]
        # The caller knows which weight it is; and what is true of many is said in the same words.
        prefix = f"layer {layer.name!r}: "
        try:
            held, deviation = layer.rebuild(weight, self._policy)
        except (AdapterError, TypeError) as error:
            raise CheckpointError(str(error).removeprefix(prefix)) from error
        with torch.no_grad():
            update = updated_matrix(held.factors, held.delta)
        return Update(update, None if deviation is None else str(deviation).removeprefix(prefix))


def _by_every_name(adapter: AdapterFile) -> Iterator[tuple[str, StoredLayer]]:
    """Yield each layer by its name, and by those that the model had it under as well."""
    for name, layer in adapter.layers.items():
        yield name, layer
        for other in adapter.shared.get(name, ()):
            yield other, layer


def _info(name: str, layer: StoredLayer, adapter: AdapterFile, file: str) -> TensorInfo:
    shape: tuple[int, ...] = layer.record.shape if any(layer.record.shape) else ()
    own = adapter.base_weights.get(layer.name)
    if own is not None:  # perhaps with more rows than the base has
        shape = tuple(layer.kind.as_matrix(own).shape)
    nbytes = sum(tensor.nbytes for tensor in layer.tensors.values())
    return TensorInfo(name, shape, "float32", file, nbytes, f"LoLDU of rank {layer.record.options.rank}")

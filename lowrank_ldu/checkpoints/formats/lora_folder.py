"""Read the folder of a LoRA adapter.

PEFT saves such folders. What is read are the updates of the weights that the adapter changes.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from lowrank_ldu.checkpoints.model_config import ADAPTER_CONFIGURATION
from lowrank_ldu.checkpoints.reader import NO_WEIGHT, CheckpointReader, TensorInfo, Unread
from lowrank_ldu.checkpoints.safe_reading import reason_of
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.patterns import Patterns

if TYPE_CHECKING:
    import torch

    from lowrank_ldu.checkpoints.remote.path import Place

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>|embedding_)(?P<letter>[AB])(\.weight)?")
# Initializations that subtract the first factors from the base weight, by PEFT's names; some end in a number.
_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
# Variants whose layers do something else than to add scaling B A.
_OTHER_LAYERS = ("use_qalora", "use_bdlora", "kasa_config")
# What PEFT's own model puts before the names of the adapted one.
_WRAPPER = "base_model.model."
# What follows a module's name where an adapter has something of it.
_OF_MODULE = re.compile(r"\.(lora_\w+|modules_to_save|token_adapter)(\..*)?$")
_FLOATS = ("float64", "float32", "float16", "bfloat16")


class _Pair(NamedTuple):
    """Hold two factors and their scaling.

    The factors are a (r, in...) and b (out, r...).
    """

    a: TensorInfo
    b: TensorInfo
    scaling: float
    embedding: bool


class LoraReader(CheckpointReader):
    """Reader of the updates of a LoRA adapter.

    An update is scaling B A, (out, in) and float32, called as the module it adapts.

    Parameters
    ----------
    path : pathlib.Path or RemotePath
        The folder.
    config : dict
        Of `adapter_config`, with the ``peft_type`` LORA.
    reader : CheckpointReader
        Of the tensors that are stored there; closed with this one.

    Raises
    ------
    CheckpointError
        An option that the updates depend on is not what PEFT accepts.
    """

    holds_updates = True

    def __init__(self, path: Place, config: dict[str, Any], reader: CheckpointReader) -> None:
        self._reader = reader
        try:
            pairs, ignored = _pairs(config, reader.tensors)
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            reader.close()
            raise CheckpointError(
                f"{path / ADAPTER_CONFIGURATION}: target_parameters, lora_alpha or alpha_pattern is not what PEFT "
                f"accepts ({reason_of(error)})"
            ) from error
        self._pairs = pairs
        super().__init__(path, (_info(name, pair) for name, pair in pairs.items()), reader.ignored | ignored)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        pair = self._pairs[info.name]
        a, b = (self._reader.load(factor.name).float() for factor in (pair.a, pair.b))
        update = (b.flatten(1) @ a.flatten(1)).mul_(pair.scaling)
        return (update.T if pair.embedding else update).reshape(info.shape)

    def close(self) -> None:
        """Close the reader of the factors."""
        super().close()
        self._reader.close()


def _pairs(config: dict[str, Any], tensors: list[TensorInfo]) -> tuple[dict[str, _Pair], dict[str, str]]:
    factors: dict[tuple[str, str], dict[str, TensorInfo]] = {}
    ignored = {}
    for info in tensors:
        found = _FACTOR.fullmatch(info.name)
        if found is None or info.dtype not in _FLOATS:
            whole = "" if ".lora_" in info.name else ", as of a module that was trained whole"
            what = f"{info.dtype} tensor that is no factor of an update{whole}"
            ignored[info.name] = Unread(what) if "float" in info.dtype else f"{what}{NO_WEIGHT}"
        else:
            factors.setdefault((found["module"], found["kind"]), {})[found["letter"]] = info
    decomposed = {name.partition(".lora_magnitude_vector")[0] for name in ignored if ".lora_magnitude_vector" in name}
    no_update = _no_update(config)
    parameters = _parents_of_parameters(config)
    alphas = Patterns(_alpha_pattern(config))
    pairs: dict[str, _Pair] = {}
    for (module, kind), pair in factors.items():
        a, b = pair.get("A"), pair.get("B")
        if module in decomposed:
            reason = "factor of a DoRA update, which needs the base weight"
        elif no_update is not None:
            reason = no_update
        elif _is_below(module.replace(".base_layer", ""), parameters):
            reason = "factor of an update of a parameter (target_parameters), which may hold several matrices"
        elif a is None or b is None:
            reason = f"factor without the other one{NO_WEIGHT}"
        elif len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1] or math.prod(b.shape[2:]) != 1:
            reason = f"factor of shape {a.shape if b is None else b.shape} that does not fit the other one"
        elif a.shape[0] == 0:
            reason = "factor of rank 0"
        else:
            name = module.removeprefix(_WRAPPER)
            pairs[name] = _Pair(a, b, _scaling(config, alphas, name, a.shape[0]), kind != "")
            continue
        # Half a pair is no update.
        ignored |= {info.name: reason if a is None or b is None else Unread(reason) for info in pair.values()}
    return pairs, ignored


def _alpha_pattern(config: dict[str, Any]) -> dict[str, Any]:
    pattern = config.get("alpha_pattern")
    if not isinstance(pattern, dict | None):
        raise TypeError(f"alpha_pattern is a {type(pattern).__name__}")
    return pattern or {}


def _no_update(config: dict[str, Any]) -> str | None:
    """Return why no product of factors is an update of the published weights, None if they are."""
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGED_BASE):
        return _changed_base(start)
    variant = next((option for option in _OTHER_LAYERS if config.get(option)), None)
    if variant is not None:
        return f"factor of a variant of LoRA whose update is another product ({variant})"
    if config.get("layer_replication"):
        return "factor of a model in which layers of the base are repeated (layer_replication), and counted otherwise"
    return None


def _parents_of_parameters(config: dict[str, Any]) -> list[str]:
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(name, str) for name in parameters):
        raise TypeError("target_parameters is no list of names")
    return [name.rpartition(".")[0] for name in parameters]


def _is_below(module: str, parents: list[str]) -> bool:
    return any(f".{module}".endswith(f".{parent}") for parent in parents)


def adapted_name(stored: str) -> str:
    """Return the module or the tensor of the model that a stored tensor of an adapter is of.

    Examples
    --------
    >>> adapted_name("base_model.model.layers.0.k_proj.lora_magnitude_vector")
    'layers.0.k_proj'
    >>> adapted_name("base_model.model.classifier.weight")
    'classifier.weight'
    """
    return _OF_MODULE.sub("", stored.removeprefix(_WRAPPER)).replace(".base_layer", "")


def _changed_base(start: str) -> str:
    """Say why the factors' product is no update.

    It is none of the published weights; the text says too what to do about it.
    """
    if start.startswith("loftq"):
        return (
            "factor of an adapter of a base that LoftQ quantized: its product is no update of the published weights; "
            "merge the adapter into that base, and compare the merged weights with the published ones"
        )
    return (
        f"factor of an adapter that changed the base when it began (init_lora_weights is {start[:40]!r}): its product "
        "is no update of the published weights; save it again with PEFT's "
        "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
    )


def _scaling(config: dict[str, Any], alphas: Patterns, module: str, rank: int) -> float:
    """Return alpha / r, or alpha / sqrt(r) with rslora.

    If a pattern of the adapter gives the module an alpha, it is that one, as in PEFT.
    """
    alpha = float(alphas.value_for(module, config.get("lora_alpha", 8)))
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not math.isfinite(scaling):
        raise ValueError(f"alpha is {alpha}")
    return scaling


def _info(name: str, pair: _Pair) -> TensorInfo:
    shape = (pair.b.shape[0], *pair.a.shape[1:])
    if pair.embedding:
        shape = (pair.a.shape[1], pair.b.shape[0])
    nbytes = pair.a.nbytes + pair.b.nbytes
    stored_as = f"{pair.b.dtype} factors"
    return TensorInfo(name, shape, "float32", pair.b.file, nbytes, stored_as, rank=pair.a.shape[0])

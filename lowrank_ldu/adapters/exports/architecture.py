"""Ask transformers for the architecture of a base model.

It knows the names and shapes of the model's modules, and its tied weights.
"""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.nn.kinds import lora_obstacle, supports
from lowrank_ldu.untrusted import CONFIGURATION, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONFIG = "config.json"
# No model has more layers than this, unless its checkpoint has more tensors. Other configurations are not built.
_MOST_LAYERS = 1000
# Methods that set a model up, or change it. The built model already shows the ties that they make.
_SETTING_UP = re.compile(r"__init__|.*(init_weights|tie_weights|embeddings).*")
# Classes of transformers for the tasks of PEFT.
_OF_TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
_COUNTS = re.compile(r"layers|blocks|depth|experts|stages")


@dataclass(frozen=True)
class Architecture:
    """Hold what transformers knows of a model, without its numbers.

    Attributes
    ----------
    class_name : str
        "LlamaForCausalLM".
    shapes : dict of str to tuple of int
        Of every tensor of the model, by the names of its modules.
    tied : dict of str to str
        Tensors that are another one: {"lm_head.weight": "model.embed_tokens.weight"}.
    module_name : callable
        Gives the name in the model of a tensor's name in a checkpoint, or None where several of those become one.
    lora_obstacles : dict of str to str
        `lora_obstacle` of the layers that have one.
    tie_reader : str or None
        Class of the model whose computation depends on whether embedding and output layer are tied.
    """

    class_name: str
    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    module_name: Callable[[str], str | None]
    lora_obstacles: dict[str, str]
    tie_reader: str | None


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return a folder's config.json, or None.

    None where there is no such file, or it describes something else than a model.
    """
    try:
        config = read_json(folder / CONFIG, CONFIGURATION, lenient=True)
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and isinstance(config.get("model_type"), str) else None


def architecture_of(folder: Path, tensors: int, task: str | None = None) -> Architecture | None:
    """Build the model of a folder's config.json.

    It is on the meta device.

    Parameters
    ----------
    folder : Path
    tensors : int
        How many tensors its checkpoint has.
    task : str, optional
        PEFT's name of what the model is for: the class for it then, in place of the one that the configuration names.

    Returns
    -------
    Architecture or None
        None where transformers is not installed, or does not know the model without code that comes with it.
    """
    config = read_config(folder)
    names = None if config is None else config.get("architectures")
    if config is None or not isinstance(names, list) or not names or _too_large(config, max(_MOST_LAYERS, tensors)):
        return None
    try:
        import transformers  # noqa: PLC0415  # slow to import, and an extra's
    except ImportError:
        return None
    named = getattr(transformers, str(names[0]), None)
    if named is None:
        return None
    try:
        with _silent(transformers), torch.device("meta"):
            # The folder alone is read: no network, and no code out of the folder.
            loaded = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            by_task = getattr(transformers, _OF_TASKS[task])._model_mapping if task in _OF_TASKS else None  # noqa: SLF001
            model_class = named if by_task is None else by_task[type(loaded)]
            model = model_class._from_config(loaded)  # noqa: SLF001
    except Exception:  # noqa: BLE001  # the values of a configuration may raise anything
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layers = ((name, lora_obstacle(module)) for name, module in model.named_modules() if supports(module))
    obstacles = {name: obstacle for name, obstacle in layers if obstacle}
    return Architecture(model_class.__name__, shapes, _tied(model), _renaming(model), obstacles, _tie_reader(model))


def _too_large(config: dict[str, Any], limit: int) -> bool:
    found = [config]
    while found:
        for key, value in found.pop().items():
            if isinstance(value, dict):
                found.append(value)
            elif type(value) is int and value > limit and _COUNTS.search(key):
                return True
    return False


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _tied(model: Any) -> dict[str, str]:
    tied = getattr(model, "all_tied_weights_keys", None)
    if isinstance(tied, dict):
        return {str(target): str(source) for target, source in tied.items()}
    # transformers 4 lists names alone; their one tensor is the input embedding's.
    names, embedding = getattr(model, "_tied_weights_keys", None) or [], model.get_input_embeddings()
    if not getattr(model.config, "tie_word_embeddings", True) or embedding is None:
        return {}
    sources = [name for name, parameter in model.named_parameters() if parameter is embedding.weight]
    return {str(name): sources[0] for name in names if sources and name != sources[0]}


def _tie_reader(model: Any) -> str | None:
    """Return the name of a class that asks whether weights are tied.

    It is the class of a part of the model. A method of it, other than one that sets the model up, asks so.
    """
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        if not kind.__module__.startswith("transformers.models."):
            continue
        for name, member in vars(kind).items():
            code = getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None
            if code is not None and not _SETTING_UP.fullmatch(name) and "tie_word_embeddings" in code.co_names:
                return kind.__name__
    return None


def _renaming(model: Any) -> Callable[[str], str | None]:
    """Return the function that renames tensors of checkpoints.

    The new names are those of the model, as `from_pretrained` gives them.
    """
    state, prefix = model.state_dict(), model.base_model_prefix
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: PLC0415
        from transformers.core_model_loading import (  # noqa: PLC0415
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except ImportError:  # transformers 4
        patterns = getattr(model, "_checkpoint_conversion_mapping", None) or {}

        def renamed(name: str) -> str | None:
            for pattern, replacement in patterns.items():
                name, count = re.subn(pattern, replacement, name)
                if count:
                    break
            return _prefixed(name, prefix, state)

        return renamed
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]

    def converted(name: str) -> str | None:
        found, pattern = rename_source_key(name, renamings, converters, prefix, state)
        return None if pattern is not None else str(found)

    return converted


def _prefixed(name: str, prefix: str, state: dict[str, Any]) -> str:
    if name in state or not prefix:
        return name
    if name.startswith(f"{prefix}.") and name.removeprefix(f"{prefix}.") in state:
        return name.removeprefix(f"{prefix}.")
    return f"{prefix}.{name}" if f"{prefix}.{name}" in state else name

"""Read what a model's configuration says of weights.

The configuration is beside the weights. It is read as data, and believed where it is of its type.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from lowrank_ldu.checkpoints.remote.faults import DeniedError
from lowrank_ldu.checkpoints.safe_reading import read_json
from lowrank_ldu.errors import CheckpointError, RemoteError
from lowrank_ldu.untrusted import CONFIGURATION

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo
    from lowrank_ldu.checkpoints.remote.path import Place

# How the weights were quantized stands in the first, or in a file of its own: of AutoGPTQ, and of AutoAWQ.
CONFIGURATIONS = ("config.json", "quantize_config.json", "quant_config.json")
# What PEFT saves beside the factors of an adapter; their scaling stands in it.
ADAPTER_CONFIGURATION = "adapter_config.json"
_CONFIG, *_QUANTIZATIONS = CONFIGURATIONS
_MOST_INTEGER = 2**31


def is_there(path: Place) -> bool:
    """Say whether a configuration can be read."""
    try:
        return path.is_file()
    except DeniedError:
        # Stores that list nothing to strangers say so of what is not there.
        return False


class Section:
    """Hold one object of a configuration.

    What is missing or of another type than asked for is None.

    Parameters
    ----------
    values : dict

    Examples
    --------
    >>> section = Section({"model_type": "phi3", "n_head": 4, "hidden_size": "many"})
    >>> section.model_type, section.integer("num_attention_heads", "n_head"), section.integer("hidden_size")
    ('phi3', 4, None)
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    @property
    def model_type(self) -> str:
        """Return the model's type as transformers calls it, or nothing."""
        return self.text("model_type") or ""

    def integer(self, *names: str) -> int | None:
        """Return the first positive integer of these names."""
        for name in names:
            value = self._values.get(name)
            if type(value) is int and 0 < value < _MOST_INTEGER:
                return value
        return None

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a truth value, the default if there is none."""
        value = self._values.get(name)
        return value if isinstance(value, bool) else default

    def text(self, name: str) -> str | None:
        """Return a string."""
        value = self._values.get(name)
        return value if isinstance(value, str) else None

    def section(self, name: str) -> Section | None:
        """Return an object that is not empty."""
        value = self._values.get(name)
        return Section(value) if isinstance(value, dict) and value else None


class ModelConfig:
    """Hold the configuration in a folder of weights.

    A file that is missing says nothing. One that cannot be read is an error, when it is asked: without it weights would
    be taken for others.

    Parameters
    ----------
    folder : pathlib.Path or RemotePath

    Raises
    ------
    CheckpointError
        A file is too large, or is no JSON that says one thing.
    """

    def __init__(self, folder: Place) -> None:
        self._folder = folder

    @cached_property
    def sections(self) -> list[Section]:
        """Return the configuration, and the language model's inside it."""
        whole = self._read(_CONFIG)
        return [section for section in (whole, whole and whole.section("text_config")) if section is not None]

    @cached_property
    def quantization(self) -> Section | None:
        """Return how the weights were quantized."""
        for section in self.sections:
            if (found := section.section("quantization_config")) is not None:
                return found
        return next((found for name in _QUANTIZATIONS if (found := self._read(name)) is not None), None)

    def _read(self, name: str) -> Section | None:
        path = self._folder / name
        if not is_there(path):
            return None
        try:
            value = read_json(path, "configuration", CONFIGURATION, lenient=True)
        except RemoteError:
            raise
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; accepted: the whole configuration, which says how weights are stored, or none"
            ) from error
        return Section(value) if isinstance(value, dict) and value else None


class ModelConfigs:
    """Hold the configurations in the folders of a checkpoint.

    Parameters
    ----------
    reader : CheckpointReader
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader
        self._known: dict[Place, ModelConfig] = {}

    def of(self, info: TensorInfo) -> ModelConfig:
        """Return the configuration beside the file that holds a tensor."""
        folder = self._reader.place(info).parent
        return self._known.setdefault(folder, ModelConfig(folder))

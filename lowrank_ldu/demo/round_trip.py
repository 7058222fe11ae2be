"""Save, reload and merge the trained adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from lowrank_ldu.adapters import load_adapter, save_adapter
from lowrank_ldu.adapters.format import CONFIG_FILE, WEIGHTS_FILE
from lowrank_ldu.demo import LoLDUMethod, accuracy, build_vision_transformer
from lowrank_ldu.errors import RoundTripError
from lowrank_ldu.finetuning.digits.prepared import HEAD
from lowrank_ldu.nn import ParameterCount, trainable_parameters, unload

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from lowrank_ldu.demo import Comparison, MethodResult

BASE_FILE = "base.safetensors"
MERGED_FILE = "merged.safetensors"

# Rebuilt factors and merged weights round differently in float32; the sums have a few hundred terms.
LOGIT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class RoundTrip:
    """Hold the results of saving, reloading and merging.

    Attributes
    ----------
    method : str
        The method whose model was saved.
    parameters : ParameterCount
        As the paper counts them.
    adapter_bytes, base_bytes : int
        Sizes of the adapter (both files, with the head) and of the base weights on disk.
    reloaded_difference, merged_difference : float
        Largest difference of a logit on the test images from the trained model's, over the largest logit.
    accuracies : tuple of float
        Test accuracy of the trained, the reloaded and the merged model, in [0, 1].
    """

    method: str
    parameters: ParameterCount
    adapter_bytes: int
    base_bytes: int
    reloaded_difference: float
    merged_difference: float
    accuracies: tuple[float, float, float]


def round_trip(comparison: Comparison, folder: Path) -> RoundTrip:
    """Save, reload and merge the largest LoLDU model.

    It is reloaded onto a fresh base, and all three are compared.

    Raises
    ------
    RoundTripError
        The three models' logits differ by more than rounding.
    """
    result = _largest(comparison)
    save_file(comparison.pretrained.model.state_dict(), folder / BASE_FILE)
    save_adapter(result.model, folder, modules_to_save=[HEAD])

    test = comparison.split.test
    fresh = build_vision_transformer(comparison.settings.network, seed=comparison.settings.split_seed)
    fresh.load_state_dict(load_file(folder / BASE_FILE))
    load_adapter(fresh, folder)
    trained = _logits(result.model, test.pixels)
    reloaded, reloaded_accuracy = _logits(fresh, test.pixels), accuracy(fresh, test)
    unload(fresh)
    merged, merged_accuracy = _logits(fresh, test.pixels), accuracy(fresh, test)
    save_file(fresh.state_dict(), folder / MERGED_FILE)

    outcome = RoundTrip(
        method=result.method.name,
        parameters=trainable_parameters(result.model),
        adapter_bytes=sum((folder / name).stat().st_size for name in (WEIGHTS_FILE, CONFIG_FILE)),
        base_bytes=(folder / BASE_FILE).stat().st_size,
        reloaded_difference=_difference(reloaded, trained),
        merged_difference=_difference(merged, trained),
        accuracies=(accuracy(result.model, test), reloaded_accuracy, merged_accuracy),
    )
    if not max(outcome.reloaded_difference, outcome.merged_difference) <= LOGIT_TOLERANCE:
        raise RoundTripError(
            f"logits of the reloaded and the merged model differ from the trained model's by "
            f"{outcome.reloaded_difference:.1e} and {outcome.merged_difference:.1e}; accepted: at most "
            f"{LOGIT_TOLERANCE:.0e}"
        )
    return outcome


def _largest(comparison: Comparison) -> MethodResult:
    candidates = [
        (result.method.rank, result) for result in comparison.results if isinstance(result.method, LoLDUMethod)
    ]
    return max(candidates, key=lambda candidate: candidate[0])[1]


@torch.no_grad()
def _logits(model: nn.Module, pixels: Tensor) -> Tensor:
    model.eval()
    logits: Tensor = model(pixels).logits
    return logits


def _difference(logits: Tensor, reference: Tensor) -> float:
    return float((logits - reference).abs().max() / reference.abs().max())

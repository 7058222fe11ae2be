"""Reload and merge the adapter that a run has saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_model

from lowrank_ldu.adapters import load_adapter
from lowrank_ldu.errors import RoundTripError
from lowrank_ldu.finetuning.digits import digits_splits, pretrained_digits_vit
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.run_directory import RunDirectory
from lowrank_ldu.finetuning.tasks.image_rows import ImageRows
from lowrank_ldu.nn import ParameterCount, trainable_parameters, unload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from lowrank_ldu.finetuning.comparison import Trained

BASE_FILE = "base.safetensors"
MERGED_FILE = "merged.safetensors"

# Rebuilt factors and merged weights round differently in float32; the sums have a few hundred terms.
LOGIT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class RoundTrip:
    """Hold the results of reloading and merging.

    Attributes
    ----------
    method : str
        Title of the entry whose adapter was loaded.
    parameters : ParameterCount
        As the paper counts them.
    adapter_bytes, base_bytes : int
        Sizes of the adapter (with the head) and of the base weights on disk.
    differences : dict of str to float
        "reloaded", "by PEFT" and "merged" to the largest difference of a logit on the test images from the trained
        model's, over the largest logit.
    accuracies : dict of str to float
        Likewise, and "trained", to the test accuracy in [0, 1].
    """

    method: str
    parameters: ParameterCount
    adapter_bytes: int
    base_bytes: int
    differences: dict[str, float]
    accuracies: dict[str, float]


def round_trip(trained: Sequence[Trained], folder: Path) -> RoundTrip:
    """Reload and merge the adapter of the largest LoLDU.

    It is loaded onto fresh bases, by this package and by PEFT, and merged. All are compared with the logits that the
    run has kept. The base and the merged weights are written into the folder.

    Parameters
    ----------
    trained : sequence of Trained
        Of `compare_methods`.
    folder : pathlib.Path

    Returns
    -------
    RoundTrip

    Raises
    ------
    RoundTripError
        The models' logits differ by more than rounding.
    """
    runs = [each for each in trained if each.entry.method == "loldu" and not each.trial and each.result is not None]
    run = max(runs, key=lambda each: (each.result.numbers, -each.seed))  # type: ignore[union-attr]  # as filtered
    directory = RunDirectory(run.result.folder)  # type: ignore[union-attr]
    kept, labels = (torch.from_numpy(each) for each in directory.predictions("test"))  # type: ignore[union-attr]
    base, processor = pretrained_digits_vit()
    save_model(base, str(folder / BASE_FILE))
    rows = ImageRows("test", digits_splits()["test"], processor, 1)
    pixels = torch.stack([torch.as_tensor(rows[place]["pixel_values"]) for place in range(len(rows))])

    require("lowrank_ldu.peft")
    by_peft = require("peft").PeftModel.from_pretrained(pretrained_digits_vit()[0], str(directory.adapter))
    logits = {"by PEFT": _logits(by_peft, pixels)}
    # What is trained beside the adapter is the head.
    base.requires_grad_(False)
    base.classifier.requires_grad_(True)
    load_adapter(base, directory.adapter)
    logits["reloaded"] = _logits(base, pixels)
    parameters = trainable_parameters(base)
    unload(base)
    logits["merged"] = _logits(base, pixels)
    save_model(base, str(folder / MERGED_FILE))

    differences = {name: float((each - kept).abs().max() / kept.abs().max()) for name, each in logits.items()}
    if not max(differences.values()) <= LOGIT_TOLERANCE:
        found = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        raise RoundTripError(
            f"logits differ from the trained model's by {found}; accepted: at most {LOGIT_TOLERANCE:.0e}"
        )
    return RoundTrip(
        method=run.entry.title,
        parameters=parameters,
        adapter_bytes=run.result.record["adapter_bytes"],  # type: ignore[union-attr]
        base_bytes=(folder / BASE_FILE).stat().st_size,
        differences=differences,
        accuracies={name: _accuracy(each, labels) for name, each in {"trained": kept, **logits}.items()},
    )


@torch.no_grad()
def _logits(model: nn.Module, pixels: Tensor) -> Tensor:
    model.eval()
    logits: Tensor = model(pixel_values=pixels).logits
    return logits


def _accuracy(logits: Tensor, labels: Any) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())
